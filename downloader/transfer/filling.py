"""Fills the segments of one version: side by side, by as many connections as help.

Where the store or the object forbids it, they are filled in one stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

from downloader.concurrency import in_thread, together
from downloader.errors import BadStoreReply
from downloader.progress import Reporter
from downloader.retry import pause
from downloader.transfer.asking import Asking, MustRest
from downloader.transfer.buffers import LARGE_BYTES, SMALL_BYTES
from downloader.transfer.checkpointing import Checkpointer
from downloader.transfer.file_turns import Turn
from downloader.transfer.object_source import ObjectSource
from downloader.transfer.options import TransferOptions
from downloader.transfer.part_file import PartFile
from downloader.transfer.patience import Patience
from downloader.transfer.plan import ALIGNMENT
from downloader.transfer.ranged_get import Body, Version
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
    """One object's segments, until they are full."""

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
        turn: Turn,
        count: Callable[[int], None],
    ) -> None:
        self._name = name
        self._source = source
        self._asking = Asking(source, version, options)
        self._part = part
        self._runs = runs  # in their order; those that are cut off others are put among them
        self._checkpointer = checkpointer
        self._reporter = reporter
        self._options = options
        self._turn = turn  # of the file's own connection
        self._count = count
        self._waiting = deque(run for run in runs if not run.is_complete)
        self._active: set[SegmentRun] = set()
        self._resting: dict[SegmentRun, Patience] = {}  # they will wait again after a pause
        self._patience: dict[SegmentRun, Patience] = {}  # what is left of it, after that
        self._ended = asyncio.Event()  # a segment has, since somebody began to wait for that
        self._ignored_ranges = 0

    @property
    def version(self) -> Version:
        """The version, with its checksum once that is known."""
        return self._asking.version

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
            if not self._turn.is_held:  # others had it when a helper found out
                await self._turn.take()
            await self._fill_in_one_stream(None)

    # Side by side.

    async def _fill_side_by_side(self, body: Body | StraightBody | None) -> None:
        async with together() as group:
            staffing = group.create_task(self._staff(group))
            await self._work_in_turns(body)
            staffing.cancel()

    async def _work_in_turns(self, body: Body | StraightBody | None) -> None:
        """Fill by the file's own connection what nobody else does; return when all is full."""
        while self._is_unfinished():
            loan = _Loan(self._put_back)
            with self._turn.may_end(loan.end):
                await self._work(body, loan, self._turn)
                body = None
                # One that is well on its way now may yet come to a stop, or be put back: what
                # nobody fills would be zeros.
                while self._is_unfinished() and not loan.is_over:
                    await self._something_may_be_to_do()
                    await self._work(None, loan, self._turn)
            if self._is_unfinished():
                await self._turn.again()

    async def _something_may_be_to_do(self) -> None:
        """Wait a moment; others have the connection while all that is left has to pause."""
        await self._segment_ends(LOOK_SECONDS)
        if self._only_pauses():
            async with self._turn.away():
                while self._only_pauses():
                    await self._segment_ends(LOOK_SECONDS)

    def _only_pauses(self) -> bool:
        return bool(self._resting) and not self._active and not self._waiting

    def _is_unfinished(self) -> bool:
        return bool(self._active or self._waiting or self._resting)

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
            await self._source.may_be_asked()
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
                rest = await self._work(None, loan, None)
            if rest is not None and loan.run is not None:
                await self._wait_again(loan.run, rest.seconds)
        finally:
            places.release()

    async def _work(
        self, opened: Body | StraightBody | None, loan: _Loan, turn: Turn | None
    ) -> MustRest | None:
        """Fill one segment after the other, while there are any and the connection is lent.

        A helper has no `turn`; it ends with its first failure, or when the store asks for a pause.
        """
        while self._may_go_on(loan, turn) and (run := self._next()) is not None:
            self._active.add(run)
            run.begin()
            loan.run = run
            try:
                await self._fill_segment(run, opened, turn)
            except MustRest as rest:
                self._resting[run] = rest.patience
                return rest
            finally:
                self._active.remove(run)
                self._ended.set()
            opened = None
        return None

    def _may_go_on(self, loan: _Loan, turn: Turn | None) -> bool:
        return not loan.is_over and (turn is not None or not self._source.is_left_alone)

    async def _wait_again(self, run: SegmentRun, seconds: float) -> None:
        """Let a segment wait for whoever has time, after a pause."""
        try:
            await pause(seconds)
        finally:
            self._patience[run] = self._resting.pop(run)
            self._waiting.append(run)
            self._ended.set()

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
        may_wait = self._waiting or self._resting
        return bool(may_wait) or any(_may_be_cut(run) for run in self._active)

    async def _fill_segment(
        self, run: SegmentRun, opened: Body | StraightBody | None, turn: Turn | None
    ) -> None:
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

        await self._asking.persist(
            lambda: None if run.is_complete else (run.position, run.stop),
            pour,
            opened,
            turn,
            patience=self._patience.pop(run, None),
            may_be_straight=lambda: not self._ignored_ranges,  # which would ignore them too
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

        await self._asking.persist(missing, pour, opened, self._turn)

    # Either way.

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
        self._asking.learn_checksum(body.version)

    async def _write(self, run: SegmentRun, buffers: list[memoryview]) -> None:
        await in_thread(run.write, self._part, buffers)
        await self._checkpointer.catch_up(run)


class _Loan:
    """A connection that is had until somebody else needs it more."""

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
