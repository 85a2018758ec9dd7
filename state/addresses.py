"""What the text of a state's address shows by itself; nothing here opens it, or repeats it."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

__all__ = ["holds_password", "is_no_path"]

# A URL with one slash, or without its scheme; what libpq calls a connection string.
_MEANT_FOR_A_SERVER = re.compile(
    r"\s*([a-z][a-z0-9+.-]*:/|(sqlite|postgres)[a-z0-9+]*:|[^/]*:.*@"
    r"|(host(addr)?|port|dbname|user|password|service)\s*=|.*\spassword\s*=)",
    re.IGNORECASE | re.DOTALL,
)
_PASSWORD_OPTION = re.compile(r"[?&](ssl)?password=", re.IGNORECASE)


def is_no_path(text: str) -> bool:
    """Tell whether a text that is no URL is not meant for a path either.

    As a path it would be shown, with the password in it. One that begins with `/` or `~` is meant.
    """
    return not text.startswith(("/", "~")) and _MEANT_FOR_A_SERVER.match(text) is not None


def holds_password(text: str) -> bool:
    """Tell whether the URL of a state may hold a password, however it is written."""
    scheme, is_url, rest = text.strip().partition("://")
    if not is_url or scheme.startswith("sqlite"):  # the path of a file, which may hold any `@`
        return False
    user_info = rest.rpartition("@")[0]
    return ":" in user_info or _PASSWORD_OPTION.search(unquote_plus(rest)) is not None
