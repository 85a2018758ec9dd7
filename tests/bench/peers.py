"""What each contestant is told to do, as command lines.

The peers are given their best settings as their own manuals have them: aria2c reserves space by
`fallocate` instead of writing zeros, and those that open several connections are told how many
fit the case. None reads settings of its own. Ours is given nothing but the task.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.objects import Object, ObjectSet
from tests.bench.servers import OtherSide

CHECKER = Path(__file__).with_name("check.py")
OURS = "bge-downloader"
STARTED = f"{OURS}, its start apart"  # what the same runs took once the program was loaded
Commands = list[list[str]]


@dataclass(frozen=True, slots=True)
class Errand:
    """One run of one contestant: what is to be brought, from where, to where."""

    wanted: ObjectSet
    objects: list[Object]
    base: str
    side: OtherSide
    directory: Path  # of this run alone
    filled_state: Path | None = None

    @property
    def dest(self) -> Path:
        return self.directory / "results"

    @property
    def state(self) -> Path:
        return self.directory / "state.db"

    def url(self, one: Object) -> str:
        return f"{self.base}/{one.key}"

    def written(self, name: str, lines: Sequence[str]) -> str:
        """Write a list that a command reads; nobody's time."""
        path = self.directory / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return str(path)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A name for the table, the program that it needs, and what is run."""

    name: str
    program: str
    commands: Callable[[Errand], Commands]
    prepare: Callable[[Errand], None] | None = None
    task: ObjectSet | None = None  # where it is not the case's own
    brings: bool = True  # whether there is a result to look at

    @property
    def is_ours(self) -> bool:
        return self.program == OURS


def program(name: str = OURS) -> str:
    """Return the path of a program that was installed beside this Python."""
    return str(Path(sys.executable).with_name(name))


def ours(*flags: str, name: str = OURS, task: ObjectSet | None = None) -> Contestant:
    def commands(errand: Errand) -> Commands:
        return [[program(), "fetch", errand.wanted.task_id, *flags]]

    return Contestant(name, OURS, commands, task=task)


def checked(peer: Contestant) -> Contestant:
    """Put a CRC-64 pass and an fsync of each file behind a peer."""

    def commands(errand: Errand) -> Commands:
        lines = [f"{one.crc64} {one.name}" for one in errand.objects]
        listed = errand.written("check.list", lines)
        check = [sys.executable, "-I", str(CHECKER), listed, str(errand.dest)]
        return [*peer.commands(errand), check]

    return Contestant(f"{peer.name} + check", peer.program, commands)


def curl(*flags: str) -> Contestant:
    def commands(errand: Errand) -> Commands:
        (one,) = errand.objects
        authority = ["--cacert", str(errand.side.ca)] if errand.side.ca else []
        to = ["-o", str(errand.dest / one.name)]
        return [["curl", "-qsSf", *authority, *flags, *to, errand.url(one)]]

    return Contestant("curl", "curl", commands)


def curl_parallel(most: int) -> Contestant:
    def commands(errand: Errand) -> Commands:
        lines = []
        for one in errand.objects:
            lines += [f'url = "{errand.url(one)}"', f'output = "{errand.dest / one.name}"']
        listed = errand.written("curl.config", lines)
        return [["curl", "-qsSf", "-Z", "--parallel-max", str(most), "--config", listed]]

    return Contestant(f"curl --parallel {most}", "curl", commands)


ARIA2 = ("aria2c", "--no-conf", "-q", "--file-allocation=falloc", "--auto-file-renaming=false")


def aria2(connections: int) -> Contestant:
    def commands(errand: Errand) -> Commands:
        (one,) = errand.objects
        authority = [f"--ca-certificate={errand.side.ca}"] if errand.side.ca else []
        many = [f"-x{connections}", f"-s{connections}", "-k1M"]
        to = ["-d", str(errand.dest), "-o", one.name]
        return [[*ARIA2, *many, *authority, *to, errand.url(one)]]

    return Contestant(f"aria2c -x{connections}", "aria2c", commands)


def aria2_many(side_by_side: int) -> Contestant:
    def commands(errand: Errand) -> Commands:
        lines = []
        for one in errand.objects:
            lines += [errand.url(one), f"  out={one.name}"]
        listed = errand.written("aria2.list", lines)
        return [[*ARIA2, f"-j{side_by_side}", "-d", str(errand.dest), "-i", listed]]

    return Contestant(f"aria2c -j{side_by_side}", "aria2c", commands)


def rclone() -> Contestant:
    """Copy with 4 connections, its default, but for smaller files than by default."""

    def commands(errand: Errand) -> Commands:
        (one,) = errand.objects
        to = str(errand.dest / one.name)
        many = ["--multi-thread-streams", "4", "--multi-thread-cutoff", "32M"]
        return [[*_rclone(errand), *many, "copyto", f":http:{one.name}", to]]

    return Contestant("rclone", "rclone", commands)


def rclone_many(side_by_side: int) -> Contestant:
    def commands(errand: Errand) -> Commands:
        listed = errand.written("rclone.list", [one.name for one in errand.objects])
        many = ["--transfers", str(side_by_side), "--checkers", str(side_by_side)]
        which = ["--no-traverse", "--files-from-raw", listed]
        return [[*_rclone(errand), *many, *which, "copy", ":http:", str(errand.dest)]]

    return Contestant(f"rclone --transfers {side_by_side}", "rclone", commands)


def _rclone(errand: Errand) -> list[str]:
    authority = ["--ca-cert", str(errand.side.ca)] if errand.side.ca else []
    config = ["--config", errand.written("rclone.conf", [])]
    return ["rclone", *config, *authority, "--http-url", f"{errand.base}/{errand.wanted.name}/"]


def lftp(connections: int) -> Contestant:
    def commands(errand: Errand) -> Commands:
        (one,) = errand.objects
        to = errand.dest / one.name
        script = f"set cmd:fail-exit yes; pget -n {connections} {errand.url(one)} -o {to}"
        return [["lftp", "--norc", "-c", script]]

    return Contestant(f"lftp pget -n {connections}", "lftp", commands)


def python(code: str) -> Contestant:
    return Contestant(
        f"python -c '{code}'", "python", lambda _: [[sys.executable, "-c", code]], brings=False
    )


def answering(flag: str) -> Contestant:
    return Contestant(f"{OURS} {flag}", OURS, lambda _: [[program(), flag]], brings=False)
