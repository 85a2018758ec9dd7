"""What the program remembers: frozen records and the words they use.

Times are aware UTC datetimes, sizes and positions are bytes, ranges are half-open.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime

__all__ = [
    "Checkpoint",
    "Event",
    "File",
    "FileProgress",
    "Lease",
    "Phase",
    "Segment",
    "Task",
]


class Phase(enum.StrEnum):
    """How far our side of a task's story has come."""

    WAITING = "waiting"  # the platform has not finished the task yet
    TRANSFERRING = "transferring"
    VERIFYING = "verifying"
    PUBLISHED = "published"
    FAILED = "failed"  # ended with an error; a new fetch tries again

    @property
    def is_final(self) -> bool:
        """Tell whether nothing more happens until somebody asks for it."""
        return self in (Phase.PUBLISHED, Phase.FAILED)


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
