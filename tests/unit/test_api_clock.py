import email.utils
from datetime import UTC, datetime, timedelta

import pytest

from downloader.api.clock import PlatformClock

NONE = timedelta(0)


def date_header(offset):
    return email.utils.format_datetime(datetime.now(UTC) + offset, usegmt=True)


@pytest.mark.parametrize("hours", [-5, 1, 24 * 365 * 50])
def test_a_clock_that_is_off_is_corrected(hours):
    clock = PlatformClock()
    clock.observe(date_header(timedelta(hours=hours)))
    assert clock.correct(NONE)
    assert abs(clock.skew - timedelta(hours=hours)) < timedelta(seconds=2)
    told = datetime.strptime(clock.timestamp(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs(told - datetime.now(UTC) - clock.skew) < timedelta(seconds=2)


@pytest.mark.parametrize("seconds", [-50, 0, 50])
def test_a_clock_that_is_nearly_right_is_not_to_blame(seconds):
    clock = PlatformClock()
    clock.observe(date_header(timedelta(seconds=seconds)))
    assert not clock.correct(NONE)
    assert clock.skew == NONE


@pytest.mark.parametrize("date", [None, "", "yesterday", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_date_that_cannot_be_used_teaches_nothing(date):
    """A date from an earlier reply does not stand in for it either."""
    clock = PlatformClock()
    clock.observe(date_header(timedelta(hours=1)))
    clock.observe(date)
    assert clock.observed is None
    assert not clock.correct(NONE)


def test_calls_that_were_refused_together_all_learn_the_same():
    clock = PlatformClock()
    clock.observe(date_header(timedelta(hours=1)))
    assert clock.correct(NONE)
    assert clock.correct(NONE)
    assert not clock.correct(clock.skew)


def test_a_date_of_unknown_zone_is_utc():
    clock = PlatformClock()
    clock.observe(date_header(timedelta(0)).replace("GMT", "-0000"))
    assert clock.observed is not None
    assert abs(clock.observed) < timedelta(seconds=3)


def test_a_date_that_no_calendar_has_tells_nothing():
    clock = PlatformClock()
    clock.observe("Fri, 99999999999999999999 Dec 2024 00:00:00 GMT")
    assert clock.observed is None
