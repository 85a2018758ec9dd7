"""Whether a checkpoint makes sense, and what differs between two: decided without I/O."""

from __future__ import annotations

from dataclasses import dataclass

from state.records import Checkpoint, Segment

__all__ = ["Difference", "difference", "is_sound"]

LARGEST_SIZE = 2**63 - 1  # what both databases hold, and no disk


def is_sound(checkpoint: Checkpoint) -> bool:
    """Tell whether the numbers are numbers, and the segments in order, apart and in the file.

    Gaps are allowed: what no segment covers has not been received.
    """
    size = checkpoint.size
    if not _is_whole(size) or not isinstance(checkpoint.etag, str | None):
        return False
    return 0 <= size <= LARGEST_SIZE and _are_in_order(checkpoint.segments, size)


def _are_in_order(segments: tuple[Segment, ...], size: int) -> bool:
    """Tell whether each segment lies behind the one before, and its watermark in the segment."""
    last, reached = -1, 0
    for segment in segments:
        start, stop, watermark = segment.start, segment.stop, segment.watermark
        if not _is_whole(start, stop, watermark):
            return False
        if not (last < start and reached <= start <= stop <= size):
            return False
        if not 0 <= watermark <= stop - start:
            return False
        last, reached = start, stop
    return True


def _is_whole(*values: object) -> bool:
    # A damaged SQLite row may hold text or a float where a number was written.
    for value in values:  # noqa: SIM110 - `all` takes three times as long, for every segment
        if type(value) is not int:
            return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What turns the segments of one checkpoint into those of another."""

    gone: list[int]  # their starts
    changed: list[Segment]
    added: list[Segment]


def difference(before: Checkpoint, after: Checkpoint) -> Difference:
    """Return what must be done to the segments of `before`; a segment is known by its start."""
    known = {segment.start: segment for segment in before.segments}
    changed, added = [], []
    for segment in after.segments:
        old = known.pop(segment.start, None)
        if old is None:
            added.append(segment)
        elif old.stop != segment.stop or old.watermark != segment.watermark:
            changed.append(segment)
    return Difference(gone=list(known), changed=changed, added=added)
