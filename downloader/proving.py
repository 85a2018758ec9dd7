"""Transfers the files of one task and proves them, again where the disk cannot be trusted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from downloader.concurrency import in_stoppable_thread, in_thread, run_together
from downloader.errors import ObjectChanged, ObjectMissing, TransferError, VerificationFailed
from downloader.fetch_records import FetchOptions
from downloader.history import History
from downloader.progress import Reporter
from downloader.publish import ManifestFile, ResultDirectory
from downloader.reading import crc64_of_file
from downloader.renewal import LinkRenewal
from downloader.task_result import PlannedObject
from downloader.transfer import (
    Checkpoints,
    Link,
    SyncBatch,
    Transferred,
    insist_on_version,
    transfer_file,
)
from downloader.transfer.part_file import PartFile
from downloader.units import listed
from downloader.verify import bgzf, check_result
from state import AsyncStore, Checkpoint, Phase, StateStore

__all__ = ["MAX_AT_WORK", "Proved", "Proving"]

MAX_AT_WORK = 128  # files that are on their way or wait to be synced; each is open
SETTLED_SECONDS = 10.0  # a file that is older than the last one by that much is asked for again
MAX_ROUNDS = 3  # of transfers, where objects are replaced while others come
MAX_ASKED = 16  # files that are asked for at once
MAX_PROOFS = 2  # tries to verify, where fetching something again may mend it


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """Every file is on disk, is the store's, and has passed its checks."""

    files: tuple[ManifestFile, ...]  # in the order of their objects
    identities: Mapping[str, tuple[int, int]]  # device and inode, by the files' names
    warnings: Sequence[str]
    received_bytes: int
    resumed_bytes: int  # on disk from earlier runs
    transfer_seconds: float


