"""Puts right what damage has put out of everybody's sight.

What a damaged value reads as, `state.columns` tells. But a database compares what is there: in
SQLite a text that is no time is later than every time, so that a task would never be due, or
would be held for ever; and whoever asks for the tasks of a phase asks for none that nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    Text,
    and_,
    case,
    cast,
    literal,
    literal_column,
    or_,
    select,
    union,
)

from state import schema
from state.columns import EPOCH
from state.event_rows import tell_all
from state.lease import LONGEST
from state.records import Phase
from state.task_rows import FREE, change_tasks, lock_numbers

__all__ = ["is_any_damaged", "put_right"]

# No setting puts anything off for so long. What a clock that was ahead has put off, `wake` finds.
FARTHEST = timedelta(days=20 * 365)
EVENTS = ("complete", "failure")

_TASKS = schema.tasks.c
_NOTICES = schema.notices.c
_TIME: ColumnElement[str] = literal_column(
    "'[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]*'"
)


def is_any_damaged(connection: Connection, *, now: datetime) -> bool:
    """Tell whether there is anything to put right; of the tasks, indexes tell it."""
    tasks = connection.execute(_damaged_tasks(connection, now).limit(1)).first()
    return bool(tasks or connection.execute(_damaged_notices(now).limit(1)).first())


def put_right(connection: Connection, *, now: datetime) -> int:
    """Put right whatever is out of sight, and return how many rows; the histories tell of it."""
    tasks = connection.execute(_damaged_tasks(connection, now)).scalars().all()
    for is_damaged, values in _mends(connection, now):
        change_tasks(connection, lock_numbers(connection, tasks, is_damaged), values)
    told = "The record of this task was damaged in the state, and was put right"
    tell_all(connection, tasks, "mended", told, now=now)
    notices = connection.execute(_damaged_notices(now)).scalars().all()
    if notices:
        _put_notices_right(connection, now)
    return len(tasks) + len(notices)


def _damaged_tasks(connection: Connection, now: datetime) -> CompoundSelect[Any]:
    # One question each: for all of them together, SQLite would read every row.
    every = (select(_TASKS.id).where(is_damaged) for is_damaged, _ in _mends(connection, now))
    return union(*every)


def _mends(
    connection: Connection, now: datetime
) -> Iterator[tuple[ColumnElement[bool], dict[str, Any]]]:
    """Yield which tasks are damaged, and what becomes of these."""
    words = sorted(Phase)
    between = [and_(_TASKS.phase > one, _TASKS.phase < other) for one, other in pairwise(words)]
    is_unknown = or_(_TASKS.phase < words[0], *between, _TASKS.phase > words[-1])
    yield is_unknown, {"phase": Phase.FAILED}
    # Nobody wants a cancelled task; any other is looked at once too often rather than never.
    at_once = literal(EPOCH, _TASKS.due_at.type)
    due_at = {"due_at": case((_TASKS.phase != Phase.CANCELLED, at_once))}
    yield _TASKS.due_at > now + FARTHEST, due_at
    is_held = _TASKS.acquired_by >= ""
    is_endless = or_(_TASKS.acquired_until.is_(None), _TASKS.acquired_until >= now + LONGEST)
    yield and_(is_held, is_endless), FREE
    if connection.dialect.name == "sqlite":  # a server keeps nothing in a time but times
        yield _is_named_in_bytes(), {"task_id": cast(_TASKS.task_id, Text)}
        for is_no_time in _no_times(_TASKS.due_at):
            yield is_no_time, due_at
        yield and_(is_held, _TASKS.acquired_until.op("NOT GLOB")(_TIME)), FREE
        # What has ended is forgotten in the order of this time.
        for is_no_time in _no_times(_TASKS.updated_at):
            yield and_(_TASKS.due_at.is_(None), is_no_time), {"updated_at": now}


def _is_named_in_bytes() -> ColumnElement[bool]:
    """Tell whether the id is one that nobody finds, unless another task has it."""
    other = schema.tasks.alias()
    is_same = and_(other.c.task_id == cast(_TASKS.task_id, Text), other.c.dest == _TASKS.dest)
    is_taken = select(other.c.id).where(is_same).exists()
    return and_(_TASKS.task_id >= literal_column("x''"), ~is_taken)


def _no_times(column: ColumnElement[datetime]) -> Iterator[ColumnElement[bool]]:
    """Yield what sorts before and behind the digits, with which every time begins."""
    yield column < literal_column("'0-'")  # not '0', which SQLite would take for the number
    yield column >= literal_column("':'")


def _damaged_notices(now: datetime) -> Select[Any]:
    # There are few notices: these are still to be announced.
    is_lost = or_(_NOTICES.due_at > now + FARTHEST, _NOTICES.event.not_in(EVENTS))
    return select(_NOTICES.id).where(or_(is_lost, _NOTICES.task.not_in(select(_TASKS.id))))


def _put_notices_right(connection: Connection, now: datetime) -> None:
    notices = schema.notices
    its_task = select(_TASKS.id).where(_TASKS.id == _NOTICES.task)
    is_published = its_task.where(_TASKS.phase == Phase.PUBLISHED).exists()
    event = case((is_published, "complete"), else_="failure")
    connection.execute(notices.delete().where(~its_task.exists()))
    connection.execute(notices.update().where(_NOTICES.event.not_in(EVENTS)).values(event=event))
    connection.execute(notices.update().where(_NOTICES.due_at > now + FARTHEST).values(due_at=now))
