"""How each fault changes an answer: pure functions from a right reply to a wrong one."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import replace

from downloader.sandbox.faults import Details, Fault
from downloader.sandbox.objects import Source, open_source
from downloader.sandbox.oss_errors import OssError
from downloader.sandbox.ranges import ByteRange, content_range
from downloader.sandbox.reply import Ending, Reply

__all__ = ["INSTEAD", "can_spoil", "error_instead", "html_page", "spoil"]

# These need no right answer: they come in its place, before the link is even looked at.
INSTEAD = {
    Fault.STATUS,
    Fault.EXPIRED,
    Fault.REDIRECT,
    Fault.HTML_200,
    Fault.GARBAGE,
    Fault.HANG,
}

_NEEDS_RANGE = {
    Fault.IGNORE_RANGE,
    Fault.WRONG_CONTENT_RANGE,
    Fault.NO_CONTENT_RANGE,
    Fault.WRONG_PART,
    Fault.SHORT_RANGE,
    Fault.WRONG_TOTAL,
}
_HEADERS_ONLY = {
    Fault.ETAG_CHANGED,
    Fault.NO_ETAG,
    Fault.WEAK_ETAG,
    Fault.WRONG_CRC,
    Fault.NO_CRC,
    Fault.CONTENT_ENCODING,
}

Change = Callable[[Reply, Details], Reply]


def can_spoil(fault: Fault, *, method: str, partial: bool) -> bool:
    """Tell whether a fault can show in the answer to such a request."""
    if fault in _NEEDS_RANGE:
        return method == "GET" and partial
    return method == "GET" or fault in _HEADERS_ONLY


def spoil(reply: Reply, fault: Fault, details: Details) -> Reply:
    """Return the reply with the fault in it."""
    return _CHANGES[fault](reply, details)


def error_instead(details: Details) -> OssError:
    """Return the error that a STATUS fault asks for."""
    status = details.get("status", 500)
    known = {429: "TooManyRequests", 500: "InternalError", 502: "BadGateway", 503: "SlowDown"}
    code = str(details.get("code", known.get(status, "InternalError")))
    message = details.get("message", "Please reduce your request rate.")
    return OssError(status, code, message, headers=details.get("headers"))


def html_page() -> Reply:
    """Return the page of a gateway that believes all is well."""
    body = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Proxy</body></html>\n"
    headers = {"Content-Type": "text/html; charset=utf-8"}
    return Reply(status=200, headers=headers, content=body, size=len(body), stop=len(body))


def _after(reply: Reply, details: Details, *, maximum: int) -> int:
    return max(0, min(details.get("after", reply.length // 2), maximum))


def _cut(reply: Reply, details: Details) -> Reply:
    after = _after(reply, details, maximum=reply.length - 1)
    return replace(reply, ending=Ending.CUT, after=after)


def _reset(reply: Reply, details: Details) -> Reply:
    after = _after(reply, details, maximum=reply.length - 1)
    return replace(reply, ending=Ending.RESET, after=after)


def _stall(reply: Reply, details: Details) -> Reply:
    after = _after(reply, details, maximum=reply.length - 1)
    return replace(reply, ending=Ending.STALL, after=after)


def _trickle(reply: Reply, details: Details) -> Reply:
    return replace(reply, trickle=(details.get("chunk", 1), details.get("interval", 0.01)))


def _truncate(reply: Reply, details: Details) -> Reply:
    after = _after(reply, details, maximum=reply.length - 1)
    return replace(reply, chunked=True, after=after)


def _overlong(reply: Reply, details: Details) -> Reply:
    return replace(reply, chunked=True, extra=details.get("extra", b"\0" * 16))


def _longer(reply: Reply, details: Details) -> Reply:
    return replace(reply, extra=details.get("extra", b"\0" * 16))


def _tail(reply: Reply, details: Details) -> Reply:
    return replace(reply, tail=details.get("extra", b"HTTP/1.1 200 OK\r\n\r\n"))


def _chunked(reply: Reply, _: Details) -> Reply:
    return replace(reply, chunked=True)


def _wrong_content_range(reply: Reply, details: Details) -> Reply:
    shift = details.get("shift", 1)
    told = ByteRange(reply.start + shift, reply.stop + shift)
    return _with(reply, "Content-Range", content_range(told, reply.size))


def _wrong_part(reply: Reply, details: Details) -> Reply:
    shift = details.get("shift", 1)  # positions wrap around at the object's end
    return replace(reply, start=reply.start + shift, stop=reply.stop + shift)


def _short_range(reply: Reply, details: Details) -> Reply:
    length = max(1, min(details.get("length", reply.length // 2), reply.length - 1))
    told = ByteRange(reply.start, reply.start + length)
    short = replace(reply, stop=told.stop)
    return _with(short, "Content-Range", content_range(told, reply.size))


def _wrong_total(reply: Reply, details: Details) -> Reply:
    told = ByteRange(reply.start, reply.stop)
    total = details.get("total", reply.size + 1)
    return _with(reply, "Content-Range", content_range(told, total))


def _etag_changed(reply: Reply, details: Details) -> Reply:
    return _with(reply, "ETag", details.get("etag", '"00000000000000000000000000000000"'))


def _weak_etag(reply: Reply, _: Details) -> Reply:
    return _with(reply, "ETag", "W/" + reply.headers["ETag"].removeprefix("W/"))


def _wrong_crc(reply: Reply, details: Details) -> Reply:
    right = int(reply.headers.get("x-oss-hash-crc64ecma", "0"))
    return _with(reply, "x-oss-hash-crc64ecma", str(details.get("crc64", right ^ 1)))


def _flip_byte(reply: Reply, details: Details) -> Reply:
    return replace(reply, flip_at=details.get("offset", reply.start))


def _content_encoding(reply: Reply, details: Details) -> Reply:
    return _with(reply, "Content-Encoding", details.get("encoding", "gzip"))


def _compressed(reply: Reply, _: Details) -> Reply:
    with open_source(reply.content, max(1, reply.size)) as source:
        whole = b"".join(_pieces(source, reply.start, reply.stop))
    body = gzip.compress(whole, compresslevel=1, mtime=0)
    short = replace(reply, content=body, size=len(body), start=0, stop=len(body))
    return _with(short, "Content-Encoding", "gzip")


def _pieces(source: Source, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        piece = source.read(start, stop - start)
        yield piece
        start += len(piece)


def _with(reply: Reply, name: str, value: str) -> Reply:
    return replace(reply, headers={**reply.headers, name: value})


def _without(name: str) -> Change:
    def change(reply: Reply, _: Details) -> Reply:
        headers = {key: value for key, value in reply.headers.items() if key != name}
        return replace(reply, headers=headers)

    return change


_CHANGES: dict[Fault, Change] = {
    Fault.CUT: _cut,
    Fault.RESET: _reset,
    Fault.STALL: _stall,
    Fault.TRICKLE: _trickle,
    Fault.TRUNCATE_CHUNKED: _truncate,
    Fault.OVERLONG: _overlong,
    Fault.LONGER: _longer,
    Fault.TAIL: _tail,
    Fault.CHUNKED: _chunked,
    Fault.IGNORE_RANGE: lambda reply, _: reply,  # the reply was planned without the header
    Fault.WRONG_CONTENT_RANGE: _wrong_content_range,
    Fault.NO_CONTENT_RANGE: _without("Content-Range"),
    Fault.WRONG_PART: _wrong_part,
    Fault.SHORT_RANGE: _short_range,
    Fault.WRONG_TOTAL: _wrong_total,
    Fault.ETAG_CHANGED: _etag_changed,
    Fault.NO_ETAG: _without("ETag"),
    Fault.WEAK_ETAG: _weak_etag,
    Fault.WRONG_CRC: _wrong_crc,
    Fault.NO_CRC: _without("x-oss-hash-crc64ecma"),
    Fault.FLIP_BYTE: _flip_byte,
    Fault.CONTENT_ENCODING: _content_encoding,
    Fault.COMPRESSED: _compressed,
}
