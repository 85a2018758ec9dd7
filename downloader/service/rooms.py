"""Whether there is room for results: a destination without any is left alone until there is.

Free space alone does not tell: a quota may be used up, a disk may have become read-only. So a
destination that refused is tried again with one task now and then, and with all as soon as
something comes to its disk, or clearly more is free than when it refused.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from downloader.concurrency import in_thread
from downloader.logs import facts
from downloader.units import format_bytes

__all__ = ["Reopened", "Rooms"]

TIGHT_BYTES = 64 * 1024 * 1024  # less than that is no room, whatever the floor
MORE_BYTES = 64 * 1024 * 1024  # that are free since: worth trying again
LOOK_SECONDS = 2.0
FIRST_PROBE_SECONDS = 10.0
MAX_PROBE_SECONDS = 300.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened:
    """A destination whose paused tasks may go on: all of them, or one that tries."""

    dest: str
    limit: int | None


@dataclass(slots=True, kw_only=True)
class _Closed:
    reason: str
    free: int
    is_below_floor: bool
    probe_at: float
    pause: float = FIRST_PROBE_SECONDS
    lets_one_in: bool = False


class Rooms:
    """The destinations of all tasks, and which of them have no room."""

    def __init__(
        self,
        floor: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        free: Callable[[str], int] | None = None,
    ) -> None:
        self.floor = floor  # bytes that stay free
        self._clock = clock
        self._free = free or _free_bytes
        self._closed: dict[str, _Closed] = {}
        self._refused: dict[str, int] = {}  # one task was too large for what was free then
        self._proved: list[Reopened] = []
        self._looked_at = clock()

    @property
    def condition(self) -> str | None:
        """What keeps transfers from going on, for people; None if nothing does."""
        if not self._closed:
            return None
        return "; ".join(
            f"paused, no room in {dest}: {closed.reason}" for dest, closed in self._closed.items()
        )

    async def why_not(self, dest: str) -> str | None:
        """Return why nothing may be begun there now; None if something may."""
        closed = self._closed.get(dest)
        if closed is not None:
            if not closed.lets_one_in:
                return closed.reason
            closed.lets_one_in = False
            return None
        free = await self._free_in(dest)
        if free >= self.floor:
            return None
        reason = f"{format_bytes(free)} are free, and {format_bytes(self.floor)} are to stay so"
        self._close(dest, reason, free, is_below_floor=True)
        return reason

    async def refused(self, dest: str, reason: str, *, is_certain: bool) -> None:
        """Take note that a task had no room.

        `is_certain` tells that the disk took not even a byte; otherwise a smaller task may fit.
        """
        free = await self._free_in(dest)
        if is_certain or free < max(self.floor, TIGHT_BYTES):
            self._close(dest, reason, free, is_below_floor=False)
        else:
            self._refused[dest] = free

    def proved(self, dest: str) -> None:
        """Take note that a file is on the disk: if it had no room until then, all may go on."""
        closed = self._closed.get(dest)
        if closed is not None and not closed.is_below_floor:
            del self._closed[dest]
            self._proved.append(Reopened(dest=dest, limit=None))

    async def look(self) -> list[Reopened]:
        """Look again at what has no room, and return what may go on."""
        proved, self._proved = self._proved, []
        now = self._clock()
        if now - self._looked_at < LOOK_SECONDS:
            return proved
        self._looked_at = now
        return [
            *proved,
            *[one for dest in [*self._closed] if (one := await self._look_at(dest, now))],
            *[one for dest in [*self._refused] if (one := await self._look_for_more(dest))],
        ]

    async def _look_at(self, dest: str, now: float) -> Reopened | None:
        free = await self._free_in(dest)
        closed = self._closed.get(dest)
        if closed is None:  # a file has come to its disk meanwhile
            return None
        wanted = self.floor if closed.is_below_floor else max(self.floor, closed.free + MORE_BYTES)
        if free >= wanted:
            self._closed.pop(dest, None)
            return Reopened(dest=dest, limit=None)
        if closed.is_below_floor or now < closed.probe_at or free < self.floor:
            return None
        closed.lets_one_in = True
        closed.pause = min(2 * closed.pause, MAX_PROBE_SECONDS)
        closed.probe_at = now + closed.pause
        return Reopened(dest=dest, limit=1)

    async def _look_for_more(self, dest: str) -> Reopened | None:
        if await self._free_in(dest) < self._refused[dest] + MORE_BYTES:
            return None
        self._refused.pop(dest, None)
        return Reopened(dest=dest, limit=None)

    def _close(self, dest: str, reason: str, free: int, *, is_below_floor: bool) -> None:
        before = self._closed.get(dest)
        if before is None:
            logger.warning("Paused", extra=facts(dest=dest, reason=reason))
        pause = FIRST_PROBE_SECONDS if before is None else before.pause
        self._closed[dest] = _Closed(
            reason=reason,
            free=free,
            is_below_floor=is_below_floor,
            probe_at=self._clock() + pause,
            pause=pause,
        )

    async def _free_in(self, dest: str) -> int:
        # A network disk may take its time.
        return await in_thread(self._free, dest)


def _free_bytes(dest: str) -> int:
    """Return the bytes that are free for us where a directory is, or will be made; blocks."""
    place = Path(dest)
    for there in (place, *place.parents):
        try:
            found = os.statvfs(there)
        except OSError:
            continue  # not made yet, or not to be looked at: whoever writes will tell
        return found.f_bavail * found.f_frsize
    return 0
