"""What makes files and their names survive a power loss. Every call blocks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

__all__ = ["sync_directory", "sync_files", "write_synced"]

SYNC_THREADS = 8  # the kernel joins syncs that come at once; more gain nothing
FEW = 16  # files that are synced sooner than threads are started


def sync_files(directory: Path, names: Sequence[str]) -> None:
    """Sync the files of those names, several at once; a link in a file's place is an OSError.

    One `syncfs` would be quicker still, but it waits for everybody's writes on that disk, and
    what went wrong with a file before it was asked may have been told to somebody else.
    """
    if len(names) <= FEW:
        _sync_share(directory, names)
        return
    # A few large shares, not a job for each file, whose bookkeeping costs as much as its sync.
    shares = [names[first::SYNC_THREADS] for first in range(SYNC_THREADS)]
    with ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="sync") as executor:
        for _ in executor.map(_sync_share, repeat(directory), shares):
            pass


def _sync_share(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        _sync(f"{directory}/{name}", os.O_NOFOLLOW)


def sync_directory(path: str | Path) -> None:
    """Sync the names in a directory."""
    _sync(path, os.O_DIRECTORY)


def _sync(path: str | Path, flag: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, pieces: Iterable[str]) -> None:
    """Write a new file, and sync it; FileExistsError if something stands in its place."""
    with path.open("x", encoding="utf-8") as file:  # a link is not followed, as it is by "w"
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
