"""What the bytes of a VCF say before htslib reads them: its header, and how long its lines are.

Htslib holds a whole header, and each whole line, in memory, several times over. So what a small
file unpacks to is held against what it takes on disk before htslib sees it.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from downloader.units import format_bytes
from downloader.verify.bgzf import Block, is_bgzf, iter_data, iter_intact
from downloader.verify.flaw import MAX_RATIO, Flaw, Stop, Stopped, never

__all__ = ["Header", "LineBound", "check_first_lines", "check_line_at", "read_header"]

MAX_HEADER = 256 << 20  # bytes; three million contigs take some 180 MiB
SMALL_HEADER = 16 << 20  # bytes that any file's header may have; 100,000 samples take some 2 MiB
SMALL_LINE = 128 << 20  # bytes that any line may have; 500,000 samples take some tens of MiB
PIECE = 1 << 16
BEGINNING, COLUMNS = b"##fileformat=VCF", b"\n#CHROM\t"
CONTIG_LINE = re.compile(rb"^##contig=<(?:[^\n]*,)?ID=([^,>\n]+)", re.MULTILINE)


@dataclass(slots=True, kw_only=True)
class Header:
    """What was read of a header, up to its last line."""

    contigs: set[str] = field(default_factory=set)  # that it declares
    lines: int = 0


class LineBound:
    """Refuses a line that is long out of all proportion to what it takes in its file."""

    def __init__(self) -> None:
        self.lines = 0  # that were seen to their end
        self._start = 0  # the block in which the line begins that has no end yet
        self._length = 0  # its bytes
        self._packed = 0  # bytes of the blocks that it is in

    def add(self, block: Block, data: bytes) -> None:
        """Take note of the next block; a Flaw as soon as it makes a line too long.

        Lines that begin and end in one block need no look: a block has 64 KiB.
        """
        if self._packed == 0:
            self._start = block.offset
        end = data.find(b"\n")
        self._length += end if end >= 0 else len(data)
        self._packed += block.length
        if self._length > SMALL_LINE + MAX_RATIO * self._packed:
            raise Flaw(
                f"has a line of more than {format_bytes(SMALL_LINE)} that takes only "
                f"{format_bytes(self._packed)} of the file, from byte {self._start} on: "
                "no VCF has such a line"
            )
        if end >= 0:
            self.lines += data.count(b"\n")
            self._length = len(data) - 1 - data.rfind(b"\n")
            self._start, self._packed = block.offset, block.length


def read_header(path: Path, *, stopped: Stop = never) -> Header:
    """Check the shape of a VCF's header, compressed or plain, and tell what it declares.

    Read from the bytes, not through htslib, which quietly adds what the header lacks.

    Raises:
        Flaw: it is no header of a VCF, has no end, or is larger than any.
        Stopped: as `stopped` wished.
    """
    header = Header()
    for lines in _header_lines(path, stopped):
        if header.lines == 0 and not lines.startswith(BEGINNING):
            raise Flaw(f"is not a VCF: it does not begin with {BEGINNING.decode()}")
        stop = (b"\n" + lines).find(COLUMNS)
        names = CONTIG_LINE.findall(lines if stop < 0 else lines[:stop])
        header.contigs.update(name.decode("utf-8", "replace") for name in names)
        if stop >= 0:
            header.lines += lines[:stop].count(b"\n") + 1
            return header
        header.lines += lines.count(b"\n")
    if header.lines == 0:
        raise Flaw(f"is not a VCF: it does not begin with {BEGINNING.decode()}")
    raise Flaw("has no #CHROM line, so its VCF header is not complete")


def check_first_lines(path: Path, *, lines: int, stopped: Stop = never) -> None:
    """Refuse a BGZF file with an overlong line among its first lines."""
    bound = LineBound()
    for block, data in iter_intact(path, stopped=stopped):
        bound.add(block, data)
        if bound.lines >= lines:
            return


def check_line_at(path: Path, offset: int, *, stopped: Stop = never) -> None:
    """Refuse an overlong line in or behind the block at `offset`, up to the first whole one."""
    bound = LineBound()
    for block, data in iter_intact(path, start=offset, stopped=stopped):
        bound.add(block, data)
        # The line that is meant may begin behind the end of another in the first block.
        if bound.lines and block.offset != offset:
            return


def _header_lines(path: Path, stopped: Stop) -> Iterator[bytes]:
    """Yield whole lines, many at a time; each byte is looked at once, however they are cut."""
    size = path.stat().st_size
    most = min(MAX_HEADER, SMALL_HEADER + MAX_RATIO * size)
    rest, length = bytearray(), 0
    for data in _contents(path, stopped):
        stop = data.rfind(b"\n") + 1
        if stop:
            yield bytes(rest + data[:stop])
            rest.clear()
        rest += data[stop:]
        length += len(data)
        if length > most:
            raise Flaw(
                f"has a header without an end: no #CHROM line in its first {format_bytes(most)}, "
                f"and the whole file has {format_bytes(size)}"
            )
    if rest:
        yield bytes(rest)


def _contents(path: Path, stopped: Stop) -> Iterator[bytes]:
    """Yield what a file holds, whether it is BGZF, another gzip or plain, as htslib takes it."""
    if is_bgzf(path):
        yield from iter_data(path, stopped=stopped)
        return
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = gzip.GzipFile(fileobj=raw) if is_gzip else raw
        try:
            while data := file.read(PIECE):
                if stopped():
                    raise Stopped
                yield data
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Flaw(f"has a damaged gzip stream in its header ({error})") from error
