"""The part file: reserved once, written at offsets, synced, read back. Every call blocks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from downloader.errors import DiskError, DiskFull, as_disk_error, disk_error
from downloader.folders import linkless
from downloader.syncing import sync_names
from downloader.transfer.part_identity import identity_of

__all__ = ["PAGE_BYTES", "PartFile", "PartFileReplaced"]

PAGE_BYTES = 4096  # what offsets and lengths must be multiples of to pass the page cache by
_NO_RESERVATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NO_FILE = (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EEXIST)
_DEVICES: dict[int, int] = {}
_MAX_BUFFERS = 512  # the kernel takes 1,024 in one call (IOV_MAX)


class PartFileReplaced(DiskError):
    """Another file has come into the part file's place; what was written is not there."""


class PartFile:
    """One open part file; positions are absolute offsets in bytes.

    Its owner is the only writer. Every error of the disk becomes a `DiskError`, which nobody
    retries: a write that failed once is told to the user and not repeated for ever.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.part_id = identity_of(descriptor)  # None: nothing tells it from others
        self._descriptor = descriptor
        self._sync_error: OSError | None = None
        self._direct: int | None = None
        self._has_direct = True  # as far as is known
        self._opening_direct = threading.Lock()
        self._has_safe_name = False

    @classmethod
    def open(cls, path: Path, *, anew: bool = False) -> PartFile:
        """Open or create the file, whatever is in it; links and special files are refused.

        A link anywhere in its path too: what is the user's own is resolved before. `anew` makes
        another file in the place of one that is there. It is never emptied, and never one that
        somebody else has just made: he may be writing to it, where no lock has kept us apart, and
        `confirm` tells him.
        """
        with as_disk_error(path, "opened"), linkless(path.parent) as folder:
            if anew and cls.size_on_disk(path) is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=folder)
            descriptor = _opened(path, folder, os.O_EXCL if anew else 0)
            facts = os.fstat(descriptor)
        if not _is_ordinary(facts):
            os.close(descriptor)
            raise _no_ordinary_file(path)
        return cls(path, descriptor)

    @staticmethod
    def remove(path: Path) -> None:
        """Remove the file, if it is there; no link leads to another one."""
        is_gone = contextlib.suppress(FileNotFoundError)
        with as_disk_error(path, "removed"), is_gone, linkless(path.parent) as folder:
            os.unlink(path.name, dir_fd=folder)

    @staticmethod
    def size_on_disk(path: Path) -> int | None:
        """Return the size of the file at `path` in bytes; None if nothing is there.

        Raises:
            DiskError: it is no ordinary file of its own, or cannot be looked at.
        """
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error(error, path, "looked at") from error
        if not _is_ordinary(facts):
            raise _no_ordinary_file(path)
        return facts.st_size

    def reserve(self, size: int, *, keep_free: int = 0) -> None:
        """Make the file exactly `size` bytes long, with its blocks reserved where that works.

        Raises:
            DiskFull: less than `keep_free` bytes would stay free on the disk.
        """
        with as_disk_error(self.path, f"given {size} bytes"):
            self._check_space(size, keep_free)
            if os.fstat(self._descriptor).st_size > size:
                os.ftruncate(self._descriptor, size)
            if size and not _reserve_blocks(self._descriptor, size):
                os.ftruncate(self._descriptor, size)

    def _check_space(self, size: int, keep_free: int) -> None:
        disk = os.fstatvfs(self._descriptor)
        free = disk.f_bavail * disk.f_frsize
        need = max(0, size - os.fstat(self._descriptor).st_blocks * 512)
        if disk.f_blocks and need and need + keep_free > free:  # no blocks at all: not known
            floor = f" and {keep_free} are to stay free" if keep_free else ""
            raise DiskFull(
                f"{self.path.parent} has {free} bytes free, but {need} more are needed{floor}; "
                "free some space and run the same command again, it goes on where it stopped"
            )

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> int:
        """Write the buffers one after the other from `offset`; return how many bytes that was."""
        written = 0
        with as_disk_error(self.path, "written"):
            for first in range(0, len(buffers), _MAX_BUFFERS):
                written += self._write_all(offset + written, buffers[first : first + _MAX_BUFFERS])
        return written

    def write_aligned(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Write one page-aligned buffer, its whole pages past the page cache where that works.

        A file system without O_DIRECT (tmpfs, some network disks and overlays) gets an ordinary
        write, and so does what is no whole page.
        """
        (buffer,) = buffers
        count = len(buffer) - len(buffer) % PAGE_BYTES
        if count and offset % PAGE_BYTES == 0:
            done = self._write_direct(offset, buffer[:count])
            return done + (self.write(offset + done, [buffer[done:]]) if done < len(buffer) else 0)
        return self.write(offset, buffers)

    def _write_direct(self, offset: int, buffer: memoryview) -> int:
        """Write what can be written directly; return how many bytes that was, maybe none."""
        descriptor = self._direct_descriptor()
        if descriptor is None:
            return 0
        with as_disk_error(self.path, "written"):
            try:
                return os.pwrite(descriptor, buffer, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        self._has_direct = False
        return 0

    def _direct_descriptor(self) -> int | None:
        if self._direct is None and self._has_direct:
            with self._opening_direct:
                if self._direct is None:
                    self._open_direct()
        return self._direct if self._has_direct else None

    def _open_direct(self) -> None:
        flags = os.O_WRONLY | os.O_CLOEXEC | getattr(os, "O_DIRECT", 0)
        try:
            # By way of the open file: the path may lead elsewhere by now.
            self._direct = os.open(f"/proc/self/fd/{self._descriptor}", flags)
        except OSError:
            self._has_direct = False

    def _write_all(self, offset: int, buffers: Sequence[bytes | memoryview]) -> int:
        total = sum(len(buffer) for buffer in buffers)
        done = os.pwritev(self._descriptor, buffers, offset)
        if done < total:  # POSIX allows a short write, as before a full disk
            rest = memoryview(b"".join(buffers))[done:]
            while rest:
                written = os.pwrite(self._descriptor, rest, offset + total - len(rest))
                if not written:
                    raise OSError(errno.EIO, "the disk takes no more bytes and gives no reason")
                rest = rest[written:]
        return total

    def chunks(self, start: int, stop: int, length: int = 1024 * 1024) -> Iterator[bytes]:
        """Read [start, stop) back from the disk, at most `length` bytes at a time."""
        position = start
        while position < stop:
            with as_disk_error(self.path, "read back"):
                chunk = os.pread(self._descriptor, min(length, stop - position), position)
            if not chunk:
                raise DiskError(f"{self.path} became shorter while it was in use")
            yield chunk
            position += len(chunk)

    def sync(self, *, names: set[Path] | None = None) -> None:
        """Return once every byte written so far has reached the disk, and the file's name.

        For many files, `names` collects the directories in place of syncing each of them each
        time: `sync_names` does so once for all.

        The kernel tells of a failed sync once and takes the lost pages for clean afterwards, so
        a file that could not be synced stays so.
        """
        with as_disk_error(self.path, "synced"):
            if self._sync_error is not None:
                raise self._sync_error
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                self._sync_error = error
                raise
            if not self._has_safe_name:
                if names is None:
                    sync_names({self.path.parent})
                else:
                    names.add(self.path.parent)
                self._has_safe_name = True

    def confirm(self, size: int) -> tuple[int, int]:
        """Make sure that the path still leads to this very file, and that it has its size.

        Returns its device and inode, by which it can be known again.

        Raises:
            PartFileReplaced: it leads to another file.
            DiskError: it leads nowhere, or somebody has changed the file's size.
        """
        with as_disk_error(self.path, "looked at"):
            ours, there = os.fstat(self._descriptor), os.lstat(self.path)
        if not os.path.samestat(ours, there):
            raise PartFileReplaced(_meddled_with(self.path, "replaced"))
        if ours.st_size != size:
            raise DiskError(_meddled_with(self.path, "cut"))
        # Thousands of files are on one device: its number is kept once.
        return _DEVICES.setdefault(ours.st_dev, ours.st_dev), ours.st_ino

    @property
    def is_closed(self) -> bool:
        """Tell whether it was closed; whoever writes to it then has made a mistake."""
        return self._descriptor < 0

    def close(self) -> None:
        """Close the file, once or again; what was not synced may still be lost with the power."""
        descriptors, self._descriptor, self._direct = (self._direct, self._descriptor), -1, None
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # no checkpoint tells of what was not synced
                if descriptor is not None and descriptor >= 0:
                    os.close(descriptor)


def _opened(path: Path, folder: int, extra_flags: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | extra_flags
    try:
        return os.open(path.name, flags, 0o644, dir_fd=folder)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _no_ordinary_file(path) from error
        raise


def _meddled_with(path: Path, how: str) -> str:
    return (
        f"{path} was {how} by another program while it was being written; see which one that is, "
        "and run the same command again"
    )


def _is_ordinary(facts: os.stat_result) -> bool:
    return stat.S_ISREG(facts.st_mode) and facts.st_nlink == 1


def _no_ordinary_file(path: Path) -> DiskError:
    return DiskError(
        f"{path} is no ordinary file of its own; move it away, put back what was there if you have "
        "it, and run the same command again"
    )


def _reserve_blocks(descriptor: int, size: int) -> bool:
    """Reserve the blocks by the kernel's own call; False where the file system cannot.

    Not `os.posix_fallocate`: where the file system has no such call, glibc imitates it by
    touching every block, which takes minutes on NFS.
    """
    fallocate = _fallocate()
    if fallocate is None:
        return False
    while fallocate(descriptor, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in _NO_RESERVATION:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if fallocate is not None:
        fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return cast("Callable[[int, int, int, int], int] | None", fallocate)
