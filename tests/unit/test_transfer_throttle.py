"""The rate limit, which may change at any time, and each store's wish to be left alone."""

import asyncio
import threading

import pytest

from downloader.retry import without_waiting
from downloader.transfer import throttle
from downloader.transfer.throttle import RateLimit, SlowDown

MIB = 1024 * 1024
STORE, OTHER = "a.example:443", "b.example:443"


@pytest.mark.parametrize(
    ("rate", "portion"), [(None, MIB), (10**9, MIB), (MIB, MIB // 10), (5, 1), (1, 1)]
)
def test_nobody_takes_more_at_once_than_a_tenth_of_a_second_brings(rate, portion):
    """Whoever waits for the limit holds bytes that a crash would take."""
    assert RateLimit(rate).portion == portion


class Line:
    """A limit, and a clock that only its own pauses put forward."""

    def __init__(self, rate):
        self.now = 1000.0
        self.pauses = []
        self.during = lambda: None
        self.limit = RateLimit(rate, clock=lambda: self.now, sleep=self.sleep, wait=self.wait)

    async def sleep(self, seconds):
        self.wait(None, seconds)

    def wait(self, _, seconds):
        self.pauses.append(seconds)
        self.now += seconds
        self.during()

    async def takes(self, count):
        """Return how long it took."""
        began = self.now
        await self.limit.take(count)
        return self.now - began

    def holds(self, count):
        began = self.now
        self.limit.hold(count, threading.Event())
        return self.now - began


async def test_silence_is_made_up_for_by_a_moment_only():
    """An idle hour must not become an hour's burst."""
    line = Line(100)
    assert await line.takes(5) == 0
    assert await line.takes(100) == pytest.approx(1.0)
    line.now += 3600
    assert await line.takes(100) == pytest.approx(1.0 - throttle.BURST_SECONDS)


async def test_what_others_have_taken_is_waited_for_as_well():
    line = Line(100)
    line.limit._reserve(100)
    assert await line.takes(100) == pytest.approx(2.0 - throttle.BURST_SECONDS)


@pytest.mark.parametrize("way", ["takes", "holds"])
@pytest.mark.parametrize("other", [None, 10**9])
async def test_whoever_waits_under_a_limit_that_is_lifted_waits_no_longer(way, other):
    """He would wait for minutes, for all who came before him."""
    line = Line(1)
    for _ in range(300):
        line.limit._reserve(1)
    line.during = lambda: line.limit.change(other)
    waited = getattr(line, way)(1)
    waited = await waited if way == "takes" else waited
    assert waited <= throttle.LOOK_SECONDS + 1e-6
    assert await line.takes(1) == pytest.approx(0, abs=1e-6)
    assert line.limit.bytes_per_second == other


async def test_a_limit_that_is_set_holds_for_the_next_bytes():
    line = Line(None)
    assert await line.takes(100 * MIB) == 0
    line.limit.change(MIB)
    assert line.limit.portion == MIB // 10
    first = await line.takes(MIB // 10)
    assert first + await line.takes(MIB // 10) == pytest.approx(0.15, abs=1e-5)


async def test_what_was_asked_for_under_no_limit_is_not_paid_for_in_full():
    """A piece of 1 MiB that comes just then would be 17 minutes at 1 KiB/s."""
    line = Line(None)
    line.limit.change(1024)
    assert await line.takes(MIB) <= throttle.MAX_PORTION_SECONDS + 1e-6


async def test_whoever_is_stopped_waits_no_longer():
    line = Line(1)
    stopping = threading.Event()
    line.during = stopping.set
    line.limit._reserve(1000)
    line.limit.hold(1, stopping)
    assert len(line.pauses) == 1


async def test_a_limit_is_changed_while_threads_wait_for_it():
    limit, waiting = RateLimit(1), threading.Barrier(5)
    for _ in range(1000):
        limit._reserve(1)

    def hold():
        waiting.wait()
        limit.hold(1, threading.Event())

    jobs = [asyncio.ensure_future(asyncio.to_thread(hold)) for _ in range(4)]
    await asyncio.to_thread(waiting.wait)
    limit.change(None)
    await asyncio.gather(*jobs)


# A store that wants to be left alone.


class Asked:
    def __init__(self):
        self.now, self.heard = 50.0, 0
        self.slow_down = SlowDown(heard=self.hear, clock=lambda: self.now)

    def hear(self):
        self.heard += 1


async def test_another_store_is_not_concerned():
    there = Asked()
    there.slow_down.ask(STORE, 3600)
    assert there.slow_down.is_asked(STORE)
    assert not there.slow_down.is_asked(OTHER)
    await there.slow_down.wait(OTHER)
    assert there.heard == 1


async def test_it_is_over_by_the_clock():
    there = Asked()
    there.slow_down.ask(STORE, 10)
    there.slow_down.ask(STORE, 5)  # which is no more than what was asked for
    there.now += 9.9
    assert there.slow_down.is_asked(STORE)
    there.now += 0.2
    assert not there.slow_down.is_asked(STORE)


async def test_whoever_waits_hears_of_a_longer_pause(monkeypatch):
    there, pauses = Asked(), []

    async def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 1:
            there.slow_down.ask(STORE, 30)
        there.now += seconds

    monkeypatch.setattr(throttle, "pause", pause)
    there.slow_down.ask(STORE, 10)
    await there.slow_down.wait(STORE)
    assert pauses == [10, 20]


async def test_once_it_was_waited_for_it_is_over():
    """Also where pauses take no time, as in tests: or they would go round and round."""
    there = Asked()
    there.slow_down.ask(STORE, 10)
    with without_waiting():
        await asyncio.gather(*(there.slow_down.wait(STORE) for _ in range(3)))
    assert not there.slow_down.is_asked(STORE)
