"""Counts what a task reports: files, bytes, and how fast they come. Shows nothing itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from downloader.progress import PlannedFile, Reporter

__all__ = ["ActiveFile", "Pace", "Progress", "Tally", "Totals", "joint_rate", "summed"]

PACE_SECONDS = 5.0  # what was longer ago hardly counts
MIN_SAMPLE_SECONDS = 0.1
MIN_PACE_SECONDS = 0.5  # until then a rate is noise
STALL_SECONDS = 10.0


class Pace:
    """Bytes a second, smoothed over some seconds; time without bytes counts like any other."""

    def __init__(self, now: float) -> None:
        self._fresh = 0  # bytes since the last sample
        self._bytes = 0.0
        self._seconds = 0.0
        self._sampled_at = now
        self._last_bytes_at = now

    def add(self, count: int) -> None:
        """Count bytes that have just arrived."""
        self._fresh += count

    def rate(self, now: float) -> float | None:
        """Return bytes per second; None while it is too early to tell, 0 in a stall."""
        passed = now - self._sampled_at
        if passed >= MIN_SAMPLE_SECONDS:
            # Bytes and seconds fade alike, so that the first samples are not held too low.
            fade = math.exp(-passed / PACE_SECONDS)
            self._bytes = self._bytes * fade + self._fresh
            self._seconds = self._seconds * fade + passed
            if self._fresh:
                self._last_bytes_at = now
            self._fresh = 0
            self._sampled_at = now
        if now - self._last_bytes_at >= STALL_SECONDS:
            return 0.0
        return self._bytes / self._seconds if self._seconds >= MIN_PACE_SECONDS else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far something is: `total` is None while nobody knows, the rate while it is too early."""

    fraction: float
    done: int
    total: int | None
    rate: float | None
    seconds_left: float | None


