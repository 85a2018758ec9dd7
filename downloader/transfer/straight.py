"""The straight road: from a socket into the part file, in a thread of its own, past every cache.

A blocking read fills a page-aligned buffer, its CRC-64 is taken, and it is written with O_DIRECT:
the bytes are touched once, and the event loop not at all. It is for long ranges of stores that
can be reached without a proxy. Whatever is out of the ordinary (another status than 206, a body
without a length, a reply that does not fit) is left to the plain way, which knows what it means.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import mmap
import select
import socket
import ssl
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult

import aiohappyeyeballs

from downloader.errors import BadStoreReply, DiskError, ObjectChanged, StoreUnavailable
from downloader.network import proxy_for
from downloader.transfer.part_file import PAGE_BYTES, PartFile
from downloader.transfer.ranged_get import Version, partial_span
from downloader.transfer.segment_run import SegmentRun
from downloader.transfer.throttle import RateLimit

__all__ = ["StraightBody", "StraightRoad"]

BUFFER_BYTES = 1024 * 1024
FLUSH_SECONDS = 0.2  # on a slow line, bytes are handed on after so long
TELL_SECONDS = 0.1  # between two looks at how much has come
IDLE_SECONDS = 5.0  # a connection that was idle for longer may be closed at the other end
MAX_THREADS = 256


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a reply, in the form in which ranged replies are checked."""

    headers: http.client.HTTPMessage
    content_length: int | None


@dataclass(frozen=True, slots=True)
class _Request:
    """What is asked for: [start, stop) of exactly this version, of the object at a checked link."""

    parts: SplitResult
    start: int
    stop: int
    version: Version

    @property
    def host(self) -> str:
        return self.parts.hostname or ""

    @property
    def port(self) -> int:
        return self.parts.port or (443 if self.parts.scheme == "https" else 80)

    @property
    def place(self) -> tuple[str, str, int]:
        return self.parts.scheme, self.host, self.port

    def head(self, user_agent: str) -> bytes:
        """Write the request as it travels.

        Raises:
            ValueError: the version is not known, or the link cannot be sent as it is.
        """
        if self.version.etag is None:
            raise ValueError("no version to hold the reply against")
        query = f"?{self.parts.query}" if self.parts.query else ""
        target = f"{self.parts.path or '/'}{query}"
        lines = (
            f"GET {target} HTTP/1.1",
            f"Host: {self.parts.netloc}",
            f"User-Agent: {user_agent}",
            "Accept: */*",
            "Accept-Encoding: identity",
            f"Range: bytes={self.start}-{self.stop - 1}",
            f"If-Match: {self.version.etag}",
        )
        if " " in target or not all(line.isprintable() for line in lines):
            raise ValueError("a blank or a control character in a request")
        return "\r\n".join((*lines, "", "")).encode("ascii")


class _Line:
    """A connection. Threads read and write; it is closed on the event loop, between two of them."""

    def __init__(self, place: tuple[str, str, int], connected: socket.socket) -> None:
        self.place = place
        self.socket = connected
        self.reply: http.client.HTTPResponse | None = None
        self.expiry: asyncio.TimerHandle | None = None  # while it is idle

    def ask(self, head: bytes) -> None:
        """Send a request and read the head of its reply; blocks."""
        self.socket.sendall(head)
        self.reply = http.client.HTTPResponse(self.socket, method="GET")
        self.reply.begin()

    def wake(self) -> None:
        """End what a thread waits for, and every later wait."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own way: that would let the thread read on without decrypting.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def is_quiet(self) -> bool:
        """Tell whether nothing came while it was idle, neither its end nor bytes of any kind."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    def forget_reply(self) -> None:
        """Make ready for the next one; nothing more of this one can be read."""
        if self.reply is not None:
            self.reply.close()
            self.reply = None

    def close(self) -> None:
        """Close it, once or again."""
        if self.expiry is not None:
            self.expiry.cancel()
        self.forget_reply()
        self.socket.close()


