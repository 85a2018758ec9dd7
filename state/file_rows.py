"""Rows of tasks' files, as the store writes and reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlalchemy import Connection, Double, bindparam, cast, func, select

from state import schema
from state.records import File, FileProgress, PlannedObject
from state.slicing import execute_all, sliced

__all__ = ["SAFE_BYTES", "files_of", "progress_of", "replace_files"]

Identity = tuple[str, str, str]  # of a file: its name, its bucket and its key

_DELETE_FILE = schema.files.delete().where(schema.files.c.id == bindparam("number"))

# As a floating-point number, which is exact up to 8 PiB: a damaged row may hold a number or a text
# of which SQLite could make no sum.
SAFE_BYTES = func.coalesce(func.sum(cast(schema.segments.c.watermark, Double)), 0)


def replace_files(
    connection: Connection, task: int, planned: Sequence[PlannedObject]
) -> list[File]:
    """Make the task's files those of the plan, and return them in its order.

    A file whose name, bucket and key are unchanged keeps its id and its checkpoint.
    """
    wanted = {identity: identity for identity in map(_identity, planned)}
    saved = _by_identity(connection, task, wanted)
    gone = [file.id for identity, file in saved.items() if identity not in wanted]
    execute_all(connection, _DELETE_FILE, ({"number": file_id} for file_id in gone))
    added = [identity for identity in wanted if identity not in saved]
    if added:
        execute_all(connection, schema.files.insert(), _rows(task, added))
        saved = _by_identity(connection, task, wanted)
    return [saved[identity] for identity in wanted]


def files_of(connection: Connection, task: int) -> list[File]:
    """Return the task's files, as they were first planned."""
    return list(_by_identity(connection, task, {}).values())


def progress_of(connection: Connection, tasks: Sequence[int]) -> dict[int, list[FileProgress]]:
    """Return how much of each file of many tasks is safely on disk, by the tasks' numbers."""
    files = schema.files.c
    question = (
        select(files.task, files.name, files.size, SAFE_BYTES)
        .select_from(schema.files.outerjoin(schema.segments))
        .group_by(files.id, files.task, files.name, files.size)
        .order_by(files.id)
    )
    found: dict[int, list[FileProgress]] = {task: [] for task in tasks}
    for some in sliced(tasks):
        for task, name, size, safe in connection.execute(question.where(files.task.in_(some))):
            progress = FileProgress(name=name, size=size, safe_bytes=_believed(safe, size))
            found[task].append(progress)
    return found


def _believed(safe: float, size: int | None) -> int:
    """Return how many bytes are safe, of a file of that size; none if that cannot be."""
    return int(safe) if size is not None and 0 <= safe <= size else 0


def _identity(file: PlannedObject) -> Identity:
    return file.name, file.bucket, file.key


def _rows(task: int, identities: Iterable[Identity]) -> Iterator[dict[str, object]]:
    for name, bucket, key in identities:
        yield {"task": task, "name": name, "bucket": bucket, "key": key}


def _by_identity(
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
