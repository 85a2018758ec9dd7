"""The VCF itself, read by htslib: header, every record, regions through an index."""

from __future__ import annotations

import contextlib
import re
import threading
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pysam

from downloader.units import listed
from downloader.verify.flaw import Flaw, Stop, Stopped, never
from downloader.verify.vcf_text import check_first_lines, read_header

__all__ = ["ContigRecords", "Records", "check_header", "first_records", "read_records"]

SHOWN_NAMES = 8
SMALL = 1 << 20  # bytes of a file that is read sooner than a second thread is started
STOP_RECORDS = 4096  # between two looks at whether to stop
NO_WINDOW = -2  # -1 is that of a record at POS 0, a telomere
TAG = re.compile(r"(?:[A-Za-z_][0-9A-Za-z_.]*|1000G)\Z")  # VCF 4.3 §1.6.1

_quiet_lock = threading.Lock()
_quiet_depth = 0
_loud_verbosity = 0


@dataclass(slots=True, kw_only=True)
class ContigRecords:
    """Where the records of one contig are, grouped by windows of 2^shift positions."""

    start: int  # virtual offset of the first record
    first: int  # its position, counted from 0; -1 is a telomere
    stop: int = 0  # virtual offset behind the last record
    count: int = 0
    windows: array[int] = field(default_factory=lambda: array("Q"))
    window_starts: array[int] = field(default_factory=lambda: array("Q"))  # virtual offsets


