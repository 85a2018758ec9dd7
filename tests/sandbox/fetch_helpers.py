"""What the tests of the whole story share: both stand-ins, a real state file, and who listens.

A test module names this one in `pytest_plugins` and imports from it too, which pytest takes
amiss unless it may leave the asserts as they are: PYTEST_DONT_REWRITE.
"""

import asyncio
import contextlib
import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest

from downloader.api import AsyncPrivateAPI
from downloader.errors import DownloaderError
from downloader.fetch import FetchOptions, fetch_task
from downloader.hosts import HostRules
from downloader.polling import PollOptions
from downloader.progress import Reporter
from downloader.retry import without_waiting
from downloader.sandbox import Sandbox, samples
from downloader.transfer import Connections, TransferOptions
from state import AsyncStore, StateStore


def _tiny_pair():
    """Return a pair that is checked in no time."""
    with tempfile.TemporaryDirectory() as directory:
        paths = samples.write_pair(Path(directory), "a.vcf.gz", records=50)
        return tuple(path.read_bytes() for path in paths)


MIB = 1024 * 1024
VCF, TBI = _tiny_pair()
PAIR = {"run/a.vcf.gz": VCF, "run/a.vcf.gz.tbi": TBI}
NOTES = b"a few words, which nobody checks the structure of\n" * 20
READY = ("SUCCESS",)
RULES = HostRules.of(["127.0.0.1"])
SECRETS = ("Signature", "OSSAccessKeyId", "SANDBOXACCESSKEYID", "Expires=", "security-token")


class Heard(Reporter):
    """Keeps everything that a screen would show, each fact as a tuple that begins with its kind."""

    def __init__(self):
        self.facts = []
        self._awaited = []

    def _hear(self, *fact):
        self.facts.append(fact)
        for kind, event in self._awaited:
            if kind == fact[0]:
                event.set()

    def polled(self, status, *, polls, next_in_seconds):
        self._hear("polled", status)

    def planned(self, files):
        self._hear("planned", [file.name for file in files])

    def file_sized(self, name, size, *, resumed):
        self._hear("sized", name, size, resumed)

    def received(self, name, delta):
        self._hear("received", name, delta)

    def file_done(self, name):
        self._hear("done", name)

    def verifying(self, name):
        self._hear("verifying", name)

    def note(self, message):
        self._hear("note", message)

    def finished(self):
        self._hear("finished")

    def of(self, kind):
        """Return what was heard of one kind, without its name."""
        return [fact[1:] for fact in self.facts if fact[0] == kind]

    @property
    def notes(self):
        return [message for (message,) in self.of("note")]

    async def hears(self, kind):
        """Return once something of that kind has been told from now on."""
        event = asyncio.Event()
        self._awaited.append((kind, event))
        await event.wait()


@dataclass
class Rig:
    """Everything that a fetch needs, and what the tests ask about afterwards."""

    sandbox: Sandbox
    api: AsyncPrivateAPI
    session: aiohttp.ClientSession
    store: AsyncStore
    directory: Path
    heard: Heard = field(default_factory=Heard)
    poll: PollOptions = field(default_factory=PollOptions)
    transfer: TransferOptions = field(
        default_factory=lambda: TransferOptions(segments=2, max_attempts=4, rules=RULES)
    )

    @property
    def dest(self):
        return self.directory / "results"

    @property
    def state_path(self):
        return self.directory / "state.db"

    def final(self, task_id):
        return self.dest / task_id

    def partial(self, task_id):
        return self.dest / f"{task_id}.partial"

    def add(self, files=PAIR, **details):
        """Add a task that is ready at the first poll, unless told otherwise."""
        return self.sandbox.add_task(files, **{"states": READY, **details})

    async def fetch(self, task_id, *, dest=None, store=None, reporter=None, **options):
        """Fetch as the program does; no pause between attempts lasts any time."""
        files = options.pop("parallel_files", 4)
        transfer = replace(self.transfer, connections=Connections(most_files=files))
        options = {"poll": self.poll, "transfer": transfer, **options}
        with without_waiting():
            return await fetch_task(
                task_id,
                dest or self.dest,
                api=self.api,
                store=store or self.store,
                session=self.session,
                options=FetchOptions(**options),
                reporter=reporter or self.heard,
            )

    async def fails(self, task_id, kind, **options):
        """Return the error that the fetch must end with; it is in the task's record too."""
        with pytest.raises(kind) as caught:
            await self.fetch(task_id, **options)
        return caught.value

    async def interrupted(self, task_id, injection, **options):
        """Fetch until the fault has happened, then cancel, as a signal does."""
        running = asyncio.ensure_future(self.fetch(task_id, **options))
        await injection.happened.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        self.sandbox.store.clear_faults()
        self.forget()

    def forget(self):
        """Begin the counts of the stand-ins and of the reporter anew."""
        self.sandbox.store.forget_requests()
        self.sandbox.platform.calls.clear()
        self.heard = Heard()

    @property
    def moved(self):
        """Bytes of objects that the store has sent; what it says in an error is no object's."""
        requests = self.sandbox.store.requests
        return sum(one.bytes_sent for one in requests if one.status in (200, 206))

    @property
    def calls(self):
        """The names of the platform's calls, in order."""
        return [name for name, _ in self.sandbox.platform.calls]

    async def task(self, task_id, *, store=None):
        (task,) = await (store or self.store).call(StateStore.find_tasks, task_id)
        return task

    async def events(self, task_id, *, store=None):
        task = await self.task(task_id, store=store)
        return await (store or self.store).call(StateStore.list_events, task.id)

    async def history(self, task_id):
        """Return the kinds of the task's events."""
        return [event.kind for event in await self.events(task_id)]

    def manifest(self, task_id):
        return json.loads((self.final(task_id) / "bge-manifest.json").read_text())

    def published(self, task_id):
        """Return the published files' bytes by their names; the manifest and sums are left out."""
        return {
            name: data
            for name, data in tree(self.final(task_id)).items()
            if name not in ("bge-manifest.json", "SHA256SUMS", "MD5SUMS")
        }

    def all_written(self):
        """Return every byte that is on disk anywhere below the test's directory."""
        return b"".join(path.read_bytes() for path in self.directory.rglob("*") if path.is_file())


def tree(directory):
    """Return the bytes of every file below a directory by its relative name."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@contextlib.asynccontextmanager
async def rig_in(directory, **details):
    """Lend both stand-ins, a client of each, and a state file in the directory."""
    async with contextlib.AsyncExitStack() as stack:
        sandbox = await stack.enter_async_context(Sandbox(**details))
        api = AsyncPrivateAPI(sandbox.app_key, sandbox.app_secret, sandbox.endpoint)
        await stack.enter_async_context(api)
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        store = await stack.enter_async_context(await AsyncStore.open(directory / "state.db"))
        yield Rig(sandbox, api, session, store, directory)


@pytest.fixture
async def rig(tmp_path):
    async with rig_in(tmp_path) as rig:
        yield rig


@pytest.fixture
async def other_store(rig):
    """A second door to the same state file, as a second process has it."""
    async with await AsyncStore.open(rig.state_path) as store:
        yield store


def outcome_of(doing):
    """Let somebody do all that is left of it; return the error, if that is how it ends."""
    try:
        for _ in doing:
            pass
    except DownloaderError as error:
        return error
    return None
