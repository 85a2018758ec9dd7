"""What the faults of a database mean: a sentence for each, which says what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from state.errors import StateUnreadable

__all__ = ["BUSY_SECONDS", "cannot_open", "damaged", "fault", "no_database", "sqlite_code"]

BUSY_SECONDS = 10  # until a state that another process holds is given up


def fault(error: Exception, location: str) -> StateUnreadable:
    """Return the sentence for what a database or its driver raised."""
    sentences: dict[int | None, Callable[[], StateUnreadable]] = {
        sqlite3.SQLITE_BUSY: lambda: StateUnreadable(
            f"The state {location} was locked by another process for more than {BUSY_SECONDS} s; "
            "see what holds it (`fuser` names it), then try again"
        ),
        sqlite3.SQLITE_FULL: lambda: StateUnreadable(
            f"There is no space left to write the state {location}; free some and try again"
        ),
        sqlite3.SQLITE_NOTADB: lambda: no_database(location),
        sqlite3.SQLITE_CORRUPT: lambda: damaged(location),
    }
    known = sentences.get(sqlite_code(error))
    return known() if known else cannot_open(location, error)


def cannot_open(location: str, error: Exception) -> StateUnreadable:
    """Return the sentence with the first line of the reason, which names no value and no SQL."""
    cause = getattr(error, "orig", None) or error
    reason = cause.strerror if isinstance(cause, OSError) else str(cause).partition("\n")[0]
    return StateUnreadable(
        f"The state {location} cannot be used: {reason or type(cause).__name__}; "
        "mend that, or name another place with the setting `state`"
    )


def no_database(location: str) -> StateUnreadable:
    """Return the sentence about a file that SQLite cannot read at all."""
    return StateUnreadable(
        f"The state file {location} is not a database; it was left as it is: "
        "move it away, or name another place with the setting `state`"
    )


def damaged(location: str) -> StateUnreadable:
    """Return the sentence about a database whose structure is damaged."""
    return StateUnreadable(
        f"The state file {location} is damaged and was left as it is: restore it, or move it "
        "away and begin with a new one; results that are published already stay as they are"
    )


def sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's primary result code, if the error is SQLite's."""
    cause = getattr(error, "orig", error)
    code = getattr(cause, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
