"""Ends of tasks that are still to be announced: each stays until it was, or was given up."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from state import schema
from state.records import Notice
from state.slicing import sliced
from state.transactions import Part

__all__ = ["Notices", "drop_notices", "notice_row"]

_NOTICES = schema.notices.c


def notice_row(
    task: int, event: str, message: object, exit_code: object, *, now: datetime
) -> dict[str, object]:
    """Return the row of a new notice, due at once; message and exit code are of that end."""
    return {
        "message": message,
        "exit_code": exit_code,
        "task": task,
        "event": event,
        "key": secrets.token_hex(16),
        "due_at": now,
        "attempts": 0,
        "delivered": "",
    }


def drop_notices(connection: Connection, tasks: Iterable[int]) -> None:
    """Forget what is still to be announced of tasks: it is so no more."""
    for some in sliced(sorted(tasks)):
        connection.execute(schema.notices.delete().where(_NOTICES.task.in_(some)))


class Notices(Part):
    """The part of the store that keeps what is to be announced."""

    def take_due(self, limit: int, *, claim_seconds: float) -> list[Notice]:
        """Return notices that are due; nobody else gets them before `claim_seconds` are over.

        A caller that dies with one lets it be announced twice, and never not at all.
        """
        if limit < 1:
            return []
        now = self._clock()
        due = select(_NOTICES.id).where(_NOTICES.due_at <= now).order_by(_NOTICES.due_at)
        if not self._database.finds(due):  # mostly it ends here
            return []
        with self._database.writing() as connection:
            locked = due.limit(limit).with_for_update(skip_locked=True)
            numbers = connection.execute(locked).scalars().all()
            until = now + timedelta(seconds=claim_seconds)
            is_taken = _NOTICES.id.in_(numbers)
            connection.execute(schema.notices.update().where(is_taken).values(due_at=until))
            rows = connection.execute(
                select(schema.notices).where(is_taken).order_by(_NOTICES.id)
            ).mappings()
            return [
                Notice(
                    id=row["id"],
                    task=row["task"],
                    event=row["event"],
                    key=row["key"],
                    attempts=row["attempts"],
                    delivered=tuple(row["delivered"].split()),
                    message=row["message"],
                    exit_code=row["exit_code"],
                )
                for row in rows
            ]

    def put_off(
        self, notice: int, due_at: datetime, *, attempts: int, delivered: Collection[str]
    ) -> None:
        """Let a notice be announced again at that time, but not by the ways that have worked."""
        values = {"due_at": due_at, "attempts": attempts, "delivered": " ".join(delivered)}
        with self._database.writing() as connection:
            connection.execute(schema.notices.update().where(_NOTICES.id == notice).values(values))

    def hasten(self) -> None:
        """Let every notice be due at once: those that a service has died with are among them."""
        now = self._clock()
        with self._database.writing() as connection:
            is_later = _NOTICES.due_at > now
            connection.execute(schema.notices.update().where(is_later).values(due_at=now))

    def wake(self, longest_pause: float) -> int:
        """Let notices be due at once that are put off for longer than any pause; say how many.

        They were put off by a clock that was ahead, and has been put right since.
        """
        now = self._clock()
        is_astray = _NOTICES.due_at > now + timedelta(seconds=longest_pause)
        if not self._database.finds(select(_NOTICES.id).where(is_astray)):  # mostly it ends here
            return 0
        change = schema.notices.update().where(is_astray).values(due_at=now)
        with self._database.writing() as connection:
            return connection.execute(change).rowcount

    def remove(self, notice: int) -> None:
        """Forget a notice: it was announced, or given up."""
        with self._database.writing() as connection:
            connection.execute(schema.notices.delete().where(_NOTICES.id == notice))
