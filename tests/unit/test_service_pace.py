"""A pace learns how long tasks take: fewer calls, sooner noticed, and sane whatever it learns."""

import itertools
import math
import random

import pytest
from bench.polling import Doubling, Fixed, Learned, measured, ten_minutes
from hypothesis import example, given
from hypothesis import strategies as st

from downloader.errors import InvalidSettings
from downloader.service.pace import KEPT, Pace

WITHOUT_JITTER = {"random": lambda low, high: (low + high) / 2}
WIDE = {"interval": 1.0, "max_interval": 1e9}
durations = st.floats(allow_nan=True, allow_infinity=True)


def taught(samples, *, interval=5.0, max_interval=300.0, **options):
    pace = Pace(interval=interval, max_interval=max_interval, **(WITHOUT_JITTER | options))
    for seconds in samples:
        pace.learn(seconds)
    return pace


def polls(pace, *, until):
    """Return when a task is asked for that is not ready until then, and the first time after."""
    times = [0.0]
    while times[-1] < until:
        times.append(times[-1] + pace.pause(times[-1]))
    return times


def mean_cost(pace, tasks, *, call=20.0):
    """Return what is spent on a task, in seconds of delay, when a call is worth so many."""
    costs = []
    for seconds in tasks:
        times = polls(pace, until=seconds)
        costs.append(call * len(times) + times[-1] - seconds)
    return sum(costs) / len(costs)


def normal(middle, spread, count=200, seed=1):
    chance = random.Random(seed)
    return [chance.gauss(middle, spread) for _ in range(count)]


@given(
    samples=st.lists(durations, max_size=40),
    elapsed=durations,
    interval=st.floats(0, 1e4),
    longer=st.floats(0, 1e9),
    seconds_per_call=st.floats(1e-3, 1e6),
)
@example(samples=[0.0] * 40, elapsed=0.0, interval=5.0, longer=295.0, seconds_per_call=20.0)
@example(samples=[600.0] * 40, elapsed=600.0, interval=0.0, longer=300.0, seconds_per_call=20.0)
@example(samples=[1e300], elapsed=1e300, interval=5.0, longer=0.0, seconds_per_call=20.0)
@example(samples=[5e-324, 1e9], elapsed=-1.0, interval=5.0, longer=1e9, seconds_per_call=1e-3)
def test_a_pause_is_always_between_its_limits(samples, elapsed, interval, longer, seconds_per_call):
    pace = taught(
        samples,
        interval=interval,
        max_interval=interval + longer,
        seconds_per_call=seconds_per_call,
        random=random.uniform,
    )
    assert interval <= pace.pause(elapsed) <= interval + longer


def test_without_samples_the_pauses_grow_up_to_the_longest():
    pace = taught([])
    pauses = [after - before for before, after in itertools.pairwise(polls(pace, until=86400))]
    assert 5 <= pauses[0] <= 15
    assert pauses == pytest.approx(sorted(pauses))
    assert pauses[-1] == pytest.approx(270)  # the longest, and its jitter goes down only


@pytest.mark.parametrize(("until", "doubling"), [(60, 5), (600, 9), (3600, 22)])
def test_without_samples_it_asks_about_as_often_as_pauses_that_double(until, doubling):
    assert len(polls(taught([]), until=until)) == pytest.approx(doubling, abs=3)


def test_pauses_are_jittered_but_never_beyond_their_limits():
    pace = taught([], random=random.Random(1).uniform)
    for elapsed, low, high in [(0, 8, 12), (600, 132, 198), (86400, 240, 300)]:
        seen = {pace.pause(elapsed) for _ in range(200)}
        assert len(seen) > 100
        assert low <= min(seen) <= max(seen) <= high


def test_the_first_pause_is_never_under_the_interval():
    pace = taught([0.0] * 100, random=random.Random(1).uniform)
    assert all(5 <= pace.pause(0) <= 6 for _ in range(100))


def test_nobody_asks_while_no_task_has_ever_ended():
    times = polls(taught(normal(3600, 60), **WIDE), until=3600)
    assert len([at for at in times if 0 < at < 3300]) <= 1


def test_around_the_usual_end_it_asks_often():
    pace = taught(normal(3600, 60), **WIDE)
    assert pace.pause(3600) < 60
    assert taught([], **WIDE).pause(3600) > 300


