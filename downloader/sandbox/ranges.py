"""The `Range` header as RFC 9110 §14 reads it, and the `Content-Range` that answers it."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["ByteRange", "UnsatisfiableRangeError", "content_range", "resolve_range"]

_SPEC = re.compile(r"(?P<first>[0-9]+)-(?P<last>[0-9]*)|-(?P<suffix>[0-9]+)")
_BEYOND_ANY_OBJECT = 10**19


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A half-open range `[start, stop)` of an object."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Bytes in the range."""
        return self.stop - self.start


class UnsatisfiableRangeError(ValueError):
    """The range is well formed and selects no byte of the object (416)."""


def resolve_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range to answer with 206, or None where the whole object answers (200).

    A header that is malformed, of another unit or of several ranges counts as absent, which the
    RFC allows and the real store does.

    Raises:
        UnsatisfiableRangeError: The range starts behind the object's end, or is empty.
    """
    spec = _single_spec(header)
    if spec is None:
        return None
    if spec["suffix"] is not None:
        return _resolve_suffix(_number(spec["suffix"]), size)
    first = _number(spec["first"])
    last = _number(spec["last"]) if spec["last"] else _BEYOND_ANY_OBJECT
    if last < first:
        return None
    if first >= size:
        raise UnsatisfiableRangeError
    return ByteRange(first, min(last + 1, size))


def content_range(part: ByteRange, total: int) -> str:
    """Write the `Content-Range` of a 206 in HTTP's inclusive form."""
    return f"bytes {part.start}-{part.stop - 1}/{total}"


def _single_spec(header: str | None) -> re.Match[str] | None:
    unit, equals, range_set = (header or "").partition("=")
    if not equals or unit.lower() != "bytes":  # §14.1: unit names are case-insensitive
        return None
    # §5.6.1: a recipient ignores empty elements of a list.
    specs = [spec for spec in (part.strip(" \t") for part in range_set.split(",")) if spec]
    return _SPEC.fullmatch(specs[0]) if len(specs) == 1 else None


def _resolve_suffix(length: int, size: int) -> ByteRange | None:
    if length == 0:
        raise UnsatisfiableRangeError
    if size == 0:
        return None  # satisfiable (§14.1.2), but no Content-Range can describe it
    return ByteRange(max(0, size - length), size)


def _number(digits: str) -> int:
    significant = digits.lstrip("0") or "0"
    return int(significant) if len(significant) < 20 else _BEYOND_ANY_OBJECT  # noqa: PLR2004 - 10**19
