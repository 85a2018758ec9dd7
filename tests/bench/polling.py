"""How soon a finished task is noticed, and for how many calls: what each way of polling costs.

`python -m tests.bench.polling` plays accounts whose tasks take differently long, with the real
client against the sandbox's platform over loopback; only the time is played, so that days pass in
seconds. The same seed gives the same table. `--write` puts it into docs/polling.md.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from downloader.api import AsyncPrivateAPI
from downloader.sandbox import Sandbox
from downloader.service.pace import Pace

SEED = 20260101
TASKS = WARM_UP = 200  # that are counted of each account, and that a pace learns from before
INTERVAL, MAX_INTERVAL, LONG_INTERVAL = 5.0, 300.0, 3600.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
DOCUMENT = Path(__file__).parents[2] / "docs" / "polling.md"
MARKS = ("<!-- results: written by `python -m tests.bench.polling --write` -->", "<!-- end -->")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Tasks as somebody submits them; `earlier` is what its tasks were like before, if not so."""

    title: str
    duration: Callable[[random.Random], float]
    earlier: Callable[[random.Random], float] | None = None


def ten_minutes(chance: random.Random) -> float:
    """Return a duration of about ten minutes."""
    return max(1.0, chance.gauss(10 * MINUTE, MINUTE))


def _lognormal(chance: random.Random) -> float:
    return chance.lognormvariate(math.log(20 * MINUTE), 0.6)


def _mixture(chance: random.Random) -> float:
    middle = 2 * MINUTE if chance.random() < 0.5 else 2 * HOUR
    return max(1.0, chance.gauss(middle, middle / 10))


def _rarely_days(chance: random.Random) -> float:
    return ten_minutes(chance) if chance.random() < 0.95 else chance.gauss(3 * DAY, 6 * HOUR)


def _one_hour(chance: random.Random) -> float:
    return chance.gauss(HOUR, 5 * MINUTE)


def _without_memory(chance: random.Random) -> float:
    return 1 + chance.expovariate(1 / (20 * MINUTE))


ACCOUNTS = (
    Account(title="10 min, give or take 1 min", duration=ten_minutes),
    Account(title="lognormal, median 20 min, one in ten over 43 min", duration=_lognormal),
    Account(title="half 2 min, half 2 h, give or take a tenth", duration=_mixture),
    Account(title="10 min, but one in 20 takes 3 days", duration=_rarely_days),
    Account(
        title="1 h, where it was 10 min until yesterday", duration=_one_hour, earlier=ten_minutes
    ),
    Account(title="exponential, mean 20 min", duration=_without_memory),
)


class Way:
    """A way of polling: how long to pause when a task was not ready."""

    title = ""
    learns = False

    def begins(self) -> None:
        """Another task was added."""

    def pause(self, elapsed: float) -> float:
        """Return the seconds until the task is asked for again."""
        raise NotImplementedError

    def learn(self, seconds: float) -> None:
        """A task took about so long."""


class Fixed(Way):
    """Asks again after the same time."""

    def __init__(self, interval: float) -> None:
        self.title = f"every {interval:g} s"
        self._interval = interval

    def pause(self, elapsed: float) -> float:
        return self._interval


class Doubling(Way):
    """The one-shot's way (`pause_seconds`): from 5 s to 300 s, a random half of each."""

    title = "doubling, 5 s to 300 s"

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def begins(self) -> None:
        self._longest = INTERVAL

    def pause(self, elapsed: float) -> float:
        longest = self._longest
        self._longest = min(MAX_INTERVAL, 2 * longest)
        return longest * self._chance.uniform(0.5, 1.0)


