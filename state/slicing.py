"""Many rows at a time, and no more than a database or the memory takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from sqlalchemy import Connection, UpdateBase

__all__ = ["execute_all", "sliced"]

NUMBERS = 500  # in one question: SQLite takes 32,766, older ones 999
ROWS = 1000  # that are handed to the database at once

T = TypeVar("T")


def sliced(numbers: Iterable[T]) -> Iterator[Sequence[T]]:
    """Yield the numbers in pieces that fit into one question."""
    every = list(numbers)
    for first in range(0, len(every), NUMBERS):
        yield every[first : first + NUMBERS]


def execute_all(
    connection: Connection, statement: UpdateBase, rows: Iterable[Mapping[str, object]]
) -> int:
    """Carry the statement out for every row, and return how many rows of the state it met.

    In slices: the rows of 20,000 files at once would take more memory than the files.
    """
    remaining, met = iter(rows), 0
    while some := list(islice(remaining, ROWS)):
        met += connection.execute(statement, some).rowcount
    return met
