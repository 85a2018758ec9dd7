"""What makes files and their names survive a power loss. Every call blocks."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from downloader.folders import Folders

__all__ = [
    "make_directories",
    "make_directory",
    "sync_directory",
    "sync_files",
    "sync_names",
    "write_synced",
]

SYNC_THREADS = 8  # the kernel joins syncs that come at once; more gain nothing
FEW = 16  # files that are synced sooner than threads are started
# What is told of a directory by file systems that can sync none, as some of networks do. Nothing
# but that: a disk that fails, or is full, is told of by the caller.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_MAY_NOT = (errno.EACCES, errno.EPERM)


def sync_files(directory: Path | int, names: Sequence[str]) -> None:
    """Sync the files of those names, several at once; a link in a name is an OSError.

    One `syncfs` would be quicker still, but it waits for everybody's writes on that disk, and
    what went wrong with a file before it was asked may have been told to somebody else.
    """
    if not isinstance(directory, int):
        with _opened(directory) as descriptor:
            sync_files(descriptor, names)
        return
    if len(names) <= FEW:
        _sync_share(directory, names)
        return
    # A few large shares, not a job for each file, whose bookkeeping costs as much as its sync.
    shares = [names[first::SYNC_THREADS] for first in range(SYNC_THREADS)]
    with ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="sync") as executor:
        for _ in executor.map(_sync_share, repeat(directory), shares):
            pass


def _sync_share(root: int, names: Iterable[str]) -> None:
    with Folders(root) as folders:
        for name in names:
            folder, base = folders.of(name)
            descriptor = os.open(base, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def sync_directory(directory: str | Path | int) -> None:
    """Sync the names in a directory, which may be open already, where the file system can."""
    if isinstance(directory, int):
        _sync_names_in(directory)
        return
    with _opened(directory) as descriptor:
        _sync_names_in(descriptor)


def _sync_names_in(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def sync_names(directories: Iterable[str | Path | int]) -> None:
    """Make the names of new files survive a power loss, where the file system and its owner let us.

    Not everybody may open the directory that is above his own.
    """
    for directory in directories:
        try:
            sync_directory(directory)
        except OSError as error:
            if error.errno not in _MAY_NOT:
                raise


def make_directories(path: Path) -> None:
    """Make a directory, and those above it that are missing; their names survive a power loss."""
    missing = [one for one in path.parents if not one.exists()]
    there = path.parents[len(missing)] if len(missing) < len(path.parents) else path
    for directory in (there, *reversed(missing), path):
        make_directory(directory)


def make_directory(path: Path) -> None:
    """Make a directory unless it is there; its name survives a power loss.

    A sync of what is in it does not see to that. Nor has it been seen to where the directory is
    there: whoever made it may have been killed before he came to it.
    """
    path.mkdir(exist_ok=True)
    sync_names([path.parent])


@contextlib.contextmanager
def _opened(directory: str | Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_synced(name: str, pieces: Iterable[str], *, folder: int) -> None:
    """Write a new file in an open folder, and sync it; FileExistsError if its name is taken."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # of a link, the name is taken too
    descriptor = os.open(name, flags, 0o644, dir_fd=folder)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - it is open already
        file.writelines(pieces)
        file.flush()
        os.fsync(descriptor)
