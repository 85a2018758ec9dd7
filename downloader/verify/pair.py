"""An index against its VCF: it must lead to every record, and nowhere else.

The blocks of both files are known to be whole before anything here is asked.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from downloader.verify.bgzf import BlockMap, is_block_at
from downloader.verify.flaw import Flaw, Stop, Stopped, never
from downloader.verify.tbi import VCF_FORMAT, IndexedContig, IndexHeader, IndexReader
from downloader.verify.vcf import ContigRecords, Records, first_records
from downloader.verify.vcf_text import check_line_at, read_header

__all__ = ["check_index", "check_index_quickly", "check_tables", "index_shift"]

Chunks = dict[int, list[tuple[int, int]]]  # of each bin, as positions
Locate = Callable[[int], int | None]  # a virtual offset to a position that can be compared
VCF_COLUMNS = (1, 2)
ZERO_BASED = 0x10000  # a flag in the format
BEYOND = 1 << 64  # sorts behind every position
STOP_OFFSETS = 1 << 16  # between two looks at whether to stop
MISFIT = "does not fit its VCF"


def index_shift(index_path: Path, *, stopped: Stop = never) -> int:
    """Return how many positions the index's smallest bins span, as a power of two."""
    return IndexReader(index_path, stopped=stopped).header.min_shift


def check_tables(index_path: Path, *, stopped: Stop = never) -> None:
    """Check an index for itself alone: its magic word and its tables to the end."""
    for contig in IndexReader(index_path, stopped=stopped).contigs():
        _chunks(contig, lambda virtual_offset: virtual_offset, stopped)


def check_index(
    index_path: Path,
    vcf_path: Path,
    *,
    blocks: BlockMap,
    records: Records,
    stopped: Stop = never,
) -> None:
    """Prove that the index leads to every record of the VCF, and nowhere else.

    Every offset in it must be a place in a block of the VCF, its counts must be the VCF's, every
    group of records must lie in chunks that a query for it looks at, and a real query must work.
    """
    reader = IndexReader(index_path, stopped=stopped)
    _check_format(reader.header)
    reach = _Reach(header=reader.header, blocks=blocks, shift=records.shift, stopped=stopped)
    indexed = set()
    for contig in reader.contigs():
        chunks = _chunks(contig, blocks.position, stopped)
        found = records.contigs.get(contig.name)
        _check_counts(contig, found, has_chunks=any(chunks.values()))
        if found is not None:
            reach.check(contig, chunks, found)
            indexed.add(contig.name)
    if reader.header.names:
        _check_nothing_is_missing(records, indexed)
        _check_queries(index_path, vcf_path, records)


def check_index_quickly(index_path: Path, vcf_path: Path, *, stopped: Stop = never) -> list[str]:
    """Check that the index is whole and its offsets may be places in the VCF; return warnings."""
    reader = IndexReader(index_path, stopped=stopped)
    _check_format(reader.header)
    size = vcf_path.stat().st_size
    in_use: dict[str, int] = {}  # where a query for each contig begins to read
    for contig in reader.contigs():
        chunks = _chunks(contig, lambda offset: offset if offset >> 16 <= size else None, stopped)
        starts = [start for spans in chunks.values() for start, _ in spans]
        if starts:
            lowest = _lowest_offset(contig, reader.header.bins_over(0), 0)
            in_use[contig.name] = max(min(starts), lowest) >> 16
            for offset in {min(starts) >> 16, in_use[contig.name]}:
                if not is_block_at(vcf_path, offset):
                    raise Flaw(f"{MISFIT}: the records of {contig.name} would begin inside a block")
    if reader.header.names:
        names = list(in_use)
        wanted = dict.fromkeys([*names[:1], *names[-1:]])
        for name in wanted:
            _check_line(name, vcf_path, in_use[name], stopped)
        _query(index_path, vcf_path, wanted)
    declared = read_header(vcf_path, stopped=stopped).contigs if reader.header.names else set()
    unknown = set(in_use) - declared if reader.header.names else set()
    return [f"it knows contig {name}, which its VCF's header lacks" for name in sorted(unknown)]


def _check_line(name: str, vcf_path: Path, offset: int, stopped: Stop) -> None:
    """Look at the line that a query for a contig reads, before htslib holds it in memory."""
    try:
        check_line_at(vcf_path, offset, stopped=stopped)
    except Flaw as flaw:
        raise Flaw(f"leads for contig {name} to where its VCF {flaw}") from flaw


def _check_format(header: IndexHeader) -> None:
    """Insist on the columns of a VCF; htslib's own `-p vcf` is one way to say them."""
    if header.names and header.format != VCF_FORMAT:
        usable = header.columns == VCF_COLUMNS and not header.format & ZERO_BASED
        if not usable:
            raise Flaw("was not made for a VCF: it was built from other columns (tabix -p vcf)")


