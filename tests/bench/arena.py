"""One comparison: the contestants in turns, round by round, and what they took."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastcrc import crc64

from tests.bench.measure import BenchError, Sample, Spread, measured, ratios
from tests.bench.objects import BLOCK_BYTES, Objects, ObjectSet
from tests.bench.peers import OURS, STARTED, Contestant, Errand
from tests.bench.servers import LOCALHOST, OtherSide, other_side
from tests.bench.wan import Wan, Wire

Samples = dict[str, list[Sample]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, what was measured, and whether that is enough; None where there is no goal."""

    goal: str
    found: str
    is_reached: bool | None


Goal = Callable[[Samples], Verdict | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A row of the goals: who is compared in bringing what, over which way."""

    name: str
    title: str
    task: ObjectSet
    contestants: tuple[Contestant, ...]
    goals: tuple[Goal, ...] = ()
    way: str = "http"
    wan: Wan | None = None
    max_rounds: int | None = None  # of what takes minutes
    times: int = 1  # the rounds of what takes less than a second, and so is noisy
    tells_start_apart: bool = False  # also what ours took once it was loaded, as in a service
    warm_up: bool = False  # one round that does not count, where first starts would


@dataclass(slots=True)
class Result:
    """What came of a case."""

    name: str
    title: str
    samples: Samples = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Arena:
    """The place where everything happens: a directory on the disk that is measured."""

    work: Path
    rounds: int
    objects: Objects
    say: Callable[[str], None]

    def run(self, case: Case) -> Result:
        """Let the contestants whose program is here bring the task, in rotated order."""
        result = Result(case.name, case.title)
        present, absent = _present(case.contestants)
        if absent:
            result.notes.append(f"not installed, so not compared: {', '.join(sorted(absent))}")
        with self.stage(case, result) as stage:
            if case.warm_up:
                for one in present:
                    stage.sample(one, is_first=True)
            rounds = min(self.rounds * case.times, case.max_rounds or sys.maxsize)
            for number in range(rounds):
                shift = number % len(present)
                for one in present[shift:] + present[:shift]:
                    sample = stage.sample(one, is_first=not number)
                    result.samples.setdefault(one.name, []).append(sample)
                    if one.name == OURS and case.tells_start_apart:
                        result.samples.setdefault(STARTED, []).append(stage.started[-1])
                    self.say(f"    round {number + 1}: {one.name} {sample.wall:.2f} s")
        names = [name for one in present for name in _names(one, case)]
        result.samples = {name: result.samples[name] for name in names}
        result.verdicts += [verdict for goal in case.goals if (verdict := goal(result.samples))]
        return result

    @contextlib.contextmanager
    def stage(self, case: Case, result: Result) -> Iterator[Stage]:
        """Start the other side of a case, and end it."""
        sets = {case.task} | {one.task for one in case.contestants if one.task}
        tasks = {one.task_id: self.objects.of(one) for one in sets}
        os.sync()  # what was just made is not written while somebody is measured
        with contextlib.ExitStack() as stack:
            wire: Wire | None = None
            if case.wan:
                wire = stack.enter_context(Wire(case.wan))
                result.notes += wire.probed()
            side = stack.enter_context(
                other_side(
                    self.work / "other-side",
                    root=self.objects.root,
                    tasks=tasks,
                    way=case.way,
                    host=wire.host if wire else LOCALHOST,
                    prefix=wire.at_server if wire else (),
                )
            )
            yield Stage(self, case, side, wire)
            if wire:
                result.notes += wire.told()


@dataclass(slots=True)
class Stage:
    """A case whose other side is up."""

    arena: Arena
    case: Case
    side: OtherSide
    wire: Wire | None
    started: list[Sample] = field(default_factory=list)  # ours, without its start

    def errand(self, contestant: Contestant) -> Errand:
        wanted = contestant.task or self.case.task
        return Errand(
            wanted=wanted,
            objects=self.arena.objects.of(wanted),
            base=self.side.base(self.case.way),
            side=self.side,
            directory=self.arena.work / "run",
        )

    def environment(self, errand: Errand) -> dict[str, str]:
        """Return all that a contestant gets to see of the environment."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(errand.directory),
            "LC_ALL": "C.UTF-8",
            "BGE_DEST": str(errand.dest),
            "BGE_STATE": str(errand.state),
            **self.side.environment(),
        }

    def sample(self, contestant: Contestant, *, is_first: bool) -> Sample:
        """Measure one run in a fresh directory; the disk is quiet before it and after it."""
        errand = self.errand(contestant)
        with self.fresh(errand):
            if contestant.prepare:
                contestant.prepare(errand)
                os.sync()
            sample = measured(
                contestant.commands(errand),
                cwd=errand.directory,
                log=errand.directory / "log",
                environment=self.environment(errand),
                prefix=self.wire.at_client if self.wire else (),
            )
            if contestant.brings and is_first:
                _look_at(errand, contestant)
            if contestant.name == OURS and self.case.tells_start_apart:
                seconds = _told_seconds(errand.directory / "log")
                self.started.append(Sample(seconds, math.nan, sample.rss))
        return sample

    @contextlib.contextmanager
    def fresh(self, errand: Errand) -> Iterator[None]:
        """Give the run a directory; the bytes that it leaves are gone, and synced, before the next.

        Its files stay, empty, to the end of everything: ext4 looks long for a new inode where
        thousands were freed in the last minutes, and the next one would pay for that.
        """
        errand.dest.mkdir(parents=True)
        yield
        for directory, _, files in os.walk(errand.directory):
            for name in files:
                _empty(f"{directory}/{name}")
        graveyard = self.arena.work / "left"
        graveyard.mkdir(exist_ok=True)
        errand.directory.rename(graveyard / f"{time.monotonic_ns()}")
        os.sync()


