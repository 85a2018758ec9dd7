"""HTTP/1.1 as it travels: the head of a request written, the head of a reply read. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult

from downloader.transfer.ranged_get import Version

__all__ = ["HEAD_END", "Head", "NoReply", "RangeRequest", "parse_head"]

HEAD_END = b"\r\n\r\n"
NO_HTTP = "what came is no HTTP"
MAX_LENGTH_DIGITS = 19  # of a length that any disk could hold; a part of a number is none
# RFC 9112 §4: the status is three digits, and a phrase behind it may be missing.
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?")
_FIELD_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")  # RFC 9112 §5


class NoReply(ConnectionError):
    """What came over a connection, if anything, is no reply of HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """What is asked for: [start, stop) of the object at a checked link, of one version if known."""

    parts: SplitResult
    start: int
    stop: int
    version: Version | None

    @property
    def host(self) -> str:
        """The store's name, without the port."""
        return self.parts.hostname or ""

    @property
    def port(self) -> int:
        """The port, also where the link does not name one."""
        return self.parts.port or (443 if self.parts.scheme == "https" else 80)

    @property
    def place(self) -> tuple[str, str, int]:
        """What a connection can be used again for: scheme, host, port."""
        return self.parts.scheme, self.host, self.port

    def head(self, user_agent: str) -> bytes:
        """Write the request as it travels.

        Raises:
            ValueError: a version without an ETag cannot be asked for, or the link cannot be sent
                as it is.
        """
        query = f"?{self.parts.query}" if self.parts.query else ""
        target = f"{self.parts.path or '/'}{query}"
        lines = [
            f"GET {target} HTTP/1.1",
            f"Host: {self.parts.netloc}",
            f"User-Agent: {user_agent}",
            "Accept: */*",
            "Accept-Encoding: identity",
            f"Range: bytes={self.start}-{self.stop - 1}",
        ]
        if self.version is not None:
            if self.version.etag is None:
                raise ValueError("no version to hold the reply against")
            lines.append(f"If-Match: {self.version.etag}")
        if " " in target or not all(line.isprintable() for line in lines):
            raise ValueError("a blank or a control character in a request")
        return "\r\n".join((*lines, "", "")).encode("ascii")


class Head:
    """The head of a reply: its status, and its fields by their names in any case."""

    def __init__(self, minor_version: int, status: int, fields: dict[str, list[str]]) -> None:
        self.status = status
        self._minor_version = minor_version
        self._fields = fields

    @property
    def headers(self) -> Head:
        """The fields, in the form in which ranged replies are checked."""
        return self

    def get(self, name: str, default: str, /) -> str:
        """Return a field's value; of one that came more than once, the first."""
        values = self._fields.get(name.lower())
        return values[0] if values else default

    @property
    def content_length(self) -> int | None:
        """Bytes of the body; None unless they were told once, as a plain number."""
        values = self._fields.get("content-length", [])
        is_plain = len(values) == 1 and values[0].isascii() and values[0].isdigit()
        has_coding = "transfer-encoding" in self._fields
        if not is_plain or has_coding or len(values[0]) > MAX_LENGTH_DIGITS:
            return None
        return int(values[0])

    @property
    def will_close(self) -> bool:
        """Tell whether nothing comes behind the body on this connection."""
        options = self.get("Connection", "").lower()
        return "close" in options or (self._minor_version == 0 and "keep-alive" not in options)


def parse_head(raw: bytes) -> Head:
    """Read the head of a reply, without the empty line at its end.

    Raises:
        NoReply: it is none. Folded fields are none either (RFC 9112 §5.2).
    """
    first, *others = raw.decode("latin-1").split("\r\n")
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise NoReply(NO_HTTP)
    fields: dict[str, list[str]] = {}
    for line in others:
        field = _FIELD_LINE.fullmatch(line)
        if field is None:
            raise NoReply(NO_HTTP)
        fields.setdefault(field[1].lower(), []).append(field[2].strip(" \t"))
    return Head(int(status_line[1]), int(status_line[2]), fields)