class Proving:
    """Brings the objects of one task into its partial directory, once for `prove`."""

    def __init__(
        self,
        place: ResultDirectory,
        objects: Sequence[PlannedObject],
        file_ids: Sequence[int],
        *,
        task: int,
        renewal: LinkRenewal,
        store: AsyncStore,
        session: aiohttp.ClientSession,
        history: History,
        options: FetchOptions,
        reporter: Reporter,
    ) -> None:
        self._place = place
        self._objects = objects
        self._file_ids = file_ids
        self._task = task
        self._renewal = renewal
        self._store = store
        self._session = session
        self._history = history
        self._options = options
        self._reporter = reporter
        self._received_bytes = 0
        self._resumed_bytes = 0
        self._transfer_seconds = 0.0

    async def prove(self) -> Proved:
        """Transfer and check, once more where what is on disk cannot be trusted.

        Raises:
            VerificationFailed: the files are not usable; where they are not the store's either,
                the next run begins anew with them.
            TransferError, DiskError: as their names say; what was received is kept.
        """
        for proof in range(1, MAX_PROOFS + 1):
            arrived = await self._transferred(is_first=proof == 1)
            try:
                return self._proved(arrived, await self._checked())
            except VerificationFailed as error:
                doubtful = await self._doubtful(arrived.files)
                is_last = proof == MAX_PROOFS
                await self._forget(doubtful if is_last else self._unconfirmed(arrived, doubtful))
                if not doubtful and not is_last and await self._replaced(arrived, [*arrived.files]):
                    continue
                if not doubtful:
                    return self._proved(arrived, await self._checked_once_more())
                if is_last:
                    raise VerificationFailed(
                        f"{error} It came {MAX_PROOFS} times, and nothing was published; the same "
                        f"command begins anew with {listed(doubtful)}"
                    ) from error
                self._reporter.note(f"{error} Fetching again: {listed(doubtful)}")
        raise AssertionError("the loop returns or raises")  # pragma: no cover

    def _proved(self, arrived: _Arrived, warnings: Sequence[str]) -> Proved:
        return Proved(
            files=tuple(arrived.files[one.name] for one in self._objects),
            identities=arrived.identities,
            warnings=warnings,
            received_bytes=self._received_bytes,
            resumed_bytes=self._resumed_bytes,
            transfer_seconds=self._transfer_seconds,
        )

    # Transfer.

    async def _transferred(self, *, is_first: bool) -> _Arrived:
        """Transfer every file, and add up what came; a second try resumes bytes of this run."""
        await self._history.enter(Phase.TRANSFERRING)
        began = time.monotonic()
        for number in range(MAX_ROUNDS):
            arrived = await self._side_by_side()
            self._received_bytes += arrived.received_bytes
            if is_first and number == 0:
                self._resumed_bytes = arrived.resumed_bytes
            if not await self._replaced(arrived, arrived.older_than_the_last(SETTLED_SECONDS)):
                break
        else:
            raise ObjectChanged(
                f"Files of the result were replaced in the store {MAX_ROUNDS} times while others "
                "of it came, so that they are not of one result; run the same command again when "
                "the platform has finished"
            )
        self._transfer_seconds += time.monotonic() - began
        await self._history.tell(
            "transferred", "Every file is on disk", received_bytes=self._received_bytes
        )
        return arrived

    async def _side_by_side(self) -> _Arrived:
        arrived = _Arrived()
        waiting = deque(zip(self._objects, self._file_ids, strict=True))
        connections = self._options.transfer.connections
        checkpoints = _TaskCheckpoints(
            self._store,
            await self._store.call(StateStore.load_checkpoints, self._task),
            is_more_coming=lambda: connections.in_use > 0,
        )
        paths = await self._part_paths()

        async def work() -> None:
            while waiting:
                one, file_id = waiting.popleft()
                kept = checkpoints.of(file_id)
                arrived.add(one, await self._transfer(one, paths[one.name], kept))
                self._reporter.file_done(one.name)

        workers = min(MAX_AT_WORK, len(self._objects))
        await run_together(work() for _ in range(workers))
        return arrived

    async def _replaced(self, arrived: _Arrived, names: Sequence[str]) -> set[str]:
        """Name those of the files that the store has in another version by now.

        While a large file comes, the platform may run the task again: then what came before is of
        another result than what came behind it, each of them whole.
        """
        waiting, replaced = deque(one for one in self._objects if one.name in {*names}), set()

        async def work() -> None:
            while waiting:
                one = waiting.popleft()
                file = arrived.files[one.name]
                try:
                    with _named(one.name):
                        await insist_on_version(
                            self._link(one),
                            etag=file.etag,
                            size=file.size,
                            session=self._session,
                            options=self._options.transfer,
                        )
                except ObjectChanged:
                    replaced.add(one.name)
                except ObjectMissing:
                    pass  # what was there is here, and nothing has come in its place

        await run_together(work() for _ in range(min(MAX_ASKED, len(waiting))))
        if replaced:
            self._reporter.note(
                f"Replaced in the store while others came, and fetched again: {listed(replaced)}"
            )
        return replaced

    def _link(self, one: PlannedObject) -> Link:
        return Link(one.url, lambda refused: self._renewal.renew(one, refused))

    async def _part_paths(self) -> Mapping[str, Path]:
        return await in_thread(self._place.part_paths, [one.name for one in self._objects])

    async def _transfer(
        self, one: PlannedObject, part_path: Path, checkpoints: Checkpoints
    ) -> Transferred:
        with _named(one.name):
            return await transfer_file(
                one.name,
                part_path=part_path,
                link=self._link(one),
                session=self._session,
                checkpoints=checkpoints,
                reporter=self._reporter,
                options=self._options.transfer,
                find_damage=bgzf.find_damage,
            )

    # Verify.

    async def _checked(self) -> list[str]:
        """Run the VCF checks in a thread; the reporter hears of them on the event loop."""
        await self._history.enter(Phase.VERIFYING)
        paths = await self._part_paths()
        loop, level = asyncio.get_running_loop(), self._options.verify
        warnings = await in_stoppable_thread(
            lambda stopped: check_result(
                paths,
                level=level,
                on_file=lambda name: _call_soon(loop, self._reporter.verifying, name),
                stopped=self._reporter.asked(stopped),
            )
        )
        for warning in warnings:
            self._reporter.note(f"Warning: {warning}")
        passed = "Every check has passed" if level != "off" else "No check was wanted"
        await self._history.tell("verified", passed, warnings=warnings, level=level)
        return warnings

    async def _checked_once_more(self) -> list[str]:
        """Check what is on disk as it is in the store.

        A disk that could not be read for a moment looks like a file that is wrong: htslib tells
        of both in the same way.
        """
        try:
            return await self._checked()
        except VerificationFailed as error:
            raise VerificationFailed(
                f"{error} Its bytes on disk are those of the store, so it is wrong there: "
                "tell the platform's support, naming the task id. Nothing was published; "
                f"the files are kept in {self._place.partial}"
            ) from error

    async def _doubtful(self, files: Mapping[str, ManifestFile]) -> set[str]:
        """Name the files that may be other than the store's: by no checksum, or by the disk's."""
        doubtful = set()
        paths = await self._part_paths()
        for name, one in files.items():
            on_disk = await crc64_of_file(paths[name], on_read=lambda _: self._reporter.alive())
            if not one.crc64_confirmed or str(on_disk) != one.crc64ecma:
                doubtful.add(name)
        return doubtful

    def _unconfirmed(self, arrived: _Arrived, names: set[str]) -> set[str]:
        """Name those whose checksum the store has not told.

        Of the others, a transfer that reads them back finds out what the disk has changed.
        """
        return {name for name in names if not arrived.files[name].crc64_confirmed}

    async def _forget(self, names: set[str]) -> None:
        known = zip(self._objects, self._file_ids, strict=True)
        gone = [file_id for one, file_id in known if one.name in names]
        await self._store.call(StateStore.clear_checkpoints, gone)


