"""How a value is kept in a column, and what a value reads as that this program cannot have kept.

SQLite lets any value be in any column. Whatever a damaged row holds, reading it fails in no case:
the value is as good as none, and the row is shown, begun again or removed like any other. What a
file's checkpoint is made of is read as it is: `state.checkpoints` tells whether it makes sense.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import BigInteger, DateTime, Dialect, Double, Integer, Text, TypeDecorator
from sqlalchemy.types import TypeEngine

from state.records import Phase

__all__ = ["EPOCH", "LARGEST_COUNT", "PhaseWord", "Seconds", "UtcDateTime", "Whole", "Words"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LARGEST_COUNT = 2**31 - 1  # what PostgreSQL's INTEGER holds
LONGEST_SECONDS = 1e9

T = TypeVar("T")
Reader = Callable[[Any], Any]

_PHASES: dict[object, Phase] = {phase.value: phase for phase in Phase}


class _Checked(TypeDecorator[T]):
    """A type whose values SQLite does not check; a server does so itself."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Reader | None:
        """Return what reads a value, or None where it is read as the driver gives it."""
        if dialect.name == "sqlite":
            return self._read
        return super().result_processor(dialect, coltype)

    def _read(self, value: object) -> T | None:
        """Return what the value reads as, whatever it is."""
        raise NotImplementedError


class UtcDateTime(_Checked[datetime]):
    """An aware UTC datetime on every database; a naive one is refused before it is stored.

    What is no time reads as `otherwise`.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def __init__(self, otherwise: datetime | None = None) -> None:
        super().__init__()
        self.otherwise = otherwise

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware time into what the database keeps."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        moment = value.astimezone(UTC)
        # SQLite has no time zones: its text form is UTC by our word, and sorts as time does.
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn what a server kept into an aware UTC time."""
        return None if value is None else value.astimezone(UTC)

    def _read(self, value: object) -> datetime | None:
        if not isinstance(value, str):
            return None if value is None else self.otherwise
        try:
            return datetime.fromisoformat(value).replace(tzinfo=UTC)
        except ValueError:
            return self.otherwise


class PhaseWord(TypeDecorator[Phase]):
    """A `Phase` kept as its word; any other word reads as FAILED, and the task can be retried."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Phase | None, dialect: Dialect) -> str | None:
        """Keep the word."""
        return None if value is None else value.value

    def process_result_value(self, value: object, dialect: Dialect) -> Phase | None:
        """Give the phase."""
        return None if value is None else _PHASES.get(value, Phase.FAILED)


class Words(_Checked[str]):
    """A text; bytes read as the text that they were, and what is no text in them as `\ufffd`."""

    impl = Text
    cache_ok = True

    def _read(self, value: object) -> str | None:
        if value is None:
            return None
        text = value if isinstance(value, str) else _text(value)
        # No name and no path has NUL in it, and nothing that this program writes.
        return text.replace("\0", "\ufffd") if "\0" in text else text


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class Whole(_Checked[int]):
    """A whole number from 0 to `most`; anything else reads as `otherwise`."""

    impl = Integer
    cache_ok = True

    def __init__(self, most: int = LARGEST_COUNT, otherwise: int | None = None) -> None:
        super().__init__()
        self.most = most
        self.otherwise = otherwise

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[int]:
        """Give the column room for the largest number."""
        return dialect.type_descriptor(Integer() if self.most <= LARGEST_COUNT else BigInteger())

    def _read(self, value: object) -> int | None:
        if value is None:
            return None
        return value if isinstance(value, int) and 0 <= value <= self.most else self.otherwise


class Seconds(_Checked[float]):
    """A duration; what is none reads as None."""

    impl = Double
    cache_ok = True

    def _read(self, value: object) -> float | None:
        if isinstance(value, float) and 0 <= value <= LONGEST_SECONDS:
            return value
        return None
