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
import tempfile
from collections.abc import Iterator
from pathlib import Path

from downloader.errors import DestinationTaken, disk_error
from downloader.syncing import make_directories
from downloader.task_result import CLAIM_NAME, PARTIAL_SUFFIX

__all__ = [
    "is_claimed_by",
    "is_kept_for_one",
    "is_strangers",
    "locked",
    "refuse_strangers",
    "take_lock",
]

MAX_CLAIM_BYTES = 1000


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Make the directory, keep every other process on this host out of it, and give it open.

    Raises:
        DestinationTaken: another process, with another state file, works in it, or it is a
            stranger's.
        DiskError: it cannot be made, or something else stands in its place.
    """
    with contextlib.ExitStack() as stack:
        descriptor = _locked(directory)
        stack.callback(os.close, descriptor)
        if not take_lock(descriptor):
            stack.callback(os.close, _locked_beside(directory))
        yield descriptor


def is_kept_for_one(directory: Path) -> bool:
    """Tell whether the lock that we hold keeps others out: some are granted to everybody."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        take_lock(descriptor)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def refuse_strangers(directory: Path, *facts: os.stat_result) -> None:
    """Raise DestinationTaken if a directory is a stranger's: he could change the result.

    `facts` are those of the directory, and of a link to it.
    """
    for each in facts:
        if is_strangers(directory, each):
            raise DestinationTaken(
                f"{directory} is not believed: it belongs to another user (uid {each.st_uid}), and "
                f"everybody may write to {directory.parent}; move it away or choose another --dest"
            )


def is_strangers(directory: Path, facts: os.stat_result) -> bool:
    """Tell whether just anybody may have put a directory into the destination.

    If everybody may write there, it has to be ours, root's or the destination's owner's. In any
    other destination, somebody has chosen who may.
    """
    dest = directory.parent
    about_dest = dest.stat()
    is_everybodys = bool(about_dest.st_mode & stat.S_IWOTH)
    is_known = facts.st_uid in (os.geteuid(), 0, about_dest.st_uid)
    return is_everybodys and not is_known and facts.st_uid != _our_uid_in(dest)


def _our_uid_in(dest: Path) -> int:
    """Return whose the files are that we make there: NFS makes root's files nobody's."""
    try:
        with tempfile.TemporaryFile(dir=dest) as probe:
            return os.fstat(probe.fileno()).st_uid
    except OSError:  # read-only, or full: whoever is doubtful stays a stranger
        return os.geteuid()


def take_lock(descriptor: int) -> bool:
    """Take the lock, and tell whether there are any; BlockingIOError if somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


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
                refuse_strangers(directory, os.fstat(descriptor))
                take_lock(descriptor)
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
        take_lock(descriptor)
    except BlockingIOError:
        os.close(descriptor)
        raise _taken(directory) from None
    return descriptor


def _taken(directory: Path) -> DestinationTaken:
    return DestinationTaken(
        f"Another process is working in {directory}; wait for it, or choose another --dest"
    )
