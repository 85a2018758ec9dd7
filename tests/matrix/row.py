"""One row of the matrix: a fault, what must come of it, and at most how much is fetched again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from downloader.units import counted
from matrix.story import VCF_KEY, Outcome, Story

__all__ = [
    "BOTH",
    "BY_PROCESS",
    "EVERYTHING",
    "NOTHING",
    "ONE_BLOCK",
    "STRAIGHT",
    "THE_FILE",
    "THE_VCF",
    "UNSAVED",
    "Act",
    "Again",
    "Cause",
    "Row",
    "times_the_file",
    "unread",
]

BOTH = ("plain", "straight")  # every byte by aiohttp, or by the road
STRAIGHT = ("straight",)  # as the program does; for what does not concern bytes
BY_PROCESS = ("process",)  # the program itself, as a process

BLOCK_BYTES = 65536  # of BGZF, at most
MARGIN_BYTES = 1024  # what a fault sends that is of no object

# Makes the fault, for as long as it lasts. What it gives, if anything, tells whether it `happened`.
Cause = Callable[[Story], AbstractAsyncContextManager[object]]
Act = Callable[[Story], Awaitable[Outcome]]


@dataclass(frozen=True, kw_only=True)
class Again:
    """At most so many bytes travel that had travelled already, in all runs together."""

    words: str
    most: Callable[[Story], int]


NOTHING = Again(words="nothing", most=lambda _: 0)
ONE_BLOCK = Again(words="the damaged block", most=lambda _: BLOCK_BYTES)
UNSAVED = Again(
    words="what came since the last checkpoint: 1 s, or 8 MiB of each segment",
    most=lambda story: story.size,
)
THE_FILE = Again(words="the file", most=lambda story: len(story.data))
THE_VCF = Again(words="the file", most=lambda story: len(story.files[VCF_KEY]))
EVERYTHING = Again(words="every file", most=lambda story: story.size)


def unread(answers: int, *, besides: int = 0) -> Again:
    """Return a bound of answers that nobody reads, and of the file so many times."""
    files = {0: "", 1: "the file, and ", 2: "the file twice, and "}
    words = f"{files[besides]}{counted(answers, 'answer')} that {_are(answers)} not read"
    return Again(
        words=words,
        most=lambda story: (answers + besides) * (len(story.data) + MARGIN_BYTES),
    )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def times_the_file(times: int) -> Again:
    return Again(
        words=f"the file, {times} times", most=lambda story: times * len(story.data) + MARGIN_BYTES
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A fault, and the promise about it.

    However the first run `ends`: nothing that is half is published, and once the fault is over,
    the same command publishes everything; that is part of every row.
    """

    fault: str
    cause: Cause
    happens: str
    ends: int = 0  # the exit code of the command that meets the fault
    says: str = ""  # a pattern of the sentence that it ends with
    notes: str = ""  # a pattern of what it tells while it goes on
    again: Again = NOTHING
    roads: Sequence[str] = BOTH
    act: Act = Story.fetch
    at_each: bool = False  # the fault comes at the first chance, then at the second, and so on
    may_go_on: bool = False  # some of the chances concern what is not needed
    not_yet: str | None = None  # why the promise is not kept; the test then expects that
