"""How a transfer goes about it, and what it has proved when it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from downloader.hosts import HostRules
from downloader.transfer.connections import Connections
from downloader.transfer.patience import Patience
from downloader.transfer.straight import StraightRoad
from downloader.transfer.throttle import RateLimit, SlowDown

__all__ = ["TransferOptions", "Transferred"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferOptions:
    """How a transfer goes about it; all transfers of a program share throttles and connections."""

    segments: int = 16  # connections for one file at the most
    segment_size: int = 64 * MIB  # bytes of one ranged request at the most
    first_length: int = 8 * MIB  # bytes of the first request: smaller objects are done with it
    max_attempts: int = 10  # in a row without a new byte
    retry_max_delay: float = 60.0  # seconds
    min_free_space: int = 0  # bytes that stay free on the disk
    rules: HostRules = field(default_factory=lambda: HostRules(()))
    rate_limit: RateLimit = field(default_factory=lambda: RateLimit(None))
    slow_down: SlowDown = field(default_factory=SlowDown)
    connections: Connections = field(default_factory=Connections)
    straight_road: StraightRoad | None = None  # None: every byte goes the plain way

    def patience(self, *, leave_alone: Callable[[float], None] = lambda _: None) -> Patience:
        """Return fresh patience for one span of bytes; of what, a store's own wish is to tell."""
        return Patience(
            max_attempts=self.max_attempts,
            retry_max_delay=self.retry_max_delay,
            leave_alone=leave_alone,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """What a finished transfer has proved: the version, and the CRC-64 of the bytes on disk."""

    etag: str | None
    size: int
    crc64: int
    crc64_confirmed: bool  # False if the store told no checksum to compare with
    resumed_bytes: int  # found on disk, from earlier runs
    received_bytes: int  # from the network, in this run
    identity: tuple[int, int]  # device and inode of the file that was proved
