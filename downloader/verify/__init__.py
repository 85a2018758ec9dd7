"""Whether what is on disk is whole, is a VCF, and has an index that leads to its records.

Everything here is offline and blocking: call it in a worker thread. Files are judged by the name
they have in the result, never by the name of the path where their bytes lie now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from downloader.errors import DiskError, VerificationFailed
from downloader.verify import bgzf, pair, vcf
from downloader.verify.bgzf import damaged_blocks
from downloader.verify.flaw import Flaw

__all__ = ["Level", "check_path", "check_result", "damaged_blocks"]

Level = Literal["full", "quick", "off"]
INDEX_SUFFIXES = (".tbi", ".csi")
VCF_SUFFIXES = (".vcf.gz", ".vcf.bgz")
COMPRESSED_SUFFIXES = (".gz", ".bgz")
FIRST_RECORDS = 1000  # that a quick check reads


def check_result(
    files: Mapping[str, Path], *, level: Level, on_file: Callable[[str], None] | None = None
) -> list[str]:
    """Check every file of a result by its kind, each index with its VCF; return warnings.

    Args:
        files: where the bytes of each result name lie now.
        level: `full` reads every byte and record, `quick` the ends, `off` nothing.
        on_file: hears the name of each file before it is checked.

    Raises:
        VerificationFailed: with the name of the file and what is wrong with it.
        DiskError: a file cannot be read.

    """
    warnings: list[str] = []
    if level == "off":
        return warnings
    for name in sorted(files):
        if _is_index(name) and _is_vcf(_data_name(name)) and _data_name(name) in files:
            continue  # checked together with its VCF
        if on_file is not None:
            on_file(name)
        if _is_vcf(name):
            indexes = [name + suffix for suffix in INDEX_SUFFIXES if name + suffix in files]
            warnings += _check_vcf(name, indexes, files, full=level == "full", on_file=on_file)
        else:
            warnings += _check_other(name, files, full=level == "full")
    return warnings


def check_path(path: Path, *, level: Level) -> list[str]:
    """Check one file on disk with its neighbours: a VCF with its index, an index with its VCF."""
    data = path.with_name(_data_name(path.name)) if _is_index(path.name) else path
    files = {path.name: path}
    for neighbour in (data, *(data.with_name(data.name + suffix) for suffix in INDEX_SUFFIXES)):
        if neighbour.is_file():
            files[neighbour.name] = neighbour
    warnings = check_result(files, level=level)
    for name, index_path in files.items():
        if _is_index(name) and data.name in files and _is_older(index_path, data):
            warnings.append(
                f"{name}: it is older than {data.name}, so htslib will warn: `touch` it."
            )
    return warnings


def _check_vcf(
    name: str,
    indexes: list[str],
    files: Mapping[str, Path],
    *,
    full: bool,
    on_file: Callable[[str], None] | None,
) -> list[str]:
    path = files[name]
    with _named(name):
        blocks = _check_blocks(path, full=full)
        shifts = [_shift(index, files, full=full) for index in indexes]
        records = vcf.read_records(
            path, shift=min(shifts, default=14), limit=None if full else FIRST_RECORDS
        )
        if indexes and records.disorder:
            raise Flaw(f"has an index but is not sorted: {records.disorder}")
    warnings = [f"{name}: {warning}." for warning in records.warnings]
    if blocks is not None and not blocks.ends_in_newline:
        warnings.append(f"{name}: its last line does not end in a newline and may be cut short.")
    if not indexes:
        warnings.append(f"{name}: there is no index (.tbi or .csi) for it.")
    for index in indexes:
        if on_file is not None:
            on_file(index)
        with _named(index):
            if blocks is not None:
                pair.check_index(files[index], path, blocks=blocks, records=records)
            else:
                found = pair.check_index_quickly(files[index], path)
                warnings += [f"{index}: {warning}." for warning in found]
    return warnings


def _check_other(name: str, files: Mapping[str, Path], *, full: bool) -> list[str]:
    path = files[name]
    with _named(name):
        if _is_index(name):
            _check_blocks(path, full=full)
            pair.check_tables(path)
            if _data_name(name) not in files:
                return [f"{name}: the file that it is an index of is not there."]
        elif name.lower().endswith(".vcf"):
            vcf.check_header(path)
        elif name.lower().endswith(COMPRESSED_SUFFIXES) and bgzf.is_bgzf(path):
            _check_blocks(path, full=full)
    return []


def _check_blocks(path: Path, *, full: bool) -> bgzf.BlockMap | None:
    if full:
        return bgzf.check_blocks(path)
    bgzf.check_ends(path)
    return None


def _shift(index: str, files: Mapping[str, Path], *, full: bool) -> int:
    with _named(index):
        _check_blocks(files[index], full=full)
        return pair.index_shift(files[index])


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
        raise VerificationFailed(f"{name} {flaw}.") from flaw
    except OSError as error:
        raise DiskError(f"{name} cannot be read: {error.strerror or error}.") from error
