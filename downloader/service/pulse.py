"""Whether work advances: what systemd's watchdog is told, and what it is not told.

A service that is hung is to be ended, one that waits patiently for a store is not. So work is
taken for hung only after the longest silence in which every transfer may rightly be.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pulse"]

TICK_SECONDS = 60.0  # without a round of the service: its loop, or the state, hangs


class Pulse:
    """The last time that something advanced; any thread may say so."""

    def __init__(self, patience: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience = patience  # seconds without a sign of a transfer, while some are at work
        self._clock = clock
        self._ticked_at = self._beaten_at = clock()
        self._bytes = 0

    def tick(self) -> None:
        """Say that a round of the service has ended: its loop and the state both answer."""
        self._ticked_at = self._clock()

    def beat(self) -> None:
        """Say that some work advances, or has a reason to wait."""
        self._beaten_at = self._clock()

    def advances(self, *, at_work: int, received_bytes: int) -> bool:
        """Tell whether all is well; `received_bytes` is of all transfers so far."""
        now = self._clock()
        if received_bytes != self._bytes or not at_work:
            self._bytes, self._beaten_at = received_bytes, now
        return now - self._ticked_at < TICK_SECONDS and now - self._beaten_at < self.patience
