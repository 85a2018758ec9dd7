"""Transactions on an opened state: short, begun the right way, their faults told in a sentence."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select
from sqlalchemy.exc import SQLAlchemyError

from state.engine import open_engine
from state.errors import StateUnreadable
from state.faults import fault

__all__ = ["Database", "Part"]


class Database:
    """An opened state that hands out transactions; `location` is its name for people."""

    def __init__(self, engine: Engine, *, location: str) -> None:
        self.location = location
        self._writer = engine
        self._reader = engine.execution_options(state_reads_only=True)

    @classmethod
    def open(cls, url_or_path: str | Path) -> Database:
        """Open the state, create it where there is none, and bring an older one up to date."""
        engine, location = open_engine(url_or_path)
        return cls(engine, location=location)

    def close(self) -> None:
        """Close every connection; what was written is on disk already."""
        self._writer.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a transaction that is on disk at the end of the block, or undone if it raises."""
        with self._told_in_a_sentence(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a transaction that only reads, and waits for no writer."""
        with self._told_in_a_sentence(), self._reader.begin() as connection:
            yield connection

    def finds(self, question: Select[Any]) -> bool:
        """Tell whether it has any answer; this waits for no writer."""
        with self.reading() as connection:
            return connection.execute(question.limit(1)).first() is not None

    def tidy(self) -> None:
        """Let the database tidy itself; a server does so by its own rules."""
        if self._writer.dialect.name != "sqlite":
            return
        with self._told_in_a_sentence():
            raw = self._writer.raw_connection()
            try:
                cursor = raw.cursor()
                # None may be inside a transaction; a reader that is busy is not waited for. Whole
                # indexes are not counted: for as long as that took, nobody else could write.
                for pragma in ("analysis_limit=400", "optimize", "wal_checkpoint(PASSIVE)"):
                    cursor.execute(f"PRAGMA {pragma}").fetchall()
                cursor.close()
            finally:
                raw.close()

    @contextmanager
    def _told_in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:  # the latter where we ask it ourselves
            raise fault(error, self.location) from error
        except (ValueError, TypeError) as error:
            # What is in the rows is read whatever it is; what comes in may be no Unicode.
            raise StateUnreadable(
                f"The state {self.location} was given a value that it cannot keep "
                f"({type(error).__name__}), and was left as it is: names and paths must be Unicode"
            ) from error


class Part:
    """A part of the store: it asks the same database, at the time of the same clock."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
