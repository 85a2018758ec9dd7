"""Whether what is on disk is whole, is a VCF, and has an index that leads to its records.

Everything here is offline and blocking: call it in a worker thread. Files are judged by the name
they have in the result, never by the name of the path where their bytes lie now.

What reads them is loaded for the first file that has a check: without a VCF nobody waits for pysam.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from downloader.errors import VerificationFailed, disk_error
from downloader.verify.flaw import Flaw, Stop, Stopped, never

if TYPE_CHECKING:
    from downloader.verify import bgzf

__all__ = [
    "INDEX_SUFFIXES",
    "Level",
    "Stopped",
    "check_path",
    "check_result",
    "data_file_of",
    "has_check",
]

Level = Literal["full", "quick", "off"]
INDEX_SUFFIXES = (".tbi", ".csi")
VCF_SUFFIXES = (".vcf.gz", ".vcf.bgz")
COMPRESSED_SUFFIXES = (".gz", ".bgz")
FIRST_RECORDS = 1000  # that a quick check reads


def check_result(
    files: Mapping[str, Path],
    *,
    level: Level,
    on_file: Callable[[str], None] | None = None,
    stopped: Stop = never,
) -> list[str]:
    """Check every file of a result by its kind, each index with its VCF; return warnings.

    Args:
        files: where the bytes of each result name lie now.
        level: `full` reads every byte and record, `quick` the ends, `off` nothing.
        on_file: hears the name of each file before it is checked.
        stopped: asked now and then whether to give up.

    Raises:
        VerificationFailed: with the name of the file and what is wrong with it.
        DiskError: a file cannot be read.
        Stopped: as `stopped` wished.

    """
    warnings: list[str] = []
    if level == "off":
        return warnings
    check = _Check(files, full=level == "full", on_file=on_file or _ignore, stopped=stopped)
    for name in sorted(files):
        if _is_index(name) and _is_vcf(_data_name(name)) and _data_name(name) in files:
            continue  # checked together with its VCF
        warnings += check.one_vcf(name) if _is_vcf(name) else check.other(name)
    return warnings


def has_check(name: str) -> bool:
    """Tell whether a file of that name is a VCF or an index, which can be checked by itself."""
    return name.lower().endswith((*INDEX_SUFFIXES, *VCF_SUFFIXES, ".vcf"))


def data_file_of(path: Path) -> Path:
    """Return the file that `path` is an index of, or the path itself if it is no index."""
    return path.with_name(_data_name(path.name)) if _is_index(path.name) else path


def check_path(path: Path, *, level: Level, stopped: Stop = never) -> list[str]:
    """Check one file on disk with its neighbours: a VCF with its index, an index with its VCF."""
    data = data_file_of(path)
    files = {path.name: path}
    for neighbour in (data, *(data.with_name(data.name + suffix) for suffix in INDEX_SUFFIXES)):
        if neighbour.is_file():
            files[neighbour.name] = neighbour
        elif os.path.lexists(neighbour):  # htslib opens it by itself, and would wait for a pipe
            raise VerificationFailed(f"{neighbour.name} beside it is no file; move it away")
    warnings = check_result(files, level=level, stopped=stopped)
    for name, index_path in files.items():
        if _is_index(name) and data.name in files and _is_older(index_path, data):
            warnings.append(
                f"{name}: it is older than {data.name}, so htslib will warn: `touch` it."
            )
    return warnings


@dataclass(frozen=True, slots=True)
class _Check:
    """The files of one result, and how they are looked at."""

    files: Mapping[str, Path]
    full: bool
    on_file: Callable[[str], None]
    stopped: Stop

    def one_vcf(self, name: str) -> list[str]:
        from downloader.verify import pair, vcf, vcf_text

        self.on_file(name)
        path = self.files[name]
        indexes = [name + suffix for suffix in INDEX_SUFFIXES if name + suffix in self.files]
        with _named(name):
            blocks = self._blocks(path, on_block=vcf_text.LineBound().add)
            records = vcf.read_records(
                path,
                shift=min(map(self._shift, indexes), default=14),
                limit=None if self.full else FIRST_RECORDS,
                stopped=self.stopped,
            )
            if indexes and records.disorder:
                raise Flaw(f"has an index but is not sorted: {records.disorder}")
        warnings = [f"{name}: {warning}." for warning in records.warnings]
        if blocks is not None and not blocks.ends_in_newline:
            warnings.append(
                f"{name}: its last line does not end in a newline and may be cut short."
            )
        if not indexes:
            warnings.append(f"{name}: there is no index (.tbi or .csi) for it.")
        for index in indexes:
            self.on_file(index)
            with _named(index):
                if blocks is not None:
                    pair.check_index(
                        self.files[index],
                        path,
                        blocks=blocks,
                        records=records,
                        stopped=self.stopped,
                    )
                else:
                    found = pair.check_index_quickly(self.files[index], path, stopped=self.stopped)
                    warnings += [f"{index}: {warning}." for warning in found]
        return warnings

    def other(self, name: str) -> list[str]:
        path = self.files[name]
        with _named(name):
            if _is_index(name):
                from downloader.verify import pair

                self.on_file(name)
                self._blocks(path)
                pair.check_tables(path, stopped=self.stopped)
                if _data_name(name) not in self.files:
                    return [f"{name}: the file that it is an index of is not there."]
            elif name.lower().endswith(".vcf"):
                from downloader.verify import vcf

                self.on_file(name)
                vcf.check_header(path, stopped=self.stopped)
            elif name.lower().endswith(COMPRESSED_SUFFIXES):
                self._compressed(name)
        return []

    def _compressed(self, name: str) -> None:
        from downloader.verify import bgzf

        if bgzf.is_bgzf(self.files[name]):
            self.on_file(name)
            self._blocks(self.files[name])

    def _blocks(
        self, path: Path, *, on_block: Callable[[bgzf.Block, bytes], None] | None = None
    ) -> bgzf.BlockMap | None:
        from downloader.verify import bgzf

        if self.full:
            return bgzf.check_blocks(path, on_block=on_block, stopped=self.stopped)
        bgzf.check_ends(path)
        return None

    def _shift(self, index: str) -> int:
        from downloader.verify import pair

        with _named(index):
            self._blocks(self.files[index])
            return pair.index_shift(self.files[index], stopped=self.stopped)


def _ignore(_: str) -> None:
    """Hear of a file and do nothing."""


def _is_index(name: str) -> bool:
    return name.lower().endswith(INDEX_SUFFIXES)


def _is_vcf(name: str) -> bool:
    return name.lower().endswith(VCF_SUFFIXES)


def _data_name(index: str) -> str:
    return index[: -len(INDEX_SUFFIXES[0])]


def _is_older(path: Path, other: Path) -> bool:
    return path.stat().st_mtime_ns < other.stat().st_mtime_ns


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what was found into the error that a person reads, with the file's name in front."""
    try:
        yield
    except Flaw as flaw:
        raise VerificationFailed(f"{name} {flaw}.", name=name) from flaw
    except OSError as error:
        told = disk_error(error, Path(name), "read")
        told.name = name
        raise told from error
