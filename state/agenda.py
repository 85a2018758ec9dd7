"""What the service watches: which tasks, when each is due, and who works on them.

What it costs to ask follows the tasks that are due or at work, not those that are known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
)

from state import schema
from state.lease import current_owner, is_dead, is_held
from state.notices import notice_row
from state.records import Phase, Polled, Task, Wanted
from state.redaction import guarded_text
from state.task_rows import event_row, insert_missing, lock_numbers, lock_tasks, sliced, tasks_where
from state.transactions import Database

__all__ = ["AT_ONCE", "Agenda"]

# Before every task that was asked for already, however many of those are late.
AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)

_CANCELLED: dict[str, Any] = {
    "phase": Phase.CANCELLED,
    "message": "Cancelled; what was received is kept",
    "exit_code": None,
}
_FREE: dict[str, Any] = {"acquired_by": None, "acquired_until": None}
_TASKS = schema.tasks.c
_POLLED = (
    schema.tasks.update()
    .where(
        _TASKS.id == bindparam("number"),
        _TASKS.due_at.is_not(None),
        _TASKS.acquired_by == bindparam("owner"),
    )
    .values(
        status=func.coalesce(bindparam("word"), _TASKS.status),
        polls=_TASKS.polls + bindparam("asked", type_=Integer),
        asked_at=bindparam("now"),
        updated_at=bindparam("now"),
        due_at=bindparam("due"),
        message=bindparam("reason"),
        exit_code=None,
        # Without an answer, a task that is to be tried again still is.
        phase=case(
            (
                bindparam("asked", type_=Integer) == 1,
                literal(Phase.WAITING, schema.tasks.c.phase.type),
            ),
            else_=_TASKS.phase,
        ),
        tries=bindparam("failed"),
        **_FREE,
    )
)


class _Removed(Exception):
    """A task was removed by another in the very moment in which it was to be watched."""


class Agenda:
    """The part of the store that a service asks, and those who give it tasks."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    # Tasks in and out.

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
        with self._database.writing() as connection:
            found = lock_tasks(connection, [task])
            if not found:
                return Wanted.ENDED
            if is_held(found[0], now=self._clock()):
                return Wanted.AT_WORK
            self._begin(connection, found, "retried", "To be tried again at once")
        return Wanted.ADDED

    def _begin(
        self, connection: Connection, tasks: Sequence[Task], kind: str, message: str
    ) -> None:
        now = self._clock()
        values: dict[str, object] = {"watched_since": now, "due_at": AT_ONCE, "updated_at": now}
        values |= {"tries": 0, "asked_at": None, "ready_after_seconds": None}
        anew = {"phase": Phase.WAITING, "message": None, "exit_code": None, "published_at": None}
        held = [task.id for task in tasks if is_held(task, now=now)]
        free = sorted({task.id for task in tasks} - {*held})
        _change(connection, held, values)  # a fetch is at work, and its phase is its own
        _change(connection, free, {**values, **anew, **_FREE})
        self._tell_all(connection, [task.id for task in tasks], kind, message)

    def cancel(self, task: int) -> Wanted:
        """Let nobody work on a task any more; whoever does loses its lease, and stops.

        What is published stays so.
        """
        with self._database.writing() as connection:
            found = lock_tasks(connection, [task])
            if not found or _has_ended(found[0], self._clock()):
                return Wanted.ENDED
            values = {"due_at": None, "updated_at": self._clock(), **_FREE, **_CANCELLED}
            _change(connection, [task], values)
            self._tell_all(connection, [task], "cancelled", _CANCELLED["message"])
        return Wanted.CANCELLED

    def confirm_cancelled(self, task: int) -> None:
        """Put right the phase of a task that was still at work for a moment.

        One that somebody has begun again since, the service or a fetch, is left alone.
        """
        is_at_rest = (_TASKS.due_at.is_(None), _TASKS.acquired_by.is_(None))
        is_over = (_TASKS.id == task, *is_at_rest, _TASKS.phase != Phase.PUBLISHED)
        with self._database.writing() as connection:
            connection.execute(schema.tasks.update().where(*is_over).values(_CANCELLED))

    def _tell_all(
        self, connection: Connection, tasks: Iterable[int], kind: str, message: str
    ) -> None:
        now = self._clock()
        rows = [event_row(task, kind, message, {}, now=now) for task in tasks]
        if rows:
            connection.execute(schema.events.insert(), rows)

    # What is due.

    def take_due(self, owner: str, limit: int, *, lease_seconds: float) -> list[Task]:
        """Claim tasks that are due for `owner`, the most urgent first, and return them.

        A task that somebody holds, who may be alive, is nobody else's.
        """
        if limit < 1:
            return []
        now = self._clock()
        question = (
            select(_TASKS.id)
            .where(_TASKS.due_at <= now, _is_free(now))
            .order_by(_TASKS.due_at, _TASKS.updated_at, _TASKS.id)
        )
        if not self._database.finds(question):  # mostly it ends here
            return []
        until = now + timedelta(seconds=lease_seconds)
        locked = question.limit(limit).with_for_update(skip_locked=True, key_share=True)
        with self._database.writing() as connection:
            numbers = connection.execute(locked).scalars().all()
            _change(connection, numbers, {"acquired_by": owner, "acquired_until": until})
            found = {task.id: task for task in _by_numbers(connection, numbers)}
        return [found[number] for number in numbers]

    def record_polls(self, owner: str, polls: Sequence[Polled]) -> None:
        """Keep what polls have brought, many at once, and give the tasks back.

        One that was cancelled, or is somebody else's by now, is left alone.
        """
        if not polls:
            return
        now = self._clock()
        rows = [
            {
                "number": poll.task,
                "owner": owner,
                "word": None if poll.status is None else guarded_text(poll.status),
                "asked": 0 if poll.status is None else 1,
                "now": now,
                "due": poll.due_at,
                "reason": None if poll.message is None else guarded_text(poll.message),
                "failed": poll.tries,
            }
            for poll in sorted(polls, key=lambda poll: poll.task)
        ]
        with self._database.writing() as connection:
            connection.execute(_POLLED, rows)

    def record_ready(self, task: int, status: str, *, seconds: float | None) -> None:
        """Keep that a task has a result, and how long that took, if that can be told."""
        now = self._clock()
        values: dict[str, object] = {"status": guarded_text(status), "asked_at": now}
        values |= {"polls": _TASKS.polls + 1, "updated_at": now}
        # Failures to ask are not failures to fetch.
        values |= {"tries": case((_TASKS.phase == Phase.WAITING, 0), else_=_TASKS.tries)}
        # The first answer counts: asked again after a failure, the task is as ready as before.
        known = func.coalesce(_TASKS.ready_after_seconds, bindparam("seconds", seconds))
        change = schema.tasks.update().where(_TASKS.id == task)
        with self._database.writing() as connection:
            connection.execute(change.values(ready_after_seconds=known, **values))

    def put_off(
        self,
        task: int,
        owner: str,
        due_at: datetime,
        *,
        phase: Phase | None = None,
        message: str | None = None,
        exit_code: int | None = None,
        tries: int | None = None,
        told: tuple[str, str] | None = None,
    ) -> bool:
        """Give a task back until that time; False if it is watched no more, or not the owner's.

        `told` is the kind and the text of the line that its history gets.
        """
        values: dict[str, object] = {"due_at": due_at, "updated_at": self._clock()}
        if phase is not None:
            kept = None if message is None else guarded_text(message)
            values |= {"phase": phase, "message": kept, "exit_code": exit_code}
        if tries is not None:
            values |= {"tries": tries}
        return self._give_back(task, owner, values, told=told)

    def settle(
        self,
        task: int,
        owner: str,
        *,
        event: str | None,
        phase: Phase | None = None,
        message: str | None = None,
        exit_code: int | None = None,
        told: tuple[str, str] | None = None,
    ) -> bool:
        """End the watching of a task, and let its end be announced; False as for `put_off`.

        Without `phase`, the task keeps the one that it has, with its message.
        """
        values: dict[str, object] = {"due_at": None, "updated_at": self._clock()}
        if phase is not None:
            kept = None if message is None else guarded_text(message)
            values |= {"phase": phase, "message": kept, "exit_code": exit_code}
        return self._give_back(task, owner, values, told=told, event=event)

    def _give_back(
        self,
        task: int,
        owner: str,
        values: dict[str, object],
        *,
        told: tuple[str, str] | None,
        event: str | None = None,
    ) -> bool:
        is_ours = (_TASKS.id == task, _TASKS.due_at.is_not(None), _TASKS.acquired_by == owner)
        change = schema.tasks.update().where(*is_ours).values({**values, **_FREE})
        with self._database.writing() as connection:
            if connection.execute(change).rowcount != 1:
                return False
            if told is not None:
                self._tell_all(connection, [task], *told)
            if event is not None:
                row = notice_row(task, event, now=self._clock())
                connection.execute(schema.notices.insert().values(row))
        return True

    def hand_back(self, owner: str) -> None:
        """Give back everything that an owner holds; what is watched is due at once."""
        with self._database.writing() as connection:
            self._release(connection, [owner])

    def hasten(
        self,
        *,
        tasks: Collection[int] | None = None,
        paused_in: str | None = None,
        limit: int | None = None,
    ) -> int:
        """Let watched tasks be due at once, and return how many: some, or those without room.

        With `limit`, those that have waited longest since they were last tried.
        """
        # Who holds a task says itself when it is due again.
        is_later = [_TASKS.due_at > AT_ONCE, _TASKS.acquired_by.is_(None)]
        if paused_in is not None:
            is_later += [_TASKS.phase == Phase.PAUSED, _TASKS.dest == paused_in]
        # The one that has waited longest, lest one is always the first.
        question = select(_TASKS.id).where(*is_later).order_by(_TASKS.updated_at).limit(limit)
        with self._database.writing() as connection:
            wanted = connection.execute(question).scalars().all() if tasks is None else tasks
            found = lock_numbers(connection, wanted, *is_later)
            _change(connection, found, {"due_at": AT_ONCE})
        return len(found)

    # Who works on what.

    def renew_all(self, owner: str, lease_seconds: float) -> set[int]:
        """Prolong every lease of an owner, and return the tasks that are still its."""
        until = self._clock() + timedelta(seconds=lease_seconds)
        with self._database.writing() as connection:
            held = _lock_held_by(connection, [owner])
            _change(connection, held, {"acquired_until": until})
        return set(held)

    def unwatched_among(self, tasks: Collection[int], *, owner: str | None = None) -> set[int]:
        """Return those of the tasks that were cancelled or removed.

        With its `owner` also those that are not its any more, however they are watched since.
        """
        still: list[ColumnElement[bool]] = [_TASKS.due_at.is_not(None)]
        if owner is not None:
            still.append(_TASKS.acquired_by == owner)
        watched: set[int] = set()
        with self._database.reading() as connection:
            for some in sliced(tasks):
                question = select(_TASKS.id).where(_TASKS.id.in_(some), *still)
                watched.update(connection.execute(question).scalars())
        return set(tasks) - watched

    def release_dead(self) -> list[int]:
        """Give back what processes held that certainly live no more; what was watched is due.

        Returned are the numbers of these tasks.
        """
        question = select(_TASKS.acquired_by).where(_TASKS.acquired_by.is_not(None)).distinct()
        with self._database.reading() as connection:
            owners = connection.execute(question).scalars().all()
        here = current_owner()
        dead = [owner for owner in owners if owner and is_dead(owner, here=here)]
        if not dead:
            return []
        with self._database.writing() as connection:
            return self._release(connection, dead)

    def _release(self, connection: Connection, owners: Sequence[str]) -> list[int]:
        held = _lock_held_by(connection, owners)
        at_once = literal(AT_ONCE, schema.tasks.c.due_at.type)
        due_at = case((_TASKS.due_at.is_not(None), at_once))
        _change(connection, held, {"due_at": due_at, **_FREE})
        return held

    # What is known of all.

    def durations(self, limit: int) -> list[float]:
        """Return how many seconds the last tasks took to be ready, the oldest first."""
        known = _TASKS.ready_after_seconds
        question = select(known).where(known.is_not(None)).order_by(_TASKS.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [float(seconds) for seconds in connection.execute(question).scalars()][::-1]

    def counts(self) -> dict[Phase, int]:
        """Return how many tasks there are of each phase."""
        question = select(_TASKS.phase, func.count()).group_by(_TASKS.phase)
        with self._database.reading() as connection:
            return {phase: count for phase, count in connection.execute(question)}  # noqa: C416

    def watched_count(self) -> int:
        """Return how many tasks are watched."""
        question = select(func.count()).where(_TASKS.due_at.is_not(None))
        with self._database.reading() as connection:
            return connection.execute(question).scalar_one()

    def forget_older(self, than: datetime, *, limit: int) -> int:
        """Forget tasks that ended before then, some at a time, and return how many.

        Their results stay where they are. What somebody holds, and what is still to be announced,
        is never forgotten.
        """
        is_told = ~select(schema.notices.c.id).where(schema.notices.c.task == _TASKS.id).exists()
        is_over = (_TASKS.due_at.is_(None), _TASKS.updated_at < than, _is_free(self._clock()))
        has_ended = _TASKS.phase.in_([phase for phase in Phase if phase.is_final])
        question = select(_TASKS.id).where(*is_over, has_ended, is_told).limit(limit)
        question = question.order_by(_TASKS.updated_at)
        if not self._database.finds(question):
            return 0
        with self._database.writing() as connection:
            locked = question.with_for_update(skip_locked=True)
            numbers = connection.execute(locked).scalars().all()
            # Asked once more: a notice that came in before the lock was not seen (PostgreSQL).
            forget = schema.tasks.delete().where(is_told)
            return sum(
                connection.execute(forget.where(_TASKS.id.in_(some))).rowcount
                for some in sliced(numbers)
            )


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(_TASKS.acquired_by.is_(None), _TASKS.acquired_until <= now)


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


def _lock_held_by(connection: Connection, owners: Sequence[str]) -> list[int]:
    """Return the numbers of what the owners hold; nobody takes it from them before we end."""
    # In one order for everybody, as in `lock_numbers`.
    question = select(_TASKS.id).order_by(_TASKS.id).with_for_update(key_share=True)
    return [
        number
        for some in sliced(owners)
        for number in connection.execute(question.where(_TASKS.acquired_by.in_(some))).scalars()
    ]


def _numbers(connection: Connection, task_ids: Sequence[str], dest: str) -> list[int]:
    return [
        number
        for some in sliced(task_ids)
        for number in connection.execute(
            select(_TASKS.id).where(_TASKS.task_id.in_(some), _TASKS.dest == dest)
        ).scalars()
    ]


def _change(connection: Connection, numbers: Sequence[int], values: dict[str, Any]) -> None:
    """Give the tasks these values; they are locked already."""
    for some in sliced(numbers):
        connection.execute(schema.tasks.update().where(_TASKS.id.in_(some)).values(values))


def _by_numbers(connection: Connection, numbers: Sequence[int]) -> list[Task]:
    return [
        task for some in sliced(numbers) for task in tasks_where(connection, _TASKS.id.in_(some))
    ]
