"""What may happen to the process."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta

from downloader.sandbox import Fault, PlatformFault
from matrix.causes import deed, no_fault, signals_come
from matrix.program import Process, as_a_process, orders_for, program, started
from matrix.row import (
    BY_PROCESS,
    EVERYTHING,
    NOTHING,
    THE_FILE,
    UNSAVED,
    Act,
    Again,
    Cause,
    Row,
)
from matrix.story import KEY, Outcome, Story

__all__ = ["ROWS"]

KIB = 1024
QUIET = "--quiet"
FOLLOWS = "is fetching this task already; following it"
OURS = "/downloader/cli/"  # where our modules begin that take time to load
EVERY_COLD = 199  # of the moments when it is loaded, which are some thousands
EVERY_LOADED = 23
ENDS_OR_DRAINS = "it ends at once, or drains first, with a sentence or none; and it can go on"
IS_DRAINED = "what came is synced and remembered; it says how to go on, and ends within 5 s"


async def _from_nothing(story: Story) -> Outcome:
    return await program(story, is_cold=True)


async def _signalled(story: Story, number: int, *, in_transfer: bool = True) -> Outcome:
    """Send a signal while a part of the file is held back, or while the task is asked for."""
    if in_transfer:
        held = story.store.inject(Fault.STALL, key=KEY, after=100 * KIB)
    else:
        held = story.platform.inject(PlatformFault.HANG)
    async with started(story) as process:
        await held.happened.wait()
        process.signal(number)
        outcome = await process.ends()
    story.store.clear_faults()
    story.platform.clear_faults()
    return outcome


async def _stopped_and_continued(story: Story) -> Outcome:
    """Let it sleep, as with the lid of a laptop, until the store has given up on it."""
    held = story.store.inject(Fault.CUT, key=KEY, after=100 * KIB)
    async with started(story, QUIET) as process:
        await held.happened.wait()
        process.signal(signal.SIGSTOP)
        process.signal(signal.SIGCONT)
        return await process.ends()


@contextlib.asynccontextmanager
async def _held_up(story: Story) -> AsyncIterator[Process]:
    """Give a program of which a part of the file is held back, until all faults are cleared."""
    held = story.store.inject(Fault.STALL, key=KEY, after=100 * KIB)
    async with started(story, QUIET) as first:
        await held.happened.wait()
        yield first


async def _one_after_the_other(story: Story) -> Outcome:
    """Run a second one while the first is held up; return how the second ended."""
    async with _held_up(story) as first, started(story) as second:
        await second.says(FOLLOWS)
        story.store.clear_faults()
        assert (await first.ends()).exit_code == 0
        return await second.ends()


async def _one_of_two_gets(story: Story, number: int, *, is_first: bool) -> Outcome:
    """Send a signal to the first, or to the second that follows it; return how the other ends."""
    async with _held_up(story) as first, started(story) as second:
        await second.says(FOLLOWS)
        one, other = (first, second) if is_first else (second, first)
        one.signal(number)
        assert (await one.ends()).exit_code == 128 + number
        story.store.clear_faults()
        return await other.ends()


async def _at_once(story: Story, count: int) -> Outcome:
    """Start several at the same moment; return how the worst of them ended."""
    async with contextlib.AsyncExitStack() as stack:
        programs = [await stack.enter_async_context(started(story, QUIET)) for _ in range(count)]
        outcomes = [await one.ends() for one in programs]
    return max(outcomes, key=lambda outcome: outcome.exit_code)


async def _two_with_two_states(story: Story) -> Outcome:
    async with _held_up(story) as first:
        outcome = await program(story, QUIET, *_other_state(story))
        story.store.clear_faults()
        assert (await first.ends()).exit_code == 0
    return outcome


async def _at_once_with_two_states(story: Story) -> Outcome:
    other = _other_state(story)
    async with started(story, QUIET) as first, started(story, QUIET, *other) as second:
        outcomes = [await first.ends(), await second.ends()]
    assert any(outcome.exit_code == 0 for outcome in outcomes)
    return max(outcomes, key=lambda outcome: outcome.exit_code)


def _other_state(story: Story) -> tuple[str, str]:
    return "--state", str(story.directory / "other.db")


async def _clock_jumps(story: Story, by: timedelta, *, in_transfer: bool) -> Outcome:
    """Let the clock of the day jump while the program waits for bytes, or for the platform."""
    orders = orders_for(story)
    if in_transfer:
        held = story.store.inject(Fault.STALL, key=KEY, after=48 * KIB)
    else:
        held = story.platform.inject(PlatformFault.HANG)
    async with started(story, QUIET, is_large=True) as process:
        await held.happened.wait()
        orders.put_clock(ahead=int(by.total_seconds()))
        held.release()
        outcome = await process.ends()
    story.orders = None
    return outcome


async def _into(story: Story, path: str) -> Outcome:
    """Let its output go to a place that takes none."""
    with open(path, "wb", buffering=0) as stream:  # noqa: ASYNC230, PTH123 - a device
        return await program(story, QUIET, out=stream.fileno())


async def _to_nobody(story: Story) -> Outcome:
    """Let whoever reads its output be gone."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", buffering=0) as stream:  # noqa: ASYNC230, PTH123 - a pipe
        return await program(story, QUIET, out=stream.fileno())


