"""Conditional requests as RFC 9110 §13 evaluates them: pure, and stricter than the real store."""

from __future__ import annotations

import email.utils
import enum
import re
from collections.abc import Mapping
from datetime import UTC, datetime

__all__ = ["Verdict", "evaluate", "range_applies"]

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_TAG_LIST = re.compile(rf"[ \t,]*{_TAG}(?:[ \t]*,[ \t,]*{_TAG})*[ \t,]*")


class Verdict(enum.Enum):
    """What the preconditions of a request say about it."""

    PROCEED = enum.auto()
    FAILED = enum.auto()  # 412
    NOT_MODIFIED = enum.auto()  # 304


def evaluate(headers: Mapping[str, str], *, etag: str | None, modified_at: datetime) -> Verdict:
    """Evaluate a GET's or HEAD's preconditions in the order of RFC 9110 §13.2.2."""
    if "If-Match" in headers:
        if not _matches(headers["If-Match"], etag, strong=True):
            return Verdict.FAILED
    elif _is_before(headers.get("If-Unmodified-Since"), modified_at):
        return Verdict.FAILED
    if "If-None-Match" in headers:
        if _matches(headers["If-None-Match"], etag, strong=False):
            return Verdict.NOT_MODIFIED
    elif _is_before(headers.get("If-Modified-Since"), modified_at) is False:
        return Verdict.NOT_MODIFIED
    return Verdict.PROCEED


def range_applies(if_range: str | None, *, etag: str | None, modified_at: datetime) -> bool:
    """Tell whether `If-Range` lets a `Range` count (§13.1.5: strong validators only)."""
    if if_range is None:
        return True
    if re.fullmatch(_TAG, if_range):
        return _matches(if_range, etag, strong=True)
    return _date(if_range) == modified_at


def _matches(header: str, etag: str | None, *, strong: bool) -> bool:
    if etag is None:
        return False
    if header.strip() == "*":
        return True
    if not _TAG_LIST.fullmatch(header):
        return False
    tags = re.findall(_TAG, header)
    if strong:  # §8.8.3.2: a weak tag never matches strongly
        return etag in tags and not etag.startswith("W/")
    return etag.removeprefix("W/") in {tag.removeprefix("W/") for tag in tags}


def _is_before(header: str | None, modified_at: datetime) -> bool | None:
    """Tell whether the header's date is before the change; None where there is no valid date."""
    at = _date(header)
    return None if at is None else at < modified_at


def _date(header: str | None) -> datetime | None:
    try:
        at = email.utils.parsedate_to_datetime(header or "")
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
