"""Text that is safe on a terminal and fits into it, and the phrases that screens share.

Names and messages come from elsewhere: whatever they hold, no escape sequence gets out, and
the width that is counted is the width that is seen.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from downloader.logs import printable
from downloader.units import counted, format_seconds

__all__ = [
    "cells",
    "files_phrase",
    "fitted",
    "short_id",
    "shortened",
    "time_left",
    "waiting_phrase",
]

ELLIPSIS = "…"
SHORT_ID_CELLS = 9
DAY, HOUR, MINUTE = 86400, 3600, 60
EMOJI_SELECTOR = "\ufe0f"  # may make the character before it a cell wider


def cells(text: str) -> int:
    """Return how many columns of a terminal the text takes: CJK takes two a character."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me") and char != EMOJI_SELECTOR:
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def shortened(text: str, width: int) -> str:
    """Return the text in at most `width` cells; of a long one, the middle is left out.

    The end of a file's name tells as much as its beginning: a number, `.vcf.gz` or `.tbi`.
    """
    if cells(text) <= width:
        return text
    if width < len(ELLIPSIS):
        return ""
    room = width - len(ELLIPSIS)
    head = _first_cells(text, room // 2)
    tail = _first_cells(reversed(text), room - room // 2)[::-1]
    return f"{head}{ELLIPSIS}{tail}"


def _first_cells(chars: Iterable[str], room: int) -> str:
    taken = []
    for char in chars:
        room -= _cells(char)
        if room < 0:
            break
        taken.append(char)
    return "".join(taken)


def fitted(text: str, width: int) -> str:
    """Return the text in exactly `width` cells."""
    short = shortened(text, width)
    return short + " " * (width - cells(short))


def short_id(task_id: str) -> str:
    """Return enough of the task's id to tell it from its neighbours'.

    Ids that are given out in order differ at the end, random ones everywhere.
    """
    return shortened(printable(task_id), SHORT_ID_CELLS)


def files_phrase(done: int, files: int) -> str:
    """Return `1/3 files`."""
    return f"{done:,}/{counted(files, 'file')}"


def waiting_phrase(
    status: str, *, polls: int, next_in_seconds: float, width: int | None = None
) -> str:
    """Return `PENDING, asked 3 times, next in 12 s`, or less of it where `width` is small."""
    status = printable(status)
    asked = "asked once" if polls == 1 else f"asked {polls} times"
    pause = round(next_in_seconds)
    then = f"next in {format_seconds(pause)}" if pause > 0 else "asking now"
    phrase = f"{status}, {asked}, {then}"
    if width is None or cells(phrase) <= width:
        return phrase
    return shortened(f"{status}, {then}", width)


def time_left(seconds: float) -> str:
    """Return a time as `9 min 50 s`; a long one coarser, for nobody knows it better."""
    for unit in (DAY, HOUR, MINUTE):
        if seconds >= 10 * unit:
            return format_seconds(round(seconds / unit) * unit)
    return format_seconds(round(seconds))
