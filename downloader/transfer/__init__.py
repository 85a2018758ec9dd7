"""Moves the bytes of one object to one part file, and proves them."""

from downloader.transfer.engine import Checkpoints, TransferOptions, Transferred, transfer_file
from downloader.transfer.link import Link
from downloader.transfer.straight import StraightRoad
from downloader.transfer.throttle import RateLimit, SlowDown

__all__ = [
    "Checkpoints",
    "Link",
    "RateLimit",
    "SlowDown",
    "StraightRoad",
    "TransferOptions",
    "Transferred",
    "transfer_file",
]
