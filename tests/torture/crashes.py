"""A recorded run of the program, crashed after each of its operations."""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Protocol

from downloader.sandbox import Sandbox
from torture.disk import Disk, Moment, Tree
from torture.losses import Loss
from torture.recording import Facts, Kind, Operation, record
from torture.recovery import (
    DEST,
    STATE,
    TASK,
    Lost,
    Recovery,
    check_whole,
    facts_below,
    files_below,
    write_out,
)

__all__ = [
    "Choice",
    "Crash",
    "FetchTrial",
    "Files",
    "Recorded",
    "Tally",
    "Trial",
    "crashes",
    "recorded_run",
    "result_of",
    "try_crashes",
]

TESTS = Path(__file__).parents[1]
Files = Mapping[str, bytes | None]
# Which losses are tried at a crash point, by its number and what was done last.
Choice = Callable[[int, Operation | None], Sequence[Loss]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One run of the program: the disk before it, what was done, the disk after it."""

    before: Disk  # to be followed once
    marks: Sequence[str]  # of runs before this one
    operations: Sequence[Operation]
    after: Files
    facts_after: Mapping[str, Facts]

    def insist_on_everything(self) -> None:
        """Compare the disk, when it has been followed, with what the run has really left."""
        live, told = self.before.live, "the recorder has not seen everything"
        assert live.files() == self.after, told
        for path, facts in live.facts().items():
            there = self.facts_after[path]
            is_same = facts in (there, replace(there, mtime=None))
            assert is_same, f"{told} about {path}, which is {there} and not {facts}"


@dataclass(frozen=True, slots=True)
class Crash:
    """A disk as a crash may leave it, and what the program had been told by then."""

    moment: Moment
    loss: str
    number: int  # of the crash point, which is the seed of what is lost by chance
    tree: Tree
    marks: Sequence[str]

    def __str__(self) -> str:
        operation = self.moment.operation or "the beginning"
        return f"{self.loss} at point {self.number}, after {operation}"

    @property
    def safe_bytes(self) -> int:
        """How many bytes had been said to be safe."""
        told = dict(mark.split()[1:] for mark in self.marks if mark.startswith("safe "))
        return sum(map(int, told.values()))

    @property
    def is_published(self) -> bool:
        """Whether the result had been said to be published."""
        return "published" in self.marks


@dataclass(slots=True)
class Tally:
    """What came of the crashes."""

    operations: int = 0
    points: int = 0
    disks: int = 0
    different: int = 0  # disks that no other is like
    again: list[int] = field(default_factory=list)  # bytes that were fetched, of each disk
    beyond: list[int] = field(default_factory=list)  # bytes of them that were safe
    failures: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add what came of another recording."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def figures(self) -> list[int]:
        """Return the counts, and the bytes that were fetched again: median, most, safe ones."""
        again, beyond = self.again or [0], self.beyond or [0]
        counts = [self.operations, self.points, self.disks, self.different]
        return [*counts, round(statistics.median(again)), max(again), max(beyond)]


async def recorded_run(
    recorder: Path,
    root: Path,
    sandbox: Sandbox,
    *,
    deed: str = "fetch",
    before: Disk | None = None,
    marks: Sequence[str] = (),
    road: str = "straight",
    without: str = "",
) -> Recorded:
    """Let the program `fetch` the task below `root`, or `repair` its result, from what is there.

    All of that is synced, if nothing else is known from `before`. It goes by that `road`, and
    `without` something that it needs to survive crashes.
    """
    before = before or Disk.of(root)
    kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    operations = await record(
        recorder,
        root,
        [sys.executable, "-m", "torture.recorded", deed, TASK, road, without],
        environment={
            **kept,
            "PATH": os.environ["PATH"],
            "HOME": str(root.parent),
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            **sandbox.environment(),
            "BGE_DEST": str(root / DEST),
            "BGE_STATE": str(root / STATE),
            "BGE_CHECKSUMS": "sha256",
        },
    )
    return Recorded(
        before=before,
        marks=marks,
        operations=operations,
        after=files_below(root),
        facts_after=facts_below(root),
    )


def crashes(recorded: Recorded, choice: Choice) -> Iterator[Crash | None]:
    """Yield the disks that are chosen; each point ends with a None."""
    for number, moment in enumerate(recorded.before.moments(recorded.operations)):
        marks = [*recorded.marks, *moment.marks]
        for loss in choice(number, moment.operation):
            tree = loss(moment, random.Random(number))
            if tree is not None:
                yield Crash(moment, loss.__name__, number, tree, marks)
        yield None


class Trial(Protocol):
    """What is done with a disk as a crash has left it, and what must come of it."""

    async def fetched_again(self, crash: Crash, files: Files) -> tuple[int, int]:
        """Return how many bytes were fetched, and how many of them had been said to be safe.

        Raises:
            Lost: the crash had a consequence that it must not have.
        """
        ...

    def known_by(self, crash: Crash) -> object:
        """Return what makes one disk differ from another, besides its files."""
        ...


async def try_crashes(recorded: Recorded, trial: Trial, choice: Choice) -> Tally:
    """Try what comes of every disk that is chosen."""
    tally = Tally(operations=sum(one.kind is not Kind.MARK for one in recorded.operations))
    seen: set[bytes] = set()
    for crash in crashes(recorded, choice):
        if crash is None:
            tally.points += 1
            continue
        tally.disks += 1
        files = crash.tree.files()
        digest = _digest(files, trial.known_by(crash))
        if digest in seen:
            continue
        seen.add(digest)
        try:
            again, beyond = await trial.fetched_again(crash, files)
        except Exception as error:  # noqa: BLE001 - the others are tried all the same
            tally.failures.append(f"{crash}: {type(error).__name__}: {error}")
        else:
            tally.again.append(again)
            tally.beyond.append(max(0, beyond))
    tally.different = len(seen)
    recorded.insist_on_everything()
    return tally


@dataclass(frozen=True, slots=True)
class FetchTrial:
    """A fetch from a disk after a crash.

    Args:
        recovery: what fetches.
        wanted: the bytes of the files that must be published in the end.
        recorded_as: what they were in the recorded run, if the objects were replaced afterwards.
        result_before: what was in the result's place before that run.
    """

    recovery: Recovery
    wanted: Mapping[str, bytes]
    recorded_as: Mapping[str, bytes] | None
    result_before: Files

    def known_by(self, crash: Crash) -> object:
        """Return what had been said by then."""
        return crash.safe_bytes, crash.is_published

    async def fetched_again(self, crash: Crash, files: Files) -> tuple[int, int]:
        """Return how many bytes were fetched, and how many of them had been said to be safe."""
        result = self._result_in(crash, files)
        write_out(self.recovery.root, files)
        again = await self.recovery.fetched_again(wanted=result or self.wanted)
        beyond = again - self._not_safe(crash, is_whole=result is not None)
        # Of a file that is whole, one byte is asked for: it tells whether the version is the same.
        # A result that is published is not asked about.
        if beyond > (0 if result else len(self.wanted)):
            raise Lost(f"{again} bytes were fetched again, {beyond} of them were safe")
        return again, beyond

    def _result_in(self, crash: Crash, files: Files) -> Mapping[str, bytes] | None:
        """Return what is published on the disk, which must be whole, or None."""
        result = result_of(files)
        if result and result != self.result_before:
            whole = self.recorded_as or self.wanted
            check_whole(result, whole)
            return whole
        if crash.is_published:
            if not result:
                raise Lost("it had been published, and is not there any more")
            return self.wanted
        return None

    def _not_safe(self, crash: Crash, *, is_whole: bool) -> int:
        """Return how many bytes nobody could expect to be there."""
        if is_whole:
            return 0
        total = sum(map(len, self.wanted.values()))
        return total if self.recorded_as else total - crash.safe_bytes


def result_of(files: Files) -> dict[str, bytes | None]:
    place = f"{DEST}/{TASK}"
    return {
        path.removeprefix(f"{place}/"): content
        for path, content in files.items()
        if path == place or path.startswith(f"{place}/")
    }


def _digest(files: Files, known_by: object) -> bytes:
    """Return what is the same for disks of which the same is expected."""
    digest = hashlib.blake2b(repr(known_by).encode())
    for path, content in files.items():
        length = None if content is None else len(content)
        digest.update(f"\n{path}\n{length}\n".encode())
        digest.update(content or b"")
    return digest.digest()
