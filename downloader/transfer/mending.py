"""Finds out what of a file is wrong, where its checksum is, so that only that is fetched again.

The pieces of some files prove themselves, as the blocks of a BGZF file do. Of any other it cannot
be told what the network or the disk has changed, and everything is to be fetched again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from downloader.concurrency import in_stoppable_thread
from downloader.errors import disk_error
from downloader.progress import Reporter

__all__ = ["FindDamage", "Mending", "Range"]

MAX_RANGES = 1000  # each of them costs a request
MAX_MENDINGS = 5  # of one file, until it is taken for a line that changes whatever comes

Range = tuple[int, int]  # half-open
# Asks now and then whether to stop. Returns how many pieces of the file prove themselves, and the
# ranges that are in none of them, sorted and disjoint.
FindDamage = Callable[[Path, Callable[[], bool]], tuple[int, Sequence[Range]]]


class Mending:
    """What is wrong in one file, a bounded number of times; the same damage only once."""

    def __init__(self, name: str, *, find_damage: FindDamage | None, reporter: Reporter) -> None:
        self._name = name
        self._find_damage = find_damage
        self._reporter = reporter
        self._told: set[str] = set()

    async def ranges(self, path: Path, size: int, told: str) -> Sequence[Range]:
        """Return what of the file is to be fetched again; none if that is not known, or all.

        `told` says what is wrong with the file as a whole: where it is what it was before, fetching
        the same ranges again has not helped.

        Raises:
            DiskError: the file cannot be read.
        """
        if self._find_damage is None or told in self._told or len(self._told) == MAX_MENDINGS:
            return ()
        self._told.add(told)
        intact, found = await self._found(self._find_damage, path)
        ranges = _joined(found, MAX_RANGES)
        count = sum(stop - start for start, stop in ranges)
        if not 0 < count < size:
            return ()
        self._reporter.note(
            f"{self._name}: {told}; {intact:,} of its blocks are intact, fetching {count:,} bytes "
            "again"
        )
        return ranges

    async def _found(self, find: FindDamage, path: Path) -> tuple[int, Sequence[Range]]:
        def work(stopped: Callable[[], bool]) -> tuple[int, Sequence[Range]]:
            try:
                return find(path, self._reporter.asked(stopped))
            except OSError as error:
                raise disk_error(error, path, "read back") from error

        return await in_stoppable_thread(work)


def _joined(ranges: Sequence[Range], most: int) -> Sequence[Range]:
    """Join those that are closest to each other, with what lies between, until there are so few."""
    if len(ranges) <= most:
        return ranges
    behind_gaps = sorted(
        range(1, len(ranges)), key=lambda at: ranges[at][0] - ranges[at - 1][1], reverse=True
    )
    firsts = [0, *sorted(behind_gaps[: most - 1]), len(ranges)]
    return [(ranges[at][0], ranges[stop - 1][1]) for at, stop in itertools.pairwise(firsts)]
