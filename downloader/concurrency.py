"""Two habits with asyncio: threads are waited for, and a group's first error is the error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import ParamSpec, TypeVar

__all__ = ["in_thread", "run_together"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run blocking work in a worker thread; even when cancelled, return only once it has ended.

    `asyncio.to_thread` leaves the thread running when its caller is cancelled: a late write could
    then meet a descriptor that was closed and given to another file.
    """
    future = asyncio.ensure_future(asyncio.to_thread(work, *args, **kwargs))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise


async def run_together(jobs: Iterable[Coroutine[object, object, None]]) -> None:
    """Run the jobs side by side; when one fails, stop the others and raise its error, bare."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as errors:
        raise _first(errors) from None


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
