"""A recorded fetch, crashed after each of its operations."""

from __future__ import annotations

import hashlib
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from downloader.sandbox import Sandbox
from torture.disk import Disk, Moment, Tree
from torture.losses import Loss
from torture.recording import Kind, Operation, record
from torture.recovery import DEST, STATE, TASK, Lost, Recovery, check_whole, files_below, write_out

__all__ = ["Choice", "Crash", "Recorded", "Tally", "crashes", "recorded_fetch", "try_crashes"]

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

    def __str__(self) -> str:
        again, beyond = self.again or [0], self.beyond or [0]
        return (
            f"{self.operations} operations recorded, {self.points} crash points, "
            f"{self.disks} disks ({self.different} of them different), "
            f"{len(self.failures) or 'none'} ended wrong; bytes fetched again: "
            f"max {max(again)}, median {statistics.median(again):.0f}, "
            f"of what was safe max {max(beyond)}"
        )


async def recorded_fetch(
    recorder: Path,
    root: Path,
    sandbox: Sandbox,
    *,
    before: Disk | None = None,
    marks: Sequence[str] = (),
    road: str = "straight",
    without: str = "",
) -> Recorded:
    """Let the program fetch the task below `root`, from what is there.

    All of that is synced, if nothing else is known from `before`. It goes by that `road`, and
    `without` something that it needs to survive crashes.
    """
    before = before or Disk.of(root)
    kept = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    operations = await record(
        recorder,
        root,
        [sys.executable, "-m", "torture.recorded", TASK, road, without],
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
    return Recorded(before=before, marks=marks, operations=operations, after=files_below(root))


def crashes(recorded: Recorded, choice: Choice) -> Iterator[Crash | None]:
    """Yield the disks that are chosen; each point ends with a None."""
    for number, moment in enumerate(recorded.before.moments(recorded.operations)):
        marks = [*recorded.marks, *moment.marks]
        for loss in choice(number, moment.operation):
            tree = loss(moment, random.Random(number))
            if tree is not None:
                yield Crash(moment, loss.__name__, number, tree, marks)
        yield None


async def try_crashes(
    recorded: Recorded,
    recovery: Recovery,
    choice: Choice,
    *,
    wanted: Mapping[str, bytes],
    recorded_as: Mapping[str, bytes] | None = None,
) -> Tally:
    """Fetch from every disk that is chosen.

    Args:
        recorded: the run that is crashed.
        recovery: what fetches from the disks.
        choice: which losses are tried at which points.
        wanted: the bytes of the files that must be published in the end.
        recorded_as: what they were in the recorded run, if the objects were replaced afterwards.
    """
    trial = _Trial(recovery, wanted, recorded_as, _result_of(recorded.before.live.files()))
    tally = Tally(operations=sum(one.kind is not Kind.MARK for one in recorded.operations))
    seen: set[bytes] = set()
    for crash in crashes(recorded, choice):
        if crash is None:
            tally.points += 1
            continue
        tally.disks += 1
        files = crash.tree.files()
        digest = _digest(files, crash)
        if digest not in seen:
            seen.add(digest)
            await trial.run(crash, files, tally)
    tally.different = len(seen)
    assert recorded.before.live.files() == recorded.after, "the recorder has not seen everything"
    return tally


@dataclass(frozen=True, slots=True)
class _Trial:
    """What must come of every crash of one recording."""

    recovery: Recovery
    wanted: Mapping[str, bytes]
    recorded_as: Mapping[str, bytes] | None
    result_before: Files

    async def run(self, crash: Crash, files: Files, tally: Tally) -> None:
        try:
            again, beyond = await self._fetched_again(crash, files)
        except Exception as error:  # noqa: BLE001 - the others are tried all the same
            tally.failures.append(f"{crash}: {type(error).__name__}: {error}")
        else:
            tally.again.append(again)
            tally.beyond.append(max(0, beyond))

    async def _fetched_again(self, crash: Crash, files: Files) -> tuple[int, int]:
        """Return how many bytes were fetched, and how many more than had to be."""
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
        result = _result_of(files)
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


def _result_of(files: Files) -> dict[str, bytes | None]:
    place = f"{DEST}/{TASK}"
    return {
        path.removeprefix(f"{place}/"): content
        for path, content in files.items()
        if path == place or path.startswith(f"{place}/")
    }


def _digest(files: Files, crash: Crash) -> bytes:
    """Return what is the same for disks of which the same is expected."""
    digest = hashlib.blake2b(f"{crash.safe_bytes} {crash.is_published}".encode())
    for path, content in files.items():
        length = None if content is None else len(content)
        digest.update(f"\n{path}\n{length}\n".encode())
        digest.update(content or b"")
    return digest.digest()
