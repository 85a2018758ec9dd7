"""Reads files on disk into their checksum, without holding up the event loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import aiofiles

from downloader.errors import disk_error
from downloader.ordinary import open_ordinary
from downloader.transfer.checksum import EMPTY_CRC64, crc64_of

__all__ = ["crc64_of_file"]

READ_BYTES = 4 * 1024 * 1024  # by one hop to a worker thread: few and large


async def crc64_of_file(path: Path, *, on_read: Callable[[int], None] | None = None) -> int:
    """Return the CRC-64 of a file's bytes as the disk gives them now.

    Links are followed: a result's files may have been moved to another disk by their owner.
    `on_read` hears how many bytes were read, piece by piece.

    Raises:
        DiskError: the file cannot be read, or is none.
    """
    crc = EMPTY_CRC64
    try:
        async with aiofiles.open(path, "rb", buffering=0, opener=_opened) as file:
            while chunk := await file.read(READ_BYTES):
                crc = crc64_of(chunk, crc)
                if on_read is not None:
                    on_read(len(chunk))
    except OSError as error:
        raise disk_error(error, path, "read") from error
    return crc


def _opened(path: str, _: int) -> int:
    return open_ordinary(path, follows_links=True)
