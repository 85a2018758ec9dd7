"""The StateStore: one short method, and one short transaction, per question or event.

All SQL of the program is here, and in the parts of the store: `state.agenda`, `state.notices` and
`state.services`. It is written for SQLite and PostgreSQL alike; what differs between them is in
`state.engine`.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    UpdateBase,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
)
from sqlalchemy.exc import IntegrityError

from state import schema
from state.agenda import Agenda
from state.checkpoints import difference, is_sound
from state.errors import RecordMissing
from state.lease import is_dead
from state.notices import Notices
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
from state.redaction import guarded_text, refuse_secrets
from state.services import Services
from state.task_rows import event_row, insert_task, select_tasks, sliced
from state.transactions import Database

__all__ = ["PlannedObject", "StateStore", "utc_now"]

SLICE = 1000  # rows that are handed to the database at once

Identity = tuple[str, str, str]  # of a file: its name, its bucket and its key

# What a checkpoint's rows take, built once: a transfer saves several times a second.
_DELETE_FILE = schema.files.delete().where(schema.files.c.id == bindparam("number"))
_UPDATE_FILE = (
    schema.files.update()
    .where(schema.files.c.id == bindparam("number"))
    .values(
        etag=bindparam("tag"),
        size=bindparam("bytes"),
        crc64=bindparam("sum"),
        checkpoint_at=bindparam("now"),
    )
)
_TOUCH_FILE = (
    schema.files.update()
    .where(
        schema.files.c.id == bindparam("number"),
        schema.files.c.etag.is_not_distinct_from(bindparam("tag")),
        schema.files.c.size == bindparam("bytes"),
        schema.files.c.checkpoint_at.is_not(None),
    )
    .values(crc64=bindparam("sum"), checkpoint_at=bindparam("now"))
)
_IS_SEGMENT = and_(
    schema.segments.c.file == bindparam("number"), schema.segments.c.start == bindparam("at")
)
_DELETE_SEGMENT = schema.segments.delete().where(_IS_SEGMENT)
_DELETE_SEGMENTS = schema.segments.delete().where(schema.segments.c.file == bindparam("number"))
_UPDATE_SEGMENT = (
    schema.segments.update()
    .where(_IS_SEGMENT)
    .values(stop=bindparam("to"), watermark=bindparam("mark"))
)
_SUM_OF_SEGMENTS = select(
    func.count(), func.coalesce(func.sum(schema.segments.c.watermark), 0)
).where(schema.segments.c.file == bindparam("number"))


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
        self.agenda = Agenda(database, clock=clock)
        self.notices = Notices(database, clock=clock)
        self.services = Services(database, clock=clock)

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

    def identity(self) -> str:
        """Return what tells this state from every other one; it is made once, at random."""
        question = select(schema.meta.c.value).where(schema.meta.c.name == "identity")
        with self._database.reading() as connection:
            known = connection.execute(question).scalar()
        if known is not None:
            return str(known)
        row = {"name": "identity", "value": secrets.token_hex(8)}
        with self._database.writing() as connection:
            with contextlib.suppress(IntegrityError), connection.begin_nested():
                connection.execute(schema.meta.insert().values(**row))
            # That of another process, if it was quicker.
            return str(connection.execute(question).scalar_one())

    def tidy(self) -> None:
        """Let the database tidy itself: its statistics, and what it has written ahead."""
        self._database.tidy()

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
                    found = select_tasks(connection, task_id=task_id, dest=dest)
                    if found:
                        return found[0]
                    return insert_task(connection, task_id, dest, now=self._clock())
            except IntegrityError:  # another process was quicker (PostgreSQL)
                return select_tasks(connection, task_id=task_id, dest=dest)[0]

    def find_tasks(
        self,
        task_id: str | None = None,
        dest: str | None = None,
        phase: Phase | None = None,
        limit: int | None = None,
        *,
        newest: bool = False,
    ) -> list[Task]:
        """Return the tasks that fit everything given, the oldest first, or the newest."""
        wanted = {"task_id": task_id, "dest": dest, "phase": phase}
        with self._database.reading() as connection:
            return select_tasks(connection, limit=limit, newest=newest, **wanted)

    def get_task(self, task: int) -> Task:
        """Return one task; RecordMissing if it was forgotten."""
        with self._database.reading() as connection:
            found = select_tasks(connection, id=task)
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
        told: tuple[str, str, Mapping[str, object]] | None = None,
    ) -> None:
        """Enter a phase; message and exit code of the phase before are gone with it.

        `published_at` is the time for PUBLISHED, and None for every other phase. `told` is the
        kind, the text and the facts of the line that the history gets with it.
        """
        self._update_task(
            task,
            told=told,
            phase=phase,
            message=None if message is None else guarded_text(message),
            exit_code=exit_code,
            published_at=self._clock() if phase is Phase.PUBLISHED else None,
        )

    def forget_task(self, task: int) -> None:
        """Forget a task with its files, checkpoints and history; no harm if it is not there."""
        with self._database.writing() as connection:
            connection.execute(schema.tasks.delete().where(schema.tasks.c.id == task))

    def _update_task(
        self,
        task: int,
        *,
        told: tuple[str, str, Mapping[str, object]] | None = None,
        **values: object,
    ) -> None:
        table, now = schema.tasks, self._clock()
        change = table.update().where(table.c.id == task).values(updated_at=now, **values)
        with self._database.writing() as connection:
            if connection.execute(change).rowcount != 1:
                raise self._missing("task", task)
            if told is not None:
                kind, message, facts = told
                row = event_row(task, kind, message, dict(facts), now=now)
                connection.execute(schema.events.insert().values(row))

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
        """Give the task back; a lease that is somebody else's by now stays.

        If a service watches it, it may look at once what has become of it.
        """
        tasks = schema.tasks.c
        due_at = case(
            (tasks.due_at.is_not(None), bindparam("now", self._clock(), tasks.due_at.type))
        )
        self._change_lease(task, owner, acquired_by=None, acquired_until=None, due_at=due_at)

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
        planned = {identity: identity for identity in map(_identity, files)}
        with self._database.writing() as connection:
            self._require_task(connection, task)
            saved = _files_by_identity(connection, task, planned)
            gone = [file.id for identity, file in saved.items() if identity not in planned]
            _execute(connection, _DELETE_FILE, ({"number": file_id} for file_id in gone))
            added = [identity for identity in planned if identity not in saved]
            if added:
                _execute(connection, schema.files.insert(), _file_rows(task, added))
                saved = _files_by_identity(connection, task, planned)
        return [saved[identity] for identity in planned]

    def list_files(self, task: int) -> list[File]:
        """Return the task's files, as they were first planned."""
        with self._database.reading() as connection:
            return list(_files_by_identity(connection, task, {}).values())

    def load_checkpoint(self, file_id: int) -> Checkpoint | None:
        """Return what was saved; None if nothing was, or if what is there makes no sense."""
        with self._database.reading() as connection:
            return _checkpoints(connection, schema.files.c.id == file_id).get(file_id)

    def load_checkpoints(self, task: int) -> dict[int, Checkpoint]:
        """Return what was saved of the task's files, by their ids, as `load_checkpoint` does."""
        with self._database.reading() as connection:
            return _checkpoints(connection, schema.files.c.task == task)

    def save_checkpoint(
        self, file_id: int, checkpoint: Checkpoint, *, previous: Checkpoint | None = None
    ) -> None:
        """Replace the file's checkpoint; it is on disk, whole, when this returns.

        `previous` is what the caller saved last: where the state still holds it, only the rows
        that differ from it are written, and the outcome is the same.
        """
        _insist_on_sense(checkpoint)
        with self._database.writing() as connection:
            if previous is None or not self._change(connection, file_id, previous, checkpoint):
                self._replace(connection, {file_id: checkpoint})

    def save_checkpoints(self, saved: Mapping[int, Checkpoint]) -> None:
        """Replace the checkpoints of many files, by their ids, in one transaction.

        All of them are on disk when this returns; none is saved if one of the files is gone.
        """
        for checkpoint in saved.values():
            _insist_on_sense(checkpoint)
        with self._database.writing() as connection:
            self._replace(connection, saved)

    def clear_checkpoint(self, file_id: int) -> None:
        """Forget what was received of the file, its ETag and its size."""
        self.clear_checkpoints([file_id])

    def clear_checkpoints(self, file_ids: Iterable[int]) -> None:
        """Forget what was received of many files; of none if one of them is gone."""
        with self._database.writing() as connection:
            self._replace(connection, dict.fromkeys(file_ids))

    def _replace(self, connection: Connection, saved: Mapping[int, Checkpoint | None]) -> None:
        """Make these the files' checkpoints, None for no checkpoint, whatever was there."""
        now = self._clock()
        # In one order for everybody, so that two writers never wait for each other (PostgreSQL).
        file_ids = sorted(saved)
        rows = (_file_row(file_id, saved[file_id], now) for file_id in file_ids)
        if _execute(connection, _UPDATE_FILE, rows) != len(file_ids):
            raise self._missing("file", _first_missing(connection, file_ids))
        _execute(connection, _DELETE_SEGMENTS, ({"number": file_id} for file_id in file_ids))
        segments = (
            _segment_row(file_id, segment)
            for file_id in file_ids
            for segment in _segments_of(saved[file_id])
        )
        _execute(connection, schema.segments.insert(), segments)

    def _change(
        self, connection: Connection, file_id: int, before: Checkpoint, after: Checkpoint
    ) -> bool:
        """Turn one checkpoint of a version into a later one; False if `before` is not there.

        A caller that was cancelled does not know that its last checkpoint was saved.
        """
        if (before.etag, before.size) != (after.etag, after.size):
            return False
        row = _file_row(file_id, after, self._clock())
        if connection.execute(_TOUCH_FILE, row).rowcount != 1:
            return False
        there = connection.execute(_SUM_OF_SEGMENTS, {"number": file_id}).one()
        if tuple(map(int, there)) != (len(before.segments), before.safe_bytes):
            return False
        todo = difference(before, after)
        gone = ({"number": file_id, "at": start} for start in todo.gone)
        changed = (
            {"number": file_id, "at": part.start, "to": part.stop, "mark": part.watermark}
            for part in todo.changed
        )
        added = (_segment_row(file_id, part) for part in todo.added)
        _execute(connection, _DELETE_SEGMENT, gone)
        _execute(connection, _UPDATE_SEGMENT, changed)
        _execute(connection, schema.segments.insert(), added)
        return True

    def progress(self, task: int) -> list[FileProgress]:
        """Return how much of each file is safely on disk, as last saved."""
        return self.progress_of([task])[task]

    def progress_of(self, tasks: Sequence[int]) -> dict[int, list[FileProgress]]:
        """Return how much of each file of many tasks is safely on disk, by the tasks' numbers."""
        files, segments = schema.files.c, schema.segments.c
        safe = func.coalesce(func.sum(segments.watermark), 0).label("safe_bytes")
        question = (
            select(files.task, files.name, files.size, safe)
            .select_from(schema.files.outerjoin(schema.segments))
            .group_by(files.id, files.task, files.name, files.size)
            .order_by(files.id)
        )
        found: dict[int, list[FileProgress]] = {task: [] for task in tasks}
        with self._database.reading() as connection:
            for some in sliced(tasks):
                for row in connection.execute(question.where(files.task.in_(some))):
                    # PostgreSQL sums whole numbers to a Decimal.
                    safe_bytes = int(row.safe_bytes)
                    progress = FileProgress(name=row.name, size=row.size, safe_bytes=safe_bytes)
                    found[row.task].append(progress)
        return found

    # Events

    def add_event(self, task: int, kind: str, message: str, **facts: object) -> None:
        """Add a line to the task's history; `facts` must be JSON."""
        row = event_row(task, kind, message, facts, now=self._clock())
        with self._database.writing() as connection:
            self._require_task(connection, task)
            connection.execute(schema.events.insert().values(row))

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

    def histories_of(self, tasks: Sequence[int]) -> dict[int, list[Event]]:
        """Return the histories of many tasks, by the tasks' numbers, the oldest lines first."""
        events = schema.events.c
        question = select(
            events.task, events.at, events.kind, events.message, events.facts
        ).order_by(events.id)
        found: dict[int, list[Event]] = {task: [] for task in tasks}
        with self._database.reading() as connection:
            for some in sliced(tasks):
                for task, at, kind, message, facts in connection.execute(
                    question.where(events.task.in_(some))
                ):
                    event = Event(at=at, kind=kind, message=message, facts=json.loads(facts))
                    found[task].append(event)
        return found

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