class _Arrived:
    """What has arrived: of thousands of files, only what the manifest wants is kept."""

    def __init__(self) -> None:
        self.files: dict[str, ManifestFile] = {}
        self.identities: dict[str, tuple[int, int]] = {}
        self.received_bytes = 0
        self.resumed_bytes = 0
        self._ended_at: dict[str, float] = {}

    def older_than_the_last(self, seconds: float) -> Sequence[str]:
        """Name the files that had arrived so long before the last one did."""
        last = max(self._ended_at.values(), default=0.0)
        return [name for name, at in self._ended_at.items() if at < last - seconds]

    def add(self, one: PlannedObject, transferred: Transferred) -> None:
        self.received_bytes += transferred.received_bytes
        self.resumed_bytes += transferred.resumed_bytes
        self.identities[one.name] = transferred.identity
        self._ended_at[one.name] = time.monotonic()
        self.files[one.name] = ManifestFile(
            name=one.name,
            size=transferred.size,
            crc64ecma=str(transferred.crc64),
            crc64_confirmed=transferred.crc64_confirmed,
            etag=transferred.etag,
            bucket=one.bucket,
            key=one.key,
        )


class _TaskCheckpoints:
    """The checkpoints of a task's files, kept in the state: read once, written in batches."""

    def __init__(
        self,
        store: AsyncStore,
        known: dict[int, Checkpoint],
        *,
        is_more_coming: Callable[[], bool],
    ) -> None:
        self._store = store
        self._known = known
        self._batch = SyncBatch(self._save_all, is_more_coming=is_more_coming)

    def of(self, file_id: int) -> Checkpoints:
        known = self._known.pop(file_id, None)
        return _Checkpoints(self._store, file_id, known, self._batch)

    async def _save_all(self, checkpoints: Mapping[int, Checkpoint]) -> None:
        await self._store.call(StateStore.save_checkpoints, checkpoints)


class _Checkpoints:
    """A file's checkpoint, kept in the state."""

    def __init__(
        self, store: AsyncStore, file_id: int, known: Checkpoint | None, batch: SyncBatch
    ) -> None:
        self._store = store
        self._file_id = file_id
        self._known = known
        self._batch = batch

    async def load(self) -> Checkpoint | None:
        return self._known

    async def save(self, checkpoint: Checkpoint, *, previous: Checkpoint | None = None) -> None:
        await self._store.run(
            lambda store: store.save_checkpoint(self._file_id, checkpoint, previous=previous)
        )
        self._known = checkpoint

    async def finish(self, part: PartFile, checkpoint: Checkpoint) -> None:
        await self._batch.add(self._file_id, part, checkpoint)

    async def clear(self) -> None:
        self._known = None
        await self._store.call(StateStore.clear_checkpoint, self._file_id)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the file's name before an error of its transfer, if it is not in the sentence yet."""
    try:
        yield
    except TransferError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def _call_soon(
    loop: asyncio.AbstractEventLoop, function: Callable[[str], None], argument: str
) -> None:
    """Call on the event loop from another thread; a loop that has ended hears nothing."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, argument)
