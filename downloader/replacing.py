"""Copies a published file as far as it can be read, and lets a proved copy take its place.

A published file itself is never written to: others may be reading it. Every call blocks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from downloader.errors import DestinationTaken, DiskError
from downloader.syncing import sync_directory, sync_files
from downloader.transfer.part_file import disk_error
from downloader.verify import INDEX_SUFFIXES, data_file_of

__all__ = ["copy_readable", "held_for_repair", "put_in_place", "remove_copy"]

COPY_BYTES = 8 * 1024 * 1024  # at once, so that a signal need not wait long
LOST_BYTES = 64 * 1024  # that are given up where the disk cannot read
_NO_COPYING = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


@contextlib.contextmanager
def held_for_repair(directory: Path) -> Iterator[None]:
    """Keep every other process on this host from mending the same result.

    Raises:
        DestinationTaken: another one does.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise disk_error(error, directory, "opened") from error
    try:
        with contextlib.suppress(OSError):  # NFS has no locks on directories
            _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DestinationTaken(
            f"Another process is repairing {directory}; wait for it and verify again"
        ) from None


def copy_readable(path: Path, copy: Path, stopped: Callable[[], bool]) -> Sequence[tuple[int, int]]:
    """Copy a file as far as it can be read; return the ranges that cannot be, zeros in the copy.

    The copy of a file that is not there is empty.

    Raises:
        DiskError: the disk refused to write, or there is no ordinary file in the file's place.
    """
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        remove_copy(copy)  # what a run that was killed has left
        target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            return _copied_into(target, path, stopped)
        finally:
            os.close(target)
    except OSError as error:
        raise disk_error(error, path, f"copied to {copy.name}") from error


def _copied_into(target: int, path: Path, stopped: Callable[[], bool]) -> Sequence[tuple[int, int]]:
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ()  # all of it is missing: the copy is empty
    try:
        facts = os.fstat(source)
        if not stat.S_ISREG(facts.st_mode):
            raise DiskError(f"{path} is no ordinary file; move it away and verify again")
        return _copied_bytes(source, target, facts.st_size, stopped)
    finally:
        os.close(source)


def _copied_bytes(
    source: int, target: int, size: int, stopped: Callable[[], bool]
) -> Sequence[tuple[int, int]]:
    position, length = 0, COPY_BYTES
    lost: list[tuple[int, int]] = []
    while position < size and not stopped():
        try:
            count = _copy_range(source, target, min(length, size - position), position)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            if length > LOST_BYTES:
                length = LOST_BYTES
                continue
            count = min(length, size - position)
            is_next = lost and lost[-1][1] == position
            start = lost.pop()[0] if is_next else position
            lost.append((start, position + count))
        else:
            length = min(2 * length, COPY_BYTES)
        if not count:  # it became shorter
            break
        position += count
    os.ftruncate(target, position)
    return lost


def _copy_range(source: int, target: int, count: int, position: int) -> int:
    """Copy some bytes, within the file system where it can: some then share them, and copy none."""
    try:
        return os.copy_file_range(source, target, count, position, position)
    except OSError as error:
        if error.errno not in _NO_COPYING:
            raise
    return os.pwrite(target, os.pread(source, count, position), position)


def put_in_place(copy: Path, path: Path) -> None:
    """Let the proved copy take the file's place in one step, with its owner, mode and times."""
    try:
        with contextlib.suppress(FileNotFoundError):
            facts = os.lstat(path)
            with contextlib.suppress(PermissionError):
                os.chown(copy, facts.st_uid, facts.st_gid)
            copy.chmod(stat.S_IMODE(facts.st_mode))
            os.utime(copy, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        sync_files(copy.parent, [copy.name])
        copy.replace(path)
        _keep_order(path)
        sync_directory(path.parent)
    except OSError as error:
        raise disk_error(error, path, "replaced by its repaired copy") from error


def _keep_order(path: Path) -> None:
    """Let no index of a VCF be older than the VCF: htslib would warn of it."""
    data = data_file_of(path)
    for suffix in INDEX_SUFFIXES:
        index = data.with_name(data.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            newest = os.lstat(data).st_mtime_ns
            if os.lstat(index).st_mtime_ns < newest:
                os.utime(index, ns=(newest, newest), follow_symlinks=False)


def remove_copy(copy: Path) -> None:
    """Remove a copy that has not taken a file's place, if there is one."""
    with contextlib.suppress(OSError):  # it is in nobody's way
        copy.unlink(missing_ok=True)
