"""What is done below a partial directory: each deed by the folder's descriptor, none by a path.

So whoever swaps a folder for a link, between any two steps, leads nobody out of it. Every call
blocks; what the disk refuses is an OSError.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import Collection, Iterable, Sequence, Set
from pathlib import Path

from downloader.errors import DestinationTaken, DiskError
from downloader.folders import Folders
from downloader.syncing import sync_files, write_synced
from downloader.task_result import CLAIM_NAME, PART_SUFFIX, RESERVED_NAMES, may_be_one_place
from downloader.verify import INDEX_SUFFIXES

__all__ = [
    "Identity",
    "clear",
    "identity_in",
    "make_no_older",
    "make_place",
    "place_files",
    "refuse_one_place_for_two",
    "remove_leftovers",
    "replaced",
    "write_sums",
]

Identity = tuple[int, int]  # device and inode


def identity_in(facts: os.stat_result) -> Identity:
    """Return what a file can be known by again."""
    return facts.st_dev, facts.st_ino


def replaced(name: str) -> DestinationTaken:
    """Say that something was replaced that had been proved."""
    return DestinationTaken(
        f"{name} was replaced by another process while it was being published; "
        "nothing was published: run the same command again when that process has ended"
    )


def make_place(folders: Folders, name: str) -> None:
    """Make the folders of a file; one that a crash caught between two renames is a part again."""
    folders.make(name.rpartition("/")[0])
    _back_to_part(*folders.of(name))


def remove_leftovers(folders: Folders, names: Set[str], partial: Path) -> None:
    """Remove what an earlier run with another plan, or a crash while publishing, has left.

    Raises:
        DestinationTaken: a file is there that is not of this task.
    """
    directories, files = _everything(folders)
    for name in files:
        if name not in names and name.removesuffix(PART_SUFFIX) not in names:
            _remove_leftover(folders, name, partial)
    _remove_empty(folders, directories)


def clear(folders: Folders, names: Set[str]) -> None:
    """Remove part files, our own, and files of those names; what is a stranger's stays."""
    directories, files = _everything(folders)
    for name in files:
        if name.endswith(PART_SUFFIX) or name in RESERVED_NAMES or name in names:
            folder, base = folders.of(name)
            os.unlink(base, dir_fd=folder)
    _remove_empty(folders, directories)


def _everything(folders: Folders) -> tuple[list[str], list[str]]:
    """Return the folders, from `""` on, and all else by name; links are not followed."""
    directories, files = [""], list[str]()
    for directory in directories:
        with os.scandir(folders.at(directory)) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for base, is_directory in found:
            name = f"{directory}/{base}" if directory else base
            (directories if is_directory else files).append(name)
    return directories, files


def _remove_empty(folders: Folders, directories: Sequence[str]) -> None:
    for directory in reversed(directories[1:]):
        above, base = folders.of(directory)
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(base, dir_fd=above)


def _remove_leftover(folders: Folders, name: str, partial: Path) -> None:
    folder, base = folders.of(name)
    if base.startswith(".nfs") or name == CLAIM_NAME:  # open, on NFS, and removed
        return
    if not base.endswith(PART_SUFFIX) and name not in RESERVED_NAMES:
        raise DestinationTaken(
            f"{partial / name} is not of this task's result; move it away and run the "
            "same command again, no byte is fetched twice"
        )
    # Another process may have published this very directory, where no lock kept it out.
    if not os.path.samestat(os.fstat(folders.root), os.lstat(partial)):
        raise replaced(partial.name)
    os.unlink(base, dir_fd=folder)


def place_files(folders: Folders, names: Sequence[str]) -> None:
    """Rename the part files, and give each index a time no older than its VCF's."""
    for name in names:
        folder, base = folders.of(name)
        os.rename(f"{base}{PART_SUFFIX}", base, src_dir_fd=folder, dst_dir_fd=folder)
    known = set(names)
    for name in names:
        data, suffix = os.path.splitext(name)  # noqa: PTH122 - a POSIX name, not a path here
        if suffix in INDEX_SUFFIXES and data in known:
            folder, base = folders.of(data)
            newest = os.stat(base, dir_fd=folder, follow_symlinks=False).st_mtime_ns
            make_no_older(folder, f"{base}{suffix}", newest)
    sync_files(folders.root, names)


def make_no_older(folder: int, index: str, newest: int) -> bool:
    """Give an index that is older a time in ns: htslib warns if a VCF is newer. Tell whether so."""
    is_older = os.stat(index, dir_fd=folder, follow_symlinks=False).st_mtime_ns < newest
    if is_older:
        os.utime(index, ns=(newest, newest), dir_fd=folder, follow_symlinks=False)
    return is_older


def write_sums(folders: Folders, algorithm: str, names: Iterable[str]) -> None:
    """Write the sums of the files as the usual tools read them."""
    lines = []
    for name in names:
        folder, base = folders.of(name)
        descriptor = os.open(base, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
            lines.append(f"{hashlib.file_digest(file, algorithm).hexdigest()}  {name}\n")
    write_synced(f"{algorithm.upper()}SUMS", lines, folder=folders.root)


def _back_to_part(folder: int, base: str) -> None:
    """Make a file that a crash caught between two renames a part file again."""
    part = f"{base}{PART_SUFFIX}"
    with contextlib.suppress(FileNotFoundError):
        facts = os.stat(base, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(facts.st_mode) and _look(folder, part) is None:
            os.rename(base, part, src_dir_fd=folder, dst_dir_fd=folder)


def _look(folder: int, base: str) -> Identity | None:
    """Return what is there under a name, of a link the link itself; None if nothing is."""
    try:
        return identity_in(os.stat(base, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return None


def refuse_one_place_for_two(folders: Folders, names: Collection[str]) -> None:
    """Raise DiskError if two part files would be one, which only some file systems bring about."""
    for group in may_be_one_place(names):
        present = [name for name in group if name in names]
        for one, other in itertools.combinations(present, 2):
            if _are_one(folders, f"{one}{PART_SUFFIX}", f"{other}{PART_SUFFIX}"):
                raise DiskError(
                    f"{one!r} and {other!r} are two files of the result, and one on the file "
                    "system of this destination; choose another --dest"
                )


def _are_one(folders: Folders, one: str, other: str) -> bool:
    """Tell whether two names lead to one file, making it for a moment if neither is there."""
    first = _look(*folders.of(one))
    if first is not None:
        return first == _look(*folders.of(other))
    if _look(*folders.of(other)) is not None:
        return False
    folder, base = folders.of(one)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    os.close(os.open(base, flags, 0o644, dir_fd=folder))
    try:
        return _look(*folders.of(other)) is not None
    finally:
        folder, base = folders.of(one)
        os.unlink(base, dir_fd=folder)