async def _with_small_files_only(story: Story) -> Outcome:
    """Let no file grow beyond 1 MiB, which the state does not and a larger object would."""
    story.files |= {KEY: random.Random(3).randbytes(1200 * KIB)}
    story.add_task()
    return await program(story, QUIET, largest_file=1024 * KIB)


def _row(fault: str, act: Callable[[Story], Awaitable[Outcome]], **facts: object) -> Row:
    return Row(fault=fault, act=act, roads=BY_PROCESS, **{"cause": no_fault, **facts})


def _told(number: int, fault: str, *, exit_code: int, again: Again, **details: bool) -> Row:
    return _row(
        fault,
        lambda story: _signalled(story, number, **details),
        happens=IS_DRAINED,
        ends=exit_code,
        says="^Interrupted.*To go on: bge-downloader fetch ",
        again=again,
    )


def _at_any_time(fault: str, *numbers: int, cause: Cause, act: Act = as_a_process, **facts) -> Row:
    codes = [128 + number for number in numbers]
    return Row(
        fault=f"{fault}, at one moment after the other",
        cause=cause,
        act=act,
        roads=BY_PROCESS,
        at_each=True,
        **{
            "happens": ENDS_OR_DRAINS,
            "ends": codes[0],
            "or_ends": codes[1] if len(set(codes)) > 1 else None,
            "may_go_on": "where all was done",
            "says": "^(Interrupted.*)?$",
            "again": EVERYTHING,
            **facts,
        },
    )


def _from_its_start(name: str) -> Row:
    number = getattr(signal, name)
    # Before that it is Python, and nothing of ours, that hears Ctrl-C and complains of it.
    begins = OURS if number == signal.SIGINT else ""
    cause = signals_come(number, every=EVERY_COLD, begins=begins)
    return _at_any_time(f"{name}, from its start on", number, cause=cause, act=_from_nothing)


def _once_loaded(name: str) -> Row:
    number = getattr(signal, name)
    cause = signals_come(number, every=EVERY_LOADED)
    return _at_any_time(f"{name}, once it is loaded", number, cause=cause)


def _twice(name: str, other: str, *, apart: int) -> Row:
    numbers = getattr(signal, name), getattr(signal, other)
    cause = signals_come(*numbers, every=EVERY_LOADED, apart=apart)
    fault = f"{name}, and {other} {'with it' if apart == 1 else 'while it drains'}"
    happens = "the second one ends it at once"
    return _at_any_time(fault, *numbers, cause=cause, happens=happens)


