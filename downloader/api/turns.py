"""How often the platform is called: one pace for all tasks that share a client."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from downloader.errors import InvalidSettings
from downloader.retry import pause

__all__ = ["Turns"]

BURST_SECONDS = 1.0  # of silence that may be made up for
MAX_REST_SECONDS = 3600.0


class Turns:
    """So many calls a second and no more, first come, first served; belongs to one event loop.

    A turn is taken when its time has come, not when it is asked for: whoever is cancelled while
    waiting has taken none, and a rate that changes holds for those who wait already.
    """

    def __init__(
        self,
        calls_per_second: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = pause,
    ) -> None:
        self._rate = _checked(calls_per_second)
        self._clock = clock
        self._sleep = sleep
        self._queue = asyncio.Lock()  # asyncio's locks are fair
        self._waiting = 0
        self._nap: asyncio.Future[None] | None = None
        self._at = clock()  # in the future during a rest
        self._left = self._burst  # turns that could be taken at that time

    @property
    def calls_per_second(self) -> float:
        """How many turns there are in a second."""
        return self._rate

    @property
    def wait_seconds(self) -> float:
        """How many seconds somebody would wait who came now, behind all who wait already."""
        now = self._clock()
        resting = max(0.0, self._at - now)
        missing = max(0.0, 1 + self._waiting - self._left_at(now + resting))
        return resting + missing / self._rate

    async def take(self) -> None:
        """Return when it is the caller's turn; cancelled before, the turn is the next one's."""
        self._waiting += 1
        try:
            async with self._queue:
                await self._until_due()
                now = max(self._at, self._clock())
                self._left = max(1.0, self._left_at(now)) - 1
                self._at = now
        finally:
            self._waiting -= 1

    def rest(self, seconds: float) -> None:
        """Let nobody have a turn for so long, an hour at the most; then go on at an even pace."""
        until = self._clock() + min(seconds, MAX_REST_SECONDS)
        if seconds > 0 and until > self._at:
            self._left = min(1.0, self._left_at(until))
            self._at = until

    def change(self, calls_per_second: float) -> None:
        """Go on with another number of calls a second, also for those who wait already."""
        rate = _checked(calls_per_second)
        now = max(self._at, self._clock())
        left = self._left_at(now)
        self._rate, self._at = rate, now
        self._left = min(left, self._burst)
        if self._nap is not None:
            self._nap.cancel()

    @property
    def _burst(self) -> float:
        return max(1.0, self._rate * BURST_SECONDS)

    @property
    def _due_at(self) -> float:
        return self._at + max(0.0, 1 - self._left) / self._rate

    def _left_at(self, when: float) -> float:
        return min(self._burst, self._left + (when - self._at) * self._rate)

    async def _until_due(self) -> None:
        """Sleep, and again for as long as the turn was put off meanwhile."""
        slept_until = -math.inf
        while (due_at := self._due_at) > max(slept_until, self._clock()):
            if await self._slept(due_at - self._clock()):
                slept_until = due_at

    async def _slept(self, seconds: float) -> bool:
        """Sleep for so long; tell whether it came to its end, not to that of an old rate."""
        self._nap = nap = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait([nap])
        finally:
            self._nap = None
            nap.cancel()
        if nap.cancelled():
            return False
        nap.result()
        return True


def _checked(calls_per_second: float) -> float:
    # Written so that NaN fails too.
    if not 0 < calls_per_second < math.inf:
        raise InvalidSettings("calls_per_second must be a number of calls above 0")
    return calls_per_second
