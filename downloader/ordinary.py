"""Opens what others may have put there: only a file, and nothing that would be waited for.

Whoever may write to a destination may put a pipe, or a link to a device without an end, in the
place of any file: an ordinary `open` waits for the one and reads the other for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

__all__ = ["NotOrdinary", "open_ordinary"]

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class NotOrdinary(OSError):
    """Something else than a file is in its place."""


def open_ordinary(
    path: str | Path, *, folder: int | None = None, follows_links: bool = False
) -> int:
    """Return a descriptor to read a file by; `folder` is an open one that the path begins in.

    `follows_links` is for a place where links are the user's own.

    Raises:
        NotOrdinary: it is something else than a file.
        OSError: it cannot be opened, or it is a link.
    """
    try:
        descriptor = os.open(path, _FLAGS | (0 if follows_links else os.O_NOFOLLOW), dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link; move it away") from error
        if error.errno == errno.ENXIO:  # a socket
            raise _no_file() from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_file()
    return descriptor


def _no_file() -> NotOrdinary:
    return NotOrdinary(errno.EINVAL, "it is no ordinary file; move it away")
