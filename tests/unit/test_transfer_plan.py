"""Segments tile the object, and only a checkpoint that can be true is gone on from."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.transfer.plan import (
    ALIGNMENT,
    MIN_SHARE,
    is_of_part_file,
    is_strong_etag,
    plan_segments,
    segments_without,
    usable,
)
from state.records import Checkpoint, Segment

MIB = 1024 * 1024
GIB = 1024 * MIB


@given(
    size=st.integers(0, 500 * GIB),
    segment_size=st.integers(1, 10 * GIB).map(lambda length: max(length, 16 * MIB)),
    connections=st.integers(0, 64),
    probed=st.integers(0, 8 * MIB),
)
def test_segments_tile_the_object(size, segment_size, connections, probed):
    """No byte is in two segments, none is in none."""
    segments = plan_segments(
        size, segment_size=segment_size, connections=connections, probed=probed
    )
    assert [segment.start for segment in segments] == [0, *[s.stop for s in segments]][:-1]
    assert (segments[-1].stop if segments else 0) == size
    assert all(segment.length > 0 and segment.watermark == 0 for segment in segments)


@given(size=st.integers(0, 2 * GIB), segment_size=st.integers(1, 64 * MIB))
def test_no_segment_but_the_probes_is_longer_than_it_may_be(size, segment_size):
    segments = plan_segments(size, segment_size=segment_size, connections=4, probed=MIN_SHARE)
    longest = -(-segment_size // ALIGNMENT) * ALIGNMENT
    assert all(segment.length <= longest for segment in segments[1:])


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (0, []),
        (1, [1]),
        (4 * MIB, [4 * MIB]),
        (4 * MIB + 1, [4 * MIB, 1]),
        (8 * MIB, [4 * MIB, 4 * MIB]),  # no share is shorter than the probe
        (44 * MIB, [4 * MIB] + [10 * MIB] * 4),  # each connection gets its share
        (404 * MIB, [4 * MIB] + [64 * MIB] * 6 + [16 * MIB]),  # and none more than it may
    ],
)
def test_what_is_left_is_shared_by_the_connections(size, lengths):
    segments = plan_segments(size, segment_size=64 * MIB, connections=4, probed=MIN_SHARE)
    assert [segment.length for segment in segments] == lengths


@given(
    cuts=st.sets(st.integers(0, 1000), max_size=20).map(sorted),
    size=st.integers(1000, 1100),
    length=st.integers(1, 300),
)
def test_what_is_taken_back_of_a_whole_file_is_missing_and_nothing_else(cuts, size, length):
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    segments = segments_without(ranges, size=size, segment_size=length)
    checkpoint = Checkpoint(etag='"1"', size=size, segments=segments)
    assert usable(checkpoint, size) == checkpoint
    missing = {at for one in segments if not one.is_complete for at in range(one.start, one.stop)}
    assert missing == {at for start, stop in ranges for at in range(start, stop)}
    assert all(one.watermark in (0, one.length) for one in segments)
    assert all(one.length <= length for one in segments if not one.is_complete)


def test_a_checkpoint_is_of_the_part_file_that_has_its_identity_and_all_its_bytes():
    parts = (Segment(start=0, stop=50, watermark=50), Segment(start=50, stop=100, watermark=10))
    saved = Checkpoint(etag='"1"', size=100, segments=parts, part_id="7:1.0")
    assert is_of_part_file(saved, 60, "7:1.0")
    assert not is_of_part_file(saved, 59, "7:1.0")
    assert not is_of_part_file(saved, None, "7:1.0")
    assert not is_of_part_file(saved, 100, "7:1.1")  # of the next file with that inode
    assert not is_of_part_file(saved, 100, None)
    assert not is_of_part_file(replace(saved, part_id=None), 100, None)
    assert not is_of_part_file(replace(saved, part_id=b"7:1.0"), 100, "7:1.0")  # a damaged row


def test_of_an_empty_file_nothing_can_be_taken_back():
    assert segments_without([], size=0, segment_size=10) == ()
    assert segments_without([(0, 0)], size=0, segment_size=10) == ()


def test_an_object_that_came_whole_is_one_segment():
    """A store that ignores ranges answers the probe with everything."""
    (only,) = plan_segments(GIB, segment_size=64 * MIB, connections=4, probed=GIB)
    assert (only.start, only.stop) == (0, GIB)


@pytest.mark.parametrize(
    ("etag", "strong"),
    [
        ('"5B3C1A2E053D763E1B002CC607C5A0FE"', True),
        ('"5B3C1A2E053D763E1B002CC607C5A0FE-17"', True),
        ('W/"5B3C1A2E053D763E1B002CC607C5A0FE"', False),  # joins no ranges
        ("5B3C1A2E053D763E1B002CC607C5A0FE", False),
        ('""', False),  # the tag of everything that has none
        ('"a" "b"', False),
        ('"a"\r\nX: "b"', False),  # would be a header of its own
        ('"\udcff"', False),  # cannot be sent
        ("*", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_strong_etag_that_can_be_sent_back_joins_ranges(etag, strong):
    assert is_strong_etag(etag) is strong


@st.composite
def checkpoints(draw):
    """Any checkpoint that this program may have saved."""
    lengths = draw(st.lists(st.integers(0, 1000), max_size=6))
    segments, start = [], 0
    for length in lengths:
        watermark = draw(st.integers(0, length))
        segments.append(Segment(start=start, stop=start + length, watermark=watermark))
        start += length
    return Checkpoint(etag='"1"', size=start, segments=tuple(segments))


@given(checkpoints(), st.integers(0, 7000))
def test_what_is_believed_lies_within_the_part_file(checkpoint, part_size):
    found = usable(checkpoint, part_size)
    assert found is not None
    assert (found.etag, found.size) == (checkpoint.etag, checkpoint.size)
    for before, after in zip(checkpoint.segments, found.segments, strict=True):
        assert (after.start, after.stop) == (before.start, before.stop)
        assert after.watermark == max(0, min(before.watermark, part_size - before.start))


@given(checkpoints())
def test_a_whole_part_file_bears_everything_out(checkpoint):
    assert usable(checkpoint, checkpoint.size) == checkpoint


@given(checkpoints().filter(lambda one: one.segments), st.data())
def test_one_number_changed_is_not_believed(checkpoint, data):
    """Segments that do not tile the object, watermarks that cannot be: nothing of it counts."""
    at = data.draw(st.integers(0, len(checkpoint.segments) - 1))
    by = data.draw(st.integers(-3000, 3000).filter(bool))
    name = data.draw(st.sampled_from(["start", "stop", "watermark"]))
    old = checkpoint.segments[at]
    facts = {"start": old.start, "stop": old.stop, "watermark": old.watermark}
    facts[name] += by
    spoilt = Segment(**facts)
    segments = (*checkpoint.segments[:at], spoilt, *checkpoint.segments[at + 1 :])
    found = usable(Checkpoint(etag='"1"', size=checkpoint.size, segments=segments), 10_000)
    if name == "watermark" and 0 <= spoilt.watermark <= spoilt.length:
        assert found is not None  # it may be true; only the bytes can tell
    else:
        assert found is None


@pytest.mark.parametrize(
    ("checkpoint", "part_size"),
    [
        (None, 10),
        (Checkpoint(etag='"1"', size=10), None),  # no part file
        (Checkpoint(etag=None, size=0), 0),  # of no version
        (Checkpoint(etag='W/"1"', size=0), 0),
        (Checkpoint(etag='"1"', size=10), 10),  # no segments
        (Checkpoint(etag='"1"', size=-10), 10),
    ],
)
def test_some_checkpoints_are_no_use(checkpoint, part_size):
    assert usable(checkpoint, part_size) is None
