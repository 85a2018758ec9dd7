"""The story of one task: ask, plan, transfer, verify, publish, record."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from downloader.api import AsyncPrivateAPI
from downloader.concurrency import beside, in_stoppable_thread, in_thread, run_together
from downloader.errors import DownloaderError, TaskNotReady, TransferError, VerificationFailed
from downloader.holding import claim_or_follow, keep_lease
from downloader.polling import PollOptions, wait_for_result
from downloader.progress import PlannedFile, Reporter
from downloader.publish import Manifest, ManifestFile, ResultDirectory
from downloader.reading import crc64_of_file
from downloader.renewal import LinkRenewal
from downloader.task_result import PlannedObject, plan_objects, valid_task_id
from downloader.transfer import Link, TransferOptions, Transferred, transfer_file
from downloader.verify import Level, check_result
from state import (
    AsyncStore,
    Checkpoint,
    File,
    Phase,
    RecordMissing,
    StateError,
    StateStore,
    Task,
    current_owner,
)

__all__ = ["FetchOptions", "FetchReport", "FollowedFailure", "fetch_task"]

MAX_PROOFS = 2  # tries to verify, where fetching something again may mend it
SHOWN_NAMES = 3  # in one sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How a task is fetched; fetches that run side by side share one of these."""

    poll: PollOptions = field(default_factory=PollOptions)
    transfer: TransferOptions = field(default_factory=TransferOptions)
    file_slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(4))
    parallel_files: int = 4  # of one task; the slots bound those of all tasks
    verify: Level = "full"
    checksums: Sequence[str] = ()  # also write SHA256SUMS, MD5SUMS


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReport:
    """What a fetch has brought about: the task's files are in `path`, proved and whole."""

    task_id: str
    path: Path
    files: tuple[ManifestFile, ...]
    warnings: tuple[str, ...] = ()
    already_published: bool = False  # no byte was moved
    received_bytes: int = 0
    resumed_bytes: int = 0  # on disk from earlier runs
    transfer_seconds: float = 0.0  # without the waiting and the checks
    seconds: float = 0.0  # of the whole fetch

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def facts(self) -> dict[str, object]:
        """Return the report as plain JSON values."""
        return {
            "task_id": self.task_id,
            "path": str(self.path),
            "already_published": self.already_published,
            "size": self.size,
            "received_bytes": self.received_bytes,
            "resumed_bytes": self.resumed_bytes,
            "transfer_seconds": round(self.transfer_seconds, 3),
            "seconds": round(self.seconds, 3),
            "warnings": list(self.warnings),
            "files": [asdict(file) for file in self.files],
        }