def _chunks(contig: IndexedContig, locate: Locate, stopped: Stop) -> Chunks:
    """Return each bin's chunks as sorted pairs of positions; a chunk that is nowhere is a Flaw."""
    positions = _positions(contig, locate, stopped)
    located: Chunks = {}
    for number, offsets in contig.bins.items():
        places = [positions[offset] for offset in offsets]
        spans = list(zip(places[::2], places[1::2], strict=True))
        for start, stop in spans:
            if start > stop:
                raise Flaw(f"has a chunk of contig {contig.name} that stops before it starts")
        spans.sort()
        located[number] = spans
    return located


def _positions(contig: IndexedContig, locate: Locate, stopped: Stop) -> dict[int, int]:
    """Return the position of every offset; an index says most of them several times over."""
    positions: dict[int, int] = {}
    offsets = chain(contig.linear, contig.loffsets.values(), *contig.bins.values())
    for number, offset in enumerate(offsets):
        if number % STOP_OFFSETS == 0 and stopped():
            raise Stopped
        if offset in positions:
            continue
        position = locate(offset)
        if position is None:
            place = f"byte {offset >> 16}, {offset & 0xFFFF} bytes into the block there"
            raise Flaw(f"{MISFIT}: for contig {contig.name} it leads to {place}, and there is none")
        positions[offset] = position
    return positions


def _check_counts(contig: IndexedContig, found: ContigRecords | None, *, has_chunks: bool) -> None:
    counted = found.count if found else 0
    if contig.records is not None and contig.records != counted:
        raise Flaw(
            f"{MISFIT}: it knows {contig.records} records of contig {contig.name}, "
            f"and the VCF has {counted}"
        )
    if has_chunks and not counted:
        raise Flaw(f"{MISFIT}: it knows contig {contig.name}, which has no record in the VCF")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reach:
    """Checks that a query for any window that holds records would read all of them."""

    header: IndexHeader
    blocks: BlockMap
    shift: int  # of the windows by which the records are grouped
    stopped: Stop = never

    def check(self, contig: IndexedContig, chunks: Chunks, found: ContigRecords) -> None:
        """Raise a Flaw at the first group of records that a query could miss.

        A query looks into every bin over its positions, from the smallest offset that the linear
        index allows. Which of those bins a record is in depends on its end, and programs differ
        in what they take for the end; so it is enough that one of them has it.
        """
        edges = [self._place(offset) for offset in (*found.window_starts, found.stop)]
        for group, (start, stop) in zip(found.windows, pairwise(edges), strict=True):
            if self.stopped():
                raise Stopped
            window = group >> (self.header.min_shift - self.shift)
            numbers = self.header.bins_over(window)
            spans = [chunks[number] for number in numbers if number in chunks]
            lowest = self._place(_lowest_offset(contig, numbers, window))
            if lowest > start or _covered_until(spans, start, stop) < stop:
                near = (group << self.shift) + 1
                raise Flaw(
                    f"{MISFIT}: it misses records of contig {contig.name} near position {near}"
                )

    def _place(self, offset: int) -> int:
        """Turn a virtual offset that is known to be good into a position."""
        position = self.blocks.position(offset)
        return self.blocks.length if position is None else position


def _lowest_offset(contig: IndexedContig, numbers: Iterable[int], window: int) -> int:
    if contig.linear:
        # htslib uses the last entry for windows behind the end of the linear index.
        return contig.linear[min(window, len(contig.linear) - 1)]
    return next((contig.loffsets[number] for number in numbers if number in contig.loffsets), 0)


def _covered_until(spans: list[list[tuple[int, int]]], start: int, stop: int) -> int:
    """Return how far from `start` towards `stop` the chunks reach without a gap."""
    reached, last = start, -1
    while last < reached < stop:
        last = reached
        for bin_spans in spans:
            at = bisect.bisect_right(bin_spans, (reached, BEYOND)) - 1
            if at >= 0:
                reached = max(reached, bin_spans[at][1])
    return reached


def _check_nothing_is_missing(records: Records, indexed: set[str]) -> None:
    for name in records.contigs:
        if name not in indexed:
            raise Flaw(f"{MISFIT}: it does not know contig {name}, which has records there")


def _check_queries(index_path: Path, vcf_path: Path, records: Records) -> None:
    names = list(records.contigs)
    wanted = {name: records.contigs[name].first for name in (*names[:1], *names[-1:])}
    _query(index_path, vcf_path, wanted)


def _query(index_path: Path, vcf_path: Path, wanted: Mapping[str, int | None]) -> None:
    """Query for each of the contigs, whose first record must be where it is known to be."""
    if not wanted:
        return
    for name, (contig, position) in first_records(vcf_path, index_path, wanted).items():
        if contig != name or wanted[name] not in (None, position):
            raise Flaw(f"{MISFIT}: a query for {name} gives {contig}:{position + 1} first")
