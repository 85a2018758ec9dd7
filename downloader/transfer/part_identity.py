"""By what a part file is known from every other that has been, or will be, at its path.

An inode's number alone does not do: ext4 gives that of a removed file to the next one. With the
time at which the file was made, it is never given again. Python 3.11 does not tell that time.
"""

from __future__ import annotations

import ctypes
import functools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

__all__ = ["identity_at", "identity_of"]

# What <linux/stat.h> and <linux/fcntl.h> say, the same on every architecture.
_AT_FDCWD, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = -100, 0x100, 0x1000
_STATX_INO, _STATX_BTIME = 0x100, 0x800
_STATX_BYTES = 256
_MASK, _INODE, _BIRTH = (struct.Struct(layout) for layout in ("=I", "=Q", "=qI"))
_INODE_AT, _BIRTH_AT = 32, 80


def identity_of(descriptor: int) -> str | None:
    """Return by what the open file is known; None where its file system tells no birth time."""
    return _identity(descriptor, b"", _AT_EMPTY_PATH)


def identity_at(path: Path) -> str | None:
    """Return by what the file at `path` is known, as `identity_of`; of a link, the link itself."""
    return _identity(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW)


def _identity(folder: int, path: bytes, flags: int) -> str | None:
    statx, wanted = _statx(), _STATX_INO | _STATX_BTIME
    facts = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(folder, path, flags, wanted, facts) != 0:
        return None
    (told,) = _MASK.unpack_from(facts)
    seconds, nanoseconds = _BIRTH.unpack_from(facts, _BIRTH_AT)
    if told & wanted != wanted or not (seconds or nanoseconds):
        return None
    (inode,) = _INODE.unpack_from(facts, _INODE_AT)
    return f"{inode}:{seconds}.{nanoseconds:09}"


@functools.cache
def _statx() -> Callable[[int, bytes, int, int, object], int] | None:
    """Return the C library's call; an old one has none."""
    statx = getattr(ctypes.CDLL(None), "statx", None)
    if statx is not None:
        of_the_file = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        statx.argtypes = [*of_the_file, ctypes.c_uint, ctypes.c_void_p]
    return cast("Callable[[int, bytes, int, int, object], int] | None", statx)
