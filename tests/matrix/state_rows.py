"""What may happen to the state: by others, by the disk, by time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

from sqlalchemy import create_engine

from matrix.broken_disk import immutable, mounted, remounted
from matrix.causes import and_then, deed, patched, when_half_is_here
from matrix.row import EVERYTHING, STRAIGHT, THE_FILE, UNSAVED, Again, Cause, Row
from matrix.story import Story
from state import engine, migrations

__all__ = ["ROWS"]

KIB = 1024
LEFT_AS_IT_IS = "it ends before anybody is asked, and the file is left as it is"


def _garbage(story: Story) -> None:
    _write(story, os.urandom(8192))


def _write(story: Story, content: bytes) -> None:
    """Let other bytes be in the state's place; the state itself is kept."""
    shutil.copy(story.state, story.directory / "kept.db")
    story.state.write_bytes(content)


def _half(story: Story) -> None:
    content = story.state.read_bytes()
    _write(story, content[: len(content) // 2 // 4096 * 4096])


def _noisy_page(story: Story) -> None:
    content = bytearray(story.state.read_bytes())
    content[2 * 4096 : 3 * 4096] = os.urandom(4096)
    _write(story, bytes(content))


def _by_sql(*statements: str) -> Callable[[Story], None]:
    """Write to the state as nobody should."""

    def write(story: Story) -> None:
        with contextlib.closing(sqlite3.connect(story.state)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    return write


def _older(story: Story) -> None:
    """Leave what the first version of the program has left, with the task in it."""
    story.state.unlink()
    database = create_engine(f"sqlite:///{story.state}")
    with database.begin() as connection:
        migrations.bring_up_to_date(connection, str(story.state), latest=1)
        connection.exec_driver_sql(
            "INSERT INTO tasks (task_id, dest, phase, polls, created_at, updated_at)"
            " VALUES (?, ?, 'failed', 3, '2026-01-01 00:00:00.0', '2026-01-01 00:00:00.0')",
            (story.task_id, str(story.dest)),
        )
    database.dispose()


async def _log_missing(story: Story) -> None:
    """Take away what a crash has left in the log, as a careless copy does."""
    with contextlib.closing(sqlite3.connect(story.state)) as reader:
        reader.execute("SELECT 1 FROM meta").fetchall()
        await story.left_half()  # a reader keeps the log from being written back
        copy = story.directory / "copy.db"
        shutil.copy(story.state, copy)
    for suffix in ("-wal", "-shm"):
        story.state.with_name(story.state.name + suffix).unlink(missing_ok=True)
    copy.replace(story.state)


async def _of_yesterday(story: Story) -> None:
    """Put an older copy of the state in its place: more is on disk than it tells."""
    await story.left_half()
    shutil.copy(story.state, story.directory / "older.db")
    outcome = await story.fetch()
    assert outcome.exit_code == 0
    (story.directory / "older.db").replace(story.state)
    shutil.rmtree(story.final)


async def _another_task_is_damaged(story: Story) -> None:
    """Let an earlier task, which is published, be damaged in the state."""
    outcome = await story.fetch()
    assert outcome.exit_code == 0
    _by_sql("UPDATE tasks SET phase = 'astonished'")(story)
    story.store.forget_requests()
    story.add_task()


def _locked(story: Story) -> sqlite3.Connection:
    lock = sqlite3.connect(story.state, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    return lock


@contextlib.asynccontextmanager
async def _locked_for_long(story: Story) -> AsyncIterator[None]:
    await story.left_half()
    with contextlib.closing(_locked(story)):
        yield


@contextlib.asynccontextmanager
async def _locked_for_a_moment(story: Story) -> AsyncIterator[None]:
    await story.left_half()
    lock = _locked(story)
    asyncio.get_running_loop().call_later(0.1, lock.close)
    yield
    lock.close()


IMPATIENT = patched(engine, "BUSY_SECONDS", 0.05)


@contextlib.asynccontextmanager
async def _on_a_full_disk(story: Story) -> AsyncIterator[None]:
    """Let the disk of the state, and of nothing else, be full."""
    story.closing.enter_context(mounted(story.state.parent, size=1024 * KIB))
    filler = story.state.parent / "filler.bin"
    filler.write_bytes(bytes(1000 * KIB))
    yield
    filler.unlink()


@contextlib.asynccontextmanager
async def _fills_up_meanwhile(story: Story) -> AsyncIterator[None]:
    """Let the state's disk be full from the moment on when the files are known."""
    story.closing.enter_context(mounted(story.state.parent, size=1024 * KIB))
    filler = story.state.parent / "filler.bin"
    story.heard.when_planned = lambda: _fill(story, filler)
    yield
    story.heard.when_planned = lambda: None
    filler.unlink()
    _as_if_it_had_ended(story)


def _as_if_it_had_ended(story: Story) -> None:
    """Give the lease back, as the end of a process does."""
    _by_sql("UPDATE tasks SET acquired_by = NULL, acquired_until = NULL")(story)


def _fill(story: Story, filler) -> None:
    disk = os.statvfs(story.state.parent)
    filler.write_bytes(bytes(disk.f_bavail * disk.f_frsize))


@contextlib.asynccontextmanager
async def _read_only_disk(story: Story) -> AsyncIterator[None]:
    story.closing.enter_context(mounted(story.state.parent, size=4096 * KIB))
    await story.left_half()
    with remounted(story.state.parent):
        yield


@contextlib.asynccontextmanager
async def _immutable(story: Story) -> AsyncIterator[None]:
    await story.left_half()
    with immutable(story.state):
        yield


def _folder(story: Story) -> None:
    story.state.unlink()
    story.state.mkdir()


@contextlib.asynccontextmanager
async def _clock_jumps(story: Story, **by: float) -> AsyncIterator[None]:
    """Let this machine's clock be another one when the second run comes."""
    await story.left_half()
    story.state_clock.ahead = timedelta(**by)
    yield


def _jump(**by: float) -> Cause:
    return lambda story: _clock_jumps(story, **by)


def _refused(fault: str, cause: Cause, says: str, **facts) -> Row:
    usual = {"happens": LEFT_AS_IT_IS, "ends": 1, "roads": STRAIGHT, "again": UNSAVED}
    return Row(fault=fault, cause=cause, says=says, **{**usual, **facts})


def _damaged(fault: str, do: Callable[[Story], object], says: str) -> Row:
    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        await story.left_half()
        do(story)
        damaged = story.state.read_bytes()
        yield
        assert story.state.read_bytes() == damaged
        (story.directory / "kept.db").replace(story.state)

    return _refused(fault, cause, says)


def _rows(fault: str, *statements: str, again: Again = THE_FILE) -> Row:
    return Row(
        fault=f"rows: {fault}",
        cause=when_half_is_here(deed(_by_sql(*statements))),
        happens="the checkpoint is not believed; the file is begun anew",
        again=again,
        roads=STRAIGHT,
    )


ITS_FILE = [
    _damaged("garbage in its place", _garbage, "is not a database; it was left as it is"),
    _damaged("truncated", _half, "is damaged and was left as it is|cannot be used"),
    _damaged("a page of noise", _noisy_page, "is damaged and was left as it is|cannot be used"),
    _damaged(
        "another program's database",
        lambda story: (_write(story, b""), _by_sql("CREATE TABLE mine (a)")(story)),
        "is a database, but not a state of bge-downloader; it was left as it is",
    ),
    _damaged(
        "of a newer program",
        lambda story: (
            _write(story, story.state.read_bytes()),
            _by_sql("UPDATE meta SET value = '999' WHERE name = 'schema_version'")(story),
        ),
        "was written by a newer bge-downloader",
    ),
    Row(
        fault="of an older program",
        cause=deed(_older),
        happens="it is brought up to date, and the task goes on",
        roads=STRAIGHT,
    ),
    Row(
        fault="empty",
        cause=when_half_is_here(deed(lambda story: _write(story, b""))),
        happens="it is a new one; what is not published is fetched again",
        again=EVERYTHING,
    ),
    Row(
        fault="lost",
        cause=when_half_is_here(deed(lambda story: shutil.rmtree(story.state.parent))),
        happens="it is a new one; what is not published is fetched again",
        again=EVERYTHING,
    ),
    Row(
        fault="its log (WAL) is missing",
        cause=deed(_log_missing),
        happens="it goes on from what the file itself has",
        again=EVERYTHING,
    ),
    Row(
        fault="older than the results: a copy was restored",
        cause=deed(_of_yesterday),
        happens="it goes on from what is there",
        again=EVERYTHING,
    ),
    _refused(
        "a directory in its place",
        deed(_folder, lambda story: story.state.rmdir()),
        "cannot be used: it is not a regular file",
    ),
]

ITS_DISK = [
    _refused("a full disk", _on_a_full_disk, "no space left|cannot be used"),
    Row(
        fault="a disk that fills up in mid-transfer",
        cause=_fills_up_meanwhile,
        happens="it ends with the state's own sentence; what came is kept",
        ends=1,
        says="There is no space left to write the state",
        roads=STRAIGHT,
        again=UNSAVED,
    ),
    _refused(
        "a read-only disk", _read_only_disk, "cannot be used: (.*cannot be written|unable to open)"
    ),
    _refused("a file that nobody may change", _immutable, "cannot be used: .*cannot be written"),
    _refused(
        "locked by another process for long",
        and_then(IMPATIENT, _locked_for_long),
        "was locked by another process",
    ),
    Row(
        fault="locked by another process for a moment",
        cause=_locked_for_a_moment,
        happens="it is waited for, up to 10 s",
        roads=STRAIGHT,
    ),
]

ITS_ROWS = [
    _rows("a segment is missing", "DELETE FROM segments WHERE start > 0"),
    _rows("all segments are missing", "DELETE FROM segments"),
    _rows("segments overlap", "UPDATE segments SET stop = stop + 10"),
    _rows("a segment is outside of the file", "UPDATE segments SET stop = 99999999, watermark = 9"),
    _rows("a watermark is negative", "UPDATE segments SET watermark = -5"),
    _rows("a watermark is text", "UPDATE segments SET watermark = 'much'"),
    _rows("a watermark is too large", "UPDATE segments SET watermark = 1 << 40"),
    _rows(
        "watermarks tell of bytes that never came", "UPDATE segments SET watermark = stop - start"
    ),
    _rows("the size is text", "UPDATE files SET size = 'big'"),
    _rows("the size is another", "UPDATE files SET size = size + 1"),
    _rows("the ETag is another", "UPDATE files SET etag = '\"0\"'"),
    _rows("the ETag is no ETag", "UPDATE files SET etag = 'a' || char(13, 10) || 'b'"),
    _rows("the ETag is a blob", "UPDATE files SET etag = x'00ff'"),
    _rows("a file's row is missing", "PRAGMA foreign_keys = ON", "DELETE FROM files"),
    _rows(
        "a file's row is another object's",
        "UPDATE files SET \"key\" = 'run/other' WHERE name = 'data.bin'",
    ),
    *(
        Row(
            fault=f"rows: {fault}",
            cause=when_half_is_here(deed(_by_sql(*statements))),
            happens=f"{reads}, and the file goes on",
            roads=STRAIGHT,
        )
        for fault, reads, *statements in (
            (
                "the task's phase is a word that nobody knows",
                "it reads as failed",
                "UPDATE tasks SET phase = 'astonished'",
            ),
            (
                "the task's times are no times",
                "they read as none",
                "UPDATE tasks SET (created_at, updated_at, due_at) = ('yesterday', 7, x'00')",
            ),
            (
                "the task's numbers are texts",
                "they read as none",
                "UPDATE tasks SET (polls, tries, exit_code) = ('many', 'some', 'bad')",
            ),
            (
                "somebody has the task, until a time that is none",
                "the task is nobody's",
                "UPDATE tasks SET (acquired_by, acquired_until) = ('somebody', 'for ever')",
            ),
            (
                "the history is no JSON",
                "it has no facts",
                "UPDATE events SET (at, facts) = ('yesterday', '{')",
            ),
            (
                "a number is the last one that there is",
                "the row gets another one",
                "UPDATE events SET id = 9223372036854775807 WHERE id = 1",
            ),
        )
    ),
    Row(
        fault="rows: another task's phase is a word that nobody knows",
        cause=deed(_another_task_is_damaged),
        happens="it is nobody's concern but that task's",
        roads=STRAIGHT,
    ),
    Row(
        fault="rows: the time of a checkpoint is no time",
        cause=when_half_is_here(deed(_by_sql("UPDATE files SET checkpoint_at = 'yesterday'"))),
        happens="it is nobody's concern, and the file goes on",
    ),
    Row(
        fault="rows: the task's row is missing",
        cause=when_half_is_here(deed(_by_sql("PRAGMA foreign_keys = ON", "DELETE FROM tasks"))),
        happens="the task is begun anew",
        again=EVERYTHING,
        roads=STRAIGHT,
    ),
    Row(
        fault="rows: published, and the result is not there",
        cause=when_half_is_here(deed(_by_sql("UPDATE tasks SET phase = 'published'"))),
        happens="what is on disk counts, and the task goes on",
    ),
]

TIME = [
    Row(
        fault="the clock jumps back by a year between two runs",
        cause=_jump(days=-365),
        happens="it goes on: nothing but a lease depends on it",
        roads=STRAIGHT,
    ),
    Row(
        fault="the clock jumps ahead by a year between two runs",
        cause=_jump(days=365),
        happens="it goes on: nothing but a lease depends on it",
        roads=STRAIGHT,
    ),
]

ROWS = [*ITS_FILE, *ITS_DISK, *ITS_ROWS, *TIME]
