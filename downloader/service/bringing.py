"""Brings the files of tasks that are ready: many tasks side by side, each for itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from downloader.errors import DownloaderError, TaskCancelled
from downloader.fetch import FetchReport, fetch_task
from downloader.logs import facts
from downloader.progress import PlannedFile, Reporter
from downloader.service.equipment import Equipment
from downloader.service.judging import NO_ROOM_PAUSE_SECONDS, Fate, Verdict, judged
from downloader.units import format_seconds
from state import Phase, RecordMissing, StateError, Task

__all__ = ["Bringing"]

IDLE_SECONDS = 30.0  # without a byte: such a task holds up no other
MAX_IDLE = 3  # times as many tasks in all as may be busy

logger = logging.getLogger(__name__)


class Bringing:
    """The fetches that are under way."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._jobs: dict[int, _Job] = {}
        self._is_stopping = False

    @property
    def tasks(self) -> set[int]:
        """The numbers of the tasks that are under way."""
        return {*self._jobs}

    @property
    def free_places(self) -> int:
        """How many more tasks may be begun; one to which nothing comes takes no place for long."""
        most, now = self._equipment.settings.parallel_tasks, time.monotonic()
        busy = sum(now - job.reporter.heard_at < IDLE_SECONDS for job in self._jobs.values())
        return max(0, min(most - busy, (1 + MAX_IDLE) * most - len(self._jobs)))

    def begin(self, task: Task, result: object) -> bool:
        """Fetch a task that is ready, whose lease is ours; False if that cannot be now.

        One that was cancelled and is wanted again may still be on its way to a stop.
        """
        if self._is_stopping or task.id in self._jobs:
            return False
        job = _Job(task, reporter=_Listener(self._equipment, task))
        self._jobs[task.id] = job
        job.running = asyncio.ensure_future(self._bring(job, result))
        return True

    async def stop_unwatched(self) -> None:
        """Stop what was cancelled or removed, or is somebody else's by now."""
        if not self._jobs:
            return
        numbers, owner = self.tasks, self._equipment.owner
        gone = await self._equipment.store.run(
            lambda store: store.agenda.unwatched_among(numbers, owner=owner)
        )
        self.stop_some(gone, "cancelled, or its lease is gone")

    def stop_some(self, numbers: Iterable[int], reason: str) -> None:
        """Stop tasks that are not ours any more."""
        for number in numbers:
            job = self._jobs.get(number)
            if job is not None and job.running is not None and job.stopped_because is None:
                job.stopped_because = reason
                job.running.cancel()

    async def stop(self) -> None:
        """Stop everything, once every checkpoint is written."""
        self._is_stopping = True
        self.stop_some([*self._jobs], "the service stops")
        await self.settled()

    async def settled(self) -> None:
        """Return once nothing is under way."""
        while self._jobs:
            await asyncio.wait([job.running for job in self._jobs.values() if job.running])

    async def _bring(self, job: _Job, result: object) -> None:
        try:
            await self._bring_or_tell(job, result)
        except StateError as error:
            # Its lease stays ours, and whoever renews the leases gives it back.
            logger.error("The state took no end of a task", extra=facts(**job.facts, error=error))
        finally:
            self._equipment.pulse.beat()
            del self._jobs[job.task.id]

    async def _bring_or_tell(self, job: _Job, result: object) -> None:
        equipment, task = self._equipment, job.task
        logger.info("Fetching", extra=facts(**job.facts))
        try:
            report = await fetch_task(
                task.task_id,
                Path(task.dest),
                api=equipment.api,
                store=equipment.store,
                session=equipment.session,
                options=equipment.options,
                reporter=job.reporter,
                known_result=result,
                owner=equipment.owner,
            )
        except asyncio.CancelledError:
            await self._stopped(job)
        except (RecordMissing, TaskCancelled):
            await self._not_found(job)
        except (DownloaderError, StateError) as error:
            await self._failed(job, error)
        except Exception as error:
            # A mistake of ours in one task is no reason to drop the others.
            logger.exception("A mistake in the program", extra=facts(**job.facts))
            await self._failed(job, error)
        else:
            await self._published(job, report)

    async def _published(self, job: _Job, report: FetchReport) -> None:
        equipment = self._equipment
        equipment.rooms.proved(job.task.dest)
        await equipment.store.run(
            lambda store: store.agenda.settle(job.task.id, equipment.owner, event="complete")
        )
        told = facts(
            **job.facts,
            files=len(report.files),
            bytes=report.size,
            received=report.received_bytes,
            seconds=round(report.seconds, 1),
            path=report.path,
        )
        logger.info("Already published" if report.already_published else "Published", extra=told)

    async def _stopped(self, job: _Job) -> None:
        """Take leave of a task; one that the service stops for is given back with all others."""
        reason = job.stopped_because or "the service stops"
        logger.info("Stopped", extra=facts(**job.facts, reason=reason))
        if not self._is_stopping:
            # If it was cancelled, it may have entered its next phase since.
            await self._equipment.store.run(
                lambda store: store.agenda.confirm_cancelled(job.task.id)
            )

    async def _not_found(self, job: _Job) -> None:
        """Take leave of a task that was removed; one that is still there is to be so."""
        equipment, task = self._equipment, job.task
        job.stopped_because = "removed"
        await self._stopped(job)
        if not await equipment.store.run(
            lambda store: store.agenda.unwatched_among({task.id}, owner=equipment.owner)
        ):
            error = StateError(
                f"The record of task {task.task_id} is damaged: it is not found by its id and its "
                "destination; remove the task, and add it anew"
            )
            await self.end(task, error)

    async def _failed(self, job: _Job, error: Exception) -> None:
        attempts = self._equipment.settings.task_attempts
        verdict = judged(error, tries=job.tries, attempts=attempts)
        if verdict.fate is Fate.GIVEN_UP:
            await self.end(job.task, error, told=("given up", "No further attempt is made"))
        elif verdict.fate is Fate.PAUSED:
            await self._no_room(job.task, error)
        else:
            await self._try_again(job.task, error, verdict)

    async def end(
        self, task: Task, error: Exception, *, told: tuple[str, str] | None = None
    ) -> None:
        """Give a task up, and let that be announced; its history hears why, or what is `told`."""
        equipment = self._equipment
        exit_code = getattr(error, "exit_code", 1)
        logger.error(
            "Failed", extra=facts(task=task.task_id, exit_code=exit_code, reason=_reason(error))
        )
        await equipment.store.run(
            lambda store: store.agenda.settle(
                task.id,
                equipment.owner,
                event="failure",
                phase=Phase.FAILED,
                message=_reason(error),
                exit_code=exit_code,
                told=told or ("failed", _reason(error)),
            )
        )

    async def _try_again(self, task: Task, error: Exception, verdict: Verdict) -> None:
        equipment, pause = self._equipment, format_seconds(verdict.pause)
        attempts = equipment.settings.task_attempts
        told = f"Attempt {verdict.tries} of {attempts} has failed; the next one comes in {pause}"
        logger.warning(
            "To be tried again",
            extra=facts(
                task=task.task_id,
                attempt=f"{verdict.tries}/{attempts}",
                pause=round(verdict.pause),
                reason=_reason(error),
            ),
        )
        due_at = equipment.clock() + timedelta(seconds=verdict.pause)
        await equipment.store.run(
            lambda store: store.agenda.put_off(
                task.id,
                equipment.owner,
                due_at,
                phase=Phase.RETRYING,
                message=_reason(error),
                exit_code=getattr(error, "exit_code", 1),
                tries=verdict.tries,
                told=("retrying", told),
            )
        )

    # Room.

    async def _no_room(self, task: Task, error: Exception) -> None:
        reason, is_certain = _reason(error), not _is_about_size(error)
        await self._equipment.rooms.refused(task.dest, reason, is_certain=is_certain)
        await self.pause(task, reason)

    async def pause(self, task: Task, why: str) -> None:
        """Let a task wait until there is room for it; everything is kept."""
        equipment = self._equipment
        told = None if task.phase is Phase.PAUSED else ("paused", f"Paused: {why}")
        due_at = equipment.clock() + timedelta(seconds=NO_ROOM_PAUSE_SECONDS)
        await equipment.store.run(
            lambda store: store.agenda.put_off(
                task.id, equipment.owner, due_at, phase=Phase.PAUSED, message=why, told=told
            )
        )

    async def look_for_room(self) -> None:
        """Let paused tasks go on where there is room again."""
        for reopened in await self._equipment.rooms.look():
            await self.resume(reopened.dest, reopened.limit)

    async def resume(self, dest: str, limit: int | None) -> None:
        """Let the paused tasks of a destination go on, or some of them."""
        count = await self._equipment.store.run(
            lambda store: store.agenda.hasten(paused_in=dest, limit=limit)
        )
        if limit is None:
            logger.info("There is room again", extra=facts(dest=dest, tasks=count))


