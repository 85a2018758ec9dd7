"""The task's directory: partial while files arrive, renamed once when all of them are proved.

The order on disk is what makes a result whole or absent: files synced, manifest written and
synced, directories synced, one rename, the parent directory synced.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from downloader.errors import DestinationTaken, DiskError
from downloader.manifest import Manifest, ManifestFile, read_manifest
from downloader.syncing import sync_directory, sync_files, write_synced
from downloader.task_result import MANIFEST_NAME, PART_SUFFIX, PARTIAL_SUFFIX, RESERVED_NAMES
from downloader.transfer.part_file import disk_error
from downloader.verify import INDEX_SUFFIXES

__all__ = ["Manifest", "ManifestFile", "ResultDirectory", "read_manifest"]


class ResultDirectory:
    """Where one task's files go: `<dest>/<task_id>.partial/`, then `<dest>/<task_id>/`."""

    def __init__(self, dest: Path, task_id: str) -> None:
        self.dest = dest
        self.task_id = task_id
        self.final = dest / task_id
        self.partial = dest / f"{task_id}{PARTIAL_SUFFIX}"

    def check_writable(self) -> None:
        """Make the destination, and prove that files can be made in it, leaving none.

        Raises:
            DiskError: it cannot be made or written.
        """
        try:
            self.dest.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.dest, os.O_TMPFILE | os.O_RDWR, 0o600))
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise disk_error(error, self.dest, "used as the destination") from error
            effective = os.access in os.supports_effective_ids
            if not os.access(self.dest, os.W_OK | os.X_OK, effective_ids=effective):
                raise DiskError(f"{self.dest} cannot be written; choose another --dest") from error

    def published(self) -> Manifest | None:
        """Return the manifest if the result is published and its files are all there.

        Files are looked at by size only; `verify` reads them.

        Raises:
            DestinationTaken: something that is not ours stands in the result's place.
        """
        if not os.path.lexists(self.final):
            return None
        manifest = read_manifest(self.final)
        if manifest is None or manifest.task_id != self.task_id:
            raise DestinationTaken(
                f"{self.final} exists and is no published result of this task; move it away or "
                "choose another --dest"
            )
        return manifest

    def missing_or_short(self, manifest: Manifest) -> list[str]:
        """Return the names of published files that are gone or have another size."""
        wrong = []
        for file in manifest.files:
            path = self.final / file.name
            try:
                size = path.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                size = -1
            except OSError as error:  # it may pass, as on a network disk: no reason to fetch again
                raise disk_error(error, path, "looked at") from error
            if size != file.size:
                wrong.append(file.name)
        return wrong

    def set_aside(self) -> Path:
        """Rename a damaged result so that nobody takes it for a whole one; return its new path."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = _unused(self.dest / f"{self.task_id}.damaged-{stamp}")
        try:
            self.final.rename(aside)
            sync_directory(self.dest)
        except OSError as error:
            raise disk_error(error, self.final, "set aside") from error
        return aside

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the partial directory and keep every other process on this host out of it.

        Raises:
            DestinationTaken: another process, with another state file, works in it.
        """
        with contextlib.ExitStack() as stack:
            descriptor = self._lock()
            stack.callback(os.close, descriptor)
            if not _is_locked(descriptor):
                stack.callback(os.close, self._lock_beside())
            yield

    def _lock(self) -> int:
        """Return a descriptor that holds the lock on the directory at `self.partial`."""
        try:
            while True:
                self.partial.mkdir(exist_ok=True)
                descriptor = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    with contextlib.suppress(FileNotFoundError):
                        _is_locked(descriptor)
                        if os.path.samestat(os.fstat(descriptor), os.lstat(self.partial)):
                            return descriptor
                except BaseException:
                    os.close(descriptor)
                    raise
                # Published or removed by its holder after it was opened here: there is a new one.
                os.close(descriptor)
        except BlockingIOError:
            raise self._taken() from None
        except OSError as error:
            raise disk_error(error, self.partial, "opened") from error

    def _lock_beside(self) -> int:
        """Lock a file, where directories have no locks: NFS wants one that is open for writing.

        The file stays: if it were removed, two processes could hold a lock of that name. Where
        there are no locks at all, what was proved is known again by `publish`.
        """
        path = self.dest / f".{self.task_id}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise disk_error(error, path, "made") from error
        try:
            _is_locked(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise self._taken() from None
        return descriptor

    def _taken(self) -> DestinationTaken:
        return DestinationTaken(
            f"Another process is working in {self.partial}; wait for it, or choose another --dest"
        )

    def part_path(self, name: str) -> Path:
        """Return where the file's bytes arrive; its directories are made, links are refused.

        A file that a crash caught between its own rename and the directory's is a part file again.
        """
        return self.part_paths([name])[name]

    def part_paths(self, names: Iterable[str]) -> Mapping[str, Path]:
        """Return what `part_path` does for each of the names, making each directory once."""
        parts = _PartPaths(self.partial, names)
        made = {""}
        for name in parts:
            try:
                self._make_folders(name.rpartition("/")[0], made)
                _back_to_part(f"{self.partial}/{name}")
            except OSError as error:
                raise disk_error(error, parts[name], "made") from error
        return parts

    def _make_folders(self, folder: str, made: set[str]) -> None:
        """Make a folder and those above it that are not `made` yet; a link is refused."""
        if folder in made:
            return
        self._make_folders(folder.rpartition("/")[0], made)
        path = self.partial / folder
        path.mkdir(exist_ok=True)
        if path.is_symlink():
            raise DiskError(f"{path} is a link; move it away")
        made.add(folder)

    def publish(
        self,
        manifest: Manifest,
        *,
        checksums: Sequence[str] = (),
        identity_of: Callable[[str], tuple[int, int]] | None = None,
    ) -> None:
        """Put every file in its place, sync everything, and rename the directory once.

        `identity_of` tells device and inode of the file that was proved, by its name: another
        one that has come into its place, where no lock kept somebody out, is never published.

        Raises:
            DestinationTaken: the result's place was taken meanwhile, or a file that is not of
                the result stands beside its files.
            DiskError: the disk refused; the part files are kept.
        """
        names = [file.name for file in manifest.files]
        try:
            self._remove_leftovers(set(names))
            self._place_files(names)
            for algorithm in checksums:
                self._write_sums(algorithm, names)
            write_synced(self.partial / MANIFEST_NAME, manifest.pieces())
            for directory in _directories(names):
                sync_directory(self.partial / directory)
            if os.path.lexists(self.final):
                raise DestinationTaken(
                    f"{self.final} appeared while the task was being fetched; move it away and "
                    "run the same command again, no byte is fetched twice"
                )
            self._insist_on(self.partial, manifest, identity_of)
            self.partial.rename(self.final)
            self._insist_on(self.final, manifest, identity_of)
            sync_directory(self.dest)
        except OSError as error:
            raise disk_error(error, self.partial, "published") from error

    def _insist_on(
        self,
        directory: Path,
        manifest: Manifest,
        identity_of: Callable[[str], tuple[int, int]] | None,
    ) -> None:
        """Raise DestinationTaken unless the files there are those that were proved."""
        for file in manifest.files:
            try:
                facts = os.lstat(f"{directory}/{file.name}")
                identity = facts.st_dev, facts.st_ino
                is_ours = facts.st_size == file.size
            except FileNotFoundError:
                is_ours, identity = False, (0, 0)
            if not is_ours or (identity_of is not None and identity != identity_of(file.name)):
                if directory == self.final:
                    self.set_aside()
                raise DestinationTaken(
                    f"{file.name} was replaced by another process while it was being published; "
                    "nothing was published: run the same command again when that process has ended"
                )

    def _remove_leftovers(self, names: set[str]) -> None:
        """Remove what an earlier run with another plan, or a crash while publishing, has left."""
        directories = [""]
        for directory in directories:
            with os.scandir(self.partial / directory) as entries:
                for entry in entries:
                    name = f"{directory}/{entry.name}" if directory else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(name)
                    elif name not in names and name.removesuffix(PART_SUFFIX) not in names:
                        self._remove_leftover(name)
        for directory in reversed(directories):
            with contextlib.suppress(OSError):  # it is not empty
                (self.partial / directory).rmdir()

    def _remove_leftover(self, name: str) -> None:
        path = self.partial / name
        if path.name.startswith(".nfs"):  # open, on NFS, and removed
            return
        if path.suffix != PART_SUFFIX and name not in RESERVED_NAMES:
            raise DestinationTaken(
                f"{path} is not of this task's result; move it away and run the same "
                "command again, no byte is fetched twice"
            )
        path.unlink()

    def _place_files(self, names: Sequence[str]) -> None:
        """Rename the part files, and give each index a time no older than its VCF's."""
        # Texts, not Paths: of 20,000 files these would take longer than the disk.
        place = f"{self.partial}/"
        for name in names:
            os.rename(f"{place}{name}{PART_SUFFIX}", place + name)  # noqa: PTH104 - see above
        known = set(names)
        for name in names:
            base, suffix = os.path.splitext(name)  # noqa: PTH122 - a POSIX name, not a path here
            if suffix in INDEX_SUFFIXES and base in known:
                _make_no_older(place + name, place + base)
        sync_files(self.partial, names)

    def _write_sums(self, algorithm: str, names: Sequence[str]) -> None:
        lines = []
        for name in names:
            with (self.partial / name).open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, algorithm).hexdigest()}  {name}\n")
        write_synced(self.partial / f"{algorithm.upper()}SUMS", lines)

    def remove_if_empty(self) -> None:
        """Remove the partial directory if nothing has arrived in it."""
        with contextlib.suppress(OSError):
            self.partial.rmdir()


