"""Moves the bytes of one object to one part file, and proves them."""

from downloader.transfer.buffers import BufferPool
from downloader.transfer.checkpointing import Checkpoints
from downloader.transfer.connections import Connections
from downloader.transfer.engine import insist_on_version, transfer_file
from downloader.transfer.link import Link
from downloader.transfer.options import TransferOptions, Transferred
from downloader.transfer.straight import StraightRoad
from downloader.transfer.sync_batch import SyncBatch
from downloader.transfer.throttle import RateLimit, SlowDown

__all__ = [
    "BufferPool",
    "Checkpoints",
    "Connections",
    "Link",
    "RateLimit",
    "SlowDown",
    "StraightRoad",
    "SyncBatch",
    "TransferOptions",
    "Transferred",
    "insist_on_version",
    "transfer_file",
]
