"""What is told when the service has ended a task for good, and how the telling went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from downloader.logs import one_line, scrubbed

__all__ = ["Announcement", "Delivery", "Event", "Way"]

Event = Literal["complete", "failure"]
Way = Literal["command", "webhook"]

MAX_MESSAGE = 2000  # characters; an error of ours is one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """The end of one task, as it is told to others."""

    key: str  # the same for every attempt of one announcement
    event: Event
    task_id: str
    path: Path  # the result directory, which need not be there after a failure
    manifest: Path | None  # of a published result
    message: str | None  # why it failed
    exit_code: int  # that `fetch` would have ended with
    attempt: int  # from 1

    @property
    def safe_message(self) -> str | None:
        """The message on one line, bounded and without secrets."""
        if self.message is None:
            return None
        return one_line(scrubbed(self.message[: 4 * MAX_MESSAGE]), MAX_MESSAGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How one attempt went to tell somebody; every text is printable and without secrets."""

    way: Way
    is_done: bool
    may_help_again: bool  # another attempt may end otherwise
    summary: str  # one line for the task's history
    exit_code: int | None = None  # of a command, as a shell tells it
    output: str = ""  # the end of what a command printed, or the start of a reply
    retry_after: float | None = None  # seconds that the other side asked us to wait
