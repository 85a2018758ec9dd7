"""An answer of the store before it is sent: decided first, as a record that faults can change."""

from __future__ import annotations

import email.utils
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from downloader.sandbox import oss_errors
from downloader.sandbox.objects import StoredObject
from downloader.sandbox.preconditions import Verdict, evaluate, range_applies
from downloader.sandbox.ranges import (
    ByteRange,
    UnsatisfiableRangeError,
    content_range,
    resolve_range,
)

__all__ = ["Ending", "Reply", "asked_range", "plan_reply"]


class Ending(enum.Enum):
    """What happens after the last byte that is sent."""

    CLEAN = enum.auto()
    CUT = enum.auto()  # the connection is closed
    RESET = enum.auto()
    STALL = enum.auto()  # nothing, until released; then the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A status, headers and the bytes `[start, stop)` of some content, sent in some manner."""

    status: int
    headers: dict[str, str]
    content: bytes | Path = b""
    size: int = 0  # of the content
    start: int = 0
    stop: int = 0
    chunked: bool = False
    ending: Ending = Ending.CLEAN
    after: int | None = None  # bytes of the body that are sent before the ending
    flip_at: int | None = None  # absolute position of a byte to be sent inverted
    extra: bytes = b""  # behind the body, and part of it
    tail: bytes = b""  # behind the answer
    trickle: tuple[int, float] | None = None  # bytes at a time, seconds between

    @property
    def length(self) -> int:
        """Bytes in the body, as promised."""
        return self.stop - self.start + len(self.extra)

    @property
    def is_plain(self) -> bool:
        """Tell whether the body is sent just as it is."""
        special = (
            self.chunked or self.extra or self.tail or self.trickle or self.flip_at is not None
        )
        return not special and self.ending is Ending.CLEAN and self.stop <= self.size


def asked_range(stored: StoredObject, headers: Mapping[str, str], method: str) -> ByteRange | None:
    """Return the range that a request selects; None is the whole object.

    RFC 9110 §14.2: `Range` counts for GET only, and only where `If-Range` holds.
    """
    if_range = headers.get("If-Range")
    applies = range_applies(if_range, etag=stored.etag, modified_at=stored.modified_at)
    if method != "GET" or not applies:
        return None
    return resolve_range(headers.get("Range"), stored.size)


def plan_reply(
    stored: StoredObject,
    *,
    method: str,
    headers: Mapping[str, str],
    ignore_range: bool = False,
    ignore_preconditions: bool = False,
) -> Reply:
    """Decide how an object answers a request; errors are raised as `OssError`."""
    if stored.is_archived:
        raise oss_errors.archived(stored.key)
    verdict = Verdict.PROCEED
    if not ignore_preconditions:
        verdict = evaluate(headers, etag=stored.etag, modified_at=stored.modified_at)
    if verdict is Verdict.FAILED:
        condition = "If-Match" if "If-Match" in headers else "If-Unmodified-Since"
        raise oss_errors.precondition_failed(condition)
    if verdict is Verdict.NOT_MODIFIED:
        return Reply(status=304, headers=_headers(stored))
    try:
        part = None if ignore_range else asked_range(stored, headers, method)
    except UnsatisfiableRangeError:
        raise oss_errors.invalid_range(headers["Range"], stored.size) from None
    return _success(stored, part)


def _success(stored: StoredObject, part: ByteRange | None) -> Reply:
    headers = _headers(stored)
    if part is not None:
        headers["Content-Range"] = content_range(part, stored.size)
    chosen = part or ByteRange(0, stored.size)
    return Reply(
        status=206 if part is not None else 200,
        headers=headers,
        content=stored.content,
        size=stored.size,
        start=chosen.start,
        stop=chosen.stop,
    )


def _headers(stored: StoredObject) -> dict[str, str]:
    headers = {
        "Content-Type": stored.content_type,
        "Accept-Ranges": "bytes",
        "ETag": stored.etag,
        "Last-Modified": email.utils.format_datetime(stored.modified_at, usegmt=True),
        "x-oss-object-type": "Multipart" if "-" in stored.etag else "Normal",
        "x-oss-storage-class": "Standard",
    }
    if stored.crc64 is not None:
        headers["x-oss-hash-crc64ecma"] = str(stored.crc64)
    if stored.content_encoding is not None:
        headers["Content-Encoding"] = stored.content_encoding
    return headers
