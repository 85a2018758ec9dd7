"""Rows of tasks' histories, as every part of the store writes and reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, select

from state import schema
from state.records import Event
from state.redaction import guarded, guarded_text
from state.slicing import sliced

__all__ = ["event_row", "histories_of", "history_of", "tell_all"]

_EVENTS = schema.events.c
_LINES = select(_EVENTS.task, _EVENTS.at, _EVENTS.kind, _EVENTS.message, _EVENTS.facts)


def event_row(
    task: int, kind: str, message: str, facts: dict[str, object], *, now: datetime
) -> dict[str, object]:
    """Return the row of a line of a task's history, without secrets."""
    return {
        "task": task,
        "at": now,
        "kind": kind,
        "message": guarded_text(message),
        "facts": json.dumps(guarded(facts), allow_nan=False),
    }


def tell_all(
    connection: Connection, tasks: Iterable[int], kind: str, message: str, *, now: datetime
) -> None:
    """Add the same line to the histories of many tasks."""
    rows = [event_row(task, kind, message, {}, now=now) for task in tasks]
    if rows:
        connection.execute(schema.events.insert(), rows)


def history_of(connection: Connection, task: int, limit: int | None) -> list[Event]:
    """Return the task's history, or its last `limit` lines, the oldest first."""
    question = _LINES.where(_EVENTS.task == task).order_by(_EVENTS.id.desc()).limit(limit)
    newest_first = [_event(line) for line in connection.execute(question)]
    return newest_first[::-1]


def histories_of(connection: Connection, tasks: Sequence[int]) -> dict[int, list[Event]]:
    """Return the histories of many tasks, by the tasks' numbers, the oldest lines first."""
    question = _LINES.order_by(_EVENTS.id)
    found: dict[int, list[Event]] = {task: [] for task in tasks}
    for some in sliced(tasks):
        for line in connection.execute(question.where(_EVENTS.task.in_(some))):
            found[line[0]].append(_event(line))
    return found


def _event(line: Row[*tuple[Any, ...]]) -> Event:
    _, at, kind, message, facts = line
    return Event(at=at, kind=kind, message=message, facts=_facts(facts))


def _finite(text: str) -> float:
    """Return the number; a ValueError where no JSON could tell it again."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no number of JSON")
    return number


_JSON = json.JSONDecoder(parse_constant=_finite, parse_float=_finite)


def _facts(text: str) -> dict[str, object]:
    """Return the facts; none where the row is damaged, for the line itself tells enough."""
    try:
        facts = _JSON.decode(text)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
