"""The task's directory: partial while files arrive, renamed once when all of them are proved.

The order on disk is what makes a result whole or absent: files synced, manifest written and
synced, directories synced, one rename, the parent directory synced.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from downloader._version import __version__
from downloader.errors import DestinationTaken, DiskError, VerificationFailed
from downloader.task_result import MANIFEST_NAME, PART_SUFFIX, PARTIAL_SUFFIX, RESERVED_NAMES
from downloader.transfer.part_file import disk_error
from downloader.verify import INDEX_SUFFIXES

__all__ = ["Manifest", "ManifestFile", "ResultDirectory", "read_manifest"]

FORMAT = 1  # of the manifest; a higher one is a newer program's


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One published file: its place, its identity in the store, and what was proved of it."""

    name: str
    size: int  # bytes
    crc64ecma: str  # decimal, as the store writes it
    crc64_confirmed: bool  # the store told the same; False if it told none
    etag: str | None
    bucket: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What stands in a result directory beside the files."""

    task_id: str
    published_at: str
    files: tuple[ManifestFile, ...]
    warnings: tuple[str, ...] = ()
    verified: str = "full"  # how far the VCF checks went
    program: str = field(default=f"bge-downloader {__version__}")
    format: int = FORMAT

    def dumps(self) -> str:
        """Return the manifest as JSON text."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"


def read_manifest(directory: Path) -> Manifest | None:
    """Return the manifest of a published result; None if there is none.

    Raises:
        VerificationFailed: there is one, but it is damaged.
        DestinationTaken: a newer program wrote it.
    """
    path = directory / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if type(raw["format"]) is int and raw["format"] > FORMAT:
            raise DestinationTaken(
                f"{path} was written by a newer bge-downloader; use that one, or choose another "
                "--dest"
            )
        files = tuple(_checked(ManifestFile(**entry)) for entry in raw.pop("files"))
        return Manifest(files=files, warnings=tuple(raw.pop("warnings", ())), **raw)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk_error(error, path, "read") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise VerificationFailed(f"{path} is damaged: it is no manifest of ours") from error


def _checked(file: ManifestFile) -> ManifestFile:
    """Return the file; ValueError if its place is not inside the directory, or its size no size."""
    if "\0" in file.name or {"", ".", ".."} & set(file.name.split("/")):
        raise ValueError("no place inside the directory")
    if type(file.size) is not int or file.size < 0:
        raise ValueError("no size")
    return file


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
            _sync_directory(self.dest)
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
        part = self.partial / f"{name}{PART_SUFFIX}"
        try:
            for parent in reversed(part.relative_to(self.partial).parents[:-1]):
                (self.partial / parent).mkdir(exist_ok=True)
                if (self.partial / parent).is_symlink():
                    raise DiskError(f"{self.partial / parent} is a link; move it away")
            arrived = self.partial / name
            if not os.path.lexists(part) and arrived.is_file() and not arrived.is_symlink():
                arrived.rename(part)
        except OSError as error:
            raise disk_error(error, part, "made") from error
        return part

    def publish(
        self,
        manifest: Manifest,
        *,
        checksums: Sequence[str] = (),
        identities: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Put every file in its place, sync everything, and rename the directory once.

        `identities` are device and inode of the files that were proved, by their names: others
        that have come into their places, where no lock kept somebody out, are never published.

        Raises:
            DestinationTaken: the result's place was taken meanwhile, or a file that is not of
                the result stands beside its files.
            DiskError: the disk refused; the part files are kept.
        """
        try:
            self._remove_leftovers({file.name for file in manifest.files})
            self._place_files([file.name for file in manifest.files])
            for algorithm in checksums:
                self._write_sums(algorithm, [file.name for file in manifest.files])
            _write_synced(self.partial / MANIFEST_NAME, manifest.dumps())
            for directory, _, _ in os.walk(self.partial):
                _sync_directory(Path(directory))
            if os.path.lexists(self.final):
                raise DestinationTaken(
                    f"{self.final} appeared while the task was being fetched; move it away and "
                    "run the same command again, no byte is fetched twice"
                )
            self._insist_on(self.partial, manifest, identities)
            self.partial.rename(self.final)
            self._insist_on(self.final, manifest, identities)
            _sync_directory(self.dest)
        except OSError as error:
            raise disk_error(error, self.partial, "published") from error

    def _insist_on(
        self,
        directory: Path,
        manifest: Manifest,
        identities: Mapping[str, tuple[int, int]] | None,
    ) -> None:
        """Raise DestinationTaken unless the files there are those that were proved."""
        for file in manifest.files:
            try:
                facts = os.lstat(directory / file.name)
                identity = facts.st_dev, facts.st_ino
                is_ours = facts.st_size == file.size
            except FileNotFoundError:
                is_ours, identity = False, (0, 0)
            if not is_ours or (identities is not None and identity != identities[file.name]):
                if directory == self.final:
                    self.set_aside()
                raise DestinationTaken(
                    f"{file.name} was replaced by another process while it was being published; "
                    "nothing was published: run the same command again when that process has ended"
                )

    def _remove_leftovers(self, names: set[str]) -> None:
        """Remove what an earlier run with another plan, or a crash while publishing, has left."""
        wanted = names | {f"{name}{PART_SUFFIX}" for name in names}
        for directory, _, files in os.walk(self.partial, topdown=False):
            for path in (Path(directory, file) for file in files):
                name = path.relative_to(self.partial).as_posix()
                if name in wanted or path.name.startswith(".nfs"):  # open, on NFS, and removed
                    continue
                if path.suffix != PART_SUFFIX and name not in RESERVED_NAMES:
                    raise DestinationTaken(
                        f"{path} is not of this task's result; move it away and run the same "
                        "command again, no byte is fetched twice"
                    )
                path.unlink()
            with contextlib.suppress(OSError):  # it is not empty
                Path(directory).rmdir()

    def _place_files(self, names: Sequence[str]) -> None:
        """Rename the part files, and give each index a time no older than its VCF's."""
        for name in names:
            (self.partial / f"{name}{PART_SUFFIX}").rename(self.partial / name)
        for name in names:
            base, suffix = os.path.splitext(name)  # noqa: PTH122 - a POSIX name, not a path here
            if suffix in INDEX_SUFFIXES and base in names:
                newest = max((self.partial / each).stat().st_mtime_ns for each in (base, name))
                os.utime(self.partial / name, ns=(newest, newest))
        for name in names:
            _sync_file(self.partial / name)

    def _write_sums(self, algorithm: str, names: Sequence[str]) -> None:
        lines = []
        for name in names:
            with (self.partial / name).open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, algorithm).hexdigest()}  {name}\n")
        _write_synced(self.partial / f"{algorithm.upper()}SUMS", "".join(lines))

    def remove_if_empty(self) -> None:
        """Remove the partial directory if nothing has arrived in it."""
        with contextlib.suppress(OSError):
            self.partial.rmdir()


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


def _write_synced(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:  # a link is not followed, as it is by "w"
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