def _identity(file: PlannedObject | File) -> Identity:
    return file.name, file.bucket, file.key


def _files_by_identity(
    connection: Connection, task: int, texts: Mapping[Identity, Identity]
) -> dict[Identity, File]:
    """Return the task's files, as they were first planned.

    Their texts are those of `texts` where they are there: 20,000 files need not have them twice.
    """
    files = schema.files.c
    question = (
        select(files.id, files.name, files.bucket, files.key, files.etag, files.size)
        .where(files.task == task)
        .order_by(files.id)
    )
    found = {}
    for file_id, name, bucket, key, etag, size in connection.execute(question):
        identity = texts.get((name, bucket, key)) or (name, bucket, key)
        found[identity] = File(
            id=file_id,
            task=task,
            name=identity[0],
            bucket=identity[1],
            key=identity[2],
            etag=etag,
            size=size,
        )
    return found


def _file_rows(task: int, identities: Iterable[Identity]) -> Iterator[dict[str, object]]:
    for name, bucket, key in identities:
        yield {"task": task, "name": name, "bucket": bucket, "key": key}


def _execute(
    connection: Connection, statement: UpdateBase, rows: Iterable[Mapping[str, object]]
) -> int:
    """Carry the statement out for every row, and return how many rows of the state it met.

    In slices: the rows of 20,000 files at once would take more memory than the files.
    """
    remaining, met = iter(rows), 0
    while some := list(islice(remaining, SLICE)):
        met += connection.execute(statement, some).rowcount
    return met


