"""Rows of checkpoints: a file's own, and one for each of its segments.

A transfer saves several times a second, so what it takes is built once, and only the rows that
have changed are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    func,
    select,
    type_coerce,
)

from state import schema
from state.checkpoints import difference, is_sound
from state.file_rows import SAFE_BYTES
from state.records import Checkpoint, Segment
from state.redaction import guarded_text
from state.slicing import execute_all

__all__ = ["change_checkpoint", "first_missing", "load_checkpoints", "replace_checkpoints"]

_FILES = schema.files.c
_SEGMENTS = schema.segments.c

_UPDATE_FILE = (
    schema.files.update()
    .where(_FILES.id == bindparam("number"))
    .values(
        etag=bindparam("tag"),
        size=bindparam("bytes"),
        crc64=bindparam("sum"),
        checkpoint_at=bindparam("now"),
        part_id=bindparam("part"),
    )
)
_TOUCH_FILE = (
    schema.files.update()
    .where(
        _FILES.id == bindparam("number"),
        _FILES.etag.is_not_distinct_from(bindparam("tag")),
        _FILES.size == bindparam("bytes"),
        _FILES.part_id.is_not_distinct_from(bindparam("part")),
        _FILES.checkpoint_at.is_not(None),
    )
    .values(crc64=bindparam("sum"), checkpoint_at=bindparam("now"))
)
_IS_SEGMENT = and_(_SEGMENTS.file == bindparam("number"), _SEGMENTS.start == bindparam("at"))
_DELETE_SEGMENT = schema.segments.delete().where(_IS_SEGMENT)
_DELETE_SEGMENTS = schema.segments.delete().where(_SEGMENTS.file == bindparam("number"))
_UPDATE_SEGMENT = (
    schema.segments.update()
    .where(_IS_SEGMENT)
    .values(stop=bindparam("to"), watermark=bindparam("mark"))
)
_SUM_OF_SEGMENTS = select(func.count(), SAFE_BYTES).where(_SEGMENTS.file == bindparam("number"))


def load_checkpoints(connection: Connection, wanted: ColumnElement[bool]) -> dict[int, Checkpoint]:
    """Return the sound checkpoints of the files that are wanted, by the files' ids."""
    # One question, so that both halves are of the same moment.
    question = (
        select(
            _FILES.id,
            _FILES.etag,
            type_coerce(_FILES.size, BigInteger),  # as it is, in the row of each segment
            _FILES.crc64,
            _FILES.part_id,
            _SEGMENTS.start,
            _SEGMENTS.stop,
            _SEGMENTS.watermark,
        )
        .select_from(schema.files.outerjoin(schema.segments))
        .where(wanted, _FILES.checkpoint_at.is_not(None))
        .order_by(_FILES.id, _SEGMENTS.start)
    )
    found = {}
    for file_id, rows in groupby(connection.execute(question), attrgetter("id")):
        checkpoint = _checkpoint(list(rows))
        if is_sound(checkpoint):
            found[file_id] = checkpoint
    return found


def _checkpoint(rows: Sequence[Row[*tuple[Any, ...]]]) -> Checkpoint:
    _, etag, size, crc64, part_id, *_ = rows[0]
    segments = tuple(
        Segment(start=start, stop=stop, watermark=watermark)
        for *_, start, stop, watermark in rows
        if start is not None
    )
    return Checkpoint(etag=etag, size=size, segments=segments, crc64=crc64, part_id=part_id)


def replace_checkpoints(
    connection: Connection, saved: Mapping[int, Checkpoint | None], *, now: datetime
) -> bool:
    """Make these the files' checkpoints, None for no checkpoint; False if a file is not there."""
    # In one order for everybody, so that two writers never wait for each other (PostgreSQL).
    file_ids = sorted(saved)
    rows = (_file_row(file_id, saved[file_id], now) for file_id in file_ids)
    if execute_all(connection, _UPDATE_FILE, rows) != len(file_ids):
        return False
    execute_all(connection, _DELETE_SEGMENTS, ({"number": file_id} for file_id in file_ids))
    segments = (
        _segment_row(file_id, segment)
        for file_id in file_ids
        for segment in _segments_of(saved[file_id])
    )
    execute_all(connection, schema.segments.insert(), segments)
    return True


def first_missing(connection: Connection, files: Mapping[int, object]) -> int:
    """Return the first of the files, in order, that is not there; one of them is not."""
    file_ids = sorted(files)
    question = select(_FILES.id).where(_FILES.id.between(file_ids[0], file_ids[-1]))
    there = set(connection.execute(question).scalars())
    return next(file_id for file_id in file_ids if file_id not in there)


def change_checkpoint(
    connection: Connection, file_id: int, before: Checkpoint, after: Checkpoint, *, now: datetime
) -> bool:
    """Turn one checkpoint of a part file into a later one; False if `before` is not there.

    A caller that was cancelled does not know that its last checkpoint was saved.
    """
    if (before.etag, before.size, before.part_id) != (after.etag, after.size, after.part_id):
        return False
    if connection.execute(_TOUCH_FILE, _file_row(file_id, after, now)).rowcount != 1:
        return False
    there = connection.execute(_SUM_OF_SEGMENTS, {"number": file_id}).one()
    if tuple(there) != (len(before.segments), before.safe_bytes):
        return False
    todo = difference(before, after)
    gone = ({"number": file_id, "at": start} for start in todo.gone)
    changed = (
        {"number": file_id, "at": part.start, "to": part.stop, "mark": part.watermark}
        for part in todo.changed
    )
    added = (_segment_row(file_id, part) for part in todo.added)
    execute_all(connection, _DELETE_SEGMENT, gone)
    execute_all(connection, _UPDATE_SEGMENT, changed)
    execute_all(connection, schema.segments.insert(), added)
    return True


def _file_row(file_id: int, checkpoint: Checkpoint | None, now: datetime) -> dict[str, object]:
    if checkpoint is None:
        return {"number": file_id} | dict.fromkeys(("tag", "bytes", "sum", "part", "now"))
    etag = None if checkpoint.etag is None else guarded_text(checkpoint.etag)
    return {
        "number": file_id,
        "tag": etag,
        "bytes": checkpoint.size,
        "sum": checkpoint.crc64,
        "part": checkpoint.part_id,
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