@dataclass(slots=True)
class _Job:
    """A task on its way, and why it was stopped, if it was."""

    task: Task
    reporter: _Listener
    running: asyncio.Task[None] | None = None
    stopped_because: str | None = None

    @property
    def tries(self) -> int:
        """How often it was fetched in vain; failures to ask are no failures to fetch."""
        return 0 if self.task.phase is Phase.WAITING else self.task.tries

    @property
    def facts(self) -> dict[str, object]:
        return {"task": self.task.task_id}


class _Listener(Reporter):
    """Hears that a task advances; writes down what is worth a sentence, and no progress."""

    def __init__(self, equipment: Equipment, task: Task) -> None:
        self.heard_at = time.monotonic()
        self._equipment = equipment
        self._task = task

    def planned(self, files: Iterable[PlannedFile]) -> None:
        self._advance()

    def file_sized(self, name: str, size: int, *, resumed: int) -> None:
        self._advance()

    def received(self, name: str, delta: int) -> None:
        self._advance()

    def file_done(self, name: str) -> None:
        self._advance()
        self._equipment.rooms.proved(self._task.dest)

    def verifying(self, name: str) -> None:
        self._advance()

    def alive(self) -> None:
        self._advance()

    def note(self, message: str) -> None:
        logger.info(message, extra=facts(task=self._task.task_id))

    def _advance(self) -> None:
        self.heard_at = time.monotonic()
        self._equipment.pulse.beat()


def _reason(error: Exception) -> str:
    if isinstance(error, DownloaderError | StateError):
        return str(error)
    return f"A mistake in the program ({type(error).__name__}); its log says more"


def _is_about_size(error: Exception) -> bool:
    """Tell whether it was a reservation that did not fit, which a smaller one may."""
    return error.__cause__ is None
