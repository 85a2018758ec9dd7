"""What the program remembers: frozen records and the words they use.

Times are aware UTC datetimes, sizes and positions are bytes, ranges are half-open.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol

__all__ = [
    "Checkpoint",
    "Event",
    "File",
    "FileProgress",
    "Lease",
    "Notice",
    "Phase",
    "PlannedObject",
    "Polled",
    "Segment",
    "ServiceRecord",
    "Task",
    "Wanted",
]


class Phase(enum.StrEnum):
    """How far our side of a task's story has come."""

    WAITING = "waiting"  # the platform has not finished the task yet
    TRANSFERRING = "transferring"
    VERIFYING = "verifying"
    RETRYING = "retrying"  # an attempt has failed; the service makes another one later
    PAUSED = "paused"  # there is no room on the disk; the service goes on once there is
    PUBLISHED = "published"
    FAILED = "failed"  # ended with an error; a new fetch tries again
    CANCELLED = "cancelled"  # somebody did not want it any more; what was received is kept

    @property
    def is_final(self) -> bool:
        """Tell whether nothing more happens until somebody asks for it."""
        return self in (Phase.PUBLISHED, Phase.FAILED, Phase.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One platform task that is to be brought to one destination directory."""

    id: int
    task_id: str
    dest: str  # absolute path of the directory that holds the results
    phase: Phase
    status: str | None = None  # the platform's own word, as last heard
    polls: int = 0
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None = None
    message: str | None = None  # the sentence it ended with, if it failed
    exit_code: int | None = None
    acquired_by: str | None = None
    acquired_until: datetime | None = None
    watched_since: datetime | None = None  # by the service; None: only fetches know of it
    due_at: datetime | None = None  # when the service looks at it next; None: it does not
    asked_at: datetime | None = None  # when the platform was last asked by the service
    tries: int = 0  # of the service, that have failed in a row
    ready_after_seconds: float | None = None  # from `watched_since` until it was SUCCESS

    @property
    def place(self) -> Path:
        """Where its result is, once it is published."""
        return Path(self.dest) / self.task_id

    @property
    def is_watched(self) -> bool:
        """Tell whether the service will look at it again by itself."""
        return self.due_at is not None


class Wanted(enum.StrEnum):
    """What asking for a task to be watched, or not to be, has brought about."""

    ADDED = "added"  # it is watched from now on
    WATCHED = "watched"  # it was already, and nothing was changed
    PUBLISHED = "published"  # its result is there, so there is nothing to watch
    AT_WORK = "at work"  # somebody works on it right now, and nothing was changed
    CANCELLED = "cancelled"  # nobody works on it any more, or will within seconds
    ENDED = "ended"  # it had ended before, and nothing was changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """What a poll of a watched task has brought: the platform's word, and when to ask again."""

    task: int  # Task.id
    status: str | None  # None: there was no answer
    due_at: datetime
    message: str | None = None  # why there was none
    tries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """The end of a task that is to be announced; it goes from the state once it was."""

    id: int
    task: int  # Task.id
    event: str  # complete or failure
    key: str  # the same for every attempt
    attempts: int  # that were made
    delivered: tuple[str, ...]  # ways that have worked, and are not tried again
    message: str | None = None  # the sentence of that end, if it is a failure
    exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """A service that works, or has worked, with this state."""

    owner: str
    started_at: datetime
    seen_at: datetime
    stopped_at: datetime | None = None
    dest: str  # where results go that were added without a destination
    condition: str | None = None  # what keeps it from working, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A half-open byte range `[start, stop)`, of which `watermark` bytes from `start` are safe."""

    start: int
    stop: int
    watermark: int = 0

    @property
    def length(self) -> int:
        """Bytes in the whole range."""
        return self.stop - self.start

    @property
    def position(self) -> int:
        """Absolute offset of the first byte that is not safe yet."""
        return self.start + self.watermark

    @property
    def is_complete(self) -> bool:
        """Tell whether every byte of the range is safe."""
        return self.watermark >= self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is saved of a transfer so that it can be resumed: the version and the watermarks."""

    etag: str | None
    size: int
    segments: tuple[Segment, ...] = ()
    crc64: str | None = None  # of the whole object, as the store has told it
    part_id: str | None = None  # by what the part file is known; None: nothing tells it

    @property
    def safe_bytes(self) -> int:
        """Bytes that are durably in the part file."""
        return sum(segment.watermark for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One object of a task's result and its place inside the task's directory."""

    id: int
    task: int  # Task.id
    name: str  # relative POSIX path inside the task's directory
    bucket: str
    key: str
    etag: str | None = None
    size: int | None = None  # bytes; None until the store has answered


@dataclass(frozen=True, slots=True, kw_only=True)
class FileProgress:
    """A file's bytes as others may see them while it is being transferred."""

    name: str
    size: int | None
    safe_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of a task's history."""

    at: datetime
    kind: str
    message: str
    facts: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A claim on a task that ends by itself: who holds it, and until when."""

    task: int  # Task.id
    acquired_by: str
    acquired_until: datetime


class PlannedObject(Protocol):
    """What a plan tells of one object: its place in the task's directory, and its identity."""

    @property
    def name(self) -> str:
        """Relative POSIX path inside the task's directory."""
        ...

    @property
    def bucket(self) -> str:
        """The bucket it is in."""
        ...

    @property
    def key(self) -> str:
        """Its key, without a link's query."""
        ...
