"""Proves again, offline, what is on disk: against the manifest, and each VCF with its index."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from downloader.concurrency import in_stoppable_thread, in_thread
from downloader.errors import DiskError, DownloaderError, InvalidArgument, VerificationFailed
from downloader.publish import Manifest, ManifestFile, read_manifest
from downloader.reading import crc64_of_file
from downloader.repair_directory import is_repair_directory
from downloader.task_result import ASIDE, MANIFEST_NAME, PART_SUFFIX, PARTIAL_SUFFIX, RESERVED_NAMES
from downloader.verify import Level, check_path, check_result, data_file_of, has_check

__all__ = ["Finding", "Recheck", "recheck", "results_in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One file that was looked at; `problem` is None if nothing is wrong with it."""

    name: str
    size: int | None = None  # bytes on disk
    crc64ecma: str | None = None  # of what is on disk, if it is what a manifest says it must be
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recheck:
    """What looking at a path has shown."""

    path: Path
    directory: Path  # that names are told from
    manifest: Manifest | None
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]

    @property
    def problems(self) -> list[str]:
        """One sentence for each file that is not what it must be."""
        return [finding.problem for finding in self.findings if finding.problem]


async def recheck(
    path: Path, *, level: Level, on_file: Callable[[str], None] | None = None
) -> Recheck:
    """Look at a published result, at any folder of VCFs, or at one file; nothing is changed.

    Files that a manifest lists are read and held against its sizes and CRC-64s. Each VCF is
    checked with its index, and each index with its VCF. All files are looked at, whatever is
    found in the first.

    Raises:
        InvalidArgument: there is nothing at the path that could be checked, or nothing to check
            it by: no manifest, and `level` is off.
        VerificationFailed: the manifest is damaged.
    """
    if _is_unfinished(path):
        raise InvalidArgument(
            f"{path} is not published: a fetch has not finished it yet; run the same fetch again"
        )
    directory, manifest = await in_thread(_home, path)
    names = await in_thread(_names, path, directory, manifest, level)
    look = _Look(directory, manifest, level=level, on_file=on_file or _ignore)
    findings = [await look.at(name) for name in names]
    return Recheck(
        path=path,
        directory=directory,
        manifest=manifest,
        findings=tuple(findings),
        warnings=(*look.warnings, *_strangers(path, manifest)),
    )


def results_in(path: Path) -> list[Path]:
    """Return what a path means: itself, or of a folder the published results in it, and the rest.

    The folder itself comes last, if there are VCFs in it that are of no result. Results that were
    set aside as damaged are not meant.
    """
    if not path.is_dir() or (path / MANIFEST_NAME).exists():
        return [path]
    found = sorted(filter(_is_result, _with_manifest(path)))
    rest = [path] if not found or _loose(path) else []
    return [*found, *rest]


def _is_result(directory: Path) -> bool:
    return ASIDE not in directory.name and not _is_unfinished(directory)


def _with_manifest(folder: Path) -> set[Path]:
    return {manifest.parent for manifest in folder.rglob(MANIFEST_NAME)}


def _loose(folder: Path) -> list[str]:
    """Name what can be checked in a folder without a manifest and is in no result below it."""
    results = _with_manifest(folder)
    return sorted(
        found.relative_to(folder).as_posix()
        for found in folder.rglob("*")
        if found.is_file() and has_check(found.name) and results.isdisjoint(found.parents)
    )


