"""What the tests of the service share: a whole service whose rounds are called, not waited for.

Its clock is the test's: it begins now and moves when the test says so. A test module names this
one in `pytest_plugins` and imports from it too: PYTEST_DONT_REWRITE.
"""

import asyncio
import contextlib
import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fetch_helpers import PAIR, READY

from downloader.config import Settings, load_settings
from downloader.retry import without_waiting
from downloader.sandbox import Sandbox
from downloader.service.daemon import Service
from downloader.service.equipment import open_equipment
from downloader.service.notify import Notifier
from state import AsyncStore, StateStore, Wanted

TURNS = 200  # rounds until something must have happened; far beyond what any test needs


class Clock:
    """A clock that stands still until it is moved, never backwards."""

    def __init__(self):
        self.now = datetime.now(UTC)

    def __call__(self):
        return self.now

    def move(self, seconds):
        self.now += timedelta(seconds=seconds)


class Told(Notifier):
    """Keeps what systemd would be told."""

    def __init__(self):
        super().__init__("the test")
        self.sent = []

    def _send(self, fields):
        self.sent.append(dict(fields))

    @property
    def statuses(self):
        return [fields["STATUS"] for fields in self.sent if "STATUS" in fields]


@dataclass
class ServiceRig:
    """A service, the sandbox that it talks to, and everything that a test asks about."""

    sandbox: Sandbox
    directory: Path
    service: Service
    clock: Clock
    told: Told
    settings: Settings
    extra: contextlib.AsyncExitStack = field(repr=False)

    @property
    def equipment(self):
        return self.service.equipment

    @property
    def store(self) -> AsyncStore:
        return self.equipment.store

    @property
    def dest(self):
        return self.directory / "results"

    def final(self, task_id):
        return self.dest / task_id

    def partial(self, task_id):
        return self.dest / f"{task_id}.partial"

    async def add(self, files=PAIR, *, dest=None, **details):
        """Add a task, ready at the first poll unless told otherwise, on both sides."""
        task_id = self.sandbox.add_task(files, **{"states": READY, **details})
        await self.watch(task_id, dest=dest)
        return task_id

    async def watch(self, *task_ids, dest=None):
        place = str(dest or self.dest)
        outcomes = await self.store.run(lambda store: store.agenda.watch(task_ids, place))
        return [outcome for _, outcome in outcomes]

    async def task(self, task_id):
        [task] = await self.store.call(StateStore.find_tasks, task_id)
        return task

    async def events(self, task_id):
        task = await self.task(task_id)
        return await self.store.call(StateStore.list_events, task.id)

    async def kinds(self, task_id):
        return [event.kind for event in await self.events(task_id)]

    async def cancel(self, task_id) -> Wanted:
        task = await self.task(task_id)
        return await self.store.run(lambda store: store.agenda.cancel(task.id))

    async def retry(self, task_id) -> Wanted:
        task = await self.task(task_id)
        return await self.store.run(lambda store: store.agenda.retry(task.id))

    async def ask(self):
        """Go round once, until everything that was asked is answered and kept."""
        await self.service.round()
        await self.service.asking.settled()
        await self.service.asking.keep()

    async def rest(self):
        """Go round until nothing is due and nothing under way, without moving the clock."""
        for _ in range(TURNS):
            await self.ask()
            await self.service.bringing.settled()
            await self.service.announcing.round()
            await self.service.announcing.settled()
            if not await self._is_due():
                return
        raise AssertionError("it never came to rest")

    async def live(self, seconds, *, step=1.0):
        """Let so many seconds pass, with a round in each step of them."""
        for _ in range(int(seconds / step)):
            self.clock.move(step)
            await self.rest()

    async def until(self, condition, *, step=60.0):
        """Let time pass until the condition holds."""
        for _ in range(TURNS):
            await self.rest()
            if await condition():
                return
            self.clock.move(step)
        raise AssertionError("it never came to be")

    async def _is_due(self):
        tasks = await self.store.call(StateStore.find_tasks)
        now = self.clock()
        return any(
            task.is_watched and task.due_at <= now and task.acquired_by is None for task in tasks
        )

    async def another(self, **settings):
        """Open one more service on the same state."""
        return await self.extra.enter_async_context(
            opened_service(self.sandbox, self.directory, self.clock, self.extra, **settings)
        )


@contextlib.asynccontextmanager
async def opened_service(sandbox, directory, clock, extra, **changed):
    given = {
        "app_key": sandbox.app_key,
        "app_secret": sandbox.app_secret,
        "endpoint": sandbox.endpoint,
        "allowed_hosts": ["127.0.0.1"],
        "dest": directory / "results",
        "state": str(directory / "state.db"),
        "segments": 2,
        "calls_per_second": 1000,
        "max_retries": 0,
        **changed,
    }
    settings = load_settings(defaults=given)
    async with open_equipment(settings, clock=clock) as equipment:
        few = dataclasses.replace(equipment.options.transfer, max_attempts=3)
        equipment.options = dataclasses.replace(equipment.options, transfer=few)
        told = Told()
        service = Service(equipment, notifier=told)
        await service.take_up()
        try:
            yield ServiceRig(sandbox, directory, service, clock, told, settings, extra)
        finally:
            await service.stop()


@pytest.fixture
def service_settings(request):
    """Settings that a test module or a test has otherwise."""
    settings = dict(getattr(request, "param", {}))
    if settings.get("state") == "postgresql":
        settings["state"] = request.getfixturevalue("empty_postgresql_state")
    return settings


@pytest.fixture
async def rig(tmp_path, service_settings):
    clock = Clock()
    with without_waiting():
        async with (
            Sandbox() as sandbox,
            contextlib.AsyncExitStack() as extra,
            opened_service(sandbox, tmp_path, clock, extra, **service_settings) as opened,
        ):
            yield opened


async def happens(event):
    async with asyncio.timeout(20):
        await event.wait()
