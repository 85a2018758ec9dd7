"""Whose partial directory it is: by a lock, and by a claim for where locks mean nothing.

On NFS and Lustre a lock may be granted to everybody. So no byte depends on one: each state works
in a directory that is its own by name, or by the claim in it, which only one can make.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from downloader.errors import DestinationTaken
from downloader.syncing import make_directories
from downloader.task_result import CLAIM_NAME, PARTIAL_SUFFIX
from downloader.transfer.part_file import disk_error

__all__ = ["is_claimed_by", "is_kept_for_one", "locked"]

MAX_CLAIM_BYTES = 1000


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Make the directory, keep every other process on this host out of it, and give it open.

    Raises:
        DestinationTaken: another process, with another state file, works in it.
        DiskError: it cannot be made, or something else stands in its place.
    """
    with contextlib.ExitStack() as stack:
        descriptor = _locked(directory)
        stack.callback(os.close, descriptor)
        if not _is_locked(descriptor):
            stack.callback(os.close, _locked_beside(directory))
        yield descriptor


def is_kept_for_one(directory: Path) -> bool:
    """Tell whether the lock that we hold keeps others out: some are granted to everybody."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _is_locked(descriptor)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_claimed_by(identity: str, folder: int, directory: Path) -> bool:
    """Claim an open directory for a state, unless another one has; tell whether it is ours.

    Half of a claim is of somebody who died with it, if the lock that we hold keeps others out, and
    otherwise another's. A directory that has gone from its path since it was opened was another's
    too, and is published by now.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(CLAIM_NAME, flags, 0o644, dir_fd=folder)
    except FileExistsError:
        found = _claim_in(folder)
        is_half = found is not None and len(found) < len(identity)
        if not is_half or not is_kept_for_one(directory):
            return found == identity
        os.unlink(CLAIM_NAME, dir_fd=folder)
        return is_claimed_by(identity, folder, directory)
    try:
        os.write(descriptor, identity.encode())
        os.fsync(descriptor)  # half of it would be another's; without its name it can be made again
        is_ours = os.path.samestat(os.fstat(folder), os.lstat(directory))
    except FileNotFoundError:
        is_ours = False
    except OSError:
        os.unlink(CLAIM_NAME, dir_fd=folder)
        raise
    finally:
        os.close(descriptor)
    if not is_ours:
        os.unlink(CLAIM_NAME, dir_fd=folder)
    return is_ours


def _claim_in(folder: int) -> str | None:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(CLAIM_NAME, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # gone this moment, or a link
            return None
        raise
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, MAX_CLAIM_BYTES).decode("utf-8", "replace") if is_file else None
    finally:
        os.close(descriptor)


def _locked(directory: Path) -> int:
    """Return a descriptor that holds the lock on the directory that is at this path."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        while True:
            make_directories(directory)
            # Published or removed by its holder at this moment: there is a new one.
            with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as in_vain:
                descriptor = os.open(directory, flags)
                in_vain.callback(os.close, descriptor)
                _is_locked(descriptor)
                if os.path.samestat(os.fstat(descriptor), os.lstat(directory)):
                    in_vain.pop_all()
                    return descriptor
    except BlockingIOError:
        raise _taken(directory) from None
    except OSError as error:
        raise disk_error(error, directory, "opened") from error


def _locked_beside(directory: Path) -> int:
    """Lock a file, where directories have no locks: NFS wants one that is open for writing.

    The file stays: if it were removed, two processes could hold a lock of that name. Where there
    are no locks at all, what was proved is known again when it is published.
    """
    path = directory.with_name(f".{directory.name.removesuffix(PARTIAL_SUFFIX)}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise disk_error(error, path, "made") from error
    try:
        _is_locked(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise _taken(directory) from None
    return descriptor


def _taken(directory: Path) -> DestinationTaken:
    return DestinationTaken(
        f"Another process is working in {directory}; wait for it, or choose another --dest"
    )


def _is_locked(descriptor: int) -> bool:
    """Take the lock, and tell whether there are any; BlockingIOError if somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True
