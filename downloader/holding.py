"""One process at a time fetches a task; another one that is asked to follows it to its end."""

from __future__ import annotations

import asyncio
import time

from downloader.errors import DestinationTaken, TaskCancelled, TaskNotReady
from downloader.progress import PlannedFile, Reporter
from downloader.retry import pause
from state import (
    AsyncStore,
    Phase,
    RecordMissing,
    StateError,
    StateStore,
    Task,
    describe_owner,
    is_held,
)

__all__ = ["HEARTBEAT_SECONDS", "LEASE_SECONDS", "claim_or_follow", "keep_lease", "why_lost"]

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 15.0
LOOK_SECONDS = 1.0  # between two looks at what the other process has done


async def claim_or_follow(
    task: Task, *, store: AsyncStore, owner: str, reporter: Reporter, patience: float
) -> Task | None:
    """Return None once the task is ours, or the task as another process has ended it.

    `patience` is in seconds, for a process that itself still waits for the task's result.

    Raises:
        TaskNotReady: it has waited for longer than that.
    """
    give_up_at = time.monotonic() + patience
    while await store.call(StateStore.acquire, task.id, owner, LEASE_SECONDS) is None:
        following = _Following(task, store=store, reporter=reporter, give_up_at=give_up_at)
        ended = await following.to_the_end()
        if ended is not None:
            return ended
    return None


async def keep_lease(task: Task, *, store: AsyncStore, owner: str) -> None:
    """Renew the lease until cancelled.

    Raises:
        DestinationTaken: the lease is somebody else's by now.
        TaskCancelled: the task was cancelled or removed.
        StateError: it could not be renewed in time.
    """
    renewed_at = time.monotonic()
    while True:
        await asyncio.sleep(HEARTBEAT_SECONDS)
        try:
            is_ours = await store.call(StateStore.renew, task.id, owner, LEASE_SECONDS)
        except StateError:  # a lock that is held for seconds, a full disk: both may pass
            if time.monotonic() - renewed_at > LEASE_SECONDS - HEARTBEAT_SECONDS:
                raise
            continue
        if not is_ours:
            raise await why_lost(task, store=store)
        renewed_at = time.monotonic()


async def why_lost(task: Task, *, store: AsyncStore) -> DestinationTaken | TaskCancelled:
    """Return the error of a fetch whose lease is its own no more."""
    try:
        now = await store.call(StateStore.get_task, task.id)
    except RecordMissing:
        return TaskCancelled(
            f"Task {task.task_id} was removed while it was being fetched; fetching it again "
            "begins anew"
        )
    if await _is_cancelled(now, store=store):
        return TaskCancelled(
            f"Task {task.task_id} was cancelled while it was being fetched; what was received is "
            "kept, and the same command goes on"
        )
    return DestinationTaken(
        f"Another process has taken over task {task.task_id}, since this one did not "
        "renew its claim in time; what was received is kept, and the same command "
        "follows that process"
    )


async def _is_cancelled(now: Task, *, store: AsyncStore) -> bool:
    """Tell whether a task was cancelled, and not taken over.

    Whoever fetched it may have entered a phase after that. So the history tells: whoever takes a
    task over begins it there.
    """
    if now.phase in (Phase.CANCELLED, Phase.PUBLISHED) or now.acquired_by is not None:
        return now.phase is Phase.CANCELLED
    history = await store.call(StateStore.list_events, now.id)
    turns = [event.kind for event in history if event.kind in ("started", "cancelled")]
    return turns[-1:] == ["cancelled"]


class _Following:
    """Shows what another process does with a task, as far as it is in the state."""

    def __init__(
        self, task: Task, *, store: AsyncStore, reporter: Reporter, give_up_at: float
    ) -> None:
        self._task = task
        self._give_up_at = give_up_at
        self._store = store
        self._reporter = reporter
        self._shown: dict[str, int] = {}
        self._is_planned = False

    async def to_the_end(self) -> Task | None:
        """Return the task once it was published or has failed; None if it was left undone."""
        first = now = await self._store.call(StateStore.get_task, self._task.id)
        if is_held(first):
            holder = describe_owner(first.acquired_by or "")
            self._reporter.note(f"{holder} is fetching this task already; following it")
        while is_held(now) and now.acquired_by == first.acquired_by:
            self._be_patient(now)
            await self._show_progress()
            await pause(LOOK_SECONDS)
            now = await self._store.call(StateStore.get_task, self._task.id)
        # A final phase that was there from the beginning is an earlier run's.
        has_ended = now.phase.is_final and now.updated_at != first.updated_at
        return now if has_ended else None

    def _be_patient(self, now: Task) -> None:
        """Give up where nothing comes yet; what is on its way is followed however long it takes."""
        is_waiting = now.phase is Phase.WAITING and now.status != "SUCCESS"
        if is_waiting and time.monotonic() >= self._give_up_at:
            heard = f"last heard {now.status}" if now.status else "has heard nothing"
            raise TaskNotReady(
                f"Task {now.task_id} has no result yet: {describe_owner(now.acquired_by or '')} "
                f"waits for it and {heard}; the same command looks again"
            )

    async def _show_progress(self) -> None:
        files = await self._store.call(StateStore.progress, self._task.id)
        if files and not self._is_planned:
            self._reporter.planned([PlannedFile(file.name, file.size) for file in files])
            self._is_planned = True
        for file in files:
            if file.size is not None and self._shown.get(file.name) != file.safe_bytes:
                self._show(file.name, file.size, file.safe_bytes)

    def _show(self, name: str, size: int, safe_bytes: int) -> None:
        if name not in self._shown:
            self._reporter.file_sized(name, size, resumed=safe_bytes)
        else:
            self._reporter.received(name, safe_bytes - self._shown[name])
        self._shown[name] = safe_bytes
        if safe_bytes == size:
            self._reporter.file_done(name)
