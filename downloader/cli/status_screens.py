"""Where `status` shows a page: written once, one after the other, or drawn anew in its place."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

__all__ = ["Page", "Screen", "choose_screen"]

START = "\x1b[H"  # the cursor goes to the first line
CLEAR = "\x1b[2J"
REST_OF_LINE = "\x1b[K"
REST_OF_SCREEN = "\x1b[J"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What there is to show: the result itself, and what people want to know before and after."""

    head: Sequence[str] = ()
    body: Sequence[str] = ()
    notes: Sequence[str] = ()


class Screen:
    """Writes each page below the one before: the result on stdout, the rest on stderr."""

    def __init__(self) -> None:
        self._has_shown = False

    @property
    def width(self) -> int | None:
        """In how many columns a table must fit; None if that is nobody's concern."""
        return shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    def show(self, page: Page) -> None:
        """Show a page."""
        if self._has_shown and page.body:
            typer.echo()
        self._has_shown = True
        for lines, is_result in ((page.head, False), (page.body, True), (page.notes, False)):
            for line in lines:
                typer.echo(line, err=not is_result)

    def close(self) -> None:
        """Leave the terminal to others."""


class RedrawnScreen(Screen):
    """Draws each page over the one before, in one go, so that nothing flickers."""

    def __init__(self) -> None:
        super().__init__()
        self._size: os.terminal_size | None = None

    def show(self, page: Page) -> None:
        """Draw as much of a page as there is room for."""
        from downloader.screens.text import shortened

        size = shutil.get_terminal_size()
        lines = _within([*page.head, *page.body, *page.notes], size.lines)
        drawn = "\n".join(shortened(line, size.columns) + REST_OF_LINE for line in lines)
        # What a terminal makes of old lines when its size changes is its own affair.
        start = START if size == self._size else START + CLEAR
        self._size = size
        sys.stdout.write(f"{start}{drawn}{REST_OF_SCREEN}")
        sys.stdout.flush()

    def close(self) -> None:
        """Let the shell go on below the page."""
        typer.echo()


def choose_screen(*, is_redrawn: bool) -> Screen:
    """Return the screen that fits stdout."""
    is_possible = is_redrawn and sys.stdout.isatty() and _can_move_the_cursor()
    return RedrawnScreen() if is_possible else Screen()


def _can_move_the_cursor() -> bool:
    from downloader.screens import CANNOT_MOVE_THE_CURSOR

    return os.environ.get("TERM", "") not in CANNOT_MOVE_THE_CURSOR


def _within(lines: Sequence[str], height: int) -> list[str]:
    """Return the lines in at most `height`; of too many, the middle is left out."""
    left_out = len(lines) - height
    if left_out <= 0:
        return [*lines]
    head = (height - 1) // 2
    tail = height - 1 - head
    gap = f"… {left_out + 1:,} more lines"
    return [*lines[:head], gap, *lines[len(lines) - tail :]]