@dataclass(slots=True, kw_only=True)
class Records:
    """What was read of a VCF, contig by contig in the order of the file."""

    contigs: dict[str, ContigRecords] = field(default_factory=dict)
    shift: int = 14
    disorder: str | None = None  # where the records are not sorted as an index needs them
    warnings: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Records that were read."""
        return sum(contig.count for contig in self.contigs.values())


@contextlib.contextmanager
def quiet_htslib() -> Iterator[None]:
    """Keep htslib from writing to the process's stderr, where somebody's progress bar is.

    Its verbosity belongs to the whole process: the last of several threads restores it.
    """
    global _quiet_depth, _loud_verbosity  # noqa: PLW0603 - htslib's own setting is global
    with _quiet_lock:
        if _quiet_depth == 0:
            _loud_verbosity = pysam.set_verbosity(0)
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                pysam.set_verbosity(_loud_verbosity)


def check_header(path: Path, *, stopped: Stop = never) -> None:
    """Let htslib read the header; works for compressed and plain files."""
    read_header(path, stopped=stopped)
    with _opened(path):
        pass


def read_records(
    path: Path, *, shift: int = 14, limit: int | None = None, stopped: Stop = never
) -> Records:
    """Let htslib parse the header and every record, or the first `limit` records.

    Args:
        path: a BGZF-compressed VCF, whatever it is called. Without a limit, all of its lines are
            known to be of a possible length (`LineBound`).
        shift: records are grouped by windows of 2^shift positions, as the index's bins are.
        limit: stop after so many records.
        stopped: tells whether to give up; then Stopped is raised.

    """
    records = Records(shift=shift)
    header = read_header(path, stopped=stopped)
    if limit is not None:
        # One more than are wanted is read, to see that there is one.
        check_first_lines(path, lines=header.lines + limit + 1, stopped=stopped)
    with _opened(path) as file:
        before = _tags(file.header)
        try:
            _read_all(file, records, limit, stopped)
        except (OSError, ValueError) as error:
            raise Flaw(_unreadable(records, error)) from error
        records.warnings += _untidy(before, _tags(file.header), header.contigs, records)
    return records


def first_records(
    path: Path, index_path: Path, contigs: Iterable[str]
) -> dict[str, tuple[str, int]]:
    """Return contig and position (from 0) of the record that a query for each contig gives first.

    Only names and numbers are looked at, so bytes that are no UTF-8 do no harm.
    """
    found, contig = {}, ""
    try:
        with (
            quiet_htslib(),
            pysam.TabixFile(str(path.absolute()), index=str(index_path.absolute())) as file,
        ):
            for contig in contigs:
                row = next(file.fetch(contig, parser=pysam.asTuple()))
                found[contig] = str(row[0]), int(row[1]) - 1
    except StopIteration:
        raise Flaw(f"leads to no record of contig {contig}") from None
    except (OSError, ValueError, IndexError) as error:
        raise Flaw(f"cannot be used to read contig {contig} ({_reason(error)})") from error
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pysam.VariantFile]:
    with quiet_htslib():
        try:
            # An absolute path, because htslib takes "s3:x" for a place on the network.
            threads = 2 if path.stat().st_size > SMALL else 1
            file = pysam.VariantFile(str(path.absolute()), threads=threads)
        except (OSError, ValueError, NotImplementedError) as error:
            raise Flaw("has a header that htslib cannot read as VCF") from error
        with file:
            yield file


def _read_all(file: pysam.VariantFile, records: Records, limit: int | None, stopped: Stop) -> None:
    """Note for each record where it lies; written flat, because it runs for every record."""
    tell, shift = file.tell, records.shift
    rid = position = count = -1
    window = NO_WINDOW
    contig: ContigRecords | None = None
    start = tell()
    for count, record in enumerate(file):
        if count == limit:
            break
        if count % STOP_RECORDS == 0 and stopped():
            raise Stopped
        if record.rid != rid or contig is None:
            contig = _next_contig(records, record, start)
            rid, window, position = record.rid, NO_WINDOW, -1
        if record.start < position and records.disorder is None:
            records.disorder = f"position {record.pos} of {record.contig} follows {position + 1}"
        position = record.start
        # Nobody asks where the records of an unsorted file are, and it may have very many windows.
        if position >> shift != window and records.disorder is None:
            window = position >> shift
            contig.windows.append(max(0, window))
            contig.window_starts.append(start)
        start = contig.stop = tell()
        contig.count += 1


def _next_contig(records: Records, record: pysam.VariantRecord, start: int) -> ContigRecords:
    name = str(record.contig)
    if name in records.contigs:
        records.disorder = records.disorder or f"the records of {name} are in several places"
        return records.contigs[name]
    records.contigs[name] = contig = ContigRecords(start=start, first=record.start)
    return contig


def _unreadable(records: Records, error: Exception) -> str:
    where = f"record {records.count + 1} cannot be read"
    if records.contigs:
        where += f" (the last readable one is on {next(reversed(records.contigs))})"
    # htslib reports any record it cannot parse as a truncated file; the blocks are known whole.
    return f"has a damaged or malformed record: {where}{_because(error)}"


def _because(error: Exception) -> str:
    reason = _reason(error)
    return "" if "truncated" in reason or "unable to" in reason else f": {reason}"


def _reason(error: Exception) -> str:
    return str(error).strip().removeprefix("Error(s) reading record: ") or type(error).__name__


def _tags(header: pysam.VariantHeader) -> dict[str, set[str]]:
    kinds = {"FILTER": header.filters, "INFO": header.info, "FORMAT": header.formats}
    return {kind: set(tags.keys()) for kind, tags in kinds.items()}


def _untidy(
    before: dict[str, set[str]], after: dict[str, set[str]], declared: set[str], records: Records
) -> list[str]:
    """Say what htslib had to add to the header while reading, and what it would grumble about."""
    named = partial(listed, shown=SHOWN_NAMES)
    missing = {kind: after[kind] - before[kind] for kind in after}
    missing["contig"] = set(records.contigs) - declared
    invalid = {tag for kind in ("INFO", "FORMAT") for tag in before[kind] if not TAG.match(tag)}
    warnings = [
        f"its header does not declare {kind} {named(names)}, which its records use"
        for kind, names in missing.items()
        if names
    ]
    if invalid:
        warnings.append(f"its header declares {named(invalid)}, which is no valid VCF tag name")
    if records.disorder:
        warnings.append(f"it is not sorted, so it cannot be indexed: {records.disorder}")
    return warnings
