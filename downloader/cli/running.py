"""How a command runs and ends: signals, one sentence for each error, the right exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import typer

from downloader.errors import DownloaderError, Interrupted
from state.errors import StateError

if TYPE_CHECKING:
    import asyncio

__all__ = [
    "PROGRAM",
    "collect_from_now_on",
    "complain",
    "exit_code_of",
    "hold_standard_streams",
    "interruption_is_told",
    "run",
    "told",
]

PROGRAM = "bge-downloader"
# A drain may take 5 s in all; a disk that hangs must not hold up the terminal for longer.
DRAIN_SECONDS = 4.5
WORKERS = 32  # threads for blocking work: writes, syncs, checks, names of hosts
NO_MORE_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)

_interruption = {"is_told": False}

T = TypeVar("T")


def run(
    main: Coroutine[Any, Any, T],
    *,
    on_hangup: Callable[[], object] | None = None,
    say: Callable[[str], object] | None = None,
) -> T:
    """Run a command's coroutine; SIGINT and SIGTERM cancel it, a second one ends the process.

    So does SIGHUP, a lost terminal, unless `on_hangup` is what is to be done then. What there is
    to say of an end that came before everything was closed is for `say`, or else for stderr.

    Raises:
        Interrupted: a signal ended it; everything it held was closed.
    """
    import asyncio

    return asyncio.run(_until_a_signal(main, on_hangup, say or complain))


def collect_from_now_on() -> None:
    """Let Python look for garbage, but only in what is made from now on: modules are none."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


async def _until_a_signal(
    main: Coroutine[Any, Any, T],
    on_hangup: Callable[[], object] | None,
    say: Callable[[str], object],
) -> T:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    loop = asyncio.get_running_loop()
    # asyncio's own pool has six threads on two cores: a long check would hold up every write.
    loop.set_default_executor(ThreadPoolExecutor(WORKERS, thread_name_prefix="work"))
    task = asyncio.ensure_future(main)
    loop.call_soon(collect_from_now_on)  # after the first step, in which modules are loaded
    received: list[int] = []

    def stop(number: int) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        last_resort = threading.Timer(DRAIN_SECONDS, _give_up, args=[128 + number, say])
        last_resort.daemon = True
        last_resort.start()
        task.cancel(128 + number)

    heard: dict[int, Callable[[], object]] = {
        number: functools.partial(stop, number) for number in _ending_signals()
    }
    if on_hangup is not None:
        heard[signal.SIGHUP] = on_hangup
    for number, then in heard.items():
        loop.add_signal_handler(number, then)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        raise Interrupted("Interrupted", exit_code=128 + received[0]) from None
    finally:
        # Nothing is left that would be lost. asyncio itself goes on listening for a while, when
        # what it would hear by is closed already, and Python complains of each signal.
        for number in heard:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)


def _ending_signals() -> list[int]:
    """Return the signals that drain; a lost terminal is one, unless `nohup` lets it pass."""
    lost = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *lost]


def _give_up(exit_code: int, say: Callable[[str], object]) -> None:
    say(
        "Interrupted before everything was closed, as when a disk is slow; what was recorded is "
        "kept, and the same command goes on"
    )
    os._exit(exit_code)


def interruption_is_told() -> None:
    """Let `told` say nothing of an interruption: the command has said more than it could."""
    _interruption["is_told"] = True


def exit_code_of(interruption: asyncio.CancelledError) -> int:
    """Return the exit code that belongs to the signal behind a cancellation by `run`."""
    codes = (argument for argument in interruption.args if isinstance(argument, int))
    return next(codes, 128 + signal.SIGINT)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Turn errors into one sentence on stderr and their exit code."""
    try:
        with _interruptible():
            yield
    except KeyboardInterrupt:
        _end(130, "Interrupted")
    except Interrupted as error:
        _end(error.exit_code, None if _interruption["is_told"] else str(error))
    except (DownloaderError, StateError) as error:
        _end(error.exit_code, str(error))
    except OSError as error:
        if error.errno not in NO_MORE_OUTPUT or error.filename is not None:
            raise
        _silence(sys.stdout)
        # Whoever reads our output and has left needs no telling.
        is_left = isinstance(error, BrokenPipeError)
        _end(1, None if is_left else f"The output could not be written: {error.strerror}")


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise a KeyboardInterrupt in here, also where it ends the process outside.

    Afterwards, while the end is told and Python clears up, it would be an error of nobody's.
    """
    usual = signal.getsignal(signal.SIGINT)
    try:
        if usual is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def complain(message: str) -> None:
    """Say one sentence for people on stderr; nobody there to hear it is no error."""
    from downloader.logs import printable, scrubbed

    try:
        safe = printable(scrubbed(message))
        print(f"{PROGRAM}: {safe}", file=sys.stderr, flush=True)  # noqa: T201 - the front door
    except OSError:
        _silence(sys.stderr)


def hold_standard_streams() -> None:
    """Open those of stdin, stdout and stderr that the caller has closed, on nothing.

    Otherwise the next file that is opened would be one of them, and libraries would write their
    messages into a part file or into the state. And stdout takes every character from now on: one
    that its encoding does not have is spelled out.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _silence(stream: TextIO) -> None:
    """Let what is still in the stream go nowhere: Python flushes it once more at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _end(exit_code: int, message: str | None) -> NoReturn:
    if message:
        complain(message)
    raise typer.Exit(exit_code)
