"""How a call reaches the platform: signed, sent, answered, and tried again where that may help."""

from __future__ import annotations

import logging
import math
import secrets
import time
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import urlsplit

import aiohttp

from downloader._version import __version__
from downloader.api.clock import PlatformClock
from downloader.api.endpoints import Call
from downloader.api.envelope import (
    Reply,
    parse_reply,
    speaks_of_expired_timestamp,
    speaks_of_used_nonce,
)
from downloader.api.model import Model
from downloader.api.signing import sign
from downloader.api.turns import Turns
from downloader.errors import (
    BusinessError,
    InvalidSettings,
    MissingCredentials,
    PlatformError,
    PlatformUnavailable,
    redacted,
)
from downloader.hosts import http_parts, is_loopback
from downloader.network import is_lasting_refusal, proxy_for, reason, refused_by_proxy, untrusted
from downloader.retry import attempts
from downloader.units import counted

__all__ = ["DEFAULT_ENDPOINT", "Options", "Transport", "logger"]

DEFAULT_ENDPOINT = "https://api.private.omgut.com"
MAX_REPLY_BYTES = 16 * 1024 * 1024

logger = logging.getLogger("downloader.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a client is made of, checked; its repr holds no credentials."""

    app_key: str = field(repr=False)
    app_secret: str = field(repr=False)
    endpoint: str
    max_retries: int
    timeout: float
    verbose: bool
    retry_max_delay: float

    def __post_init__(self) -> None:
        for name in ("app_key", "app_secret"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise MissingCredentials(
                    f"{name} is missing; give app_key and app_secret as the platform issued them"
                )
        _check_endpoint(self.endpoint)
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise InvalidSettings("max_retries must be a whole number, 0 or more")
        # Written so that NaN fails too.
        if not 0 < self.timeout < math.inf:
            raise InvalidSettings("timeout must be a number of seconds above 0")
        if not 0 <= self.retry_max_delay < math.inf:
            raise InvalidSettings("retry_max_delay must be a number of seconds, 0 or more")


class Transport:
    """Sends calls over one HTTP session, which it opens when first needed."""

    def __init__(
        self,
        options: Options,
        session: aiohttp.ClientSession | None = None,
        *,
        turns: Turns | None = None,
    ) -> None:
        self.options = options
        self.clock = PlatformClock()
        self._session = session
        self._owns_session = session is None
        self._turns = turns
        self._closed = False

    async def send(self, call: Call) -> Model:
        """Return the platform's answer, after `1 + max_retries` attempts at most.

        Raises:
            PlatformUnavailable: every attempt met a passing fault.
            BusinessError: the platform refused the call; not tried again.
            PlatformError: a fault that will not pass by itself; not tried again.
        """
        max_attempts = 1 + self.options.max_retries
        try:
            async for attempt in attempts(
                max_attempts=max_attempts, maximum=self.options.retry_max_delay
            ):
                with attempt:
                    return await self._attempt(call, attempt.retry_state.attempt_number)
        except PlatformUnavailable as error:
            raise PlatformUnavailable(
                f"{error} ({counted(max_attempts, 'attempt')} of {call.path} failed); "
                f"try again later, or check the network and the endpoint {self.options.endpoint}",
                retry_after=error.retry_after,
            ) from error
        raise AssertionError("the loop above returns or raises")  # pragma: no cover

    async def close(self) -> None:
        """Close the session if it is our own; later calls are refused."""
        self._closed = True
        session, self._session = self._session, None
        if session is not None and self._owns_session:
            await session.close()

    async def _attempt(self, call: Call, number: int) -> Model:
        """Send once; and once more at once if only our clock or the nonce was to blame."""
        skew = self.clock.skew
        try:
            return await self._exchange(call, number)
        except BusinessError as error:
            if not self._is_to_be_made_anew(error, skew):
                raise
        return await self._exchange(call, number)

    def _is_to_be_made_anew(self, error: BusinessError, skew: timedelta) -> bool:
        """Tell whether the same call may be taken with another time stamp or another nonce."""
        if speaks_of_used_nonce(error):
            logger.warning("The platform has had this very call before; sending it anew")
            return True
        if not speaks_of_expired_timestamp(error) or not self.clock.correct(skew):
            return False
        logger.warning(
            "This machine's clock is off by %s from the platform's; going on with the platform's",
            abs(self.clock.skew),
        )
        return True

    async def _exchange(self, call: Call, number: int) -> Model:
        """Sign, send and read one request in its turn, and tell the log how it went."""
        if self._turns is not None:
            await self._turns.take()  # before the time stamp is made, and outside of the time-out
        started = time.monotonic()
        outcome = "no answer"
        try:
            reply = await self._post(call)
            outcome = f"HTTP {reply.status}"
            self.clock.observe(reply.date)
            return parse_reply(reply)
        except PlatformError as error:
            outcome = str(error)
            self._rest_if_asked_to(error)
            raise
        finally:
            level = logging.INFO if self.options.verbose else logging.DEBUG
            seconds = time.monotonic() - started
            # The reply stays out of the log: it may hold signed URLs.
            message = "POST %s %s: %s in %.2f s (attempt %d)"
            logger.log(level, message, call.path, dict(call.params), outcome, seconds, number)

    def _rest_if_asked_to(self, error: PlatformError) -> None:
        """Let everybody wait who shares our turns, as the reply's `Retry-After` says."""
        asked = error.retry_after if isinstance(error, PlatformUnavailable) else None
        if self._turns is not None and asked is not None:
            self._turns.rest(asked)

    async def _post(self, call: Call) -> Reply:
        """Send one freshly signed request and read its reply whole."""
        options = self.options
        session, proxy = self._open_session(), proxy_for(options.endpoint)
        try:
            async with session.post(
                options.endpoint + call.path,
                proxy=proxy.url,
                proxy_headers=proxy.headers,
                data=self._signed(call),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=options.timeout),
            ) as response:
                return await _read(response)
        except TimeoutError as error:
            raise PlatformUnavailable(
                f"The platform did not answer within {options.timeout:g} s"
            ) from error
        except aiohttp.ClientHttpProxyError as error:
            raise _proxy_refusal(error) from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise PlatformError(untrusted(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            host = urlsplit(options.endpoint).netloc
            raise PlatformUnavailable(
                f"The connection to {host} failed: {reason(error)}"
            ) from error

    def _signed(self, call: Call) -> dict[str, str]:
        """Return the form of one request; its nonce and time stamp serve it alone."""
        form = {
            **call.params,
            "app_key": self.options.app_key,
            "signature_nonce": secrets.token_hex(16),
            "timestamp": self.clock.timestamp(),
        }
        return {**form, "sign": sign(form, self.options.app_secret)}

    def _open_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise RuntimeError("This client is closed; make a new one")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": f"bge-downloader/{__version__}"},
            )
        return self._session


async def _read(response: aiohttp.ClientResponse) -> Reply:
    """Read the reply whole, as long as it is of a sane size."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise PlatformError(
                "The platform's reply is larger than 16 MiB, which no answer is; "
                "ask for fewer items at a time (limit, page)"
            )
    return Reply(
        url=str(response.url),
        status=response.status,
        body=bytes(body),
        date=response.headers.get("Date"),
        retry_after=response.headers.get("Retry-After"),
        location=response.headers.get("Location"),
    )


def _proxy_refusal(error: aiohttp.ClientHttpProxyError) -> PlatformError:
    """Say that the proxy, not the platform, refused; only a 4xx will not pass by itself."""
    kind = PlatformError if is_lasting_refusal(error) else PlatformUnavailable
    return kind(refused_by_proxy(error))


def _check_endpoint(endpoint: str) -> None:
    """Raise unless the endpoint is an https address, or plain http on this machine."""
    expected = f"expected an address such as {DEFAULT_ENDPOINT}"
    parts = http_parts(endpoint)
    if parts is None or any(character.isspace() for character in endpoint):
        raise InvalidSettings(f"The endpoint is no http address; {expected}")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidSettings(
            f"The endpoint {redacted(endpoint)} carries a user name, query or fragment; {expected}"
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise InvalidSettings(
            f"The endpoint {endpoint} is plain http, which is allowed on this machine only; "
            "use https"
        )
