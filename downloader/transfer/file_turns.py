"""A file's own connection, had in turns: who is next, and when somebody else's turn is over."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Protocol

__all__ = ["BRIEF_AFTER_SECONDS", "TURN_SECONDS", "Turn", "Waiting", "Wish"]

MIB = 1024 * 1024
TURN_SECONDS = 20.0  # that a file has its connection at least, unless there are too many of them
BRIEF_AFTER_SECONDS = 1.0  # in which no small file got on: then some go beside the large ones
# Whoever has little left is next, but what waits becomes more urgent: this makes up for that.
PATIENCE_PACE = 10 * MIB  # bytes still to come, for each second of waiting that is expected of it
MAX_PATIENCE_SECONDS = 300.0


class Lender(Protocol):
    """Who has the connections."""

    async def lend_to(self, turn: Turn) -> None:
        """Return once the file has a connection; if cancelled meanwhile, it has none."""
        ...

    def take_back(self, turn: Turn) -> None:
        """Take the connection back that the file has."""
        ...


class Turn:
    """A file's own connection: the file has it for a while, and may have to wait for it again.

    A brief one is lent beyond what the line needs, for an object that comes whole at once. Whoever
    finds that there is more gives it back, and waits for an ordinary one.
    """

    def __init__(self, lender: Lender, *, left: Callable[[], int], brief_bytes: int) -> None:
        self.left = left  # bytes that are known to be still to come
        self.is_held = False
        self.is_brief = False
        self.is_told = False  # that somebody else is due
        self.has_begun = False  # it has had an ordinary connection, and may have a part file
        self.since = 0.0
        self._lender = lender
        self._brief_bytes = brief_bytes
        self._wanted_back: Callable[[], None] | None = None

    @property
    def is_small(self) -> bool:
        """Tell whether a brief turn would do, as far as is known."""
        return self.left() <= self._brief_bytes

    @property
    def may_be_ended(self) -> bool:
        """Tell whether somebody listens who would give it back."""
        is_ordinary = self.is_held and not self.is_brief
        return is_ordinary and not self.is_told and self._wanted_back is not None

    def begin(self, now: float, *, is_brief: bool) -> None:
        """Note that the connection was lent."""
        self.is_held, self.is_brief, self.is_told, self.since = True, is_brief, False, now

    def tell(self) -> None:
        """Tell the file that somebody else is due."""
        assert self._wanted_back is not None  # noqa: S101 - asked before
        self.is_told = True
        self._wanted_back()

    async def take(self) -> None:
        """Wait for the connection."""
        await self._lender.lend_to(self)

    def give_back(self) -> None:
        """Give the connection back, if the file has it."""
        if self.is_held:
            self._lender.take_back(self)

    async def again(self) -> None:
        """Let those have it who are due before, and wait for it again."""
        self.give_back()
        await self.take()

    @contextlib.asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Let others have it while this file cannot use it; afterwards, wait for it again."""
        self.give_back()
        yield
        await self.take()

    @contextlib.contextmanager
    def may_end(self, wanted_back: Callable[[], None]) -> Iterator[None]:
        """Say that the file can give it back before it is whole; it is told, once, when to."""
        self._wanted_back = wanted_back
        try:
            yield
        finally:
            self._wanted_back = None


class Wish:
    """A file that waits for a connection."""

    def __init__(self, turn: Turn, now: float) -> None:
        left = turn.left()
        self.turn = turn
        self.is_small = turn.is_small
        self.since = now
        self.due = now + min(MAX_PATIENCE_SECONDS, left / PATIENCE_PACE)
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        """Tell whether it was neither granted nor given up."""
        return not self.answer.done()

    @property
    def is_granted(self) -> bool:
        """Tell whether the file has what it has waited for."""
        return self.answer.done() and not self.answer.cancelled()


class Waiting:
    """The files that wait, in the order in which they are due; nobody waits for ever.

    A wish that is not open any more is passed over when its time comes.
    """

    def __init__(self) -> None:
        self.begun = 0  # of those that have begun
        self.new = 0  # of the others
        self._begun: list[tuple[float, int, Wish]] = []
        self._new: list[tuple[float, int, Wish]] = []
        self._small: deque[Wish] = deque()  # of the new ones
        self._numbers = itertools.count()

    def add(self, turn: Turn, now: float) -> Wish:
        """Let a file wait."""
        wish = Wish(turn, now)
        queue = self._begun if turn.has_begun else self._new
        heapq.heappush(queue, (wish.due, next(self._numbers), wish))
        if wish.is_small and not turn.has_begun:
            self._small.append(wish)
        self._count(turn, 1)
        return wish

    def grant(self, wish: Wish) -> None:
        """Tell a file that it has what it has waited for; to be called before its turn begins."""
        self._count(wish.turn, -1)
        wish.answer.set_result(None)

    def forget(self, wish: Wish) -> None:
        """Forget a wish that was given up."""
        self._count(wish.turn, -1)

    def first(self, *, may_begin: bool) -> Wish | None:
        """Return who is due first, of those that have begun if no more may begin."""
        queues = (self._begun, self._new) if may_begin else (self._begun,)
        for queue in queues:
            while queue and not queue[0][2].is_open:
                heapq.heappop(queue)
        return min((queue[0] for queue in queues if queue), default=(0, 0, None))[2]

    def first_small(self) -> Wish | None:
        """Return the one that has waited longest of those for whom a brief turn would do."""
        while self._small and not self._small[0].is_open:
            self._small.popleft()
        return self._small[0] if self._small else None

    def _count(self, turn: Turn, change: int) -> None:
        if turn.has_begun:
            self.begun += change
        else:
            self.new += change
