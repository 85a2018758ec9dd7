"""Brings one object to disk, from the first version that comes whole."""

from __future__ import annotations

from pathlib import Path

import aiohttp

from downloader.errors import ObjectChanged, VerificationFailed
from downloader.progress import Reporter
from downloader.transfer.checkpointing import Checkpoints
from downloader.transfer.link import Link
from downloader.transfer.object_source import ObjectSource
from downloader.transfer.one_version import OneVersion
from downloader.transfer.options import TransferOptions, Transferred
from downloader.transfer.restarts import CannotResume, Restarts

__all__ = ["transfer_file"]


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
        version = OneVersion(
            name,
            part_path=part_path,
            source=ObjectSource(link, session, rules=options.rules, slow_down=options.slow_down),
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
