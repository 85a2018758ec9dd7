"""Reading .tbi and .csi files, one contig at a time (hts-specs: tabix.pdf, CSIv1.pdf).

Nothing here believes a count before the bytes it counts have been seen, and no count is believed
that the index's own size on disk, or the format, does not allow. So an index that is damaged, or
made to do harm, costs no more memory than in proportion to that size.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from downloader.units import format_bytes
from downloader.verify.bgzf import iter_data
from downloader.verify.flaw import MAX_RATIO, Flaw, Stop, never

__all__ = ["IndexHeader", "IndexReader", "IndexedContig"]

TBI_MAGIC, CSI_MAGIC = b"TBI\x01", b"CSI\x01"
TBI_MIN_SHIFT, TBI_DEPTH = 14, 5
TABIX_FIELDS = struct.Struct("<7i")  # format, col_seq, col_beg, col_end, meta, skip, l_nm
BIN, OFFSET, COUNT = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<i")
VCF_FORMAT = 2
SMALL_INDEX = 64 << 20  # bytes that any index may unpack to; gaps of a huge genome are such
MAX_WINDOWS = 1 << (31 - TBI_MIN_SHIFT)  # of a TBI's contig: a position is an int32
MAX_DEPTH = 16  # a CSI deeper than this has bins beyond 2^48


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexHeader:
    """What an index says about itself and the columns it was made from."""

    is_tbi: bool
    min_shift: int  # the smallest bins span 2^min_shift positions
    depth: int
    contigs: int
    names: tuple[str, ...] = ()
    format: int = VCF_FORMAT
    columns: tuple[int, int] = (1, 2)  # where contig and position stand, counted from 1

    @property
    def metadata_bin(self) -> int:
        """The bin number that no region has: htslib keeps record counts there (37450 in a TBI)."""
        return first_bin(self.depth + 1) + 1

    def bins_over(self, window: int) -> list[int]:
        """Return every bin that spans the whole window of 2^min_shift positions, small first."""
        return [first + (window >> shift) for first, shift in _levels(self.depth)]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedContig:
    """One contig's share of the index; all offsets are virtual offsets."""

    name: str
    bins: dict[int, array[int]] = field(default_factory=dict)  # start, stop, start, stop, …
    loffsets: dict[int, int] = field(default_factory=dict)  # CSI: smallest offset, for each bin
    linear: array[int] = field(default_factory=lambda: array("Q"))  # TBI: the same, each window
    records: int | None = None  # as the metadata bin counts them, if there is one


def first_bin(level: int) -> int:
    """Return the number of the first bin of a level; level 0 is the whole contig."""
    return ((1 << 3 * level) - 1) // 7


@cache
def _levels(depth: int) -> list[tuple[int, int]]:
    """Return each level's first bin, and how many bits of a window tell its bins apart."""
    return [(first_bin(level), 3 * (depth - level)) for level in range(depth, -1, -1)]


def _names(text: bytes) -> list[str]:
    """Cut names at their NULs, one by one: a name that comes again ends a list of millions."""
    names: dict[str, None] = {}
    start = 0
    while (stop := text.find(b"\0", start)) >= 0:
        name = text[start:stop].decode("utf-8", "replace")
        if name in names:
            raise Flaw(f"names contig {name} twice: it is damaged")
        names[name] = None
        start = stop + 1
    return list(names)


