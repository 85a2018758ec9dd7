"""Small files that have come whole: synced side by side, remembered in one transaction.

Each is synced by itself, so that an error of the disk is told of the file that it befell; the
file system joins the syncs that run at the same time, and the state its writes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from downloader.concurrency import in_thread, outlasting
from downloader.errors import DiskError, as_disk_error
from downloader.syncing import sync_names
from downloader.transfer.part_file import PartFile
from state.records import Checkpoint

__all__ = ["SyncBatch"]

SIDE_BY_SIDE = 8  # syncs at a time: the journal joins them
WORTH_A_THREAD = 8  # syncs: a hop to a thread costs about as much as one of them
GATHER_SECONDS = 0.05  # from one batch's beginning to the next one's
LOOK_SECONDS = 0.01


@dataclass(slots=True)
class _Arrival:
    file_id: int
    part: PartFile
    checkpoint: Checkpoint
    settled: asyncio.Future[None]


class SyncBatch:
    """What arrives while one batch is synced is the next batch; `save` keeps many checkpoints."""

    def __init__(
        self,
        save: Callable[[Mapping[int, Checkpoint]], Awaitable[None]],
        *,
        is_more_coming: Callable[[], bool],
    ) -> None:
        self._save = save
        self._is_more_coming = is_more_coming
        self._arrived: list[_Arrival] = []
        self._working: asyncio.Task[None] | None = None

    async def add(self, file_id: int, part: PartFile, checkpoint: Checkpoint) -> None:
        """Return once the file is synced, closed, and its checkpoint is saved.

        A caller who is cancelled is not waited for, but his file is, before it is closed.

        Raises:
            DiskError: the file, or its name, could not be synced; nothing of it is remembered.
            StateError: the checkpoints could not be saved.
        """
        settled = asyncio.get_running_loop().create_future()
        self._arrived.append(_Arrival(file_id, part, checkpoint, settled))
        if self._working is None:
            self._working = asyncio.ensure_future(self._work())
        await outlasting(settled)

    async def _work(self) -> None:
        while self._arrived:
            batch, self._arrived = self._arrived, []
            began = time.monotonic()
            await self._keep(batch)
            await self._gather(began + GATHER_SECONDS)
        self._working = None

    async def _gather(self, until: float) -> None:
        """Wait for more that can be synced together, unless no more is coming."""
        while time.monotonic() < until and self._is_more_coming():  # noqa: ASYNC110 - of files that end
            await asyncio.sleep(LOOK_SECONDS)

    async def _keep(self, batch: Sequence[_Arrival]) -> None:
        count = min(SIDE_BY_SIDE, -(-len(batch) // WORTH_A_THREAD))
        shares = [batch[first::count] for first in range(count)]
        try:
            outcomes = await asyncio.gather(*(in_thread(_synced, share) for share in shares))
            await in_thread(_sync_names, {path for _, paths in outcomes for path in paths})
            failed = {file_id: error for errors, _ in outcomes for file_id, error in errors.items()}
            good = [one for one in batch if one.file_id not in failed]
            await self._save({one.file_id: one.checkpoint for one in good})
        except Exception as error:  # noqa: BLE001 - whoever waits raises it
            for one in batch:
                one.settled.set_exception(error)
            return
        for one in batch:
            if one.file_id in failed:
                one.settled.set_exception(failed[one.file_id])
            else:
                one.settled.set_result(None)


def _sync_names(directories: Iterable[Path]) -> None:
    for directory in directories:
        with as_disk_error(directory, "synced"):
            sync_names([directory])


def _synced(share: Sequence[_Arrival]) -> tuple[dict[int, DiskError], set[Path]]:
    """Sync the files; return the errors by the files' ids, and whose names are to be synced."""
    errors: dict[int, DiskError] = {}
    directories: set[Path] = set()
    for one in share:
        try:
            one.part.sync(names=directories)
        except DiskError as error:
            errors[one.file_id] = error
        one.part.close()
    return errors, directories
