"""The last guard before something is written: no link's secret, no text that cannot be stored."""

from __future__ import annotations

import re

from state.errors import StateError

__all__ = ["guarded", "guarded_text", "refuse_secrets"]

# Every word of an OSS link that opens something, in the old and the new (V4) form of signing, and
# of a call to the platform; plain or percent-encoded any number of times more.
_OPENS = re.compile(
    r"(?:signature|security-token|ossaccesskeyid|x-oss-credential"
    r"|(?:(?<![a-z])|(?<=3f)|(?<=26))(?:sign|app_secret))(?:=|%(?:25)*3d)",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"[^\s\"'<>]+")


def _opens(text: str) -> bool:
    # Most texts have neither mark, and the pattern takes its time with each of thousands of keys.
    return ("=" in text or "%" in text) and _OPENS.search(text) is not None


def guarded_text(text: str) -> str:
    """Return the text with a link's query as `?…`, and without what no database can keep.

    A JSON reply may hold half of a surrogate pair, or NUL, which PostgreSQL does not keep.
    """
    storable = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return _TOKEN.sub(_without_secret, storable) if _opens(storable) else storable


def _without_secret(token: re.Match[str]) -> str:
    """Return the token as it is, or without its query, or not at all."""
    text = token[0]
    if not _opens(text):
        return text
    head, mark, _ = text.partition("?")
    return f"{head}?…" if mark and not _opens(head) else "…"


def guarded(value: object) -> object:
    """Return a JSON value with every text in it guarded, the keys included."""
    if isinstance(value, str):
        return guarded_text(value)
    if isinstance(value, dict):
        return {guarded(key): guarded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [guarded(item) for item in value]
    return value


def refuse_secrets(*texts: str) -> None:
    """Raise StateError if an object's identity, which must stay exact, holds a secret."""
    if any(_opens(text) for text in texts):
        raise StateError(
            "An object's name holds a part of a signed link, which is never written down; "
            "expected its key alone, without the link's query"
        )
