"""Brings one object to disk, from the first version that comes whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp

from downloader.errors import DownloaderError, ObjectChanged, VerificationFailed
from downloader.progress import Reporter
from downloader.transfer.checkpointing import Checkpoints
from downloader.transfer.link import Link
from downloader.transfer.mending import FindDamage, Mending, Range
from downloader.transfer.object_source import ObjectSource
from downloader.transfer.one_version import OneVersion
from downloader.transfer.options import TransferOptions, Transferred
from downloader.transfer.ranged_get import Version
from downloader.transfer.restarts import CannotResume, Restarts

__all__ = ["insist_on_version", "transfer_file"]


async def transfer_file(
    name: str,
    *,
    part_path: Path,
    link: Link,
    session: aiohttp.ClientSession,
    checkpoints: Checkpoints,
    reporter: Reporter,
    options: TransferOptions,
    find_damage: FindDamage | None = None,
    same_version: bool = False,
) -> Transferred:
    """Bring one object into `part_path`, whole, synced, its CRC-64 equal to the store's.

    Goes on from the checkpoint as far as the part file bears it out. When the finished bytes do
    not give the store's checksum, what is wrong is fetched again if `find_damage` can tell it,
    else everything; and everything, if the object is replaced meanwhile: a bounded number of times.
    Cancelling it saves a last checkpoint.

    With `same_version` it is the checkpoint's version that comes, or none.

    Raises:
        VerificationFailed: the checksum was wrong each time; nothing of it is believed later.
        ObjectChanged: the object was replaced again and again, or is not the same version.
        TransferError, DiskError: as their names say; the checkpoint is kept.
    """
    received = 0
    resumed: int | None = None  # what the first of several tries with the same bytes has found
    mending = Mending(name, find_damage=find_damage, reporter=reporter)
    restarts = Restarts(name, patience=options.patience(), reporter=reporter)
    while True:
        version = OneVersion(
            name,
            part_path=part_path,
            source=ObjectSource(link, session, rules=options.rules, slow_down=options.slow_down),
            checkpoints=checkpoints,
            reporter=reporter,
            options=options,
        )
        try:
            done = await version.bring(received_before=received)
        except (ObjectChanged, VerificationFailed, CannotResume) as error:
            if same_version and isinstance(error, ObjectChanged):
                raise
            received += version.received
            if wrong := await _wrong_ranges(error, mending, version, part_path):
                await version.take_back(wrong)
                resumed = version.resumed if resumed is None else resumed
                continue
            if same_version and version.has_etag:
                await version.take_back([(0, version.size)])
            else:
                await version.throw_away()
            resumed = None
            await restarts.count(error, received=version.received)
        else:
            return done if resumed is None else replace(done, resumed_bytes=resumed)


async def insist_on_version(
    link: Link,
    *,
    etag: str | None,
    size: int,
    session: aiohttp.ClientSession,
    options: TransferOptions,
) -> None:
    """Ask for one byte of an object of `size` bytes: its store has that very version still.

    Raises:
        ObjectChanged, ObjectMissing: it has not.
        TransferError: as its name says.
    """
    source = ObjectSource(link, session, rules=options.rules, slow_down=options.slow_down)
    version = Version(etag=etag, size=size, crc64=None)
    patience = options.patience(leave_alone=source.leave_alone)
    last = max(0, size - 1)
    while True:
        try:
            async with source.get(last, last + 1, version, road=options.straight_road):
                return
        except DownloaderError as error:
            if not error.retryable:
                raise
            await patience.wait(error)


async def _wrong_ranges(
    error: DownloaderError, mending: Mending, version: OneVersion, part_path: Path
) -> Sequence[Range]:
    """Return what of a version with a wrong checksum can be fetched again by itself."""
    if not isinstance(error, VerificationFailed) or not version.has_etag:
        return ()
    return await mending.ranges(part_path, version.size, str(error))
