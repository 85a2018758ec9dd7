"""A link to one object: renewed once for all who wait for it, and before it expires."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from downloader.errors import DownloaderError

__all__ = ["Link", "expires_at"]

RENEW_BEFORE_SECONDS = 15.0


class Link:
    """The current URL of one object, and the way to a fresh one.

    `renew` is given the refused URL and returns another for the same object; it is called once
    for all segments that were refused the same URL.
    """

    def __init__(self, url: str, renew: Callable[[str], Awaitable[str]]) -> None:
        self._url = url
        self._renew = renew
        self._lock = asyncio.Lock()
        self._clock_is_wrong = False

    @property
    def store(self) -> str:
        """The host and port that the current link leads to; none, if it is no link."""
        try:
            return urlsplit(self._url).netloc.lower()
        except ValueError:
            return ""

    async def current(self) -> str:
        """Return a URL that is good for a while yet, renewed if it is about to expire."""
        if not self._clock_is_wrong and _about_to_expire(self._url):
            # Nobody has refused the link yet; when the store does, the error is told.
            with contextlib.suppress(DownloaderError):
                url = await self.renewed(self._url)
                # A link that is stale at birth tells of this machine's clock, not of the link.
                self._clock_is_wrong = _about_to_expire(url)
        return self._url

    async def renewed(self, refused: str) -> str:
        """Return a URL other than the refused one: a new one, or what another waiter got."""
        async with self._lock:
            if self._url == refused:
                self._url = await self._renew(refused)
            return self._url


def expires_at(url: str) -> float | None:
    """Return when a signed URL expires, in epoch seconds; None if it does not say.

    Both of Aliyun's forms are read: `Expires` (V1), `x-oss-date` with `x-oss-expires` (V4).
    """
    try:
        query = {name.lower(): values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        if "expires" in query:
            return float(query["expires"])
        signed = datetime.strptime(query["x-oss-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return signed.timestamp() + float(query["x-oss-expires"])
    except (KeyError, ValueError):
        return None


def _about_to_expire(url: str) -> bool:
    at = expires_at(url)
    return at is not None and at - time.time() < RENEW_BEFORE_SECONDS
