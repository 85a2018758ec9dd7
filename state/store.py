"""The StateStore: one short method, and one short transaction, per question or event.

All SQL of the program is here. It is written for SQLite and PostgreSQL alike; what differs
between them is in `state.engine`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from sqlalchemy import Connection, and_, bindparam, func, or_, select
from sqlalchemy.exc import IntegrityError

from state import schema
from state.checkpoints import is_sound
from state.errors import RecordMissing
from state.lease import is_dead
from state.records import (
    Checkpoint,
    Event,
    File,
    FileProgress,
    Lease,
    Phase,
    Segment,
    Task,
)
from state.redaction import guarded, guarded_text, refuse_secrets
from state.transactions import Database

__all__ = ["PlannedObject", "StateStore", "utc_now"]

TASK_COLUMNS = [schema.tasks.c[field.name] for field in fields(Task)]
FILE_COLUMNS = [schema.files.c[field.name] for field in fields(File)]


class PlannedObject(Protocol):
    """What a plan tells of one object: its place in the task's directory, and its identity."""

    @property
    def name(self) -> str:
        """Relative POSIX path inside the task's directory."""
        ...

    @property
    def bucket(self) -> str:
        """The bucket it is in."""
        ...

    @property
    def key(self) -> str:
        """Its key, without a link's query."""
        ...


def utc_now() -> datetime:
    """Return the time, aware and in UTC."""
    return datetime.now(UTC)


