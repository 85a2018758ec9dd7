"""Which ranges of an object are still to be fetched: pure arithmetic."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from state.records import Checkpoint, Segment

__all__ = [
    "ALIGNMENT",
    "MIN_SHARE",
    "is_of_part_file",
    "is_strong_etag",
    "plan_segments",
    "segments_without",
    "usable",
]

MIB = 1024 * 1024
ALIGNMENT = MIB  # segments begin at multiples of it, so that the disk sees whole pages
MIN_SHARE = 4 * MIB  # what is worth a request of its own, as long as nobody is idle

_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]+"')  # RFC 9110 §8.8.3, and nothing but ASCII


def is_strong_etag(etag: str | None) -> bool:
    """Tell whether ranges of the object may be joined by this ETag, and whether it can be sent."""
    return etag is not None and _STRONG_ETAG.fullmatch(etag) is not None


def plan_segments(
    size: int, *, segment_size: int, connections: int, probed: int = 0
) -> tuple[Segment, ...]:
    """Cut [0, size) into neighbouring segments, none longer than `segment_size`.

    `probed` bytes from the beginning form the first segment: the reply that told the size brings
    them. What is left is cut so that each of `connections` gets a share while the shares are no
    shorter than is worth a request.
    """
    probed = min(probed, size)
    first = (Segment(start=0, stop=probed),) if probed else ()
    rest = size - probed
    share = _aligned(-(-rest // max(1, connections)))
    length = _aligned(min(segment_size, max(share, MIN_SHARE)))
    starts = range(probed, size, length)
    return first + tuple(Segment(start=start, stop=min(start + length, size)) for start in starts)


def segments_without(
    ranges: Iterable[tuple[int, int]], *, size: int, segment_size: int
) -> tuple[Segment, ...]:
    """Cut [0, size) into segments that are complete, and those of the `ranges`, which are missing.

    The ranges are half-open, sorted and disjoint. No missing segment is longer than `segment_size`.
    """
    segments: list[Segment] = []
    here = 0
    for start, stop in [*ranges, (size, size)]:
        if here < start:
            segments.append(Segment(start=here, stop=start, watermark=start - here))
        segments += (
            Segment(start=at, stop=min(at + segment_size, stop))
            for at in range(start, stop, segment_size)
        )
        here = stop
    return tuple(segments)


def usable(checkpoint: Checkpoint | None, part_size: int | None) -> Checkpoint | None:
    """Return the checkpoint as far as the part file can bear it out, or None.

    `part_size` is the size of the part file in bytes, None if there is none. Watermarks beyond
    its end are drawn back to it; segments that do not tile the object exactly are not believed.
    """
    if checkpoint is None or part_size is None or not is_strong_etag(checkpoint.etag):
        return None
    expected_start = 0
    for segment in checkpoint.segments:
        if segment.start != expected_start or not 0 <= segment.watermark <= segment.length:
            return None
        expected_start = segment.stop
    if expected_start != checkpoint.size:
        return None
    segments = tuple(_clipped(segment, part_size) for segment in checkpoint.segments)
    return replace(checkpoint, segments=segments)


def is_of_part_file(checkpoint: Checkpoint, part_size: int | None, part_id: str | None) -> bool:
    """Tell whether it is of the very part file that is there, and that has all that was saved.

    A file that was cut may soon be as long as before, with nothing in its end.
    """
    if part_size is None or part_id is None or checkpoint.part_id != part_id:
        return False
    return all(segment.position <= part_size for segment in checkpoint.segments)


def _clipped(segment: Segment, part_size: int) -> Segment:
    watermark = min(segment.watermark, max(0, part_size - segment.start))
    return Segment(start=segment.start, stop=segment.stop, watermark=watermark)


def _aligned(length: int) -> int:
    """Round up to a whole multiple of the alignment, and to one at least."""
    return max(1, -(-length // ALIGNMENT)) * ALIGNMENT
