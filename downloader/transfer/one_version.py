"""One try at bringing one version of an object: asked for, laid out, filled, proved.

The first ranged GET is the probe as well: its reply tells the version and the size, and its body
is the first segment's; a small object comes whole with it. From then on every request names that
version (`If-Match`), and a reply about another one is an error rather than a mixture.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from downloader.concurrency import in_thread, run_together
from downloader.errors import BadStoreReply, DownloaderError, VerificationFailed
from downloader.progress import Reporter
from downloader.transfer.checkpointing import (
    Checkpointer,
    Checkpoints,
    checkpoint_of,
    checkpoint_with,
    remembered_crc64,
)
from downloader.transfer.checksum import EMPTY_CRC64, combine_crc64
from downloader.transfer.file_turns import Turn
from downloader.transfer.filling import Filling
from downloader.transfer.first_step import FirstStep
from downloader.transfer.object_source import ObjectSource
from downloader.transfer.options import TransferOptions, Transferred
from downloader.transfer.part_file import PartFile, PartFileReplaced
from downloader.transfer.part_identity import identity_at
from downloader.transfer.plan import is_of_part_file, plan_segments, segments_without, usable
from downloader.transfer.ranged_get import Body, Version
from downloader.transfer.segment_run import SegmentRun
from downloader.transfer.straight_body import StraightBody
from state.records import Checkpoint

__all__ = ["OneVersion"]

READ_BACK_BYTES = 32 * 1024 * 1024  # read by one hop to the worker thread


class OneVersion:
    """One try at bringing one version of the object; `received` bytes came from the network."""

    def __init__(
        self,
        name: str,
        *,
        part_path: Path,
        source: ObjectSource,
        checkpoints: Checkpoints,
        reporter: Reporter,
        options: TransferOptions,
    ) -> None:
        self.received = 0
        self._name = name
        self._part_path = part_path
        self._source = source
        self._checkpoints = checkpoints
        self._reporter = reporter
        self._options = options
        self._checkpoint: Checkpoint | None = None  # what an earlier run has left, as far as usable
        self._is_of_part = False  # and is it of the very part file that is there
        self._is_new = False  # nothing at all is remembered of an earlier run
        self._may_be_straight = True  # as long as the store tells its versions apart
        self._turn: Turn | None = None
        self._size: int | None = None  # of the object, as far as it is known
        self._version: Version | None = None
        self._part: PartFile | None = None
        self._runs: list[SegmentRun] = []
        self._resumed = 0
        self._is_sized = False  # the reporter has heard of the file

    @property
    def resumed(self) -> int:
        """Bytes that an earlier run has left."""
        return self._resumed

    @property
    def has_etag(self) -> bool:
        """Tell whether parts of it can be fetched again: what tells versions apart is known."""
        return self._version is not None and self._version.etag is not None

    @property
    def size(self) -> int:
        """Bytes of the object, once its version is known."""
        return self._known_version.size

    @property
    def _known_version(self) -> Version:
        assert self._version is not None  # noqa: S101 - the first reply told it
        return self._version

    @property
    def _told_version(self) -> Version:
        """The version, with the checksum that the store has told, to an earlier run if not now."""
        version = self._known_version
        remembered = remembered_crc64(self._checkpoint)
        return version if version.crc64 is not None else replace(version, crc64=remembered)

    @property
    def _own_turn(self) -> Turn:
        assert self._turn is not None  # noqa: S101 - nothing is asked for without a connection
        return self._turn

    @property
    def _open_part(self) -> PartFile:
        assert self._part is not None  # noqa: S101 - opened before anything is filled
        return self._part

    async def bring(self, *, received_before: int) -> Transferred:
        """Bring it whole; its bytes are synced and remembered when this returns.

        Raises:
            VerificationFailed: the checksum of what is on disk is not the store's.
            DownloaderError: as its subclass says.
        """
        await self._recall()
        try:
            identity = await self._in_turns()
            transferred = self._proved(received_before, identity)
            if any(run.unsafe_bytes for run in self._runs):  # it came in one go
                checkpoint = checkpoint_of(self._told_version, self._runs, self._open_part)
                await self._checkpoints.finish(self._open_part, checkpoint)
        except PartFileReplaced:
            with contextlib.suppress(Exception):  # the first error is the one to be told
                await self._checkpoints.clear()
            raise
        else:
            return transferred
        finally:
            if self._part is not None:
                self._part.close()

    async def take_back(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Forget these ranges of what has arrived, durably: the next try fetches them again."""
        version, length = self._told_version, self._options.segment_size
        segments = segments_without(ranges, size=version.size, segment_size=length)
        part_id = await in_thread(self._sync)
        await self._checkpoints.save(checkpoint_with(version, segments, part_id=part_id))
        self._reporter.received(self._name, -(self._resumed + self.received))

    def _sync(self) -> str | None:
        with contextlib.closing(PartFile.open(self._part_path)) as part:
            part.sync()
            return part.part_id

    async def throw_away(self) -> None:
        """Forget the bytes and the checkpoint, the checkpoint first: it must not outlive them."""
        await self._checkpoints.clear()
        if self._is_sized:
            self._reporter.received(self._name, -(self._resumed + self.received))
        await in_thread(PartFile.remove, self._part_path)

    async def _recall(self) -> None:
        remembered = await self._checkpoints.load()
        self._is_new = remembered is None
        if remembered is not None:
            on_disk = await in_thread(PartFile.size_on_disk, self._part_path)
            part_id = await in_thread(identity_at, self._part_path)
            self._checkpoint = usable(remembered, on_disk)
            self._is_of_part = is_of_part_file(remembered, on_disk, part_id)
            self._size = self._checkpoint.size if self._checkpoint else None

    async def _in_turns(self) -> tuple[int, int]:
        """Transfer it by a connection that others may have in between."""
        connections, at_once = self._options.connections, self._options.first_length
        async with connections.of_a_file(left=self._bytes_left, brief_bytes=at_once) as turn:
            self._turn = turn
            return await self._transferred()

    def _bytes_left(self) -> int:
        """Return how many bytes are known to be still to come."""
        if self._size is None:
            return 0
        here = self._checkpoint.safe_bytes if self._checkpoint else 0
        return max(0, self._size - here - self.received)

    async def _transferred(self) -> tuple[int, int]:
        """Bring every byte to the part file; return the file's device and inode."""
        async with contextlib.AsyncExitStack() as replies:
            body = await self._first_reply(replies)
            if isinstance(body, FirstStep):
                if body.identity is not None:
                    return body.identity
                if body.rest is None:
                    await replies.aclose()  # or the connection that broke would stay to the end
                await self._fill_and_save(body.rest)
            else:
                await self._prepare(body)
                await self._fill_and_save(body)
        return await in_thread(self._open_part.confirm, self._known_version.size)

    # The first reply.

    def _first_range(self) -> tuple[int, int, Version | None]:
        """Return the first missing range, or that of a byte that is here already."""
        checkpoint = self._checkpoint
        if checkpoint is None:
            return 0, self._options.first_length, None
        version = Version(etag=checkpoint.etag, size=checkpoint.size, crc64=None)
        missing = next((one for one in checkpoint.segments if not one.is_complete), None)
        if missing is None:
            return max(0, checkpoint.size - 1), max(1, checkpoint.size), version
        return missing.position, missing.stop, version

    async def _first_reply(
        self, replies: contextlib.AsyncExitStack
    ) -> Body | StraightBody | FirstStep:
        """Return the first reply, of a small object with the step that has brought it."""
        start, stop, version = self._first_range()
        patience = self._options.patience(leave_alone=self._source.leave_alone)
        while True:
            try:
                reply = await self._asked_first(replies, start, stop, version)
            except DownloaderError as error:
                if not error.retryable:
                    raise
                async with self._own_turn.away():
                    await patience.wait(error)
                continue
            if isinstance(reply, FirstStep):
                return reply
            self._size = size = reply.version.size
            if not self._is_believed(reply.version):
                await replies.aclose()
                self._begin_anew()
                start, stop = 0, min(self._options.first_length, size)
                continue
            if self._own_turn.is_brief and not self._own_turn.is_small:
                await replies.aclose()
                await self._own_turn.again()
                continue
            if reply.version.etag is not None or reply.stop == size:
                return reply
            # Without an ETag no two replies can be joined: it must be one that has everything.
            self._may_be_straight = False
            await replies.aclose()
            if stop >= size:
                async with self._own_turn.away():
                    await patience.wait(BadStoreReply("The store gives no ETag, and parts only"))
            stop = size

    def _is_believed(self, version: Version) -> bool:
        """Tell whether the checkpoint can be gone on from.

        It may be of another part file than the one that is there. Only a checksum of the whole
        object finds out what is not as it says, or that the file was merely moved to another disk.
        """
        crc64 = version.crc64 if version.crc64 is not None else remembered_crc64(self._checkpoint)
        return self._checkpoint is None or self._is_of_part or crc64 is not None

    def _begin_anew(self) -> None:
        self._checkpoint = None
        self._reporter.note(
            f"{self._name}: the part file is not the one that earlier runs have left, and the "
            "store tells no checksum to prove it by; starting this file again"
        )

    async def _asked_first(
        self, replies: contextlib.AsyncExitStack, start: int, stop: int, version: Version | None
    ) -> Body | StraightBody | FirstStep:
        road = self._options.straight_road if self._may_be_straight else None
        if road is None or not self._is_new:
            get = self._source.get(start, stop, version, road=road, turn=self._turn)
            return await replies.enter_async_context(get)
        step = FirstStep(self._part_path, self._options)
        step.watch(self._sized, self._count)
        get = self._source.get(start, stop, version, road=road, then=step.take, turn=self._turn)
        try:
            try:
                body = await replies.enter_async_context(get)
            finally:
                self._take_over(step)
        except asyncio.CancelledError:
            if self._runs:
                with contextlib.suppress(Exception):
                    await self._checkpointer().save()
            raise
        return body if step.run is None else step

    def _take_over(self, step: FirstStep) -> None:
        """Take what a first step has made; its part file is closed with everything else."""
        if self._part is not None and self._part is not step.part:
            self._part.close()
        step.end(self._sized, self._count)
        self._part = step.part
        if step.run is not None and step.body is not None:
            self._version = step.body.version
            self._runs = [step.run]

    def _sized(self, size: int) -> None:
        if not self._is_sized:
            self._is_sized = True
            self._reporter.file_sized(self._name, size, resumed=self._resumed)

    # Prepare, fill, prove.

    async def _prepare(self, body: Body | StraightBody) -> None:
        """Open and reserve the part file and lay out the segments."""
        self._version = body.version
        if self._checkpoint is None and not self._is_new:
            await self._checkpoints.clear()
        size = body.version.size
        await in_thread(self._make_part, size)
        segments = (
            self._checkpoint.segments
            if self._checkpoint
            else plan_segments(
                size,
                segment_size=self._options.segment_size,
                connections=self._options.segments,
                probed=body.stop,
            )
        )
        self._runs = [SegmentRun(segment) for segment in segments]
        self._resumed = self._checkpoint.safe_bytes if self._checkpoint else 0
        self._sized(size)

    def _make_part(self, size: int) -> None:
        # Kept here, and not by whoever waits: a cancelled waiter would lose the descriptor.
        self._part = PartFile.open(self._part_path, anew=self._checkpoint is None)
        self._part.reserve(size, keep_free=self._options.min_free_space)

    def _checkpointer(self) -> Checkpointer:
        return Checkpointer(
            self._checkpoints,
            version=self._told_version,
            part=self._open_part,
            runs=self._runs,
        )

    async def _fill_and_save(self, body: Body | StraightBody | None) -> None:
        """Fill every segment, with checkpoints at a steady pace and a last one at any end."""
        checkpointer = self._checkpointer()
        filled = asyncio.Event()

        async def fill() -> None:
            await self._fill(body, checkpointer)
            self._own_turn.give_back()  # what is left to do is between the disk and this program
            filled.set()

        try:
            await run_together([fill(), self._read_back(), checkpointer.keep_saving(filled)])
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to be told
                await checkpointer.save()
            raise
        await checkpointer.save()

    async def _fill(self, body: Body | StraightBody | None, checkpointer: Checkpointer) -> None:
        filling = Filling(
            self._name,
            source=self._source,
            version=self._known_version,
            part=self._open_part,
            runs=self._runs,
            checkpointer=checkpointer,
            reporter=self._reporter,
            options=self._options,
            turn=self._own_turn,
            count=self._count,
        )
        try:
            await filling.fill(body)
        finally:
            self._version = filling.version
            checkpointer.learn_checksum(self._told_version.crc64)

    def _count(self, count: int) -> None:
        self.received += count
        self._reporter.received(self._name, count)

    async def _read_back(self) -> None:
        """Read what earlier runs left on disk into the checksums, beside the network."""
        for run in tuple(self._runs):  # one that is cut off another holds nothing of them
            while await in_thread(run.read_back, self._open_part, READ_BACK_BYTES):
                self._reporter.alive()

    def _proved(self, received_before: int, identity: tuple[int, int]) -> Transferred:
        """Hold the checksum of what is on disk against the store's."""
        version, crc64 = self._told_version, EMPTY_CRC64
        if not all(run.is_complete for run in self._runs):
            # A fault of this program. Not every store tells a checksum that would find it out.
            raise AssertionError(f"{self._name}: a segment was forgotten; nothing was published")
        for run in self._runs:
            crc64 = combine_crc64(crc64, run.crc64, run.stop - run.start)
        if version.crc64 not in (None, crc64):
            raise VerificationFailed(
                f"the CRC-64 of the bytes on disk is {crc64}, the store's is {version.crc64}"
            )
        return Transferred(
            etag=version.etag,
            size=version.size,
            crc64=crc64,
            crc64_confirmed=version.crc64 is not None,
            resumed_bytes=self._resumed,
            received_bytes=received_before + self.received,
            identity=identity,
        )
