"""What the service watches: which tasks, when each is due, and what comes of each.

What it costs to ask follows the tasks that are due or at work, not those that are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import (
    Connection,
    Integer,
    Update,
    bindparam,
    case,
    func,
    literal,
    select,
)

from state import schema
from state.event_rows import tell_all
from state.holders import Holders, is_free, is_of_none_of
from state.notices import drop_notices, notice_row
from state.records import Phase, Polled, Task
from state.redaction import guarded_text
from state.slicing import sliced
from state.task_rows import FREE, change_tasks, lock_numbers, tasks_where
from state.wishes import AT_ONCE, Wishes

__all__ = ["Agenda"]

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
        **FREE,
    )
)


class Agenda(Wishes, Holders):
    """The part of the store that a service asks, and those who give it tasks."""

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
            .where(_TASKS.due_at <= now, is_free(now))
            .order_by(_TASKS.due_at, _TASKS.updated_at, _TASKS.id)
        )
        if not self._database.finds(question):  # mostly it ends here
            return []
        if stopped := self.stopped_owners(now):
            question = question.where(is_of_none_of(stopped))
            if not self._database.finds(question):
                return []
        until = now + timedelta(seconds=lease_seconds)
        locked = question.limit(limit).with_for_update(skip_locked=True, key_share=True)
        with self._database.writing() as connection:
            numbers = connection.execute(locked).scalars().all()
            change_tasks(connection, numbers, {"acquired_by": owner, "acquired_until": until})
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

    def record_ready(self, task: int, owner: str, status: str, *, seconds: float | None) -> bool:
        """Keep that a task has a result, and how long that took, if that can be told.

        False if it is watched no more, or not the owner's: then nothing is kept.
        """
        now = self._clock()
        values: dict[str, object] = {"status": guarded_text(status), "asked_at": now}
        values |= {"polls": _TASKS.polls + 1, "updated_at": now}
        # Failures to ask are not failures to fetch.
        values |= {"tries": case((_TASKS.phase == Phase.WAITING, 0), else_=_TASKS.tries)}
        # The first answer counts: asked again after a failure, the task is as ready as before.
        known = func.coalesce(_TASKS.ready_after_seconds, bindparam("seconds", seconds))
        change = _change_of(task, owner).values(ready_after_seconds=known, **values)
        with self._database.writing() as connection:
            return connection.execute(change).rowcount == 1

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

        Without `phase`, the task keeps the one that it has, with its message. What was still to be
        announced of an earlier end is announced no more.
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
        change = _change_of(task, owner).values({**values, **FREE})
        with self._database.writing() as connection:
            if connection.execute(change).rowcount != 1:
                return False
            if told is not None:
                tell_all(connection, [task], *told, now=self._clock())
            if event is not None:
                drop_notices(connection, [task])
                end = (values.get("message"), values.get("exit_code"))
                row = notice_row(task, event, *end, now=self._clock())
                connection.execute(schema.notices.insert().values(row))
        return True

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
            change_tasks(connection, found, {"due_at": AT_ONCE})
        return len(found)

    def wake(self, longest_pause: float) -> int:
        """Let tasks be due at once that are put off for longer than any pause; return how many.

        They were put off by a clock that was ahead, and has been put right since.
        """
        latest = self._clock() + timedelta(seconds=longest_pause)
        is_astray = (_TASKS.due_at > latest, _TASKS.acquired_by.is_(None))
        question = select(_TASKS.id).where(*is_astray)
        if not self._database.finds(question):  # mostly it ends here
            return 0
        with self._database.writing() as connection:
            numbers = connection.execute(question).scalars().all()
            found = lock_numbers(connection, numbers, *is_astray)
            change_tasks(connection, found, {"due_at": AT_ONCE})
        return len(found)

    # What is known of all.

    def durations(self, limit: int) -> list[float]:
        """Return how many seconds the last tasks took to be ready, the oldest first."""
        known = _TASKS.ready_after_seconds
        question = select(known).where(known.is_not(None)).order_by(_TASKS.id.desc()).limit(limit)
        with self._database.reading() as connection:
            found = connection.execute(question).scalars()
            return [seconds for seconds in found if seconds is not None][::-1]

    def counts(self) -> dict[Phase, int]:
        """Return how many tasks there are of each phase."""
        question = select(_TASKS.phase, func.count()).group_by(_TASKS.phase)
        with self._database.reading() as connection:
            counts: Counter[Phase] = Counter()
            for phase, count in connection.execute(question):
                counts[phase] += count  # words that nobody knows are all one phase
            return dict(counts)

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
        now = self._clock()
        is_over = [_TASKS.due_at.is_(None), _TASKS.updated_at < than, is_free(now)]
        if stopped := self.stopped_owners(now):
            is_over.append(is_of_none_of(stopped))
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


def _change_of(task: int, owner: str) -> Update:
    """Return a change of a task that is watched, and the owner's; of no other."""
    is_ours = (_TASKS.id == task, _TASKS.due_at.is_not(None), _TASKS.acquired_by == owner)
    return schema.tasks.update().where(*is_ours)


def _by_numbers(connection: Connection, numbers: Sequence[int]) -> list[Task]:
    return [
        task for some in sliced(numbers) for task in tasks_where(connection, _TASKS.id.in_(some))
    ]
