"""One measured run of a chain of commands, and what several of them come to."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launch.py")
SHOWN_OF_A_LOG = 2000


class BenchError(Exception):
    """The bench cannot go on; its text is for whoever runs it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run took: seconds of wall clock, seconds of CPU, bytes of memory at the peak."""

    wall: float
    cpu: float
    rss: int


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several runs, and the two ends."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def measured(
    commands: list[list[str]],
    *,
    cwd: Path,
    log: Path,
    environment: Mapping[str, str],
    prefix: Sequence[str] = (),
) -> Sample:
    """Run the commands one after the other; `prefix` is what enters a network namespace.

    Raises:
        BenchError: one of them failed; its own words are in the error.
    """
    order = {
        "commands": commands,
        "cwd": str(cwd),
        "log": str(log),
        "environment": dict(environment),
    }
    log.unlink(missing_ok=True)
    ended = subprocess.run(
        [*prefix, sys.executable, "-I", "-S", str(LAUNCHER)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise BenchError(f"The launcher failed:\n{ended.stderr}")
    taken = json.loads(ended.stdout)
    if taken.pop("exit_code"):
        said = log.read_text(errors="replace")[-SHOWN_OF_A_LOG:] if log.exists() else ""
        shown = " ".join(commands[0])[:300]
        raise BenchError(f"{shown}\nfailed:\n{said}")
    return Sample(**taken)


def ratios(
    ours: Sequence[Sample], theirs: Sequence[Sample], value: Callable[[Sample], float]
) -> Spread:
    """Return ours by theirs, round by round: what slowed a round down slowed both."""
    pairs = zip(ours, theirs, strict=True)
    return Spread.of([value(one) / max(value(other), 1e-9) for one, other in pairs])
