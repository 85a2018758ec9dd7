"""Whatever is in the rows of a file: the next fetch succeeds, with the right bytes."""

import asyncio
import contextlib
import os
import shutil
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix.story import Heard, story_in

TORTURE = bool(os.environ.get("BGE_TEST_TORTURE"))

NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 200_000)
VALUES = (
    NUMBERS | st.none() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=5)
)
FIELDS = st.sampled_from(
    [
        *("segments.start", "segments.stop", "segments.watermark"),
        *("files.etag", "files.size", "files.checkpoint_at", "files.crc64"),
    ]
)
CHANGES = st.lists(st.tuples(FIELDS, VALUES, st.booleans()), min_size=1, max_size=4)
ADDED = st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=2)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A fetch that was interrupted: a story on a loop of its own, and copies to begin from."""
    directory = tmp_path_factory.mktemp("half")
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        story = runner.run(stack.enter_async_context(story_in(directory / "live", "straight")))
        runner.run(story.left_half())
        shutil.copytree(story.directory, directory / "copy")
        yield runner, story, directory / "copy"
        runner.run(stack.aclose())


@settings(
    max_examples=500 if TORTURE else 40, derandomize=not TORTURE, deadline=None, database=None
)
@given(changes=CHANGES, added=ADDED)
@pytest.mark.thorough
def test_no_row_makes_a_file_unreachable_for_ever(half, changes, added):
    runner, story, copy = half
    shutil.rmtree(story.directory)
    shutil.copytree(copy, story.directory)
    story.heard = Heard()
    with contextlib.closing(sqlite3.connect(story.state)) as connection, connection:
        change_rows(connection, changes, added)
    assert runner.run(story.fetch()).exit_code == 0
    story.check_promises(is_published=True)


def change_rows(connection, changes, added):
    for field, value, is_one_only in changes:
        table, column = field.split(".")
        where = f"WHERE rowid = (SELECT max(rowid) FROM {table})" if is_one_only else ""
        with contextlib.suppress(sqlite3.OperationalError):  # an older state has no such column
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ? {where}", [value])
    for row in added:
        connection.execute("INSERT OR IGNORE INTO segments SELECT max(id), ?, ?, ? FROM files", row)
