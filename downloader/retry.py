"""Pauses between attempts: exponential, jittered, bounded, and obedient to `Retry-After`.

Only `tenacity` loops and `pause` sleep; tests switch both off with `without_waiting`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import email.utils
import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

__all__ = ["attempts", "pause", "pause_seconds", "retry_after_seconds", "without_waiting"]

FIRST_PAUSE_SECONDS = 0.5

_waiting: contextvars.ContextVar[bool] = contextvars.ContextVar("waiting", default=True)


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Let every pause between attempts last no time: the switch for tests."""
    token = _waiting.set(False)
    try:
        yield
    finally:
        _waiting.reset(token)


def pause_seconds(
    attempt: int,
    *,
    maximum: float,
    first: float = FIRST_PAUSE_SECONDS,
    retry_after: float | None = None,
) -> float:
    """Return how many seconds to wait after attempt number `attempt` (from 1) has failed.

    The pause doubles from `first` up to `maximum`; half of it is random, so that many clients
    that failed together do not come back together. The other side's own wish, `retry_after`,
    is a lower bound, and is obeyed up to an hour even beyond `maximum`.
    """
    exponential = min(maximum, first * 2.0 ** min(attempt - 1, 32))
    jittered = exponential * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
    return max(jittered, min(retry_after or 0.0, 3600.0))


async def pause(seconds: float) -> None:
    """Sleep for `seconds`, or, under `without_waiting`, only let others run."""
    await asyncio.sleep(seconds if _waiting.get() else 0)


def attempts(
    *, max_attempts: int, maximum: float, first: float = FIRST_PAUSE_SECONDS
) -> AsyncRetrying:
    """Return a tenacity loop over errors that call themselves `retryable`, then re-raise.

    Iterate over it with `async for attempt in attempts(...): with attempt: ...`.
    """

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        retry_after = getattr(error, "retry_after", None)
        return pause_seconds(
            state.attempt_number, maximum=maximum, first=first, retry_after=retry_after
        )

    return AsyncRetrying(
        stop=stop_after_attempt(max_attempts),
        wait=wait,
        sleep=pause,
        retry=retry_if_exception(lambda error: bool(getattr(error, "retryable", False))),
        reraise=True,
    )


def retry_after_seconds(value: str | None, *, now: datetime | None = None) -> float | None:
    """Parse a `Retry-After` header, seconds or an HTTP date (RFC 9110 §10.2.3), or return None."""
    text = (value or "").strip()
    if text.isdecimal():
        seconds = float(text)
        return seconds if math.isfinite(seconds) else None
    try:
        at = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - (now or datetime.now(UTC))).total_seconds())
