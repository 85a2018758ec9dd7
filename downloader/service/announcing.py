"""Announces how tasks have ended: from the state's list of what is still to be told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta
from typing import cast

from downloader.logs import facts
from downloader.retry import pause_seconds
from downloader.service.equipment import Equipment
from downloader.service.hooks import Announcement, Delivery, Event
from downloader.task_result import MANIFEST_NAME
from state import Notice, RecordMissing, StateError, StateStore, Task

__all__ = ["Announcing"]

MAX_AT_WORK = 4
MAX_ATTEMPTS = 8
FIRST_PAUSE_SECONDS = 30.0
MAX_PAUSE_SECONDS = 3600.0
PAUSES = 2.0  # times the longest pause: what lies further ahead was put off by a wrong clock
MARGIN_SECONDS = 60.0  # beyond what two ways may take, until a notice is taken for forgotten

logger = logging.getLogger(__name__)


class Announcing:
    """The announcements that are under way; each is made at least once."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._running: set[asyncio.Task[None]] = set()

    async def round(self) -> None:
        """Begin to announce what is due, and go on for as long as something is."""
        for notice in await self._take_due(MAX_AT_WORK - len(self._running)):
            running = asyncio.ensure_future(self._announce_on(notice))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    @property
    def _claim_seconds(self) -> float:
        return 2 * self._equipment.settings.hook_timeout + MARGIN_SECONDS

    async def _take_due(self, limit: int) -> list[Notice]:
        claim_seconds = self._claim_seconds
        return await self._equipment.store.run(
            lambda store: store.notices.take_due(limit, claim_seconds=claim_seconds)
        )

    async def wake(self) -> None:
        """Announce what a clock that was ahead has put off, now that it was put right."""
        longest = PAUSES * max(self._claim_seconds, MAX_PAUSE_SECONDS)
        await self._equipment.store.run(lambda store: store.notices.wake(longest))

    async def settled(self) -> None:
        """Return once nothing is being announced."""
        while self._running:
            await asyncio.wait(self._running)

    async def stop(self) -> None:
        """Stop what is under way; it is announced again by the next service."""
        for running in self._running:
            running.cancel()
        await self.settled()

    async def _announce_on(self, notice: Notice) -> None:
        due = [notice]
        try:
            while due:
                await self._announce(due.pop())
                due = await self._take_due(1)
        except StateError as error:
            logger.error("The state told of no more to announce", extra=facts(error=error))

    async def _announce(self, notice: Notice) -> None:
        delivered = [*notice.delivered]
        try:
            task = await self._equipment.store.call(StateStore.get_task, notice.task)
            await self._announce_end_of(task, notice, delivered)
        except RecordMissing:
            pass  # removed meanwhile, and its notices with it
        except asyncio.CancelledError:
            with contextlib.suppress(StateError):
                await self._put_off(notice, 0.0, notice.attempts, delivered)
            raise
        except StateError as error:
            logger.error(
                "The state took no outcome of a hook; it is called again", extra=facts(error=error)
            )

    async def _announce_end_of(self, task: Task, notice: Notice, delivered: list[str]) -> None:
        announcement = _announcement(task, notice)
        again, wish = False, 0.0
        for way in self._equipment.hooks.ways(announcement.event):
            if way in delivered:
                continue
            delivery = await self._equipment.hooks.deliver(way, announcement)
            await self._tell(task, announcement, delivery)
            if delivery.is_done:
                delivered.append(way)
            again = again or (not delivery.is_done and delivery.may_help_again)
            wish = max(wish, delivery.retry_after or 0.0)
        if not again or announcement.attempt >= MAX_ATTEMPTS:
            await self._equipment.store.run(lambda store: store.notices.remove(notice.id))
            return
        pause = pause_seconds(
            announcement.attempt,
            first=FIRST_PAUSE_SECONDS,
            maximum=MAX_PAUSE_SECONDS,
            retry_after=wish,
        )
        await self._put_off(notice, pause, announcement.attempt, delivered)

    async def _put_off(
        self, notice: Notice, pause: float, attempts: int, delivered: list[str]
    ) -> None:
        due_at = self._equipment.clock() + timedelta(seconds=pause)
        await self._equipment.store.run(
            lambda store: store.notices.put_off(
                notice.id, due_at, attempts=attempts, delivered=delivered
            )
        )

    async def _tell(self, task: Task, announcement: Announcement, delivery: Delivery) -> None:
        level = logging.INFO if delivery.is_done else logging.WARNING
        told = {"way": delivery.way, "attempt": announcement.attempt}
        if delivery.exit_code is not None:
            told["exit_code"] = delivery.exit_code
        logger.log(level, delivery.summary, extra=facts(task=task.task_id, **told))
        kind = "announced" if delivery.is_done else "not told"
        with contextlib.suppress(RecordMissing):
            await self._equipment.store.run(
                lambda store: store.add_event(
                    task.id, kind, delivery.summary, **told, output=delivery.output
                )
            )


def _announcement(task: Task, notice: Notice) -> Announcement:
    path = task.place
    is_complete = notice.event == "complete"
    return Announcement(
        key=notice.key,
        event=cast("Event", notice.event),
        task_id=task.task_id,
        path=path,
        manifest=path / MANIFEST_NAME if is_complete else None,
        message=None if is_complete else notice.message,
        exit_code=0 if is_complete else notice.exit_code or 1,
        attempt=notice.attempts + 1,
    )
