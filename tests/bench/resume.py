"""The case of its own: how soon a half-done transfer goes on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.bench.arena import Arena, Case, Result, Stage, Verdict
from tests.bench.measure import BenchError, Spread
from tests.bench.objects import BLOCK_BYTES, GIB, ObjectSet
from tests.bench.peers import Errand, ours, program
from tests.bench.servers import started

HALF_IN_SECONDS = 5.0
GOAL_SECONDS = 1.0
MAX_ROUNDS = 3
SPACES = 2.5  # of the object: itself, its part file, and some room


class Times(NamedTuple):
    """Seconds from the start of the process, and bytes that were safe before it."""

    answered: float  # by the store
    first: float  # new byte
    published: float
    resumed: int


def resume(arena: Arena, size: int) -> Result:
    """Kill a fetch half-way, then tell when the next one receives its first new byte."""
    size = _that_fits(arena, size)
    title = f"the first new byte of a half-done {size / GIB:g} GiB, on a warm disk"
    case = Case(name="resume", title=title, task=ObjectSet("resumed", (size,)), contestants=())
    result = Result(case.name, case.title)
    took: list[Times] = []
    with arena.stage(case, result) as stage:
        errand = stage.errand(ours())
        for number in range(min(arena.rounds, MAX_ROUNDS)):
            with stage.fresh(errand):
                _break_off(stage, errand, size)
                _warm(errand.dest)
                os.sync()
                times = _go_on(stage, errand)
                arena.say(f"    round {number + 1}: first new byte after {times.first:.2f} s")
            took.append(times)
    arena.objects.forget(case.task)
    asked, found, whole, resumed = (Spread.of(values) for values in zip(*took, strict=True))
    is_soon = found.median <= GOAL_SECONDS
    result.verdicts = [
        Verdict(f"first new byte ≤ {GOAL_SECONDS:g} s", f"{found.text()} s", is_soon),
        Verdict("the store answered for the file after", f"{asked.text()} s", None),
        Verdict("all was published after", f"{whole.text()} s", None),
        Verdict("of which were on disk before", f"{resumed.median / GIB:.2f} GiB", None),
    ]
    return result


def _that_fits(arena: Arena, size: int) -> int:
    room = os.statvfs(arena.work)
    free = room.f_bavail * room.f_frsize
    while size > BLOCK_BYTES and size * SPACES > free:
        size //= 2
    return size


def _break_off(stage: Stage, errand: Errand, size: int) -> None:
    """Receive half of the object, then kill it; a limit lets it be caught in the middle."""
    rate = str(int(size / 2 / HALF_IN_SECONDS))
    with _fetching(stage, errand, "--limit-rate", rate) as process:
        for event in _events(process):
            if event["event"] == "published":
                raise BenchError("The transfer was over before half of it was seen")
            if event["event"] == "progress" and int(str(event["done_bytes"])) >= size / 2:
                break
        process.kill()


def _go_on(stage: Stage, errand: Errand) -> Times:
    """Finish it, with an eye on the clock."""
    seen: dict[str, float] = {}
    resumed = 0
    began = time.monotonic()
    with _fetching(stage, errand) as process:
        for event in _events(process):
            name, after = str(event["event"]), time.monotonic() - began
            if name == "file_sized":
                resumed = int(str(event["resumed"]))
            if name != "progress" or int(str(event["done_bytes"])) > resumed:
                seen.setdefault(name, after)
    if "published" not in seen:
        raise BenchError(f"The resumed transfer failed:\n{_log(errand).read_text()}")
    return Times(seen["file_sized"], seen["progress"], seen["published"], resumed)


def _fetching(stage: Stage, errand: Errand, *flags: str) -> subprocess.Popen[str]:
    with _log(errand).open("w") as log:
        return started(
            [program(), "fetch", errand.wanted.task_id, "--json", *flags],
            env=stage.environment(errand),
            cwd=errand.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )


def _log(errand: Errand) -> Path:
    return errand.directory / "log"


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, object]]:
    assert process.stdout
    for line in process.stdout:
        yield json.loads(line)


def _warm(directory: Path) -> None:
    """Read what is there into the page cache, where the killed process may not have left it."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(BLOCK_BYTES):
                    pass
