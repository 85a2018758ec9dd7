"""Calls take turns: at an even pace, in order, and nobody calls while the platform wants rest."""

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.api import AsyncPrivateAPI, Turns
from downloader.errors import InvalidSettings, PlatformUnavailable
from downloader.retry import without_waiting
from downloader.sandbox import PlatformFault, Sandbox


class Time:
    """Passes only when it is told to."""

    def __init__(self):
        self.now = 1000.0
        self._sleepers = []
        self._number = itertools.count()

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        woken = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._number), woken))
        await woken

    async def passes(self, seconds):
        end = self.now + seconds
        await let_others_run()
        while self._sleepers and self._sleepers[0][0] <= end:
            self.now, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
            await let_others_run()
        self.now = end


class Hasty(Time):
    """Passes by itself as soon as anybody waits for it."""

    async def sleep(self, seconds):
        self.now += seconds


async def let_others_run():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def passing():
    return Time()


class Callers:
    """Some who wait for a turn, in the order of their numbers."""

    def __init__(self, passing, turns):
        self.passing = passing
        self.turns = turns
        self.called = []  # (number, seconds after the beginning)
        self.tasks = []
        self.began = passing.now

    async def come(self, count=1):
        for _ in range(count):
            self.tasks.append(asyncio.create_task(self._call(len(self.tasks))))
        await let_others_run()

    async def _call(self, number):
        await self.turns.take()
        self.called.append((number, round(self.passing.now - self.began, 6)))

    @property
    def numbers(self):
        return [number for number, _ in self.called]

    @property
    def times(self):
        return [at for _, at in self.called]


@pytest.fixture
def made(passing):
    """Make turns and their callers."""

    def make(calls_per_second):
        turns = Turns(calls_per_second, clock=passing.clock, sleep=passing.sleep)
        return turns, Callers(passing, turns)

    return make


async def test_turns_are_evenly_paced_and_in_order_after_a_small_burst(made, passing):
    _, callers = made(2)
    await callers.come(6)
    await passing.passes(10)
    assert callers.called == [(0, 0), (1, 0), (2, 0.5), (3, 1), (4, 1.5), (5, 2)]


async def test_fewer_than_one_call_a_second_have_no_burst(made, passing):
    _, callers = made(0.1)
    await passing.passes(1000)
    await callers.come(3)
    await passing.passes(100)
    assert callers.times == [1000, 1010, 1020]


async def test_silence_is_made_up_for_by_no_more_than_a_second(made, passing):
    _, callers = made(3)
    await callers.come(3)
    await passing.passes(500)
    await callers.come(5)
    await passing.passes(10)
    assert callers.times[:6] == [0, 0, 0, 500, 500, 500]
    assert callers.times[6:] == pytest.approx([500 + 1 / 3, 500 + 2 / 3], abs=1e-5)


@pytest.mark.parametrize("gone", [[1], [2], [1, 2, 4], [5]])
async def test_who_is_cancelled_leaves_the_turn_to_the_next(made, passing, gone):
    _, callers = made(1)
    await callers.come(6)
    for number in gone:
        callers.tasks[number].cancel()
    await let_others_run()
    unfinished = [task for task in callers.tasks if not task.done()]
    assert len(asyncio.all_tasks()) <= len(unfinished) + 2  # this test, and one who sleeps
    await passing.passes(10)
    stayed = [number for number in range(6) if number not in gone]
    assert callers.called == list(zip(stayed, range(6), strict=False))


async def test_a_rest_holds_for_everybody_and_no_burst_follows(made, passing):
    turns, callers = made(2)
    turns.rest(60)
    await callers.come(3)
    turns.rest(5)  # a shorter wish of another call does not end the longer one
    await passing.passes(100)
    assert callers.times == [60, 60.5, 61]


async def test_who_waits_already_rests_too(made, passing):
    turns, callers = made(1)
    await callers.come(3)
    await passing.passes(0.5)
    turns.rest(60)
    await passing.passes(100)
    assert callers.times == [0, 60.5, 61.5]


async def test_a_short_rest_brings_no_turn_forward(made, passing):
    turns, callers = made(0.1)
    await callers.come()
    turns.rest(0.5)
    await callers.come()
    await passing.passes(100)
    assert callers.times == [0, 10]


