"""The block of live lines at the bottom of a terminal, drawn again in place."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import TextIO

__all__ = ["Block"]

FALLBACK_COLUMNS, FALLBACK_ROWS = 80, 24
CLEAR_LINE, CLEAR_BELOW = "\x1b[K", "\x1b[J"  # from the cursor on
PLAIN = str.maketrans({"…": "~", "—": "-"})  # the same width, for old encodings


class Block:
    """Lines that are drawn over themselves.

    The cursor rests at the start of the first line. So what another program writes there stays
    visible, a narrower window wraps only what is cleared by the next drawing, and there is no
    mode of the terminal to restore, not even after `kill -9`. A drawing is one write.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._encoding = terminal.encoding or "ascii"
        self._lines: list[str] = []
        self._is_gone = False
        self.has_unicode = self._encoding.lower().replace("-", "").startswith("utf")

    def size(self) -> tuple[int, int]:
        """Return columns and rows of the terminal as they are now."""
        try:
            columns, rows = os.get_terminal_size(self._terminal.fileno())
        except (OSError, ValueError):
            columns = rows = 0
        return columns or FALLBACK_COLUMNS, rows or FALLBACK_ROWS

    def paint(self, lines: Sequence[str], *, above: Sequence[str] = (), wait: bool = False) -> bool:
        """Draw the lines in place of the last ones, and `above` them others that stay.

        Nothing is drawn, and False returned, while the terminal takes nothing: somebody who
        presses Ctrl-S pauses the screen, not the transfer. With `wait` it is waited for.
        """
        if list(lines) == self._lines and not above:
            return True
        if not wait and not self._takes_more():
            return False
        kept = "".join(f"{line}\n" for line in above)
        self._write(("\r" + CLEAR_BELOW + kept if kept else "") + _drawn(lines))
        self._lines = list(lines)
        return True

    def _takes_more(self) -> bool:
        try:
            poll = select.poll()
            poll.register(self._terminal.fileno(), select.POLLOUT)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True

    def _write(self, text: str) -> None:
        if self._is_gone:
            return
        if not self.has_unicode:
            text = text.translate(PLAIN).encode(self._encoding, "replace").decode(self._encoding)
        try:
            self._terminal.write(text)
            self._terminal.flush()
        except (OSError, ValueError):  # it hung up, or was closed
            self._is_gone = True


def _drawn(lines: Sequence[str]) -> str:
    """Return what draws the lines from the cursor on, and puts it back."""
    body = f"{CLEAR_LINE}\n".join(lines)
    up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
    return f"\r{body}{CLEAR_BELOW}\r{up}"
