"""What the store remembers of each request, so that tests can count instead of guess."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from datetime import datetime

from downloader.sandbox.faults import Fault

__all__ = ["Exchange", "Ledger", "StoreRequest"]

KEPT_REQUESTS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRequest:
    """One request as it stands now; `status` is 0 until an answer has begun."""

    at: datetime
    method: str
    key: str
    range_header: str | None
    asked: tuple[int, int] | None  # the half-open range that was selected; None is the whole
    if_match: str | None
    status: int
    bytes_sent: int  # of the body, handed to the kernel
    fault: Fault | None


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request while it is being answered."""

    at: datetime
    method: str
    key: str
    range_header: str | None = None
    asked: tuple[int, int] | None = None
    if_match: str | None = None
    status: int = 0
    bytes_sent: int = 0
    fault: Fault | None = None
    ledger: Ledger

    def sent(self, count: int) -> None:
        """Count bytes of the body; negative where fewer went out than were announced."""
        self.bytes_sent += count
        self.ledger.bytes_served_by_key[self.key] += count

    def record(self) -> StoreRequest:
        """Freeze what is known by now."""
        return StoreRequest(
            at=self.at,
            method=self.method,
            key=self.key,
            range_header=self.range_header,
            asked=self.asked,
            if_match=self.if_match,
            status=self.status,
            bytes_sent=self.bytes_sent,
            fault=self.fault,
        )


class Ledger:
    """All requests in the order in which they came, and the bytes that each object cost."""

    def __init__(self) -> None:
        self._exchanges: deque[Exchange] = deque(maxlen=KEPT_REQUESTS)
        self.bytes_served_by_key: Counter[str] = Counter()

    def begin(self, exchange: Exchange) -> None:
        """Take a request into the books before anything is answered."""
        self._exchanges.append(exchange)

    @property
    def requests(self) -> list[StoreRequest]:
        """The requests so far, in the order in which they came."""
        return [exchange.record() for exchange in self._exchanges]

    def clear(self) -> None:
        """Begin counting anew."""
        self._exchanges.clear()
        self.bytes_served_by_key.clear()
