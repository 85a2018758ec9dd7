"""The connections that all transfers share: as many as bring more, and fewer when throttled.

A store may cap each connection, a long way delays each answer, a disk may be the limit: which it
is cannot be known, but what comes can be measured. So the number is doubled for as long as that
brings clearly more bytes per second, and goes back by a step where it did not. Where this program
itself is what keeps the processors busy, more connections only cost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

__all__ = ["Connections", "Meter"]

FIRST = 4
LOOK_SECONDS = 0.1  # between two looks at how much has come
STEADY = 1.15  # times what came before: more than that, and it is still rising by itself
BUSY = 0.4  # of all processors, used by this program: then they are the limit
WORTHWHILE = 1.2  # times as much must come for a step to be kept; a step doubles
PATIENCE_SECONDS = 2.0  # after a step that did not pay; doubled each time
MAX_PATIENCE_SECONDS = 60.0
THROTTLED_SECONDS = 10.0  # without a step, after a store asked to be left alone
EPISODE_SECONDS = 1.0  # in which all connections may hear the same wish


class Meter:
    """How many bytes have come from the network, in all; any thread may add."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that have come."""
        with self._lock:
            self.total += count


class Connections:
    """Lends connections: each file has one while it is transferred, and large ones more.

    A file's own is never refused for ever; more are lent while no file waits for its own.
    """

    def __init__(
        self,
        most: int = 64,
        *,
        most_files: int = 64,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.meter = Meter()
        self.limit = min(FIRST, most)
        self.in_use = 0
        self._most = most
        self._places = asyncio.Semaphore(most_files)
        self._clock = clock
        self._processor_clock = processor_clock
        self._processors = len(os.sched_getaffinity(0))
        self._files: deque[asyncio.Future[None]] = deque()
        self._helpers: deque[asyncio.Future[None]] = deque()
        self._loans: list[Callable[[], None]] = []
        self._recalled = 0  # loans that have been told, and have not come back yet
        self._looking: asyncio.TimerHandle | None = None
        self._growth = _Growth()
        self._looked_at = 0.0
        self._used_at = 0.0  # seconds of processors, by then
        self._seen_bytes = 0
        self._was_short = True  # somebody waited for the whole time since the last look
        self._rests_until = 0.0
        self._throttled_at: float | None = None

    @contextlib.asynccontextmanager
    async def of_a_file(self) -> AsyncIterator[None]:
        """Lend the connection that a file has for as long as it is transferred."""
        async with self._places:
            await self._take(self._files)
            try:
                yield
            finally:
                self._give_back()

    @contextlib.asynccontextmanager
    async def one_more(self, *, wanted_back: Callable[[], None]) -> AsyncIterator[None]:
        """Lend another one to a file that has work for it, once no file waits for its own.

        `wanted_back` is called, once, when a file needs it more, or when there are too many.
        """
        await self._take(self._helpers)
        self._loans.append(wanted_back)
        try:
            yield
        finally:
            if wanted_back in self._loans:
                self._loans.remove(wanted_back)
            else:
                self._recalled -= 1
            self._give_back()

    def throttled(self) -> None:
        """Use half as many: a store asked to be left alone."""
        now = self._clock()
        self._rests_until = now + THROTTLED_SECONDS
        if self._throttled_at is None or now - self._throttled_at >= EPISODE_SECONDS:
            self._throttled_at = now
            self.limit = max(1, self.limit // 2)
            self._growth.forget()
            self._recall()

    # Lending.

    async def _take(self, queue: deque[asyncio.Future[None]]) -> None:
        if self.in_use < self.limit and not self._files and (queue is self._files or not queue):
            self._lent()
            return
        future = asyncio.get_running_loop().create_future()
        queue.append(future)
        self._recall()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was lent just now
                self._give_back()
            else:
                with contextlib.suppress(ValueError):  # passed over already
                    queue.remove(future)
            raise

    def _lent(self) -> None:
        self.in_use += 1
        if self._looking is None:
            self._begin_to_look()

    def _give_back(self) -> None:
        self.in_use -= 1
        self._serve()

    def _serve(self) -> None:
        while self.in_use < self.limit and (queue := self._files or self._helpers):
            future = queue.popleft()
            if not future.done():  # or whoever waited was cancelled, and has not heard of it yet
                self._lent()
                future.set_result(None)
        if not self._files and not self._helpers:
            self._was_short = False

    def _recall(self) -> None:
        """Ask for as many loans as files wait for, and as there are too many."""
        if not self._loans:
            return
        waiting = sum(not future.done() for future in self._files)
        missing = waiting + self.in_use - self.limit - self._recalled
        for _ in range(min(missing, len(self._loans))):
            self._recalled += 1
            self._loans.pop()()

    # Measuring.

    def _begin_to_look(self) -> None:
        self._looked_at, self._seen_bytes = self._clock(), self.meter.total
        self._used_at = self._processor_clock()
        self._was_short = False  # not for the whole time
        self._growth.forget()
        self._look_later()

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        if not self.in_use:
            self._looking = None
            return
        now, used = self._clock(), self._processor_clock()
        came, seconds = self.meter.total - self._seen_bytes, now - self._looked_at
        is_busy = used - self._used_at >= BUSY * self._processors * seconds
        self._looked_at, self._used_at, self._seen_bytes = now, used, self.meter.total
        is_short, self._was_short = self._was_short, bool(self._files or self._helpers)
        if is_short and now >= self._rests_until and seconds > 0:
            self._adapt(came / seconds, now, may_grow=not is_busy)
        self._serve()
        self._look_later()

    def _adapt(self, rate: float, now: float, *, may_grow: bool) -> None:
        # A large file's connections gain speed for a while; small files begin anew each time.
        is_rising = not self._files and self._growth.is_rising(rate)
        if is_rising:
            return
        wanted = self._growth.next(self.limit, rate, now, may_grow=may_grow)
        self.limit = min(self._most, wanted)
        self._recall()


class _Growth:
    """Decides by what comes per second whether more connections are worth it."""

    def __init__(self) -> None:
        self._before: tuple[int, float] | None = None  # the last step's limit and rate
        self._last: float | None = None  # rate, with as many as there are now
        self._patience = PATIENCE_SECONDS
        self._again_at = 0.0

    def forget(self) -> None:
        """Measure anew: what was measured is of other circumstances."""
        self._before = self._last = None

    def is_rising(self, rate: float) -> bool:
        """Tell whether it is too early to judge what so many connections bring."""
        last, self._last = self._last, rate
        return last is None or rate > STEADY * last

    def next(self, limit: int, rate: float, now: float, *, may_grow: bool) -> int:
        """Return how many connections there shall be, from what came with `limit` of them."""
        if now < self._again_at or not rate:
            return limit
        if self._before is not None:
            earlier, earlier_rate = self._before
            if rate < WORTHWHILE * earlier_rate:
                self.forget()
                self._again_at = now + self._patience
                self._patience = min(MAX_PATIENCE_SECONDS, 2 * self._patience)
                return earlier
            self._patience = PATIENCE_SECONDS
        self._before, self._last = ((limit, rate) if may_grow else None), None
        return 2 * limit if may_grow else limit
