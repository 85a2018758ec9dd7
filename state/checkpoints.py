"""Whether a checkpoint makes sense: decided without I/O, believed by store and transfer alike."""

from __future__ import annotations

from itertools import pairwise

from state.records import Checkpoint, Segment

__all__ = ["is_sound"]

LARGEST_SIZE = 2**63 - 1  # what both databases hold, and no disk


def is_sound(checkpoint: Checkpoint) -> bool:
    """Tell whether the numbers are numbers, and the segments in order, apart and in the file.

    Gaps are allowed: what no segment covers has not been received.
    """
    if not _are_counts(checkpoint.size) or not isinstance(checkpoint.etag, str | None):
        return False
    segments = checkpoint.segments
    return all(_fits(segment, checkpoint.size) for segment in segments) and all(
        before.stop <= after.start and before.start < after.start
        for before, after in pairwise(segments)
    )


def _fits(segment: Segment, size: int) -> bool:
    """Tell whether the segment lies in the file, and its watermark in the segment."""
    if not _are_counts(segment.start, segment.stop, segment.watermark):
        return False
    return segment.start <= segment.stop <= size and segment.watermark <= segment.length


def _are_counts(*values: object) -> bool:
    # A damaged SQLite row may hold text or a float where a number was written.
    return all(type(value) is int and 0 <= value <= LARGEST_SIZE for value in values)
