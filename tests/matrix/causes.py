"""What makes faults happen, for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from downloader.sandbox import Fault, PlatformFault
from matrix.faulty import Call, Orders
from matrix.program import orders_for
from matrix.row import Cause
from matrix.story import KEY, Story

__all__ = [
    "and_then",
    "calls_fail",
    "deed",
    "no_fault",
    "of_platform",
    "of_store",
    "patched",
    "signals_come",
    "when_half_is_here",
]


def of_store(
    fault: Fault, *, key: str | None = KEY, stall: float | None = None, **details
) -> Cause:
    """Let the store go wrong; with `stall`, silence is taken for an end after so many seconds."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        usual, story.stall_timeout = story.stall_timeout, stall or story.stall_timeout
        story.store.inject(fault, key=key, **details)
        yield
        story.store.clear_faults()
        story.stall_timeout = usual

    return cause


def of_platform(fault: PlatformFault, *, timeout: float | None = None, **details) -> Cause:
    """Let the platform go wrong; with `timeout`, calls are given up after so many seconds."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        usual, story.timeout = story.timeout, timeout or story.timeout
        story.platform.inject(fault, **details)
        yield
        story.platform.clear_faults()
        story.timeout = usual

    return cause


def deed(do: Callable[[Story], object], undo: Callable[[Story], object] = lambda _: None) -> Cause:
    """Do something before the run, and undo it after."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        await _done(do(story))
        yield
        await _done(undo(story))

    return cause


async def _done(outcome: object) -> None:
    if isinstance(outcome, Awaitable):
        await outcome


def and_then(*causes: Cause) -> Cause:
    """Let several faults come together, in their order."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[object]:
        async with contextlib.AsyncExitStack() as stack:
            given = [await stack.enter_async_context(each(story)) for each in causes]
            yield given[-1]

    return cause


def when_half_is_here(*causes: Cause) -> Cause:
    """Let the faults meet a run that goes on from an earlier one."""
    return and_then(deed(Story.left_half), *causes)


def patched(target: object, name: str, value: object) -> Cause:
    """Put another value in a module's or a class's place for it."""
    usual = getattr(target, name)
    change = functools.partial(setattr, target, name)
    return deed(lambda _: change(value), lambda _: change(usual))


def calls_fail(
    *calls: Call,
    code: int,
    below: Callable[[Story], Path] = lambda story: story.dest,
    lasts: bool = False,
) -> Cause:
    """Let one of these calls of the program fail, that of the story's chance; or all from it on."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[Orders]:
        orders = orders_for(story)
        orders.fail(calls, code, below=below(story), at=story.chance, lasts=lasts)
        yield orders
        story.orders = None

    return cause


def signals_come(*numbers: int, every: int, apart: int = 1, begins: str = "") -> Cause:
    """Let the program get these signals, some moments `apart`: the later, the later the chance.

    From one chance to the next it is `every` so many moments; `begins` is where they begin.
    """

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[Orders]:
        orders = orders_for(story)
        first = 1 + (story.chance - 1) * every
        pairs = [(number, first + place * apart) for place, number in enumerate(numbers)]
        orders.send(*pairs, begins=begins)
        yield orders
        story.orders = None

    return cause


no_fault = deed(lambda _: None)
