"""One BGZF block: its header, its deflate stream, its trailer (SAM spec §4.1, RFC 1951, 1952)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import BinaryIO

from downloader.verify.flaw import Flaw

__all__ = [
    "MAGIC",
    "MAX_BLOCK",
    "Block",
    "Flavours",
    "intact_block",
    "no_header",
    "read_block",
    "read_header",
]

MAGIC = b"\x1f\x8b\x08\x04"  # gzip, deflate, an extra field and nothing else optional
FIXED_LENGTH = 12  # of the header before the extra field
TRAILER_LENGTH = 8  # CRC-32 and ISIZE
MAX_BLOCK = 1 << 16  # bytes, compressed and uncompressed alike

# What a writer may put where nothing depends on the value: MTIME, XFL, OS, and whether bits are
# set in the unused rest of the last deflate byte.
Flavour = tuple[int, int, int, bool]
USUAL_FLAVOUR: Flavour = (0, 0, 255, False)
GZIP_XFL = frozenset({0, 2, 4})  # RFC 1952 §2.3.1: none, slowest, fastest
GZIP_OS = frozenset({*range(14), 255})


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One BGZF block, at `[offset, stop)` of the file."""

    offset: int
    length: int
    uncompressed_length: int
    crc_ok: bool  # it inflates to exactly ISIZE bytes with this CRC-32
    flavour: Flavour = USUAL_FLAVOUR

    @property
    def stop(self) -> int:
        """Offset of the first byte after the block."""
        return self.offset + self.length


class Flavours:
    """Finds the block whose header differs where no checksum and no length would tell.

    Writers differ in MTIME, XFL and OS, but each writes the same values into all its blocks: a
    value that is not the usual one and stands in a single block of many is a flipped bit.
    """

    def __init__(self) -> None:
        self._seen: dict[Flavour, tuple[int, Block]] = {}
        self._blocks = 0

    def add(self, block: Block) -> None:
        """Take note of one block."""
        count, first = self._seen.get(block.flavour, (0, block))
        self._seen[block.flavour] = (count + 1, first)
        self._blocks += block.uncompressed_length > 0

    def strange(self, *, trusting: bool = True) -> list[Block]:
        """Return the lone blocks; a file's only block is believed if `trusting` and it is sane."""
        lone = [block for count, block in self._seen.values() if count == 1]
        believed = trusting and self._blocks == 1
        return [
            block
            for block in lone
            if block.flavour != USUAL_FLAVOUR and not (believed and _is_sane(block.flavour))
        ]


def _is_sane(flavour: Flavour) -> bool:
    mtime, xfl, system, has_padding = flavour
    return mtime == 0 and xfl in GZIP_XFL and system in GZIP_OS and not has_padding


def read_block(file: BinaryIO, offset: int) -> tuple[Block, bytes]:
    """Read and inflate the block at `offset`; a block that does not inflate has no data."""
    file.seek(offset)
    head, extra_length, length = read_header(file, offset)
    body = file.read(length - FIXED_LENGTH - extra_length)
    if len(body) < length - FIXED_LENGTH - extra_length:
        raise Flaw(f"ends inside the BGZF block at byte {offset}: it is truncated")
    crc = int.from_bytes(body[-8:-4], "little")
    isize = int.from_bytes(body[-4:], "little")
    data, has_padding = _inflate(body[:-TRAILER_LENGTH])
    mtime = int.from_bytes(head[4:8], "little")
    block = Block(
        offset=offset,
        length=length,
        uncompressed_length=isize,
        crc_ok=data is not None and len(data) == isize and zlib.crc32(data) == crc,
        flavour=(mtime, head[8], head[9], has_padding),
    )
    return block, data or b""


def read_header(file: BinaryIO, offset: int) -> tuple[bytes, int, int]:
    """Return the fixed header, the length of the extra field, and the length of the block."""
    head = file.read(FIXED_LENGTH)
    if len(head) < FIXED_LENGTH or not head.startswith(MAGIC):
        raise Flaw(no_header(head, offset))
    extra_length = int.from_bytes(head[10:12], "little")
    length = _block_length(file.read(extra_length), extra_length)
    if length is None or length < FIXED_LENGTH + extra_length + TRAILER_LENGTH + 1:
        raise Flaw(no_header(head, offset))
    return head, extra_length, length


def no_header(head: bytes, offset: int) -> str:
    """Say what is wrong where a block header should stand."""
    if offset:
        return f"has no intact BGZF block header at byte {offset}"
    if head.startswith(MAGIC[:2]):
        return "is gzip but not BGZF (the kind that bgzip writes and an index needs)"
    return "is not BGZF-compressed: it does not begin with a BGZF block"


def _block_length(extra: bytes, extra_length: int) -> int | None:
    """Find the BC subfield; None unless the subfields fill the extra field exactly."""
    found, at = None, 0
    while at + 4 <= len(extra):
        length = int.from_bytes(extra[at + 2 : at + 4], "little")
        if extra[at : at + 2] == b"BC" and length == 2:  # noqa: PLR2004 - BSIZE is a uint16
            found = int.from_bytes(extra[at + 4 : at + 6], "little") + 1
        at += 4 + length
    return found if at == len(extra) == extra_length else None


def _inflate(deflated: bytes) -> tuple[bytes | None, bool]:
    """Inflate one block's stream, and tell whether bits are set behind its end.

    The stream ends inside its last byte and inflating ignores the rest of it, so a flipped bit
    there would go unseen: if the highest set bit can be cleared without any effect, it is one.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = stream.decompress(deflated[:-1], MAX_BLOCK + 1)
        last = deflated[-1]
        other = stream.copy() if last and not stream.eof else None
        tail = stream.decompress(stream.unconsumed_tail + deflated[-1:], MAX_BLOCK + 1)
    except zlib.error:
        return None, False
    if not stream.eof or stream.unused_data or stream.unconsumed_tail:
        return None, False
    if other is None:
        return data + tail, False
    cleared = last ^ (1 << (last.bit_length() - 1))
    return data + tail, _ends_alike(other, cleared, tail)


def _ends_alike(stream: zlib._Decompress, last: int, tail: bytes) -> bool:
    try:
        return stream.decompress(bytes([last]), MAX_BLOCK + 1) == tail and stream.eof
    except zlib.error:
        return False


def intact_block(file: BinaryIO, offset: int) -> Block | None:
    """Return the block at `offset` if every byte of it is proved, else None."""
    try:
        block, _ = read_block(file, offset)
    except Flaw:
        return None
    return block if block.crc_ok else None
