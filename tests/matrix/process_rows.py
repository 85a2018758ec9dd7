"""What may happen to the process."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Awaitable, Callable

from downloader.sandbox import Fault, PlatformFault
from matrix.causes import no_fault
from matrix.program import program, started
from matrix.row import BY_PROCESS, EVERYTHING, NOTHING, UNSAVED, Again, Row
from matrix.story import KEY, Outcome, Story

__all__ = ["ROWS"]

KIB = 1024
QUIET = "--quiet"
IS_DRAINED = "what came is synced and remembered; it says how to go on, and ends within 5 s"


async def _signalled(story: Story, number: int, *, in_transfer: bool = True) -> Outcome:
    """Send a signal while a part of the file is held back, or while the task is asked for."""
    if in_transfer:
        held = story.store.inject(Fault.STALL, key=KEY, after=100 * KIB)
    else:
        held = story.platform.inject(PlatformFault.HANG)
    async with started(story, QUIET) as process:
        await held.happened.wait()
        process.signal(number)
        outcome = await process.ends()
    story.store.clear_faults()
    story.platform.clear_faults()
    return outcome


async def _killed_again_and_again(story: Story) -> Outcome:
    """Kill it at one moment after the other: before it asks, while bytes come, before it ends."""
    moments = [
        lambda: story.platform.inject(PlatformFault.HANG),
        lambda: story.store.inject(Fault.HANG, key=KEY),
        lambda: story.store.inject(Fault.STALL, key=KEY, after=100 * KIB),
    ]
    for moment in moments:
        held = moment()
        async with started(story, QUIET) as process:
            await held.happened.wait()
            process.signal(signal.SIGKILL)
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


async def _two_with_one_state(story: Story) -> Outcome:
    """Run a second one while the first is held up; return how the second ended."""
    held = story.store.inject(Fault.STALL, key=KEY, after=100 * KIB)
    async with started(story, QUIET) as first:
        await held.happened.wait()
        async with started(story) as second:
            await second.says("is fetching this task already; following it")
            story.store.clear_faults()
            outcome = await second.ends()
        assert (await first.ends()).exit_code == 0
    return outcome


async def _two_with_two_states(story: Story) -> Outcome:
    held = story.store.inject(Fault.STALL, key=KEY, after=100 * KIB)
    async with started(story, QUIET) as first:
        await held.happened.wait()
        outcome = await program(story, QUIET, "--state", str(story.directory / "other.db"))
        story.store.clear_faults()
        assert (await first.ends()).exit_code == 0
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
    return Row(fault=fault, cause=no_fault, act=act, roads=BY_PROCESS, **facts)


def _told(number: int, fault: str, *, exit_code: int, again: Again, **details: bool) -> Row:
    return _row(
        fault,
        lambda story: _signalled(story, number, **details),
        happens=IS_DRAINED,
        ends=exit_code,
        again=again,
    )


ROWS = [
    _told(signal.SIGINT, "SIGINT while it waits", exit_code=130, again=NOTHING, in_transfer=False),
    _told(signal.SIGTERM, "SIGTERM in mid-transfer", exit_code=143, again=UNSAVED),
    _told(signal.SIGHUP, "SIGHUP in mid-transfer", exit_code=129, again=UNSAVED),
    _row(
        "SIGKILL, at one moment after the other",
        _killed_again_and_again,
        happens="the same command goes on from the last checkpoint",
        ends=137,
        again=EVERYTHING,
    ),
    _row(
        "SIGSTOP, and later SIGCONT",
        _stopped_and_continued,
        happens="what the store has given up meanwhile is asked for again",
    ),
    _row(
        "two with one state",
        _two_with_one_state,
        happens="the second one follows the first, and has its outcome; bytes travel once",
    ),
    _row(
        "two with two states",
        _two_with_two_states,
        happens="the second one keeps its hands off; the first one publishes",
        ends=1,
        says="is working in",
    ),
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
