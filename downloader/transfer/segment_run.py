"""A segment while it is being filled: its position, its checksum, what of it is safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from downloader.transfer.checksum import EMPTY_CRC64, combine_crc64, crc64_of
from downloader.transfer.part_file import PartFile
from downloader.transfer.plan import ALIGNMENT
from state.records import Segment

__all__ = ["SegmentRun"]

SILENT_SECONDS = 1.0


class SegmentRun:
    """One segment in this run; only its own worker moves it on.

    Another worker may cut off what nobody has laid claim to, and fetch that itself.

    Bytes of earlier runs are read back into the checksum from the disk (`read_back`), bytes of
    this run are added as they are handed to the kernel (`write`): no recorded checksum is ever
    believed in place of bytes.
    """

    def __init__(self, segment: Segment) -> None:
        self.start = segment.start
        self.stop = segment.stop
        self.resumed_position = segment.position  # where this run began
        self.position = segment.position  # everything before it has been handed to the kernel
        self.safe_position = segment.position  # everything before it is in a saved checkpoint
        self._read_position = segment.start
        self._old_crc = EMPTY_CRC64
        self._new_crc = EMPTY_CRC64
        self._claimed = segment.position  # what is before it may be on its way already
        self._claiming = threading.Lock()
        self._began_at, self._began_position = time.monotonic(), segment.position

    def begin(self) -> None:
        """Note that from now on somebody works on it."""
        self._began_at, self._began_position = time.monotonic(), self.position

    def claim(self, stop: int) -> int:
        """Lay claim to the bytes up to `stop`; return up to where they are this segment's."""
        with self._claiming:
            self._claimed = min(stop, self.stop)
            return self._claimed

    @property
    def seconds_left(self) -> float:
        """How long it will take at the pace since it was begun; no time, while that is not known.

        For ever, once nothing has come for longer than an answer takes.
        """
        seconds, come = time.monotonic() - self._began_at, self.position - self._began_position
        if come <= 0:
            return float("inf") if seconds >= SILENT_SECONDS else 0.0
        return seconds * (self.stop - self.position) / come

    @property
    def can_be_cut(self) -> bool:
        """Tell whether `cut` would give anything now: what is claimed is more than what is here."""
        with self._claiming:
            return self._place_to_cut(2) is not None

    def cut(self) -> SegmentRun | None:
        """Cut off the later half of what is not claimed yet; None where that is too little."""
        return self._cut_off(2)

    def let_go(self) -> SegmentRun | None:
        """Cut off all that is not claimed yet; None where that is too little.

        Of a segment that nobody has begun, some is kept: it is never made empty.
        """
        return self._cut_off(1)

    def _cut_off(self, parts: int) -> SegmentRun | None:
        """Cut off one of so many parts of what is not claimed, at a place that the disk likes."""
        with self._claiming:
            cut_at = self._place_to_cut(parts)
            if cut_at is None:
                return None
            rest = Segment(start=cut_at, stop=self.stop)
            self.stop = cut_at
        return SegmentRun(rest)

    def _place_to_cut(self, parts: int) -> int | None:
        kept = (self.stop - self._claimed) * (parts - 1) // parts
        first = -(-max(self._claimed, self.start + 1) // ALIGNMENT)
        cut_at = max(first, (self._claimed + kept) // ALIGNMENT) * ALIGNMENT
        return None if self.stop - cut_at < ALIGNMENT else cut_at

    @property
    def is_complete(self) -> bool:
        """Tell whether every byte has been handed to the kernel."""
        return self.position >= self.stop

    @property
    def unsafe_bytes(self) -> int:
        """Bytes that a loss of power would take."""
        return self.position - self.safe_position

    @property
    def crc64(self) -> int:
        """CRC-64 of [start, position), once everything of earlier runs has been read back."""
        return combine_crc64(self._old_crc, self._new_crc, self.position - self.resumed_position)

    def snapshot(self) -> Segment:
        """Return the segment as it may be remembered once the part file has been synced."""
        return Segment(start=self.start, stop=self.stop, watermark=self.position - self.start)

    def write(
        self, part: PartFile, buffers: Sequence[memoryview], *, is_aligned: bool = False
    ) -> None:
        """Write the buffers at the position and move on; blocks.

        `is_aligned`: there is one buffer, and it begins at a page of memory.
        """
        crc = self._new_crc
        for buffer in buffers:
            crc = crc64_of(buffer, crc)
        write = part.write_aligned if is_aligned else part.write
        written = write(self.position, buffers)
        self._new_crc = crc
        self.position += written

    def read_back(self, part: PartFile, limit: int) -> bool:
        """Read `limit` more bytes of earlier runs into the checksum; False at their end; blocks."""
        stop = min(self._read_position + limit, self.resumed_position)
        for chunk in part.chunks(self._read_position, stop):
            self._old_crc = crc64_of(chunk, self._old_crc)
        self._read_position = stop
        return stop < self.resumed_position
