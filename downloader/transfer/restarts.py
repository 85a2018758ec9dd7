"""How often one transfer begins again from the first byte."""

from __future__ import annotations

from downloader.errors import DownloaderError, StoreUnavailable, TransferError, VerificationFailed
from downloader.progress import Reporter
from downloader.transfer.patience import Patience

__all__ = ["CannotResume", "Restarts"]

MAX_RESTARTS = 3  # because of a changed object, or of a checksum that is wrong


class CannotResume(TransferError):
    """The connection was lost, and the store gives nothing to tell versions apart by."""


class Restarts:
    """How often a transfer may begin again.

    Another version, or a wrong checksum, is a fault of the store that more tries do not mend;
    bytes that give the same wrong checksum twice are what the store has, and it is the checksum
    that is not. A store without ETags on a poor line is only poor: a try that came further is
    progress.
    """

    def __init__(self, name: str, *, patience: Patience, reporter: Reporter) -> None:
        self._name = name
        self._reporter = reporter
        self._patience = patience
        self._furthest = 0
        self._restarts = 0
        self._last_told: str | None = None

    async def count(self, error: DownloaderError, *, received: int) -> None:
        """Return when the transfer may begin again; raise the error when it came too often."""
        if isinstance(error, CannotResume):
            if received > self._furthest:
                self._patience.renew()
                self._furthest = received
            await self._patience.wait(StoreUnavailable(f"{self._name}: {error}"))
        else:
            is_certain = isinstance(error, VerificationFailed) and str(error) == self._last_told
            if is_certain or self._restarts == MAX_RESTARTS:
                times = f"{self._restarts + 1} times in a row"
                advice = (
                    "; nothing was published, and the same command begins anew with this file. "
                    "If it stays so, tell the platform's support, naming the task id"
                )
                raise type(error)(f"{self._name}: {error}, {times}{advice}") from error
            self._restarts += 1
            self._last_told = str(error)
        self._reporter.note(f"{self._name}: {error}; starting this file again")
