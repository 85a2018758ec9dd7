"""The tables, and the numbered migrations that bring an older state up to date.

The tables describe the newest version. The migrations are frozen text: what version 1 was
must not change because a later version differs. A test compares where both end.
"""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    func,
    inspect,
    select,
)

from state.errors import StateTooNew, StateUnreadable
from state.records import Phase

__all__ = [
    "LATEST_VERSION",
    "bring_up_to_date",
    "events",
    "files",
    "found_version",
    "meta",
    "metadata",
    "notices",
    "segments",
    "services",
    "tasks",
]

# Any number that nobody else uses: it names the lock under which PostgreSQL migrates.
MIGRATION_LOCK = 0x6267_655F_646C


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime on every database; a naive one is refused before it is stored."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware time into what the database keeps."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be stored")
        moment = value.astimezone(UTC)
        # SQLite has no time zones: its text form is UTC by our word, and sorts as time does.
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn what the database kept into an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class PhaseText(TypeDecorator[Phase]):
    """A `Phase` kept as its word."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Phase | None, dialect: Dialect) -> str | None:
        """Keep the word."""
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> Phase | None:
        """Give the phase; a word that no phase has is a ValueError."""
        return None if value is None else Phase(value)


metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("task_id", Text, nullable=False),
    Column("dest", Text, nullable=False),
    Column("phase", PhaseText, nullable=False),
    Column("status", Text),
    Column("polls", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("published_at", UtcDateTime),
    Column("message", Text),
    Column("exit_code", Integer),
    Column("acquired_by", Text),
    Column("acquired_until", UtcDateTime),
    Column("watched_since", UtcDateTime),
    Column("due_at", UtcDateTime),
    Column("asked_at", UtcDateTime),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("ready_after_seconds", Double),
    UniqueConstraint("task_id", "dest"),
    Index("tasks_phase", "phase"),
    Index("tasks_due", "due_at", "updated_at", "id"),
    Index("tasks_acquired", "acquired_by"),
)

files = Table(
    "files",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("task", BigInteger, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("bucket", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("etag", Text),
    Column("size", BigInteger),
    Column("crc64", Text),  # decimal: half of its values are beyond what BIGINT holds
    # Tells "nothing saved yet" from a saved checkpoint of an empty object.
    Column("checkpoint_at", UtcDateTime),
    UniqueConstraint("task", "name"),
)

segments = Table(
    "segments",
    metadata,
    Column("file", BigInteger, ForeignKey("files.id", ondelete="CASCADE"), primary_key=True),
    Column("start", BigInteger, primary_key=True),
    Column("stop", BigInteger, nullable=False),
    Column("watermark", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("task", BigInteger, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("kind", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("facts", Text, nullable=False),  # JSON; as text it is the same on every database
    Index("events_task", "task", "id"),
)

notices = Table(
    "notices",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("task", BigInteger, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    Column("event", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("delivered", Text, nullable=False),  # ways, joined by blanks
    UniqueConstraint("key"),
    Index("notices_due", "due_at"),
    Index("notices_task", "task"),
)

services = Table(
    "services",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("started_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Column("stopped_at", UtcDateTime),
    Column("dest", Text, nullable=False),
    Column("condition", Text),
)

_VERSION_1 = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE tasks (
        id {identity},
        task_id TEXT NOT NULL,
        dest TEXT NOT NULL,
        phase TEXT NOT NULL,
        status TEXT,
        polls INTEGER NOT NULL,
        created_at {time} NOT NULL,
        updated_at {time} NOT NULL,
        published_at {time},
        message TEXT,
        exit_code INTEGER,
        acquired_by TEXT,
        acquired_until {time},
        UNIQUE (task_id, dest)
    )""",
    """CREATE TABLE files (
        id {identity},
        task BIGINT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        name TEXT NOT NULL,
        bucket TEXT NOT NULL,
        key TEXT NOT NULL,
        etag TEXT,
        size BIGINT,
        checkpoint_at {time},
        UNIQUE (task, name)
    )""",
    """CREATE TABLE segments (
        file BIGINT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
        start BIGINT NOT NULL,
        stop BIGINT NOT NULL,
        watermark BIGINT NOT NULL,
        PRIMARY KEY (file, start)
    )""",
    """CREATE TABLE events (
        id {identity},
        task BIGINT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        at {time} NOT NULL,
        kind TEXT NOT NULL,
        message TEXT NOT NULL,
        facts TEXT NOT NULL
    )""",
)

# A service asks for the waiting tasks at every turn, `status` for one task's history.
_VERSION_2 = (
    "CREATE INDEX tasks_phase ON tasks (phase)",
    "CREATE INDEX events_task ON events (task, id)",
)

