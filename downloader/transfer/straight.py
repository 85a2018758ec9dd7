"""The straight road: from a socket into the part file, in a thread of its own, past every cache.

A blocking read fills a page-aligned buffer, its CRC-64 is taken, and it is written with O_DIRECT:
the bytes are touched once, and the event loop not at all. It is for stores that can be reached
without a proxy. Parts of an object, whole ones and refusals are read here; whatever is out of the
ordinary (a redirect, a body without a length, the whole object for a range) is left to the plain
way, which knows what it means.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import SplitResult

import aiohappyeyeballs

from downloader.concurrency import outlasting
from downloader.errors import StoreUnavailable
from downloader.hosts import HostRules
from downloader.network import proxy_for
from downloader.transfer.buffers import BufferPool
from downloader.transfer.growth import Meter
from downloader.transfer.line import Line, Place
from downloader.transfer.ranged_get import (
    MAX_ERROR_BYTES,
    Version,
    partial_span,
    refusal,
    whole_span,
)
from downloader.transfer.secure_line import SecureLine
from downloader.transfer.straight_body import StraightBody, passing_faults
from downloader.transfer.wire import Head, RangeRequest

__all__ = ["StraightRoad"]

IDLE_SECONDS = 5.0  # a connection that was idle for longer may be closed at the other end
MAX_THREADS = 256
MAX_STRANGE = 3  # replies in a row that are out of the ordinary, until a store is known for them
STRANGE_SECONDS = 60.0  # for which it is then left to the plain way


class StraightRoad:
    """Opens blocking connections and keeps them for the next range; shared by all transfers."""

    def __init__(
        self,
        *,
        context: Callable[[], ssl.SSLContext],
        connect_timeout: float,
        stall_timeout: float,
        user_agent: str,
        rules: HostRules | None = None,
        buffers: BufferPool | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.buffers = buffers or BufferPool()
        self.meter = meter or Meter()
        self._rules = rules or HostRules(())
        self._context = context
        self._connect_timeout = connect_timeout
        self._stall_timeout = stall_timeout
        self._user_agent = user_agent
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="straight")
        self._idle: defaultdict[Place, list[Line]] = defaultdict(list)
        self._expiring: asyncio.TimerHandle | None = None
        self._kept_at: dict[Line, float] = {}
        self._sessions: dict[Place, ssl.SSLSession] = {}
        self._strange: defaultdict[Place, int] = defaultdict(int)
        self._strange_until: dict[Place, float] = {}
        self._leads: dict[tuple[str, str], bool] = {}
        self._is_closed = False

    def leads_to(self, parts: SplitResult) -> bool:
        """Tell whether the store can be reached without a proxy."""
        place = parts.scheme, parts.netloc
        if place not in self._leads:
            self._leads[place] = proxy_for(parts.geturl()).url is None
        return self._leads[place]

    async def ask(
        self,
        parts: SplitResult,
        *,
        start: int,
        stop: int,
        version: Version | None,
        then: Callable[[StraightBody], None] | None = None,
    ) -> StraightBody | None:
        """Ask for a range, of exactly this version where it is known; None: ask the plain way.

        `then` is called with the body in the same thread, and may pour it.

        Raises:
            TransferError: the store refuses, as its subclass says.
            StoreUnavailable: the connection was lost, or nothing came for too long.
            BadStoreReply, ObjectChanged: the reply does not fit the request, or the version.
            DownloaderError: what `then` raises.
        """
        request = RangeRequest(parts, start, stop, version)
        try:
            head, place = request.head(self._user_agent), request.place
        except ValueError:
            return None
        if self._strange_until.get(place, 0.0) > time.monotonic():
            return None
        return await self._answered(request, head, then)

    async def in_thread(self, work: Callable[[], None], *, stop: Callable[[], None]) -> None:
        """Run blocking work; when cancelled, stop it, and return only once it has ended."""
        job = asyncio.get_running_loop().run_in_executor(self._threads, work)
        await outlasting(job, stop=stop)

    def close(self) -> None:
        """Close what is idle; whatever is under way has its own end."""
        self._is_closed = True
        if self._expiring is not None:
            self._expiring.cancel()
        for lines in self._idle.values():
            for line in lines:
                line.close()
        self._idle.clear()
        self._kept_at.clear()
        self.buffers.clear()
        self._threads.shutdown(wait=False)  # waiting could keep a thread from being stopped

    # Asking.

    async def _answered(
        self, request: RangeRequest, head: bytes, then: Callable[[StraightBody], None] | None
    ) -> StraightBody | None:
        with passing_faults():
            while (earlier := self._from_earlier(request.place)) is not None:
                asking = _Asking(self, earlier, request, head, then, is_earlier=True)
                try:
                    return await asking.answer()
                except TimeoutError:
                    raise
                except OSError:
                    if asking.body is not None:
                        raise
                    # Otherwise it was closed at the other end.
            line = await self._connected(request)
            return None if line is None else await _Asking(self, line, request, head, then).answer()

    def note_strangeness(self, place: Place, *, is_strange: bool) -> None:
        """Spare a store that is always out of the ordinary the second request for each range."""
        if not is_strange:
            self._strange.pop(place, None)
            return
        self._strange[place] += 1
        if self._strange[place] >= MAX_STRANGE:
            del self._strange[place]
            self._strange_until[place] = time.monotonic() + STRANGE_SECONDS

    # Connections.

    async def _connected(self, request: RangeRequest) -> Line | None:
        """Connect; None if that fails, for the plain way to find out and tell why."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                connected = await self._reached(request)
            if request.parts.scheme != "https":
                return Line(request.place, connected, stall_timeout=self._stall_timeout)
            return await self._secured(request.place, connected)
        except TimeoutError as error:
            raise StoreUnavailable(
                f"The store at {request.host} cannot be reached: no connection in time"
            ) from error
        except (OSError, ValueError):  # the latter of a name that cannot be looked up
            return None

    async def _reached(self, request: RangeRequest) -> socket.socket:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(request.host, request.port, type=socket.SOCK_STREAM)
        allowed = self._rules.reachable(request.host, (str(one[4][0]) for one in found))
        places = [one for one in found if one[4][0] in allowed]
        return await aiohappyeyeballs.start_connection(
            places, happy_eyeballs_delay=0.25, interleave=1
        )

    async def _secured(self, place: Place, connected: socket.socket) -> Line:
        """Shake hands; OSError if the store is not trusted, or speaks no TLS."""
        try:
            line = SecureLine(
                place,
                connected,
                stall_timeout=self._stall_timeout,
                context=self._context(),
                session=self._sessions.get(place),
            )
            await self.in_thread(
                lambda: line.shake_hands(self._connect_timeout),
                stop=line.wake,
            )
        except BaseException:
            connected.close()
            raise
        return line

    def _from_earlier(self, place: Place) -> Line | None:
        if not self._idle[place]:
            return None
        line = self._idle[place].pop()
        del self._kept_at[line]
        return line

    def keep(self, line: Line) -> None:
        """Keep a connection on which nothing is left to read, for a while."""
        if self._is_closed:
            line.close()
            return
        if isinstance(line, SecureLine) and line.session is not None:
            self._sessions[line.place] = line.session
        self._idle[line.place].append(line)
        self._kept_at[line] = time.monotonic()
        if self._expiring is None:
            self._expire_later()

    def _expire_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._expiring = loop.call_later(IDLE_SECONDS, self._expire)

    def _expire(self) -> None:
        self._expiring = None
        too_old = time.monotonic() - IDLE_SECONDS
        for line in [line for line, kept_at in self._kept_at.items() if kept_at <= too_old]:
            self._idle[line.place].remove(line)
            del self._kept_at[line]
            line.close()
        if self._kept_at:
            self._expire_later()


