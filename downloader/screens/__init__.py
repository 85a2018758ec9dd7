"""What people and programs see of the work: bars, plain lines, JSON lines, or nothing.

People's text goes to stderr, JSON to stdout. A screen is never worth a download: one whose
terminal or pipe is gone falls silent, and the work goes on.
"""

from __future__ import annotations

import os
from typing import TextIO

from downloader.screens.bars import Bars
from downloader.screens.json_lines import JsonLines
from downloader.screens.lines import Lines
from downloader.screens.screen import Quiet, Screen

__all__ = ["Bars", "JsonLines", "Lines", "Quiet", "Screen", "choose_screen"]

CANNOT_MOVE_THE_CURSOR = ("", "dumb", "unknown")  # values of TERM


def choose_screen(
    *, quiet: bool, json: bool, stderr: TextIO | None, stdout: TextIO | None
) -> Screen:
    """Return the screen that fits: events on stdout for `json`, bars on a terminal, else lines.

    `quiet` silences stderr, and leaves the events of `json`. NO_COLOR needs no care: there is no
    colour anywhere.
    """
    people = None if quiet else stderr
    if json and stdout is not None:
        return JsonLines(stdout, people=people)
    if people is None:
        return Quiet()
    return Bars(people) if _can_redraw(people) else Lines(people)


def _can_redraw(stream: TextIO) -> bool:
    try:
        is_terminal = stream.isatty()
    except ValueError:  # it is closed
        return False
    return is_terminal and os.environ.get("TERM", "") not in CANNOT_MOVE_THE_CURSOR