@pytest.mark.parametrize("seconds", [1e9, float("inf")])
async def test_a_rest_lasts_an_hour_at_the_most(made, passing, seconds):
    turns, callers = made(1)
    turns.rest(seconds)
    await callers.come()
    await passing.passes(7200)
    assert callers.times == [3600]


@pytest.mark.parametrize("seconds", [0, -5, float("nan"), float("-inf")])
async def test_no_rest_is_no_rest(made, passing, seconds):
    turns, callers = made(3)
    await passing.passes(7)
    turns.rest(seconds)
    await callers.come(3)
    assert callers.times == [7, 7, 7]


async def test_a_faster_rate_holds_for_who_waits_already(made, passing):
    turns, callers = made(0.01)
    await callers.come(4)
    await passing.passes(50)
    turns.change(2)
    await passing.passes(10)
    assert callers.times == [0, 50.25, 50.75, 51.25]  # half of the turn had passed
    assert turns.calls_per_second == 2


async def test_a_slower_rate_holds_for_who_waits_already(made, passing):
    turns, callers = made(1)
    await callers.come(3)
    await passing.passes(0.5)
    turns.change(0.1)
    await passing.passes(100)
    assert callers.times == [0, 5.5, 15.5]


async def test_a_change_ends_no_rest(made, passing):
    turns, callers = made(1)
    turns.rest(60)
    await callers.come(3)
    await passing.passes(10)
    turns.change(10)
    await passing.passes(100)
    assert callers.times == [60, 60.1, 60.2]


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_told_at_once(rate):
    with pytest.raises(InvalidSettings, match="calls_per_second"):
        Turns(rate)
    with pytest.raises(InvalidSettings, match="calls_per_second"):
        Turns(1).change(rate)


async def test_the_wait_is_known_before_one_comes(made, passing):
    turns, callers = made(0.5)
    assert turns.wait_seconds == 0
    await callers.come(3)
    assert turns.wait_seconds == 6
    turns.rest(60)
    assert turns.wait_seconds == 64
    await passing.passes(61)
    assert turns.wait_seconds == 3
    await callers.come()
    await passing.passes(30)
    assert callers.times == [0, 60, 62, 64]
    assert turns.wait_seconds == 0


async def test_a_sleep_that_fails_is_told_and_the_next_has_the_turn(passing):
    sleeps = iter([OSError("no timer")])

    async def sleep(seconds):
        for error in sleeps:
            raise error
        passing.now += seconds

    turns = Turns(1, clock=passing.clock, sleep=sleep)
    await turns.take()
    with pytest.raises(OSError, match="no timer"):
        await turns.take()
    await turns.take()
    assert passing.now == 1001


async def test_under_the_switch_for_tests_nobody_waits():
    turns = Turns(0.001)
    turns.rest(3000)
    with without_waiting():
        for _ in range(3):
            await turns.take()


@given(
    rate=st.floats(0.01, 50),
    steps=st.lists(
        st.sampled_from(["come", "pass", "rest", "cancel", "faster", "slower"]), max_size=20
    ),
)
def test_whatever_happens_nobody_is_forgotten_and_the_rate_is_kept(rate, steps):
    """More than a burst and the fastest rate allow never come within any window."""

    async def scene():
        passing, fastest, current = Time(), rate, rate
        turns = Turns(rate, clock=passing.clock, sleep=passing.sleep)
        callers, cancelled, rested = Callers(passing, turns), set(), 0.0
        for step in steps:
            if step == "come":
                await callers.come(3)
            elif step == "pass":
                await passing.passes(0.7 / current)
            elif step == "rest":
                turns.rest(2 / current)
                rested = max(rested, 2 / current)
            elif step == "cancel" and callers.tasks:
                callers.tasks[-1].cancel()
                cancelled.add(len(callers.tasks) - 1)
            elif step in ("faster", "slower"):
                current *= 2 if step == "faster" else 0.5
                fastest = max(fastest, current)
                turns.change(current)
        await passing.passes(rested + 100 / current)
        assert set(callers.numbers) | cancelled == set(range(len(callers.tasks)))
        assert callers.numbers == sorted(callers.numbers)
        for first, last in itertools.combinations(range(len(callers.times)), 2):
            window = callers.times[last] - callers.times[first]
            assert last - first + 1 <= max(1, fastest) + window * fastest + 0.01

    asyncio.run(scene())


