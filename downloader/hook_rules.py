"""What a hook of the settings may be, and by which variables a command is told.

A wrong one is found when the settings are read, not when the first task has ended.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from downloader.errors import InvalidSettings
from downloader.hosts import http_parts, is_loopback
from downloader.logs import printable

__all__ = ["VARIABLES", "check_command", "check_webhook"]

# In the environment of a command; they are no settings.
VARIABLES = (
    "BGE_ATTEMPT",
    "BGE_EVENT",
    "BGE_EXIT_CODE",
    "BGE_IDEMPOTENCY_KEY",
    "BGE_MANIFEST",
    "BGE_MESSAGE",
    "BGE_RESULT_PATH",
    "BGE_TASK_ID",
)

# What every reader takes for the same address: ASCII without blanks, quotes and backslashes.
_PLAIN = re.compile(r"[!#-;=?-\[\]-~]+")


def check_command(words: Sequence[str]) -> None:
    """Raise unless the words are a command that can mean the same in every directory.

    Raises:
        InvalidSettings: the program is not named, or by a path that is not absolute.
    """
    if not words or not words[0].strip():
        raise InvalidSettings(
            'A command has no program; expected a list such as ["/usr/local/bin/notify", "--lab"]'
        )
    if any("\0" in word for word in words):
        raise InvalidSettings("A command has a NUL in one of its words, which no program can get")
    if "/" in words[0] and not words[0].startswith("/"):
        raise InvalidSettings(
            f"The command {printable(words[0])} is a relative path, but it is started in /; "
            "give its whole path, or the name of a program on the PATH"
        )


def check_webhook(url: str) -> None:
    """Raise unless the address may be posted to; the address is in no message.

    Raises:
        InvalidSettings: it is no https address, or holds what is not sent.
    """
    expected = "expected an address such as https://hooks.example.org/bge"
    parts = http_parts(url)
    if parts is None or not _PLAIN.fullmatch(url):
        raise InvalidSettings(f"The webhook is no http address in plain ASCII; {expected}")
    if parts.username is not None or parts.password is not None:
        raise InvalidSettings(f"The webhook's address carries a user name; {expected}")
    if parts.fragment:
        raise InvalidSettings(
            f"The webhook's address has a fragment (#), which is not sent; {expected}"
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise InvalidSettings(
            "The webhook is plain http, which is allowed on this machine only; use https"
        )
