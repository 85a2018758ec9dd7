"""Which services work with a state, as they have told it themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime, timedelta

from sqlalchemy import Connection, Text, cast, func, select

from state import schema
from state.lease import is_dead
from state.records import ServiceRecord
from state.redaction import guarded_text
from state.transactions import Part

__all__ = ["Services", "is_alive"]

SILENT_SECONDS = 60.0  # without a word: it is not there, as far as others can tell

_SERVICES = schema.services.c


def is_alive(service: ServiceRecord, *, now: datetime) -> bool:
    """Tell whether a service works, as far as can be told from here."""
    is_heard = now - service.seen_at < timedelta(seconds=SILENT_SECONDS)
    return service.stopped_at is None and is_heard and not is_dead(service.owner)


class Services(Part):
    """The part of the store that knows who works with it."""

    def started(self, owner: str, dest: str) -> None:
        """Remember a service that begins; those that are gone are forgotten."""
        now = self._clock()
        values = {"owner": owner, "started_at": now, "seen_at": now, "dest": dest}
        gone = [one.owner for one in self.list() if not is_alive(one, now=now)]
        with self._database.writing() as connection:
            # As it is read: damage can have made bytes of a text, or, in SQLite, nothing.
            known = func.coalesce(cast(_SERVICES.owner, Text), "")
            connection.execute(schema.services.delete().where(known.in_([*gone, owner, ""])))
            connection.execute(schema.services.insert().values(values))

    def seen(self, owner: str, *, dest: str, condition: str | None) -> None:
        """Remember that a service lives, and what keeps it from working, if anything does.

        One that was silent for so long that it was forgotten is known again.
        """
        now = self._clock()
        told = None if condition is None else guarded_text(condition)
        values = {"seen_at": now, "dest": dest, "condition": told}
        with self._database.writing() as connection:
            if not _update(connection, owner, values):
                row = {"owner": owner, "started_at": now, **values}
                connection.execute(schema.services.insert().values(row))

    def stopped(self, owner: str) -> None:
        """Remember that a service has ended; where its results went stays known."""
        values = {"stopped_at": self._clock(), "condition": None}
        with self._database.writing() as connection:
            _update(connection, owner, values)

    def list(self) -> list[ServiceRecord]:
        """Return the services that are known, the last one seen first."""
        columns = [_SERVICES[field.name] for field in fields(ServiceRecord)]
        with self._database.reading() as connection:
            named = select(*columns).where(_SERVICES.owner.is_not(None))
            rows = connection.execute(named).mappings()
            known = [ServiceRecord(**row) for row in rows]
        return sorted(known, key=lambda service: service.seen_at, reverse=True)


def _update(connection: Connection, owner: str, values: Mapping[str, object]) -> bool:
    """Change what is known of a service; False if it is not known."""
    change = schema.services.update().where(_SERVICES.owner == owner).values(values)
    return connection.execute(change).rowcount == 1
