"""Logging set-up: sentences for people on stderr, with every secret taken out."""

from __future__ import annotations

import logging
import re
import sys

__all__ = ["scrubbed", "set_up_logging"]

# In a link as it is, in one that was percent-encoded once more, and in a printed dict or JSON.
_SECRET = re.compile(
    r"(?i)(?:\b|(?<=3f)|(?<=26))"
    r"(signature|security-token|ossaccesskeyid|sign|app_secret|x-oss-credential)"
    r"(=|%(?:25)*3d|['\"]\s*:\s*['\"])[^&\s'\"<>]+"
)
# What a server says must not move the cursor of the terminal it is shown on.
_CONTROLS = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"
}


def scrubbed(text: str) -> str:
    """Return the text with the values of secret parameters taken out."""
    return _SECRET.sub(r"\1\2…", text)


class _Scrubbing(logging.Formatter):
    """The last line of defence: nothing is logged before it went through here."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record)).translate(_CONTROLS)


def set_up_logging(*, verbose: bool = False) -> None:
    """Send warnings, or with `verbose` everything, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Scrubbing("%(levelname)s %(name)s: %(message)s"))
    for name in ("downloader", "state"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
        logger.propagate = False
