"""BGZF: gzip in blocks of at most 64 KiB, each with its own length and CRC-32 (SAM spec §4.1)."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from downloader.verify.block import (
    MAGIC,
    MAX_BLOCK,
    Block,
    Flavours,
    intact_block,
    no_header,
    read_block,
    read_header,
)
from downloader.verify.flaw import Flaw, Stop, Stopped, never

__all__ = [
    "EOF_BLOCK",
    "Block",
    "BlockMap",
    "Damage",
    "check_blocks",
    "check_ends",
    "find_damage",
    "has_eof_block",
    "is_bgzf",
    "is_block_at",
    "iter_blocks",
    "iter_data",
    "iter_intact",
]

READ_BUFFER = 1 << 20
EOF_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMap:
    """Where the blocks of an intact file are, and what they hold."""

    size: int  # bytes of the file
    length: int = 0  # bytes once decompressed
    ends_in_newline: bool = True
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    starts: array[int] = field(default_factory=lambda: array("Q"))  # uncompressed positions

    def position(self, virtual_offset: int) -> int | None:
        """Return the uncompressed position of a virtual offset; None if it leads to no block.

        Two virtual offsets name one position where blocks meet, so positions compare and
        virtual offsets do not.
        """
        offset, within = virtual_offset >> 16, virtual_offset & 0xFFFF
        if offset == self.size:
            return self.length if within == 0 else None
        index = bisect.bisect_right(self.offsets, offset) - 1
        if index < 0 or self.offsets[index] != offset:
            return None
        last = index + 1 == len(self.starts)
        stop = self.length if last else self.starts[index + 1]
        position = self.starts[index] + within
        return position if position <= stop else None


def is_bgzf(path: Path) -> bool:
    """Tell whether the file begins with a BGZF block header."""
    return is_block_at(path, 0)


def is_block_at(path: Path, offset: int) -> bool:
    """Tell whether a BGZF block header stands at `offset`."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        try:
            read_header(file, offset)
        except Flaw:
            return False
    return True


def has_eof_block(path: Path) -> bool:
    """Tell whether the file ends in the empty block that says nothing is missing."""
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(EOF_BLOCK)))
        return file.read(len(EOF_BLOCK)) == EOF_BLOCK


def iter_blocks(path: Path) -> Iterator[Block]:
    """Yield every block in order, inflated and compared with its CRC-32.

    Raises:
        Flaw: where no block header stands, or where the file ends inside a block.
    """
    with path.open("rb", buffering=READ_BUFFER) as file:
        for block, _ in _walk(file):
            yield block


def iter_intact(
    path: Path, *, start: int = 0, stopped: Stop = never
) -> Iterator[tuple[Block, bytes]]:
    """Yield every block from offset `start` on with its decompressed bytes.

    Raises:
        Flaw: at a damaged block.
        Stopped: as `stopped` wished; it is asked before each block.
    """
    with path.open("rb", buffering=READ_BUFFER) as file:
        for block, data in _walk(file, start):
            if stopped():
                raise Stopped
            _insist_on_crc(block)
            yield block, data


def iter_data(path: Path, *, stopped: Stop = never) -> Iterator[bytes]:
    """Yield the decompressed bytes block by block; a damaged block is a Flaw."""
    for _, data in iter_intact(path, stopped=stopped):
        yield data


def check_blocks(
    path: Path,
    *,
    on_block: Callable[[Block, bytes], None] | None = None,
    stopped: Stop = never,
) -> BlockMap:
    """Walk the whole file and return its blocks, every one of them proved by its CRC-32.

    Args:
        path: the file.
        on_block: hears of each block and what it holds, once it is proved.
        stopped: asked before each block whether to give up.

    Raises:
        Flaw: a damaged block, a missing end-of-file block, anything after it.
        Stopped: as `stopped` wished.
    """
    _check_eof(path)
    starts, offsets, flavours = array("Q"), array("Q"), Flavours()
    length, last_byte = 0, b"\n"
    for block, data in iter_intact(path, stopped=stopped):
        if on_block is not None:
            on_block(block, data)
        flavours.add(block)
        offsets.append(block.offset)
        starts.append(length)
        length += len(data)
        last_byte = data[-1:] or last_byte
    for block in flavours.strange():
        raise Flaw(f"has a damaged BGZF block header at byte {block.offset}")
    return BlockMap(
        size=path.stat().st_size,
        length=length,
        ends_in_newline=last_byte == b"\n",
        offsets=offsets,
        starts=starts,
    )


