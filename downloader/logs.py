"""Logging set-up: sentences for people on stderr, with every secret taken out."""

from __future__ import annotations

import logging
import re
import sys

__all__ = ["scrubbed", "set_up_logging"]

_SECRET = re.compile(
    r"(?i)\b(signature|security-token|ossaccesskeyid|sign|app_secret|x-oss-signature"
    r"|x-oss-security-token|x-oss-credential)=[^&\s'\"<>]+"
)


def scrubbed(text: str) -> str:
    """Return the text with the values of secret parameters taken out."""
    return _SECRET.sub(r"\1=…", text)


class _Scrubbing(logging.Formatter):
    """The last line of defence: nothing is logged before it went through here."""

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def set_up_logging(*, verbose: bool = False) -> None:
    """Send warnings, or with `verbose` everything, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Scrubbing("%(levelname)s %(name)s: %(message)s"))
    for name in ("downloader", "state"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.DEBUG if verbose else logging.WARNING)
        logger.propagate = False
