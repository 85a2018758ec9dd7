"""Moves the bytes of one object to one part file, and proves them."""

from downloader.transfer.engine import Checkpoints, TransferOptions, Transferred, transfer_file
from downloader.transfer.link import Link
from downloader.transfer.throttle import RateLimit, SlowDown

__all__ = [
    "Checkpoints",
    "Link",
    "RateLimit",
    "SlowDown",
    "TransferOptions",
    "Transferred",
    "transfer_file",
]
