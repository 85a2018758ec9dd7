"""Where a repair works: a directory in the result, whose name tells whose it is.

`bge-repair~OWNER.partial` is one run's own, also where locks are granted to everybody. It holds the
copies of files that are on their way, and how far each has come. A run that is interrupted gives it
a name without an owner, and any other goes on there; so it does where the owner is dead for
certain. It changes hands by one rename, which one alone can do. Every call blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from downloader.claiming import take_lock
from downloader.errors import DestinationTaken, DiskError, as_disk_error, disk_error
from downloader.folders import FOLDER_FLAGS, Folders, linkless
from downloader.manifest import Manifest, ManifestFile
from downloader.ordinary import open_ordinary
from downloader.syncing import sync_directory, sync_names, write_synced
from downloader.task_result import PART_SUFFIX, PARTIAL_SUFFIX
from state import Checkpoint, Segment, current_owner, describe_owner, is_dead
from state.checkpoints import is_sound

__all__ = ["Copy", "RepairDirectory", "held_for_repair", "is_repair_directory", "told_of_leftovers"]

PREFIX = "bge-repair~"
PRIVATE = 0o700  # a copy may be of a file that is not for others
_NOBODYS = re.compile(r"[0-9a-f]{8}")
_NOTE_SUFFIX, _NEW_SUFFIX = ".json", ".new"
_ENTRY = re.compile(r"([0-9a-f]{16})(\.part|\.json|\.new)")


@contextlib.contextmanager
def held_for_repair(result: Path) -> Iterator[int]:
    """Open a result by a path without links, and keep other processes of this host from mending it.

    Raises:
        DestinationTaken: another one does.
        DiskError: it cannot be opened, or there is a link in its path.
    """
    with contextlib.ExitStack() as stack:
        try:
            root = stack.enter_context(linkless(result))
            take_lock(root)  # where there are none, nothing depends on them
        except BlockingIOError:
            raise DestinationTaken(
                f"Another process is repairing {result}; wait for it and verify again"
            ) from None
        except OSError as error:
            raise disk_error(error, result, "opened") from error
        yield root


@dataclass(frozen=True, slots=True)
class Copy:
    """The copy of one file, and how far it has come."""

    folder: int  # of its directory
    path: Path

    @property
    def name(self) -> str:
        """Its name in that directory."""
        return self.path.name

    @property
    def note(self) -> str:
        """The name of what is noted of it."""
        return self.path.with_suffix(_NOTE_SUFFIX).name

    def make(self) -> int:
        """Make an empty file in place of whatever is there; return its descriptor, for writing."""
        self.remove()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with self._told("made"):
            return os.open(self.name, flags, 0o644, dir_fd=self.folder)

    def remember(self, checkpoint: Checkpoint) -> None:
        """Note durably how far it has come; DiskError if that cannot be done."""
        new = self.path.with_suffix(_NEW_SUFFIX).name
        with self._told("noted down"):
            _unlink(self.folder, new)
            write_synced(new, [_written(checkpoint)], folder=self.folder)
            os.rename(new, self.note, src_dir_fd=self.folder, dst_dir_fd=self.folder)
            sync_directory(self.folder)

    def remembered(self) -> Checkpoint | None:
        """Return what was noted down, if it makes sense."""
        with self._told("read"), contextlib.suppress(FileNotFoundError):
            descriptor = open_ordinary(self.note, folder=self.folder)
            with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
                return _read(file.read())
        return None

    def forget(self) -> None:
        """Note durably that nothing of it counts."""
        with self._told("forgotten"):
            _unlink(self.folder, self.note)
            sync_names([self.folder])

    def remove(self) -> None:
        """Forget and remove it, if it is there; what cannot be removed is in nobody's way."""
        with contextlib.suppress(OSError, DiskError):
            self.forget()
            _unlink(self.folder, self.name)

    def _told(self, deed: str) -> contextlib.AbstractContextManager[None]:
        return as_disk_error(self.path, deed)


