"""Ends of tasks that are still to be announced: each stays until it was, or was given up."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from datetime import datetime, timedelta

from sqlalchemy import select

from state import schema
from state.records import Notice
from state.transactions import Database

__all__ = ["Notices", "notice_row"]

_NOTICES = schema.notices.c


def notice_row(task: int, event: str, *, now: datetime) -> dict[str, object]:
    """Return the row of a new notice, due at once."""
    return {
        "task": task,
        "event": event,
        "key": secrets.token_hex(16),
        "due_at": now,
        "attempts": 0,
        "delivered": "",
    }


class Notices:
    """The part of the store that keeps what is to be announced."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

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

    def remove(self, notice: int) -> None:
        """Forget a notice: it was announced, or given up."""
        with self._database.writing() as connection:
            connection.execute(schema.notices.delete().where(_NOTICES.id == notice))
