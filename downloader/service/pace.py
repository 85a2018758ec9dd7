"""When to ask for a task again: often while tasks of this account tend to end, else seldom.

One call is worth so many seconds of delay, c. Where tasks end at the rate h(t), calls and delays
together cost least with sqrt(h / 2c) calls a second (J. B. Keller, "Optimum checking schedules for
systems subject to random failure", Management Science 21, 1974). Tasks of the past tell what h is.
Where they tell nothing it is 1/t, which favours no duration; in each bin of durations it is a
multiple of that. Calls then lie evenly over the square root of the time, bin by bin, and the next
one is found in short tables.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from random import uniform

from downloader.errors import InvalidSettings

__all__ = ["KEPT", "Pace"]

SECONDS_PER_CALL = 20.0  # with nothing learned, about as many calls as pauses that double
KEPT = 256  # samples; older ones are forgotten
PSEUDO_COUNT = 0.5  # how many tasks the prior counts for, in each bin
EMPTY_RATIO = 1.5  # a stretch that is longer and has no samples is a bin of its own
NARROWEST = 1.01  # the end of a bin by its start, at the least
JITTER = 0.2  # tasks that were added together are not asked for together
SHORTEST, LONGEST = 1.0, 1e9  # seconds; what is beyond counts as this


class Pace:
    """Learns how long tasks take, and says when to ask for one again; does no I/O."""

    def __init__(
        self,
        *,
        interval: float,
        max_interval: float,
        seconds_per_call: float = SECONDS_PER_CALL,
        random: Callable[[float, float], float] = uniform,
    ) -> None:
        if not 0 < seconds_per_call < math.inf:
            raise InvalidSettings("seconds_per_call must be a number of seconds above 0")
        self._interval = min(interval, max_interval)
        self._max_interval = max_interval
        self._seconds_per_call = seconds_per_call
        self._random = random
        self._samples: deque[float] = deque(maxlen=KEPT)
        self._plan: _Plan | None = None

    def learn(self, seconds: float) -> None:
        """Remember how long a task took from being added to SUCCESS; nonsense is ignored.

        That is the middle between the last poll that did not find it ready and the one that did.
        """
        if seconds >= 0:  # NaN is not
            self._samples.append(min(seconds, LONGEST))
            self._plan = None

    def pause(self, elapsed: float) -> float:
        """Return the seconds until the next poll of a task that was not ready after `elapsed`.

        They lie between `interval` and `max_interval`, whatever was learned, and are jittered.
        """
        if self._plan is None:
            first = min(max(self._interval, SHORTEST), LONGEST)  # nobody asks before it
            self._plan = _plan(self._samples, first, self._seconds_per_call)
        now = min(max(0.0, elapsed), LONGEST)  # in this order NaN is 0
        best = self._within_limits(self._plan.next_call(now) - now)
        jittered = self._random(
            self._within_limits(best * (1 - JITTER)), self._within_limits(best * (1 + JITTER))
        )
        return self._within_limits(jittered)

    def _within_limits(self, seconds: float) -> float:
        return min(max(seconds, self._interval), self._max_interval)


class _Plan:
    """When to ask for a task that is never ready; the last bin has no end."""

    def __init__(
        self, starts: list[float], levels: list[float], first: float, seconds_per_call: float
    ) -> None:
        self._starts = starts  # of the bins, in seconds
        self._levels = levels  # how many times as often as by the prior tasks end in each
        self._first = first
        self._seconds_per_call = seconds_per_call
        bins = list(enumerate(starts[1:]))
        # What there is by the start of each bin: calls, and the integral of the rate of ends.
        self._calls = list(accumulate((self._calls_in(*one) for one in bins), initial=0.0))
        self._ends = list(accumulate((self._ends_in(*one) for one in bins), initial=0.0))

    def next_call(self, now: float) -> float:
        """Return the time by which there is one call more, or an earlier one that pays."""
        here = bisect_right(self._starts, now) - 1
        calls = 1 + self._calls[here] + self._calls_in(here, now)
        there = bisect_left(self._calls, calls, lo=here + 1) - 1
        roots = (calls - self._calls[there]) / self._density(there)
        due = (math.sqrt(self._starts[there]) + roots) ** 2
        ends = self._ends[here] + self._ends_in(here, now)
        # Keller's rule is for a rate that changes slowly; where it falls, an earlier call may pay.
        gains = [
            (self._gain(self._ends[index] - ends, due - self._starts[index]), self._starts[index])
            for index in range(here + 1, there + 1)
        ]
        gain, earlier = max(gains, default=(0.0, due))
        return earlier if gain > 0 else due

    def _gain(self, ends: float, sooner: float) -> float:
        """Return the delay that an earlier call saves, less what it costs where it is in vain."""
        in_vain = math.exp(-ends)
        return (1 - in_vain) * sooner - in_vain * self._seconds_per_call

    def _calls_in(self, index: int, stop: float) -> float:
        return self._density(index) * (math.sqrt(stop) - math.sqrt(self._starts[index]))

    def _density(self, index: int) -> float:
        """Return the calls for each root of a second: sqrt(level / t / 2c), integrated over t."""
        return math.sqrt(2 * self._levels[index] / self._seconds_per_call)

    def _ends_in(self, index: int, stop: float) -> float:
        start = max(self._starts[index], self._first)
        return self._levels[index] * math.log(max(stop, self._first) / start)


def _plan(samples: Iterable[float], first: float, seconds_per_call: float) -> _Plan:
    """Say how many calls each bin is worth; without samples there is one bin, by the prior."""
    ordered = sorted(max(sample, first) for sample in samples)
    edges = _edges(ordered, first) if ordered else [first]
    return _Plan([0.0, *edges[1:]], [*_levels(ordered, edges), 1.0], first, seconds_per_call)


def _edges(ordered: Sequence[float], first: float) -> list[float]:
    """Return where bins begin and end; each has about the root of the number of samples."""
    slack = 1.01 + 0.1 / math.sqrt(len(ordered))  # few samples do not tell where tasks end
    edges = [ordered[0] / slack, *ordered[:: math.isqrt(len(ordered))], ordered[-1] * slack]
    for before, after in pairwise(ordered):
        if after > before * EMPTY_RATIO:
            edges += [before * slack, after / slack]
    kept = [first]
    for edge in sorted(edges):
        if edge > kept[-1] * NARROWEST:
            kept.append(edge)
    return kept


def _levels(ordered: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Return how many times as often as by the prior tasks end within each bin.

    Ends are counted as of a Poisson process whose rate has a gamma prior with the mean 1.
    """
    logs = [math.log(sample) for sample in ordered]
    levels = []
    for start, stop in pairwise(edges):
        begin, end = bisect_left(ordered, start), bisect_left(ordered, stop)
        # How many ends the prior expects: the integral of 1/t over all tasks, while they go on.
        expected = sum(logs[begin:end]) + (len(logs) - end) * math.log(stop)
        expected -= (len(logs) - begin) * math.log(start)
        levels.append((PSEUDO_COUNT + end - begin) / (PSEUDO_COUNT + max(0.0, expected)))
    return levels
