"""Plain lines for a log, a pipe or a terminal that cannot move its cursor."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TextIO

from downloader.logs import printable, safe_lines
from downloader.progress import PlannedFile, Reporter
from downloader.screens.screen import Beat, Screen
from downloader.screens.tally import Tally, Totals, joint_rate, summed
from downloader.screens.text import files_phrase, short_id, time_left, waiting_phrase
from downloader.units import counted, format_bytes, format_rate

__all__ = ["Lines"]

PROGRESS_SECONDS = 10.0  # between two lines of progress at the least, of all tasks together
WAITING_SECONDS = 300.0  # between two lines about a task whose status does not change
MANY_FILES = 100  # of a task with more files, single files get no line


class Lines(Screen):
    """Writes a line for each event that matters, and now and then one of progress."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._clock = clock
        self._beat = Beat(self._strike, seconds=PROGRESS_SECONDS)
        self._next_progress_at = 0.0
        self._tasks: list[_LinesTask] = []
        self._tasks_seen = 0
        self._is_closed = False

    def reporter(self, task_id: str) -> Reporter:
        """Return what writes the task's lines."""
        task = _LinesTask(task_id, self, clock=self._clock)
        self._tasks.append(task)
        self._tasks_seen += 1
        return task

    def say(self, line: str) -> None:
        """Write a line."""
        self._write(safe_lines(line))

    def close(self) -> None:
        """Write nothing more about any task."""
        self._is_closed = True
        self._beat.stop()

    # What the tasks call.

    def tell(self, task: Tally, message: str) -> None:
        """Write a line about a task; it is named if there is more than one."""
        prefix = f"{short_id(task.task_id)} " if self._tasks_seen > 1 else ""
        if not self._is_closed:
            self._write([prefix + line for line in safe_lines(message)])

    def tell_waiting(self, task: Tally, asked: str) -> None:
        """Write what a task waits for, with its whole id: it is what people look for in a log."""
        if not self._is_closed:
            self._write([f"{printable(task.task_id)} {asked}"])

    def begin(self) -> None:
        """A task has begun to load: the first line of progress is due after a while."""
        if not self._is_closed and not any(task.is_loading for task in self._tasks):
            self._next_progress_at = self._clock() + PROGRESS_SECONDS
            self._beat.start()

    def touch(self) -> None:
        """Write a line of progress if one is due."""
        now = self._clock()
        if self._is_closed or now < self._next_progress_at:
            return
        loading = [task for task in self._tasks if task.is_loading]
        if loading:
            self._next_progress_at = now + PROGRESS_SECONDS
            self._write([_progress_line(summed(loading), joint_rate(loading, now))])

    def finish(self, task: _LinesTask) -> None:
        """Count the task no more."""
        if task in self._tasks:
            self._tasks.remove(task)
        if not self._tasks:
            self._beat.stop()

    def _strike(self) -> None:
        self.touch()
        if self._tasks and not self._is_closed:
            self._beat.start()

    def _write(self, lines: Sequence[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        try:
            self._stream.write(text.encode(self._encoding, "replace").decode(self._encoding))
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            self._is_closed = True


class _LinesTask(Tally):
    def __init__(self, task_id: str, screen: Lines, *, clock: Callable[[], float]) -> None:
        super().__init__(task_id, clock=clock, changed=screen.touch)
        self._screen = screen
        self._next_waiting_at = 0.0

    @property
    def is_loading(self) -> bool:
        """Tell whether files of it are still to come."""
        totals = self.totals()
        return self.is_planned and totals.files_done < totals.files

    def polled(self, status: str, *, polls: int, next_in_seconds: float) -> None:
        is_news = status != self.status or self._clock() >= self._next_waiting_at
        super().polled(status, polls=polls, next_in_seconds=next_in_seconds)
        if is_news and self.is_waiting:
            self._next_waiting_at = self._clock() + WAITING_SECONDS
            asked = waiting_phrase(status, polls=polls, next_in_seconds=next_in_seconds)
            self._screen.tell_waiting(self, asked)

    def planned(self, files: Sequence[PlannedFile]) -> None:
        self._screen.begin()
        super().planned(files)
        totals = self.totals()
        count = f"{counted(totals.files, 'file')} to fetch"
        size = f", {format_bytes(totals.total_bytes)}" if totals.is_sized else ""
        self._screen.tell(self, count + size)

    def file_done(self, name: str) -> None:
        super().file_done(name)
        if self.files > MANY_FILES:
            return
        totals = self.totals()
        size = self.size_of(name)
        done = f"{printable(name)} done" + ("" if size is None else f", {format_bytes(size)}")
        self._screen.tell(self, f"{done} ({totals.files_done}/{totals.files})")

    def verifying(self, name: str) -> None:
        super().verifying(name)
        if self.files <= MANY_FILES:
            self._screen.tell(self, f"checking {printable(name)}")

    def note(self, message: str) -> None:
        self._screen.tell(self, message)

    def finished(self) -> None:
        self._screen.finish(self)


def _progress_line(totals: Totals, rate: float | None) -> str:
    """Return `1/3 files, 12.3 MiB of 29.0 MiB (42%), 3.4 MiB/s, 5 s left`, as far as known."""
    progress = totals.progress(rate)
    facts = [files_phrase(totals.files_done, totals.files)]
    if progress.total is None:
        facts.append(f"{format_bytes(progress.done)} so far")
    else:
        percent = int(progress.fraction * 100)
        facts.append(
            f"{format_bytes(progress.done)} of {format_bytes(progress.total)} ({percent}%)"
        )
    if rate is not None:
        facts.append(format_rate(rate) if rate >= 1 else "stalled")
    if progress.seconds_left is not None:
        facts.append(f"{time_left(progress.seconds_left)} left")
    return ", ".join(facts)
