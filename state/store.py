"""The StateStore: one short method, and one short transaction, per question or event.

All SQL of the program is in this package: what a service asks in `state.agenda`, `state.notices`
and `state.services`, and what is read and written of each kind of row in the modules named so. It
is written for SQLite and PostgreSQL alike; what differs between them is in `state.engine`,
`state.columns` and `state.mending`.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, and_, bindparam, case, select
from sqlalchemy.exc import IntegrityError

from state import schema
from state.agenda import Agenda
from state.checkpoint_rows import (
    change_checkpoint,
    first_missing,
    load_checkpoints,
    replace_checkpoints,
)
from state.checkpoints import is_sound
from state.errors import RecordMissing
from state.event_rows import event_row, histories_of, history_of
from state.file_rows import files_of, progress_of, replace_files
from state.lease import is_held
from state.mending import is_any_damaged, put_right
from state.notices import Notices
from state.records import (
    Checkpoint,
    Event,
    File,
    FileProgress,
    Lease,
    Phase,
    PlannedObject,
    Task,
)
from state.redaction import guarded_text, refuse_secrets
from state.services import Services
from state.task_rows import insert_task, lock_tasks, select_tasks
from state.transactions import Database

__all__ = ["StateStore", "utc_now"]


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

    def put_right(self) -> int:
        """Bring into sight what damaged rows keep out of it, and return how many these were."""
        now = self._clock()
        with self._database.reading() as connection:
            if not is_any_damaged(connection, now=now):  # mostly it ends here
                return 0
        with self._database.writing() as connection:
            return put_right(connection, now=now)

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

        Free for the taking are a task without a lease, one's own, one whose holder was a process
        of this machine and is no more, and one whose lease has ended, unless its holder is a
        process of this machine that lives: somebody has stopped it, and it will go on.
        """
        now = self._clock()
        until = now + timedelta(seconds=lease_seconds)
        with self._database.writing() as connection:
            found = lock_tasks(connection, [task])
            if not found:
                raise self._missing("task", task)
            if found[0].acquired_by != owner and is_held(found[0], now=now):
                return None
            claim = schema.tasks.update().where(schema.tasks.c.id == task)
            connection.execute(claim.values(acquired_by=owner, acquired_until=until))
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
        with self._database.writing() as connection:
            self._require_task(connection, task)
            return replace_files(connection, task, files)

    def list_files(self, task: int) -> list[File]:
        """Return the task's files, as they were first planned."""
        with self._database.reading() as connection:
            return files_of(connection, task)

    def load_checkpoint(self, file_id: int) -> Checkpoint | None:
        """Return what was saved; None if nothing was, or if what is there makes no sense."""
        with self._database.reading() as connection:
            return load_checkpoints(connection, schema.files.c.id == file_id).get(file_id)

    def load_checkpoints(self, task: int) -> dict[int, Checkpoint]:
        """Return what was saved of the task's files, by their ids, as `load_checkpoint` does."""
        with self._database.reading() as connection:
            return load_checkpoints(connection, schema.files.c.task == task)

    def save_checkpoint(
        self, file_id: int, checkpoint: Checkpoint, *, previous: Checkpoint | None = None
    ) -> None:
        """Replace the file's checkpoint; it is on disk, whole, when this returns.

        `previous` is what the caller saved last: where the state still holds it, only the rows
        that differ from it are written, and the outcome is the same.
        """
        _insist_on_sense(checkpoint)
        with self._database.writing() as connection:
            if previous is None or not change_checkpoint(
                connection, file_id, previous, checkpoint, now=self._clock()
            ):
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
        if not replace_checkpoints(connection, saved, now=self._clock()):
            raise self._missing("file", first_missing(connection, saved))

    def progress(self, task: int) -> list[FileProgress]:
        """Return how much of each file is safely on disk, as last saved."""
        return self.progress_of([task])[task]

    def progress_of(self, tasks: Sequence[int]) -> dict[int, list[FileProgress]]:
        """Return how much of each file of many tasks is safely on disk, by the tasks' numbers."""
        with self._database.reading() as connection:
            return progress_of(connection, tasks)

    # Events

    def add_event(self, task: int, kind: str, message: str, **facts: object) -> None:
        """Add a line to the task's history; `facts` must be JSON."""
        row = event_row(task, kind, message, facts, now=self._clock())
        with self._database.writing() as connection:
            self._require_task(connection, task)
            connection.execute(schema.events.insert().values(row))

    def list_events(self, task: int, limit: int | None = None) -> list[Event]:
        """Return the task's history, or its last `limit` lines, the oldest first."""
        with self._database.reading() as connection:
            return history_of(connection, task, limit)

    def histories_of(self, tasks: Sequence[int]) -> dict[int, list[Event]]:
        """Return the histories of many tasks, by the tasks' numbers, the oldest lines first."""
        with self._database.reading() as connection:
            return histories_of(connection, tasks)

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


def _insist_on_sense(checkpoint: Checkpoint) -> None:
    if not is_sound(checkpoint):
        raise ValueError(f"a checkpoint that makes no sense is never saved: {checkpoint!r}")
