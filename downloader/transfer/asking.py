"""Asks a store for what is missing of one version of an object, until nothing is."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from downloader.errors import BadStoreReply, DownloaderError, StoreUnavailable
from downloader.retry import pause
from downloader.transfer.file_turns import Turn
from downloader.transfer.object_source import ObjectSource
from downloader.transfer.options import TransferOptions
from downloader.transfer.patience import Patience
from downloader.transfer.ranged_get import Body, Version
from downloader.transfer.restarts import CannotResume
from downloader.transfer.straight_body import StraightBody

__all__ = ["Asking", "MustRest"]


class MustRest(Exception):
    """A helper's request failed: its connection goes back while its segment waits."""

    def __init__(self, seconds: float, patience: Patience) -> None:
        self.seconds = seconds
        self.patience = patience


class Asking:
    """The requests for one version; `version` learns its checksum on the way."""

    def __init__(self, source: ObjectSource, version: Version, options: TransferOptions) -> None:
        self.version = version
        self._source = source
        self._options = options

    async def persist(
        self,
        missing: Callable[[], tuple[int, int] | None],
        pour: Callable[[Body | StraightBody], Awaitable[None]],
        opened: Body | StraightBody | None,
        turn: Turn | None,
        *,
        patience: Patience | None = None,
        may_be_straight: Callable[[], bool] = lambda: False,
    ) -> None:
        """Ask for what is missing until nothing is, with patience renewed by every byte.

        Others have the connection of the file's own `turn` during each pause.

        Raises:
            MustRest: there is no turn, and thus no way to pause without the connection.
            CannotResume: the connection was lost, and nothing tells versions apart.
            DownloaderError: what more attempts did not mend.
        """
        patience = patience or self._options.patience(leave_alone=self._source.leave_alone)
        while (span := missing()) is not None:
            body = self._body(opened, *span, turn, may_be_straight=may_be_straight())
            error = await self._attempt(body, pour)
            opened = None
            if (left := missing()) is None:
                return
            if left[0] != span[0]:
                patience.renew()
            elif error is None:
                error = BadStoreReply("The store sent nothing")
            if error is not None:
                await self._pause(error, patience, turn)

    def learn_checksum(self, found: Version) -> None:
        """Take over a checksum that an earlier reply has not told."""
        if self.version.crc64 is None and found.crc64 is not None:
            self.version = found

    async def _attempt(
        self,
        coming: contextlib.AbstractAsyncContextManager[Body | StraightBody],
        pour: Callable[[Body | StraightBody], Awaitable[None]],
    ) -> DownloaderError | None:
        """Pour what one reply brings; return what went wrong, if that may pass."""
        try:
            async with coming as body:
                await pour(body)
                if body.position < body.stop:
                    return StoreUnavailable("The store ended the body early")
        except DownloaderError as error:
            if not error.retryable:
                raise
            return error
        return None

    async def _pause(self, error: DownloaderError, patience: Patience, turn: Turn | None) -> None:
        if self.version.etag is None:
            raise CannotResume(f"{error}, and it gives no ETag to go on by") from error
        seconds = patience.count(error)
        if turn is None:
            raise MustRest(seconds, patience)
        async with turn.away():
            await pause(seconds)

    @contextlib.asynccontextmanager
    async def _body(
        self,
        opened: Body | StraightBody | None,
        start: int,
        stop: int,
        turn: Turn | None,
        *,
        may_be_straight: bool,
    ) -> AsyncIterator[Body | StraightBody]:
        if opened is not None:
            with contextlib.closing(opened):  # or the connection would stay to the end
                yield opened
            return
        road = self._options.straight_road if may_be_straight else None
        async with self._source.get(start, stop, self.version, road=road, turn=turn) as body:
            if isinstance(body, Body):
                self.learn_checksum(body.version)
            yield body
