"""The rows of the goals, as cases that can be run one by one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.bench.arena import Case, Goal, Samples, Verdict, at_most, at_most_the_best, median_wall
from tests.bench.measure import Spread, ratios
from tests.bench.objects import GIB, KIB, MIB, ObjectSet
from tests.bench.peers import (
    OURS,
    STARTED,
    Contestant,
    Errand,
    answering,
    aria2,
    aria2_many,
    checked,
    curl,
    curl_parallel,
    lftp,
    ours,
    python,
    rclone,
    rclone_many,
)
from tests.bench.wan import Wan

ASKED_RATE = 50 * MIB
FLAT = 1.2  # times the time per file of the fewest files; noise is not growth
TYPER, AIOHTTP = "import typer", "import aiohttp"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is brought; `QUICK` is for trying the bench itself, its figures mean nothing."""

    big: int = GIB
    middling: int = 256 * MIB
    small_files: int = 2000
    large_files: int = 200
    tiny_files: tuple[int, ...] = (1000, 5000, 20000)
    known_tasks: int = 10000
    resumed: int = 10 * GIB


QUICK = Sizes(
    big=64 * MIB,
    middling=32 * MIB,
    small_files=100,
    large_files=5,
    tiny_files=(50, 100, 200),
    known_tasks=200,
    resumed=256 * MIB,
)


def all_cases(sizes: Sizes) -> list[Case]:
    """Return the cases that are comparisons, in the order of the goals."""
    return [
        *_one_object(sizes),
        *_far_away(sizes),
        *_many_objects(sizes),
        _limited(sizes),
        _start(),
        _scale(sizes),
        _known_tasks(sizes),
    ]


def _one_object(sizes: Sizes) -> list[Case]:
    big = ObjectSet("big", (sizes.big,))
    middling = ObjectSet("middling", (sizes.middling,))
    return [
        Case(
            name="http",
            title=f"one object of {_size(sizes.big)}, HTTP, verified and durable",
            task=big,
            contestants=(ours("--json"), checked(curl()), checked(rclone()), checked(aria2(4))),
            tells_start_apart=True,
            goals=(
                at_most(0.65, "curl + check"),
                at_most(0.5, "aria2c -x4 + check"),
                at_most(0.6, "curl + check", measure="cpu"),
            ),
        ),
        Case(
            name="tls",
            title=f"one object of {_size(sizes.big)}, TLS, the peers without a check",
            task=big,
            way="tls",
            contestants=(ours("--json"), curl(), rclone(), aria2(4)),
            goals=(at_most(0.95, "curl"), at_most(0.95, "curl", subject=STARTED)),
            tells_start_apart=True,
        ),
        Case(
            name="throttled",
            title=f"20 MiB/s for each connection, {_size(sizes.middling)}, no check",
            task=middling,
            way="throttled",
            contestants=(ours("--json"), aria2(8), aria2(4), rclone(), curl()),
            goals=(at_most(1.0, "aria2c -x8"),),
            tells_start_apart=True,
        ),
    ]


def _far_away(sizes: Sizes) -> list[Case]:
    far = Case(
        name="wan",
        title=f"30 ms round trip, 1 Gbit/s, {_size(sizes.middling)}, no check",
        task=ObjectSet("middling", (sizes.middling,)),
        wan=Wan(),
        contestants=(ours("--json"), lftp(4), lftp(8), rclone(), aria2(4), aria2(8), curl()),
        goals=(at_most_the_best(1.0), at_most_the_best(1.0, subject=STARTED)),
        tells_start_apart=True,
    )
    lossy = Case(
        name="loss",
        title=f"30 ms round trip, 1 Gbit/s, 0.1 % loss, {_size(sizes.middling)}, no check",
        task=far.task,
        wan=Wan(loss=0.001),
        contestants=far.contestants,
        goals=far.goals,
        tells_start_apart=True,
    )
    return [far, lossy]


def _many_objects(sizes: Sizes) -> list[Case]:
    small = (20 * KIB,) * sizes.small_files
    mixed = ObjectSet("mixed", small + (5 * MIB,) * sizes.large_files)
    return [
        Case(
            name="many",
            title=f"{sizes.small_files:,} x 20 KiB and {sizes.large_files:,} x 5 MiB in one task, "
            "verified and durable",
            task=mixed,
            contestants=(
                ours(),
                checked(curl_parallel(16)),
                checked(rclone_many(16)),
                checked(aria2_many(16)),
            ),
            goals=(at_most(0.8, "curl --parallel 16 + check"),),
        ),
        Case(
            name="many-wan",
            title=f"{sizes.small_files:,} x 20 KiB at 30 ms round trip, no check",
            task=ObjectSet("small", small),
            wan=Wan(),
            contestants=(ours(), curl_parallel(16), aria2_many(16), rclone_many(16)),
            goals=(at_most(0.6, "curl --parallel 16"),),
        ),
    ]