# What a service needs; and of a file, the checksum that the store has told, for a later run may
# hear none. Of `tasks_due`, one end is the order in which tasks are looked at; the
# other, where nothing is due any more, is the order in which tasks are forgotten.
_VERSION_3 = (
    "ALTER TABLE tasks ADD COLUMN watched_since {time}",
    "ALTER TABLE tasks ADD COLUMN due_at {time}",
    "ALTER TABLE tasks ADD COLUMN asked_at {time}",
    "ALTER TABLE tasks ADD COLUMN tries INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tasks ADD COLUMN ready_after_seconds {real}",
    "ALTER TABLE files ADD COLUMN crc64 TEXT",
    "CREATE INDEX tasks_due ON tasks (due_at, updated_at, id)",
    "CREATE INDEX tasks_acquired ON tasks (acquired_by)",
    """CREATE TABLE notices (
        id {identity},
        task BIGINT NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
        event TEXT NOT NULL,
        key TEXT NOT NULL,
        due_at {time} NOT NULL,
        attempts INTEGER NOT NULL,
        delivered TEXT NOT NULL,
        UNIQUE (key)
    )""",
    "CREATE INDEX notices_due ON notices (due_at)",
    "CREATE INDEX notices_task ON notices (task)",
    """CREATE TABLE services (
        owner TEXT PRIMARY KEY,
        started_at {time} NOT NULL,
        seen_at {time} NOT NULL,
        stopped_at {time},
        dest TEXT NOT NULL,
        condition TEXT
    )""",
)

_MIGRATIONS = (_VERSION_1, _VERSION_2, _VERSION_3)
LATEST_VERSION = len(_MIGRATIONS)

# What every version has: of these tables a state has all or none.
_FIRST_TABLES = {"meta", "tasks", "files", "segments", "events"}
_VERSION_DIGITS = 9

# An id is never given twice, so a late writer cannot hit the successor of a removed row.
_WORDS = {
    "sqlite": {
        "identity": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "time": "DATETIME",
        "real": "DOUBLE",
    },
    "postgresql": {
        "identity": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
        "time": "TIMESTAMP WITH TIME ZONE",
        "real": "DOUBLE PRECISION",
    },
}


def found_version(connection: Connection, location: str) -> int:
    """Return the state's schema version, 0 where nothing is there yet; reads only.

    StateUnreadable: there are tables, but they are not this program's. StateTooNew: a newer
    program made them.
    """
    there = set(inspect(connection).get_table_names())
    # An SQLite file is ours alone; a PostgreSQL database may hold others' tables beside ours.
    if connection.dialect.name == "sqlite":
        taken = there | set(inspect(connection).get_view_names())
    else:
        taken = there & set(metadata.tables)
    if not taken:
        return 0
    # Others, too, keep a `schema_version` in a table named `meta`.
    version = _recorded_version(connection) if there >= _FIRST_TABLES else None
    if version is None:
        raise StateUnreadable(
            f"{location} is a database, but not a state of bge-downloader; it was left as it is: "
            "name another place with the setting `state`"
        )
    if version > LATEST_VERSION:
        raise StateTooNew(
            f"The state {location} was written by a newer bge-downloader (schema version "
            f"{version}, this program knows up to {LATEST_VERSION}); it was left as it is: "
            "use the newer program, or name another place with the setting `state`"
        )
    return version


def _recorded_version(connection: Connection) -> int | None:
    """Return the number in `meta`; None where somebody else's table has that name."""
    columns = {column["name"] for column in inspect(connection).get_columns("meta")}
    if not columns >= {"name", "value"}:
        return None
    wanted = select(meta.c.value).where(meta.c.name == "schema_version")
    value = str(connection.execute(wanted).scalar_one_or_none())
    is_number = value.isdecimal() and len(value) <= _VERSION_DIGITS
    return (int(value) or None) if is_number else None


def bring_up_to_date(connection: Connection, location: str, *, latest: int | None = None) -> None:
    """Apply the migrations that are missing, all of them or none; `latest` is for tests."""
    if connection.dialect.name == "postgresql":
        # Two programs that start together must not both create the tables.
        connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
    version = found_version(connection, location)
    wanted = LATEST_VERSION if latest is None else latest
    if version >= wanted:
        return
    words = _WORDS[connection.dialect.name]
    for migration in _MIGRATIONS[version:wanted]:
        for statement in migration:
            connection.exec_driver_sql(statement.format(**words))
    _record_version(connection, wanted, is_new=version == 0)


def _record_version(connection: Connection, version: int, *, is_new: bool) -> None:
    name = "schema_version"
    if is_new:
        connection.execute(meta.insert().values(name=name, value=str(version)))
    else:
        connection.execute(meta.update().where(meta.c.name == name).values(value=str(version)))