def _present(contestants: Sequence[Contestant]) -> tuple[list[Contestant], set[str]]:
    here = [one for one in contestants if one.is_ours or one.program == "python" or _is_here(one)]
    return here, {one.program for one in contestants if one not in here}


def _is_here(contestant: Contestant) -> bool:
    return shutil.which(contestant.program) is not None


def _empty(path: str) -> None:
    """Give a file's bytes back, unless it is somebody else's too, by another name."""
    facts = os.lstat(path)
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1:
        os.truncate(path, 0)


def _names(contestant: Contestant, case: Case) -> list[str]:
    is_ours = contestant.name == OURS and case.tells_start_apart
    return [contestant.name, STARTED] if is_ours else [contestant.name]


def _told_seconds(log: Path) -> float:
    """Return how long the fetch took by its own word, from the first look at the state on."""
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return float(events[-1]["seconds"])


def _look_at(errand: Errand, contestant: Contestant) -> None:
    """Hold what was brought against what is served: who is quick but wrong has no time."""
    place = errand.dest / errand.wanted.task_id if contestant.is_ours else errand.dest
    for one in errand.objects:
        found = 0
        with (place / one.name).open("rb") as file:
            while piece := file.read(BLOCK_BYTES):
                found = crc64.xz(piece, found)
        if found != one.crc64:
            raise BenchError(f"{contestant.name} brought {one.name} with a wrong CRC-64")


# Goals


def at_most(limit: float, against: str, *, measure: str = "wall", subject: str = OURS) -> Goal:
    """Ours by a peer's, as the median over the rounds; no verdict if the peer is not here."""

    def goal(samples: Samples) -> Verdict | None:
        if against not in samples:
            return None
        found = ratios(samples[subject], samples[against], lambda one: float(getattr(one, measure)))
        whose = "" if subject == OURS else f"{subject}: "
        return Verdict(
            f"{whose}{measure} ≤ {limit:g} x {against}", found.text(), found.median <= limit
        )

    return goal


def at_most_the_best(limit: float, *, subject: str = OURS) -> Goal:
    """Ours by the quickest peer's."""

    def goal(samples: Samples) -> Verdict | None:
        peers = {
            name: median_wall(taken) for name, taken in samples.items() if not name.startswith(OURS)
        }
        if not peers:
            return None
        best = min(peers, key=lambda name: peers[name])
        verdict = at_most(limit, best, subject=subject)(samples)
        assert verdict
        whose = "" if subject == OURS else f"{subject}: "
        goal_text = f"{whose}wall ≤ {limit:g} x the best peer, {best}"
        return Verdict(goal_text, verdict.found, verdict.is_reached)

    return goal


def median_wall(samples: Sequence[Sample]) -> float:
    return Spread.of([one.wall for one in samples]).median
