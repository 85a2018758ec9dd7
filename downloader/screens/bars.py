"""Bars on a terminal: one line for all files together, and one for each active file."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TextIO

from downloader.logs import printable, safe_lines
from downloader.progress import Reporter
from downloader.screens.block import Block
from downloader.screens.screen import Beat, Screen
from downloader.screens.tally import Progress, Tally, Totals, joint_rate, summed
from downloader.screens.text import (
    cells,
    files_phrase,
    short_id,
    shortened,
    waiting_phrase,
)

__all__ = ["Bars"]

FRAME_SECONDS = 0.1  # between two drawings at the least
BEAT_SECONDS = 0.25  # between two drawings while nothing is heard
SHOW_AFTER_SECONDS = 0.5  # a file that is here sooner needs no bar of its own
MAX_FILE_BARS = 8
MAX_UNSAID = 1000  # lines that wait for a paused terminal


class Bars(Screen):
    """Draws at most ten times a second, and nothing for files that are not active.

    tqdm draws each line; where the lines are is kept by `Block`, because tqdm's own positions
    leave holes when bars come and go. As no tqdm object is made, there is no monitor thread.
    """

    def __init__(self, terminal: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        # tqdm takes 0.1 s to import, which the other screens need not wait for.
        from downloader.screens.meter import meter_line  # noqa: PLC0415

        self._meter_line = meter_line
        self._block = Block(terminal)
        self._clock = clock
        self._beat = Beat(self._draw, seconds=BEAT_SECONDS)
        self._next_frame_at = clock()
        self._tasks: list[_BarsTask] = []
        self._tasks_seen = 0
        self._past = Totals()  # of tasks that have finished beside those that go on
        self._unsaid: deque[str] = deque(maxlen=MAX_UNSAID)
        self._is_closed = False

    def reporter(self, task_id: str) -> Reporter:
        """Return what draws the task's bars."""
        task = _BarsTask(task_id, self, clock=self._clock)
        self._tasks.append(task)
        self._tasks_seen += 1
        return task

    def say(self, line: str) -> None:
        """Show a line above the bars, where it stays."""
        self._unsaid.extend(safe_lines(line))
        self._draw()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bars away while somebody else writes; the next drawing brings them back."""
        self._block.paint([], above=self._unsaid, wait=True)
        self._unsaid.clear()
        yield

    def close(self) -> None:
        """Take every bar away; lines that a paused terminal did not take are said now."""
        if self._is_closed:
            return
        self._is_closed = True
        self._beat.stop()
        self._tasks.clear()
        self._block.paint([], above=self._unsaid, wait=True)
        self._unsaid.clear()

    # What the tasks call.

    def touch(self) -> None:
        """Draw, unless that was done a moment ago."""
        if self._clock() >= self._next_frame_at:
            self._draw()

    def note(self, task: Tally, message: str) -> None:
        """Show a task's message above the bars."""
        self.say(self._prefix(task) + message)

    def finish(self, task: _BarsTask) -> None:
        """Take the task's lines away; what it did still counts beside the others."""
        if task not in self._tasks:
            return
        self._tasks.remove(task)
        done = task.totals()
        self._past += Totals(
            files=done.files_done,
            files_done=done.files_done,
            files_sized=done.files_done,
            total_bytes=done.done_bytes,
            done_bytes=done.done_bytes,
        )
        if not self._tasks:
            self._past = Totals()
        self._draw()

    # Drawing.

    def _draw(self) -> None:
        now = self._clock()
        self._next_frame_at = now + FRAME_SECONDS
        columns, rows = self._block.size()
        # The last column stays free: some terminals wrap as soon as it is written.
        lines = [] if self._is_closed else self._lines(now, columns - 1, rows - 1)
        if self._block.paint(lines, above=self._unsaid, wait=self._is_closed):
            self._unsaid.clear()
        if lines or self._unsaid:
            self._beat.start()

    def _lines(self, now: float, width: int, height: int) -> list[str]:
        loading = [task for task in self._tasks if task.is_planned]
        waiting = [task for task in self._tasks if task.is_waiting]
        below = [f"checking {name}" for name in self._checking(loading)]
        below += [_waiting_line(waiting, now, width)] if waiting else []
        below = [shortened(line, width) for line in below]
        if not loading:
            return below[:height]
        room = min(MAX_FILE_BARS, height - 1 - len(below))
        bars = islice(self._file_lines(loading, now, width), max(0, room))
        return [self._total_line(loading, now, width), *bars, *below][: max(1, height)]

    def _checking(self, tasks: Iterable[Tally]) -> Iterator[str]:
        for task in tasks:
            if task.checking is not None:
                yield self._prefix(task) + printable(task.checking)

    def _total_line(self, tasks: list[_BarsTask], now: float, width: int) -> str:
        totals = summed(tasks) + self._past
        label = files_phrase(totals.files_done, totals.files)
        return self._line(label, totals.progress(joint_rate(tasks, now)), width)

    def _file_lines(self, tasks: Iterable[Tally], now: float, width: int) -> Iterator[str]:
        for task in tasks:
            for name, file in task.active.items():
                if now - file.since >= SHOW_AFTER_SECONDS:
                    label = self._prefix(task) + printable(name)
                    yield self._line(label, file.progress(now), width)

    def _line(self, label: str, progress: Progress, width: int) -> str:
        return self._meter_line(label, progress, width, ascii_only=not self._block.has_unicode)

    def _prefix(self, task: Tally) -> str:
        return f"{short_id(task.task_id)} " if self._tasks_seen > 1 else ""


class _BarsTask(Tally):
    def __init__(self, task_id: str, screen: Bars, *, clock: Callable[[], float]) -> None:
        super().__init__(task_id, clock=clock, changed=screen.touch)
        self._screen = screen

    def note(self, message: str) -> None:
        self._screen.note(self, message)

    def finished(self) -> None:
        self._screen.finish(self)


def _waiting_line(tasks: list[_BarsTask], now: float, width: int) -> str:
    """Return one line for all tasks that wait; the one that is asked next stands for the others."""
    task = min(tasks, key=lambda task: task.next_poll_at)
    others = f" (and {len(tasks) - 1} more)" if len(tasks) > 1 else ""
    name = f"{short_id(task.task_id)}{others} "
    return name + waiting_phrase(
        task.status,
        polls=task.polls,
        next_in_seconds=task.next_poll_at - now,
        width=max(0, width - cells(name)),
    )