class Learned(Way):
    """The service's way; `learns` from the tasks that it sees, or stays as it is."""

    def __init__(
        self,
        title: str,
        chance: random.Random,
        *,
        max_interval: float = MAX_INTERVAL,
        learns: bool = True,
    ) -> None:
        self.title = title
        self.learns = learns
        self._pace = Pace(interval=INTERVAL, max_interval=max_interval, random=chance.uniform)

    def pause(self, elapsed: float) -> float:
        return self._pace.pause(elapsed)

    def learn(self, seconds: float) -> None:
        if self.learns:
            self._pace.learn(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What polling for some tasks cost."""

    tasks: int
    calls: int
    delays: list[float]  # seconds from when each was ready to when that was noticed

    @property
    def calls_per_task(self) -> float:
        """The calls for one task, the last one included."""
        return self.calls / self.tasks

    @property
    def mean_delay(self) -> float:
        """The mean of the delays."""
        return statistics.fmean(self.delays)

    @property
    def median_delay(self) -> float:
        """The delay that half of the tasks do not have."""
        return statistics.median(self.delays)

    @property
    def late_delay(self) -> float:
        """The delay that nine of ten tasks do not have."""
        return sorted(self.delays)[math.ceil(0.9 * len(self.delays)) - 1]


class Played:
    """A platform whose time is played: it goes on by what the poller would have slept."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self._sandbox = Sandbox(clock=lambda: self.now)

    async def __aenter__(self) -> Played:
        sandbox = await self._sandbox.__aenter__()
        self._api = AsyncPrivateAPI(sandbox.app_key, sandbox.app_secret, sandbox.endpoint)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._api.close()
        await self._sandbox.__aexit__()

    async def notices(self, duration: float, way: Way) -> tuple[int, float]:
        """Poll for one task that takes so long; return the calls and the delay."""
        task_id = self._sandbox.add_task(
            states=("PENDING", "SUCCESS"), seconds_per_state=duration, result=["nothing"]
        )
        way.begins()
        added_at = self.now
        before = elapsed = 0.0
        while not await self._is_ready(task_id):
            self.now += timedelta(seconds=way.pause(elapsed))
            before, elapsed = elapsed, (self.now - added_at).total_seconds()
        way.learn((before + elapsed) / 2)
        return self._sandbox.platform.polls[task_id], elapsed - duration

    async def _is_ready(self, task_id: str) -> bool:
        # The client's own correction, made before it is needed: the platform's clock is not ours.
        self._api._transport.clock.skew = self.now - datetime.now(UTC)
        return (await self._api.task_result(task_id)).status == "SUCCESS"


async def measured(way: Way, durations: Sequence[float], *, earlier: Sequence[float]) -> Outcome:
    """Poll for one task after the other; a way that learns sees the earlier ones first."""
    async with Played() as played:
        for duration in earlier if way.learns else ():
            await played.notices(duration, way)
        found = [await played.notices(duration, way) for duration in durations]
    calls, delays = zip(*found, strict=True)
    return Outcome(tasks=len(durations), calls=sum(calls), delays=list(delays))


def reckoned(interval: float, durations: Sequence[float]) -> Outcome:
    """Return what a fixed interval costs, without a call: each of them is known before."""
    pauses = [math.ceil(duration / interval) for duration in durations]
    delays = [
        count * interval - duration for count, duration in zip(pauses, durations, strict=True)
    ]
    return Outcome(tasks=len(durations), calls=sum(pauses) + len(pauses), delays=delays)


def ways(seed: int) -> list[Way]:
    """Return what is compared."""
    chance = random.Random(seed)
    return [
        Fixed(60),
        Fixed(300),
        Doubling(chance),
        Learned("pace, cold", chance, learns=False),
        Learned("pace, learned", chance),
        Learned("pace, learned, up to 1 h", chance, max_interval=LONG_INTERVAL),
    ]


async def _row(account: Account, seed: int) -> tuple[list[str], list[Outcome]]:
    chance = random.Random(seed)
    earlier = [(account.earlier or account.duration)(chance) for _ in range(WARM_UP)]
    durations = [account.duration(chance) for _ in range(TASKS)]
    titles, outcomes = ["every 5 s"], [reckoned(5, durations)]
    for way in ways(seed):
        titles.append(way.title)
        outcomes.append(await measured(way, durations, earlier=earlier))
        _progress(f"{account.title}, {way.title}: {_cell(outcomes[-1])}")
    return titles, outcomes


def _cell(outcome: Outcome) -> str:
    calls = outcome.calls_per_task
    told = f"{calls:,.0f}" if calls >= 100 else f"{calls:.1f}"
    return f"{told} · {outcome.median_delay:.0f} / {outcome.late_delay:.0f}"


async def table() -> list[str]:
    """Return the table's lines: an account in each row, a way of polling in each column."""
    lines = []
    for number, account in enumerate(ACCOUNTS):
        titles, outcomes = await _row(account, SEED + number)
        if not lines:
            lines = [f"| tasks | {' | '.join(titles)} |", "| --- " * (len(titles) + 1) + "|"]
        lines.append(f"| {account.title} | {' | '.join(map(_cell, outcomes))} |")
    return lines


def _write(lines: Sequence[str]) -> None:
    """Replace what stands between the marks of the document."""
    text = DOCUMENT.read_text()
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    DOCUMENT.write_text("\n".join([before + MARKS[0], "", *lines, "", MARKS[1] + after]))


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main() -> None:
    """Print the table, or put it into the document."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.polling", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"put it into docs/{DOCUMENT.name}")
    options = parser.parse_args()
    lines = asyncio.run(table())
    sys.stdout.write("\n".join(lines) + "\n")
    if options.write:
        _write(lines)


if __name__ == "__main__":
    main()
