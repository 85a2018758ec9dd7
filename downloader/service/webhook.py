"""Tells a web address that a task has ended: one signed POST, of which not much is believed.

The address may be a secret from its path on, as those of chat services are: no text from here
shows more of it than scheme, host and port.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp
from yarl import URL

from downloader._version import __version__
from downloader.concurrency import in_thread
from downloader.errors import DestinationTaken, InvalidSettings
from downloader.hook_rules import check_webhook
from downloader.logs import one_line, scrubbed
from downloader.manifest import manifest_bytes
from downloader.network import is_lasting_refusal, proxy_for, reason, refused_by_proxy, untrusted
from downloader.retry import retry_after_seconds
from downloader.service.announcement import Announcement, Delivery
from downloader.units import plain_seconds

__all__ = ["USER_AGENT", "Webhook", "check_webhook", "signature"]

USER_AGENT = f"bge-downloader/{__version__}"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024  # of thousands of files; a larger one is only named
REPLY_BYTES = 1024  # read of a reply
REPLY_WORDS = 200  # characters of it that are kept
PRIVATE_LENGTH = 4  # a shorter piece of an address is no secret
PASSING_STATUSES = (408, 425, 429)


def signature(body: bytes, *, timestamp: int, secret: str) -> str:
    """Return what `X-BGE-Signature` says of a body."""
    signed = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"sha256={signed.hexdigest()}"


class Webhook:
    """An address that gets one POST for each attempt; it is done when it answers 2xx."""

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        timeout: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_webhook(url)
        self._url = url
        self._secret = secret
        self._timeout = timeout
        self._clock = clock
        self._private = _private_pieces(url, secret)

    async def deliver(self, announcement: Announcement) -> Delivery:
        """Post the announcement once, over a connection of its own."""
        try:
            body, headers = await in_thread(self._request, announcement)
            return self._judged(await self._post(body, headers))
        except InvalidSettings as error:
            return self._failed(f"was not asked: {error}", may_help_again=False)
        except TimeoutError:
            return self._failed(f"did not answer within {plain_seconds(self._timeout)}")
        except aiohttp.ClientHttpProxyError as error:
            return self._failed(
                f"was not reached: {refused_by_proxy(error)}",
                may_help_again=not is_lasting_refusal(error),
            )
        except aiohttp.ClientConnectorCertificateError as error:
            return self._failed(f"was not told: {untrusted(error)}")
        except (aiohttp.ClientError, OSError) as error:
            return self._failed(f"could not be told: {reason(error)}")

    def _request(self, announcement: Announcement) -> tuple[bytes, dict[str, str]]:
        """Return the body, and the headers that belong to it; blocks."""
        now = self._clock()
        body = _body(announcement, at=datetime.fromtimestamp(int(now), UTC))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "Accept-Encoding": "identity",
            "Connection": "close",
            "Idempotency-Key": announcement.key,
            "X-BGE-Event": f"task.{announcement.event}",
            "X-BGE-Timestamp": str(int(now)),
        }
        if self._secret:
            headers["X-BGE-Signature"] = signature(body, timestamp=int(now), secret=self._secret)
        return body, headers

    async def _post(self, body: bytes, headers: Mapping[str, str]) -> _Reply:
        proxy = proxy_for(self._url)
        session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(force_close=True),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=self._timeout),
        )
        async with (
            session,
            session.post(
                URL(self._url, encoded=True),
                data=io.BytesIO(body),
                headers=headers,
                proxy=proxy.url,
                proxy_headers=proxy.headers,
                allow_redirects=False,
            ) as response,
        ):
            retry_after = retry_after_seconds(response.headers.get("Retry-After"))
            words = await _first_bytes(response)
            return _Reply(status=response.status, retry_after=retry_after, words=words)

    def _judged(self, reply: _Reply) -> Delivery:
        is_done = 200 <= reply.status < 300  # noqa: PLR2004
        may_help_again = reply.status in PASSING_STATUSES or reply.status >= 500  # noqa: PLR2004
        return Delivery(
            way="webhook",
            is_done=is_done,
            may_help_again=may_help_again,
            summary=f"{self._name} answered HTTP {reply.status}{_advice(reply.status)}",
            output=self._without_private(reply.words),
            retry_after=reply.retry_after if may_help_again else None,
        )

    def _failed(self, what_happened: str, *, may_help_again: bool = True) -> Delivery:
        return Delivery(
            way="webhook",
            is_done=False,
            may_help_again=may_help_again,
            summary=one_line(f"{self._name} {what_happened}", 4 * REPLY_WORDS),
        )

    def _without_private(self, words: bytes) -> str:
        """Return the start of a reply; many say which address it was that they do not know."""
        text = words.decode("utf-8", errors="replace")
        return one_line(scrubbed(self._private.sub("…", text)), REPLY_WORDS)

    @property
    def _name(self) -> str:
        parts = urlsplit(self._url)
        return f"The webhook at {parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """What came back of a POST."""

    status: int
    retry_after: float | None
    words: bytes


def _body(announcement: Announcement, *, at: datetime) -> bytes:
    manifest = announcement.manifest
    told = {
        "event": f"task.{announcement.event}",
        "key": announcement.key,
        "task_id": announcement.task_id,
        "path": str(announcement.path.absolute()),
        "message": announcement.safe_message,
        "exit_code": announcement.exit_code,
        "attempt": announcement.attempt,
        "sent_at": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "manifest_path": str(manifest.absolute()) if manifest else None,
        "manifest": _content(manifest) if manifest else None,
    }
    # A path may be no UTF-8; a body must be.
    return json.dumps(told, ensure_ascii=False).encode("utf-8", errors="replace")


def _content(manifest: Path) -> object:
    """Return what the manifest says; None if it is too large, no file, or not there any more."""
    try:
        return json.loads(manifest_bytes(manifest, most=MAX_MANIFEST_BYTES))
    except (OSError, DestinationTaken, ValueError, RecursionError):
        return None


async def _first_bytes(response: aiohttp.ClientResponse) -> bytes:
    """Return the start of the reply's body, or as much as has come of it before it broke."""
    body = b""
    try:
        while len(body) < REPLY_BYTES and (chunk := await response.content.read(REPLY_BYTES)):
            body += chunk
    except (aiohttp.ClientError, OSError):
        pass  # the status was told, and nothing more is needed
    return body[:REPLY_BYTES]


def _advice(status: int) -> str:
    if 300 <= status < 400:  # noqa: PLR2004
        return ", a redirect, which is not followed; set `webhook` to the address that it leads to"
    if status == 410:  # noqa: PLR2004
        return ": it is gone for good; set `webhook` to another address"
    return ""


def _private_pieces(url: str, secret: str | None) -> re.Pattern[str]:
    """Return a pattern for what must not be repeated, longest first."""
    parts = urlsplit(url)
    raw = [*re.split(r"[/;&=]", f"{parts.path}&{parts.query}"), secret or ""]
    pieces = {form for piece in raw for form in (piece, unquote(piece))}
    long = sorted((piece for piece in pieces if len(piece) >= PRIVATE_LENGTH), key=len)
    return re.compile("|".join(map(re.escape, reversed(long))) or r"(?!)", re.IGNORECASE)
