"""Makes received bytes durable at a steady pace: the data first, then the checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from downloader.concurrency import in_thread
from downloader.transfer.part_file import PartFile
from downloader.transfer.ranged_get import Version
from downloader.transfer.segment_run import SegmentRun
from state.records import Checkpoint, Segment

__all__ = [
    "Checkpointer",
    "Checkpoints",
    "checkpoint_of",
    "checkpoint_with",
    "crc64_in",
    "remembered_crc64",
]

MIB = 1024 * 1024
MAX_UNSAFE_BYTES = 8 * MIB  # of one segment, once the last checkpoint is a second old
MIN_SAVE_SECONDS, MAX_SAVE_SECONDS = 0.2, 1.0  # between two checkpoints
MAX_CRC64_DIGITS = 20


class Checkpoints(Protocol):
    """Where the transfer's checkpoint is kept between runs."""

    async def load(self) -> Checkpoint | None:
        """Return what was saved last, if anything."""
        ...

    async def save(self, checkpoint: Checkpoint, *, previous: Checkpoint | None = None) -> None:
        """Remember the checkpoint durably: when this returns, it survives a power loss.

        `previous` is what was saved last, if that is known: what is the same need not be written.
        """
        ...

    async def finish(self, part: PartFile, checkpoint: Checkpoint) -> None:
        """Sync a file that came in one go, and remember that it is whole.

        Others that have come meanwhile may be synced and remembered with it.
        """
        ...

    async def clear(self) -> None:
        """Forget the checkpoint durably."""
        ...


def checkpoint_of(version: Version, runs: Sequence[SegmentRun], part: PartFile) -> Checkpoint:
    """Return how far the segments have come, to be saved once the part file has been synced."""
    segments = tuple(run.snapshot() for run in runs)
    return checkpoint_with(version, segments, part_id=part.part_id)


def checkpoint_with(
    version: Version, segments: tuple[Segment, ...], *, part_id: str | None
) -> Checkpoint:
    """Return a checkpoint of the version, with the checksum that the store told of it."""
    told = None if version.crc64 is None else str(version.crc64)
    return Checkpoint(
        etag=version.etag, size=version.size, segments=segments, crc64=told, part_id=part_id
    )


def remembered_crc64(checkpoint: Checkpoint | None) -> int | None:
    """Return the checksum that the store told an earlier run; None if it told none."""
    return None if checkpoint is None else crc64_in(checkpoint.crc64)


def crc64_in(told: object) -> int | None:
    """Return a checksum that was written down; None if it is none, for it may be damaged."""
    if not isinstance(told, str) or not told.isascii() or not told.isdigit():
        return None
    return int(told) if len(told) <= MAX_CRC64_DIGITS else None


class Checkpointer:
    """Saves how far the segments of one version have come, never more than has been synced."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        version: Version,
        part: PartFile,
        runs: Sequence[SegmentRun],
    ) -> None:
        self._checkpoints = checkpoints
        self._version = version
        self._part = part
        self._runs = runs
        self._saving = asyncio.Lock()
        self._saved: Checkpoint | None = None
        self._last_save = time.monotonic()

    def learn_checksum(self, crc64: int | None) -> None:
        """Remember with the next checkpoint what the store has told meanwhile."""
        self._version = replace(self._version, crc64=crc64)

    async def keep_saving(self, filled: asyncio.Event) -> None:
        """Save checkpoints until everything is filled; a slow disk is asked less often."""
        interval = MIN_SAVE_SECONDS
        while not filled.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(filled.wait(), interval)
            began = time.monotonic()
            await self.save()
            took = time.monotonic() - began
            interval = min(MAX_SAVE_SECONDS, max(MIN_SAVE_SECONDS, 4 * took))

    async def catch_up(self, run: SegmentRun) -> None:
        """Return at once, or hold the segment up while too much of it is unsafe.

        A slow disk slows the network down, not the promises.
        """
        if self.is_behind(run):
            await self.save()

    def is_behind(self, run: SegmentRun) -> bool:
        """Tell whether so much of the segment is unsafe for so long that more must wait."""
        is_late = time.monotonic() - self._last_save > MAX_SAVE_SECONDS
        return is_late and run.unsafe_bytes > MAX_UNSAFE_BYTES

    async def save(self) -> None:
        """Sync the part file, then save how far it had come before the sync."""
        async with self._saving:
            if all(run.unsafe_bytes == 0 for run in self._runs):
                return
            self._last_save = time.monotonic()
            runs = tuple(self._runs)  # some may be cut in two meanwhile
            checkpoint = checkpoint_of(self._version, runs, self._part)
            await in_thread(self._part.sync)
            await self._checkpoints.save(checkpoint, previous=self._saved)
            self._saved = checkpoint
            for run, segment in zip(runs, checkpoint.segments, strict=True):
                run.safe_position = segment.position