def _limited(sizes: Sizes) -> Case:
    rate = f"{ASKED_RATE // MIB}M"
    asked_seconds = sizes.middling / ASKED_RATE

    def nearness(name: str) -> Goal:
        def goal(samples: Samples) -> Verdict | None:
            if name not in samples:
                return None
            found = Spread.of([asked_seconds / one.wall for one in samples[name]])
            return Verdict(f"{name}: rate of the whole run, by the rate asked", found.text(), None)

        return goal

    return Case(
        name="limit",
        title=f"{_size(sizes.middling)} with --limit-rate {rate}",
        task=ObjectSet("middling", (sizes.middling,)),
        contestants=(ours("--limit-rate", rate), curl("--limit-rate", rate)),
        goals=(nearness(OURS), nearness("curl")),
    )


def _start() -> Case:
    fetch = f"{OURS} fetch, 1 KiB"
    typer, aiohttp = python(TYPER), python(AIOHTTP)
    return Case(
        name="start",
        title="what the first answer takes",
        task=ObjectSet("tiny", (KIB,)),
        contestants=(
            answering("--version"),
            answering("--help"),
            ours(name=fetch),
            typer,
            aiohttp,
        ),
        goals=(
            at_most(1.5, typer.name, subject=f"{OURS} --version"),
            at_most(1.5, typer.name, subject=f"{OURS} --help"),
            at_most(2.6, aiohttp.name, subject=fetch),
        ),
        warm_up=True,
        times=3,
    )


def _scale(sizes: Sizes) -> Case:
    sets = [ObjectSet(f"tiny-{count}", (KIB,) * count) for count in sizes.tiny_files]
    contestants = tuple(ours(name=f"{OURS}, {len(one.sizes):,} files", task=one) for one in sets)

    def flat(samples: Samples) -> Verdict:
        each = {
            one: median_wall(samples[contestant.name]) / len(one.sizes)
            for one, contestant in zip(sets, contestants, strict=True)
        }
        worst = max(each.values()) / each[sets[0]]
        shown = ", ".join(f"{1000 * seconds:.2f}" for seconds in each.values())
        return Verdict(
            f"time per file flat: ≤ {FLAT:g} x that of {len(sets[0].sizes):,} files",
            f"{worst:.2f} (ms per file: {shown})",
            worst <= FLAT,
        )

    return Case(
        name="files",
        title="one task of ever more files of 1 KiB",
        task=sets[0],
        contestants=contestants,
        goals=(flat,),
        max_rounds=3,
    )


def _known_tasks(sizes: Sizes) -> Case:
    full = f"{OURS}, {sizes.known_tasks:,} tasks in the state"
    empty = f"{OURS}, no task in the state"

    def commands(errand: Errand) -> list[list[str]]:
        return ours().commands(errand)

    def prepare(errand: Errand) -> None:
        shutil.copy(filled_state(errand.directory.parent, sizes.known_tasks), errand.state)

    def flat(samples: Samples) -> Verdict:
        found = ratios(samples[full], samples[empty], lambda one: one.wall)
        goal = f"a small fetch with {sizes.known_tasks:,} tasks in the state ≤ {FLAT:g} x with none"
        return Verdict(goal, found.text(), found.median <= FLAT)

    return Case(
        name="tasks",
        title="one small fetch, with an empty state and with a full one",
        task=ObjectSet("tiny", (KIB,)),
        contestants=(Contestant(full, OURS, commands, prepare), Contestant(empty, OURS, commands)),
        goals=(flat,),
        warm_up=True,
        times=3,
    )


def filled_state(directory: Path, count: int) -> Path:
    """Return a state in which so many tasks are published; made once, then copied."""
    path = directory / f"filled-{count}.db"
    if not path.exists():
        from tests.bench.filled_state import fill  # noqa: PLC0415 - SQLAlchemy, for one case only

        fill(path, count)
    return path


def _size(count: int) -> str:
    return f"{count / GIB:g} GiB" if count >= GIB else f"{count / MIB:g} MiB"
