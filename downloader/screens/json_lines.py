"""One JSON object a line, for programs that follow a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from downloader.logs import scrubbed
from downloader.progress import PlannedFile, Reporter
from downloader.screens.lines import Lines
from downloader.screens.screen import Screen
from downloader.screens.tally import Tally

__all__ = ["JsonLines"]

PROGRESS_SECONDS = 1.0  # between two progress events of a task at the least


class JsonLines(Screen):
    """Writes every event as one line of ASCII; what is said to people goes to `people`."""

    def __init__(
        self,
        stream: TextIO,
        *,
        people: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._people = Screen() if people is None else Lines(people, clock=clock)
        self._clock = clock
        self._is_closed = False

    def reporter(self, task_id: str) -> Reporter:
        """Return what writes the task's events."""
        return _JsonTask(task_id, self, clock=self._clock)

    def say(self, line: str) -> None:
        """Show people a line; it is no event."""
        self._people.say(line)

    def close(self) -> None:
        """Write nothing more."""
        self._is_closed = True
        self._people.close()

    def emit(self, event: str, task: Tally, **facts: object) -> None:
        """Write one event."""
        if self._is_closed:
            return
        line = json.dumps({"event": event, "task_id": task.task_id, **facts})
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            self._is_closed = True


class _JsonTask(Tally):
    def __init__(self, task_id: str, screen: JsonLines, *, clock: Callable[[], float]) -> None:
        super().__init__(task_id, clock=clock, changed=lambda: None)
        self._screen = screen
        self._next_progress_at = 0.0

    def polled(self, status: str, *, polls: int, next_in_seconds: float) -> None:
        super().polled(status, polls=polls, next_in_seconds=next_in_seconds)
        pause = round(next_in_seconds, 3)
        self._screen.emit("polled", self, status=status, polls=polls, next_in_seconds=pause)

    def planned(self, files: Sequence[PlannedFile]) -> None:
        super().planned(files)
        listed = [{"file": file.name, "size": file.size} for file in files]
        self._screen.emit("planned", self, files=listed)

    def file_sized(self, name: str, size: int, *, resumed: int) -> None:
        super().file_sized(name, size, resumed=resumed)
        self._screen.emit("file_sized", self, file=name, size=size, resumed=resumed)

    def received(self, name: str, delta: int) -> None:
        super().received(name, delta)
        now = self._clock()
        if now < self._next_progress_at:
            return
        self._next_progress_at = now + PROGRESS_SECONDS
        totals = self.totals()
        progress = totals.progress(self.pace.rate(now))
        self._screen.emit(
            "progress",
            self,
            files=totals.files,
            files_done=totals.files_done,
            done_bytes=progress.done,
            total_bytes=progress.total,
            bytes_per_second=None if progress.rate is None else round(progress.rate),
            seconds_left=None if progress.seconds_left is None else round(progress.seconds_left),
        )

    def file_done(self, name: str) -> None:
        super().file_done(name)
        self._screen.emit("file_done", self, file=name, size=self.size_of(name))

    def verifying(self, name: str) -> None:
        super().verifying(name)
        self._screen.emit("verifying", self, file=name)

    def note(self, message: str) -> None:
        self._screen.emit("note", self, message=scrubbed(message))
