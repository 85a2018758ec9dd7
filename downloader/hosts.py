"""Which hosts may be downloaded from: asked for every link, every redirect, every connection.

A name is checked when a link is read, and its addresses when they are connected to: whoever
answers for a name below an allowed domain could else lead us into the network that we are in.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from downloader.errors import HostNotAllowed, redacted

__all__ = ["HostRules", "http_parts", "is_loopback"]

# Readers differ in what else they take for a host: `[::1].oss.com`, `evil.com%2f.oss.com`, or a
# full-width dot. A host in another script has an ASCII form (RFC 5891), which links use.
_HOST_AND_PORT = re.compile(
    r"(?:\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?)(?::[0-9]*)?", re.ASCII | re.IGNORECASE
)
# Blanks, quotes, and Unicode's control characters and surrogates (Cc, Cs).
_UNFIT = re.compile(r'[ \\"<>\x00-\x1f\x7f-\x9f\ud800-\udfff]')
# To a resolver, a name whose last label is a number is an address in one of its many forms.
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_IPV6_INTERNET = ipaddress.IPv6Network("2000::/3")  # RFC 4291 §2.4, of what was ever given out
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: an IPv4 address is its end
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")  # RFC 1122 §3.2.1.3; Linux takes 0 for itself
# Where clouds hand out credentials, in addition to link-local 169.254.169.254: Aliyun, Azure,
# Oracle, AWS, Google.
_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd20:ce::254",
        ),
    )
)


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

    def reachable(self, host: str, addresses: Iterable[str]) -> set[str]:
        """Return the addresses that a host, which was looked up, may be connected to.

        One of the internet may be. One of an inner network only if the host stands in the patterns
        by its own name, not by one with `*.`; that of a metadata service, a link-local one and the
        like only if the host is that address itself.

        Raises:
            HostNotAllowed: none of them may.
        """
        found = list(addresses)
        allowed = {address for address in found if self._may_lead_to(_plain(host), address)}
        if found and not allowed:
            raise HostNotAllowed(_inner_address(host, found[0]))
        return allowed

    def _may_lead_to(self, host: str, address: str) -> bool:
        if _plain(address) == host:  # which was compared with the patterns when it was checked
            return True
        place = _innermost(ipaddress.ip_address(address))
        if host == "localhost":  # which may be spoken to without TLS
            return place.is_loopback
        return _is_of_the_internet(place) or (host in self.patterns and not _is_no_store(place))

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


def http_parts(url: str) -> SplitResult | None:
    """Return the parts of an address by http or https that can be connected to; None of another."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # an empty label, or a longer one than there is
        is_whole = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if is_whole else None


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
        is_below = host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
        return is_below and not _NUMBER.fullmatch(host)
    return host == pattern


def _innermost(address: _Address) -> _Address:
    """Return the address that packets go to in the end: some IPv6 addresses have another inside."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_of_the_internet(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _IPV6_INTERNET:
        return False
    return address.is_global and not _is_no_store(address)


def _is_no_store(address: _Address) -> bool:
    """Tell whether no store can be there, whoever has listed its name."""
    if address.is_loopback:  # which IPv6 counts as reserved
        return False
    is_of_a_kind = address.is_link_local or address.is_multicast or address.is_reserved
    return is_of_a_kind or address in _METADATA or address in _THIS_NETWORK


def _inner_address(host: str, address: str) -> str:
    """Say that a host leads where nothing is fetched from, and what to do."""
    if _is_no_store(_innermost(ipaddress.ip_address(address))):
        return f"The host {host} leads to {address}, where no store can be; nothing was fetched"
    return (
        f"The host {host} leads to {address}, which is no address of the internet but one of an "
        "inner network; nothing was fetched. If that is right, as for an internal endpoint of OSS "
        f"inside Aliyun, add {host} itself to allowed_hosts: a pattern with `*.` does not do"
    )