class ActiveFile:
    """A file whose bytes are coming."""

    __slots__ = ("done", "pace", "since", "size")

    def __init__(self, size: int, done: int, now: float) -> None:
        self.size = size
        self.done = done
        self.since = now
        self.pace = Pace(now)

    @property
    def fraction(self) -> float:
        """Return how much of it is here, from 0 to 1."""
        return _share(self.done, self.size)

    def progress(self, now: float) -> Progress:
        """Return how far it is."""
        rate = self.pace.rate(now)
        left = max(0, self.size - self.done)
        return Progress(
            fraction=self.fraction,
            done=max(0, self.done),
            total=self.size,
            rate=rate,
            seconds_left=_seconds_left(left, rate),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Files and bytes of one task, or of several together."""

    files: int = 0
    files_done: int = 0
    files_sized: int = 0
    files_begun: float = 0.0  # the fractions of the active files, summed
    total_bytes: int = 0  # of the files that are sized
    done_bytes: int = 0

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            files=self.files + other.files,
            files_done=self.files_done + other.files_done,
            files_sized=self.files_sized + other.files_sized,
            files_begun=self.files_begun + other.files_begun,
            total_bytes=self.total_bytes + other.total_bytes,
            done_bytes=self.done_bytes + other.done_bytes,
        )

    @property
    def is_sized(self) -> bool:
        """Tell whether the size of every file is known."""
        return self.files_sized >= self.files

    @property
    def fraction(self) -> float:
        """Return how much is here, from 0 to 1.

        Counted in bytes once every size is known, before that in files: most sizes are told only
        when a file's turn comes, and by bytes a long list would seem nearly done all the time.
        """
        if self.is_sized and self.total_bytes:
            return _share(self.done_bytes, self.total_bytes)
        return _share(self.files_done + self.files_begun, self.files)

    def progress(self, rate: float | None) -> Progress:
        """Return how far it is; without every size nobody knows the time that is left."""
        left = max(0, self.total_bytes - self.done_bytes)
        return Progress(
            fraction=self.fraction,
            done=self.done_bytes,
            total=self.total_bytes if self.is_sized else None,
            rate=rate,
            seconds_left=_seconds_left(left, rate) if self.is_sized else None,
        )


def _seconds_left(count: int, rate: float | None) -> float | None:
    return count / rate if rate is not None and rate >= 1 else None


def _share(done: float, whole: float) -> float:
    return min(1.0, max(0.0, done / whole)) if whole else 0.0


class Tally(Reporter):
    """Hears of one task and keeps count; calls `changed` after everything that it heard.

    It keeps something only of a file's size and of the files that are active, so a task of many
    thousand files costs little.
    """

    def __init__(
        self, task_id: str, *, clock: Callable[[], float], changed: Callable[[], None]
    ) -> None:
        self.task_id = task_id
        self.status = ""
        self.polls = 0
        self.next_poll_at = 0.0
        self.is_waiting = False
        self.is_planned = False
        self.checking: str | None = None
        self.active: dict[str, ActiveFile] = {}
        self.pace = Pace(clock())
        self._clock = clock
        self._changed = changed
        self._files = 0
        # A file is in one of them at a time: thousands of names twice would be felt.
        self._sizes: dict[str, int] = {}
        self._finished: dict[str, int | None] = {}  # None: its size was never told
        self._unsized = 0  # of the finished ones
        self._total_bytes = 0
        self._done_bytes = 0

    def polled(self, status: str, *, polls: int, next_in_seconds: float) -> None:
        """Remember the status, and when it is asked for again."""
        self.status = status
        self.polls = polls
        self.next_poll_at = self._clock() + next_in_seconds
        self.is_waiting = not self.is_planned
        self._changed()

    def planned(self, files: Sequence[PlannedFile]) -> None:
        """Begin to count these files."""
        self.is_waiting = False
        self.is_planned = True
        self.checking = None
        self.active.clear()
        self.pace = Pace(self._clock())
        self._files = len(files)
        self._sizes = {file.name: file.size for file in files if file.size is not None}
        self._finished.clear()
        self._unsized = 0
        self._total_bytes = sum(self._sizes.values())
        self._done_bytes = 0
        self._changed()

    def file_sized(self, name: str, size: int, *, resumed: int) -> None:
        """Count the file as active, from what is on disk; one that is sized again begins anew."""
        self.is_waiting = False
        self.is_planned = True
        if self.checking == name:  # it was found wrong, and comes again
            self.checking = None
        self._done_bytes += resumed - self._done_of(name)
        self._total_bytes += size - (self.size_of(name) or 0)
        self._sizes[name] = size
        if self._finished.pop(name, 0) is None:
            self._unsized -= 1
        before = self.active.get(name)
        self.active[name] = ActiveFile(size, resumed, self._clock())
        if before is not None:  # its bar stays on the screen
            self.active[name].since = before.since
        self._changed()

    def received(self, name: str, delta: int) -> None:
        """Count bytes that came, or take back those that were lost."""
        file = self.active.get(name)
        if file is None and delta < 0:
            file = self._reopened(name)
        if file is None or not delta:
            return
        file.done += delta
        self._done_bytes += delta
        if delta > 0:  # lost bytes were received all the same, at the rate that was shown
            file.pace.add(delta)
            self.pace.add(delta)
        self._changed()

    def file_done(self, name: str) -> None:
        """Count the file as done, whole."""
        size = self.size_of(name)
        self._done_bytes += (size or 0) - self._done_of(name)
        self.active.pop(name, None)
        self._sizes.pop(name, None)
        if size is None and name not in self._finished:
            self._unsized += 1
        self._finished[name] = size
        self._changed()

    def verifying(self, name: str) -> None:
        """Remember which file is being checked: the last one that was named."""
        self.checking = name
        self._changed()

    def size_of(self, name: str) -> int | None:
        """Return the size of a file, if it was told."""
        return self._sizes.get(name, self._finished.get(name))

    @property
    def files(self) -> int:
        """How many files the task has, as far as is known."""
        return max(self._files, len(self._finished) + len(self.active))

    def totals(self) -> Totals:
        """Return where the task stands."""
        return Totals(
            files=self.files,
            files_done=len(self._finished),
            files_sized=len(self._sizes) + len(self._finished) - self._unsized,
            files_begun=sum(file.fraction for file in self.active.values()),
            total_bytes=self._total_bytes,
            done_bytes=max(0, self._done_bytes),
        )

    def _done_of(self, name: str) -> int:
        file = self.active.get(name)
        if file is not None:
            return file.done
        return self._finished.get(name) or 0

    def _reopened(self, name: str) -> ActiveFile | None:
        """Return a done file as an active one again: bytes of it are taken back."""
        size = self._finished.get(name)
        if size is None:
            return None
        self._sizes[name] = size
        del self._finished[name]
        self.active[name] = ActiveFile(size, size, self._clock())
        return self.active[name]


def summed(tallies: Iterable[Tally]) -> Totals:
    """Return where several tasks stand together."""
    return sum((tally.totals() for tally in tallies), Totals())


def joint_rate(tallies: Iterable[Tally], now: float) -> float | None:
    """Return the bytes per second of several tasks together."""
    rates = [rate for tally in tallies if (rate := tally.pace.rate(now)) is not None]
    return sum(rates) if rates else None
