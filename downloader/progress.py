"""How work reports: one interface; bars, plain lines and JSON are its subscribers.

Work never prints. Every number is bytes unless its name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["PlannedFile", "Reporter"]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that is about to be transferred; `size` is None until the store has told it."""

    name: str
    size: int | None = None


class Reporter:
    """Hears of everything that happens to one task, and shows nothing: the base of the others.

    Of each file it hears `file_sized`, then `received` any number of times, then `file_done`.
    When bytes are lost they are taken back by a negative `received`, and the file may be sized
    again; `resumed` plus all that was received since is what is on its way to the disk.
    """

    def polled(self, status: str, *, polls: int, next_in_seconds: float) -> None:
        """The platform told the task's status, for the `polls`-th time, and is asked again."""

    def planned(self, files: Sequence[PlannedFile]) -> None:
        """The task is ready; these files are to come."""

    def file_sized(self, name: str, size: int, *, resumed: int) -> None:
        """The store told the file's size; `resumed` bytes of it are on disk from earlier."""

    def received(self, name: str, delta: int) -> None:
        """Bytes of the file arrived; negative when bytes that were counted are lost again."""

    def file_done(self, name: str) -> None:
        """Every byte of the file is on disk and its checksum is the store's."""

    def verifying(self, name: str) -> None:
        """The content of the file is being checked."""

    def alive(self) -> None:
        """Work goes on of which nothing else is heard; may be called from any thread."""

    def asked(self, stopped: Callable[[], bool]) -> Callable[[], bool]:
        """Return `stopped` for long work that asks it: that it asks says that it is alive."""

        def ask() -> bool:
            self.alive()
            return stopped()

        return ask

    def note(self, message: str) -> None:
        """Something worth a sentence happened: a renewed link, a restart, a warning."""

    def finished(self) -> None:
        """Nothing more will be heard of this task."""
