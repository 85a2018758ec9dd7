"""What the ways to the platform and to the store share: proxies, and what their faults mean."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from downloader.errors import InvalidSettings
from downloader.hosts import HostRules, is_loopback

__all__ = [
    "Proxy",
    "RuledResolver",
    "is_lasting_refusal",
    "proxy_for",
    "proxy_url",
    "reason",
    "refused_by_proxy",
    "untrusted",
]

PASSING_STATUSES = (408, 429)
# OpenSSL's numbers for what it finds wrong with a certificate (X509_V_ERR_…).
NOT_YET_VALID, EXPIRED, OTHER_NAME, OTHER_ADDRESS = 9, 10, 62, 64
SPEAKS_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_NO_COMMON_VERSION = re.compile("PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL|VERSION_TOO_LOW")
_BROKEN = {BrokenPipeError: errno.EPIPE, ConnectionResetError: errno.ECONNRESET}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy as aiohttp wants it told; its password is in no repr."""

    url: URL | None = None  # None: no proxy
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def proxy_for(url: str) -> Proxy:
    """Return the proxy that the environment names for a link; none stands before this machine.

    Sessions have `trust_env` off, for that would also send a password out of `~/.netrc` to
    whatever host is asked.

    Raises:
        InvalidSettings: what the environment names is no proxy that can be used.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies()
    name = parts.scheme if parts.scheme in proxies else "all"
    named = proxies.get(name)
    if not named or is_loopback(host) or urllib.request.proxy_bypass(host):
        return Proxy()
    proxy = proxy_url(named)
    if proxy is None:
        raise InvalidSettings(
            f"{name.upper()}_PROXY is no proxy that can be used; expected an address such as "
            "http://proxy.example.org:3128"
        )
    headers = {}
    if proxy.user:
        authorization = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
        headers["Proxy-Authorization"] = authorization
    return Proxy(proxy.with_user(None), headers)


def proxy_url(named: str) -> URL | None:
    """Read a proxy's address as people write it; None if it is none that can be used."""
    try:
        proxy = URL(named if "://" in named else f"http://{named}")
    except ValueError:
        return None
    return proxy if proxy.scheme == "http" and proxy.host else None


class RuledResolver(AbstractResolver):
    """Looks a host up for aiohttp, and gives only the addresses that the rules let it lead to.

    Nobody looks it up again: what is given here is what is connected to. Behind a proxy it is the
    proxy that is looked up, which the user has named and which may be anywhere; the proxy looks
    up the host by itself, and the host must still prove its name by TLS.
    """

    def __init__(self, rules: HostRules) -> None:
        self._rules = rules
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return where the host may be reached.

        Raises:
            HostNotAllowed: it leads only to where nothing may be fetched from.
            OSError: it cannot be looked up.
        """
        found = await self._resolver.resolve(host, port, family)
        if _is_proxy(host, port):
            return found
        allowed = self._rules.reachable(host, (place["host"] for place in found))
        return [place for place in found if place["host"] in allowed]

    async def close(self) -> None:
        """Close what it looks hosts up with."""
        await self._resolver.close()


def _is_proxy(host: str, port: int) -> bool:
    named = urllib.request.getproxies()  # `no` among them names hosts, and no proxy
    proxies = [proxy_url(named[name]) for name in ("http", "https", "all") if name in named]
    return any(proxy is not None and (proxy.host, proxy.port) == (host, port) for proxy in proxies)


def untrusted(error: aiohttp.ClientConnectorCertificateError) -> str:
    """Say that a certificate is not trusted, and what to do; more attempts do not mend it."""
    named = os.environ.get("SSL_CERT_FILE")
    if named and not os.access(named, os.R_OK):
        return f"SSL_CERT_FILE names {named}, which cannot be read, so no certificate is trusted"
    fault = error.certificate_error
    why = getattr(fault, "verify_message", "").rstrip(".") or "it was not verified"
    return f"The certificate of {error.host} is not trusted ({why}); {_what_to_do(fault)}"


def _what_to_do(fault: Exception) -> str:
    code = getattr(fault, "verify_code", None)
    if code in (NOT_YET_VALID, EXPIRED):
        return "see whether this machine's clock is right; if it is, tell whoever runs that host"
    if code in (OTHER_NAME, OTHER_ADDRESS):
        return "somebody else answers there: check the address, and the proxy if there is one"
    return (
        "behind a proxy with its own authority, set SSL_CERT_FILE to that authority's certificate"
    )


def reason(error: Exception) -> str:
    """Say in plain words why a connection failed, quoting nothing that could hold a secret."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, ssl.SSLError):
        return _tls_reason(inner.reason or "")
    if isinstance(inner, socket.gaierror):
        return inner.strerror or "the name cannot be looked up"
    if isinstance(inner, OSError) and (code := _code(inner)):
        return os.strerror(code)  # asyncio's own words for it are Python's
    return _http_reason(error)


def _tls_reason(told: str) -> str:
    if told in SPEAKS_NO_TLS:
        return "what answers there speaks no TLS"
    if _NO_COMMON_VERSION.search(told):
        return "it offers no version of TLS that is taken here (1.2 or newer)"
    if "EOF" in told:
        return "it was closed in the middle of TLS"
    return f"TLS failed ({told.replace('_', ' ').lower() or 'no reason is given'})"


def _code(error: OSError) -> int | None:
    """Return the system's number of an error, also where Python raises it without one."""
    return error.errno or next((_BROKEN[kind] for kind in _BROKEN if isinstance(error, kind)), None)


def _http_reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it was closed before an answer came"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "it was closed in the middle of the answer"
    if isinstance(error, aiohttp.ClientResponseError):
        return "what came is no HTTP"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "none of its addresses can be reached"
    return "it broke"


def is_lasting_refusal(error: aiohttp.ClientHttpProxyError) -> bool:
    """Tell whether a proxy's answer will not pass by itself."""
    return 400 <= error.status < 500 and error.status not in PASSING_STATUSES  # noqa: PLR2004


def refused_by_proxy(error: aiohttp.ClientHttpProxyError) -> str:
    """Say that the proxy, and nobody behind it, has refused the connection."""
    if is_lasting_refusal(error):
        return (
            f"The proxy refused the connection (HTTP {error.status}); check HTTPS_PROXY and the "
            "proxy's credentials"
        )
    return f"The proxy answered HTTP {error.status}"
