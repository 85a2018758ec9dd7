"""The program itself, as a process that a row may signal, limit or kill."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

import preloading
import pytest

from matrix.faulty import SOURCE, Orders
from matrix.story import FIRST_LENGTH, Outcome, Story

__all__ = ["Process", "as_a_process", "close_launcher", "orders_for", "program", "started"]

PATIENCE_SECONDS = 30
LOOK_SECONDS = 0.01
PREFIX = "bge-downloader: "
UNPLAIN = re.compile(r"Traceback|Exception ignored|Fatal Python error|\[[EW]::")  # or htslib's


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
        said = self._said.read_text()
        assert not UNPLAIN.search(said), said
        told = [line.removeprefix(PREFIX) for line in said.splitlines() if line.startswith(PREFIX)]
        assert len(told) <= 1, told  # what else there is to tell has no prefix
        return Outcome(code if code >= 0 else 128 - code, *told)

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
    environment = {**os.environ, **_preloaded(), **_same_program()}
    with its:
        return subprocess.Popen([sys.executable, launcher], stdin=its, env=environment), ours


@functools.cache
def _faulty_libc() -> Path | None:
    return preloading.build(SOURCE, Path(tempfile.mkdtemp(prefix="bge-test-")))


def _preloaded() -> dict[str, str]:
    library = _faulty_libc()
    return {} if library is None else {"LD_PRELOAD": str(library)}


def _same_program() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(sys.path)}


def orders_for(story: Story) -> Orders:
    """Return the orders that each program of the story obeys from now on."""
    if _faulty_libc() is None:
        pytest.skip("no faulty libc: there is no C compiler (cc, gcc or clang) or no 64-bit Linux")
    story.orders = Orders(story.directory / "orders")
    return story.orders


def close_launcher() -> None:
    """End what forks the programs, if any was started."""
    if _launcher.cache_info().currsize:
        process, ours = _launcher()
        ours.close()
        process.wait(timeout=PATIENCE_SECONDS)
        _launcher.cache_clear()
    if _faulty_libc.cache_info().currsize and (library := _faulty_libc()) is not None:
        shutil.rmtree(library.parent)
        _faulty_libc.cache_clear()


@contextlib.asynccontextmanager
async def started(
    story: Story,
    *options: str,
    command: str = "fetch",
    out: int | None = None,
    largest_file: int | None = None,
    is_cold: bool = False,
    is_large: bool = False,
) -> AsyncIterator[Process]:
    """Start `bge-downloader fetch TASK_ID`; it does not outlive the block.

    `is_cold` is from nothing, without what is loaded already; `is_large` takes the story's file
    for a large one, as a run of the story itself does.
    """
    request = {
        "arguments": [command, story.task_id, *options],
        "environment": _environment(story),
        "largest_file": largest_file,
        "is_cold": is_cold,
        "first_length": FIRST_LENGTH if is_large else None,
        "road": story.road,
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


async def as_a_process(story: Story) -> Outcome:
    """Fetch as `Story.fetch` does, but by the program itself."""
    return await program(story, "--quiet", is_large=True)


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
        **_preloaded(),
        **_same_program(),
        **({} if story.orders is None else {"FAULTY_ORDERS": str(story.orders.path)}),
    }
