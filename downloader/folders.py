"""Reaches what lies below a directory by descriptors, from folder to folder and never by a link.

Whoever may write to a destination may swap a folder for a link at any moment, between any look and
any deed. A descriptor stays with the folder that was looked at. Every call blocks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["FOLDER_FLAGS", "Folders", "linkless"]

MAX_OPEN = 32  # folders at once: a result may have thousands
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


class Folders:
    """The folders below one that is open; what is asked for is valid until something else is."""

    def __init__(self, root: int) -> None:
        self.root = root
        self._opened: dict[str, int] = {}
        self._made = {""}
        self._parents: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._opened:
            os.close(self._opened.popitem()[1])

    def at(self, folder: str) -> int:
        """Return a descriptor of a folder, `""` for the root; OSError if a link is in the way."""
        if not folder:
            return self.root
        if folder not in self._opened:
            above, _, name = folder.rpartition("/")
            self._keep(folder, os.open(name, FOLDER_FLAGS, dir_fd=self.at(above)))
        return self._opened[folder]

    def of(self, file: str) -> tuple[int, str]:
        """Return the folder that a file is in, and its name there."""
        folder, _, name = file.rpartition("/")
        return self.at(folder), name

    def make(self, folder: str) -> None:
        """Make a folder and those above it, unless they are there."""
        if folder in self._made:
            return
        above, _, name = folder.rpartition("/")
        self.make(above)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=self.at(above))
        self.at(folder)  # an error, if something else is there
        self._made.add(folder)
        self._parents.add(above)

    def parents_of_made(self) -> Iterator[int]:
        """Yield the folders that hold the names of what was made, each to be synced.

        Also where the name was there: whoever made it may have been killed before he synced it.
        """
        return map(self.at, sorted(self._parents))

    def _keep(self, folder: str, descriptor: int) -> None:
        if len(self._opened) >= MAX_OPEN:
            oldest = next(iter(self._opened))
            os.close(self._opened.pop(oldest))
        self._opened[folder] = descriptor


@contextlib.contextmanager
def linkless(path: str | Path) -> Iterator[int]:
    """Open a directory by an absolute path of which no part is a link; OSError if one is.

    Of a path that was resolved once, a link tells that somebody has put it there since.
    """
    descriptor = _linkless(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _linkless(path: str | Path) -> int:
    descriptor = os.open(path, FOLDER_FLAGS)
    with contextlib.suppress(OSError):  # without /proc, or where the kernel tells another name
        if str(Path(f"/proc/self/fd/{descriptor}").readlink()) == str(path):
            return descriptor
    os.close(descriptor)
    return _walked_to(path)


def _walked_to(path: str | Path) -> int:
    here = os.open("/", FOLDER_FLAGS)
    for name in str(path).split("/"):
        if not name:
            continue
        above = here
        try:
            here = os.open(name, FOLDER_FLAGS, dir_fd=above)
        finally:
            os.close(above)
    return here
