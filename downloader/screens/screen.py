"""What every screen can do, and the beat that keeps the live ones true while nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from downloader.progress import Reporter

__all__ = ["Beat", "Quiet", "Screen"]


class Screen:
    """Shows nothing; the base of the others.

    It is used from the event loop's thread only. Every call is cheap and none raises, so that
    work may report whatever happens as often as it likes.
    """

    def reporter(self, task_id: str) -> Reporter:
        """Return what a task reports to; several tasks may run at once."""
        return Reporter()

    def say(self, line: str) -> None:
        """Show people a line, without tearing what is drawn around it."""

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Let somebody else write whole lines to the terminal, inside the block."""
        yield

    def close(self) -> None:
        """Leave the terminal as it was found; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


Quiet = Screen


class Beat:
    """Calls `act` once, `seconds` after `start`, if an event loop is running.

    Without it a stalled transfer would keep its last rate, and a pause would not count down:
    nothing is reported while nothing happens. It needs no thread.
    """

    def __init__(self, act: Callable[[], None], *, seconds: float) -> None:
        self._act = act
        self._seconds = seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Let it strike once, unless it is about to anyway."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if self._handle is None or self._loop is not loop:  # the old loop may have ended
            self._loop = loop
            self._handle = loop.call_later(self._seconds, self._strike)

    def stop(self) -> None:
        """Let it strike no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _strike(self) -> None:
        self._handle = None
        self._act()