# What a client makes of them, over real sockets.


def client(sandbox, turns, **options):
    return AsyncPrivateAPI(
        sandbox.app_key, sandbox.app_secret, sandbox.endpoint, turns=turns, **options
    )


@pytest.fixture
def hasty():
    return Hasty()


def turns_of(hasty, rate=1.0):
    return Turns(rate, clock=hasty.clock, sleep=hasty.sleep)


async def test_all_tasks_that_share_a_client_share_its_turns(hasty):
    async with Sandbox() as sandbox, client(sandbox, turns_of(hasty, 0.5)) as api:
        await asyncio.gather(*(api.question_size(f"u{number}") for number in range(5)))
        assert len(sandbox.platform.calls) == 5
    assert hasty.now == 1008


async def test_without_turns_nobody_waits():
    async with Sandbox() as sandbox, client(sandbox, None) as api:
        await asyncio.gather(*(api.question_size(f"u{number}") for number in range(50)))
        assert len(sandbox.platform.calls) == 50


async def test_every_attempt_takes_a_turn(hasty):
    async with Sandbox() as sandbox, client(sandbox, turns_of(hasty)) as api:
        sandbox.platform.inject(PlatformFault.STATUS, times=3)
        with without_waiting():
            await api.question_size("u")
    assert hasty.now == 1003


async def test_a_call_that_is_signed_anew_for_the_clock_takes_another_turn(hasty):
    ahead = timedelta(hours=8)
    async with Sandbox(clock=lambda: datetime.now(UTC) + ahead) as sandbox:
        async with client(sandbox, turns_of(hasty)) as api:
            await api.question_size("u")
        assert len(sandbox.platform.refused) == 1
    assert hasty.now == 1001


@pytest.mark.parametrize(("wish", "seconds"), [(120, 120), (10**6, 3600)])
async def test_a_retry_after_of_one_call_is_a_rest_for_all_clients(hasty, wish, seconds):
    turns = turns_of(hasty)
    async with (
        Sandbox() as sandbox,
        client(sandbox, turns, max_retries=0) as first,
        client(sandbox, turns) as second,
    ):
        sandbox.platform.inject(PlatformFault.RATE_LIMIT, retry_after=wish)
        with pytest.raises(PlatformUnavailable):
            await first.question_size("u")
        assert turns.wait_seconds == seconds
        await second.question_size("u")
    assert hasty.now == 1000 + seconds


async def test_a_fault_without_a_wish_is_no_rest(hasty):
    turns = turns_of(hasty, 3)
    async with Sandbox() as sandbox, client(sandbox, turns, max_retries=0) as api:
        sandbox.platform.inject(PlatformFault.STATUS, status=503)
        with pytest.raises(PlatformUnavailable):
            await api.question_size("u")
    assert turns.wait_seconds == 0


async def test_waiting_for_a_turn_counts_neither_into_the_timeout_nor_the_time_stamp(monkeypatch):
    """An hour in the queue, and then there is the whole time-out, and a fresh time stamp."""
    hours = 0
    loop = asyncio.get_running_loop()

    async def sleep(_seconds):
        nonlocal hours
        hours += 1

    def now():
        return datetime.now(UTC) + timedelta(hours=hours)

    monkeypatch.setattr(loop, "time", lambda: time.monotonic() + hours * 3600)
    turns = Turns(1 / 3600, clock=loop.time, sleep=sleep)
    async with Sandbox(clock=now) as sandbox:
        api = client(sandbox, turns, max_retries=0, timeout=60)
        stamp = "%Y-%m-%dT%H:%M:%SZ"
        monkeypatch.setattr(api._transport.clock, "timestamp", lambda: now().strftime(stamp))
        await api.question_size("u")
        await api.question_size("u")
        await api.close()
        assert sandbox.platform.refused == []
    assert hours == 1


async def test_who_is_cancelled_in_the_queue_sends_nothing(passing):
    turns = Turns(1, clock=passing.clock, sleep=passing.sleep)
    async with Sandbox() as sandbox, client(sandbox, turns) as api:
        await api.question_size("u")
        call = asyncio.create_task(api.question_size("u"))
        await let_others_run()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert len(sandbox.platform.calls) == 1
    assert turns.wait_seconds == 1