class _Asking:
    """One request on one connection; the connection is closed if it was in vain."""

    def __init__(
        self,
        road: StraightRoad,
        line: Line,
        request: RangeRequest,
        head: bytes,
        then: Callable[[StraightBody], None] | None,
        *,
        is_earlier: bool = False,
    ) -> None:
        self.body: StraightBody | None = None
        self._status = 0
        self._road = road
        self._line = line
        self._request = request
        self._head = head
        self._then = then
        self._is_earlier = is_earlier
        self._stopping = threading.Event()

    async def answer(self) -> StraightBody | None:
        with contextlib.ExitStack() as in_vain:
            in_vain.callback(self._line.close)
            await self._road.in_thread(self._ask, stop=self._stop)
            # A refusal tells nothing of how the store gives what it gives.
            if self._status < HTTPStatus.BAD_REQUEST:
                self._road.note_strangeness(self._line.place, is_strange=self.body is None)
            if self.body is not None:
                in_vain.pop_all()
            return self.body

    def _stop(self) -> None:
        self._stopping.set()
        self._line.wake()

    def _ask(self) -> None:
        if self._is_earlier and not self._line.is_quiet():
            raise ConnectionResetError("it ended while it was idle")
        reply = self._line.ask(self._head)
        self._status = reply.status
        if reply.status >= HTTPStatus.BAD_REQUEST:
            self._refuse(reply)
            return
        span = _checked(reply, self._request)
        if span is None:
            return
        self.body = StraightBody(
            self._road, self._line, span, will_close=reply.will_close, stopping=self._stopping
        )
        if self._then is not None:
            self._then(self.body)

    def _refuse(self, reply: Head) -> None:
        """Raise what a refusal means, where it can be read as simply as a part of an object."""
        length = reply.content_length
        if reply.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or length is None:
            return  # the plain way knows of empty objects
        raise refusal(reply.status, reply, self._line.read_text(min(length, MAX_ERROR_BYTES)))


def _checked(reply: Head, request: RangeRequest) -> tuple[Version, int, int] | None:
    """Return what a reply brings; None if it is out of the ordinary in any way.

    Raises:
        BadStoreReply: it does not fit the request.
        ObjectChanged: it is about another version.
    """
    if reply.content_length is None:
        return None
    if reply.status == HTTPStatus.PARTIAL_CONTENT:
        span = partial_span(reply, request.start, request.stop, request.version)
    elif reply.status == HTTPStatus.OK and request.version is None:
        span = whole_span(reply, None)
    else:
        return None
    return span if span[0].etag is not None else None
