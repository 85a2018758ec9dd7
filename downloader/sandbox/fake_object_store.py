"""The stand-in of Aliyun OSS: one bucket, strict about HTTP and links, with faults on request."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Unpack
from urllib.parse import quote

from aiohttp import web

from downloader.sandbox import oss_errors
from downloader.sandbox.bucket import Bucket, utc_now
from downloader.sandbox.faults import Details, Fault, FaultQueue, Injection
from downloader.sandbox.ledger import Exchange, Ledger, StoreRequest
from downloader.sandbox.links import LinkSigner
from downloader.sandbox.loopback import (
    NO_HTTP,
    LoopbackServer,
    http_date,
    say_instead,
    split_target,
)
from downloader.sandbox.objects import StoredObject
from downloader.sandbox.oss_errors import OssError
from downloader.sandbox.ranges import UnsatisfiableRangeError
from downloader.sandbox.reply import Reply, asked_range, plan_reply
from downloader.sandbox.sending import Delivery, Pacer
from downloader.sandbox.spoil import INSTEAD, can_spoil, error_instead, html_page, spoil

__all__ = ["FakeObjectStore"]

BUCKET = "sandbox-bucket"


class FakeObjectStore(Bucket):
    """A bucket served at `http://host:port/<key>`; `async with` starts and stops it.

    Rates are bytes a second, of each connection and of all together; `latency` is the seconds
    before every answer. The attributes `public`, `latency` and the rates may be changed at any
    time and hold from the next request on.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        public: bool = False,
        clock: Callable[[], datetime] = utc_now,
        bytes_per_second: float | None = None,
        total_bytes_per_second: float | None = None,
        latency: float = 0.0,
        on_request: Callable[[str], object] | None = None,
    ) -> None:
        super().__init__(clock=clock)
        self.public = public
        self.bytes_per_second = bytes_per_second
        self.latency = latency
        self.total_bytes_per_second = total_bytes_per_second
        self._on_request = on_request
        self._faults: FaultQueue[Fault] = FaultQueue()
        self._ledger = Ledger()
        self._total_pacer: Pacer | None = None
        self._server = LoopbackServer(self._handle, host=host, port=port)
        self._links = LinkSigner(
            bucket=BUCKET,
            access_key_id="SANDBOXACCESSKEYID",
            access_key_secret="sandbox-access-key-not-real",  # noqa: S106 - opens nothing
            clock=clock,
        )

    async def __aenter__(self) -> FakeObjectStore:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._faults.clear()
        await self._server.close()

    # Where it is

    @property
    def url(self) -> str:
        """The store's address without a key."""
        return self._server.url

    def object_url(
        self,
        key: str,
        *,
        signed: bool = True,
        lifetime: float = 600,
        security_token: str | None = None,
    ) -> str:
        """Return a link to an object, there or not; a signed one is good for a GET only."""
        bare = f"{self.url}/{quote(key, safe='/~')}"
        if not signed:
            return bare
        return f"{bare}?{self._links.query(key, lifetime=lifetime, security_token=security_token)}"

    # What goes wrong

    def inject(
        self,
        fault: Fault,
        *,
        key: str | None = None,
        method: str | None = None,
        times: int | None = 1,
        covering: int | None = None,
        **details: Unpack[Details],
    ) -> Injection[Fault]:
        """Let something go wrong with the next `times` requests that match (None: with all).

        `covering` chooses requests whose bytes include that offset. The injection that comes
        back tells how often it was met (`hits`), has an event for when it `happened`, and lets
        a STALL or HANG go on with `release()`.
        """
        if fault is Fault.FLIP_BYTE and covering is None:
            covering = details.get("offset")
        return self._faults.inject(
            fault, target=key, method=method, times=times, covering=covering, **details
        )

    def clear_faults(self) -> None:
        """Let nothing go wrong any more, and let everything that is held go on."""
        self._faults.clear()

    # What it has done

    @property
    def requests(self) -> list[StoreRequest]:
        """Every request so far, in the order in which they came, the unfinished ones too."""
        return self._ledger.requests

    @property
    def bytes_served_by_key(self) -> Counter[str]:
        """Bytes of bodies handed to the kernel, for each key."""
        return Counter(self._ledger.bytes_served_by_key)

    @property
    def bytes_served(self) -> int:
        """Bytes of bodies handed to the kernel."""
        return self._ledger.bytes_served_by_key.total()

    @property
    def connections_open(self) -> int:
        """Connections that are open now."""
        return self._server.connections_open

    @property
    def connections_peak(self) -> int:
        """The most connections that were ever open at once."""
        return self._server.connections_peak

    def forget_requests(self) -> None:
        """Begin the counts anew."""
        self._ledger.clear()

    # How it answers

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        key, query = split_target(request)
        exchange = Exchange(
            at=self._clock(),
            method=request.method,
            key=key,
            range_header=request.headers.get("Range"),
            if_match=request.headers.get("If-Match"),
            ledger=self._ledger,
        )
        self._ledger.begin(exchange)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            return await self._answer(request, exchange, query)
        finally:
            if self._on_request is not None:
                self._on_request(_line(exchange))

    async def _answer(
        self, request: web.BaseRequest, exchange: Exchange, query: str
    ) -> web.StreamResponse:
        injection = self._next_fault(request, exchange)
        try:
            reply = await self._reply_instead(injection, request)
            if reply is None:
                reply = self._right_reply(request, exchange, query, injection)
        except OssError as error:
            reply = self._error_reply(error)
        reply = replace(reply, headers={**self._common_headers(), **reply.headers})
        delivery = Delivery(
            request=request,
            reply=reply,
            exchange=exchange,
            pacers=self._pacers(),
            injection=injection if exchange.fault else None,
        )
        return await delivery.run()

    def _next_fault(self, request: web.BaseRequest, exchange: Exchange) -> Injection[Fault] | None:
        """Return the first fault that this request can meet; those that come instead are taken."""
        covered, partial = _selected(self.get(exchange.key), request)
        for injection in self._faults.candidates(
            target=exchange.key, method=request.method, covered=covered
        ):
            if injection.fault in INSTEAD:
                injection.hit()
                exchange.fault = injection.fault
                return injection
            if can_spoil(injection.fault, method=request.method, partial=partial):
                return injection
        return None

    async def _reply_instead(
        self, injection: Injection[Fault] | None, request: web.BaseRequest
    ) -> Reply | None:
        if injection is None or injection.fault not in INSTEAD:
            return None
        injection.happened.set()
        details = injection.details
        if injection.fault is Fault.HANG:
            await injection.released.wait()
            return None
        if injection.fault is Fault.STATUS:
            raise error_instead(details)
        if injection.fault is Fault.EXPIRED:
            past = self._clock().strftime("%Y-%m-%dT%H:%M:%S.000Z")
            raise oss_errors.expired(past, past)
        if injection.fault is Fault.REDIRECT:
            location = details.get("location", self.url + request.raw_path)
            target = location() if callable(location) else location
            return Reply(status=details.get("status", 302), headers={"Location": target})
        if injection.fault is Fault.GARBAGE:
            say_instead(request, details.get("extra", NO_HTTP))
            return Reply(status=502, headers={})  # of which nothing is sent any more
        return html_page()

    def _right_reply(
        self,
        request: web.BaseRequest,
        exchange: Exchange,
        query: str,
        injection: Injection[Fault] | None,
    ) -> Reply:
        stored = self._find(request, exchange.key, query)
        covered, partial = _selected(stored, request)
        exchange.asked = (covered.start, covered.stop) if partial else None
        pending = injection if injection and injection.fault not in INSTEAD else None
        reply = plan_reply(
            stored,
            method=request.method,
            headers=request.headers,
            ignore_range=bool(pending and pending.fault is Fault.IGNORE_RANGE),
            ignore_preconditions=bool(pending and pending.fault is Fault.ETAG_CHANGED),
        )
        if pending is None or reply.status not in (200, 206):
            return reply
        pending.hit()
        exchange.fault = pending.fault
        return spoil(reply, pending.fault, pending.details)

    def _find(self, request: web.BaseRequest, key: str, query: str) -> StoredObject:
        if request.method not in ("GET", "HEAD"):
            raise oss_errors.method_not_allowed(request.method)
        if query or not self.public:
            self._links.check(request.method, key, query)
        stored = self.current(key)
        if stored is None:
            raise oss_errors.no_such_key(key)
        return stored

    def _error_reply(self, error: OssError) -> Reply:
        request_id = _request_id()
        host_id = f"{BUCKET}.{self.url.removeprefix('http://')}"
        body = error.document(request_id=request_id, host_id=host_id)
        headers = {
            "Content-Type": "application/xml",
            "x-oss-request-id": request_id,
            **error.headers,
        }
        return Reply(
            status=error.status, headers=headers, content=body, size=len(body), stop=len(body)
        )

    def _common_headers(self) -> dict[str, str]:
        return {
            "Server": "AliyunOSS",
            "Date": http_date(self._clock()),
            "x-oss-request-id": _request_id(),
            "x-oss-server-time": "1",
        }

    def _pacers(self) -> list[Pacer]:
        pacers = [Pacer(self.bytes_per_second)] if self.bytes_per_second else []
        if self.total_bytes_per_second:
            if self._total_pacer is None:
                self._total_pacer = Pacer(self.total_bytes_per_second)
            self._total_pacer.bytes_per_second = self.total_bytes_per_second
            pacers.append(self._total_pacer)
        return pacers


def _selected(stored: StoredObject | None, request: web.BaseRequest) -> tuple[range, bool]:
    """Return the positions that a request selects, and whether it is for a part only."""
    if stored is None:
        return range(0), False
    try:
        part = asked_range(stored, request.headers, request.method)
    except UnsatisfiableRangeError:
        return range(0), False
    return (range(part.start, part.stop), True) if part else (range(stored.size), False)


def _request_id() -> str:
    return uuid.uuid4().hex[:24].upper()


def _line(exchange: Exchange) -> str:
    wanted = exchange.range_header or "whole"
    fault = f" fault={exchange.fault.value}" if exchange.fault else ""
    return (
        f"{exchange.at:%H:%M:%S} store {exchange.method} /{quote(exchange.key, safe='/~')} "
        f"{wanted} -> {exchange.status}, {exchange.bytes_sent} bytes{fault}"
    )
