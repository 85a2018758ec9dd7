"""How a command runs and ends: signals, one sentence for each error, the right exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, NoReturn, TypeVar

import typer

from downloader.errors import DownloaderError, Interrupted
from state.errors import StateError

__all__ = ["PROGRAM", "complain", "run", "told"]

PROGRAM = "bge-downloader"
# A drain may take 5 s in all; a disk that hangs must not hold up the terminal for longer.
DRAIN_SECONDS = 4.5

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; SIGINT and SIGTERM cancel it, a second one ends the process.

    Raises:
        Interrupted: a signal ended it; everything it held was closed.
    """
    return asyncio.run(_until_a_signal(main))


async def _until_a_signal(main: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(main)
    received: list[int] = []

    def stop(number: int) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        last_resort = threading.Timer(DRAIN_SECONDS, os._exit, args=[128 + number])
        last_resort.daemon = True
        last_resort.start()
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        raise Interrupted("Interrupted", exit_code=128 + received[0]) from None


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn errors into one sentence on stderr and their exit code."""
    try:
        yield
    except KeyboardInterrupt:
        _end(130, "Interrupted")
    except Interrupted as error:
        _end(error.exit_code, None if str(error) == "Interrupted" else str(error))
    except (DownloaderError, StateError) as error:
        _end(error.exit_code, str(error))
    except BrokenPipeError:
        # Whoever read our output has left; Python must not try to flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None


def complain(message: str) -> None:
    """Say one sentence for people on stderr."""
    print(f"{PROGRAM}: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the front door


def _end(exit_code: int, message: str | None) -> NoReturn:
    if message:
        complain(message)
    raise typer.Exit(exit_code)
