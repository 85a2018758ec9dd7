"""What people want of tasks: that they be watched, tried again, or left alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from state import schema
from state.columns import EPOCH
from state.event_rows import tell_all
from state.lease import is_held
from state.notices import drop_notices
from state.records import Phase, Task, Wanted
from state.slicing import sliced
from state.task_rows import FREE, change_tasks, insert_missing, lock_tasks
from state.transactions import Part

__all__ = ["AT_ONCE", "Wishes"]

AT_ONCE = EPOCH  # before every task that was asked for already, however many of those are late

_CANCELLED: dict[str, Any] = {
    "phase": Phase.CANCELLED,
    "message": "Cancelled; what was received is kept",
    "exit_code": None,
}
_TASKS = schema.tasks.c


class _Removed(Exception):
    """A task was removed by another in the very moment in which it was to be watched."""


class Wishes(Part):
    """The part of the store that people ask, and the inbox for them."""

    def watch(
        self, task_ids: Iterable[str], dest: str, *, source: str = "added"
    ) -> list[tuple[Task, Wanted]]:
        """Let the service watch tasks; all of them, or none if one cannot be stored.

        One that has failed or was cancelled is begun again, one that is published is not. Each is
        returned once, as it was before.
        """
        wanted = list(dict.fromkeys(task_ids))
        message = f"To be fetched into {dest} ({source})"
        while True:
            # In a new transaction: in this one, we would wait for others out of order (PostgreSQL).
            with contextlib.suppress(_Removed):
                return self._watch(wanted, dest, message)

    def _watch(self, task_ids: Sequence[str], dest: str, message: str) -> list[tuple[Task, Wanted]]:
        with self._database.writing() as connection:
            insert_missing(connection, task_ids, dest, now=self._clock())
            tasks = lock_tasks(connection, _numbers(connection, task_ids, dest))
            if len(tasks) < len(task_ids):
                raise _Removed
            known = {task.task_id: task for task in tasks}
            outcomes = [(known[task_id], _wanted(known[task_id])) for task_id in task_ids]
            begun = [task for task, outcome in outcomes if outcome is Wanted.ADDED]
            self._begin(connection, begun, "added", message)
        return outcomes

    def retry(self, task: int) -> Wanted:
        """Let the service begin a task again at once, however it ended."""
        return self.retry_all([task])[0]

    def retry_all(self, tasks: Sequence[int]) -> list[Wanted]:
        """Let the service begin many tasks again, and return what came of each, in their order."""
        with self._database.writing() as connection:
            known = {task.id: task for task in lock_tasks(connection, tasks)}
            now = self._clock()
            held = {number for number, task in known.items() if is_held(task, now=now)}
            free = [task for number, task in known.items() if number not in held]
            self._begin(connection, free, "retried", "To be tried again at once")
        at_work = dict.fromkeys(held, Wanted.AT_WORK)
        begun = {task.id: Wanted.ADDED for task in free}
        return [(at_work | begun).get(task, Wanted.ENDED) for task in tasks]

    def _begin(
        self, connection: Connection, tasks: Sequence[Task], kind: str, message: str
    ) -> None:
        now = self._clock()
        values: dict[str, object] = {"watched_since": now, "due_at": AT_ONCE, "updated_at": now}
        values |= {"tries": 0, "asked_at": None, "ready_after_seconds": None}
        anew = {"phase": Phase.WAITING, "message": None, "exit_code": None, "published_at": None}
        held = [task.id for task in tasks if is_held(task, now=now)]
        free = sorted({task.id for task in tasks} - {*held})
        change_tasks(connection, held, values)  # a fetch is at work, and its phase is its own
        change_tasks(connection, free, {**values, **anew, **FREE})
        drop_notices(connection, [task.id for task in tasks])  # an end that it is no more
        tell_all(connection, [task.id for task in tasks], kind, message, now=now)

    def cancel(self, task: int) -> Wanted:
        """Let nobody work on a task any more; whoever does loses its lease, and stops.

        What is published stays so.
        """
        now = self._clock()
        with self._database.writing() as connection:
            found = lock_tasks(connection, [task])
            if not found or _has_ended(found[0], now):
                return Wanted.ENDED
            values = {"due_at": None, "updated_at": now, **FREE, **_CANCELLED}
            change_tasks(connection, [task], values)
            tell_all(connection, [task], "cancelled", _CANCELLED["message"], now=now)
        return Wanted.CANCELLED

    def confirm_cancelled(self, task: int) -> None:
        """Put right the phase of a task that was still at work for a moment.

        One that somebody has begun again since, the service or a fetch, is left alone.
        """
        is_at_rest = (_TASKS.due_at.is_(None), _TASKS.acquired_by.is_(None))
        is_over = (_TASKS.id == task, *is_at_rest, _TASKS.phase != Phase.PUBLISHED)
        with self._database.writing() as connection:
            connection.execute(schema.tasks.update().where(*is_over).values(_CANCELLED))


def _wanted(task: Task) -> Wanted:
    """Return what comes of asking that a task be watched."""
    if task.is_watched:
        return Wanted.WATCHED
    return Wanted.PUBLISHED if task.phase is Phase.PUBLISHED else Wanted.ADDED


def _has_ended(task: Task, now: datetime) -> bool:
    """Tell whether there is nothing to cancel; a final phase may be that of an earlier fetch."""
    if task.phase is Phase.PUBLISHED:
        return True
    return task.phase.is_final and not task.is_watched and not is_held(task, now=now)


def _numbers(connection: Connection, task_ids: Sequence[str], dest: str) -> list[int]:
    return [
        number
        for some in sliced(task_ids)
        for number in connection.execute(
            select(_TASKS.id).where(_TASKS.task_id.in_(some), _TASKS.dest == dest)
        ).scalars()
    ]
