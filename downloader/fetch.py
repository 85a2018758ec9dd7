"""The story of one task: ask, plan, transfer, verify, publish, record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from downloader.concurrency import beside, in_thread
from downloader.errors import TaskCancelled, VerificationFailed
from downloader.fetch_records import FetchOptions, FetchReport, FollowedFailure
from downloader.history import History
from downloader.holding import claim_or_follow, keep_lease
from downloader.polling import wait_for_result
from downloader.progress import PlannedFile, Reporter
from downloader.proving import Proved, Proving
from downloader.publish import Manifest, ResultDirectory
from downloader.renewal import LinkRenewal, LinkSource
from downloader.task_result import PlannedObject, plan_objects, valid_task_id
from downloader.units import counted, listed
from state import AsyncStore, Phase, StateError, StateStore, Task, current_owner

__all__ = ["NOT_ASKED", "FetchOptions", "FetchReport", "FollowedFailure", "fetch_task"]

NOT_ASKED = object()  # stands for a result that nobody has asked the platform for yet


async def fetch_task(
    task_id: str,
    dest: Path,
    *,
    api: LinkSource,
    store: AsyncStore,
    session: aiohttp.ClientSession,
    options: FetchOptions | None = None,
    reporter: Reporter | None = None,
    known_result: object = NOT_ASKED,
    owner: str | None = None,
) -> FetchReport:
    """Bring every file of a task to `dest/task_id`, verified; running it again moves no bytes.

    Waits until the task is finished. Whatever ends it early, what has been received stays in
    `dest/task_id.partial` and the next run goes on from there. While another process fetches the
    same task with the same state, its progress is followed and its outcome is ours.

    Whoever has just asked the platform gives the `known_result` of a task that is SUCCESS. With an
    `owner` the lease is that owner's, who renews it and gives it back.

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
        known_result=known_result,
        owner=owner,
    )
    return await fetch.run()


def _place_of(task_id: str, dest: Path) -> ResultDirectory:
    return ResultDirectory(dest.absolute(), valid_task_id(task_id))


