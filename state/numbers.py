"""The numbers of SQLite's rows: each is greater than every one before, up to a last one.

A row that damage has given one of the last numbers would leave none for the rows to come, and
SQLite would tell that the disk is full.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Column, Connection, func, select, update

from state import schema

__all__ = ["are_running_out", "renumber"]

HIGHEST = 2**62  # no state comes there by counting
NUMBERED = (schema.tasks, schema.files, schema.events, schema.notices)

_ROWS = " UNION ALL ".join(f"SELECT 1 FROM {table} WHERE id >= {HIGHEST}" for table in NUMBERED)  # noqa: S608


def are_running_out(connection: Connection) -> bool:
    """Tell whether there is a row with so high a number; this takes no time."""
    if connection.dialect.name != "sqlite":
        return False  # a server counts apart from its rows
    return connection.exec_driver_sql(_ROWS).first() is not None


def renumber(connection: Connection) -> None:
    """Give such rows the next number after all others, also where other rows name them."""
    connection.exec_driver_sql("PRAGMA defer_foreign_keys=ON")
    for table in NUMBERED:
        number = table.c.id
        highest = func.coalesce(func.max(number), 0)
        last = connection.execute(select(highest).where(number < HIGHEST)).scalar_one()
        too_high = connection.execute(select(number).where(number >= HIGHEST)).scalars().all()
        for new, old in enumerate(too_high, last + 1):
            for column in (number, *_naming(number)):
                change = update(column.table).where(column == old)
                connection.execute(change.values({column.name: new}))
        connection.exec_driver_sql(
            "UPDATE sqlite_sequence SET seq = min(seq, ?) WHERE name = ?",
            (last + len(too_high), table.name),
        )


def _naming(number: Column[int]) -> Iterator[Column[int]]:
    for table in schema.metadata.tables.values():
        yield from (column for column in table.c if column.references(number))