def _checkpoints(connection: Connection, wanted: ColumnElement[bool]) -> dict[int, Checkpoint]:
    """Return the sound checkpoints of the files that are wanted, by the files' ids."""
    files, segments = schema.files.c, schema.segments.c
    # One question, so that both halves are of the same moment.
    question = (
        select(
            files.id,
            files.etag,
            files.size,
            files.crc64,
            segments.start,
            segments.stop,
            segments.watermark,
        )
        .select_from(schema.files.outerjoin(schema.segments))
        .where(wanted, files.checkpoint_at.is_not(None))
        .order_by(files.id, segments.start)
    )
    found = {}
    for file_id, rows in groupby(connection.execute(question), attrgetter("id")):
        checkpoint = _checkpoint(list(rows))
        if is_sound(checkpoint):
            found[file_id] = checkpoint
    return found


def _checkpoint(rows: Sequence[Row[*tuple[Any, ...]]]) -> Checkpoint:
    _, etag, size, crc64, *_ = rows[0]
    segments = tuple(
        Segment(start=start, stop=stop, watermark=watermark)
        for _, _, _, _, start, stop, watermark in rows
        if start is not None
    )
    return Checkpoint(etag=etag, size=size, segments=segments, crc64=crc64)


def _insist_on_sense(checkpoint: Checkpoint) -> None:
    if not is_sound(checkpoint):
        raise ValueError(f"a checkpoint that makes no sense is never saved: {checkpoint!r}")


def _file_row(file_id: int, checkpoint: Checkpoint | None, now: datetime) -> dict[str, object]:
    if checkpoint is None:
        return {"number": file_id, "tag": None, "bytes": None, "sum": None, "now": None}
    etag = None if checkpoint.etag is None else guarded_text(checkpoint.etag)
    return {
        "number": file_id,
        "tag": etag,
        "bytes": checkpoint.size,
        "sum": checkpoint.crc64,
        "now": now,
    }


def _segments_of(checkpoint: Checkpoint | None) -> tuple[Segment, ...]:
    return () if checkpoint is None else checkpoint.segments


def _segment_row(file_id: int, segment: Segment) -> dict[str, int]:
    return {
        "file": file_id,
        "start": segment.start,
        "stop": segment.stop,
        "watermark": segment.watermark,
    }


def _first_missing(connection: Connection, file_ids: Sequence[int]) -> int:
    """Return the first of the files, in order, that is not there; one of them is not."""
    numbers = schema.files.c.id
    question = select(numbers).where(numbers.between(file_ids[0], file_ids[-1]))
    there = set(connection.execute(question).scalars())
    return next(file_id for file_id in file_ids if file_id not in there)
