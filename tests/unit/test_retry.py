"""Pauses: they grow, they are jittered and bounded, and the other side's wish is obeyed."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from downloader.errors import BusinessError, PlatformUnavailable, StoreUnavailable
from downloader.retry import attempts, pause, pause_seconds, retry_after_seconds, without_waiting

NOW = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)


@pytest.fixture
def pauses(monkeypatch):
    """Record what would have been slept, without sleeping."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return slept


@given(
    attempt=st.integers(1, 10**9),
    maximum=st.floats(0, 1e6),
    first=st.floats(0.001, 100),
    retry_after=st.none() | st.floats(),
)
def test_a_pause_lies_between_half_and_the_whole_of_the_exponential_one(
    attempt, maximum, first, retry_after
):
    exponential = min(maximum, first * 2.0 ** min(attempt - 1, 32))
    seconds = pause_seconds(attempt, maximum=maximum, first=first, retry_after=retry_after)
    wish = min(retry_after, 3600.0) if retry_after and retry_after > 0 else 0.0
    assert max(exponential / 2, wish) <= seconds <= max(exponential, wish)


@pytest.mark.parametrize(
    ("attempt", "longest"),
    [(1, 0.5), (2, 1.0), (3, 2.0), (8, 60.0), (10_000, 60.0)],
)
def test_pauses_double_up_to_the_maximum(attempt, longest):
    seen = [pause_seconds(attempt, maximum=60.0) for _ in range(200)]
    assert longest / 2 <= min(seen) <= max(seen) <= longest
    assert len(set(seen)) > 100  # many clients that failed together do not come back together


@pytest.mark.parametrize(
    ("wish", "shortest"),
    [(120.0, 120.0), (1e9, 3600.0), (float("inf"), 3600.0), (0.0, 0.25), (-5.0, 0.25)],
)
def test_the_other_sides_wish_is_obeyed_up_to_an_hour(wish, shortest):
    assert pause_seconds(1, maximum=60.0, retry_after=wish) >= shortest


async def tried(errors, *, max_attempts=5):
    """Let one attempt after the other meet the next error; return how many there were."""
    waiting = list(errors)
    async for attempt in attempts(max_attempts=max_attempts, maximum=60.0):
        with attempt:
            if waiting:
                raise waiting.pop(0)
    return attempt.retry_state.attempt_number


async def test_what_may_pass_is_tried_again_until_it_works(pauses):
    assert await tried([StoreUnavailable("not yet", retry_after=100.0)] * 2) == 3
    assert len(pauses) == 2
    assert all(seconds >= 100.0 for seconds in pauses)


async def test_after_the_last_attempt_the_error_itself_is_raised(pauses):
    failures = [PlatformUnavailable(f"attempt {number}") for number in (1, 2, 3, 4)]
    with pytest.raises(PlatformUnavailable, match="attempt 3"):
        await tried(failures, max_attempts=3)
    assert len(pauses) == 2


@pytest.mark.parametrize(
    "error", [BusinessError(1, "wrong sign"), ValueError(), asyncio.CancelledError(), OSError()]
)
async def test_what_cannot_pass_is_raised_at_once(pauses, error):
    with pytest.raises(type(error)):
        await tried([error])
    assert pauses == []


async def test_the_switch_for_tests_takes_every_wait_and_ends_with_its_block(pauses):
    with without_waiting():
        await pause(1000.0)
        with without_waiting():
            pass
        await pause(1000.0)
    await pause(7.0)
    assert pauses == [0, 0, 7.0]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("Thu, 29 Feb 2024 12:01:00 GMT", 60.0),
        ("Thu, 29 Feb 2024 20:01:00 +0800", 60.0),
        ("Thursday, 29-Feb-24 12:01:00 GMT", 60.0),  # RFC 850, which clients must accept
        ("Thu Feb 29 12:01:00 2024", 60.0),  # asctime, which has no zone and means UTC
        ("Thu, 29 Feb 2024 11:00:00 GMT", 0.0),  # over already
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("9" * 400, None),  # more than any number of seconds
        ("9" * 5000, None),
        ("\u00b2", None),
        ("0\x1f", 0.0),
        ("Thu, 29 Feb 99999999999999999999 12:00:00 GMT", None),
        ("Thu, 30 Feb 2024 12:00:00 GMT", None),
        ("Thu, 29 Feb 2024 25:00:00 GMT", None),
        ("Thu, 29 Feb 2024 12:00:00 +99999999", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_or_nothing(value, seconds):
    assert retry_after_seconds(value, now=NOW) == seconds


@given(value=st.text(max_size=30) | st.text(st.sampled_from("0123456789 ,:+-JanFeb"), max_size=40))
@example("Mon, 01 Jan 0001 00:00:00 +2300")
@example("Fri, 31 Dec 9999 23:59:59 -2300")
def test_no_header_of_a_server_breaks_its_client(value):
    seconds = retry_after_seconds(value, now=NOW)
    assert seconds is None or 0 <= seconds < float("inf")


def test_a_date_is_measured_from_now():
    soon = datetime.now(UTC) + timedelta(hours=1)
    seconds = retry_after_seconds(soon.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    assert 3000 < seconds <= 3600
