"""Runs the segments of one object side by side into one part file, and saves checkpoints.

The first ranged GET is the probe as well: its reply tells the version and the size, and its body
is the first segment's. From then on every request names that version (`If-Match`), and a reply
about another one throws everything away rather than joining two versions.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from downloader.concurrency import in_thread, run_together
from downloader.errors import (
    BadStoreReply,
    DownloaderError,
    ObjectChanged,
    StoreUnavailable,
    VerificationFailed,
)
from downloader.hosts import HostRules
from downloader.progress import Reporter
from downloader.transfer.checkpointing import Checkpointer, Checkpoints
from downloader.transfer.checksum import EMPTY_CRC64, combine_crc64
from downloader.transfer.link import Link
from downloader.transfer.object_source import ObjectSource
from downloader.transfer.part_file import PartFile, disk_error
from downloader.transfer.patience import Patience
from downloader.transfer.plan import PROBE_LENGTH, plan_segments, usable
from downloader.transfer.ranged_get import Body, Version
from downloader.transfer.restarts import CannotResume, Restarts
from downloader.transfer.segment_run import SegmentRun
from downloader.transfer.straight import StraightBody, StraightRoad
from downloader.transfer.throttle import RateLimit, SlowDown
from state.records import Checkpoint

__all__ = ["Checkpoints", "TransferOptions", "Transferred", "transfer_file"]

MIB = 1024 * 1024
BUFFER_BYTES = MIB  # handed to the disk at once: few large hops to the worker thread
BUFFER_SECONDS = 0.2  # on a slow line, bytes are handed on after so long
READ_BACK_BYTES = 32 * MIB  # read by one hop to the worker thread
MAX_IGNORED_RANGES = 3  # until a store that answers ranges with everything is taken at its word


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """How a transfer goes about it; all transfers of a program share the two throttles."""

    segments: int = 4  # connections for one file
    segment_size: int = 64 * MIB  # bytes of one ranged request at the most
    max_attempts: int = 10  # in a row without a new byte
    retry_max_delay: float = 60.0  # seconds
    min_free_space: int = 0  # bytes that stay free on the disk
    rules: HostRules = field(default_factory=lambda: HostRules(()))
    rate_limit: RateLimit = field(default_factory=lambda: RateLimit(None))
    slow_down: SlowDown = field(default_factory=SlowDown)
    straight_road: StraightRoad | None = None  # None: every byte goes the plain way
    straight_from: int = PROBE_LENGTH  # bytes of a range that are worth the straight road

    def patience(self) -> Patience:
        """Return fresh patience for one span of bytes."""
        return Patience(
            max_attempts=self.max_attempts,
            retry_max_delay=self.retry_max_delay,
            slow_down=self.slow_down,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """What a finished transfer has proved: the version, and the CRC-64 of the bytes on disk."""

    etag: str | None
    size: int
    crc64: int
    crc64_confirmed: bool  # False if the store told no checksum to compare with
    resumed_bytes: int  # found on disk, from earlier runs
    received_bytes: int  # from the network, in this run
    identity: tuple[int, int]  # device and inode of the file that was proved


async def transfer_file(
    name: str,
    *,
    part_path: Path,
    link: Link,
    session: aiohttp.ClientSession,
    checkpoints: Checkpoints,
    reporter: Reporter,
    options: TransferOptions,
) -> Transferred:
    """Bring one object into `part_path`, whole, synced, its CRC-64 equal to the store's.

    Goes on from the checkpoint as far as the part file bears it out. When the object is replaced
    meanwhile, or the finished bytes do not give the store's checksum, it starts again, a bounded
    number of times. Cancelling it saves a last checkpoint.

    Raises:
        VerificationFailed: the checksum was wrong each time; nothing of it is believed later.
        ObjectChanged: the object was replaced again and again.
        TransferError, DiskError: as their names say; the checkpoint is kept.
    """
    received = 0
    restarts = Restarts(name, patience=options.patience(), reporter=reporter)
    while True:
        version = _OneVersion(
            name,
            part_path=part_path,
            link=link,
            session=session,
            checkpoints=checkpoints,
            reporter=reporter,
            options=options,
        )
        try:
            return await version.bring(received_before=received)
        except (ObjectChanged, VerificationFailed, CannotResume) as error:
            await version.throw_away()
            received += version.received
            await restarts.count(error, received=version.received)


class _RangesIgnored(Exception):
    """The store keeps answering ranges with the whole object."""


class _OneVersion:
    """One try at bringing one version of the object."""

    def __init__(
        self,
        name: str,
        *,
        part_path: Path,
        link: Link,
        session: aiohttp.ClientSession,
        checkpoints: Checkpoints,
        reporter: Reporter,
        options: TransferOptions,
    ) -> None:
        self.name = name
        self.part_path = part_path
        self.source = ObjectSource(link, session, rules=options.rules, slow_down=options.slow_down)
        self.checkpoints = checkpoints
        self.reporter = reporter
        self.options = options
        self._version: Version | None = None
        self.runs: list[SegmentRun] = []
        self.resumed = 0
        self.received = 0
        self._part: PartFile | None = None
        self._checkpointer: Checkpointer | None = None
        self._ignored_ranges = 0

    @property
    def version(self) -> Version:
        assert self._version is not None  # noqa: S101 - the probe told it
        return self._version

    @property
    def part(self) -> PartFile:
        assert self._part is not None  # noqa: S101 - opened before any worker starts
        return self._part

    @property
    def checkpointer(self) -> Checkpointer:
        assert self._checkpointer is not None  # noqa: S101 - made before any worker starts
        return self._checkpointer

    async def bring(self, *, received_before: int) -> Transferred:
        on_disk = await in_thread(PartFile.size_on_disk, self.part_path)
        checkpoint = usable(await self.checkpoints.load(), on_disk)
        try:
            async with self._probe(checkpoint) as body:
                await self._prepare(checkpoint, body)
                await self._fill_and_save(body)
            identity = await in_thread(self.part.confirm, body.version.size)
            return self._proved(received_before, identity)
        finally:
            if self._part is not None:
                self._part.close()

    async def throw_away(self) -> None:
        """Forget the bytes and the checkpoint, the checkpoint first: it must not outlive them."""
        await self.checkpoints.clear()
        if self.runs:  # the reporter has heard of the file
            self.reporter.received(self.name, -(self.resumed + self.received))
        try:
            await in_thread(self.part_path.unlink, missing_ok=True)
        except OSError as error:
            raise disk_error(error, self.part_path, "removed") from error

    # Probe, prepare, fill, prove.

    @contextlib.asynccontextmanager
    async def _probe(self, checkpoint: Checkpoint | None) -> AsyncIterator[Body]:
        """Open the first reply: of the first missing range, or of a byte that is here already."""
        start, stop, version = 0, PROBE_LENGTH, None
        if checkpoint is not None:
            version = Version(etag=checkpoint.etag, size=checkpoint.size, crc64=None)
            missing = [segment for segment in checkpoint.segments if not segment.is_complete]
            start = missing[0].position if missing else max(0, checkpoint.size - 1)
            stop = missing[0].stop if missing else max(1, checkpoint.size)
        async with contextlib.AsyncExitStack() as stack:
            yield await self._first_reply(stack, start, stop, version)

    async def _first_reply(
        self, stack: contextlib.AsyncExitStack, start: int, stop: int, version: Version | None
    ) -> Body:
        patience = self.options.patience()
        while True:
            try:
                body = await stack.enter_async_context(self.source.get(start, stop, version))
            except DownloaderError as error:
                if not error.retryable:
                    raise
                await patience.wait(error)
                continue
            size = body.version.size
            if body.version.etag is not None or body.stop == size:
                return body
            # Without an ETag no two replies can be joined: it must be one that has everything.
            await stack.aclose()
            if stop >= size:
                await patience.wait(BadStoreReply("The store gives no ETag, and parts only"))
            stop = size

    async def _prepare(self, checkpoint: Checkpoint | None, body: Body) -> None:
        """Open and reserve the part file and lay out the segments."""
        self._version = body.version
        if checkpoint is None:
            await self.checkpoints.clear()
        await in_thread(self._open_part, anew=checkpoint is None)
        size = body.version.size
        await in_thread(self.part.reserve, size, keep_free=self.options.min_free_space)
        segments = (
            checkpoint.segments
            if checkpoint
            else plan_segments(
                size,
                segment_size=self.options.segment_size,
                connections=self.options.segments,
                probed=body.stop,
            )
        )
        self.runs = [SegmentRun(segment) for segment in segments]
        self._checkpointer = Checkpointer(
            self.checkpoints, version=body.version, part=self.part, runs=self.runs
        )
        self.resumed = checkpoint.safe_bytes if checkpoint else 0
        self.reporter.file_sized(self.name, size, resumed=self.resumed)

    def _open_part(self, *, anew: bool) -> None:
        # Kept here, and not by whoever waits: a cancelled waiter would lose the descriptor.
        self._part = PartFile.open(self.part_path, anew=anew)

    async def _fill_and_save(self, body: Body) -> None:
        """Fill every segment, with checkpoints at a steady pace and a last one at any end."""
        filled = asyncio.Event()

        async def fill() -> None:
            await self._fill(body)
            filled.set()

        try:
            await run_together([fill(), self._read_back(), self.checkpointer.keep_saving(filled)])
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to be told
                await self.checkpointer.save()
            raise
        await self.checkpointer.save()

    def _proved(self, received_before: int, identity: tuple[int, int]) -> Transferred:
        """Hold the checksum of what is on disk against the store's."""
        crc64 = EMPTY_CRC64
        for run in self.runs:
            crc64 = combine_crc64(crc64, run.crc64, run.stop - run.start)
        if self.version.crc64 not in (None, crc64):
            raise VerificationFailed(
                f"the CRC-64 of the bytes on disk is {crc64}, the store's is {self.version.crc64}"
            )
        return Transferred(
            etag=self.version.etag,
            size=self.version.size,
            crc64=crc64,
            crc64_confirmed=self.version.crc64 is not None,
            resumed_bytes=self.resumed,
            received_bytes=received_before + self.received,
            identity=identity,
        )

    # Filling: side by side, or in one stream where the store or the object forbids it.

    async def _fill(self, body: Body) -> None:
        waiting = deque(run for run in self.runs if not run.is_complete)
        if not waiting:
            body.close()
            return
        if body.version.etag is None:
            await self._fill_in_one_stream(body)
            return
        try:
            await self._fill_side_by_side(waiting, body)
        except _RangesIgnored:
            self.reporter.note(f"{self.name}: the store ignores ranges; reading it in one stream")
            await self._fill_in_one_stream(None)

    async def _fill_side_by_side(self, waiting: deque[SegmentRun], body: Body) -> None:
        async def work(opened: Body | None) -> None:
            while waiting:
                await self._fill_segment(waiting.popleft(), opened)
                opened = None

        others = min(self.options.segments, len(waiting)) - 1
        await run_together([work(body), *(work(None) for _ in range(others))])

    async def _fill_segment(self, run: SegmentRun, opened: Body | None) -> None:
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

    async def _fill_in_one_stream(self, opened: Body | None) -> None:
        """Read the object from front to back, and keep what is missing."""

        def missing() -> tuple[int, int] | None:
            first = next((run for run in self.runs if not run.is_complete), None)
            return None if first is None else (first.position, self.runs[-1].stop)

        async def pour(body: Body | StraightBody) -> None:
            assert isinstance(body, Body)  # noqa: S101 - the straight road is for one segment
            for run in self.runs:
                if not run.is_complete:
                    await self._pour(body, run)

        await self._persist(missing, pour, opened)

    async def _persist(
        self,
        missing: Callable[[], tuple[int, int] | None],
        pour: Callable[[Body | StraightBody], Awaitable[None]],
        opened: Body | None,
        *,
        may_be_straight: bool = False,
    ) -> None:
        """Ask for what is missing until nothing is, with patience renewed by every byte."""
        patience = self.options.patience()
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
            if missing() != span:
                patience.renew()
            elif error is None:
                error = BadStoreReply("The store sent nothing")
            if error is not None and missing() is not None:
                if self.version.etag is None:
                    raise CannotResume(f"{error}, and it gives no ETag to go on by") from error
                await patience.wait(error)

    # Requests and bytes.

    @contextlib.asynccontextmanager
    async def _body(
        self, opened: Body | None, start: int, stop: int, *, may_be_straight: bool
    ) -> AsyncIterator[Body | StraightBody]:
        if opened is not None:
            try:
                yield opened
            finally:
                opened.close()  # or the connection would stay until everything is done
            return
        version = self.version
        road = self.options.straight_road
        if may_be_straight and road is not None and stop - start >= self.options.straight_from:
            straight = await self.source.straight(road, start, stop, version)
            if straight is not None:
                with contextlib.closing(straight):
                    yield straight
                return
        async with self.source.get(start, stop, version) as body:
            self._learn_checksum(body.version)
            yield body

    def _learn_checksum(self, found: Version) -> None:
        """Take over a checksum that an earlier reply has not told."""
        if self.version.crc64 is None and found.crc64 is not None:
            self._version = found

    async def _pour(self, body: Body, run: SegmentRun) -> None:
        """Write what the body brings of the segment; also what it brought before it broke."""
        while body.position < run.position:  # the whole object came, and this much is here
            if not await body.read(run.position - body.position):
                return
        assert body.position == run.position  # noqa: S101 - or wrong bytes would be written
        portion = self.options.rate_limit.portion
        buffers: list[memoryview] = []
        held, since = 0, time.monotonic()
        try:
            while chunk := await body.read(min(portion, run.stop - run.position - held)):
                self._count(len(chunk))
                buffers.append(chunk)
                held += len(chunk)
                await self.options.rate_limit.take(len(chunk))
                if held >= BUFFER_BYTES or time.monotonic() - since >= BUFFER_SECONDS:
                    full, buffers, held, since = buffers, [], 0, time.monotonic()
                    await self._write(run, full)
        finally:
            if buffers:
                await self._write(run, buffers)

    async def _pour_straight(self, body: StraightBody, run: SegmentRun) -> None:
        assert body.position == run.position  # noqa: S101 - or wrong bytes would be written
        await body.pour(
            run,
            self.part,
            rate_limit=self.options.rate_limit,
            is_behind=self.checkpointer.is_behind,
            count=self._count,
        )
        # Now only: of a head that broke off, the last number may be half of one.
        self._learn_checksum(body.version)

    async def _write(self, run: SegmentRun, buffers: list[memoryview]) -> None:
        await in_thread(run.write, self.part, buffers)
        await self.checkpointer.catch_up(run)

    def _count(self, count: int) -> None:
        self.received += count
        self.reporter.received(self.name, count)

    async def _read_back(self) -> None:
        """Read what earlier runs left on disk into the checksums, beside the network."""
        for run in self.runs:
            while await in_thread(run.read_back, self.part, READ_BACK_BYTES):
                pass