class FollowedFailure(DownloaderError):
    """Another process was fetching the task, and it failed there."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


async def fetch_task(
    task_id: str,
    dest: Path,
    *,
    api: AsyncPrivateAPI,
    store: AsyncStore,
    session: aiohttp.ClientSession,
    options: FetchOptions | None = None,
    reporter: Reporter | None = None,
) -> FetchReport:
    """Bring every file of a task to `dest/task_id`, verified; running it again moves no bytes.

    Waits until the task is finished. Whatever ends it early, what has been received stays in
    `dest/task_id.partial` and the next run goes on from there. While another process fetches the
    same task with the same state, its progress is followed and its outcome is ours.

    Raises:
        DownloaderError: as its subclass says; it is also in the task's history, unless another
            process has the task.
        StateError: the state cannot be used.
    """
    fetch = _Fetch(
        _place_of(task_id, dest),
        api=api,
        store=store,
        session=session,
        options=options or FetchOptions(),
        reporter=reporter or Reporter(),
    )
    return await fetch.run()


def _place_of(task_id: str, dest: Path) -> ResultDirectory:
    return ResultDirectory(dest.absolute(), valid_task_id(task_id))


class _Fetch:
    def __init__(
        self,
        place: ResultDirectory,
        *,
        api: AsyncPrivateAPI,
        store: AsyncStore,
        session: aiohttp.ClientSession,
        options: FetchOptions,
        reporter: Reporter,
    ) -> None:
        self._place = place
        self._api = api
        self._store = store
        self._session = session
        self._options = options
        self._reporter = reporter
        self._began = time.monotonic()
        self._transfer_seconds = 0.0
        self._received_bytes = 0
        self._resumed_bytes = 0

    async def run(self) -> FetchReport:
        try:
            await in_thread(self._place.check_writable)
            task = await self._store.call(
                StateStore.ensure_task, self._place.task_id, str(self._place.dest)
            )
            owner = current_owner()
            try:
                return await self._as_holder_or_follower(task, owner)
            finally:
                # Also when it was cancelled while it claimed the task: the claim is carried out.
                with contextlib.suppress(StateError):
                    await self._store.call(StateStore.release, task.id, owner)
        finally:
            self._reporter.finished()

    async def _as_holder_or_follower(self, task: Task, owner: str) -> FetchReport:
        poll = self._options.poll
        ended = await claim_or_follow(
            task,
            store=self._store,
            owner=owner,
            reporter=self._reporter,
            patience=poll.deadline if poll.wait else 0.0,
        )
        if ended is not None:
            return await self._as_it_ended(ended)
        async with beside(keep_lease(task, store=self._store, owner=owner)), self._recorded(task):
            return await self._if_published(task) or await self._fetched(task)

    async def _if_published(self, task: Task) -> FetchReport | None:
        manifest = await self._published_whole(task)
        if manifest is None:
            return None
        now = await self._store.call(StateStore.get_task, task.id)
        if now.phase is not Phase.PUBLISHED:  # as after a crash behind the rename
            await self._record_published(task, manifest)
        return self._report(manifest, already_published=True)

    async def _fetched(self, task: Task) -> FetchReport:
        await self._store.call(StateStore.set_phase, task.id, Phase.WAITING)
        await self._tell(task, "started", f"Fetching into {self._place.final}")
        result = await self._result(task)
        objects = plan_objects(result, rules=self._options.transfer.rules)
        files = await self._plan(task, objects)
        with self._place.held():
            # A process with another state may have published it while the platform was asked.
            if (report := await self._if_published(task)) is not None:
                await in_thread(self._place.remove_if_empty)
                return report
            transferred, warnings = await self._prove(task, objects, files)
            return self._report(await self._publish(task, objects, transferred, warnings))

    # Ask and plan.

    async def _result(self, task: Task) -> object:
        heard: str | None = None

        async def record(status: str) -> None:
            nonlocal heard
            await self._store.call(StateStore.record_poll, task.id, status)
            if status != heard:
                await self._tell(task, "status", f"The platform says {status}")
            heard = status

        return await wait_for_result(
            self._place.task_id,
            api=self._api,
            options=self._options.poll,
            reporter=self._reporter,
            record=record,
        )

    async def _plan(self, task: Task, objects: Sequence[PlannedObject]) -> list[File]:
        files = await self._store.call(StateStore.save_plan, task.id, objects)
        self._reporter.planned([PlannedFile(file.name, file.size) for file in files])
        await self._tell(task, "planned", f"{len(files)} files are to come", files=len(files))
        return files

    # Transfer and verify.

    async def _prove(
        self, task: Task, objects: Sequence[PlannedObject], files: Sequence[File]
    ) -> tuple[dict[str, Transferred], list[str]]:
        """Transfer and check, once more where what is on disk cannot be trusted."""
        renewal = LinkRenewal(
            self._place.task_id,
            api=self._api,
            rules=self._options.transfer.rules,
            reporter=self._reporter,
        )
        for proof in range(1, MAX_PROOFS + 1):
            await self._store.call(StateStore.set_phase, task.id, Phase.TRANSFERRING)
            began = time.monotonic()
            transferred = await self._transfer(objects, files, renewal)
            self._transfer_seconds += time.monotonic() - began
            self._count(transferred, is_first=proof == 1)
            await self._tell(
                task, "transferred", "Every file is on disk", received_bytes=self._received_bytes
            )
            try:
                return transferred, await self._check(task, objects)
            except VerificationFailed as error:
                doubtful = await self._doubtful(transferred)
                await self._forget([file for file in files if file.name in doubtful])
                if not doubtful:
                    raise VerificationFailed(
                        f"{error} Its bytes on disk are those of the store, so it is wrong there: "
                        "tell the platform's support, naming the task id. Nothing was published; "
                        f"the files are kept in {self._place.partial}"
                    ) from error
                if proof == MAX_PROOFS:
                    raise VerificationFailed(
                        f"{error} It came {MAX_PROOFS} times, and nothing was published; the same "
                        f"command begins anew with {_some(doubtful)}"
                    ) from error
                self._reporter.note(f"{error} Fetching again: {_some(doubtful)}")
        raise AssertionError("the loop returns or raises")  # pragma: no cover

    def _count(self, transferred: Mapping[str, Transferred], *, is_first: bool) -> None:
        """Add up what came; what a second try finds on disk is of this run."""
        self._received_bytes += sum(one.received_bytes for one in transferred.values())
        if is_first:
            self._resumed_bytes = sum(one.resumed_bytes for one in transferred.values())

    async def _transfer(
        self, objects: Sequence[PlannedObject], files: Sequence[File], renewal: LinkRenewal
    ) -> dict[str, Transferred]:
        done: dict[str, Transferred] = {}
        waiting = deque(zip(objects, files, strict=True))

        async def work() -> None:
            while waiting:
                one, file = waiting.popleft()
                async with self._options.file_slots:
                    done[one.name] = await self._transfer_one(one, file, renewal)
                self._reporter.file_done(one.name)

        await run_together(work() for _ in range(min(self._options.parallel_files, len(objects))))
        return done

    async def _transfer_one(
        self, one: PlannedObject, file: File, renewal: LinkRenewal
    ) -> Transferred:
        part_path = await in_thread(self._place.part_path, one.name)
        with _named(one.name):
            return await transfer_file(
                one.name,
                part_path=part_path,
                link=Link(one.url, lambda refused: renewal.renew(one, refused)),
                session=self._session,
                checkpoints=_Checkpoints(self._store, file.id),
                reporter=self._reporter,
                options=self._options.transfer,
            )

    async def _check(self, task: Task, objects: Sequence[PlannedObject]) -> list[str]:
        """Run the VCF checks in a thread; the reporter hears of them on the event loop."""
        await self._store.call(StateStore.set_phase, task.id, Phase.VERIFYING)
        paths = {one.name: await in_thread(self._place.part_path, one.name) for one in objects}
        loop = asyncio.get_running_loop()
        warnings = await in_stoppable_thread(
            lambda stopped: check_result(
                paths,
                level=self._options.verify,
                on_file=lambda name: _call_soon(loop, self._reporter.verifying, name),
                stopped=stopped,
            )
        )
        for warning in warnings:
            self._reporter.note(f"Warning: {warning}")
        passed = (
            "Every check has passed" if self._options.verify != "off" else "No check was wanted"
        )
        await self._tell(task, "verified", passed, warnings=warnings, level=self._options.verify)
        return warnings

    async def _doubtful(self, transferred: Mapping[str, Transferred]) -> set[str]:
        """Name the files that may be other than the store's: by no checksum, or by the disk's."""
        doubtful = set()
        for name, one in transferred.items():
            on_disk = await crc64_of_file(await in_thread(self._place.part_path, name))
            if not one.crc64_confirmed or on_disk != one.crc64:
                doubtful.add(name)
        return doubtful

    async def _forget(self, files: Sequence[File]) -> None:
        for file in files:
            await self._store.call(StateStore.clear_checkpoint, file.id)

    # Publish and record.

    async def _publish(
        self,
        task: Task,
        objects: Sequence[PlannedObject],
        transferred: Mapping[str, Transferred],
        warnings: Sequence[str],
    ) -> Manifest:
        manifest = Manifest(
            task_id=self._place.task_id,
            published_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files=tuple(_manifest_file(one, transferred[one.name]) for one in objects),
            warnings=tuple(warnings),
            verified=self._options.verify,
        )
        await in_thread(self._place.publish, manifest, checksums=self._options.checksums)
        await self._record_published(task, manifest)
        return manifest

    async def _published_whole(self, task: Task) -> Manifest | None:
        """Return the manifest if the result is there; a damaged one is set aside."""
        try:
            manifest = await in_thread(self._place.published)
            wrong = await in_thread(self._place.missing_or_short, manifest) if manifest else []
        except VerificationFailed as error:  # of the manifest itself
            found = str(error)
        else:
            if not wrong:
                return manifest
            found = f"The published result lacked {_some(wrong)} or had it in another size"
        aside = await in_thread(self._place.set_aside)
        sentence = f"{found}; the result was renamed to {aside}, and the task is fetched again"
        self._reporter.note(sentence)
        await self._tell(task, "damaged", sentence)
        return None

    async def _record_published(self, task: Task, manifest: Manifest) -> None:
        await self._store.call(StateStore.set_phase, task.id, Phase.PUBLISHED)
        size = sum(file.size for file in manifest.files)
        await self._tell(task, "published", f"Published as {self._place.final}", bytes=size)

    @contextlib.asynccontextmanager
    async def _recorded(self, task: Task) -> AsyncIterator[None]:
        """Put the end into the task's history, if it is not the happy one."""
        try:
            yield
        except asyncio.CancelledError:
            with contextlib.suppress(StateError):
                await self._tell(task, "interrupted", "Interrupted; what was received is kept")
            raise
        except TaskNotReady as error:
            await self._record_end(task, Phase.WAITING, error)
            raise
        except (DownloaderError, StateError) as error:
            await self._record_end(task, Phase.FAILED, error)
            raise

    async def _record_end(
        self, task: Task, phase: Phase, error: DownloaderError | StateError
    ) -> None:
        message = str(error)
        with contextlib.suppress(StateError):  # the first error is the one to be told
            await self._store.call(
                StateStore.set_phase, task.id, phase, message=message, exit_code=error.exit_code
            )
            kind = "failed" if phase is Phase.FAILED else "not ready"
            await self._tell(task, kind, message, exit_code=error.exit_code)

    async def _as_it_ended(self, ended: Task) -> FetchReport:
        """Return what another process has published, or raise what it met."""
        manifest = await in_thread(self._place.published)
        if ended.phase is Phase.PUBLISHED and manifest is not None:
            return self._report(manifest, already_published=True)
        message = ended.message or "it was published and is not there any more"
        raise FollowedFailure(
            f"The process that was fetching this task has failed: {message}",
            exit_code=ended.exit_code or 1,
        )

    async def _tell(self, task: Task, kind: str, message: str, **facts: object) -> None:
        with contextlib.suppress(RecordMissing):  # removed meanwhile: no history to keep
            await self._store.run(lambda store: store.add_event(task.id, kind, message, **facts))

    def _report(self, manifest: Manifest, *, already_published: bool = False) -> FetchReport:
        return FetchReport(
            task_id=self._place.task_id,
            path=self._place.final,
            files=manifest.files,
            warnings=manifest.warnings,
            already_published=already_published,
            received_bytes=self._received_bytes,
            resumed_bytes=self._resumed_bytes,
            transfer_seconds=self._transfer_seconds,
            seconds=time.monotonic() - self._began,
        )


