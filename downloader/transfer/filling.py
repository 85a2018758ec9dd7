"""Fills the segments of one version: side by side, by as many connections as help.

Where the store or the object forbids it, they are filled in one stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from downloader.concurrency import in_thread, together
from downloader.errors import BadStoreReply, DownloaderError, StoreUnavailable
from downloader.progress import Reporter
from downloader.transfer.buffers import LARGE_BYTES, SMALL_BYTES
from downloader.transfer.checkpointing import Checkpointer
from downloader.transfer.object_source import ObjectSource
from downloader.transfer.options import TransferOptions
from downloader.transfer.part_file import PartFile
from downloader.transfer.plan import ALIGNMENT
from downloader.transfer.ranged_get import Body, Version
from downloader.transfer.restarts import CannotResume
from downloader.transfer.segment_run import SegmentRun
from downloader.transfer.straight_body import StraightBody

__all__ = ["Filling"]

BUFFER_SECONDS = 0.2  # on a slow line, bytes are handed on after so long
FEW = 8  # connections that may gather much before it is handed to the disk
MAX_IGNORED_RANGES = 3  # until a store that answers ranges with everything is taken at its word
WORTH_SECONDS = 0.25  # a segment that ends sooner is not cut to be helped
LOOK_SECONDS = 0.2  # between two looks whether help has become worth while


class _RangesIgnored(Exception):
    """The store keeps answering ranges with the whole object."""


class Filling:
    """One object's segments, until they are full; `version` learns its checksum on the way."""

    def __init__(
        self,
        name: str,
        *,
        source: ObjectSource,
        version: Version,
        part: PartFile,
        runs: list[SegmentRun],
        checkpointer: Checkpointer,
        reporter: Reporter,
        options: TransferOptions,
        count: Callable[[int], None],
    ) -> None:
        self.version = version
        self._name = name
        self._source = source
        self._part = part
        self._runs = runs  # in their order; those that are cut off others are put among them
        self._checkpointer = checkpointer
        self._reporter = reporter
        self._options = options
        self._count = count
        self._waiting = deque(run for run in runs if not run.is_complete)
        self._active: set[SegmentRun] = set()
        self._ended = asyncio.Event()  # a segment has, since somebody began to wait for that
        self._ignored_ranges = 0

    async def fill(self, body: Body | StraightBody | None) -> None:
        """Fill every segment; `body` is the reply that told the version, of the first of them.

        Raises:
            CannotResume: the connection was lost, and nothing tells versions apart.
            DownloaderError: what more attempts did not mend.
        """
        if not self._waiting:
            if body is not None:
                body.close()
            return
        if self.version.etag is None:
            await self._fill_in_one_stream(body)
            return
        try:
            await self._fill_side_by_side(body)
        except _RangesIgnored:
            self._reporter.note(f"{self._name}: the store ignores ranges; reading it in one stream")
            await self._fill_in_one_stream(None)

    # Side by side.

    async def _fill_side_by_side(self, body: Body | StraightBody | None) -> None:
        async with together() as group:
            staffing = group.create_task(self._staff(group))
            await self._work(body)
            # One that is well on its way now may yet come to a stop, or be put back: what nobody
            # fills would be zeros.
            while self._active or self._waiting:
                await self._segment_ends(LOOK_SECONDS)
                await self._work(None)
            staffing.cancel()

    async def _segment_ends(self, seconds: float) -> None:
        """Return when another worker is done with a segment, or after so long."""
        self._ended.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    async def _staff(self, group: asyncio.TaskGroup) -> None:
        """Let more connections help, while there are some to be lent and they have work."""
        places = asyncio.Semaphore(self._options.segments - 1)
        while self._options.segments > 1 and self._may_need_help():
            if not self._waiting and self._slowest() is None:
                await self._segment_ends(LOOK_SECONDS)
                continue
            await places.acquire()
            begun = asyncio.Event()
            helper = group.create_task(self._help(begun, places))
            try:
                await begun.wait()
            finally:
                if not begun.is_set():
                    helper.cancel()

    async def _help(self, begun: asyncio.Event, places: asyncio.Semaphore) -> None:
        loan = _Loan(self._put_back)
        try:
            async with self._options.connections.one_more(wanted_back=loan.end):
                begun.set()
                await self._work(None, loan)
        finally:
            places.release()

    async def _work(self, opened: Body | StraightBody | None, loan: _Loan | None = None) -> None:
        while (loan is None or not loan.is_over) and (run := self._next()) is not None:
            self._active.add(run)
            run.begin()
            if loan is not None:
                loan.run = run
            try:
                await self._fill_segment(run, opened)
            finally:
                self._active.remove(run)
                self._ended.set()
            opened = None

    def _put_back(self, run: SegmentRun) -> None:
        """Let whoever has time go on with a segment whose connection is wanted elsewhere."""
        rest = self._behind(run, run.let_go())
        if rest is not None:
            self._waiting.appendleft(rest)

    def _behind(self, run: SegmentRun, rest: SegmentRun | None) -> SegmentRun | None:
        """Put what was cut off a segment, if anything, into its place behind it."""
        if rest is not None:
            self._runs.insert(self._runs.index(run) + 1, rest)
        return rest

    def _next(self) -> SegmentRun | None:
        """Return a segment that nobody fills: one that waits, or half of what is left of one."""
        if self._waiting:
            return self._waiting.popleft()
        slowest = self._slowest()
        return None if slowest is None else self._behind(slowest, slowest.cut())

    def _slowest(self) -> SegmentRun | None:
        """Return the segment that is worth helping most, if any is."""
        slow = [run for run in self._active if run.seconds_left >= WORTH_SECONDS]
        largest = max(slow, key=_bytes_left, default=None)
        return largest if largest is not None and _may_be_cut(largest) else None

    def _may_need_help(self) -> bool:
        return bool(self._waiting) or any(_may_be_cut(run) for run in self._active)

    async def _fill_segment(self, run: SegmentRun, opened: Body | StraightBody | None) -> None:
        async def pour(body: Body | StraightBody) -> None:
            if isinstance(body, StraightBody):
                self._ignored_ranges = 0
                await self._pour_straight(body, run)
                return
            if body.position < run.position:
                self._ignored_ranges += 1
                if self._ignored_ranges >= MAX_IGNORED_RANGES:
                    raise _RangesIgnored
                raise BadStoreReply("The store was asked for a range and sent the whole object")
            self._ignored_ranges = 0
            await self._pour(body, run)

        await self._persist(
            lambda: None if run.is_complete else (run.position, run.stop),
            pour,
            opened,
            may_be_straight=True,
        )

    # In one stream.

    async def _fill_in_one_stream(self, opened: Body | StraightBody | None) -> None:
        """Read the object from front to back, and keep what is missing."""

        def missing() -> tuple[int, int] | None:
            first = next((run for run in self._runs if not run.is_complete), None)
            return None if first is None else (first.position, self._runs[-1].stop)

        async def pour(body: Body | StraightBody) -> None:
            assert isinstance(body, Body)  # noqa: S101 - the straight road is for one segment
            for run in self._runs:
                if not run.is_complete:
                    await self._pour(body, run)

        await self._persist(missing, pour, opened)

    # Either way.

    async def _persist(
        self,
        missing: Callable[[], tuple[int, int] | None],
        pour: Callable[[Body | StraightBody], Awaitable[None]],
        opened: Body | StraightBody | None,
        *,
        may_be_straight: bool = False,
    ) -> None:
        """Ask for what is missing until nothing is, with patience renewed by every byte."""
        patience = self._options.patience()
        while (span := missing()) is not None:
            error: DownloaderError | None = None
            try:
                async with self._body(opened, *span, may_be_straight=may_be_straight) as body:
                    await pour(body)
                    if body.position < body.stop:
                        error = StoreUnavailable("The store ended the body early")
            except DownloaderError as caught:
                if not caught.retryable:
                    raise
                error = caught
            opened = None
            if (left := missing()) is None:
                return
            if left[0] != span[0]:
                patience.renew()
            elif error is None:
                error = BadStoreReply("The store sent nothing")
            if error is not None:
                if self.version.etag is None:
                    raise CannotResume(f"{error}, and it gives no ETag to go on by") from error
                await patience.wait(error)

    @contextlib.asynccontextmanager
    async def _body(
        self,
        opened: Body | StraightBody | None,
        start: int,
        stop: int,
        *,
        may_be_straight: bool,
    ) -> AsyncIterator[Body | StraightBody]:
        if opened is not None:
            with contextlib.closing(opened):  # or the connection would stay to the end
                yield opened
            return
        road = self._options.straight_road if may_be_straight else None
        async with self._source.get(start, stop, self.version, road=road) as body:
            if isinstance(body, Body):
                self._learn_checksum(body.version)
            yield body

    def _learn_checksum(self, found: Version) -> None:
        """Take over a checksum that an earlier reply has not told."""
        if self.version.crc64 is None and found.crc64 is not None:
            self.version = found

    async def _pour(self, body: Body, run: SegmentRun) -> None:
        """Write what the body brings of the segment; also what it brought before it broke."""
        while body.position < run.position:  # the whole object came, and this much is here
            if not await body.read(run.position - body.position):
                return
        assert body.position == run.position  # noqa: S101 - or wrong bytes would be written
        limit = self._options.rate_limit
        buffers: list[memoryview] = []
        held, since = 0, time.monotonic()
        try:
            while chunk := await body.read(_claimed(run, held, limit.portion)):
                self._count(len(chunk))
                self._options.connections.meter.add(len(chunk))
                buffers.append(chunk)
                held += len(chunk)
                await limit.take(len(chunk))
                if held >= self._enough or time.monotonic() - since >= BUFFER_SECONDS:
                    full, buffers, held, since = buffers, [], 0, time.monotonic()
                    await self._write(run, full)
        finally:
            if buffers:
                await self._write(run, buffers)

    @property
    def _enough(self) -> int:
        """Bytes to be gathered for the disk: large hops to a thread are few, but cost memory."""
        return LARGE_BYTES if self._options.connections.in_use <= FEW else SMALL_BYTES

    async def _pour_straight(self, body: StraightBody, run: SegmentRun) -> None:
        assert body.position == run.position  # noqa: S101 - or wrong bytes would be written
        await body.pour(
            run,
            self._part,
            rate_limit=self._options.rate_limit,
            is_behind=self._checkpointer.is_behind,
            count=self._count,
        )
        # Now only: of a head that broke off, the last number may be half of one.
        self._learn_checksum(body.version)

    async def _write(self, run: SegmentRun, buffers: list[memoryview]) -> None:
        await in_thread(run.write, self._part, buffers)
        await self._checkpointer.catch_up(run)


class _Loan:
    """A connection that is a helper's until somebody else needs it more."""

    def __init__(self, put_back: Callable[[SegmentRun], None]) -> None:
        self.is_over = False
        self.run: SegmentRun | None = None
        self._put_back = put_back

    def end(self) -> None:
        self.is_over = True
        if self.run is not None and not self.run.is_complete:
            self._put_back(self.run)


def _claimed(run: SegmentRun, held: int, portion: int) -> int:
    """Lay claim to the next bytes of the segment; return how many may be read."""
    position = run.position + held
    return run.claim(position + portion) - position


def _bytes_left(run: SegmentRun) -> int:
    return run.stop - run.position


def _may_be_cut(run: SegmentRun) -> bool:
    return _bytes_left(run) >= 2 * ALIGNMENT and run.can_be_cut