def _make_no_older(index: str, data: str) -> None:
    newest = os.lstat(data).st_mtime_ns
    if os.lstat(index).st_mtime_ns < newest:
        os.utime(index, ns=(newest, newest), follow_symlinks=False)


def _back_to_part(place: str) -> None:
    """Make a file that a crash caught between two renames a part file again."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISREG(os.lstat(place).st_mode) and not os.path.lexists(f"{place}{PART_SUFFIX}"):
            os.rename(place, f"{place}{PART_SUFFIX}")  # noqa: PTH104 - a text, for speed


class _PartPaths(Mapping[str, Path]):
    """Where the bytes of files arrive, by their names: 20,000 Paths would take 7 MiB."""

    def __init__(self, partial: Path, names: Iterable[str]) -> None:
        self._partial = partial
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Path:
        if name not in self._names:
            raise KeyError(name)
        return self._partial / f"{name}{PART_SUFFIX}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _directories(names: Iterable[str]) -> set[str]:
    """Return the directories that the files are in, and those above them, from `""` on."""
    directories = {""}
    for name in names:
        while (name := name.rpartition("/")[0]) not in directories:
            directories.add(name)
    return directories


def _unused(path: Path) -> Path:
    """Return the path, with the first number behind it that makes it nobody's."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not os.path.lexists(each))


def _is_locked(descriptor: int) -> bool:
    """Take the lock, and tell whether there are any; BlockingIOError if somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


_NO_TMPFILE = (95, 22, 21)  # EOPNOTSUPP, EINVAL, EISDIR: the file system has no nameless files
