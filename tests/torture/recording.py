"""A program's operations on the files below one directory, recorded by `recorder.c`."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SOURCE", "Facts", "Kind", "Operation", "record"]

HEAD = struct.Struct("=4I5Q")
FACTS = struct.Struct("=4IQ")
SOURCE = Path(__file__).with_name("recorder.c")


class Kind(enum.IntEnum):
    """What was done; the same numbers are in recorder.c."""

    CREATE = 1  # a file that was not there; without a path, a nameless one
    MKDIR = 2
    WRITE = 3
    RESIZE = 4
    RESERVE = 5  # blocks, and with them the size
    SYNC = 6
    DATASYNC = 7
    RENAME = 8
    LINK = 9
    UNLINK = 10
    RMDIR = 11
    TOUCH = 12  # mode, owner or times
    MARK = 13  # no operation: what the program knows to be safe
    UNKNOWN = 14  # something that the recorder sees and cannot tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a file or directory is, besides its bytes."""

    mode: int
    uid: int
    gid: int
    mtime: int | None  # in ns; None: by its last write, whenever that was

    @classmethod
    def of(cls, path: Path) -> Facts:
        """Return those of what is there."""
        found = path.lstat()
        mode = stat.S_IMODE(found.st_mode)
        return cls(mode=mode, uid=found.st_uid, gid=found.st_gid, mtime=found.st_mtime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation that has succeeded; paths are relative to the directory."""

    number: int
    kind: Kind
    path: str
    other: str  # of a rename or a link: the new name
    inode: int
    thread: int
    began: int  # how many operations were recorded when it began
    offset: int
    length: int
    data: bytes

    @property
    def facts(self) -> Facts | None:
        """Of what is made or touched: what it is from then on."""
        if not self.data:
            return None
        mode, uid, gid, _, mtime = FACTS.unpack(self.data)
        is_told = self.kind is Kind.TOUCH
        return Facts(mode=mode, uid=uid, gid=gid, mtime=mtime if is_told else None)

    def __str__(self) -> str:
        """Return it as a line for people."""
        target = f" -> {self.other}" if self.other else ""
        span = f" [{self.offset}, +{self.length})" if self.kind is Kind.WRITE else ""
        return f"#{self.number} {self.kind.name.lower()} {self.path}{target}{span}"


async def record(
    recorder: Path,
    root: Path,
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str],
) -> list[Operation]:
    """Run the command, and return what it did below `root`, in its order.

    The path of `root` has no links in it.
    """
    log = root.with_name(f"{root.name}.log")
    log.unlink(missing_ok=True)
    program = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=root.parent,
        env={
            **environment,
            "LD_PRELOAD": str(recorder),
            "BGE_TORTURE_ROOT": str(root),
            "BGE_TORTURE_LOG": str(log),
        },
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        exit_code = await program.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            program.kill()
    assert exit_code == 0, "the program that was to be recorded has failed"
    return list(_operations(log.read_bytes()))


def _operations(data: bytes) -> Iterator[Operation]:
    position = number = 0
    while position < len(data):
        kind, thread, path, other, began, inode, offset, length, body = HEAD.unpack_from(
            data, position
        )
        position += HEAD.size
        pieces = []
        for count in (path, other, body):
            pieces.append(data[position : position + count])
            position += count
        yield Operation(
            number=number,
            kind=Kind(kind),
            path=os.fsdecode(pieces[0]),
            other=os.fsdecode(pieces[1]),
            inode=inode,
            thread=thread,
            began=began,
            offset=offset,
            length=length,
            data=pieces[2],
        )
        number += 1