class RepairDirectory:
    """One run's directory in an open result; `close` ends it, whatever has come of `open`."""

    def __init__(self, root: int, result: Path, manifest: Manifest) -> None:
        self.root = root
        self.result = result
        self._manifest = manifest
        self._name = ""
        self._descriptor = -1

    def open(self, *, whole: Set[str] = frozenset()) -> None:
        """Go on in what an interrupted run has left, or make a new directory.

        Of the files whose names are in `whole`, no copy is kept.

        Raises:
            DiskError: it cannot be made.
        """
        try:
            self.take_over(whole=whole)
            if self._descriptor < 0:
                self._name = _name_of_mine()
                os.mkdir(self._name, PRIVATE, dir_fd=self.root)
                self._descriptor = os.open(self._name, FOLDER_FLAGS, dir_fd=self.root)
            sync_names([self.root])
        except OSError as error:
            raise disk_error(error, self.result / self._name, "made") from error

    def take_over(self, *, whole: Set[str] = frozenset()) -> None:
        """Go on in what an interrupted run has left, if one has; OSError if the disk refuses."""
        of_the_result = {file.name.partition("/")[0] for file in self._manifest.files}
        for left in _leftovers_in(self.root):
            if left.is_free and left.name not in of_the_result:
                with contextlib.suppress(FileNotFoundError):  # another one was quicker
                    self._take(left.name)
        if self._descriptor >= 0:
            self._settle()
            wanted = [file for file in self._manifest.files if file.name not in whole]
            _remove_unless(self._descriptor, {_key(file) for file in wanted})

    def _settle(self) -> None:
        """Sync the names of files that copies have taken the places of.

        Whoever put them there may have been killed before he came to that. Until then, a power loss
        brings the copies back here, with what is noted of them.
        """
        here = _names_in(self._descriptor)
        with Folders(self.root) as folders:
            for file in self._manifest.files:
                copy = self.copy_of(file)
                if copy.note in here and copy.name not in here:
                    with contextlib.suppress(OSError):  # its folder has gone
                        sync_directory(folders.of(file.name)[0])

    def _take(self, name: str) -> None:
        mine = _name_of_mine()
        os.rename(name, mine, src_dir_fd=self.root, dst_dir_fd=self.root)
        descriptor = os.open(mine, FOLDER_FLAGS, dir_fd=self.root)
        if self._descriptor < 0 and _is_private(descriptor):
            self._name, self._descriptor = mine, descriptor
            return
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            # One too many, or one that others could have put bytes into. What they have, stays.
            with contextlib.suppress(OSError):
                _remove_unless(descriptor, set())
                os.rmdir(mine, dir_fd=self.root)

    def copy_of(self, file: ManifestFile) -> Copy:
        """Return the copy of a file; of another version, it is another copy."""
        path = self.result / self._name / f"{_key(file)}{PART_SUFFIX}"
        return Copy(self._descriptor, path)

    def close(self) -> None:
        """Remove the directory, or leave it to the next run if a copy in it has come some way."""
        if self._descriptor < 0:
            return
        nobodys = f"{PREFIX}{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
        with contextlib.suppress(OSError):  # then its owner's death will tell
            _remove_unless(self._descriptor, None)
            try:
                os.rmdir(self._name, dir_fd=self.root)
            except OSError:
                os.rename(self._name, nobodys, src_dir_fd=self.root, dst_dir_fd=self.root)
            sync_directory(self.root)
        os.close(self._descriptor)
        self._descriptor = -1


def is_repair_directory(name: str) -> bool:
    """Tell whether a directory of that name in a result is where a repair works, or has worked."""
    return name.startswith(PREFIX) and name.endswith(PARTIAL_SUFFIX)


def told_of_leftovers(result: Path) -> list[str]:
    """Say in a sentence each what repairs have left in a result."""
    try:
        leftovers = _leftovers_in(result)
    except OSError:
        return []
    return [
        f"{left.name}: an interrupted repair has left it; `verify --repair` goes on there"
        if left.is_free
        else f"{left.name}: {describe_owner(left.owner)} may be repairing the result; if it is "
        "not, remove this directory"
        for left in leftovers
    ]


@dataclass(frozen=True, slots=True)
class _Leftover:
    """The directory of a repair that runs or has run."""

    name: str
    is_this_users: bool

    @property
    def owner(self) -> str:
        return self.name.removeprefix(PREFIX).removesuffix(PARTIAL_SUFFIX).replace("~", "/")

    @property
    def is_free(self) -> bool:
        """Tell whether nobody can be at work there, and it is not another user's."""
        is_left = _NOBODYS.fullmatch(self.owner) is not None or is_dead(self.owner)
        return self.is_this_users and is_left


def _leftovers_in(directory: int | Path) -> list[_Leftover]:
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if is_repair_directory(entry.name):
                with contextlib.suppress(FileNotFoundError):  # gone this moment
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(facts.st_mode):
                        found.append(_Leftover(entry.name, facts.st_uid == os.geteuid()))
    return sorted(found, key=lambda left: left.name)


def _name_of_mine() -> str:
    owner = current_owner().replace("/", "~")
    return f"{PREFIX}{owner}{PARTIAL_SUFFIX}"


def _is_private(descriptor: int) -> bool:
    """Tell whether nobody else can have put a file into the directory, or hold one open there."""
    facts = os.fstat(descriptor)
    return facts.st_uid == os.geteuid() and facts.st_mode & 0o777 == PRIVATE


def _key(file: ManifestFile) -> str:
    """Return what stands for a file and its version in names."""
    return hashlib.sha256(repr(file).encode()).hexdigest()[:16]


def _remove_unless(folder: int, keys: Collection[str] | None) -> None:
    """Remove copies of which nothing is noted, and those of other keys; None: of no other."""
    names = _names_in(folder)
    for name in names:
        match = _ENTRY.fullmatch(name)
        if match is None:
            continue
        pair = {f"{match[1]}{PART_SUFFIX}", f"{match[1]}{_NOTE_SUFFIX}"}
        is_wanted = keys is None or match[1] in keys
        if not (is_wanted and name in pair <= names):
            _unlink(folder, name)


def _names_in(folder: int) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries}


def _unlink(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _written(checkpoint: Checkpoint) -> str:
    segments = [[one.start, one.stop, one.watermark] for one in checkpoint.segments]
    return json.dumps({"etag": checkpoint.etag, "size": checkpoint.size, "segments": segments})


def _read(text: bytes) -> Checkpoint | None:
    try:
        raw = json.loads(text)
        segments = tuple(
            Segment(start=start, stop=stop, watermark=watermark)
            for start, stop, watermark in raw["segments"]
        )
        checkpoint = Checkpoint(etag=raw["etag"], size=raw["size"], segments=segments)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return checkpoint if is_sound(checkpoint) else None
