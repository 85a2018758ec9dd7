"""The tables, as the newest version has them; `state.migrations` brings an older state there."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

from state.columns import EPOCH, PhaseWord, Seconds, UtcDateTime, Whole, Words

__all__ = ["events", "files", "meta", "metadata", "notices", "segments", "services", "tasks"]

LARGEST_SIZE = 2**63 - 1
LARGEST_EXIT_CODE = 255

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
    Column("task_id", Words, nullable=False),
    Column("dest", Words, nullable=False),
    Column("phase", PhaseWord, nullable=False),
    Column("status", Words),
    Column("polls", Whole(otherwise=0), nullable=False),
    Column("created_at", UtcDateTime(EPOCH), nullable=False),
    Column("updated_at", UtcDateTime(EPOCH), nullable=False),
    Column("published_at", UtcDateTime()),
    Column("message", Words),
    Column("exit_code", Whole(LARGEST_EXIT_CODE)),
    Column("acquired_by", Words),
    Column("acquired_until", UtcDateTime()),
    Column("watched_since", UtcDateTime()),
    Column("due_at", UtcDateTime(EPOCH)),
    Column("asked_at", UtcDateTime()),
    Column("tries", Whole(otherwise=0), nullable=False, server_default="0"),
    Column("ready_after_seconds", Seconds),
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
    Column("name", Words, nullable=False),
    Column("bucket", Words, nullable=False),
    Column("key", Words, nullable=False),
    Column("etag", Text),
    Column("size", Whole(LARGEST_SIZE)),
    Column("crc64", Text),  # decimal: half of its values are beyond what BIGINT holds
    # Tells "nothing saved yet" from a saved checkpoint of an empty object.
    Column("checkpoint_at", UtcDateTime()),
    Column("part_id", Text),
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
    Column("at", UtcDateTime(EPOCH), nullable=False),
    Column("kind", Words, nullable=False),
    Column("message", Words, nullable=False),
    Column("facts", Words, nullable=False),  # JSON; as text it is the same on every database
    Index("events_task", "task", "id"),
)

notices = Table(
    "notices",
    metadata,
    Column("id", BigInteger, primary_key=True),
    Column("task", BigInteger, ForeignKey("tasks.id", ondelete="CASCADE"), nullable=False),
    Column("event", Words, nullable=False),
    Column("key", Words, nullable=False),
    Column("due_at", UtcDateTime(EPOCH), nullable=False),
    Column("attempts", Whole(otherwise=0), nullable=False),
    Column("delivered", Words, nullable=False),  # ways, joined by blanks
    Column("message", Words),  # of that end: the task may have begun anew since
    Column("exit_code", Whole(LARGEST_EXIT_CODE)),
    UniqueConstraint("key"),
    Index("notices_due", "due_at"),
    Index("notices_task", "task"),
)

services = Table(
    "services",
    metadata,
    Column("owner", Words, primary_key=True),
    Column("started_at", UtcDateTime(EPOCH), nullable=False),
    Column("seen_at", UtcDateTime(EPOCH), nullable=False),
    Column("stopped_at", UtcDateTime()),
    Column("dest", Words, nullable=False),
    Column("condition", Words),
)