class StraightRoad:
    """Opens blocking connections and keeps them for the next range; shared by all transfers."""

    def __init__(
        self,
        *,
        context: ssl.SSLContext,
        connect_timeout: float,
        stall_timeout: float,
        user_agent: str,
    ) -> None:
        self._context = context
        self._connect_timeout = connect_timeout
        self._stall_timeout = stall_timeout
        self._user_agent = user_agent
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="straight")
        self._idle: defaultdict[tuple[str, str, int], list[_Line]] = defaultdict(list)
        self._buffers: list[mmap.mmap] = []
        self._is_closed = False

    def leads_to(self, parts: SplitResult) -> bool:
        """Tell whether the store can be reached without a proxy."""
        return proxy_for(parts.geturl()).url is None

    async def ask(
        self, parts: SplitResult, *, start: int, stop: int, version: Version
    ) -> StraightBody | None:
        """Ask for a range of exactly this version; None if the plain way must ask instead.

        Raises:
            StoreUnavailable: the connection was lost, or nothing came for too long.
        """
        request = _Request(parts, start, stop, version)
        try:
            head, place = request.head(self._user_agent), request.place
        except ValueError:
            return None
        with _passing_faults():
            earlier = self._from_earlier(place)
            if earlier is not None:
                try:
                    return await self._asked(earlier, request, head)
                except TimeoutError:
                    raise
                except (OSError, http.client.HTTPException):
                    pass  # it was closed at the other end
            line = await self._connected(request)
            return None if line is None else await self._asked(line, request, head)

    async def in_thread(self, work: Callable[[], None], *, stop: Callable[[], None]) -> None:
        """Run blocking work; when cancelled, stop it, and return only once it has ended."""
        job = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            await asyncio.shield(job)
        except asyncio.CancelledError:
            stop()
            while not job.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([job])
            if not job.cancelled():
                job.exception()  # asyncio would complain of an error that nobody looked at
            raise

    def close(self) -> None:
        """Close what is idle; whatever is under way has its own end."""
        self._is_closed = True
        for lines in self._idle.values():
            for line in lines:
                line.close()
        self._idle.clear()
        self._buffers.clear()
        self._threads.shutdown(wait=False)  # waiting could keep a thread from being stopped

    # Connections.

    async def _connected(self, request: _Request) -> _Line | None:
        """Connect; None if that fails, for the plain way to find out and tell why."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                line = _Line(request.place, await self._reached(request))
        except TimeoutError as error:
            raise StoreUnavailable(
                f"The store at {request.host} cannot be reached: no connection in time"
            ) from error
        except (OSError, ValueError):  # the latter of a name that cannot be looked up
            return None
        try:
            await self._prepared(line, request)
        except BaseException as error:
            line.close()
            if isinstance(error, (OSError, ValueError)) and not isinstance(error, TimeoutError):
                return None
            raise
        return line

    async def _reached(self, request: _Request) -> socket.socket:
        loop = asyncio.get_running_loop()
        places = await loop.getaddrinfo(request.host, request.port, type=socket.SOCK_STREAM)
        return await aiohappyeyeballs.start_connection(
            places, happy_eyeballs_delay=0.25, interleave=1
        )

    async def _prepared(self, line: _Line, request: _Request) -> None:
        line.socket.settimeout(self._connect_timeout)
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if request.parts.scheme == "https":
            # The handshake is for itself: while it goes on, the line must have its socket.
            line.socket = secure = self._context.wrap_socket(
                line.socket, server_hostname=request.host, do_handshake_on_connect=False
            )
            await self.in_thread(secure.do_handshake, stop=line.wake)
        line.socket.settimeout(self._stall_timeout)

    def _from_earlier(self, place: tuple[str, str, int]) -> _Line | None:
        lines = self._idle[place]
        while lines:
            line = lines.pop()
            if line.expiry is not None:
                line.expiry.cancel()
            if line.is_quiet():
                return line
            line.close()
        return None

    def keep(self, line: _Line) -> None:
        """Keep a connection on which nothing is left to read, for a while."""
        if self._is_closed:
            line.close()
            return
        self._idle[line.place].append(line)
        line.expiry = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._expire, line)

    def _expire(self, line: _Line) -> None:
        self._idle[line.place].remove(line)
        line.close()

    async def _asked(self, line: _Line, request: _Request, head: bytes) -> StraightBody | None:
        """Send the request and read the head of its reply; the line is closed if in vain."""
        with contextlib.ExitStack() as in_vain:
            in_vain.callback(line.close)
            await self.in_thread(lambda: line.ask(head), stop=line.wake)
            span = None if line.reply is None else _checked(line.reply, request)
            if line.reply is None or span is None:
                return None
            in_vain.pop_all()
            return StraightBody(self, line, line.reply, span)

    # Buffers.

    def lend(self) -> mmap.mmap:
        """Give a page-aligned buffer; `give_back` makes it the next one's."""
        with contextlib.suppress(IndexError):  # several threads ask
            return self._buffers.pop()
        return mmap.mmap(-1, BUFFER_BYTES)

    def give_back(self, buffer: mmap.mmap) -> None:
        """Take a buffer back."""
        if not self._is_closed:
            self._buffers.append(buffer)