class StateStore:
    """What the program remembers, shared by every process that opens the same state.

    Its methods are synchronous and may be called from any thread; each is one transaction, on
    disk when it returns. What the database refuses is raised as StateUnreadable.
    """

    def __init__(self, database: Database, *, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    def open(
        cls, url_or_path: str | Path, *, clock: Callable[[], datetime] = utc_now
    ) -> StateStore:
        """Open the state, create it where there is none, and bring an older one up to date.

        StateUnreadable or StateTooNew: it cannot be used, and whatever was there is untouched.
        """
        return cls(Database.open(url_or_path), clock=clock)

    @property
    def location(self) -> str:
        """The state's name for people: its path, or its URL without user and password."""
        return self._database.location

    def close(self) -> None:
        """Close every connection; what was written is on disk already."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Tasks

    def ensure_task(self, task_id: str, dest: str) -> Task:
        """Return the task with that destination, remembered from now on if it is new."""
        with self._database.writing() as connection:
            try:
                with connection.begin_nested():
                    found = _select_tasks(connection, task_id=task_id, dest=dest)
                    return found[0] if found else self._insert_task(connection, task_id, dest)
            except IntegrityError:  # another process was quicker (PostgreSQL)
                return _select_tasks(connection, task_id=task_id, dest=dest)[0]

    def _insert_task(self, connection: Connection, task_id: str, dest: str) -> Task:
        now = self._clock()
        values = {
            "task_id": task_id,
            "dest": dest,
            "phase": Phase.WAITING,
            "polls": 0,
            "created_at": now,
            "updated_at": now,
        }
        connection.execute(schema.tasks.insert().values(values))
        return _select_tasks(connection, task_id=task_id, dest=dest)[0]

    def find_tasks(
        self,
        task_id: str | None = None,
        dest: str | None = None,
        phase: Phase | None = None,
        limit: int | None = None,
    ) -> list[Task]:
        """Return the tasks that fit everything given, the oldest first."""
        with self._database.reading() as connection:
            return _select_tasks(connection, limit=limit, task_id=task_id, dest=dest, phase=phase)

    def get_task(self, task: int) -> Task:
        """Return one task; RecordMissing if it was forgotten."""
        with self._database.reading() as connection:
            found = _select_tasks(connection, id=task)
        if not found:
            raise self._missing("task", task)
        return found[0]

    def record_poll(self, task: int, status: str) -> None:
        """Count a poll and keep the platform's word."""
        polls = schema.tasks.c.polls + 1
        self._update_task(task, status=guarded_text(status), polls=polls)

    def set_phase(
        self,
        task: int,
        phase: Phase,
        *,
        message: str | None = None,
        exit_code: int | None = None,
    ) -> None:
        """Enter a phase; message and exit code of the phase before are gone with it.

        `published_at` is the time for PUBLISHED, and None for every other phase.
        """
        self._update_task(
            task,
            phase=phase,
            message=None if message is None else guarded_text(message),
            exit_code=exit_code,
            published_at=self._clock() if phase is Phase.PUBLISHED else None,
        )

    def forget_task(self, task: int) -> None:
        """Forget a task with its files, checkpoints and history; no harm if it is not there."""
        with self._database.writing() as connection:
            connection.execute(schema.tasks.delete().where(schema.tasks.c.id == task))

    def _update_task(self, task: int, **values: object) -> None:
        table = schema.tasks
        change = table.update().where(table.c.id == task).values(updated_at=self._clock(), **values)
        with self._database.writing() as connection:
            if connection.execute(change).rowcount != 1:
                raise self._missing("task", task)

    # Leases

    def acquire(self, task: int, owner: str, lease_seconds: float) -> Lease | None:
        """Claim the task for `owner`; None while somebody else, who may be alive, has it.

        Free for the taking are a task without a lease, one whose lease has ended, one's own,
        and one whose holder was a process of this machine and is no more.
        """
        holder = self.get_task(task).acquired_by
        dead = holder if holder and holder != owner and is_dead(holder) else owner
        tasks, now = schema.tasks.c, self._clock()
        # A holder that came in since is not `dead`, so of two claims only one finds the row.
        is_free = or_(
            tasks.acquired_by.is_(None),
            tasks.acquired_until <= now,
            tasks.acquired_by.in_([owner, dead]),
        )
        until = now + timedelta(seconds=lease_seconds)
        change = schema.tasks.update().where(and_(tasks.id == task, is_free))
        with self._database.writing() as connection:
            claim = change.values(acquired_by=owner, acquired_until=until)
            if connection.execute(claim).rowcount != 1:
                return None
        return Lease(task=task, acquired_by=owner, acquired_until=until)

    def renew(self, task: int, owner: str, lease_seconds: float) -> bool:
        """Prolong the owner's lease; False if it is not the owner's any more."""
        until = self._clock() + timedelta(seconds=lease_seconds)
        return self._change_lease(task, owner, acquired_by=owner, acquired_until=until)

    def release(self, task: int, owner: str) -> None:
        """Give the task back; a lease that is somebody else's by now stays."""
        self._change_lease(task, owner, acquired_by=None, acquired_until=None)

    def _change_lease(self, task: int, owner: str, **values: object) -> bool:
        tasks = schema.tasks.c
        is_ours = and_(tasks.id == task, tasks.acquired_by == owner)
        change = schema.tasks.update().where(is_ours).values(values)
        with self._database.writing() as connection:
            return connection.execute(change).rowcount == 1

    # Files and checkpoints

    def save_plan(self, task: int, files: Sequence[PlannedObject]) -> list[File]:
        """Make the task's files those of the plan, and return them in its order.

        A file whose name, bucket and key are unchanged keeps its id and its checkpoint.
        """
        for file in files:
            refuse_secrets(file.name, file.bucket, file.key)
        planned = {(file.name, file.bucket, file.key): None for file in files}
        with self._database.writing() as connection:
            self._require_task(connection, task)
            known = {(file.name, file.bucket, file.key): file for file in _files(connection, task)}
            gone = [{"gone": file.id} for key, file in known.items() if key not in planned]
            if gone:  # one by one: a statement takes no more than some thousand values
                is_gone = schema.files.c.id == bindparam("gone")
                connection.execute(schema.files.delete().where(is_gone), gone)
            added = [
                {"task": task, "name": name, "bucket": bucket, "key": key}
                for name, bucket, key in planned
                if (name, bucket, key) not in known
            ]
            if added:
                connection.execute(schema.files.insert(), added)
            saved = {(file.name, file.bucket, file.key): file for file in _files(connection, task)}
        return [saved[identity] for identity in planned]

    def list_files(self, task: int) -> list[File]:
        """Return the task's files, as they were first planned."""
        with self._database.reading() as connection:
            return _files(connection, task)

    def load_checkpoint(self, file_id: int) -> Checkpoint | None:
        """Return what was saved; None if nothing was, or if what is there makes no sense."""
        files, segments = schema.files.c, schema.segments.c
        # One question, so that both halves are of the same moment.
        question = (
            select(files.etag, files.size, segments.start, segments.stop, segments.watermark)
            .select_from(schema.files.outerjoin(schema.segments))
            .where(files.id == file_id, files.checkpoint_at.is_not(None))
            .order_by(segments.start)
        )
        with self._database.reading() as connection:
            rows = connection.execute(question).all()
        if not rows:
            return None
        parts = tuple(
            Segment(start=row.start, stop=row.stop, watermark=row.watermark)
            for row in rows
            if row.start is not None
        )
        checkpoint = Checkpoint(etag=rows[0].etag, size=rows[0].size, segments=parts)
        return checkpoint if is_sound(checkpoint) else None

    def save_checkpoint(self, file_id: int, checkpoint: Checkpoint) -> None:
        """Replace the file's checkpoint; it is on disk, whole, when this returns."""
        if not is_sound(checkpoint):
            raise ValueError(f"a checkpoint that makes no sense is never saved: {checkpoint!r}")
        rows = [
            {"file": file_id, "start": part.start, "stop": part.stop, "watermark": part.watermark}
            for part in checkpoint.segments
        ]
        etag = None if checkpoint.etag is None else guarded_text(checkpoint.etag)
        self._replace_segments(
            file_id, rows, etag=etag, size=checkpoint.size, checkpoint_at=self._clock()
        )

    def clear_checkpoint(self, file_id: int) -> None:
        """Forget what was received of the file, its ETag and its size."""
        self._replace_segments(file_id, [], etag=None, size=None, checkpoint_at=None)

    def _replace_segments(self, file_id: int, rows: list[dict[str, int]], **values: object) -> None:
        files, segments = schema.files, schema.segments
        with self._database.writing() as connection:
            change = files.update().where(files.c.id == file_id).values(values)
            if connection.execute(change).rowcount != 1:
                raise self._missing("file", file_id)
            connection.execute(segments.delete().where(segments.c.file == file_id))
            if rows:
                connection.execute(segments.insert(), rows)

    def progress(self, task: int) -> list[FileProgress]:
        """Return how much of each file is safely on disk, as last saved."""
        files, segments = schema.files.c, schema.segments.c
        safe = func.coalesce(func.sum(segments.watermark), 0).label("safe_bytes")
        question = (
            select(files.name, files.size, safe)
            .select_from(schema.files.outerjoin(schema.segments))
            .where(files.task == task)
            .group_by(files.id, files.name, files.size)
            .order_by(files.id)
        )
        with self._database.reading() as connection:
            # PostgreSQL sums whole numbers to a Decimal.
            return [
                FileProgress(name=row.name, size=row.size, safe_bytes=int(row.safe_bytes))
                for row in connection.execute(question)
            ]

    # Events

    def add_event(self, task: int, kind: str, message: str, **facts: object) -> None:
        """Add a line to the task's history; `facts` must be JSON."""
        values = {
            "task": task,
            "at": self._clock(),
            "kind": kind,
            "message": guarded_text(message),
            "facts": json.dumps(guarded(facts), allow_nan=False),
        }
        with self._database.writing() as connection:
            self._require_task(connection, task)
            connection.execute(schema.events.insert().values(values))

    def list_events(self, task: int, limit: int | None = None) -> list[Event]:
        """Return the task's history, or its last `limit` lines, the oldest first."""
        events = schema.events.c
        question = (
            select(events.at, events.kind, events.message, events.facts)
            .where(events.task == task)
            .order_by(events.id.desc())
            .limit(limit)
        )
        with self._database.reading() as connection:
            rows = connection.execute(question).mappings().all()
            newest_first = [Event(**{**row, "facts": json.loads(row["facts"])}) for row in rows]
        return newest_first[::-1]

    def _require_task(self, connection: Connection, task: int) -> None:
        # Locked until the end of the transaction, so that nobody removes it under our rows.
        question = select(schema.tasks.c.id).where(schema.tasks.c.id == task).with_for_update()
        if connection.execute(question).one_or_none() is None:
            raise self._missing("task", task)

    def _missing(self, noun: str, number: int) -> RecordMissing:
        return RecordMissing(
            f"The {noun} number {number} is not in the state {self.location} any more: "
            "somebody removed it; add the task again if it is still wanted"
        )


def _select_tasks(
    connection: Connection, *, limit: int | None = None, **wanted: object
) -> list[Task]:
    question = select(*TASK_COLUMNS).order_by(schema.tasks.c.id).limit(limit)
    for name, value in wanted.items():
        if value is not None:
            question = question.where(schema.tasks.c[name] == value)
    return [Task(**row) for row in connection.execute(question).mappings()]


def _files(connection: Connection, task: int) -> list[File]:
    files = schema.files.c
    question = select(*FILE_COLUMNS).where(files.task == task).order_by(files.id)
    return [File(**row) for row in connection.execute(question).mappings()]
