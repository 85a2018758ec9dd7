"""A look at a state that changes nothing: for whoever asks whether it can be used."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import SQLAlchemyError

from state.engine import check_writable, look_over
from state.faults import cannot_open, fault
from state.migrations import found_version
from state.places import connected, place_of
from state.schema import tasks

__all__ = ["look_at"]


def look_at(url_or_path: str | Path) -> tuple[str, int | None]:
    """Return the name of a state that is there and can be used, and how many tasks it knows.

    Nothing is changed: no migration, no mode, no file beside it. The number is None where only a
    writer could read it, after a crash. Whether an SQLite file is there, the caller looks first.

    StateUnreadable or StateTooNew: it cannot be used.
    """
    place = place_of(url_or_path)
    if isinstance(place, Path):
        return str(place), _look_at_file(place)
    engine, location = connected(place)
    try:
        with engine.execution_options(postgresql_readonly=True).connect() as connection:
            return location, _count_tasks(connection, location)
    except (SQLAlchemyError, ValueError) as error:  # ValueError: a URL that no driver can send
        raise fault(error, location) from error
    finally:
        engine.dispose()


def _look_at_file(path: Path) -> int | None:
    # At rest nobody has it open, and there is nothing to undo: SQLite needs no lock, and without
    # one it makes no files of its own beside it.
    companions = [path.with_name(path.name + suffix) for suffix in ("-wal", "-journal")]
    is_at_rest = not any(companion.exists() for companion in companions)
    try:
        options = "&immutable=1" if is_at_rest else ""
        known = look_over(path, str(path), read=_count_tasks, options=options)
        check_writable(path)
    except (OSError, ValueError) as error:
        raise cannot_open(str(path), error) from error
    return known


def _count_tasks(connection: Connection, location: str) -> int:
    if not found_version(connection, location):
        return 0
    return connection.execute(select(func.count()).select_from(tasks)).scalar_one()
