"""One ranged GET, and every check that its reply must pass before a byte of it is believed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from downloader.errors import (
    BadStoreReply,
    HostNotAllowed,
    LinkRefused,
    ObjectArchived,
    ObjectChanged,
    ObjectMissing,
    StoreUnavailable,
    TransferError,
    redacted,
)
from downloader.hosts import HostRules
from downloader.logs import printable
from downloader.network import is_lasting_refusal, proxy_for, reason, refused_by_proxy, untrusted
from downloader.retry import retry_after_seconds
from downloader.transfer.plan import is_strong_etag

__all__ = [
    "MAX_ERROR_BYTES",
    "MAX_ERROR_SECONDS",
    "MAX_HEAD_SECONDS",
    "Body",
    "ReplyHead",
    "Version",
    "partial_span",
    "ranged_get",
    "refusal",
    "whole_span",
]

MAX_REDIRECTS = 5
MAX_ERROR_BYTES = 64 * 1024
# Each byte that comes is a sign of life, so patience alone would wait for ever for a trickle.
MAX_ERROR_SECONDS = 10.0  # for what a refusal says
MAX_HEAD_SECONDS = 600.0  # for the head of a reply, and for interim ones before it
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_UNSATISFIED_RANGE = re.compile(r"bytes \*/([0-9]{1,18})")
_REDIRECTS = (301, 302, 303, 307, 308)
_ASK = "ask the platform's support, naming the task id"
_PASSING = (408, 425, 429)
_THROTTLED = (429, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Which version of the object a reply is about; `etag` is None unless it is a strong one."""

    etag: str | None
    size: int  # bytes of the whole object
    crc64: int | None  # of the whole object; None if the store does not know it


class Headers(Protocol):
    """Headers by their names, in upper or lower case."""

    def get(self, name: str, default: str, /) -> str:
        """Return a header's value."""
        ...


class ReplyHead(Protocol):
    """What is looked at of a reply, whoever has received it."""

    @property
    def headers(self) -> Headers:
        """Its headers."""
        ...

    @property
    def content_length(self) -> int | None:
        """Bytes of the body, if that was told."""
        ...


class Body:
    """The checked body of a reply: the bytes [start, stop) of the object, read once, in order."""

    def __init__(
        self,
        version: Version,
        start: int,
        stop: int,
        response: aiohttp.ClientResponse,
        *,
        stall_timeout: float | None,
    ) -> None:
        self.version = version
        self.position = start
        self.stop = stop
        self._response = response
        self._stall_timeout = stall_timeout
        self._left = memoryview(b"")

    async def read(self, limit: int) -> memoryview:
        """Return the next bytes, `limit` at most; empty when the body has ended.

        The body may end before `stop`: a store may cut it, and the caller counts.

        Raises:
            StoreUnavailable: the connection was lost, or nothing came for too long.
        """
        if not self._left and self.position < self.stop and limit > 0:
            self._left = memoryview(await self._received())
        chunk = self._left[: min(limit, self.stop - self.position)]
        self._left = self._left[len(chunk) :]
        self.position += len(chunk)
        return chunk

    def close(self) -> None:
        """Let the connection go; what is left of the body is not wanted."""
        self._response.release()

    async def _received(self) -> bytes:
        content = self._response.content
        with _passing_faults():
            try:
                # The session's own limit takes what frames the body for a sign of life.
                async with asyncio.timeout(self._stall_timeout):
                    return await content.readany()
            except (aiohttp.ClientError, TimeoutError):
                # aiohttp tells of the broken connection first, and keeps the bytes that came
                # before it: where each connection breaks early, they are all the progress.
                if rest := content._read_nowait(-1):  # noqa: SLF001 - no public way to them
                    return rest
                raise


@contextlib.asynccontextmanager
async def ranged_get(
    session: aiohttp.ClientSession,
    url: str,
    *,
    start: int,
    stop: int,
    version: Version | None,
    rules: HostRules,
) -> AsyncIterator[Body]:
    """Ask for [start, stop) of the object, of exactly `version` where that is known.

    The reply may bring less than asked for (RFC 9110 §15.3.7), or the whole object, when the
    store ignores ranges: `Body.position` and `Body.stop` tell. Redirects are followed by hand,
    each one checked against the rules.

    Raises:
        ObjectChanged: the store has another version by now.
        LinkRefused, ObjectArchived, ObjectMissing, HostNotAllowed: as their names say.
        StoreUnavailable: a passing fault.
        BadStoreReply: the reply does not fit the request.
    """
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    if version is not None and version.etag is not None:
        headers["If-Match"] = version.etag
    stall = session.timeout.sock_read
    async with _following_redirects(session, url, headers, rules) as response:
        if response.status != 416 or start > 0:  # noqa: PLR2004
            yield await _checked(response, start, stop, version, stall_timeout=stall)
            return
    # RFC 9110 §14.1.2: of an empty object no range can be had. Emptiness is not believed of a
    # refusal: the plain answer tells size, version and checksum.
    del headers["Range"]
    async with _following_redirects(session, url, headers, rules) as response:
        yield await _checked(response, start, stop, version, stall_timeout=stall)


