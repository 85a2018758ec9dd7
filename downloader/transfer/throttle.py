"""What all transfers share: the rate limit, and the store's own wish to be left alone."""

from __future__ import annotations

import asyncio
import time

from downloader.retry import pause

__all__ = ["RateLimit", "SlowDown"]


class RateLimit:
    """Bytes per second over all transfers, smoothed over a fraction of a second."""

    def __init__(self, bytes_per_second: int | None) -> None:
        self.bytes_per_second = bytes_per_second
        self._free_at = 0.0

    async def take(self, count: int) -> None:
        """Return when `count` more bytes may have arrived."""
        if not self.bytes_per_second:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now - 0.05) + count / self.bytes_per_second
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


class SlowDown:
    """One pause for every transfer from a store that asked to be left alone (503, 429)."""

    def __init__(self) -> None:
        self._until = 0.0

    def ask(self, seconds: float) -> None:
        """Let nobody send a new request for so long."""
        self._until = max(self._until, time.monotonic() + seconds)

    async def wait(self) -> None:
        """Return when new requests may be sent."""
        while (left := self._until - time.monotonic()) > 0:
            await pause(left)
            if self._until - time.monotonic() >= left:
                return  # pauses last no time here: under test