class _Checkpoints:
    """A file's checkpoint, kept in the state."""

    def __init__(self, store: AsyncStore, file_id: int) -> None:
        self._store = store
        self._file_id = file_id

    async def load(self) -> Checkpoint | None:
        return await self._store.call(StateStore.load_checkpoint, self._file_id)

    async def save(self, checkpoint: Checkpoint) -> None:
        await self._store.call(StateStore.save_checkpoint, self._file_id, checkpoint)

    async def clear(self) -> None:
        await self._store.call(StateStore.clear_checkpoint, self._file_id)


def _manifest_file(one: PlannedObject, transferred: Transferred) -> ManifestFile:
    return ManifestFile(
        name=one.name,
        size=transferred.size,
        crc64ecma=str(transferred.crc64),
        crc64_confirmed=transferred.crc64_confirmed,
        etag=transferred.etag,
        bucket=one.bucket,
        key=one.key,
    )


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the file's name before an error of its transfer, if it is not in the sentence yet."""
    try:
        yield
    except TransferError as error:
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def _some(names: Collection[str]) -> str:
    """Name the first three and count the others: a result may have thousands of files."""
    first, others = sorted(names)[:SHOWN_NAMES], len(names) - SHOWN_NAMES
    return ", ".join(first) + (f" and {others} more" if others > 0 else "")


def _call_soon(
    loop: asyncio.AbstractEventLoop, function: Callable[[str], None], argument: str
) -> None:
    """Call on the event loop from another thread; a loop that has ended hears nothing."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, argument)
