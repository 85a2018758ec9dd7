"""Takes in the tasks that files in the inbox name."""

from __future__ import annotations

import logging

from downloader.concurrency import in_thread
from downloader.errors import DiskError
from downloader.logs import facts
from downloader.service.equipment import Equipment
from downloader.service.inbox import Inbox, Order
from downloader.taken_away import taken_away
from downloader.units import listed
from state import Wanted

__all__ = ["Intake"]

logger = logging.getLogger(__name__)


class Intake:
    """Looks into the inbox, if there is one."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._told: str | None = None
        self._prepared: Inbox | None = None

    async def round(self) -> None:
        """Let the tasks be watched that lie in the inbox; a file moves once its tasks are kept."""
        inbox = self._equipment.inbox
        if inbox is None:
            return
        try:
            if inbox is not self._prepared:
                await in_thread(inbox.prepare)
                self._prepared = inbox
            for order in await in_thread(inbox.scan):
                await self._take(inbox, order)
        except DiskError as error:
            if str(error) != self._told:
                logger.error("The inbox cannot be used", extra=facts(reason=error))
            self._told = str(error)
        else:
            self._told = None

    async def _take(self, inbox: Inbox, order: Order) -> None:
        if order.problem is not None:
            logger.warning(
                "Rejected a file of the inbox", extra=facts(file=order.path, reason=order.problem)
            )
            await in_thread(inbox.reject, order)
            return
        dest = self._equipment.dest
        source = f"by {order.path.name} in the inbox"
        outcomes = await self._equipment.store.run(
            lambda store: store.agenda.watch(order.task_ids, dest, source=source)
        )
        if gone := [task.id for task in await in_thread(taken_away, outcomes)]:
            await self._equipment.store.run(lambda store: store.agenda.retry_all(gone))
        added = sum(outcome is Wanted.ADDED for _, outcome in outcomes)
        logger.info(
            "Took a file of the inbox",
            extra=facts(file=order.path, tasks=len(outcomes), added=added, begun_again=len(gone)),
        )
        published = {task.id: task.task_id for task, one in outcomes if one is Wanted.PUBLISHED}
        if there := [name for number, name in published.items() if number not in gone]:
            logger.info(
                "Published already, and left alone",
                extra=facts(file=order.path, tasks=listed(there)),
            )
        await in_thread(inbox.accept, order)
