"""Whatever is in whatever row of the state: every command works, and so does the service."""

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix.story import Heard, story_in
from service_helpers import Clock, opened_service
from typer.testing import CliRunner

from downloader.cli import app
from downloader.logs import printable
from downloader.retry import without_waiting
from state import Phase, StateStore, schema

TORTURE = bool(os.environ.get("BGE_TEST_TORTURE"))
HOUR = 3600.0
SOMEBODY = "somebody"

VALUES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.integers(-2, 200)
    | st.none()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from(
        [
            *("astonished", "waiting", "cancelled", "yesterday", "2x", "[" * 5000, '{"a": NaN}'),
            *("9999-12-31 23:59:59.999999", "0001-01-01 00:00:00", "2026-02-31 00:00:00"),
            *("2026-01-01 00:00:00+99:00", "\x1b[2J", "../../x", "a\0b", "", "/a/../b"),
            *(2**63 - 1, 2**62, b"waiting", b"\xff", 1e308),
        ]
    )
)
# Of the version, other tests tell: whatever is not the right one is refused in a sentence.
COLUMNS = [
    *(
        f"{table.name}.{column.name}"
        for table in schema.metadata.tables.values()
        for column in table.columns
        if table.name != "meta"
    ),
    "identity.value",
]
CHANGES = st.lists(
    st.tuples(st.sampled_from(COLUMNS), VALUES, st.booleans()), min_size=1, max_size=3
)


class Scene:
    """A state with a bit of everything in it, both stand-ins, and whoever works with them."""

    def __init__(self, runner, story, task_ids, copy):
        self.runner = runner
        self.story = story
        self.half, self.failed, self.watched = task_ids
        self._copy = copy

    def begin_with(self, changes):
        """Let everything be as it was at first, but for rows that nobody should have changed."""
        shutil.rmtree(self.story.directory)
        shutil.copytree(self._copy, self.story.directory)
        self.story.task_id, self.story.heard = self.half, Heard()
        with contextlib.closing(sqlite3.connect(self.story.state)) as connection, connection:
            for field, value, is_one_only in changes:
                change(connection, field, value, is_one_only=is_one_only)

    def run(self, command, *arguments):
        """Run a command, which succeeds, and return what it has said on stdout."""
        environment = {"BGE_STATE": str(self.story.state), "BGE_DEST": str(self.story.dest)}
        result = CliRunner().invoke(app, [command, *arguments], env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        assert result.exit_code == 0, (command, arguments, result.stderr)
        return result.stdout

    def known(self):
        return [json.loads(line) for line in self.run("status", "--json").splitlines()]

    async def serve(self):
        """Let a service work for some hours, and everything periodic with it."""
        clock = Clock()
        with without_waiting():
            async with contextlib.AsyncExitStack() as stack:
                opened = opened_service(
                    self.story.sandbox,
                    self.story.directory,
                    clock,
                    stack,
                    state=str(self.story.state),
                    poll_deadline=HOUR,
                )
                rig = await stack.enter_async_context(opened)
                for _ in range(8):
                    await rig.rest()
                    await rig.service.heartbeat()
                    await rig.service.upkeep()
                    await rig.service.tell_status()
                    clock.move(HOUR / 4)


def change(connection, field, value, *, is_one_only):
    table, column = field.split(".")
    where = f"WHERE rowid = (SELECT max(rowid) FROM {table})" if is_one_only else ""
    if table == "identity":
        table, where = "meta", "WHERE name = 'identity'"
    with contextlib.suppress(sqlite3.IntegrityError):  # SQLite itself keeps an id a number
        connection.execute(f'UPDATE OR IGNORE {table} SET "{column}" = ? {where}', [value])


def fill(store, dest, failed, watched):
    """Add tasks of which one has failed, which is to be announced, and one is being asked for."""
    for task_id in (failed, watched):
        store.agenda.watch([task_id], dest)
        [taken] = store.agenda.take_due(SOMEBODY, 1, lease_seconds=1)
        store.agenda.record_ready(taken.id, SOMEBODY, "SUCCESS", seconds=3)
        store.add_event(taken.id, "note", "Heard", polls=1)
        if task_id == failed:
            told = {"phase": Phase.FAILED, "message": "Lost", "exit_code": 5}
            store.agenda.settle(taken.id, SOMEBODY, event="failure", **told)
    store.services.started(SOMEBODY, dest)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        story = runner.run(stack.enter_async_context(story_in(directory / "live", "straight")))
        task_ids = [story.task_id]
        for _ in range(3):
            story.add_task()
            task_ids.append(story.task_id)
        assert runner.run(story.fetch()).exit_code == 0
        story.task_id = task_ids[0]
        runner.run(story.left_half())
        with StateStore.open(story.state) as store:
            fill(store, str(story.dest), *task_ids[1:3])
        shutil.copytree(story.directory, directory / "copy")
        yield Scene(runner, story, task_ids[:3], directory / "copy")
        runner.run(stack.aclose())


@settings(max_examples=150 if TORTURE else 5, derandomize=not TORTURE, deadline=None, database=None)
@given(changes=CHANGES)
@pytest.mark.thorough
def test_whatever_is_in_a_row_every_command_works(scene, changes):
    scene.begin_with(changes)
    scene.run("status")
    scene.run("status", "--all")
    scene.run("add", scene.half, scene.failed, scene.watched)
    scene.run("retry", "--failed", scene.half)
    assert scene.runner.run(scene.story.fetch()).exit_code == 0
    scene.story.check_promises(is_published=True)
    scene.run("cancel", scene.watched)
    while known := scene.known():
        for task_id in {printable(task["task_id"]) for task in known}:
            scene.run("status", "--", task_id)
            scene.run("remove", "--files", "--", task_id)
        assert len(scene.known()) < len(known)


@settings(max_examples=75 if TORTURE else 5, derandomize=not TORTURE, deadline=None, database=None)
@given(changes=CHANGES)
@pytest.mark.thorough
def test_whatever_is_in_a_row_the_service_ends_every_task_and_brings_others(scene, changes):
    scene.begin_with(changes)
    scene.story.add_task()
    scene.run("add", scene.story.task_id)
    scene.runner.run(scene.serve())
    scene.story.check_promises(is_published=True)
    assert not [task for task in scene.known() if task["due_at"] is not None]
