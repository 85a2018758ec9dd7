"""Asks the platform for the tasks that are due: a few at a time, each when its time has come."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from downloader.concurrency import in_thread
from downloader.errors import (
    BadTaskResult,
    DiskError,
    DownloaderError,
    PlatformError,
    PlatformUnavailable,
    TaskFailed,
    UsageError,
)
from downloader.fetch import NOT_ASKED
from downloader.holding import LEASE_SECONDS
from downloader.logs import facts
from downloader.polling import not_ready, status_of
from downloader.publish import ResultDirectory
from downloader.retry import pause_seconds
from downloader.service.bringing import Bringing
from downloader.service.equipment import Equipment
from state import Phase, Polled, StateError, Task

__all__ = ["Asking"]

ASKED = (16, 256)  # tasks at a time: at least and at the most
ASKED_SECONDS = 2.0  # as many as can be asked in that time, within those bounds
MAX_PARKED = 1000  # numbers of tasks that wait for a place, which are called when one is free
PARKED_SECONDS = 300.0  # until such a task is looked at again in any case
LONGEST_PAUSE = 3600.0  # seconds: what a wish of the platform or a failed attempt may come to
PAUSES = 2.0  # times the longest pause: what lies further ahead was put off by a wrong clock
TELLING_GAPS = 2.0  # times the longest pause: a poll that comes later tells little
REFUSALS = 5  # in a row of one task, while the platform answers for others

logger = logging.getLogger(__name__)


class Asking:
    """The polls that are under way, and what has come of them since it was last kept."""

    def __init__(self, equipment: Equipment, bringing: Bringing) -> None:
        self._equipment = equipment
        self._bringing = bringing
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._unkept: list[Polled] = []
        self._parked: deque[int] = deque(maxlen=MAX_PARKED)
        self._answered_at: datetime | None = None
        self.condition: str | None = None  # what keeps the platform from answering

    @property
    def tasks(self) -> set[int]:
        """The numbers of the tasks that are in our hands here."""
        return {*self._asked, *(poll.task for poll in self._unkept)}

    async def round(self) -> None:
        """Keep what has come, and begin to ask for what is due."""
        await self.keep()
        await self._call_parked()
        owner, free = self._equipment.owner, self._places - len(self._asked)
        due = await self._equipment.store.run(
            lambda store: store.agenda.take_due(owner, free, lease_seconds=LEASE_SECONDS)
        )
        for task in due:
            self._asked[task.id] = asyncio.ensure_future(self._ask(task))

    async def wake(self) -> None:
        """Ask for what a clock that was ahead has put off, now that it was put right."""
        longest = PAUSES * max(self._equipment.settings.poll_max_interval, LONGEST_PAUSE)
        count = await self._equipment.store.run(lambda store: store.agenda.wake(longest))
        if count:
            logger.warning(
                "Asking for tasks that a clock ahead of time had put off", extra=facts(tasks=count)
            )

    @property
    def _places(self) -> int:
        fewest, most = ASKED
        wanted = int(self._equipment.turns.calls_per_second * ASKED_SECONDS)
        return max(fewest, min(wanted, most))

    async def keep(self) -> None:
        """Write what polls have brought: many with one sync of the disk."""
        if not self._unkept:
            return
        polls, self._unkept = self._unkept, []
        owner = self._equipment.owner
        try:
            await self._equipment.store.run(lambda store: store.agenda.record_polls(owner, polls))
        except BaseException:
            self._unkept = [*polls, *self._unkept]
            raise

    async def settled(self) -> None:
        """Return once nothing is being asked."""
        while self._asked:
            await asyncio.wait(self._asked.values())

    async def stop(self) -> None:
        """Ask no more, and keep what has come."""
        for asked in self._asked.values():
            asked.cancel()
        await self.settled()
        await self.keep()

    async def _call_parked(self) -> None:
        """Let as many tasks come forward as there are free places."""
        free = min(self._bringing.free_places, len(self._parked))
        if free > 0:
            tasks = {self._parked.popleft() for _ in range(free)}
            await self._equipment.store.run(lambda store: store.agenda.hasten(tasks=tasks))

    async def _ask(self, task: Task) -> None:
        try:
            await self._ask_or_tell(task)
        except StateError as error:
            # Its lease stays ours, and whoever renews the leases gives it back.
            logger.error("The state took no answer", extra=facts(task=task.task_id, error=error))
        finally:
            self._equipment.pulse.beat()
            del self._asked[task.id]

    async def _ask_or_tell(self, task: Task) -> None:
        # The platform's word counts no more: it forgets tasks, and may change its mind.
        if task.phase is not Phase.WAITING and await in_thread(_is_published, task):
            await self._bring_or_park(task, NOT_ASKED)
            return
        try:
            answer = await self._equipment.api.task_result(task.task_id)
            status = status_of(task.task_id, answer)
        except TaskFailed as error:
            self._has_answered()
            await self._bringing.end(task, error)
        except (PlatformError, UsageError) as error:  # the latter: a proxy that is none
            await self._unanswered(task, error)
        else:
            self._has_answered()
            await self._heard(task, status, answer)

    def _has_answered(self) -> None:
        if self.condition is not None:
            logger.info("The platform answers again")
        self.condition = None
        self._answered_at = self._equipment.clock()

    async def _heard(self, task: Task, status: str, answer: Mapping[str, Any]) -> None:
        if status != task.status:
            logger.info("The platform told a status", extra=facts(task=task.task_id, status=status))
        if status == "SUCCESS":
            await self._ready(task, answer.get("result"))
        elif self._seconds_left(task) <= 0:
            patience = self._equipment.settings.poll_deadline
            hint = f"`bge-downloader retry {task.task_id}` waits anew"
            error = not_ready(task.task_id, status, patience, what_next=hint)
            await self._bringing.end(task, error)
        else:
            pause = self._equipment.pace.pause(self._elapsed(task))
            self._put_off(task, status, pause)

    async def _ready(self, task: Task, result: object) -> None:
        """Begin to bring the files, or let the task wait where there is no place, or no room."""
        equipment = self._equipment
        seconds = self._seconds_taken(task)
        if seconds is not None and task.ready_after_seconds is None:
            equipment.pace.learn(seconds)
        if not await equipment.store.run(
            lambda store: store.agenda.record_ready(
                task.id, equipment.owner, "SUCCESS", seconds=seconds
            )
        ):
            return  # cancelled or removed meanwhile, or somebody else's by now
        if (why := await equipment.rooms.why_not(task.dest)) is not None:
            await self._bringing.pause(task, why)
        else:
            await self._bring_or_park(task, result)

    async def _bring_or_park(self, task: Task, result: object) -> None:
        equipment = self._equipment
        if self._bringing.free_places < 1 or not self._bringing.begin(task, result):
            self._parked.append(task.id)
            due_at = equipment.clock() + timedelta(seconds=PARKED_SECONDS)
            await equipment.store.run(
                lambda store: store.agenda.put_off(task.id, equipment.owner, due_at)
            )

    async def _unanswered(self, task: Task, error: DownloaderError) -> None:
        """Ask again later; give up what the platform refuses for this task alone."""
        is_retrying = task.phase is Phase.RETRYING  # and counts what failed in fetching it
        tries = task.tries if is_retrying else task.tries + 1
        is_passing = isinstance(error, PlatformUnavailable | BadTaskResult)
        if not is_passing and tries >= REFUSALS and self._others_are_answered(task):
            await self._bringing.end(task, error)
            return
        if self.condition is None:
            logger.warning("The platform gives no result", extra=facts(reason=str(error)))
        self.condition = str(error)
        settings = self._equipment.settings
        asked = error.retry_after if isinstance(error, PlatformUnavailable) else None
        pause = pause_seconds(
            max(1, tries),
            first=settings.poll_interval,
            maximum=settings.poll_max_interval,
            retry_after=asked,
        )
        if self._seconds_left(task) <= 0:
            await self._bringing.end(task, error)
        else:
            self._put_off(task, None, pause, message=str(error), tries=tries)

    def _others_are_answered(self, task: Task) -> bool:
        """Tell whether the platform has answered since this task was first refused."""
        if self._answered_at is None or task.asked_at is None:
            return False
        return self._answered_at > task.asked_at

    def _put_off(
        self,
        task: Task,
        status: str | None,
        pause: float,
        *,
        message: str | None = None,
        tries: int = 0,
    ) -> None:
        pause = max(0.0, min(pause, self._seconds_left(task)))
        due_at = self._equipment.clock() + timedelta(seconds=pause)
        self._unkept.append(
            Polled(task=task.id, status=status, due_at=due_at, message=message, tries=tries)
        )

    def _elapsed(self, task: Task) -> float:
        began = task.watched_since or task.created_at
        return (self._equipment.clock() - began).total_seconds()

    def _seconds_left(self, task: Task) -> float:
        return self._equipment.settings.poll_deadline - self._elapsed(task)

    def _seconds_taken(self, task: Task) -> float | None:
        """Return how long the task took: between the last two polls; None if that says nothing.

        One that was ready when it was first asked for tells nothing of those that were not, and
        the time when nobody asked tells nothing either.
        """
        if task.asked_at is None or task.watched_since is None:
            return None
        before = (task.asked_at - task.watched_since).total_seconds()
        gap = self._elapsed(task) - before
        if not 0 <= gap <= TELLING_GAPS * self._equipment.settings.poll_max_interval:
            return None
        return before + gap / 2


def _is_published(task: Task) -> bool:
    """Tell whether a task's result is there, as after a fetch, or a crash behind the rename.

    Where the disk does not tell, whoever brings the task shall: it is no reason to ask.
    """
    try:
        place = ResultDirectory(Path(task.dest), task.task_id)
        manifest = place.published()
        return manifest is not None and not place.missing_or_short(manifest)
    except (DiskError, OSError):
        return True
    except DownloaderError:  # what is there is no result, or a damaged one
        return False
