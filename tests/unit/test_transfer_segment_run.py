"""A segment that another worker helps with: what is cut off, and what never is."""

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.transfer import segment_run
from downloader.transfer.plan import ALIGNMENT
from downloader.transfer.segment_run import SegmentRun
from state.records import Segment

MIB = ALIGNMENT


def run_of(start, stop, position=None):
    run = SegmentRun(Segment(start=start, stop=stop))
    run.position = start if position is None else position
    return run


def test_the_later_half_of_what_is_left_is_cut_off():
    run = run_of(0, 64 * MIB)
    run.claim(4 * MIB)
    rest = run.cut()
    assert (run.stop, rest.start, rest.stop) == (34 * MIB, 34 * MIB, 64 * MIB)


def test_what_is_claimed_stays():
    run = run_of(0, 4 * MIB)
    assert run.claim(4 * MIB) == 4 * MIB
    assert run.cut() is None


def test_who_claims_more_than_there_is_gets_what_there_is():
    run = run_of(0, 10 * MIB)
    rest = run.cut()
    assert run.claim(10 * MIB) == rest.start


def test_all_that_is_not_claimed_can_be_let_go():
    run = run_of(0, 64 * MIB)
    run.claim(4 * MIB - 7)
    rest = run.let_go()
    assert (run.stop, rest.start, rest.stop) == (4 * MIB, 4 * MIB, 64 * MIB)
    assert run.let_go() is None


def test_a_segment_that_nobody_has_begun_is_never_made_empty():
    """It keeps as much as is worth a request; who fills it may be waiting for the answer."""
    run = run_of(0, 64 * MIB)
    rest = run.let_go()
    assert (run.stop, rest.start, rest.stop) == (MIB, MIB, 64 * MIB)
    assert run_of(0, 2 * MIB - 1).let_go() is None


def test_a_small_rest_is_not_worth_a_request():
    assert run_of(0, MIB + 1).cut() is None


@given(
    start=st.integers(0, 10 * MIB),
    length=st.integers(1, 40 * MIB),
    claimed=st.integers(0, 40 * MIB),
)
def test_the_two_are_what_the_one_was(start, length, claimed):
    run = run_of(start, start + length)
    claimed = run.claim(start + claimed)
    can_be_cut = run.can_be_cut
    rest = run.cut()
    assert can_be_cut == (rest is not None)
    if rest is None:
        assert run.stop == start + length
    else:
        assert claimed < run.stop == rest.start
        assert rest.stop == start + length
        assert rest.start % ALIGNMENT == 0
        assert rest.stop - rest.start >= ALIGNMENT


def test_nobody_gets_what_another_one_has():
    """A thread claims while others cut: each byte is one's own."""
    run, mine = run_of(0, 4096 * MIB), []
    begun = threading.Barrier(2)

    def pour():
        begun.wait()
        position = 0
        while (upto := run.claim(position + 65536)) > position:
            mine.append((position, upto))
            position = upto

    thread = threading.Thread(target=pour)
    thread.start()
    begun.wait()
    rests = [run.cut() for _ in range(12)]
    thread.join()
    theirs = [(rest.start, rest.stop) for rest in rests if rest is not None]
    spans = sorted(mine + theirs)
    assert spans[0][0] == 0
    assert spans[-1][1] == 4096 * MIB
    assert all(before[1] == after[0] for before, after in pairwise(spans))


class TestHowLongItWillTake:
    @pytest.fixture
    def clock(self, monkeypatch):
        class Clock:
            now = 50.0

            def monotonic(self):
                return self.now

        clock = Clock()
        monkeypatch.setattr(segment_run, "time", clock)
        return clock

    def test_at_the_pace_so_far(self, clock):
        run = run_of(0, 100)
        run.begin()
        clock.now += 2
        run.position = 20
        assert run.seconds_left == 8

    def test_no_time_while_an_answer_may_yet_come(self, clock):
        run = run_of(0, 100)
        run.begin()
        clock.now += 0.5
        assert run.seconds_left == 0

    def test_for_ever_when_nothing_comes(self, clock):
        run = run_of(0, 100)
        run.begin()
        clock.now += 1.5
        assert run.seconds_left == float("inf")
