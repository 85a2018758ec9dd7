"""One row of the matrix: a fault, what must come of it, and at most how much is fetched again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from downloader.units import counted
from matrix.story import FIRST_LENGTH, VCF, VCF_KEY, Outcome, Story

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
    "what_came",
]

BOTH = ("plain", "straight")  # every byte by aiohttp, or by the road
STRAIGHT = ("straight",)  # as the program does; for what does not concern bytes
BY_PROCESS = ("process",)  # the program itself, as a process

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
ONE_BLOCK = Again(words="the damaged block", most=lambda _: _largest_block(VCF))
UNSAVED = Again(
    words="what came since the last checkpoint: 1 s, or 8 MiB of each segment",
    most=lambda story: story.size,
)
THE_FILE = Again(words="the file", most=lambda story: len(story.data))
THE_VCF = Again(words="the file", most=lambda story: len(story.files[VCF_KEY]))
EVERYTHING = Again(words="every file", most=lambda story: story.size)


def unread(*, first: int = 0, later: int = 0, whole: int = 0, besides: Again = NOTHING) -> Again:
    """Return a bound of answers that nobody reads: to the first request, to a later one, or whole.

    They are what the sockets have buffered of them; of these, that is all.
    """
    answers = first + later + whole
    verb = "is" if answers == 1 else "are"
    words = "" if besides is NOTHING else f"{besides.words}, and "
    return Again(
        words=f"{words}{counted(answers, 'answer')} that {verb} not read",
        most=lambda story: (
            first * FIRST_LENGTH
            + later * (len(story.data) - FIRST_LENGTH)
            + whole * len(story.data)
            + answers * MARGIN_BYTES
            + besides.most(story)
        ),
    )


def what_came(length: int = FIRST_LENGTH, *, times: int = 1) -> Again:
    """Return a bound for a file that is begun anew when so many bytes of it are here."""
    often = "" if times == 1 else f", {times} times"
    return Again(words=f"what had come of it{often}", most=lambda _: times * length)


def times_the_file(times: int) -> Again:
    return Again(words=f"the file, {times} times", most=lambda story: times * len(story.data))


def _largest_block(data: bytes) -> int:
    """Return the length of the largest BGZF block: each tells its own, less one."""
    largest = position = 0
    while position < len(data):
        length = int.from_bytes(data[position + 16 : position + 18], "little") + 1
        largest, position = max(largest, length), position + length
    return largest


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
    or_ends: int | None = None  # another one, which some of the chances end with
    says: str = ""  # a pattern of the sentence that it ends with
    notes: str = ""  # a pattern of what it tells while it goes on
    again: Again = NOTHING
    roads: Sequence[str] = BOTH
    act: Act = Story.fetch
    at_each: bool = False  # the fault comes at the first chance, then at the second, and so on
    may_go_on: str = ""  # where some of the chances do no harm, and it ends with 0