class _Look:
    def __init__(
        self,
        directory: Path,
        manifest: Manifest | None,
        *,
        level: Level,
        on_file: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._level: Level = level
        self._on_file = on_file
        self._listed = {file.name: file for file in manifest.files} if manifest else {}
        self._checked: dict[Path, VerificationFailed | DiskError | None] = {}
        self.warnings: list[str] = []

    async def at(self, name: str) -> Finding:
        """Hold one file against the manifest, then its content against its kind."""
        self._on_file(name)
        path = self._directory / name
        try:
            facts = await in_thread(path.stat)
        except OSError as error:
            return Finding(name=name, problem=f"{name} is not there ({error.strerror})")
        if not stat.S_ISREG(facts.st_mode):  # a pipe would be waited for
            return Finding(name=name, problem=f"{name} is no file")
        size = facts.st_size
        crc: str | None = None
        try:
            if name in self._listed:
                crc = await _held_against(self._listed[name], path, size)
            await self._check_content(path)
        except DownloaderError as error:
            return Finding(name=name, size=size, crc64ecma=crc, problem=str(error))
        return Finding(name=name, size=size, crc64ecma=crc)

    async def _check_content(self, path: Path) -> None:
        """Check a VCF with its index once, whichever of the two comes first.

        Where the other one is at fault, this one is checked for itself.
        """
        if self._level == "off":
            return
        data = data_file_of(path)
        if data not in self._checked:
            self._checked[data] = await self._check_together(path)
        error = self._checked[data]
        if error is None:
            return
        if error.name in (None, path.name):
            raise error
        await in_stoppable_thread(
            lambda stopped: check_result({path.name: path}, level=self._level, stopped=stopped)
        )

    async def _check_together(self, path: Path) -> VerificationFailed | DiskError | None:
        try:
            self.warnings += await in_stoppable_thread(
                lambda stopped: check_path(path, level=self._level, stopped=stopped)
            )
        except (VerificationFailed, DiskError) as error:
            return error
        return None


async def _held_against(file: ManifestFile, path: Path, size: int) -> str:
    if size != file.size:
        raise VerificationFailed(
            f"{file.name} has {size} bytes, and the manifest says {file.size}; "
            "`verify --repair` fetches again what is wrong"
        )
    crc = str(await crc64_of_file(path))
    if crc != file.crc64ecma:
        raise VerificationFailed(
            f"{file.name} is damaged: its CRC-64 on disk is {crc}, and the manifest says "
            f"{file.crc64ecma}; `verify --repair` fetches again what is wrong"
        )
    return crc


def _is_unfinished(path: Path) -> bool:
    """Tell whether the path is a fetch's own place, or something in it."""
    here = path.absolute()
    is_partial = any(name.endswith(PARTIAL_SUFFIX) for name in (here.name, here.parent.name))
    return is_partial or here.name.endswith(PART_SUFFIX)


def _home(path: Path) -> tuple[Path, Manifest | None]:
    """Return the directory that names are told from, and its manifest.

    That of a file is the nearest above it that lists it: results have folders.
    """
    if path.is_dir():
        return path, read_manifest(path)
    here = path.absolute()
    for directory in here.parents:
        manifest = read_manifest(directory)
        if manifest is not None and here.relative_to(directory).as_posix() in _listed(manifest):
            return directory, manifest
    return here.parent, None


def _listed(manifest: Manifest) -> list[str]:
    return [file.name for file in manifest.files]


def _names(path: Path, directory: Path, manifest: Manifest | None, level: Level) -> Sequence[str]:
    if not path.exists():
        raise InvalidArgument(f"{path} is not there; give a published result, a folder or a file")
    if manifest is not None:
        is_whole = path.is_dir()
        return (
            _listed(manifest) if is_whole else [path.absolute().relative_to(directory).as_posix()]
        )
    if level == "off":
        raise InvalidArgument(
            f"{path} has no {MANIFEST_NAME}, and `verify` is off; there is nothing to verify it by"
        )
    if not path.is_dir():
        if not (path.is_file() and has_check(path.name)):
            raise InvalidArgument(
                f"{path} is no VCF, no index and in no manifest; there is nothing to verify it by"
            )
        return [path.name]
    names = _loose(path)
    if not names:
        raise InvalidArgument(
            f"{path} has no {MANIFEST_NAME} and no VCF or index in it; there is nothing to verify"
        )
    return names


def _strangers(directory: Path, manifest: Manifest | None) -> list[str]:
    """Warn of files that stand in a published result and are neither of it nor of its repair."""
    if manifest is None or not directory.is_dir():
        return []
    known = {*(file.name for file in manifest.files), *RESERVED_NAMES}
    there = {
        found.relative_to(directory).as_posix()
        for found in directory.rglob("*")
        if not found.is_dir()
    }
    return [
        f"{name}: it is not in the manifest."
        for name in sorted(there - known)
        if not is_repair_directory(name.partition("/")[0])
    ]


def _ignore(_: str) -> None:
    """Hear of a file and do nothing."""
