"""What the service works with: made of the settings, and changed in place when they change."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import aiohttp

from downloader.api import Turns
from downloader.app import (
    fetch_options,
    open_api,
    shared_connections,
    store_session,
    straight_road,
)
from downloader.config import Settings
from downloader.service.current_api import CurrentAPI
from downloader.service.hooks import Hooks
from downloader.service.inbox import Inbox
from downloader.service.pace import KEPT, Pace
from downloader.service.pulse import Pulse
from downloader.service.rooms import Rooms
from downloader.timetable import Timetable
from downloader.transfer import BufferPool, Connections, RateLimit, SlowDown, StraightRoad
from state import AsyncStore, current_owner
from state.store import utc_now

__all__ = ["LASTING", "Equipment", "open_equipment"]

# What holds until the service is started again: connections and threads are made of it.
LASTING = ("state", "connect_timeout", "stall_timeout", "buffer_memory", "log_format")


class Equipment:
    """Everything that the parts of the service share; valid inside `open_equipment`."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: AsyncStore,
        api: CurrentAPI,
        turns: Turns,
        session: aiohttp.ClientSession,
        connections: Connections,
        road: StraightRoad,
        clock: Callable[[], datetime],
    ) -> None:
        self.owner = current_owner()
        self.clock = clock
        self.store = store
        self.api = api
        self.turns = turns
        self.session = session
        self.connections = connections
        self.rate_limit = RateLimit(settings.limit_rate)
        self.slow_down = SlowDown(heard=connections.throttled)
        self.rooms = Rooms(settings.min_free_space)
        self._road = road
        self._started_with = settings
        self._take(settings)
        self.pulse = Pulse(self._longest_silence())

    def _take(self, settings: Settings) -> None:
        # Whatever cannot be made is not made before anything is changed.
        hooks = Hooks(
            on_complete=settings.on_complete,
            on_failure=settings.on_failure,
            webhook=settings.webhook,
            webhook_secret=settings.signing_secret(),
            timeout=settings.hook_timeout,
        )
        self.settings = settings
        self.hooks = hooks
        self.inbox = None if settings.inbox is None else Inbox(settings.inbox)
        self.pace = Pace(interval=settings.poll_interval, max_interval=settings.poll_max_interval)
        self.timetable = Timetable(settings.limit_rate_times, otherwise=settings.limit_rate)
        self.rooms.floor = settings.min_free_space
        self.options = fetch_options(
            settings,
            wait=False,
            connections=self.connections,
            road=self._road,
            rate_limit=self.rate_limit,
            slow_down=self.slow_down,
        )
        self.follow_timetable()

    @property
    def dest(self) -> str:
        """Where results go that were added without a destination."""
        return str(self.settings.dest.expanduser().absolute())

    def follow_timetable(self) -> int | None:
        """Let all transfers together be as fast as the time of day allows; return that rate."""
        rate = self.timetable.rate_at(self.clock().astimezone())
        if rate != self.rate_limit.bytes_per_second:
            self.rate_limit.change(rate)
        return rate

    async def learn(self) -> None:
        """Learn from the state how long tasks take."""
        known = await self.store.run(lambda store: store.agenda.durations(KEPT))
        for seconds in known:
            self.pace.learn(seconds)

    async def change(self, settings: Settings) -> list[str]:
        """Go on with other settings, and return those that only a new start can change.

        What is under way goes on, with the rates and limits of the new settings.

        Raises:
            UsageError: they cannot be used; nothing was changed.
        """
        client = open_api(settings, turns=self.turns)  # which opens nothing before it is asked
        self._take(settings)
        self.pulse.patience = self._longest_silence()
        await self.api.replace(client)
        self.turns.change(settings.calls_per_second)
        self.connections.change(most=settings.connections, most_files=settings.parallel_files)
        await self.learn()
        before = self._started_with
        return [name for name in LASTING if getattr(settings, name) != getattr(before, name)]

    def _longest_silence(self) -> float:
        """Return the seconds in which a transfer may rightly bring no byte: all its attempts."""
        lasting, transfer = self._started_with, self.options.transfer
        attempt = lasting.connect_timeout + lasting.stall_timeout + transfer.retry_max_delay
        return transfer.max_attempts * attempt


@contextlib.asynccontextmanager
async def open_equipment(
    settings: Settings, *, clock: Callable[[], datetime] = utc_now
) -> AsyncIterator[Equipment]:
    """Give the equipment made of the settings.

    Raises:
        UsageError: credentials or settings are missing or wrong; nothing was made yet.
        StateError: the state cannot be used.
    """
    async with contextlib.AsyncExitStack() as stack:
        turns = Turns(settings.calls_per_second)
        api = await stack.enter_async_context(CurrentAPI(open_api(settings, turns=turns)))
        store = await stack.enter_async_context(await AsyncStore.open(settings.state, clock=clock))
        session = await stack.enter_async_context(store_session(settings))
        buffers = BufferPool(settings.buffer_memory)
        connections = shared_connections(settings, buffers)
        road = straight_road(settings, buffers, connections)
        stack.enter_context(contextlib.closing(road))
        yield Equipment(
            settings,
            store=store,
            api=api,
            turns=turns,
            session=session,
            connections=connections,
            road=road,
            clock=clock,
        )
