"""Logging set-up: sentences for people on stderr, with every secret taken out."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable

__all__ = ["one_line", "printable", "safe_lines", "scrubbed", "set_up_logging"]

# In a link as it is, in one that was percent-encoded once more, and in a printed dict or JSON.
_SECRET = re.compile(
    r"(?i)(?:\b|(?<=3f)|(?<=26))"
    r"(signature|security-token|ossaccesskeyid|sign|app_secret|x-oss-credential)"
    r"(=|%(?:25)*3d|['\"]\s*:\s*['\"])[^&\s'\"<>]+"
)


def scrubbed(text: str) -> str:
    """Return the text with the values of secret parameters taken out."""
    return _SECRET.sub(r"\1\2…", text)


def printable(text: str) -> str:
    """Return the text on one line, with `?` for every control or invisible character.

    What a server or a file name says must not move the cursor of the terminal it is shown on.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def safe_lines(text: str) -> list[str]:
    """Return the lines of a message, each printable and without secrets."""
    return [printable(line) for line in scrubbed(text).splitlines()]


def one_line(text: str, limit: int) -> str:
    """Return somebody else's words, safe to print, with `…` for what is beyond the limit."""
    # Before anything else is done with it: it may be megabytes.
    words = " ".join(printable(text[: 4 * limit]).split())
    return words if len(words) <= limit else f"{words[:limit]}…"


class _Scrubbing(logging.Formatter):
    """The last line of defence: nothing is logged before it went through here."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(safe_lines(super().format(record)))


class _Saying(logging.Handler):
    """Hands each message to whoever draws on the terminal, so that none tears a bar."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(self.format(record))


def set_up_logging(*, verbose: bool = False, say: Callable[[str], object] | None = None) -> None:
    """Send warnings, or with `verbose` everything, to `say`, which is for stderr by default.

    `say` is called in the thread in which something is logged.
    """
    handler = logging.StreamHandler(sys.stderr) if say is None else _Saying(say)
    handler.setFormatter(_Scrubbing("%(levelname)s %(name)s: %(message)s"))
    for name in ("downloader", "state"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
        logger.propagate = False
