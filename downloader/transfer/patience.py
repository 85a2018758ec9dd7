"""How long one segment keeps trying."""

from __future__ import annotations

from downloader.errors import DownloaderError, StoreUnavailable
from downloader.retry import pause, pause_seconds
from downloader.transfer.throttle import SlowDown

__all__ = ["Patience"]


class Patience:
    """Counts attempts in a row that brought no byte; every new byte renews it."""

    def __init__(self, *, max_attempts: int, retry_max_delay: float, slow_down: SlowDown) -> None:
        self._max_attempts = max_attempts
        self._retry_max_delay = retry_max_delay
        self._slow_down = slow_down
        self._failures = 0

    def renew(self) -> None:
        """Begin to count anew."""
        self._failures = 0

    async def wait(self, error: DownloaderError) -> None:
        """Pause as the error deserves; raise it when it came too often.

        A store that asked for a pause is left alone by every transfer, not by this one only.
        """
        self._failures += 1
        if self._failures >= self._max_attempts:
            raise type(error)(
                f"{error}; given up after {self._failures} attempts in a row without a new byte"
            ) from error
        asked = getattr(error, "retry_after", None)
        seconds = pause_seconds(self._failures, maximum=self._retry_max_delay, retry_after=asked)
        if asked is not None and isinstance(error, StoreUnavailable):  # not the platform's wish
            self._slow_down.ask(seconds)
        await pause(seconds)
