"""What is to become of a task whose fetch has failed: a pure decision, as a word."""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass

from downloader.errors import (
    DiskFull,
    HostNotAllowed,
    ObjectArchived,
    TaskFailed,
    UsageError,
    VerificationFailed,
)
from downloader.retry import pause_seconds

__all__ = ["Fate", "Verdict", "judged"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
FIRST_PAUSE_SECONDS = 30.0
MAX_PAUSE_SECONDS = 3600.0
NO_ROOM_PAUSE_SECONDS = 600.0  # if nothing is heard of more room before
VERIFICATION_ATTEMPTS = 2  # what the store itself has wrong does not become right

HOPELESS = (TaskFailed, UsageError, HostNotAllowed, ObjectArchived)


class Fate(enum.Enum):
    """What is done with the task."""

    GIVEN_UP = "given up"
    TRIED_AGAIN = "tried again"
    PAUSED = "paused"  # the disk takes no more; this is no attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The fate of a task, how many attempts have failed by now, and the pause before the next."""

    fate: Fate
    tries: int
    pause: float = 0.0  # seconds


def judged(error: Exception, *, tries: int, attempts: int) -> Verdict:
    """Return what is to become of a task that failed with `error`, after `tries` failures."""
    if _is_for_want_of_room(error):
        return Verdict(fate=Fate.PAUSED, tries=tries)
    tries += 1
    is_unproved = isinstance(error, VerificationFailed)  # the bytes came, and are wrong
    allowed = min(attempts, VERIFICATION_ATTEMPTS) if is_unproved else attempts
    if isinstance(error, HOPELESS) or tries >= allowed:
        return Verdict(fate=Fate.GIVEN_UP, tries=tries)
    asked = getattr(error, "retry_after", None)
    pause = pause_seconds(
        tries, first=FIRST_PAUSE_SECONDS, maximum=MAX_PAUSE_SECONDS, retry_after=asked
    )
    return Verdict(fate=Fate.TRIED_AGAIN, tries=tries, pause=pause)


def _is_for_want_of_room(error: BaseException | None) -> bool:
    """Tell whether the disk is full, its quota is used up, or it cannot be written any more."""
    while error is not None:
        if isinstance(error, DiskFull) or getattr(error, "errno", None) in NO_ROOM:
            return True
        error = error.__cause__
    return False
