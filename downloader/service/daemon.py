"""The service: start, be ready, go round, take other settings, drain, stop.

Everything periodic is a job of APScheduler; what is due, and who has it, is in the state, so that
a service that dies loses nothing, and any number of services share one state.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.interval import IntervalTrigger

from downloader._version import __version__
from downloader.config import Settings
from downloader.errors import DownloaderError
from downloader.holding import HEARTBEAT_SECONDS, LEASE_SECONDS
from downloader.logs import facts
from downloader.service.announcing import Announcing
from downloader.service.asking import Asking
from downloader.service.bringing import Bringing
from downloader.service.equipment import Equipment, open_equipment
from downloader.service.intake import Intake
from downloader.service.notify import Notifier
from downloader.units import counted, format_rate
from state import StateError, is_alive

__all__ = ["Service", "run_service"]

ROUND_SECONDS = 1.0
INBOX_SECONDS = 2.0
STATUS_SECONDS = 5.0
UPKEEP_SECONDS = 3600.0
FORGOTTEN_AT_ONCE = 1000  # tasks in one transaction

logger = logging.getLogger(__name__)


async def run_service(
    settings: Settings,
    *,
    reload: asyncio.Event,
    load: Callable[[], Settings],
    notifier: Notifier,
) -> None:
    """Watch tasks until cancelled; then nothing is lost, and all is out within five seconds.

    Each time `reload` is set, the settings are loaded anew.

    Raises:
        UsageError: credentials or settings are missing or wrong.
        StateError: the state cannot be used.
    """
    async with open_equipment(settings) as equipment:
        service = Service(equipment, notifier=notifier)
        await service.start()
        try:
            while True:
                await reload.wait()
                reload.clear()
                await service.reload(load)
        finally:
            await service.stop()


class Service:
    """All parts of the service; whoever has no clock to wait for calls its rounds itself."""

    def __init__(self, equipment: Equipment, *, notifier: Notifier) -> None:
        self.equipment = equipment
        self.bringing = Bringing(equipment)
        self.asking = Asking(equipment, self.bringing)
        self.announcing = Announcing(equipment)
        self.intake = Intake(equipment)
        self._notifier = notifier
        self._scheduler = AsyncIOScheduler()
        self._renewed_at = equipment.clock()
        self._unclaimed: set[int] = set()  # leases of ours of which no part knew, at the last look
        self._faults: dict[str, str] = {}
        self._told_condition: str | None = None
        self._bytes = 0

    # Start, reload, stop.

    async def start(self) -> None:
        """Take up what was left, let everything periodic run, and say that we are ready."""
        await self.take_up()
        self._schedule()
        self._scheduler.start()
        settings = self.equipment.settings
        logger.info(
            "Ready",
            extra=facts(
                version=__version__,
                state=self.equipment.store.location,
                dest=self.equipment.dest,
                watched=await self._watched(),
            ),
        )
        self._notifier.ready(await self._status())
        if settings.inbox is not None:
            logger.info("Watching the inbox", extra=facts(inbox=settings.inbox))

    async def take_up(self) -> None:
        """Begin to work with this state: give back what the dead have left, learn, be known."""
        equipment = self.equipment
        await self._put_right()
        released = await equipment.store.run(lambda store: store.agenda.release_dead())
        if released:
            logger.info("Going on with what was left", extra=facts(tasks=len(released)))
        others = await equipment.store.run(lambda store: store.services.list())
        is_alone = not any(is_alive(other, now=equipment.clock()) for other in others)
        if is_alone and any(other.stopped_at is None for other in others):
            await equipment.store.run(lambda store: store.notices.hasten())  # it died with some
        await equipment.learn()
        await equipment.store.run(
            lambda store: store.services.started(equipment.owner, equipment.dest)
        )

    async def _put_right(self) -> None:
        count = await self.equipment.store.run(lambda store: store.put_right())
        if count:
            logger.warning("Put damaged records of the state right", extra=facts(records=count))

    async def reload(self, load: Callable[[], Settings]) -> None:
        """Go on with the settings as they are now; with the old ones if they cannot be used."""
        self._notifier.reloading()
        try:
            lasting = await self.equipment.change(load())
        except (DownloaderError, StateError) as error:
            logger.error("Going on with the old settings", extra=facts(reason=error))
        else:
            self._schedule_timetable()
            logger.info("Took the settings anew")
            if lasting:
                names = ", ".join(lasting)
                logger.warning(
                    "Some settings hold from the next start on", extra=facts(settings=names)
                )
        self._notifier.ready(await self._status())

    async def stop(self) -> None:
        """Drain: nothing new, checkpoints written, leases given back."""
        self._notifier.stopping("Stopping; what was received is kept")
        logger.info("Stopping", extra=facts(transfers=len(self.bringing.tasks)))
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        equipment = self.equipment
        stopping = [self.asking.stop(), self.bringing.stop(), self.announcing.stop()]
        for outcome in await asyncio.gather(*stopping, return_exceptions=True):
            if isinstance(outcome, Exception):
                logger.error("Not everything could be kept", extra=facts(reason=outcome))
        with contextlib.suppress(StateError):
            await equipment.store.run(lambda store: store.agenda.hand_back(equipment.owner))
            await equipment.store.run(lambda store: store.services.stopped(equipment.owner))
        logger.info("Stopped")

    # What is periodic.

    def _schedule(self) -> None:
        self._every(ROUND_SECONDS, self.round, "round")
        self._every(ROUND_SECONDS, self.announcing.round, "announcements")
        self._every(INBOX_SECONDS, self.intake.round, "inbox")
        self._every(HEARTBEAT_SECONDS, self.heartbeat, "heartbeat")
        self._every(STATUS_SECONDS, self.tell_status, "status")
        self._every(UPKEEP_SECONDS, self.upkeep, "upkeep")
        if (seconds := self._notifier.watchdog_seconds) is not None:
            self._every(seconds / 4, self.feed_watchdog, "watchdog")
        self._schedule_timetable()

    def _every(self, seconds: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        self._add(IntervalTrigger(seconds=seconds), work, name)

    def _schedule_timetable(self) -> None:
        for job in self._scheduler.get_jobs():
            if job.name == "timetable":
                job.remove()
        for trigger in self.equipment.timetable.triggers():
            self._add(trigger, self.follow_timetable, "timetable")

    def _add(self, trigger: BaseTrigger, work: Callable[[], Awaitable[None]], name: str) -> None:
        self._scheduler.add_job(
            self._told,
            trigger,
            args=(work, name),
            name=name,
            coalesce=True,  # after a suspended machine, once is enough
            max_instances=1,  # a round that takes long is not met by the next one
            misfire_grace_time=None,  # however late: the default drops a job that is 1 s late
        )

    async def _told(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Do the work; what keeps it from being done is told once, and it is done again later."""
        try:
            await work()
        except asyncio.CancelledError:
            pass  # the service stops, and APScheduler would call it an error
        except (DownloaderError, StateError) as error:
            if self._faults.get(name) != str(error):
                logger.error(f"The {name} could not be done", extra=facts(reason=error))
            self._faults[name] = str(error)
        except Exception:
            logger.exception(f"A mistake in the program, in the {name}")
        else:
            if self._faults.pop(name, None) is not None:
                logger.info(f"The {name} could be done again")

    async def round(self) -> None:
        """Stop what was cancelled, begin what is due."""
        await self.bringing.stop_unwatched()
        await self.bringing.look_for_room()
        await self.asking.round()
        self.equipment.pulse.tick()

    async def heartbeat(self) -> None:
        """Renew every lease at once, and give back those that nobody can renew."""
        equipment = self.equipment
        before = self._in_hand
        try:
            held = await equipment.store.run(
                lambda store: store.agenda.renew_all(equipment.owner, LEASE_SECONDS)
            )
        except StateError:
            silent = (equipment.clock() - self._renewed_at).total_seconds()
            if silent > LEASE_SECONDS - HEARTBEAT_SECONDS:
                # Others may take them by now.
                self.bringing.stop_some([*self.bringing.tasks], "the lease could not be renewed")
            raise
        self._renewed_at = equipment.clock()
        self.bringing.stop_some(before - held, "its lease is gone")
        await self._give_back(held - self._in_hand - before)
        await self._be_seen()
        await equipment.store.run(lambda store: store.agenda.release_dead())
        await self.asking.wake()
        await self.announcing.wake()

    async def _be_seen(self) -> None:
        """Tell others, by the state, that we live, and what keeps us from working."""
        equipment, self._told_condition = self.equipment, self.condition
        await equipment.store.run(
            lambda store: store.services.seen(
                equipment.owner, dest=self.equipment.dest, condition=self._told_condition
            )
        )

    @property
    def _in_hand(self) -> set[int]:
        return self.bringing.tasks | self.asking.tasks

    async def _give_back(self, unknown: set[int]) -> None:
        """Give back leases of ours of which no part knows: their end could not be written.

        Those that were unknown at the last look too; others may be on their way to a part.
        """
        lost, self._unclaimed = self._unclaimed & unknown, unknown
        due_at = self.equipment.clock() + timedelta(seconds=LEASE_SECONDS)
        for task in lost:
            await self.equipment.store.run(
                lambda store, task=task: store.agenda.put_off(task, self.equipment.owner, due_at)  # type: ignore[misc]
            )

    async def feed_watchdog(self) -> None:
        """Tell systemd that we live, while work advances or there is none."""
        equipment = self.equipment
        if equipment.turns.wait_seconds > ROUND_SECONDS or equipment.slow_down.is_any_asked:
            equipment.pulse.beat()  # somebody asked to be left alone
        if equipment.pulse.advances(
            at_work=len(self.bringing.tasks), received_bytes=equipment.connections.meter.total
        ):
            self._notifier.watchdog()

    async def follow_timetable(self) -> None:
        """Go on with the rate of this time of day."""
        before = self.equipment.rate_limit.bytes_per_second
        rate = self.equipment.follow_timetable()
        if rate != before:
            shown = "none" if rate is None else format_rate(rate)
            logger.info("The rate limit is another now", extra=facts(limit_rate=shown))

    async def upkeep(self) -> None:
        """Forget what ended long ago, and let the database tidy itself."""
        await self._put_right()
        equipment, count = self.equipment, 0
        than = equipment.clock() - timedelta(seconds=equipment.settings.keep_history)
        while some := await equipment.store.run(
            lambda store: store.agenda.forget_older(than, limit=FORGOTTEN_AT_ONCE)
        ):
            count += some
        if count:
            logger.info("Forgot old tasks; their results stay", extra=facts(tasks=count))
        await equipment.store.run(lambda store: store.tidy())

    async def tell_status(self) -> None:
        """Tell systemd, in a line, what goes on, and others what does not."""
        if self._notifier.is_heard:
            self._notifier.status(await self._status())
        if self.condition != self._told_condition:
            await self._be_seen()

    # How it is.

    @property
    def condition(self) -> str | None:
        """What keeps work from going on, for people; None if nothing does."""
        conditions = [self.equipment.rooms.condition, self.asking.condition]
        return "; ".join(one for one in conditions if one) or None

    async def _watched(self) -> int:
        return await self.equipment.store.run(lambda store: store.agenda.watched_count())

    async def _status(self) -> str:
        total = self.equipment.connections.meter.total
        came, self._bytes = total - self._bytes, total
        watched, at_work = await self._watched(), len(self.bringing.tasks)
        line = f"{counted(watched, 'task')} watched, {at_work} under way"
        if at_work:
            line += f" at {format_rate(came / STATUS_SECONDS)}"
        return f"{line}; {self.condition}" if self.condition else line
