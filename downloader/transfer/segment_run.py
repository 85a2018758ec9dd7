"""A segment while it is being filled: its position, its checksum, what of it is safe."""

from __future__ import annotations

from collections.abc import Sequence

from downloader.transfer.checksum import EMPTY_CRC64, combine_crc64, crc64_of
from downloader.transfer.part_file import PartFile
from state.records import Segment

__all__ = ["SegmentRun"]


class SegmentRun:
    """One segment in this run; only its own worker moves it on.

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
