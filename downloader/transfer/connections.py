"""The connections that all transfers share: as many as bring more, and fewer when throttled.

A store may cap each connection, a long way delays each answer, a disk may be the limit: which it
is cannot be known, but what comes can be measured. So the number is doubled for as long as that
brings clearly more bytes per second, and goes back by a step where it did not. Where this program
itself is what keeps the processors busy, more connections only cost.

Large files do not keep small ones waiting: a file that has waited for longer than what is left of
it deserves ends another's turn (`file_turns`), and a few connections beyond the number are for
files of which nothing is known yet, or little is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

from downloader.transfer.file_turns import BRIEF_AFTER_SECONDS, TURN_SECONDS, Turn, Waiting
from downloader.transfer.growth import Growth, Meter

__all__ = ["Connections"]

FIRST = 4
BRIEF = 4  # connections beyond the limit, for objects that come whole at once
MAX_BEGUN = 128  # files that have come in part, each of them open
LOOK_SECONDS = 0.1  # between two looks at how much has come
BUSY = 0.4  # of all processors, used by this program: then they are the limit
THROTTLED_SECONDS = 10.0  # without a step, after a store asked to be left alone
EPISODE_SECONDS = 1.0  # in which all connections may hear the same wish


class Connections:
    """Lends connections: each file has one of its own in turns, and large ones more.

    A file's own is never refused for ever; more are lent while no file waits for its own. There
    are `most` of them, and never more than the `ceiling`. All of it happens on the event loop.
    """

    def __init__(
        self,
        most: int = 64,
        *,
        most_files: int = 64,
        ceiling: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.meter = Meter()
        self.in_use = 0
        self._ceiling = ceiling
        self._most = min(most, ceiling or most)
        self.limit = min(FIRST, self._most)
        self._most_files = most_files
        self._clock = clock
        self._processor_clock = processor_clock
        self._processors = len(os.sched_getaffinity(0))
        self._turns: set[Turn] = set()  # those of files that have a connection
        self._brief = 0  # of them
        self._begun = 0  # files, with a connection or without, that may be there in part
        self._waiting = Waiting()
        self._helpers: deque[asyncio.Future[None]] = deque()
        self._loans: list[Callable[[], None]] = []
        self._recalled = 0  # loans that have been told, and have not come back yet
        self._told = 0  # turns that have been told, and have not come back yet
        self._looking: asyncio.TimerHandle | None = None
        self._growth = Growth()
        self._looked_at = 0.0
        self._used_at = 0.0  # seconds of processors, by then
        self._seen_bytes = 0
        self._was_short = True  # somebody waited for the whole time since the last look
        self._rests_until = 0.0
        self._throttled_at: float | None = None
        self._small_at = 0.0  # when a small file got an ordinary connection last

    @contextlib.asynccontextmanager
    async def of_a_file(
        self, *, left: Callable[[], int] = lambda: 0, brief_bytes: int = 0
    ) -> AsyncIterator[Turn]:
        """Lend the connection that a file has in turns, for as long as it is transferred.

        Args:
            left: tells how many bytes are known to be still to come; none while that is not known.
            brief_bytes: as many, at the most, may come by a connection beyond the limit.
        """
        turn = Turn(self, left=left, brief_bytes=brief_bytes)
        try:
            await turn.take()
            yield turn
        finally:
            if turn.has_begun:
                self._begun -= 1
            turn.give_back()
            self._serve()  # also where none was held: one more file may begin

    @contextlib.asynccontextmanager
    async def one_more(self, *, wanted_back: Callable[[], None]) -> AsyncIterator[None]:
        """Lend another one to a file that has work for it, once no file waits for its own.

        `wanted_back` is called, once, when a file needs it more, or when there are too many.
        """
        await self._take_one_more()
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

    def change(self, *, most: int | None = None, most_files: int | None = None) -> None:
        """Use no more than so many from now on, or as many as now may be and bring more.

        What is too many is asked back at once, of files in the middle of their segments too.
        """
        if most is not None:
            self._most = min(most, self._ceiling or most)
        if most_files is not None:
            self._most_files = most_files
        self.limit = min(self.limit, self._most)
        self._growth = Growth()  # it may have lost patience under the old bounds
        self._recall()
        self._serve()

    # Lending to files.

    async def lend_to(self, turn: Turn) -> None:
        """Return once the file has a connection; if cancelled meanwhile, it has none."""
        if self._is_one_free() and not self._servable() and self._has_room_for(turn):
            self._lend_to(turn, is_small=turn.is_small)
            return
        wish = self._waiting.add(turn, self._clock())
        self._recall()
        try:
            await wish.answer
        except asyncio.CancelledError:
            if wish.is_granted:  # it was lent just now
                turn.give_back()
            else:
                self._waiting.forget(wish)
                self._serve()
            raise

    def take_back(self, turn: Turn) -> None:
        """Take the connection back that the file has."""
        turn.is_held = False
        self._turns.remove(turn)
        self._brief -= turn.is_brief
        self._told -= turn.is_told
        self._give_back()

    def _lend_to(self, turn: Turn, *, is_small: bool, is_brief: bool = False) -> None:
        now = self._clock()
        turn.begin(now, is_brief=is_brief)
        self._turns.add(turn)
        if is_brief:
            self._brief += 1
        else:
            self._begun += not turn.has_begun
            turn.has_begun = True
            self._small_at = now if is_small else self._small_at
        self._lent()

    def _is_one_free(self) -> bool:
        return self.in_use - self._brief < self.limit and self.in_use < self._most

    def _has_room_for(self, turn: Turn) -> bool:
        return len(self._turns) < self._most_files and (turn.has_begun or self._begun < MAX_BEGUN)

    def _in_line(self) -> int:
        """Return how many files wait that may have an ordinary connection once one is free."""
        return self._waiting.begun + min(self._waiting.new, max(0, MAX_BEGUN - self._begun))

    def _servable(self) -> int:
        """Return how many of them would have it even now, if it were free."""
        return min(self._in_line(), max(0, self._most_files - len(self._turns)))

    # Lending in general.

    async def _take_one_more(self) -> None:
        if self._is_one_free() and not self._servable() and not self._helpers:
            self._lent()
            return
        future = asyncio.get_running_loop().create_future()
        self._helpers.append(future)
        self._recall()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was lent just now
                self._give_back()
            else:
                with contextlib.suppress(ValueError):  # passed over already
                    self._helpers.remove(future)
            raise

    def _lent(self) -> None:
        self.in_use += 1
        if self._looking is None:
            self._begin_to_look()

    def _give_back(self) -> None:
        self.in_use -= 1
        self._serve()

    def _serve(self) -> None:
        while (
            self._is_one_free()
            and len(self._turns) < self._most_files
            and (wish := self._waiting.first(may_begin=self._begun < MAX_BEGUN)) is not None
        ):
            self._waiting.grant(wish)
            self._lend_to(wish.turn, is_small=wish.is_small)
        while self._is_one_free() and self._helpers and not self._servable():
            future = self._helpers.popleft()
            if not future.done():  # or whoever waited was cancelled, and has not heard of it yet
                self._lent()
                future.set_result(None)
        self._serve_small_ones()
        if not self._servable() and not self._helpers:
            self._was_short = False

    def _serve_small_ones(self) -> None:
        """Let a few go beside large ones that have kept all connections for a while."""
        while (wish := self._waiting.first_small()) is not None and self._may_be_brief(wish.since):
            self._waiting.grant(wish)
            self._lend_to(wish.turn, is_small=True, is_brief=True)

    def _may_be_brief(self, since: float) -> bool:
        now = self._clock()
        return (
            self._brief < BRIEF
            and self.in_use < self._most
            and len(self._turns) < self._most_files
            and now - max(since, self._small_at) >= BRIEF_AFTER_SECONDS
            and now >= self._rests_until
        )

    # Asking back.

    def _recall(self) -> None:
        """Ask for as many loans as files wait for, and for whatever there is too much of.

        A file has its own on until its turn is over, unless that would break a bound.
        """
        too_many = max(self.in_use - self._brief - self.limit, self.in_use - self._most)
        missing = self._servable() + too_many - self._recalled - self._told
        for _ in range(min(missing, len(self._loans))):
            self._recalled += 1
            self._loans.pop()()
        too_many = max(self.in_use - self._most, len(self._turns) - self._most_files)
        for _ in range(too_many - self._recalled - self._told):
            self._end_a_turn(self._turns)

    def _end_turns_that_are_over(self, now: float) -> None:
        """End the turn of who has most left, if somebody has waited for as long as he should."""
        wish = self._waiting.first(may_begin=self._begun < MAX_BEGUN)
        if wish is not None and now >= wish.due and self._told < self._in_line():
            self._end_a_turn({turn for turn in self._turns if now - turn.since >= TURN_SECONDS})

    def _end_a_turn(self, turns: set[Turn]) -> None:
        able = [turn for turn in turns if turn.may_be_ended]
        if able:
            self._told += 1
            max(able, key=lambda turn: turn.left()).tell()

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
        is_short, self._was_short = self._was_short, bool(self._servable() or self._helpers)
        if is_short and now >= self._rests_until and seconds > 0:
            self._adapt(came / seconds, now, may_grow=not is_busy)
        self._serve()
        self._end_turns_that_are_over(now)
        self._look_later()

    def _adapt(self, rate: float, now: float, *, may_grow: bool) -> None:
        # A large file's connections gain speed for a while; small files begin anew each time.
        is_rising = not self._servable() and self._growth.is_rising(rate)
        if is_rising:
            return
        wanted = self._growth.next(self.limit, rate, now, may_grow=may_grow)
        self.limit = min(self._most, wanted)
        self._recall()
