"""The task's directory: partial while files arrive, renamed once when all of them are proved.

The order on disk is what makes a result whole or absent: files synced, manifest written and
synced, directories synced, one rename, the parent directory synced. Whatever is done below the
partial directory is done by descriptors: a link that somebody puts there leads nobody out of it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path

from downloader.claiming import (
    is_claimed_by,
    is_kept_for_one,
    is_strangers,
    locked,
    refuse_strangers,
)
from downloader.errors import (
    DestinationTaken,
    DiskError,
    VerificationFailed,
    as_disk_error,
    disk_error,
)
from downloader.folders import Folders, linkless
from downloader.manifest import Manifest, ManifestFile, read_manifest
from downloader.placing import (
    Identity,
    clear,
    identity_in,
    make_place,
    place_files,
    refuse_one_place_for_two,
    remove_leftovers,
    replaced,
    write_sums,
)
from downloader.syncing import make_directories, sync_directory, sync_names, write_synced
from downloader.task_result import ASIDE, CLAIM_NAME, MANIFEST_NAME, PART_SUFFIX, PARTIAL_SUFFIX

__all__ = ["Manifest", "ManifestFile", "ResultDirectory", "read_manifest"]

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR)  # a file system without nameless files
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # told by a rename onto what is there


class ResultDirectory:
    """Where one task's files go: `<dest>/<task_id>.partial/`, then `<dest>/<task_id>/`.

    `partial` is another directory beside that while it is held for a state which finds that one
    claimed by another state.
    """

    def __init__(self, dest: Path, task_id: str) -> None:
        self.dest = dest
        self.task_id = task_id
        self.final = dest / task_id
        self.partial = dest / f"{task_id}{PARTIAL_SUFFIX}"
        self._ordinary = self.partial
        # Links above it are the user's; a link that comes into the way later is an intruder's.
        self._real_dest = os.path.realpath(dest)
        self._identity: str | None = None  # of the state that we hold the partial directory for
        self._held: Identity | None = None  # the directory of the ordinary name that we hold
        self._seen: Identity | None = None  # what stood in the result's place when it was judged

    def check_writable(self) -> None:
        """Make the destination, and prove that files can be made in it, leaving none.

        Raises:
            DiskError: it cannot be made or written.
        """
        try:
            make_directories(self.dest)
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
            DiskError: it cannot be read.
        """
        facts = self._what_is_there()
        self._seen = None if facts is None else identity_in(facts)
        if facts is None:
            return None
        manifest = self._manifest(facts)
        if manifest is None or manifest.task_id != self.task_id:
            raise DestinationTaken(
                f"{self.final} exists and is no published result of this task; move it away or "
                "choose another --dest"
            )
        with as_disk_error(self.dest, "synced"):
            # Whoever renamed it may have been killed before he came to that.
            sync_names([self.dest])
        return manifest

    def _what_is_there(self) -> os.stat_result | None:
        """Look at what stands in the result's place; None if nothing does."""
        with as_disk_error(self.final, "looked at"), contextlib.suppress(FileNotFoundError):
            return os.lstat(self.final)
        return None

    def _manifest(self, facts: os.stat_result) -> Manifest | None:
        """Return the manifest in the result's place, of nobody whom we do not believe."""
        is_gone = contextlib.suppress(FileNotFoundError, NotADirectoryError)
        with as_disk_error(self.final, "read"), is_gone, _looked_into(self.final) as folder:
            refuse_strangers(self.final, facts, os.fstat(folder))
            return read_manifest(self.final, folder=folder)
        return None

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
        """Rename a damaged result so that nobody takes it for a whole one; return its new path.

        Raises:
            DestinationTaken: it is not the one that was found damaged: somebody has put a new one
                there meanwhile, which stays.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        aside = _unused(self.dest / f"{self.task_id}{ASIDE}{stamp}")
        try:
            self.final.rename(aside)
            if self._seen not in (None, identity_in(os.lstat(aside))):
                aside.rename(self.final)
                raise DestinationTaken(
                    f"Another process has just put a new result in {self.final}; run the same "
                    "command again"
                )
            sync_directory(self.dest)
        except OSError as error:
            raise disk_error(error, self.final, "set aside") from error
        self._seen = None
        return aside

    @contextlib.contextmanager
    def held(self, identity: str | None = None) -> Iterator[None]:
        """Make the partial directory and keep every other process on this host out of it.

        With the `identity` of a state, also those that no lock keeps out: where another state has
        claimed the directory, `partial` is one of our own, which bears the identity in its name.

        Raises:
            DestinationTaken: another process, with another state file, works in it.
        """
        self.partial, self._identity = self._ordinary, identity
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(locked(self.partial))
            with as_disk_error(self.partial, "looked at"):
                self._held = identity_in(os.fstat(folder))
            if identity is not None and not self._is_ours(folder, identity):
                self.partial = self._own(identity)
                stack.enter_context(locked(self.partial))
            yield

    def _own(self, identity: str) -> Path:
        # No task id has a `~`: it is the partial directory of no other task.
        return self.dest / f"{self.task_id}~{identity}{PARTIAL_SUFFIX}"

    def _is_ours(self, folder: int, identity: str) -> bool:
        with as_disk_error(self.partial, "claimed"):
            has_own = self._own(identity).is_dir()
            return not has_own and is_claimed_by(identity, folder, self.partial)

    @contextlib.contextmanager
    def _folders(self) -> Iterator[Folders]:
        """Open the partial directory; a link in its place or above it is an OSError."""
        with _opened(f"{self._real_dest}/{self.partial.name}") as folders:
            refuse_strangers(self.partial, os.fstat(folders.root))  # it may be another one by now
            yield folders

    def part_path(self, name: str) -> Path:
        """Return where the file's bytes arrive; its directories are made, links are refused.

        A file that a crash caught between its own rename and the directory's is a part file again.
        """
        return self.part_paths([name])[name]

    def part_paths(self, names: Iterable[str]) -> Mapping[str, Path]:
        """Return what `part_path` does for each of the names, making each directory once.

        Raises:
            DiskError: a link is in the way, or two of them are one file on this file system.
        """
        parts = _PartPaths(Path(self._real_dest, self.partial.name), names)
        name = ""
        try:
            with self._folders() as folders:
                for name in parts:
                    make_place(folders, name)
                sync_names(folders.parents_of_made())
                refuse_one_place_for_two(folders, parts.keys())
        except NotADirectoryError as error:
            raise DiskError(
                f"{self.partial / name} cannot be made: something in its path is a link; move it "
                "away"
            ) from error
        except OSError as error:
            raise disk_error(error, self.partial / name, "made") from error
        return parts

    def publish(
        self,
        manifest: Manifest,
        *,
        checksums: Sequence[str] = (),
        identity_of: Callable[[str], Identity] | None = None,
    ) -> None:
        """Put every file in its place, sync everything, and rename the directory once.

        `identity_of` tells device and inode of the file that was proved, by its name: another
        one that has come into its place, where no lock kept somebody out, is never published.
        If another process has published the same files meanwhile, ours are removed.

        Raises:
            DestinationTaken: the result's place was taken meanwhile, or a file that is not of
                the result stands beside its files.
            DiskError: the disk refused; the part files are kept.
        """
        names = [file.name for file in manifest.files]
        try:
            with self._folders() as folders:
                remove_leftovers(folders, set(names), self.partial)
                place_files(folders, names)
                for algorithm in checksums:
                    write_sums(folders, algorithm, names)
                write_synced(MANIFEST_NAME, manifest.pieces(), folder=folders.root)
                for directory in sorted(_directories(names))[1:]:
                    sync_directory(folders.at(directory))
                self._insist_on(folders, manifest, identity_of)
                if not os.path.lexists(self.final) and self._is_renamed(folders):
                    self._insist_on(folders, manifest, identity_of, is_final=True)
                    sync_directory(self.dest)
                    self._clear_others(set(names))
                    return
            self._give_way_to(manifest)
        except OSError as error:
            raise disk_error(error, self.partial, "published") from error

    def _is_renamed(self, folders: Folders) -> bool:
        """Rename the directory as the very last; False if somebody has been quicker."""
        if self._identity is not None:
            self._make_private(folders, self._own(self._identity))
        sync_directory(folders.root)
        try:
            self._rename(self.partial.name, self.task_id)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            return False
        return True

    def _make_private(self, folders: Folders, own: Path) -> None:
        """Give the directory the name that is our state's alone: then the claim in it may go."""
        if self.partial != own:
            self._rename(self.partial.name, own.name)
            self.partial = own
            sync_directory(self.dest)  # or of two renames the second one might be kept alone
        if not os.path.samestat(os.fstat(folders.root), os.lstat(own)):
            raise replaced(own.name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CLAIM_NAME, dir_fd=folders.root)

    def _rename(self, name: str, new: str) -> None:
        os.rename(f"{self._real_dest}/{name}", f"{self._real_dest}/{new}")  # noqa: PTH104 - texts

    def _give_way_to(self, manifest: Manifest) -> None:
        """Remove our files, if another process has published the same ones meanwhile."""
        there = None
        with contextlib.suppress(DestinationTaken, VerificationFailed):
            there = self.published()
        if there is None or _facts(there) != _facts(manifest) or self.missing_or_short(there):
            raise DestinationTaken(
                f"{self.final} appeared while the task was being fetched; move it away and "
                "run the same command again, no byte is fetched twice"
            )
        shutil.rmtree(f"{self._real_dest}/{self.partial.name}")
        sync_directory(self.dest)

    def _insist_on(
        self,
        folders: Folders,
        manifest: Manifest,
        identity_of: Callable[[str], Identity] | None,
        *,
        is_final: bool = False,
    ) -> None:
        """Raise DestinationTaken unless the files there are those that were proved."""
        if is_final and not os.path.samestat(os.fstat(folders.root), os.lstat(self.final)):
            self.set_aside()
            raise replaced(self.partial.name)
        for file in manifest.files:
            folder, base = folders.of(file.name)
            try:
                facts = os.stat(base, dir_fd=folder, follow_symlinks=False)
                is_ours = facts.st_size == file.size and stat.S_ISREG(facts.st_mode)
                identity = identity_in(facts)
            except FileNotFoundError:
                is_ours, identity = False, (0, 0)
            if not is_ours or (identity_of is not None and identity != identity_of(file.name)):
                if is_final:
                    self.set_aside()
                raise replaced(file.name)

    def remove_partial(self) -> None:
        """Delete what was received of a task that nobody fetches, by whatever state.

        Raises:
            DestinationTaken: a process works in it.
            DiskError: the disk refused.
        """
        for partial in self._every_partial():
            with locked(partial), as_disk_error(partial, "deleted"):
                shutil.rmtree(partial)
                sync_directory(self.dest)

    def _every_partial(self) -> list[Path]:
        names: list[str] = []
        with as_disk_error(self.dest, "listed"), contextlib.suppress(FileNotFoundError):
            # No `glob`: it keeps every pattern, compiled, for as long as a service lives.
            names = os.listdir(self.dest)  # noqa: PTH208 - there may be many
        others = [
            self.dest / name
            for name in names
            if name.startswith(f"{self.task_id}~") and name.endswith(PARTIAL_SUFFIX)
        ]
        there = (partial for partial in (self._ordinary, *others) if partial.is_dir())
        return [partial for partial in there if not self._is_strangers(partial)]

    def _is_strangers(self, partial: Path) -> bool:
        with as_disk_error(partial, "looked at"), contextlib.suppress(FileNotFoundError):
            return is_strangers(partial, os.lstat(partial))
        return False  # it has gone, as every one may

    def _clear_others(self, names: Set[str]) -> None:
        """Remove what other states have received of a result that is published by now.

        Not where locks are granted to everybody: somebody may be at work there.
        """
        with contextlib.suppress(DiskError):
            for partial in self._every_partial():
                with contextlib.suppress(OSError, DestinationTaken, DiskError):
                    self._clear(partial, names)

    def _clear(self, partial: Path, names: Set[str]) -> None:
        with contextlib.ExitStack() as stack:
            # Ours has another name by now, and somebody may have begun anew under the old one.
            if identity_in(os.lstat(partial)) != self._held:
                stack.enter_context(locked(partial))
            if is_kept_for_one(partial):
                clear(stack.enter_context(_opened(f"{self._real_dest}/{partial.name}")), names)
                partial.rmdir()

    def remove_if_bare(self) -> None:
        """Remove the partial directory if not even a claim is in it: so nobody works there."""
        with contextlib.suppress(OSError):
            self.partial.rmdir()

    def remove_if_empty(self) -> None:
        """Remove the partial directory, which is held, if nothing has arrived in it."""
        with contextlib.suppress(OSError):
            if [found.name for found in self.partial.iterdir()] == [CLAIM_NAME]:
                (self.partial / CLAIM_NAME).unlink()
            self.partial.rmdir()


@contextlib.contextmanager
def _opened(directory: str) -> Iterator[Folders]:
    with linkless(directory) as root, Folders(root) as folders:
        yield folders


@contextlib.contextmanager
def _looked_into(directory: Path) -> Iterator[int]:
    """Open a directory to reach what is in it; a link to it is followed."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


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


def _facts(manifest: Manifest) -> set[tuple[str, int, str]]:
    return {(file.name, file.size, file.crc64ecma) for file in manifest.files}


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
