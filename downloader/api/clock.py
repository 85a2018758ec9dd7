"""The platform's clock as far as it is known: ours, corrected by what its replies tell."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime, timedelta

__all__ = ["PlatformClock"]

# The platform refuses time stamps older than 300 s; below this a clock is not to blame.
MIN_SKEW = timedelta(seconds=60)
# A clock without a battery starts in 1970; anything beyond a century is nonsense.
MAX_SKEW = timedelta(days=36_525)


class PlatformClock:
    """Tells the platform's time; always UTC, whatever the local time zone is."""

    def __init__(self) -> None:
        self.skew = timedelta(0)  # added to our clock: positive where ours is behind
        self.observed: timedelta | None = None  # what the last reply's `Date` would make of it

    def timestamp(self) -> str:
        """Return the platform's time now, as a call carries it."""
        return (datetime.now(UTC) + self.skew).strftime("%Y-%m-%dT%H:%M:%SZ")

    def observe(self, date: str | None) -> None:
        """Remember how far the reply's `Date` header is from our own clock."""
        self.observed = None
        try:
            at = email.utils.parsedate_to_datetime(date) if date else None
        except (ValueError, OverflowError):  # a year that no calendar has
            return
        if at is None:
            return
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)  # "-0000": RFC 5322 for UTC of unknown origin
        whole = round((at - datetime.now(UTC)).total_seconds())  # `Date` has whole seconds only
        if abs(whole) <= MAX_SKEW.total_seconds():
            self.observed = timedelta(seconds=whole)

    def correct(self, used: timedelta) -> bool:
        """Adopt the observed skew if the one that was used is clearly off; tell whether it was.

        The caller says which skew it used: of several calls that were refused together, each
        must learn that the time stamp it sent was wrong.
        """
        if self.observed is None or abs(self.observed - used) <= MIN_SKEW:
            return False
        self.skew = self.observed
        return True
