"""How long one segment keeps trying."""

from __future__ import annotations

from collections.abc import Callable

from downloader.errors import DownloaderError, StoreUnavailable
from downloader.retry import pause, pause_seconds

__all__ = ["Patience"]


class Patience:
    """Counts attempts in a row that brought no byte; every new byte renews it.

    `leave_alone` hears for how long a store wants no request from any transfer.
    """

    def __init__(
        self,
        *,
        max_attempts: int,
        retry_max_delay: float,
        leave_alone: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._max_attempts = max_attempts
        self._retry_max_delay = retry_max_delay
        self._leave_alone = leave_alone
        self._failures = 0

    def renew(self) -> None:
        """Begin to count anew."""
        self._failures = 0

    def count(self, error: DownloaderError) -> float:
        """Return for how many seconds to pause, as the error deserves; raise it the last time.

        A store that asked for a pause is left alone by every transfer, not by this one only.
        """
        self._failures += 1
        if self._failures >= self._max_attempts:
            raise type(error)(
                f"{error}; given up after {self._failures} attempts in a row without a new byte: "
                "what came is kept, and the same command goes on once the fault is over"
            ) from error
        asked = getattr(error, "retry_after", None)
        seconds = pause_seconds(self._failures, maximum=self._retry_max_delay, retry_after=asked)
        if asked is not None and isinstance(error, StoreUnavailable):  # not the platform's wish
            self._leave_alone(seconds)
        return seconds

    async def wait(self, error: DownloaderError) -> None:
        """Count, and pause."""
        await pause(self.count(error))