class IndexReader:
    """Reads an index from front to back: the header at once, the contigs as they are asked for."""

    def __init__(self, path: Path, *, stopped: Stop = never) -> None:
        self._size = path.stat().st_size
        self._data = iter_data(path, stopped=stopped)
        self._unpacked = 0
        self._buffer = bytearray()
        self._at = 0  # what stands before it in the buffer has been read
        self.header = self._read_header()

    def contigs(self) -> Iterator[IndexedContig]:
        """Yield every contig in order; to be called once. Anything behind the last is a Flaw."""
        for number in range(self.header.contigs):
            names = self.header.names
            yield self._read_contig(names[number] if number < len(names) else f"#{number}")
        rest = self._take_rest()
        # The number of records without coordinates is optional.
        if rest not in (0, 8):
            raise Flaw(f"has {rest} bytes behind its tables, where none may be")

    def _read_header(self) -> IndexHeader:
        magic = self._take(4)
        if magic == TBI_MAGIC:
            contigs = self._count()
            return self._with_tabix_fields(
                IndexHeader(is_tbi=True, min_shift=TBI_MIN_SHIFT, depth=TBI_DEPTH, contigs=contigs),
                self._take(TABIX_FIELDS.size),
            )
        if magic != CSI_MAGIC:
            raise Flaw("is not an index: it begins neither with TBI\\1 nor with CSI\\1")
        min_shift, depth, aux_length = self._count(), self._count(), self._count()
        if depth > MAX_DEPTH or not 0 < min_shift <= 32:  # noqa: PLR2004 - beyond any genome
            raise Flaw(f"has bins of an impossible size (min_shift {min_shift}, depth {depth})")
        aux = self._take(aux_length)
        header = IndexHeader(is_tbi=False, min_shift=min_shift, depth=depth, contigs=self._count())
        if aux_length < TABIX_FIELDS.size:
            return header
        return self._with_tabix_fields(header, aux[: TABIX_FIELDS.size], aux[TABIX_FIELDS.size :])

    def _with_tabix_fields(
        self, header: IndexHeader, fields: bytes, text: bytes | None = None
    ) -> IndexHeader:
        kind, contig_column, position_column, _, _, _, length = TABIX_FIELDS.unpack(fields)
        text = self._take(max(0, length)) if text is None else text[: max(0, length)]
        names = _names(text)
        if len(names) != header.contigs:
            raise Flaw(f"has {len(names)} names for {header.contigs} contigs: it is damaged")
        return IndexHeader(
            is_tbi=header.is_tbi,
            min_shift=header.min_shift,
            depth=header.depth,
            contigs=header.contigs,
            names=tuple(names),
            format=kind,
            columns=(contig_column, position_column),
        )

    def _read_contig(self, name: str) -> IndexedContig:
        bins: dict[int, array[int]] = {}
        loffsets: dict[int, int] = {}
        records = None
        metadata_bin, is_tbi = self.header.metadata_bin, self.header.is_tbi
        for _ in range(self._stored_count("bins", name)):
            (number,) = self._unpack(BIN)
            (loffset,) = (0,) if is_tbi else self._unpack(OFFSET)
            chunks = self._offsets(2 * self._stored_count("chunks", name))
            if number == metadata_bin:
                # Two pseudo-chunks: the contig's range, then records placed and unplaced.
                records = chunks[2] + chunks[3] if len(chunks) == 4 else None  # noqa: PLR2004
                continue
            if number > metadata_bin or number in bins:
                raise Flaw(f"has the impossible bin {number} for contig {name}: it is damaged")
            bins[number] = chunks
            loffsets[number] = loffset
        linear = self._offsets(self._windows(name)) if is_tbi else array("Q")
        return IndexedContig(
            name=name, bins=bins, loffsets=loffsets, linear=linear, records=records
        )

    def _take(self, length: int) -> bytes:
        start = self._reserve(length)
        return bytes(self._buffer[start : start + length])

    def _reserve(self, length: int) -> int:
        """Return where the next `length` bytes stand in the buffer, and go behind them."""
        start = self._at
        if start + length > len(self._buffer):
            del self._buffer[:start]
            start = 0
            while len(self._buffer) < length:
                data = next(self._data, None)
                if data is None:
                    raise Flaw("ends in the middle of its tables: it is cut short or damaged")
                self._buffer += self._measured(data)
        self._at = start + length
        return start

    def _take_rest(self) -> int:
        return len(self._buffer) - self._at + sum(len(self._measured(data)) for data in self._data)

    def _measured(self, data: bytes) -> bytes:
        self._unpacked += len(data)
        most = SMALL_INDEX + MAX_RATIO * self._size
        if self._unpacked > most:
            raise Flaw(
                f"unpacks to more than {format_bytes(most)}, from {format_bytes(self._size)} "
                "on disk; no index does that: it is damaged"
            )
        return data

    def _unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack_from(self._buffer, self._reserve(layout.size))

    def _count(self) -> int:
        (count,) = self._unpack(COUNT)
        if count < 0:
            raise Flaw(f"has an impossible count ({count}) in its tables: it is damaged")
        return count

    def _stored_count(self, what: str, name: str) -> int:
        """Return the count of things that all differ, so that each takes a byte on disk or more.

        Chunks of real indexes take four bytes at least, bins more.
        """
        count = self._count()
        if count > self._size:
            raise Flaw(
                f"claims {count:,} {what} for contig {name}, and has {self._size:,} bytes "
                "itself: it is damaged"
            )
        return count

    def _windows(self, name: str) -> int:
        count = self._count()
        if count > MAX_WINDOWS:
            raise Flaw(
                f"claims {count:,} windows for contig {name}, and a TBI has at most "
                f"{MAX_WINDOWS:,}: it is damaged"
            )
        return count

    def _offsets(self, count: int) -> array[int]:
        offsets = array("Q")
        offsets.frombytes(self._take(8 * count))
        if sys.byteorder == "big":
            offsets.byteswap()
        return offsets
