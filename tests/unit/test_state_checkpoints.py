"""Which checkpoints make sense, and what differs between two of them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from state import Checkpoint, Segment
from state.checkpoints import difference, is_sound


@st.composite
def segments(draw):
    """Any segments that are in order and apart, with any watermark."""
    cuts = sorted(draw(st.sets(st.integers(0, 30), max_size=10)))
    return tuple(
        Segment(start=start, stop=stop, watermark=draw(st.integers(0, stop - start)))
        for start, stop in zip(cuts[::2], cuts[1::2], strict=False)
    )


@given(before=segments(), after=segments())
def test_the_difference_turns_one_checkpoint_into_the_other(before, after):
    todo = difference(
        Checkpoint(etag=None, size=30, segments=before),
        Checkpoint(etag=None, size=30, segments=after),
    )
    there = {segment.start: segment for segment in before if segment.start not in todo.gone}
    assert {segment.start for segment in todo.changed} <= {*there}
    assert not {segment.start for segment in todo.added} & {segment.start for segment in before}
    there |= {segment.start: segment for segment in (*todo.changed, *todo.added)}
    assert tuple(there[start] for start in sorted(there)) == after


@given(same=segments())
def test_nothing_differs_between_equals(same):
    checkpoint = Checkpoint(etag=None, size=30, segments=same)
    todo = difference(checkpoint, checkpoint)
    assert (todo.gone, todo.changed, todo.added) == ([], [], [])


WHATEVER = st.integers(-1, 12) | st.just(True) | st.just(3.0) | st.none() | st.just("3")


@given(
    size=WHATEVER,
    rows=st.lists(st.tuples(st.integers(-1, 12), st.integers(-1, 12), WHATEVER), max_size=3),
)
def test_a_checkpoint_is_sound_if_every_number_is_one_and_in_its_place(size, rows):
    parts = tuple(Segment(start=start, stop=stop, watermark=mark) for start, stop, mark in rows)
    numbers = [size, *(number for row in rows for number in row)]
    expected = (
        all(type(number) is int and number >= 0 for number in numbers)
        and all(start <= stop <= size and mark <= stop - start for start, stop, mark in rows)
        and all(one[1] <= other[0] and one[0] < other[0] for one, other in pairwise(rows))
    )
    assert is_sound(Checkpoint(etag=None, size=size, segments=parts)) is expected