class StraightBody:
    """The checked body of a 206: the bytes [position, stop) of the object, poured once."""

    def __init__(
        self,
        road: StraightRoad,
        line: _Line,
        reply: http.client.HTTPResponse,
        span: tuple[Version, int, int],
    ) -> None:
        self.version, self.position, self.stop = span
        self._road = road
        self._line = line
        self._will_close = reply.will_close
        self._stream: io.BufferedReader = reply.fp
        self._stopping = threading.Event()
        self._came = 0  # bytes, counted by the thread
        self._told = 0
        self._telling: asyncio.TimerHandle | None = None

    async def pour(
        self,
        run: SegmentRun,
        part: PartFile,
        *,
        rate_limit: RateLimit,
        is_behind: Callable[[SegmentRun], bool],
        count: Callable[[int], None],
    ) -> None:
        """Write the body into the segment; also what came before it broke.

        Args:
            run: the segment, at this body's position.
            part: where its bytes go.
            rate_limit: of all transfers.
            is_behind: tells whether checkpoints lag so far that more must wait.
            count: hears on the event loop how many bytes have come.

        Raises:
            StoreUnavailable: the connection was lost, or nothing came for too long.
            DiskError: the disk refused.
        """
        self._keep_telling(count)
        try:
            with _passing_faults():
                await self._road.in_thread(
                    lambda: self._pour(run, part, rate_limit, is_behind), stop=self._stop
                )
        finally:
            if self._telling is not None:
                self._telling.cancel()
            self._tell(count)
            self.position = run.position
            self._let_go()
        if self.position < self.stop:
            raise StoreUnavailable("The connection to the store ended in the middle of the body")

    def close(self) -> None:
        """Let the connection go, if it was not kept."""
        if self.position != self.stop:
            self._let_go()

    def _let_go(self) -> None:
        is_done = self.position == self.stop and not self._stopping.is_set()
        if is_done and not self._will_close and not self._has_more():
            self._line.forget_reply()
            self._road.keep(self._line)
        else:
            self._line.close()

    def _has_more(self) -> bool:
        """Tell whether bytes came behind the body: the next reply must not begin with them."""
        timeout = self._line.socket.gettimeout()
        self._line.socket.settimeout(0)
        try:
            return bool(self._stream.peek(1))
        except ssl.SSLWantReadError:
            return False
        except OSError:
            return True
        finally:
            self._line.socket.settimeout(timeout)

    def _keep_telling(self, count: Callable[[int], None]) -> None:
        self._tell(count)
        loop = asyncio.get_running_loop()
        self._telling = loop.call_later(TELL_SECONDS, self._keep_telling, count)

    def _tell(self, count: Callable[[int], None]) -> None:
        came = self._came  # the thread goes on counting
        news, self._told = came - self._told, came
        if news:
            count(news)

    def _stop(self) -> None:
        self._stopping.set()
        self._line.wake()

    # In the thread.

    def _pour(
        self,
        run: SegmentRun,
        part: PartFile,
        rate_limit: RateLimit,
        is_behind: Callable[[SegmentRun], bool],
    ) -> None:
        buffer = self._road.lend()
        view = memoryview(buffer)
        held, since = 0, time.monotonic()
        try:
            while run.position + held < self.stop and not self._stopping.is_set():
                room = _room(run.position, self.stop)
                came = self._stream.readinto1(view[held : min(room, held + rate_limit.portion)])
                if not came:
                    break
                held += came
                self._came += came
                rate_limit.hold(came, self._stopping)
                if held == room or time.monotonic() - since >= FLUSH_SECONDS:
                    held = _written(run, part, view, held, is_full=held == room)
                    since = time.monotonic()
                    self._wait_for_checkpoints(run, is_behind)
        except DiskError:
            held = 0  # a write that failed once is not tried again
            raise
        finally:
            try:
                if held:
                    _written(run, part, view, held, is_full=True)
            finally:
                view.release()
                self._road.give_back(buffer)

    def _wait_for_checkpoints(
        self, run: SegmentRun, is_behind: Callable[[SegmentRun], bool]
    ) -> None:
        while is_behind(run) and not self._stopping.is_set():
            self._stopping.wait(0.01)


def _room(position: int, stop: int) -> int:
    """Return how many bytes are gathered before they are written: as far as a page's edge."""
    beyond = position % PAGE_BYTES
    return min(PAGE_BYTES - beyond if beyond else BUFFER_BYTES, stop - position)


def _written(run: SegmentRun, part: PartFile, view: memoryview, held: int, *, is_full: bool) -> int:
    """Write what is held, or its whole pages; return how many bytes stay, at the front."""
    count = held if is_full or run.position % PAGE_BYTES else held - held % PAGE_BYTES
    if count:
        run.write(part, [view[:count]], is_aligned=True)
    view[: held - count] = view[count:held]
    return held - count


def _checked(reply: http.client.HTTPResponse, request: _Request) -> tuple[Version, int, int] | None:
    """Return what a reply brings; None if it is out of the ordinary in any way."""
    lengths = reply.headers.get_all("Content-Length", [])
    is_plain = len(lengths) == 1 and "Transfer-Encoding" not in reply.headers
    if reply.status != HTTPStatus.PARTIAL_CONTENT or reply.length is None or not is_plain:
        return None
    head = _Head(reply.headers, reply.length)
    try:
        return partial_span(head, request.start, request.stop, request.version)
    except (BadStoreReply, ObjectChanged):
        return None  # one strange reply is asked for again, and told of by the plain way


@contextlib.contextmanager
def _passing_faults() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise StoreUnavailable("The store sent nothing for too long") from error
    except (OSError, http.client.HTTPException) as error:
        raise StoreUnavailable(
            f"The connection to the store was lost ({type(error).__name__})"
        ) from error
