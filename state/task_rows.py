"""Rows of tasks, as every part of the store reads and writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from importlib import import_module
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from state import schema
from state.records import Phase, Task
from state.slicing import sliced

__all__ = [
    "FREE",
    "change_tasks",
    "insert_missing",
    "insert_task",
    "lock_numbers",
    "lock_tasks",
    "select_tasks",
    "tasks_where",
]

FREE: dict[str, Any] = {"acquired_by": None, "acquired_until": None}  # of any lease
TASK_COLUMNS = [schema.tasks.c[field.name] for field in fields(Task)]


def select_tasks(
    connection: Connection, *, limit: int | None = None, newest: bool = False, **wanted: object
) -> list[Task]:
    """Return the tasks whose columns have the values that are not None."""
    conditions = [
        schema.tasks.c[name] == value for name, value in wanted.items() if value is not None
    ]
    return tasks_where(connection, *conditions, limit=limit, newest=newest)


def tasks_where(
    connection: Connection,
    *conditions: ColumnElement[bool],
    limit: int | None = None,
    newest: bool = False,
) -> list[Task]:
    """Return the tasks that meet every condition, the oldest first, or the newest."""
    number = schema.tasks.c.id
    order = number.desc() if newest else number
    question = select(*TASK_COLUMNS).where(*conditions).order_by(order).limit(limit)
    return [Task(**row) for row in connection.execute(question).mappings()]


def lock_tasks(connection: Connection, numbers: Iterable[int]) -> list[Task]:
    """Return those of the tasks that are there; nobody else changes them before we end."""
    locked = lock_numbers(connection, numbers)
    return [
        task
        for some in sliced(locked)
        for task in tasks_where(connection, schema.tasks.c.id.in_(some))
    ]


def lock_numbers(
    connection: Connection, numbers: Iterable[int], *conditions: ColumnElement[bool]
) -> list[int]:
    """Return those of the tasks that meet every condition; nobody else changes them until we end.

    They are locked in one order by everybody, so that no two wait for each other (PostgreSQL).
    """
    number = schema.tasks.c.id
    # As strong as an update, which lets others add to a task's history.
    question = select(number).where(*conditions).order_by(number).with_for_update(key_share=True)
    return [
        found
        for some in sliced(sorted(numbers))
        for found in connection.execute(question.where(number.in_(some))).scalars()
    ]


def insert_task(connection: Connection, task_id: str, dest: str, *, now: datetime) -> Task:
    """Remember a new task and return it."""
    connection.execute(schema.tasks.insert().values(_new_row(task_id, dest, now)))
    return select_tasks(connection, task_id=task_id, dest=dest)[0]


def insert_missing(
    connection: Connection, task_ids: Iterable[str], dest: str, *, now: datetime
) -> None:
    """Remember those of the tasks that are new."""
    # SQLAlchemy has loaded the dialect with the engine.
    dialect = import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
    insert = dialect.insert(schema.tasks).on_conflict_do_nothing()
    # In one order for everybody: whoever inserts what another inserts waits for it (PostgreSQL).
    rows = [_new_row(task_id, dest, now) for task_id in sorted(task_ids)]
    if rows:
        connection.execute(insert, rows)


def _new_row(task_id: str, dest: str, now: datetime) -> dict[str, object]:
    return {
        "task_id": task_id,
        "dest": dest,
        "phase": Phase.WAITING,
        "polls": 0,
        "created_at": now,
        "updated_at": now,
    }


def change_tasks(connection: Connection, numbers: Sequence[int], values: Mapping[str, Any]) -> None:
    """Give the tasks these values; they are locked already."""
    for some in sliced(numbers):
        change = schema.tasks.update().where(schema.tasks.c.id.in_(some))
        connection.execute(change.values(**values))
