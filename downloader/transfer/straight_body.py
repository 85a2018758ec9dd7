"""The body of a reply on the straight road: from the socket into the part file, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from downloader.errors import DiskError, StoreUnavailable
from downloader.network import reason
from downloader.transfer.buffers import SMALL_BYTES, BufferPool
from downloader.transfer.growth import Meter
from downloader.transfer.line import Line
from downloader.transfer.part_file import PAGE_BYTES, PartFile
from downloader.transfer.ranged_get import Version
from downloader.transfer.segment_run import SegmentRun
from downloader.transfer.throttle import RateLimit
from downloader.transfer.wire import NoReply

__all__ = ["LineKeeper", "StraightBody", "passing_faults"]

FLUSH_SECONDS = 0.2  # on a slow line, bytes are handed on after so long
TELL_SECONDS = 0.1  # between two looks at how much has come


class LineKeeper(Protocol):
    """What a body needs of the road that it came by."""

    buffers: BufferPool
    meter: Meter

    async def in_thread(self, work: Callable[[], None], *, stop: Callable[[], None]) -> None:
        """Run blocking work; when cancelled, stop it, and return only once it has ended."""
        ...

    def keep(self, line: Line) -> None:
        """Keep a connection on which nothing is left to read."""
        ...


class StraightBody:
    """The checked body of a 206: the bytes [position, stop) of the object, poured once."""

    def __init__(
        self,
        keeper: LineKeeper,
        line: Line,
        span: tuple[Version, int, int],
        *,
        will_close: bool,
        stopping: threading.Event,
    ) -> None:
        self.version, self.position, self.stop = span
        self.came = 0  # bytes, counted by the thread
        self.has_ended = False  # nothing more will come
        self._keeper = keeper
        self._line = line
        self._will_close = will_close
        self._stopping = stopping
        self._until = math.inf
        self._is_gone = False
        self._may_be_kept = False
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
        """Write the body into the segment, as far as that goes; also what came before it broke.

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
        self.keep_telling(count)
        try:
            with passing_faults():
                await self._keeper.in_thread(
                    lambda: self.pour_here(run, part, rate_limit, is_behind), stop=self._stop
                )
        finally:
            self.tell_no_more(count)
            self.close()
        if self.position < min(self.stop, run.stop):
            raise StoreUnavailable("The connection to the store ended in the middle of the body")

    def pour_here(
        self,
        run: SegmentRun,
        part: PartFile,
        rate_limit: RateLimit,
        is_behind: Callable[[SegmentRun], bool],
        *,
        seconds: float = math.inf,
    ) -> None:
        """Do the same in the calling thread, which it blocks, for no longer than so many seconds.

        What has not come by then can be poured later.
        """
        buffer = self._keeper.buffers.lend()
        self._until = time.monotonic() + seconds
        try:
            with memoryview(buffer) as view:
                self._pour(run, part, view, rate_limit, is_behind)
        finally:
            self.position = run.position
            self._keeper.buffers.give_back(buffer)
        # Looked at here, since the event loop has better things to do than system calls.
        is_done = self.position == self.stop and not self._stopping.is_set()
        self._may_be_kept = is_done and not self._will_close and not self._line.has_more()

    def close(self) -> None:
        """Let the connection go, or keep it where it can be asked again; once or again."""
        if self._is_gone:
            return
        self._is_gone = True
        if self._may_be_kept:
            self._keeper.keep(self._line)
        else:
            self._line.close()

    def keep_telling(self, count: Callable[[int], None]) -> None:
        """Tell on the event loop, now and then, how many bytes have come."""
        self._tell(count)
        loop = asyncio.get_running_loop()
        self._telling = loop.call_later(TELL_SECONDS, self.keep_telling, count)

    def tell_no_more(self, count: Callable[[int], None]) -> None:
        """Tell the last of it."""
        if self._telling is not None:
            self._telling.cancel()
        self._tell(count)

    def _tell(self, count: Callable[[int], None]) -> None:
        came = self.came  # the thread goes on counting
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
        view: memoryview,
        rate_limit: RateLimit,
        is_behind: Callable[[SegmentRun], bool],
    ) -> None:
        held, since = 0, time.monotonic()
        try:
            while not self._stopping.is_set() and time.monotonic() < self._until:
                room = run.claim(_edge(run.position, len(view), self.stop)) - run.position
                if held >= room:
                    break  # the rest is another worker's, or there is none
                came = self._line.read_into(view[held : min(room, held + rate_limit.portion)])
                if came:
                    held += came
                    self.came += came
                    self._keeper.meter.add(came)
                    rate_limit.hold(came, self._stopping)
                if held == room or (held and time.monotonic() - since >= FLUSH_SECONDS):
                    held = _written(run, part, view, held, is_full=held == room)
                    since = time.monotonic()
                    self._wait_for_checkpoints(run, is_behind)
        except EOFError:
            self.has_ended = True  # the caller counts
        except DiskError:
            held = 0  # a write that failed once is not tried again
            raise
        finally:
            if held:
                _written(run, part, view, held, is_full=True)

    def _wait_for_checkpoints(
        self, run: SegmentRun, is_behind: Callable[[SegmentRun], bool]
    ) -> None:
        while is_behind(run) and not self._stopping.is_set():
            self._stopping.wait(0.01)


def _edge(position: int, room: int, stop: int) -> int:
    """Return up to where bytes are gathered before they are written: to a page's edge at least."""
    beyond = position % PAGE_BYTES
    return min(position + (PAGE_BYTES - beyond if beyond else room), stop)


def _written(run: SegmentRun, part: PartFile, view: memoryview, held: int, *, is_full: bool) -> int:
    """Write what is held, or its whole pages; return how many bytes stay, at the front."""
    count = held if is_full or run.position % PAGE_BYTES else held - held % PAGE_BYTES
    if count:
        # A little at a time is better gathered by the kernel, and written with its neighbours.
        run.write(part, [view[:count]], is_aligned=count >= SMALL_BYTES)
    view[: held - count] = view[count:held]
    return held - count


@contextlib.contextmanager
def passing_faults() -> Iterator[None]:
    """Tell of a lost connection in the words of the store's faults."""
    try:
        yield
    except TimeoutError as error:
        raise StoreUnavailable("The store sent nothing for too long") from error
    except NoReply as error:
        raise StoreUnavailable(f"The connection to the store was lost: {error}") from error
    except OSError as error:
        raise StoreUnavailable(f"The connection to the store was lost: {reason(error)}") from error