ENDED = [
    _told(signal.SIGINT, "SIGINT while it waits", exit_code=130, again=NOTHING, in_transfer=False),
    _told(signal.SIGTERM, "SIGTERM in mid-transfer", exit_code=143, again=UNSAVED),
    _told(signal.SIGHUP, "SIGHUP in mid-transfer", exit_code=129, again=UNSAVED),
    *(_from_its_start(name) for name in ("SIGINT", "SIGTERM", "SIGHUP")),
    *(_once_loaded(name) for name in ("SIGINT", "SIGTERM", "SIGHUP")),
    _twice("SIGINT", "SIGTERM", apart=1),
    _twice("SIGTERM", "SIGINT", apart=20),
    _twice("SIGINT", "SIGINT", apart=20),
    _at_any_time(
        "SIGKILL",
        signal.SIGKILL,
        cause=signals_come(signal.SIGKILL, every=EVERY_LOADED),
        happens="the same command goes on from the last checkpoint",
        says="^$",
    ),
]

LIVES_ON = [
    _row(
        "SIGSTOP, and later SIGCONT",
        _stopped_and_continued,
        happens="what the store has given up meanwhile is asked for again",
    ),
    *(
        _row(
            f"the clock jumps {way} by a year while {when}",
            functools.partial(_clock_jumps, by=by, in_transfer=in_transfer),
            happens="nothing is lost by it; links and calls are made anew where it matters",
        )
        for way, by in (("ahead", timedelta(days=365)), ("back", timedelta(days=-365)))
        for when, in_transfer in (("the task is asked for", False), ("bytes come", True))
    ),
]

SEVERAL = [
    _row(
        "two with one state",
        _one_after_the_other,
        happens="the second one follows the first, and has its outcome; bytes travel once",
    ),
    *(
        _row(
            f"{words} with one state, started at once",
            functools.partial(_at_once, count=count),
            happens="one of them fetches, and the others follow it; bytes travel once",
        )
        for words, count in (("two", 2), ("three", 3))
    ),
    _row(
        "three with one state that is not there yet, started at once",
        functools.partial(_at_once, count=3),
        cause=deed(lambda story: shutil.rmtree(story.state.parent)),
        happens="one of them makes it, one of them fetches; bytes travel once",
    ),
    _row(
        "two with one state, and the first is killed",
        functools.partial(_one_of_two_gets, number=signal.SIGKILL, is_first=True),
        happens="the second one goes on from the last checkpoint",
        again=THE_FILE,
    ),
    _row(
        "two with one state, and the first is interrupted",
        functools.partial(_one_of_two_gets, number=signal.SIGINT, is_first=True),
        happens="the first one drains, and the second one goes on",
        again=UNSAVED,
    ),
    *(
        _row(
            f"two with one state, and the second is {words}",
            functools.partial(_one_of_two_gets, number=number, is_first=False),
            happens="the first one does not notice",
        )
        for words, number in (("killed", signal.SIGKILL), ("interrupted", signal.SIGTERM))
    ),
    _row(
        "two with two states",
        _two_with_two_states,
        happens="the second one keeps its hands off; the first one publishes",
        ends=1,
        says="is working in",
    ),
    _row(
        "two with two states, started at once",
        _at_once_with_two_states,
        happens="one of them publishes; the other one keeps its hands off",
        ends=1,
        may_go_on="where the first has published by then",
        says="is working in",
    ),
]

AROUND = [
    _row(
        "a limit of the size of files (RLIMIT_FSIZE)",
        _with_small_files_only,
        happens="it ends with one sentence that names the file; what came is kept",
        ends=1,
        says="File too large",
        again=EVERYTHING,
    ),
    _row(
        "nobody reads its output",
        _to_nobody,
        happens="the task is published all the same; only that it cannot be told",
        ends=1,
    ),
    _row(
        "its output has no room",
        lambda story: _into(story, "/dev/full"),
        happens="the task is published all the same; only that it cannot be told",
        ends=1,
        says="The output could not be written: No space left on device",
    ),
]

ROWS = [*ENDED, *LIVES_ON, *SEVERAL, *AROUND]
