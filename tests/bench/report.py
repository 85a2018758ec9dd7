"""What is told of a run: a table for the terminal, and the same as Markdown for the document."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from downloader import __version__
from tests.bench.arena import Result, Samples, Verdict
from tests.bench.measure import BenchError, Sample, Spread, ratios
from tests.bench.objects import MIB
from tests.bench.peers import OURS
from tests.bench.servers import nginx_program

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- results: written by `make bench` -->", "<!-- end -->"
MEMORY_GOAL = 96 * MIB
VERSIONS = {
    "curl": ("curl", "--version"),
    "aria2c": ("aria2c", "--version"),
    "rclone": ("rclone", "version"),
    "lftp": ("lftp", "--version"),
}


def memory(results: Sequence[Result]) -> Result:
    """Return the row that all cases have together: the most memory that ours ever had."""
    peaks = {
        (result.name, name): max(one.rss for one in taken)
        for result in results
        for name, taken in result.samples.items()
        if name.startswith(OURS)
    }
    row = Result("memory", "the highest peak of resident memory in all cases")
    if peaks:
        case, name = max(peaks, key=lambda key: peaks[key])
        highest = peaks[case, name]
        found = f"{highest / MIB:.0f} MiB ({case}: {name})"
        goal = f"peak ≤ {MEMORY_GOAL // MIB} MiB"
        row.verdicts.append(Verdict(goal, found, highest <= MEMORY_GOAL))
    return row


def as_text(result: Result) -> str:
    lines = [f"{result.name}: {result.title}"]
    width = max(map(len, result.samples), default=0)
    for name, *cells in _rows(result.samples):
        wall, cpu, rss, by_wall, by_cpu = cells
        ratio = f"  ours is {by_wall} of its time, {by_cpu} of its CPU" if by_wall else ""
        lines.append(f"  {name:{width}}  {wall} s  CPU {cpu} s  {rss} MiB{ratio}")
    lines += [f"  {_text_of(verdict)}" for verdict in result.verdicts]
    lines += [f"  ({note})" for note in result.notes]
    return "\n".join(lines)


def as_markdown(results: Sequence[Result], facts: Sequence[str]) -> str:
    lines = [*(f"- {fact}" for fact in facts), ""]
    lines += ["| case | goal | measured | |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {result.name} | {verdict.goal} | {verdict.found} | {_word(verdict)} |"
        for result in results
        for verdict in result.verdicts
    ]
    lines.append("")
    for result in results:
        lines += [f"**{result.name}**: {result.title}", ""]
        if result.samples:
            lines += [
                "| | wall, s | CPU, s | peak, MiB | ours by it: wall | CPU |",
                "| --- | --- | --- | --- | --- | --- |",
            ]
            lines += ["| " + " | ".join(row) + " |" for row in _rows(result.samples)]
            lines.append("")
        lines += [f"- {note}" for note in result.notes]
        lines += [""] if result.notes else []
    return "\n".join(lines).rstrip() + "\n"


def write(results: Sequence[Result], facts: Sequence[str]) -> None:
    """Put the results into their place in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    place = re.compile(f"({re.escape(BEGIN)}\n).*?({re.escape(END)})", re.DOTALL)
    made = as_markdown(results, facts)
    filled, count = place.subn(lambda match: f"{match[1]}\n{made}\n{match[2]}", text)
    if count != 1:
        raise BenchError(f"{DOCUMENT.name} has no place for the results")
    DOCUMENT.write_text(filled, encoding="utf-8")


def facts(work: Path, rounds: int) -> list[str]:
    """Return when, on what and with which peers this was measured."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    machine = (
        f"{os.cpu_count()} x {_processor()}, {memory_bytes / MIB / 1024:.0f} GiB; "
        f"Linux {platform.release()}; {_file_system(work)}; TCP's congestion control: {congestion}"
    )
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, {rounds} interleaved rounds; medians, and the two ends",
        f"bge-downloader {__version__}, Python {platform.python_version()}",
        machine,
        f"store: {_store()}; peers: {', '.join(_peers()) or 'none'}",
    ]


def _rows(samples: Samples) -> Iterator[tuple[str, ...]]:
    ours = samples.get(OURS)
    for name, taken in samples.items():
        by = ("", "") if not ours or name.startswith(OURS) else _by(ours, taken)
        spread = Spread.of([one.wall for one in taken])
        wall = spread.text(digits=2 if spread.median >= 1 else 3)
        cpu = f"{Spread.of([one.cpu for one in taken]).median:.2f}".replace("nan", "-")
        rss = f"{max(one.rss for one in taken) / MIB:.0f}"
        yield (name, wall, cpu, rss, *by)


def _by(ours: Sequence[Sample], taken: Sequence[Sample]) -> tuple[str, str]:
    wall = ratios(ours, taken, lambda one: one.wall).text()
    cpu = ratios(ours, taken, lambda one: one.cpu)
    return wall, f"{cpu.median:.2f}"


def _text_of(verdict: Verdict) -> str:
    if verdict.is_reached is None:
        return f"{verdict.goal}: {verdict.found}"
    return f"goal {verdict.goal}: {verdict.found}, {_word(verdict)}"


def _word(verdict: Verdict) -> str:
    return {None: "", True: "reached", False: "MISSED"}[verdict.is_reached]


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _file_system(work: Path) -> str:
    command = ["df", "--output=fstype", str(work)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return said.split()[-1]


def _store() -> str:
    nginx = nginx_program()
    if not nginx:
        return "the sandbox's, for nginx is not installed: it takes CPU that the contestants need"
    return (
        subprocess.run([nginx, "-v"], check=True, capture_output=True, text=True)
        .stderr.split("version: ", 1)[-1]
        .strip()
    )


def _peers() -> Iterable[str]:
    for name, command in VERSIONS.items():
        if shutil.which(name):
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = re.search(r"\d+(?:\.\d+)+", said)
            yield f"{name} {found[0] if found else '?'}"
