"""Which hosts may be downloaded from: asked for every link and for every redirect."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from downloader.errors import HostNotAllowed, redacted

__all__ = ["HostRules", "is_loopback"]

# Readers differ in what else they take for a host: `[::1].oss.com`, `evil.com%2f.oss.com`, or a
# full-width dot. A host in another script has an ASCII form (RFC 5891), which links use.
_HOST_AND_PORT = re.compile(
    r"(?:\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?)(?::[0-9]*)?", re.ASCII | re.IGNORECASE
)
# Blanks, quotes, and Unicode's control characters and surrogates (Cc, Cs).
_UNFIT = re.compile(r'[ \\"<>\x00-\x1f\x7f-\x9f\ud800-\udfff]')


@dataclass(frozen=True, slots=True)
class HostRules:
    """The hosts that may be downloaded from, matched without the port.

    A pattern is a host name, an address, or `*.` and a domain, which stands for every name below
    that domain but not for the domain itself. Only `https` is allowed, except on a loopback host
    that is listed.
    """

    patterns: tuple[str, ...]

    @classmethod
    def of(cls, patterns: Iterable[str]) -> HostRules:
        """Build the rules from patterns as they stand in the settings."""
        return cls(tuple(_plain_pattern(pattern) for pattern in patterns if pattern.strip()))

    def check(self, url: str) -> SplitResult:
        """Return the parts of a link that may be followed.

        Raises:
            HostNotAllowed: the link is malformed, carries a user name, is not https, or leads to
                a host that is not listed.
        """
        parts = _split(url)
        if _is_known(self.patterns, parts.scheme, parts.netloc):
            return parts
        self._check(parts, url)
        return parts

    def _check(self, parts: SplitResult, url: str) -> None:
        host = _plain(parts.hostname or "")
        if not host:
            raise HostNotAllowed(f"{redacted(url)!r} is not a link to a host; nothing was fetched")
        if parts.username is not None or parts.password is not None:
            raise HostNotAllowed(
                f"The link to {host} carries a user name, which no result link does; "
                "it was not followed"
            )
        if not _HOST_AND_PORT.fullmatch(parts.netloc):
            raise HostNotAllowed(
                f"The link to {host!r} was not followed: that is no host's name in plain ASCII"
            )
        if not any(_matches(host, pattern) for pattern in self.patterns):
            raise HostNotAllowed(
                f"The link leads to the host {host}, which is not one of the allowed hosts "
                f"({', '.join(self.patterns) or 'none'}); if it is right, add it to allowed_hosts"
            )
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
            raise HostNotAllowed(
                f"The link to {host} is {parts.scheme or 'no scheme'}:, but only https is followed"
            )


@functools.lru_cache(maxsize=256)
def _is_known(patterns: tuple[str, ...], scheme: str, netloc: str) -> bool:
    """Tell whether a place may be downloaded from: thousands of links lead to a few of them."""
    link = f"{scheme}://{netloc}/"
    try:
        HostRules(patterns)._check(_split(link), link)  # noqa: SLF001 - a part of it
    except HostNotAllowed:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether the host, a name or an address, is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _split(url: str) -> SplitResult:
    # urlsplit drops tabs and newlines and accepts backslashes, which others read as slashes:
    # what two readers may read differently is refused before anyone reads it.
    if _UNFIT.search(url):
        raise HostNotAllowed("A link with blanks, quotes or control characters was not followed")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise HostNotAllowed(f"{redacted(url)!r} is not a link; nothing was fetched") from None
    return parts


def _plain(host: str) -> str:
    """Return the host in the one form that is compared; an address has several."""
    name = host.strip().lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _plain_pattern(pattern: str) -> str:
    """Return the pattern as hosts are compared: no brackets, no port, ASCII."""
    text = pattern.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    with contextlib.suppress(UnicodeError):  # no host has such a name, so it allows none
        text = text.encode("idna").decode()
    return _plain(text)


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern
