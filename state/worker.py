"""The store for asyncio: every call runs on one worker thread, in the order it was made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar

from state.store import StateStore, utc_now

__all__ = ["AsyncStore"]

P = ParamSpec("P")
T = TypeVar("T")


class AsyncStore:
    """A StateStore whose methods are awaited, and never hold up the event loop.

    A caller that is cancelled leaves at once; its call is carried out all the same, and
    `aclose` waits for it. So a write that was asked for is never lost.
    """

    def __init__(self, store: StateStore, *, executor: ThreadPoolExecutor | None = None) -> None:
        self._store = store
        self._executor = executor or _one_thread()
        self._closing: Future[None] | None = None

    @classmethod
    async def open(
        cls, url_or_path: str | Path, *, clock: Callable[[], datetime] = utc_now
    ) -> AsyncStore:
        """Open the state on the worker thread: another process may hold it for seconds."""
        executor = _one_thread()
        opening = executor.submit(StateStore.open, url_or_path, clock=clock)
        try:
            store = await _outcome(opening)
        except BaseException:
            opening.add_done_callback(_close_unwanted)
            executor.shutdown(wait=False)
            raise
        return cls(store, executor=executor)

    @property
    def location(self) -> str:
        """The state's name for people."""
        return self._store.location

    async def call(
        self, method: Callable[Concatenate[StateStore, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what `method(store, ...)` returns: `await store.call(StateStore.get_task, 3)`."""
        return await self.run(lambda store: method(store, *args, **kwargs))

    async def run(self, work: Callable[[StateStore], T]) -> T:
        """Return what `work` makes of the store, on the worker thread."""
        if self._closing is not None:
            raise RuntimeError("the state was closed before this call")
        return await _outcome(self._executor.submit(work, self._store))

    async def aclose(self) -> None:
        """Wait until everything that was asked for is written, then close; safe to call twice."""
        if self._closing is None:
            self._closing = self._executor.submit(self._store.close)
            self._executor.shutdown(wait=False)
        await _outcome(self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


async def _outcome(work: Future[T]) -> T:
    # Without the shield, a cancelled caller would take its queued call with it.
    outcome = asyncio.wrap_future(work)
    outcome.add_done_callback(_seen)  # asyncio complains of an error that nobody has looked at
    return await asyncio.shield(outcome)


def _seen(outcome: asyncio.Future[T]) -> None:
    if not outcome.cancelled():
        outcome.exception()


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")


def _close_unwanted(opening: Future[StateStore]) -> None:
    """Close a store that was opened for a caller who did not wait for it."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
