"""Copies a published file as far as it can be read, and lets a proved copy take its place.

A published file itself is never written to: others may be reading it. It is reached by descriptors
of the folders below the result's: a link that comes into its path leads nobody out of it. Every
call blocks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from downloader.errors import DestinationTaken, DiskError, disk_error
from downloader.folders import Folders
from downloader.ordinary import NotOrdinary, open_ordinary
from downloader.placing import Identity, identity_in, make_no_older
from downloader.syncing import sync_directory, sync_files, sync_names
from downloader.verify import INDEX_SUFFIXES, data_file_of

__all__ = ["PublishedFile"]

COPY_BYTES = 8 * 1024 * 1024  # at once, so that a signal need not wait long
LOST_BYTES = 64 * 1024  # that are given up where the disk cannot read
_NO_COPYING = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)
_IN_THE_WAY = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


class PublishedFile:
    """A file of a result that is open as `root`; what cannot be done is told as a DiskError."""

    def __init__(self, root: int, result: Path, name: str) -> None:
        self._root = root
        self._path = result / name  # for sentences alone
        self.name = name

    def copy_readable(self, target: int, stopped: Callable[[], bool]) -> Sequence[tuple[int, int]]:
        """Copy it into an empty file as far as it can be read.

        Returns the half-open ranges that cannot be; in the copy they are zeros. Of a file that is
        not there, the copy is empty.
        """
        with self._told("copied"), Folders(self._root) as folders:
            try:
                folder, base = folders.of(self.name)
                source = open_ordinary(base, folder=folder)
            except FileNotFoundError:
                return ()
            try:
                return _copied(source, target, os.fstat(source).st_size, stopped)
            finally:
                os.close(source)

    def replace_by(self, copy: str, *, within: int, identity: Identity, size: int) -> None:
        """Let the copy in the open folder `within` take its place in one step, once and for all.

        It gets the owner, the mode and the times of what was there. `identity` and `size` are of
        the file that was proved.

        Raises:
            DestinationTaken: the copy is another file.
        """
        with self._told("replaced by its repaired copy"), Folders(self._root) as folders:
            folders.make(self.name.rpartition("/")[0])
            sync_names(folders.parents_of_made())  # or the file could be lost with its folder
            folder, base = folders.of(self.name)
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(copy, flags, dir_fd=within)
            try:
                facts = os.fstat(descriptor)
                if (identity_in(facts), facts.st_size) != (identity, size):
                    raise DestinationTaken(
                        f"The copy that was to replace {self._path} was changed by another "
                        "process, and nothing was replaced; run the same command again"
                    )
                _take_after(descriptor, folder, base)
                _keep_order(folder, base, copy, within)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(copy, base, src_dir_fd=within, dst_dir_fd=folder)
            sync_directory(folder)

    @contextlib.contextmanager
    def _told(self, deed: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, NotOrdinary) or error.errno in _IN_THE_WAY:
                raise _in_the_way(self._path) from error
            raise disk_error(error, self._path, deed) from error


def _in_the_way(path: Path) -> DiskError:
    return DiskError(
        f"{path} is no ordinary file, or a link is in its path; move that away and verify again"
    )


def _copied(
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


def _take_after(descriptor: int, folder: int, base: str) -> None:
    """Give the copy the owner, the mode and the times of the file that it replaces, if any."""
    with contextlib.suppress(FileNotFoundError):
        facts = os.stat(base, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(facts.st_mode):
            with contextlib.suppress(PermissionError):
                os.fchown(descriptor, facts.st_uid, facts.st_gid)
            os.fchmod(descriptor, facts.st_mode & 0o777)
            os.utime(descriptor, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def _keep_order(folder: int, base: str, copy: str, within: int) -> None:
    """Let no index of a VCF be older than the VCF, before the copy takes its place or after it."""
    data = data_file_of(Path(base)).name
    if data != base:
        with contextlib.suppress(OSError):  # as where it is missing; an older index works as well
            newest = os.stat(data, dir_fd=folder, follow_symlinks=False).st_mtime_ns
            make_no_older(within, copy, newest)
        return
    newest = os.stat(copy, dir_fd=within, follow_symlinks=False).st_mtime_ns
    for suffix in INDEX_SUFFIXES:
        with contextlib.suppress(OSError):
            if make_no_older(folder, f"{base}{suffix}", newest):
                sync_files(folder, [f"{base}{suffix}"])
