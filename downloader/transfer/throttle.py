"""What transfers share: the rate limit, and each store's own wish to be left alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from downloader.retry import pause

__all__ = ["RateLimit", "SlowDown"]

BURST_SECONDS = 0.05  # of silence that may be made up for
PORTION_SECONDS = 0.1
MAX_PORTION = 1024 * 1024
# What was asked for under a higher limit may come under a lower one, and is not paid for in full.
MAX_PORTION_SECONDS = 1.0
LOOK_SECONDS = 0.2  # between two looks whether the limit has changed, of those who wait for it


class RateLimit:
    """Bytes per second over all transfers, smoothed over a fraction of a second.

    It may be changed at any time: whoever waits under the old limit waits no longer.
    """

    def __init__(
        self,
        bytes_per_second: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self._bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._wait = wait
        self._free_at = 0.0
        self._changes = 0
        self._lock = threading.Lock()

    @property
    def bytes_per_second(self) -> int | None:
        """The limit; None if there is none."""
        return self._bytes_per_second

    def change(self, bytes_per_second: int | None) -> None:
        """Set another limit, or none, for what comes from now on; any thread may do it."""
        with self._lock:
            self._bytes_per_second = bytes_per_second
            self._free_at = 0.0
            self._changes += 1

    @property
    def portion(self) -> int:
        """Bytes to be taken at once at the most, so that nobody waits long with bytes in hand."""
        rate = self._bytes_per_second  # once, for it may change
        return max(1, min(MAX_PORTION, int(rate * PORTION_SECONDS))) if rate else MAX_PORTION

    def hold(self, count: int, stopping: threading.Event) -> None:
        """Block until `count` more bytes may have arrived, or until `stopping` is set."""
        due = self._reserve(count)
        while (seconds := self._seconds_until(due)) and not stopping.is_set():
            self._wait(stopping, seconds)

    async def take(self, count: int) -> None:
        """Return when `count` more bytes may have arrived."""
        due = self._reserve(count)
        while seconds := self._seconds_until(due):
            await self._sleep(seconds)

    def _reserve(self, count: int) -> tuple[float, int]:
        """Take `count` bytes; return when they may have arrived, by which limit."""
        with self._lock:
            if self._bytes_per_second:
                seconds = min(count / self._bytes_per_second, MAX_PORTION_SECONDS)
                self._free_at = max(self._free_at, self._clock() - BURST_SECONDS) + seconds
            return self._free_at, self._changes

    def _seconds_until(self, due: tuple[float, int]) -> float:
        """Return how long to wait until the next look; no time, if the limit has changed."""
        at, changes = due
        if not at or changes != self._changes:
            return 0.0
        return min(LOOK_SECONDS, max(0.0, at - self._clock()))


class SlowDown:
    """One pause for every transfer from a store that asked to be left alone (503, 429).

    A store is its host and port, as a link names them. Others are not concerned.
    """

    def __init__(
        self,
        *,
        heard: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._until: dict[str, float] = {}  # by stores
        self._heard = heard
        self._clock = clock

    def ask(self, store: str, seconds: float) -> None:
        """Let nobody send a new request to the store for so long."""
        self._until[store] = max(self._until.get(store, 0.0), self._clock() + seconds)
        self._heard()

    @property
    def is_any_asked(self) -> bool:
        """Tell whether some store wants to be left alone."""
        return any(until > self._clock() for until in self._until.values())

    def is_asked(self, store: str) -> bool:
        """Tell whether the store wants to be left alone."""
        return self._until.get(store, 0.0) > self._clock()

    async def wait(self, store: str) -> None:
        """Return when new requests may be sent to the store."""
        while (until := self._until.get(store)) is not None:
            await pause(max(0.0, until - self._clock()))
            if self._until.get(store) == until:  # or somebody has asked for more meanwhile
                del self._until[store]
