"""The first reply on the straight road, and with it a small object whole: one hop to a thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from downloader.transfer.options import TransferOptions
from downloader.transfer.part_file import PartFile
from downloader.transfer.segment_run import SegmentRun
from downloader.transfer.straight_body import TELL_SECONDS, StraightBody
from state.records import Segment

__all__ = ["FirstStep"]

MAX_SECONDS = 0.5  # without a checkpoint: a line may be slow


class FirstStep:
    """Takes the first reply in the road's thread; what is None afterwards did not come to be.

    Of a large object only `body` is there, and nothing was made on the disk. A small one is in
    `part` and `run`, as far as it came; `identity` is there once it has come whole, `rest` if it
    was still coming.
    """

    def __init__(self, part_path: Path, options: TransferOptions) -> None:
        self.body: StraightBody | None = None
        self.part: PartFile | None = None
        self.run: SegmentRun | None = None
        self.identity: tuple[int, int] | None = None
        self.rest: StraightBody | None = None  # what takes long, and wants checkpoints
        self._part_path = part_path
        self._options = options
        self._watching: asyncio.TimerHandle | None = None

    def take(self, body: StraightBody) -> None:
        """Bring a small object to the disk; blocks.

        Raises:
            DiskError: the disk refused.
        """
        size = body.version.size
        self.body = body
        if body.stop < size or size > self._options.first_length:  # as of a 200
            return
        self.part = part = PartFile.open(self._part_path, anew=True)
        part.reserve(size, keep_free=self._options.min_free_space)
        self.run = run = SegmentRun(Segment(start=0, stop=size))
        with contextlib.suppress(OSError):  # what has not come is asked for again
            limit = self._options.rate_limit
            body.pour_here(run, part, limit, _never, seconds=MAX_SECONDS)
            self.rest = None if run.is_complete or body.has_ended else body
        if run.is_complete:
            self.identity = part.confirm(size)

    def watch(self, sized: Callable[[int], None], count: Callable[[int], None]) -> None:
        """Tell the size, and then how many bytes have come, of an object that is slow to come."""
        self._watching = asyncio.get_running_loop().call_later(
            TELL_SECONDS, self._look, sized, count
        )

    def _look(self, sized: Callable[[int], None], count: Callable[[int], None]) -> None:
        if self.run is None or self.body is None:
            self.watch(sized, count)
            return
        sized(self.body.version.size)
        self.body.keep_telling(count)

    def end(self, sized: Callable[[int], None], count: Callable[[int], None]) -> None:
        """Tell what is left to be told."""
        if self._watching is not None:
            self._watching.cancel()
        if self.run is not None and self.body is not None:
            sized(self.body.version.size)
            self.body.tell_no_more(count)


def _never(_: SegmentRun) -> bool:
    return False
