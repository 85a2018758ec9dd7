"""Orders for a process that runs with `faulty.c` in front of its libc: what fails, and when.

It is for what cannot be had otherwise: a disk that fails at an exact call, also below SQLite, which
knows nothing of Python; a signal at an exact moment; a clock of the day that jumps in mid-run.
"""

from __future__ import annotations

import ctypes
import enum
import mmap
import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["SOURCE", "Call", "Orders"]

SOURCE = Path(__file__).with_name("faulty.c")
FOR_EVER = 2**32 - 1
MOST_SIGNALS = 4
MOST_PATH_BYTES = 4096


class Call(enum.IntEnum):
    """The kinds of calls that may fail; the same names, in the same order, are in faulty.c."""

    OPEN = 0
    READ = enum.auto()
    WRITE = enum.auto()
    RESIZE = enum.auto()
    RESERVE = enum.auto()  # blocks
    SYNC = enum.auto()
    DATASYNC = enum.auto()
    SYNC_NAMES = enum.auto()  # in a directory
    RENAME = enum.auto()
    UNLINK = enum.auto()
    MKDIR = enum.auto()
    LOCK = enum.auto()
    MAP = enum.auto()  # into memory
    CLOSE = enum.auto()
    LIST = enum.auto()  # what is in a directory
    LOOK = enum.auto()  # at what a file is


class _Signal(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint32), ("at", ctypes.c_uint32))


class _Layout(ctypes.Structure):
    """The same layout is in faulty.c."""

    _fields_ = (
        ("kinds", ctypes.c_uint32),
        ("code", ctypes.c_int32),
        ("first", ctypes.c_uint32),
        ("last", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("refused", ctypes.c_uint32),
        ("moments", ctypes.c_uint32),
        ("signals", _Signal * MOST_SIGNALS),
        ("sent", ctypes.c_uint32),
        ("ahead", ctypes.c_int64),
        ("root", ctypes.c_char * MOST_PATH_BYTES),
        ("begins", ctypes.c_char * MOST_PATH_BYTES),
    )


class Orders:
    """What one process does against its will; shared with it, and seen by it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(ctypes.sizeof(_Layout)))
        with path.open("r+b") as file:
            self._there = _Layout.from_buffer(mmap.mmap(file.fileno(), 0))

    def fail(
        self, calls: Collection[Call], code: int, *, below: Path, at: int = 1, lasts: bool = False
    ) -> None:
        """Let the `at`th of these calls below a directory fail; if it `lasts`, all later ones."""
        there = self._there
        there.kinds = sum(1 << call for call in calls)
        there.code, there.first, there.last = code, at, FOR_EVER if lasts else at
        there.root = os.fsencode(below)

    def send(self, *signals: tuple[int, int], begins: str = "") -> None:
        """Let signals come, each at its moment: any call of libc that `faulty.c` knows is one.

        Moments are counted from the opening of a file on with `begins` in its path.
        """
        for place, (number, at) in zip(self._there.signals, signals, strict=False):
            place.number, place.at = number, at
        self._there.begins = os.fsencode(begins)

    def put_clock(self, *, ahead: int) -> None:
        """Let the clock of the day be so many seconds ahead, from now on."""
        self._there.ahead = ahead

    @property
    def happened(self) -> bool:
        """Tell whether a call has failed, or a signal was sent."""
        return bool(self._there.refused or self._there.sent)
