"""The rate limit by the clock: windows such as `mon-fri 08:00-18:00 20M`, in local time.

The first window that covers a moment gives the rate; where none does, the setting `limit_rate`
does. A window that ends at or before its start runs over midnight and belongs to the day it
starts on: `fri 22:00-06:00` ends on Saturday. The clock on the wall counts: in an hour that is
there twice, a window is there twice; of an hour that is skipped, nothing is left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfoNotFoundError

from downloader.errors import InvalidSettings
from downloader.units import parse_rate, plain_bytes

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

__all__ = ["Timetable", "Window", "format_windows", "local_zone", "parse_window", "parse_windows"]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVERY_DAY = frozenset(range(7))
MINUTES_PER_DAY = 24 * 60
MIN_RATE = 1024  # as of `limit_rate`
EXAMPLE = "such as mon-fri 08:00-18:00 20M, or 22:00-06:00 none"
_WINDOW = re.compile(
    r"(?:(?P<days>[a-z]+(?:\s*[,-]\s*[a-z]+)*)\s+)?"
    r"(?P<start>[0-9:]+)\s*-\s*(?P<stop>[0-9:]+)\s+(?P<rate>\S.*)",
    re.IGNORECASE,
)
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])|24:00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The half-open minutes `[start, stop)` of some days, and the rate in them; None: no limit.

    Minutes are counted from the midnight a day begins with; `stop` is beyond 1440 if the window
    ends on the day after.
    """

    days: frozenset[int]  # 0 is Monday
    start: int
    stop: int
    bytes_per_second: int | None

    def covers(self, moment: datetime) -> bool:
        """Tell whether the moment, in local time, lies in the window."""
        today, minute = moment.weekday(), moment.hour * 60 + moment.minute
        is_since_yesterday = minute + MINUTES_PER_DAY < self.stop
        return (today in self.days and self.start <= minute < self.stop) or (
            (today - 1) % 7 in self.days and is_since_yesterday
        )

    def __str__(self) -> str:
        """Return the window as in the setting; `parse_window` returns the same."""
        is_late = self.stop > MINUTES_PER_DAY
        stop = self.stop - MINUTES_PER_DAY if is_late else self.stop
        rate = "none" if self.bytes_per_second is None else plain_bytes(self.bytes_per_second)
        words = [f"{_clock(self.start)}-{_clock(stop)}", rate]
        return " ".join(words if self.days == EVERY_DAY else [_day_words(self.days), *words])


