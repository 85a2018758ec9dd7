"""What comes, and whether more connections would bring more of it."""

from __future__ import annotations

import threading

__all__ = ["Growth", "Meter"]

STEADY = 1.15  # times what came before: more than that, and it is still rising by itself
WORTHWHILE = 1.2  # times as much must come for a step to be kept; a step doubles
PATIENCE_SECONDS = 2.0  # after a step that did not pay; doubled each time
MAX_PATIENCE_SECONDS = 60.0


class Meter:
    """How many bytes have come from the network, in all; any thread may add."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """Count bytes that have come."""
        with self._lock:
            self.total += count


class Growth:
    """Decides by what comes per second whether more connections are worth it."""

    def __init__(self) -> None:
        self._before: tuple[int, float] | None = None  # the last step's limit and rate
        self._last: float | None = None  # rate, with as many as there are now
        self._patience = PATIENCE_SECONDS
        self._again_at = 0.0

    def forget(self) -> None:
        """Measure anew: what was measured is of other circumstances."""
        self._before = self._last = None

    def is_rising(self, rate: float) -> bool:
        """Tell whether it is too early to judge what so many connections bring."""
        last, self._last = self._last, rate
        return last is None or rate > STEADY * last

    def next(self, limit: int, rate: float, now: float, *, may_grow: bool) -> int:
        """Return how many connections there shall be, from what came with `limit` of them."""
        if now < self._again_at or not rate:
            return limit
        if self._before is not None:
            earlier, earlier_rate = self._before
            if rate < WORTHWHILE * earlier_rate:
                self.forget()
                self._again_at = now + self._patience
                self._patience = min(MAX_PATIENCE_SECONDS, 2 * self._patience)
                return earlier
            self._patience = PATIENCE_SECONDS
        self._before, self._last = ((limit, rate) if may_grow else None), None
        return 2 * limit if may_grow else limit
