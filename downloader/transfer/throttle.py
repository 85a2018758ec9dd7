"""What all transfers share: the rate limit, and the store's own wish to be left alone."""

from __future__ import annotations

import asyncio
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
    ) -> None:
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0

    @property
    def portion(self) -> int:
        """Bytes to be taken at once at the most, so that nobody waits long with bytes in hand."""
        if not self.bytes_per_second:
            return MAX_PORTION
        return max(1, min(MAX_PORTION, int(self.bytes_per_second * PORTION_SECONDS)))

    async def take(self, count: int) -> None:
        """Return when `count` more bytes may have arrived."""
        if not self.bytes_per_second:
            return
        now = self._clock()
        self._free_at = max(self._free_at, now - BURST_SECONDS) + count / self.bytes_per_second
        if self._free_at > now:
            await self._sleep(self._free_at - now)


class SlowDown:
    """One pause for every transfer from a store that asked to be left alone (503, 429)."""

    def __init__(self) -> None:
        self._until = 0.0

    def ask(self, seconds: float) -> None:
        """Let nobody send a new request for so long."""
        self._until = max(self._until, time.monotonic() + seconds)

    async def wait(self) -> None:
        """Return when new requests may be sent."""
        until = 0.0
        while self._until > until:  # somebody may have asked for more meanwhile
            until = self._until
            await pause(max(0.0, until - time.monotonic()))
