"""Habits with asyncio: threads are waited for, and a group's first error is the error."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import ParamSpec, TypeVar

__all__ = ["beside", "in_stoppable_thread", "in_thread", "outlasting", "run_together", "together"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a worker thread; even when cancelled, return only once it has ended.

    `asyncio.to_thread` leaves the thread running when its caller is cancelled: a late write could
    then meet a descriptor that was closed and given to another file.
    """
    return await outlasting(asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs)))


async def in_stoppable_thread(work: Callable[[Callable[[], bool]], T]) -> T:
    """Run long blocking work in a worker thread and tell it when nobody waits any more.

    `work` is given a function that tells whether it is to stop; it asks that now and then.
    """
    stop = threading.Event()
    return await outlasting(asyncio.ensure_future(in_thread(work, stop.is_set)), stop=stop.set)


async def outlasting(future: asyncio.Future[T], *, stop: Callable[[], object] | None = None) -> T:
    """Return its outcome; when cancelled, however often, `stop` it and wait for its end first."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if stop is not None:
            stop()
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # asyncio would complain of an error that nobody looked at
        raise


@contextlib.asynccontextmanager
async def beside(job: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Run the job beside the block: it is stopped at the block's end, its error ends the block."""
    with _bare_errors():
        async with asyncio.TaskGroup() as group:
            task = group.create_task(job)
            yield
            task.cancel()


async def run_together(jobs: Iterable[Coroutine[object, object, None]]) -> None:
    """Run the jobs side by side; when one fails, stop the others and raise its error, bare."""
    async with together() as group:
        for job in jobs:
            group.create_task(job)


@contextlib.asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """Give a group of jobs; when one fails, the others are stopped and its error raised, bare."""
    with _bare_errors():
        async with asyncio.TaskGroup() as group:
            yield group


@contextlib.contextmanager
def _bare_errors() -> Iterator[None]:
    """Raise a group's first error in its place, with the cause that it had."""
    try:
        yield
    except BaseExceptionGroup as errors:
        first = _first(errors)
    else:
        return
    raise first  # not in the handler: `from None` would take the error's own cause away


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
