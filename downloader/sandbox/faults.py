"""Faults on request: what may go wrong, and the queue of what shall go wrong next.

One request meets at most one fault: the first in the queue that matches it. A fault that changes
a body or a range waits for a request that it can change.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypedDict, TypeVar, Unpack

__all__ = ["Details", "Fault", "FaultQueue", "Injection", "PlatformFault"]


class Fault(enum.Enum):
    """What the object store can do wrong; the details it takes are in brackets."""

    CUT = "cut"  # close in mid-body, Content-Length promised more (after)
    RESET = "reset"  # the same with a TCP reset (after)
    STALL = "stall"  # stop sending until released or the client leaves (after)
    TRICKLE = "trickle"  # go on very slowly (chunk, interval)
    TRUNCATE_CHUNKED = "truncate_chunked"  # no length, and a clean end too early (after)
    OVERLONG = "overlong"  # no length, and bytes behind the end (extra)
    LONGER = "longer"  # a length of more than was asked for, and so many bytes (extra)
    TAIL = "tail"  # the right answer, and bytes that are part of none behind it (extra)
    CHUNKED = "chunked"  # no length, nothing else
    IGNORE_RANGE = "ignore_range"  # 200 with the whole object
    WRONG_CONTENT_RANGE = "wrong_content_range"  # right bytes, another range in the header (shift)
    NO_CONTENT_RANGE = "no_content_range"  # a 206 that does not say of what
    WRONG_PART = "wrong_part"  # right header, bytes from elsewhere (shift)
    SHORT_RANGE = "short_range"  # a 206 of less than was asked, and its header says so (length)
    WRONG_TOTAL = "wrong_total"  # another total in Content-Range (total)
    STATUS = "status"  # an error (status, code, message, headers)
    EXPIRED = "expired"  # 403, as for a link whose time is over
    REDIRECT = "redirect"  # 302 to `location`, or to itself (location, status)
    HTML_200 = "html_200"  # a gateway's page with status 200
    GARBAGE = "garbage"  # what is no HTTP (extra)
    HANG = "hang"  # no answer until released or the client leaves, then the right one
    ETAG_CHANGED = "etag_changed"  # another ETag, If-Match ignored (etag)
    NO_ETAG = "no_etag"
    WEAK_ETAG = "weak_etag"
    WRONG_CRC = "wrong_crc"  # (crc64)
    NO_CRC = "no_crc"
    FLIP_BYTE = "flip_byte"  # one byte is not what it is in the object (offset)
    CONTENT_ENCODING = "content_encoding"  # the label without the encoding (encoding)
    COMPRESSED = "compressed"  # with gzip, which nobody has asked for; the label says so


class PlatformFault(enum.Enum):
    """What the platform can do wrong; the details it takes are in brackets."""

    STATUS = "status"  # (status, headers)
    RATE_LIMIT = "rate_limit"  # 429 with Retry-After (retry_after)
    HTML = "html"  # a gateway's page (status)
    BROKEN_JSON = "broken_json"
    NOT_OBJECT = "not_object"  # good JSON that is a list
    HUGE_JSON = "huge_json"  # (size)
    BUSINESS_ERROR = "business_error"  # (code, message)
    BODY = "body"  # these bytes as the answer (body, status)
    CUT = "cut"  # the right answer, of which the end does not come
    TRICKLE = "trickle"  # the right answer, a few bytes at a time (chunk, interval)
    GARBAGE = "garbage"  # what is no HTTP
    REDIRECT = "redirect"  # 307 to `location`, which would bring the signed form there
    HANG = "hang"  # no answer until released or the client leaves, then the right one
    RESET = "reset"


class Details(TypedDict, total=False):
    """How exactly it shall go wrong; sizes and positions in bytes."""

    after: int  # of the body that are sent before it happens; half of it by default
    chunk: int
    interval: float  # seconds
    extra: bytes
    body: bytes
    shift: int
    length: int
    total: int
    offset: int  # absolute in the object
    status: int
    code: int | str
    message: str
    headers: dict[str, str]
    location: str | Callable[[], str]
    etag: str  # as it travels, quotes included
    crc64: int
    encoding: str
    retry_after: str | float
    size: int


F = TypeVar("F", Fault, PlatformFault)


@dataclass(slots=True, kw_only=True, eq=False)
class Injection(Generic[F]):
    """A fault that was asked for: whom it shall meet, how often, and whether it has."""

    fault: F
    target: str | None = None  # key of an object or name of a call; None is any
    method: str | None = None
    times: int | None = 1  # None is for ever
    covering: int | None = None  # only requests whose bytes include this offset
    details: Details = field(default_factory=Details)
    hits: int = 0
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let everything that this fault holds go on."""
        self.released.set()

    def matches(self, *, target: str, method: str, covered: range) -> bool:
        """Tell whether a request for these bytes is one that shall meet the fault."""
        return (
            self.target in (None, target)
            and self.method in (None, method)
            and (self.covering is None or self.covering in covered)
        )

    def hit(self) -> None:
        """Count one request that meets the fault."""
        self.hits += 1

    @property
    def is_spent(self) -> bool:
        """Tell whether the fault has happened as often as it should."""
        return self.times is not None and self.hits >= self.times


class FaultQueue(Generic[F]):
    """The faults to come, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._injections: list[Injection[F]] = []
        self._spent: list[Injection[F]] = []

    def inject(
        self,
        fault: F,
        *,
        target: str | None = None,
        method: str | None = None,
        times: int | None = 1,
        covering: int | None = None,
        **details: Unpack[Details],
    ) -> Injection[F]:
        """Add a fault at the end of the queue."""
        unknown = details.keys() - Details.__annotations__.keys()
        if unknown:
            raise TypeError(f"A fault has no detail named {', '.join(sorted(unknown))}.")
        injection = Injection(
            fault=fault,
            target=target,
            method=method,
            times=times,
            covering=covering,
            details=details,
        )
        self._injections.append(injection)
        return injection

    def candidates(self, *, target: str, method: str, covered: range) -> list[Injection[F]]:
        """Return the faults that a request could meet, the first in the queue first."""
        self._forget_spent()
        return [
            injection
            for injection in self._injections
            if injection.matches(target=target, method=method, covered=covered)
        ]

    def clear(self) -> None:
        """Let nothing go wrong any more, and let everything that is held go on."""
        for injection in self._injections + self._spent:
            injection.release()
        self._injections.clear()
        self._spent.clear()

    def _forget_spent(self) -> None:
        self._spent += [injection for injection in self._injections if injection.is_spent]
        self._injections = [one for one in self._injections if not one.is_spent]
