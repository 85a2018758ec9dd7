"""How work reports: one interface; bars, plain lines and JSON are its subscribers.

Work never prints. Every number is bytes unless its name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PlannedFile", "Reporter"]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that is about to be transferred; `size` is None until the store has told it."""

    name: str
    size: int | None = None


class Reporter:
    """Hears of everything and shows nothing: the silent reporter, and the base of the others."""

    def polled(self, task_id: str, status: str, *, polls: int, next_in_seconds: float) -> None:
        """The platform was asked for the task's status and will be asked again."""

    def planned(self, task_id: str, files: Sequence[PlannedFile]) -> None:
        """The task is ready; these files are to come."""

    def file_sized(self, name: str, size: int, *, resumed: int) -> None:
        """The store told the file's size; `resumed` bytes of it are on disk from earlier."""

    def received(self, name: str, delta: int) -> None:
        """Bytes of the file arrived; negative when bytes that were counted are lost again."""

    def file_done(self, name: str) -> None:
        """Every byte of the file is on disk and its checksum is the store's."""

    def verifying(self, name: str) -> None:
        """The content of the file is being checked."""

    def note(self, message: str) -> None:
        """Something worth a sentence happened: a renewed link, a restart, a warning."""

    def close(self) -> None:
        """No more is to come; restore the screen."""
