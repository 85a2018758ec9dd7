"""Who works on what the service watches: leases of many tasks, and of those that are no more."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, case, literal, or_, select

from state import schema
from state.lease import LONGEST, current_owner, is_dead, is_living
from state.slicing import sliced
from state.task_rows import FREE, change_tasks
from state.transactions import Part
from state.wishes import AT_ONCE

__all__ = ["Holders", "is_free", "is_of_none_of"]

_TASKS = schema.tasks.c


class Holders(Part):
    """The part of the store that knows who works on what."""

    def hand_back(self, owner: str) -> None:
        """Give back everything that an owner holds; what is watched is due at once."""
        with self._database.writing() as connection:
            self._release(connection, [owner])

    def renew_all(self, owner: str, lease_seconds: float) -> set[int]:
        """Prolong every lease of an owner, and return the tasks that are still its."""
        until = self._clock() + timedelta(seconds=lease_seconds)
        with self._database.writing() as connection:
            held = _lock_held_by(connection, [owner])
            change_tasks(connection, held, {"acquired_until": until})
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
        here = current_owner()
        dead = [owner for owner in self._owners() if is_dead(owner, here=here)]
        if not dead:
            return []
        with self._database.writing() as connection:
            return self._release(connection, dead)

    def stopped_owners(self, now: datetime) -> list[str]:
        """Return who has let a lease end and yet lives on this machine: somebody has stopped it.

        It goes on with its tasks some time, so these are nobody else's.
        """
        until = _TASKS.acquired_until
        here = current_owner()
        owners = self._owners(until <= now, until > now - LONGEST)
        return [owner for owner in owners if is_living(owner, here=here)]

    def _owners(self, *conditions: ColumnElement[bool]) -> list[str]:
        """Return who holds tasks that meet every condition."""
        is_held = _TASKS.acquired_by.is_not(None)
        question = select(_TASKS.acquired_by).where(is_held, *conditions).distinct()
        with self._database.reading() as connection:
            return [owner for owner in connection.execute(question).scalars() if owner]

    def _release(self, connection: Connection, owners: Sequence[str]) -> list[int]:
        held = _lock_held_by(connection, owners)
        at_once = literal(AT_ONCE, schema.tasks.c.due_at.type)
        due_at = case((_TASKS.due_at.is_not(None), at_once))
        change_tasks(connection, held, {"due_at": due_at, **FREE})
        return held


def is_free(now: datetime) -> ColumnElement[bool]:
    """Tell whether nobody has the task, or nobody any more."""
    return or_(_TASKS.acquired_by.is_(None), _TASKS.acquired_until <= now)


def is_of_none_of(owners: Collection[str]) -> ColumnElement[bool]:
    """Tell whether none of these has the task."""
    return or_(_TASKS.acquired_by.is_(None), _TASKS.acquired_by.not_in(owners))


def _lock_held_by(connection: Connection, owners: Sequence[str]) -> list[int]:
    """Return the numbers of what the owners hold; nobody takes it from them before we end."""
    # In one order for everybody, as in `lock_numbers`.
    question = select(_TASKS.id).order_by(_TASKS.id).with_for_update(key_share=True)
    return [
        number
        for some in sliced(owners)
        for number in connection.execute(question.where(_TASKS.acquired_by.in_(some))).scalars()
    ]
