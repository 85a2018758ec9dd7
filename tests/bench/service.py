"""What the service costs while it watches many tasks: `python -m tests.bench.service`.

For each number of watched tasks, none of them due: how long it takes to be ready, what it uses at
rest, how much memory it has, and what one round and one heartbeat take. And what a round takes
in which 16 tasks are due.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import create_engine

from downloader.config import load_settings
from downloader.sandbox import Sandbox
from downloader.service.daemon import Service
from downloader.service.equipment import open_equipment
from downloader.service.notify import Notifier
from state import Phase, StateStore, schema

ROUNDS = 200
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def fill_watched(path: Path, count: int) -> None:
    """Make a state of `count` watched tasks that are due in a day."""
    with StateStore.open(path):
        pass
    now = datetime.now(UTC)
    rows = [
        {
            "id": number,
            "task_id": f"watched-{number}",
            "dest": "/data/results",
            "phase": Phase.WAITING,
            "status": "PENDING",
            "polls": 3,
            "created_at": now,
            "updated_at": now,
            "watched_since": now,
            "asked_at": now,
            "due_at": now + timedelta(days=1),
            "tries": 0,
        }
        for number in range(1, count + 1)
    ]
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(schema.tasks.insert(), rows)
    engine.dispose()


def environment(sandbox: Sandbox, directory: Path) -> dict[str, str]:
    """Return the settings of a service in that directory."""
    return {
        **sandbox.environment(),
        "BGE_STATE": str(directory / "state.db"),
        "BGE_DEST": str(directory / "results"),
        "HOME": str(directory),
        "PATH": os.defpath,
    }


class Process:
    """A running service, seen from outside."""

    def __init__(self, variables: dict[str, str], directory: Path) -> None:
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = directory / "notify"
        notices.bind(str(address))
        notices.settimeout(120)
        began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "downloader", "run"],
            env={**variables, "NOTIFY_SOCKET": str(address)},
            stderr=subprocess.DEVNULL,
        )
        while b"READY=1" not in notices.recv(4096):
            pass
        self.start_seconds = time.monotonic() - began
        notices.close()
        address.unlink()

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def memory_mib(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def stop(self) -> float:
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)
        return time.monotonic() - began


def at_rest(sandbox: Sandbox, count: int, seconds: float) -> dict[str, float]:
    """Measure a real process that watches `count` tasks of which none is due."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        fill_watched(directory / "state.db", count)
        process = Process(environment(sandbox, directory), directory)
        try:
            time.sleep(5)
            before = process.cpu_seconds()
            time.sleep(seconds)
            used = process.cpu_seconds() - before
            memory = process.memory_mib()
        finally:
            stop = process.stop()
    return {
        "start_s": process.start_seconds,
        "cpu_percent": 100 * used / seconds,
        "memory_mib": memory,
        "stop_s": stop,
    }


async def rounds(sandbox: Sandbox, count: int) -> dict[str, float]:
    """Measure rounds in this process, medians in milliseconds."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        fill_watched(directory / "state.db", count)
        given = {
            "app_key": sandbox.app_key,
            "app_secret": sandbox.app_secret,
            "endpoint": sandbox.endpoint,
            "allowed_hosts": ["127.0.0.1"],
            "dest": directory / "results",
            "state": str(directory / "state.db"),
            "calls_per_second": 1000,
        }
        settings = load_settings(defaults=given)
        async with open_equipment(settings) as equipment:
            service = Service(equipment, notifier=Notifier())
            await service.take_up()
            idle = [await _milliseconds(service.round) for _ in range(ROUNDS)]
            beat = [await _milliseconds(service.heartbeat) for _ in range(ROUNDS // 10)]
            due = []
            for _ in range(ROUNDS // 10):
                await equipment.store.run(lambda store: store.agenda.hasten(limit=16))
                due.append(await _milliseconds(lambda: _a_full_round(service)))
            await service.stop()
    return {
        "round_ms": statistics.median(idle),
        "heartbeat_ms": statistics.median(beat),
        "round_of_16_ms": statistics.median(due),
    }


async def _a_full_round(service: Service) -> None:
    await service.round()
    await service.asking.settled()
    await service.asking.keep()


async def _milliseconds(work) -> float:
    began = time.perf_counter()
    await work()
    return 1000 * (time.perf_counter() - began)


def say(line: str) -> None:
    """Print a line at once: whoever reads along waits for the next for a minute."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def measure(counts: list[int], seconds: float) -> None:
    """Print a row for each number of watched tasks."""
    say("| watched | ready after | CPU at rest | memory | a round | a heartbeat | 16 due | stop |")
    say("| --- | --- | --- | --- | --- | --- | --- | --- |")
    async with Sandbox() as sandbox:
        for count in counts:
            rest = await asyncio.to_thread(at_rest, sandbox, count, seconds)
            own = await rounds(sandbox, count)
            say(
                f"| {count:,} | {rest['start_s']:.2f} s | {rest['cpu_percent']:.2f} % "
                f"| {rest['memory_mib']:.0f} MiB | {own['round_ms']:.2f} ms "
                f"| {own['heartbeat_ms']:.2f} ms | {own['round_of_16_ms']:.1f} ms "
                f"| {rest['stop_s']:.2f} s |"
            )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("counts", type=int, nargs="*", default=[100, 100_000])
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(measure(arguments.counts, arguments.seconds))


if __name__ == "__main__":
    main()
