"""A child process that is bounded in time, in output, and in what outlives it.

It is watched by its pidfd and not by asyncio, whose `wait` lasts until every descendant has closed
the pipe (python/cpython#119710), and which needs a thread for each child on Python 3.11.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, cast

from downloader.concurrency import outlasting
from downloader.logs import safe_lines

__all__ = ["GRACE_SECONDS", "Ended", "OutputTail", "run_command"]

OUTPUT_BYTES = 4096  # kept of what a command prints
READ_BYTES = 64 * 1024
LAST_READS = 16  # a full pipe, and no more: somebody else may still write to it
GRACE_SECONDS = 2.0  # from SIGTERM to SIGKILL, and again until what cannot be killed is left alone
LINGER_SECONDS = 1.0  # for output of those whom the command has left running
LOOK_SECONDS = 0.05  # between two looks at a child, where there is no pidfd
BY_SIGNAL = 128  # a shell's exit code of who was killed by a signal, less the signal


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    exit_code: int | None  # as a shell tells it; None if it was not started, or cannot be killed
    killed_by: str = ""  # the signal's name
    is_late: bool = False  # it was ended because its time was over
    output: str = ""


async def run_command(
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout: float,  # noqa: ASYNC109 - what has not ended by then is killed, not cancelled
    grace: float = GRACE_SECONDS,
    linger: float = LINGER_SECONDS,
) -> Ended:
    """Run a command to its end; when cancelled, or late, its process group is ended first.

    Raises:
        OSError: it could not be started.
    """
    child = _Child(words, environment)
    try:
        child.watch()
        await asyncio.wait([child.exited], timeout=timeout)
        is_late = not child.exited.done()
        if not is_late:
            await asyncio.wait([child.silent], timeout=linger)
    finally:
        await outlasting(asyncio.ensure_future(child.end(grace)), stop=child.kill)
    return child.ended(is_late=is_late)


class OutputTail:
    """The end of what a command prints: the rest is read and forgotten."""

    def __init__(self, limit: int = OUTPUT_BYTES) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._is_cut = False

    def add(self, chunk: bytes) -> None:
        """Take more output in."""
        self._kept += chunk[-self._limit - 1 :]
        if len(self._kept) > self._limit:
            self._is_cut = True
            del self._kept[: -self._limit]

    def text(self) -> str:
        """Return it as printable lines without secrets.

        A line of which the start is lost is not told: it may be the second half of a secret.
        """
        lines = self._kept.decode("utf-8", errors="replace").splitlines(keepends=True)
        whole = "".join(lines[1:] if self._is_cut else lines)
        return "\n".join(["…"] * self._is_cut + safe_lines(whole))


class _Child:
    """A child in a process group of its own; it is reaped by `end`, and by nobody before."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self.silent: asyncio.Future[None] = self._loop.create_future()  # nobody may print any more
        self._tail = OutputTail()
        self._pidfd: int | None = None
        self._looks: asyncio.TimerHandle | None = None
        self._process = subprocess.Popen(  # noqa: S603 - the command is the settings' own
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
        self._pipe = cast("IO[bytes]", self._process.stdout)

    def watch(self) -> None:
        """Read what it prints, and notice its end."""
        os.set_blocking(self._pipe.fileno(), False)
        self._loop.add_reader(self._pipe.fileno(), self._read)
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
        except (AttributeError, OSError):  # a kernel before 5.3, or a filter of system calls
            self._look_again()
        else:
            self._loop.add_reader(self._pidfd, self._look)

    async def end(self, grace: float) -> None:
        """End it and its group if it is still there; reap it, and let go of everything."""
        if not self.exited.done():
            self._send(signal.SIGTERM)
            await asyncio.wait([self.exited, self.silent], timeout=grace)
            self.kill()  # even where it has exited: what it started may be deaf to SIGTERM
            await asyncio.wait([self.exited], timeout=grace)
        for _ in range(LAST_READS):
            if not self._read():
                break
        self._let_go()
        self._process.poll()

    def kill(self) -> None:
        """Kill everything in its group."""
        self._send(signal.SIGKILL)

    def ended(self, *, is_late: bool) -> Ended:
        """Return how it ended."""
        code, name = self._process.returncode, ""
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                name = signal.Signals(-code).name
            code = BY_SIGNAL - code
        return Ended(exit_code=code, killed_by=name, is_late=is_late, output=self._tail.text())

    def _send(self, number: signal.Signals) -> None:
        # Until the child is reaped, its number, which is its group's, is nobody else's.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _read(self) -> bool:
        """Take in what is in the pipe; False if that is nothing."""
        try:
            chunk = os.read(self._pipe.fileno(), READ_BYTES)
        except BlockingIOError:
            return False
        self._tail.add(chunk)
        if not chunk:
            self._loop.remove_reader(self._pipe.fileno())
            _settle(self.silent)
        return bool(chunk)

    def _look(self) -> None:
        """Notice its end without reaping it."""
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            _settle(self.exited)
            if self._pidfd is not None:
                self._loop.remove_reader(self._pidfd)

    def _look_again(self) -> None:
        self._look()
        if not self.exited.done():
            self._looks = self._loop.call_later(LOOK_SECONDS, self._look_again)

    def _let_go(self) -> None:
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        if self._looks is not None:
            self._looks.cancel()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
