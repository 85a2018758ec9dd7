"""What the store holds: objects from memory or from disk, with their facts, read piece by piece."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from fastcrc import crc64

__all__ = ["Source", "StoredObject", "describe", "open_source"]

READ_BYTES = 1024 * 1024
MULTIPART_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One version of one object; `etag` is as it travels, quotes included."""

    key: str
    content: bytes | Path = field(repr=False)
    size: int
    etag: str
    crc64: int | None
    modified_at: datetime
    content_type: str = "application/octet-stream"
    content_encoding: str | None = None
    is_archived: bool = False
    stamp: tuple[int, int] | None = None  # mtime_ns and size of the file when it was described

    @property
    def is_stale(self) -> bool:
        """Tell whether the file has been written to since it was described."""
        return isinstance(self.content, Path) and self.stamp != _stamp(self.content)


def describe(key: str, data: bytes | Path, *, now: datetime) -> StoredObject:
    """Compute an object's facts in one pass over its bytes, in bounded memory."""
    stamp = _stamp(data) if isinstance(data, Path) else None
    checksum, digest, size = 0, hashlib.md5(usedforsecurity=False), 0
    large = stamp is not None and stamp[1] > MULTIPART_BYTES
    for piece in _pieces(data):
        checksum = crc64.xz(piece, checksum)
        size += len(piece)
        if not large:
            digest.update(piece)
    if large:  # MD5 would cost more than all the rest, and of such an object OSS gives none
        digest.update(f"{checksum} {size}".encode())
    parts = f"-{-(-size // MULTIPART_BYTES)}" if large else ""
    modified_at = datetime.fromtimestamp(stamp[0] / 1e9, UTC) if stamp else now
    return StoredObject(
        key=key,
        content=data,
        size=size,
        etag=f'"{digest.hexdigest().upper()}{parts}"',
        crc64=checksum,
        modified_at=modified_at.replace(microsecond=0),
        stamp=stamp,
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes to be served; positions behind the end begin again at the start."""

    size: int
    read_at: Callable[[int, int], bytes]
    file: BinaryIO | None

    def read(self, position: int, length: int) -> bytes:
        """Read up to `length` bytes, at least one where there is one."""
        start = position % self.size
        return self.read_at(start, min(length, self.size - start))


@contextlib.contextmanager
def open_source(content: bytes | Path, size: int) -> Iterator[Source]:
    """Open an object's bytes for reading at any position."""
    if isinstance(content, bytes):
        view = memoryview(content)
        yield Source(size, lambda start, length: bytes(view[start : start + length]), None)
        return
    with content.open("rb", buffering=0) as file:

        def read_at(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        yield Source(size, read_at, file)


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size


def _pieces(data: bytes | Path) -> Iterator[bytes]:
    if isinstance(data, bytes):
        yield data
        return
    with data.open("rb") as file:
        while piece := file.read(READ_BYTES):
            yield piece