@dataclass(frozen=True, slots=True)
class Timetable:
    """The windows in their order, the rate otherwise, and the zone of the clock on the wall."""

    windows: Sequence[Window]
    otherwise: int | None
    zone: tzinfo | None = None  # the local one

    def rate_at(self, moment: datetime) -> int | None:
        """Return the bytes per second at a moment, or None: no limit.

        A moment without a zone is one of the timetable's own.
        """
        if not self.windows:
            return self.otherwise
        local = self._local(moment)
        covering = (window for window in self.windows if window.covers(local))
        return next((window.bytes_per_second for window in covering), self.otherwise)

    def next_change(self, after: datetime) -> datetime | None:
        """Return the first moment after `after` at which the rate is another, or None: never."""
        if not self.windows:
            return None
        rate, local = self.rate_at(after), self._local(after)
        # In UTC: Python compares two moments of one zone by the clock on the wall.
        start = local.astimezone(UTC)
        moments = (moment for moment in self._moments(local.date()) if moment > start)
        changed = (moment for moment in moments if self.rate_at(moment) != rate)
        first = next(changed, None)
        return None if first is None else first.astimezone(local.tzinfo)

    def triggers(self) -> list[CronTrigger]:
        """Return the triggers of all moments at which the rate can change, none if there are none.

        One for each start and end of a window, and one for every full and half hour: clocks are
        put forward and back at these. Whenever one fires, even late, the rate is `rate_at(now)`;
        one that fires without need does no harm.
        """
        if not self.windows:
            return []
        # Settings are read by every command, and only the service has a scheduler.
        from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415

        zone = self.zone or local_zone()
        edges = dict.fromkeys(edge for window in self.windows for edge in _edges(window))
        fields: list[dict[str, object]] = [
            {"day_of_week": ",".join(DAYS[day] for day in days), "hour": hour, "minute": minute}
            for days, hour, minute in edges
        ]
        fields.append({"minute": "0,30"})
        return [CronTrigger(**each, second=0, timezone=zone) for each in fields]

    def _local(self, moment: datetime) -> datetime:
        zone = self.zone or local_zone()
        return moment.astimezone(zone) if moment.tzinfo else moment.replace(tzinfo=zone)

    def _moments(self, day: date) -> Iterator[datetime]:
        """Yield, in UTC and in order, when the rate can change, from the start of a day on."""
        clock = {minute % MINUTES_PER_DAY for each in self.windows for minute in _ends(each)}
        # Two weeks: the only window of a week may be in an hour that is skipped.
        for number in range(15):
            midnight, next_midnight = (
                self._local(datetime.combine(day + timedelta(days=number + offset), time()))
                for offset in (0, 1)
            )
            first, last = midnight.astimezone(UTC), next_midnight.astimezone(UTC)
            # On the two days of a year that are no 24 hours long, no minute is sure.
            is_plain = midnight.utcoffset() == next_midnight.utcoffset()
            minutes = sorted(clock) if is_plain else range((last - first) // timedelta(minutes=1))
            yield from (first + timedelta(minutes=minute) for minute in minutes)


def parse_windows(value: str | Iterable[str]) -> tuple[Window, ...]:
    """Return the windows of a list, or of text joined by `;`, in their order; `none` is none.

    Raises:
        ValueError: one of them is no window.
    """
    text = value if isinstance(value, str) else ";".join(value)
    parts = [part.strip() for part in text.split(";") if part.strip()]
    if [part.lower() for part in parts] == ["none"]:
        return ()
    return tuple(parse_window(part) for part in parts)


def format_windows(windows: Iterable[Window]) -> str:
    """Return the windows as in the setting; `parse_windows` returns the same."""
    return "; ".join(map(str, windows)) or "none"


def parse_window(text: str) -> Window:
    """Return the window in `mon-fri 08:00-18:00 20M`, `sat,sun 10:00-24:00 none` or without days.

    Raises:
        ValueError: it is no window.
    """
    match = _WINDOW.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no window; expected days, times and a rate, {EXAMPLE}")
    start, stop = (_minute(match[name], text) for name in ("start", "stop"))
    if start == MINUTES_PER_DAY:
        raise ValueError(f"{text!r} starts at 24:00; expected 00:00 of the day after")
    if start == stop:
        raise ValueError(f"{text!r} ends as it starts; for a whole day write 00:00-24:00")
    return Window(
        days=_days(match["days"], text),
        start=start,
        stop=stop if stop > start else stop + MINUTES_PER_DAY,
        bytes_per_second=_rate(match["rate"], text),
    )


def local_zone() -> tzinfo:
    """Return the zone of this machine, with its changes of the clock.

    Raises:
        InvalidSettings: its name is unknown.
    """
    from tzlocal import get_localzone  # noqa: PLC0415 - as in `triggers`

    try:
        return get_localzone()
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidSettings(
            f"The local time zone (TZ={os.environ.get('TZ', '')!r}) is unknown; expected a name "
            "such as Europe/Berlin: set TZ, or take limit_rate_times out"
        ) from None


def _minute(word: str, text: str) -> int:
    if not _TIME.fullmatch(word):
        raise ValueError(f"{text!r}: {word} is no time of day; expected 00:00 to 24:00, {EXAMPLE}")
    hours, _, minutes = word.partition(":")
    return int(hours) * 60 + int(minutes)


def _rate(words: str, text: str) -> int | None:
    try:
        rate = parse_rate(words)
    except ValueError:
        rate = 0
    if rate is not None and rate < MIN_RATE:
        least = plain_bytes(MIN_RATE)
        raise ValueError(
            f"{text!r}: {words!r} is no rate; expected at least {least}, or none, {EXAMPLE}"
        )
    return rate


def _days(words: str | None, text: str) -> frozenset[int]:
    if words is None:
        return EVERY_DAY
    ranges = [part.split("-") for part in "".join(words.lower().split()).split(",")]
    for day in (day for ends in ranges for day in ends):
        if day not in DAYS:
            raise ValueError(f"{text!r}: {day!r} is no day; expected {', '.join(DAYS)}, {EXAMPLE}")
    if any(len(ends) > 2 for ends in ranges):  # noqa: PLR2004 - a first and a last day
        raise ValueError(f"{text!r} has a range of three days' names; expected two, {EXAMPLE}")
    return frozenset(day for ends in ranges for day in _range(ends[0], ends[-1]))


def _range(first: str, last: str) -> Iterator[int]:
    """Yield the days of a range, which may run over Sunday."""
    start = DAYS.index(first)
    return ((start + n) % 7 for n in range((DAYS.index(last) - start) % 7 + 1))


def _day_words(days: frozenset[int]) -> str:
    """Return `mon-fri`, `sat,sun` or `mon-wed,sat`."""
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ",".join(
        f"{DAYS[run[0]]}-{DAYS[run[-1]]}" if len(run) > 2 else ",".join(DAYS[day] for day in run)  # noqa: PLR2004
        for run in runs
    )


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _ends(window: Window) -> tuple[int, int]:
    return window.start, window.stop


def _edges(window: Window) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Yield days, hour and minute of a window's start and of its end."""
    for minute in _ends(window):
        later, rest = divmod(minute, MINUTES_PER_DAY)
        yield tuple(sorted((day + later) % 7 for day in window.days)), rest // 60, rest % 60