def check_ends(path: Path) -> None:
    """Check the end-of-file block, the first block and the last one before the end: quick."""
    _check_eof(path)
    with path.open("rb", buffering=READ_BUFFER) as file:
        _insist_on_crc(read_block(file, 0)[0])
        stop = file.seek(0, 2) - len(EOF_BLOCK)
        if stop and not _ends_in_block(file, stop):
            raise Flaw(f"has a damaged last BGZF block, which should stop at byte {stop}")


class Damage(NamedTuple):
    """What of a file is in no intact block, as half-open byte ranges, sorted and disjoint."""

    intact_blocks: int
    ranges: list[tuple[int, int]]


def find_damage(path: Path, stopped: Stop = never) -> Damage:
    """Find what holds no intact block, for fetching it again.

    Behind a damaged header the search goes on at the next intact block. In a file that is no BGZF
    at all, no block is intact.

    Raises:
        Stopped: as `stopped` wished.
    """
    ranges, flavours, intact = [], Flavours(), 0
    with path.open("rb", buffering=READ_BUFFER) as file:
        size = file.seek(0, 2)
        offset = 0
        while offset < size:
            if stopped():
                raise Stopped
            block = intact_block(file, offset)
            if block is None:
                stop = _next_intact(file, offset + 1, size, stopped)
                ranges.append((offset, stop))
                offset = stop
            else:
                flavours.add(block)
                intact += 1
                offset = block.stop
    strange = [(block.offset, block.stop) for block in flavours.strange(trusting=False)]
    return Damage(intact - len(strange), _joined(sorted(ranges + strange)))


def _walk(file: BinaryIO, start: int = 0) -> Iterator[tuple[Block, bytes]]:
    size = file.seek(0, 2)
    offset = file.seek(start)
    while offset < size:
        block, data = read_block(file, offset)
        yield block, data
        offset = file.seek(block.stop)


def _insist_on_crc(block: Block) -> None:
    if not block.crc_ok:
        raise Flaw(f"has a damaged BGZF block at byte {block.offset}: its CRC-32 does not match")


def _check_eof(path: Path) -> None:
    if has_eof_block(path):
        return
    with path.open("rb") as file:
        head = file.read(len(EOF_BLOCK))
        size = file.seek(0, 2)
        file.seek(max(0, size - MAX_BLOCK))
        tail = file.read()
    if not head:
        raise Flaw("is empty")
    if not is_bgzf(path):
        raise Flaw(no_header(head, 0))
    _, found, rest = tail.rpartition(EOF_BLOCK)
    if found and not rest.startswith(MAGIC):
        raise Flaw(f"has {len(rest)} bytes after the BGZF end-of-file block, where none may be")
    raise Flaw("ends without the BGZF end-of-file block: it is truncated")


def _ends_in_block(file: BinaryIO, stop: int) -> bool:
    """Tell whether an intact block stops at `stop`, by trying every place it could begin."""
    base = max(0, stop - MAX_BLOCK)
    file.seek(base)
    window = file.read(stop - base)
    at = window.find(MAGIC)
    while at >= 0:
        block = intact_block(file, base + at)
        if block is not None and block.stop == stop:
            return True
        at = window.find(MAGIC, at + 1)
    return False


def _next_intact(file: BinaryIO, offset: int, size: int, stopped: Stop) -> int:
    """Return the offset of the next intact block at or after `offset`, or the file's size."""
    while offset < size:
        if stopped():
            raise Stopped
        file.seek(offset)
        window = file.read(READ_BUFFER)
        at = window.find(MAGIC)
        while at >= 0:
            if intact_block(file, offset + at) is not None:
                return offset + at
            at = window.find(MAGIC, at + 1)
        # The magic may straddle two windows.
        offset += max(1, len(window) - len(MAGIC) + 1)
    return size


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in ranges:
        if joined and joined[-1][1] >= start:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
