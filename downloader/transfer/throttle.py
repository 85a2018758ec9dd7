"""What all transfers share: the rate limit, and the store's own wish to be left alone."""

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


class RateLimit:
    """Bytes per second over all transfers, smoothed over a fraction of a second."""

    def __init__(
        self,
        bytes_per_second: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._wait = wait
        self._free_at = 0.0
        self._lock = threading.Lock()

    @property
    def portion(self) -> int:
        """Bytes to be taken at once at the most, so that nobody waits long with bytes in hand."""
        if not self.bytes_per_second:
            return MAX_PORTION
        return max(1, min(MAX_PORTION, int(self.bytes_per_second * PORTION_SECONDS)))

    def reserve(self, count: int) -> float:
        """Take `count` bytes and return how many seconds to wait for them; safe in any thread."""
        if not self.bytes_per_second:
            return 0.0
        with self._lock:
            now = self._clock()
            free_at = max(self._free_at, now - BURST_SECONDS) + count / self.bytes_per_second
            self._free_at = free_at
        return max(0.0, free_at - now)

    def hold(self, count: int, stopping: threading.Event) -> None:
        """Block until `count` more bytes may have arrived, or until `stopping` is set."""
        if seconds := self.reserve(count):
            self._wait(stopping, seconds)

    async def take(self, count: int) -> None:
        """Return when `count` more bytes may have arrived."""
        if seconds := self.reserve(count):
            await self._sleep(seconds)


class SlowDown:
    """One pause for every transfer from a store that asked to be left alone (503, 429)."""

    def __init__(self, *, heard: Callable[[], None] = lambda: None) -> None:
        self._until = 0.0
        self._heard = heard

    def ask(self, seconds: float) -> None:
        """Let nobody send a new request for so long."""
        self._until = max(self._until, time.monotonic() + seconds)
        self._heard()

    async def wait(self) -> None:
        """Return when new requests may be sent."""
        until = 0.0
        while self._until > until:  # somebody may have asked for more meanwhile
            until = self._until
            await pause(max(0.0, until - time.monotonic()))