@contextlib.asynccontextmanager
async def _following_redirects(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], rules: HostRules
) -> AsyncIterator[aiohttp.ClientResponse]:
    for _ in range(MAX_REDIRECTS + 1):
        rules.check(url)
        response = await _sent(session, url, headers)
        try:
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                yield response
                return
        finally:
            response.release()
        target = _joined(url, location)
        if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
            raise HostNotAllowed(
                f"{redacted(url)} redirects from https to {redacted(target)}; it was not followed"
            )
        url = target
    raise TransferError(
        f"{redacted(url)} redirects more than {MAX_REDIRECTS} times; the link leads nowhere: {_ASK}"
    )


async def _sent(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    proxy = proxy_for(url)
    with _passing_faults():
        try:
            async with asyncio.timeout(MAX_HEAD_SECONDS):
                return await session.get(
                    URL(url, encoded=True),  # a signature is over the link as it was written
                    headers=headers,
                    allow_redirects=False,
                    proxy=proxy.url,
                    proxy_headers=proxy.headers,
                )
        except aiohttp.ClientConnectorCertificateError:
            raise  # which is a ValueError too
        except ValueError as error:  # also aiohttp's InvalidURL, and text that cannot be sent
            raise TransferError(f"{redacted(url)} is not a link that can be followed") from error


def _joined(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
        urlsplit(target)
    except ValueError:
        raise BadStoreReply(f"{redacted(url)} redirects to what is not a link") from None
    return target


@contextlib.contextmanager
def _passing_faults() -> Iterator[None]:
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise TransferError(untrusted(error)) from error
    except aiohttp.ClientHttpProxyError as error:
        kind = TransferError if is_lasting_refusal(error) else StoreUnavailable
        raise kind(refused_by_proxy(error)) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise StoreUnavailable(_fault_sentence(error)) from error


def _fault_sentence(error: Exception) -> str:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "The store cannot be reached: no connection in time"
    if isinstance(error, TimeoutError):
        return "The store sent nothing for too long"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return f"The proxy at {error.host}:{error.port} cannot be reached: {reason(error)}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"The store at {error.host} cannot be reached: {reason(error)}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "The connection to the store ended in the middle of the body"
    return f"The connection to the store was lost: {reason(error)}"


async def _checked(
    response: aiohttp.ClientResponse,
    start: int,
    stop: int,
    version: Version | None,
    *,
    stall_timeout: float | None,
) -> Body:
    if response.status == 206:  # noqa: PLR2004
        span = partial_span(response, start, stop, version)
    elif response.status == 200:  # noqa: PLR2004
        span = whole_span(response, version)
    elif response.status == 416:  # noqa: PLR2004
        raise _unsatisfied(response, start, version)
    else:
        raise await _refusal(response)
    return Body(*span, response, stall_timeout=stall_timeout)


def partial_span(
    reply: ReplyHead, start: int, stop: int, version: Version | None
) -> tuple[Version, int, int]:
    """Hold a 206 against what was asked; return its version and the range [start, stop) it has.

    Raises:
        BadStoreReply: it does not fit the request.
        ObjectChanged: it is about another version.
    """
    header, asked = reply.headers.get("Content-Range", "").strip(), f"{start}-{stop - 1}"
    match = _CONTENT_RANGE.fullmatch(header)
    if match is None:
        what = f"the Content-Range {header!r}" if header else "no Content-Range"
        raise BadStoreReply(
            f"The store answered 206 with {what}, where bytes {asked} were expected"
        )
    first, last, total = (int(group) for group in match.groups())
    if first != start or not start <= last < min(stop, total):
        raise BadStoreReply(f"The store was asked for bytes {asked} and answered {header!r}")
    if reply.content_length not in (None, last + 1 - first):
        raise BadStoreReply(f"The store announced {reply.content_length} bytes for {header!r}")
    return _same_version(reply, total, version), first, last + 1


def whole_span(reply: ReplyHead, version: Version | None) -> tuple[Version, int, int]:
    """Hold a 200 against what is known; return its version and the range that it has.

    Raises:
        BadStoreReply: it is no object, or of no known size.
        ObjectChanged: it is another version.
    """
    size = reply.content_length
    if reply.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/html":
        raise BadStoreReply("A web page came in place of the object, as from a proxy or a portal")
    if size is None:
        raise BadStoreReply("The store sent the whole object without telling its size")
    return _same_version(reply, size, version), 0, size


def _unsatisfied(
    response: aiohttp.ClientResponse, start: int, version: Version | None
) -> TransferError:
    header = response.headers.get("Content-Range", "")
    match = _UNSATISFIED_RANGE.fullmatch(header.strip())
    total = int(match[1]) if match else None
    if version is not None and total not in (None, version.size):
        return ObjectChanged(f"The object had {version.size} bytes and now has {total}")
    told = f", {header!r}" if header else ""
    return BadStoreReply(f"The store has nothing at offset {start} (416{told})")


def _same_version(reply: ReplyHead, total: int, version: Version | None) -> Version:
    """Read the reply's version and hold it against the one that is being transferred."""
    etag = reply.headers.get("ETag", "").strip()
    strong = etag if is_strong_etag(etag) else None
    crc = reply.headers.get("x-oss-hash-crc64ecma", "").strip()
    crc64 = int(crc) if crc.isascii() and crc.isdigit() and len(crc) <= 20 else None  # noqa: PLR2004
    found = Version(etag=strong, size=total, crc64=crc64)
    if version is None:
        return found
    if found.size != version.size:
        raise ObjectChanged(f"The object had {version.size} bytes and now has {found.size}")
    if found.etag != version.etag:
        now = found.etag or "without an ETag"
        raise ObjectChanged(f"The object was {version.etag or 'without an ETag'} and is now {now}")
    if version.crc64 is None:
        return found
    if found.crc64 not in (None, version.crc64):
        raise ObjectChanged("The object's checksum is another than before")
    return version


async def _refusal(response: aiohttp.ClientResponse) -> TransferError:
    """Read what a refusal says; where its body breaks off, the status is still an answer."""
    raw = b""
    with contextlib.suppress(StoreUnavailable), _passing_faults():
        async with asyncio.timeout(MAX_ERROR_SECONDS):
            while len(raw) < MAX_ERROR_BYTES and (chunk := await response.content.readany()):
                raw += chunk
    return refusal(response.status, response.headers, raw)


def refusal(status: int, headers: Headers, body: bytes) -> TransferError:
    """Return what a reply of 400 and above means, with the store's own words."""
    code, message, request_id = _oss_error(headers, body)
    said = f"{code}: {message}" if code else f"HTTP {status}"
    said += f" (request id {request_id})" if request_id else ""
    if status == 412:  # noqa: PLR2004
        return ObjectChanged(f"The object was replaced in the store ({said})")
    if code == "InvalidObjectState":
        return ObjectArchived(
            f"The object is archived and must be restored in the store first ({said}); {_ASK}"
        )
    if status in (401, 403):
        return LinkRefused(f"The store refused the link: {said}")
    if status == 404:  # noqa: PLR2004
        return ObjectMissing(f"The store has no such object: {said}; {_ASK}")
    if status in _PASSING or status >= 500:  # noqa: PLR2004
        return StoreUnavailable(
            f"The store answered {said}", retry_after=_asked_pause(status, headers)
        )
    return TransferError(f"The store answered {said}; if it stays so, {_ASK}")


def _asked_pause(status: int, headers: Headers) -> float | None:
    """Read how long the store wants to be left alone; OSS tells it in milliseconds.

    A store that throttles without saying for how long asks for a pause all the same.
    """
    delay = headers.get("x-oss-qos-delay-time", "").strip()
    if delay.isascii() and delay.isdigit():
        return float(delay[:9]) / 1000
    asked = retry_after_seconds(headers.get("Retry-After", "") or None)
    return 0.0 if asked is None and status in _THROTTLED else asked


def _oss_error(headers: Headers, body: bytes) -> tuple[str, str, str]:
    """Read Code, Message and RequestId of an XML error, and nothing else of it.

    The rest of such a reply repeats the signature and the string that was signed.
    """
    text = body[:MAX_ERROR_BYTES].decode("utf-8", "replace")
    found = [
        re.search(rf"<{tag}>([^<]{{0,300}})", text) for tag in ("Code", "Message", "RequestId")
    ]
    code, message, request_id = (match[1].strip() if match else "" for match in found)
    request_id = request_id or headers.get("x-oss-request-id", "")[:64]
    return printable(code), printable(message), printable(request_id)
