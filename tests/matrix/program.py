"""The program itself, as a process that a row may signal, limit or kill."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from matrix.story import Outcome, Story

__all__ = ["Process", "close_launcher", "program", "started"]

PATIENCE_SECONDS = 30
LOOK_SECONDS = 0.01
PREFIX = "bge-downloader: "


class Process:
    """The program as it runs; what it says goes to a file."""

    def __init__(self, pid: int, told: BinaryIO, said: Path) -> None:
        self.pid = pid
        self._told = told
        self._said = said

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    async def ends(self) -> Outcome:
        """Return how it ended, as a shell tells it."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            code = int(await asyncio.to_thread(self._told.readline))
        lines = [line.removeprefix(PREFIX) for line in self._said.read_text().splitlines()]
        return Outcome(code if code >= 0 else 128 - code, " ".join(lines))

    async def says(self, text: str) -> None:
        """Return once it has said so."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while text not in self._said.read_text():  # noqa: ASYNC110 - a file sets no event
                await asyncio.sleep(LOOK_SECONDS)

    def end_for_certain(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._told.read()  # until it is no more


@functools.cache
def _launcher() -> tuple[subprocess.Popen, socket.socket]:
    ours, its = socket.socketpair()
    launcher = Path(__file__).with_name("launcher.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # the same program
    with its:
        return subprocess.Popen([sys.executable, launcher], stdin=its, env=environment), ours


def close_launcher() -> None:
    """End what forks the programs, if any was started."""
    if _launcher.cache_info().currsize:
        process, ours = _launcher()
        ours.close()
        process.wait(timeout=PATIENCE_SECONDS)
        _launcher.cache_clear()


@contextlib.asynccontextmanager
async def started(
    story: Story,
    *options: str,
    command: str = "fetch",
    out: int | None = None,
    largest_file: int | None = None,
) -> AsyncIterator[Process]:
    """Start `bge-downloader fetch TASK_ID`; it does not outlive the block."""
    request = {
        "arguments": [command, story.task_id, *options],
        "environment": _environment(story),
        "largest_file": largest_file,
    }
    said = story.directory / f"said-{len(list(story.directory.iterdir()))}.txt"
    reading, writing = os.pipe()
    with said.open("wb") as err, open(os.devnull, "wb") as null:  # noqa: ASYNC230, PTH123
        descriptors = [null.fileno() if out is None else out, err.fileno(), writing]
        _, ours = _launcher()
        socket.send_fds(ours, [json.dumps(request).encode()], descriptors)
    os.close(writing)
    with open(reading, "rb", buffering=0) as told:  # noqa: ASYNC230, PTH123 - a pipe
        pid = int(await asyncio.to_thread(told.readline))
        process = Process(pid, told, said)
        try:
            yield process
        finally:
            process.end_for_certain()


async def program(story: Story, *options: str, **details: object) -> Outcome:
    """Run the program to its end."""
    async with started(story, *options, **details) as process:
        return await process.ends()


def _environment(story: Story) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(story.directory),
        "LC_ALL": "C.UTF-8",
        **story.sandbox.environment(),
        "BGE_DEST": str(story.dest),
        "BGE_STATE": str(story.state),
        "BGE_POLL_INTERVAL": "0.01",
        "BGE_POLL_MAX_INTERVAL": "0.05",
        "BGE_POLL_DEADLINE": "60",
        "BGE_RETRY_MAX_DELAY": "0.05",
    }