class _Fetch:
    def __init__(
        self,
        place: ResultDirectory,
        *,
        api: LinkSource,
        store: AsyncStore,
        session: aiohttp.ClientSession,
        options: FetchOptions,
        reporter: Reporter,
        known_result: object,
        owner: str | None,
    ) -> None:
        self._place = place
        self._api = api
        self._store = store
        self._session = session
        self._options = options
        self._reporter = reporter
        self._known_result = known_result
        self._owner = owner
        self._began = time.monotonic()

    async def run(self) -> FetchReport:
        try:
            task = await self._remembered()
            owner = self._owner or current_owner()
            try:
                return await self._as_holder_or_follower(task, owner)
            except TaskCancelled:
                # It went on for a moment, and may have entered its next phase.
                await self._store.run(lambda store: store.agenda.confirm_cancelled(task.id))
                raise
            finally:
                # Also when it was cancelled while it claimed the task: the claim is carried out.
                if self._owner is None:
                    with contextlib.suppress(StateError):
                        await self._store.call(StateStore.release, task.id, owner)
        finally:
            self._reporter.finished()

    async def _remembered(self) -> Task:
        """Return the task's record; who holds its lease already has made it, or it was removed."""
        place = (self._place.task_id, str(self._place.dest))
        if self._owner is None:
            await in_thread(self._place.check_writable)
            return await self._store.call(StateStore.ensure_task, *place)
        found = await self._store.call(StateStore.find_tasks, *place)
        if not found:
            raise TaskCancelled(f"Task {self._place.task_id} was removed before it was fetched")
        await in_thread(self._place.check_writable)
        return found[0]

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
        history = History(task, store=self._store)
        async with self._lease_kept(task, owner), history.with_its_end():
            return await self._if_published(task, history) or await self._fetched(task, history)

    def _lease_kept(self, task: Task, owner: str) -> contextlib.AbstractAsyncContextManager[None]:
        if self._owner is not None:
            return contextlib.nullcontext()
        return beside(keep_lease(task, store=self._store, owner=owner))

    async def _if_published(self, task: Task, history: History) -> FetchReport | None:
        manifest = await self._published_whole(history)
        if manifest is None:
            return None
        await in_thread(self._place.remove_if_bare)  # as a power loss may have left it
        now = await self._store.call(StateStore.get_task, task.id)
        if now.phase is not Phase.PUBLISHED:  # as after a crash behind the rename
            await self._record_published(manifest, history)
        return self._report(manifest)

    async def _fetched(self, task: Task, history: History) -> FetchReport:
        await history.enter(Phase.WAITING, told=("started", f"Fetching into {self._place.final}"))
        # The result itself is let go: thousands of links are long.
        objects = plan_objects(
            await self._result(task, history), rules=self._options.transfer.rules
        )
        file_ids = await self._planned(task, objects, history)
        with self._place.held(await self._store.call(StateStore.identity)):
            # A process with another state may have published it while the platform was asked.
            if (report := await self._if_published(task, history)) is not None:
                await in_thread(self._place.remove_if_empty)
                return report
            proved = await self._proving(task, objects, file_ids, history).prove()
            del objects, file_ids  # thousands of links are long, and the manifest is longer
            return self._report(await self._publish(proved, history), proved)

    # Ask and plan.

    async def _result(self, task: Task, history: History) -> object:
        if self._known_result is not NOT_ASKED:
            result, self._known_result = self._known_result, None  # thousands of links are long
            return result
        heard: str | None = None

        async def record(status: str) -> None:
            nonlocal heard
            await self._store.call(StateStore.record_poll, task.id, status)
            if status != heard:
                await history.tell("status", f"The platform says {status}")
            heard = status

        return await wait_for_result(
            self._place.task_id,
            api=self._api,
            options=self._options.poll,
            reporter=self._reporter,
            record=record,
        )

    async def _planned(
        self, task: Task, objects: Sequence[PlannedObject], history: History
    ) -> list[int]:
        """Remember the files, and return their ids in the state, in their order."""
        files = await self._store.call(StateStore.save_plan, task.id, objects)
        self._reporter.planned([PlannedFile(file.name, file.size) for file in files])
        verb = "is" if len(files) == 1 else "are"
        await history.tell(
            "planned", f"{counted(len(files), 'file')} {verb} to come", files=len(files)
        )
        return [file.id for file in files]

    # Transfer and verify.

    def _proving(
        self,
        task: Task,
        objects: Sequence[PlannedObject],
        file_ids: Sequence[int],
        history: History,
    ) -> Proving:
        renewal = LinkRenewal(
            self._place.task_id,
            api=self._api,
            rules=self._options.transfer.rules,
            reporter=self._reporter,
        )
        return Proving(
            self._place,
            objects,
            file_ids,
            task=task.id,
            renewal=renewal,
            store=self._store,
            session=self._session,
            history=history,
            options=self._options,
            reporter=self._reporter,
        )

    # Publish and record.

    async def _publish(self, proved: Proved, history: History) -> Manifest:
        manifest = Manifest(
            task_id=self._place.task_id,
            published_at=datetime.now(UTC).isoformat(timespec="seconds"),
            files=proved.files,
            warnings=tuple(proved.warnings),
            verified=self._options.verify,
        )
        await in_thread(
            self._place.publish,
            manifest,
            checksums=self._options.checksums,
            identity_of=proved.identities.__getitem__,
        )
        await self._record_published(manifest, history)
        return manifest

    async def _published_whole(self, history: History) -> Manifest | None:
        """Return the manifest if the result is there; a damaged one is set aside."""
        try:
            manifest = await in_thread(self._place.published)
            wrong = await in_thread(self._place.missing_or_short, manifest) if manifest else []
        except VerificationFailed as error:  # of the manifest itself
            found = str(error)
        else:
            if not wrong:
                return manifest
            found = f"The published result lacked {listed(wrong)} or had it in another size"
        aside = await in_thread(self._place.set_aside)
        sentence = f"{found}; the result was renamed to {aside}, and the task is fetched again"
        self._reporter.note(sentence)
        await history.tell("damaged", sentence)
        return None

    async def _record_published(self, manifest: Manifest, history: History) -> None:
        size = sum(file.size for file in manifest.files)
        told = ("published", f"Published as {self._place.final}")
        await history.enter(Phase.PUBLISHED, told=told, bytes=size)

    async def _as_it_ended(self, ended: Task) -> FetchReport:
        """Return what another process has published, or raise what it met."""
        manifest = await in_thread(self._place.published)
        if ended.phase is Phase.PUBLISHED and manifest is not None:
            return self._report(manifest)
        message = ended.message or "it was published and is not there any more"
        raise FollowedFailure(
            f"The process that was fetching this task has failed: {message}",
            exit_code=ended.exit_code or 1,
        )

    def _report(self, manifest: Manifest, proved: Proved | None = None) -> FetchReport:
        return FetchReport(
            task_id=self._place.task_id,
            path=self._place.final,
            files=manifest.files,
            warnings=manifest.warnings,
            already_published=proved is None,
            received_bytes=proved.received_bytes if proved else 0,
            resumed_bytes=proved.resumed_bytes if proved else 0,
            transfer_seconds=proved.transfer_seconds if proved else 0.0,
            seconds=time.monotonic() - self._began,
        )