def test_two_kinds_of_tasks_are_both_expected():
    """What ends after 2 min or 2 h is not asked for between them."""
    samples = normal(120, 10, 100) + normal(7200, 300, 100, seed=2)
    times = polls(taught(samples, **WIDE), until=7200)
    early, between, late = (
        sum(start <= at < stop for at in times)
        for start, stop in [(80, 170), (300, 6000), (6000, 8000)]
    )
    assert early >= 1
    assert between <= 2
    assert late >= 4


@pytest.mark.parametrize(
    "tasks",
    [
        normal(600, 60),
        normal(600, 1),
        normal(10_800, 120),
        normal(20, 4),
        [600.0] * 100,
        normal(120, 12, 100) + normal(7200, 700, 100),
        [math.exp(log) for log in normal(math.log(1200), 0.6)],
    ],
)
@pytest.mark.parametrize("known", [1, 3, 30, 200])
@pytest.mark.thorough
def test_what_was_learned_costs_less_than_nothing_learned(tasks, known):
    """Even one task tells more than it misleads, whichever it is, on the average."""
    shuffled = random.Random(3).sample(tasks, len(tasks))
    trials = [shuffled[start : start + known] for start in range(0, min(60, len(tasks)), 10)]
    learned = [mean_cost(taught(samples), shuffled) for samples in trials]
    assert sum(learned) / len(learned) < mean_cost(taught([]), shuffled)


def test_a_task_far_beyond_the_longest_is_asked_for_as_if_nothing_were_known():
    usual = taught(normal(600, 60), **WIDE)
    assert usual.pause(86400) == pytest.approx(taught([], **WIDE).pause(86400))


def test_where_all_tasks_of_a_kind_end_at_once_it_asks_when_they_have():
    """One call right behind them, not one that comes by because its time is due."""
    samples = normal(120, 3, 100) + normal(7200, 300, 100, seed=2)
    early = next(at for at in polls(taught(samples, **WIDE), until=7200) if at > 0)
    assert 120 < early < 150


def test_one_outlier_changes_little():
    tasks = normal(600, 60)
    without = mean_cost(taught(tasks), tasks)
    assert mean_cost(taught([*tasks, 1e8, 0.0]), tasks) < 1.1 * without


def test_when_tasks_become_slower_it_is_no_worse_than_before_it_had_learned():
    """Yesterday ten minutes, today an hour: few calls are spent on yesterday's end."""
    today = normal(3600, 300)
    drifted = taught(normal(600, 60))
    unlearned = mean_cost(taught([]), today)
    assert mean_cost(drifted, today) < 1.1 * unlearned
    for seconds in today[:10]:
        drifted.learn(seconds)
    assert mean_cost(drifted, today) < 0.9 * unlearned


def test_what_is_long_past_is_forgotten():
    renewed = taught([*normal(600, 60), *normal(3600, 60, KEPT)])
    fresh = taught(normal(3600, 60, KEPT))
    assert [renewed.pause(at) for at in range(0, 5000, 50)] == [
        fresh.pause(at) for at in range(0, 5000, 50)
    ]


@pytest.mark.parametrize("nonsense", [math.nan, -1.0, -math.inf])
def test_what_is_no_duration_is_not_learned(nonsense):
    assert taught([nonsense] * 100).pause(600) == taught([]).pause(600)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_a_call_that_costs_nothing_is_told_at_once(seconds):
    with pytest.raises(InvalidSettings, match="seconds_per_call"):
        taught([], seconds_per_call=seconds)


def test_the_dearer_a_call_the_fewer_are_made():
    counts = [
        len(polls(taught(normal(600, 60), seconds_per_call=seconds), until=700))
        for seconds in (1, 20, 400)
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 3 * counts[2]


@pytest.mark.thorough
async def test_on_a_ten_minute_account_it_needs_fewer_calls_than_what_is_no_sooner():
    """The simulation of docs/polling.md, small: counts on a clock that is played."""
    chance = random.Random(11)
    earlier, tasks = ([ten_minutes(chance) for _ in range(40)] for _ in range(2))
    learned = await measured(Learned("learned", random.Random(5)), tasks, earlier=earlier)
    fixed = await measured(Fixed(math.ceil(2.5 * learned.mean_delay)), tasks, earlier=())
    assert fixed.mean_delay >= learned.mean_delay
    assert learned.calls < 0.75 * fixed.calls
    doubling = await measured(Doubling(random.Random(5)), tasks, earlier=())
    assert learned.mean_delay < 0.75 * doubling.mean_delay
    assert learned.calls < 0.75 * doubling.calls
