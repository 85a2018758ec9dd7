"""Rows that this program did not write: read in any case, and put right where nobody sees them."""

import shutil
import sqlite3
from contextlib import closing, suppress
from datetime import timedelta
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from state import (
    AT_ONCE,
    Checkpoint,
    Phase,
    Segment,
    StateStore,
    Wanted,
    current_owner,
    schema,
)
from state.columns import LARGEST_COUNT

pytest_plugins = ["state_helpers"]

LEASE = 60.0
LIVING = "another-machine"  # nobody here can tell that it has died


class Planned:
    name, bucket, key = "a.vcf.gz", "results", "run/a.vcf.gz"


@pytest.fixture
def where(tmp_path):
    """The place of an empty state; what SQLite lets into a row, no server would."""
    return tmp_path / "state.db"


@pytest.fixture
def task(store):
    """The number of a task that is watched."""
    [(task, _)] = store.agenda.watch(["t"], "/data")
    return task.id


def damage(state, statement, *values):
    """Write to the file as nobody should."""
    path = getattr(state, "location", state)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


# What a damaged value reads as


def test_a_phase_that_nobody_knows_reads_as_failed(store, task):
    for value in ("astonished", "waiting ", "", b"waiting", b"\xff", 5, 2.5):
        damage(store, "UPDATE tasks SET phase = ?", value)
        assert store.get_task(task).phase is Phase.FAILED


def test_phases_that_nobody_knows_are_counted_with_those_that_have_failed(store):
    for number, word in enumerate(("failed", "astonished", "dismayed", "waiting")):
        store.ensure_task(str(number), "/data")
        damage(store, "UPDATE tasks SET phase = ? WHERE task_id = ?", word, str(number))
    assert store.agenda.counts() == {Phase.FAILED: 3, Phase.WAITING: 1}


def test_a_time_that_is_none_reads_as_long_ago_or_as_none(store, task):
    columns = ("created_at", "updated_at", "due_at", "published_at", "acquired_until")
    for value in ("yesterday", "", "2026-02-30 00:00:00", b"2026", 20260101, 0.5):
        damage(store, f"UPDATE tasks SET ({', '.join(columns)}) = (?, ?, ?, ?, ?)", *[value] * 5)
        found = store.get_task(task)
        assert {found.created_at, found.updated_at, found.due_at} == {AT_ONCE}
        assert (found.published_at, found.acquired_until) == (None, None)


def test_a_number_that_cannot_be_reads_as_nothing_or_as_none(store, task):
    for value in (-1, LARGEST_COUNT + 1, 2**63 - 1, "many", b"\1", 1.5):
        damage(store, "UPDATE tasks SET (polls, tries, exit_code) = (?, ?, ?)", *[value] * 3)
        found = store.get_task(task)
        assert (found.polls, found.tries, found.exit_code) == (0, 0, None)
    damage(store, "UPDATE tasks SET exit_code = 256")  # which a shell would take for 0
    assert store.get_task(task).exit_code is None


def test_a_duration_that_cannot_be_teaches_nothing(store, task):
    for value in (-1, 1e300, float("inf"), 2**63 - 1, "long", b"\1"):
        damage(store, "UPDATE tasks SET ready_after_seconds = ?", value)
        assert store.get_task(task).ready_after_seconds is None
        assert store.agenda.durations(9) == []


def test_bytes_in_place_of_a_text_read_as_the_text_that_they_were(store, task):
    shown = [(b"t", "t"), (b"a\xff", "a\ufffd"), ("a\0b", "a\ufffdb"), (7, "7")]
    for value, text in shown:
        damage(store, "UPDATE tasks SET (task_id, status, message) = (?, ?, ?)", *[value] * 3)
        found = store.get_task(task)
        assert (found.task_id, found.status, found.message) == (text, text, text)


def test_facts_that_are_none_leave_the_line_of_the_history(store, task):
    odd = [
        "no JSON",
        "",
        "5",
        "[1]",
        "null",
        '{"a": NaN}',
        '{"a": 1e999}',
        "[" * 100_000,
        "9" * 5000,
    ]
    for facts in odd:
        damage(store, "UPDATE events SET facts = ?", facts)
        for history in (store.list_events(task), store.histories_of([task])[task]):
            assert [(line.kind, line.facts) for line in history] == [("added", {})]


def test_progress_that_cannot_be_is_none_and_a_checkpoint_is_saved_over_it(store, task):
    """Of such rows SQLite can make no sum, or one that is no number of bytes."""
    [file] = store.save_plan(task, [Planned])
    segments = (Segment(start=0, stop=4, watermark=4), Segment(start=4, stop=9, watermark=2))
    saved = Checkpoint(etag="e", size=9, segments=segments)
    store.save_checkpoint(file.id, saved)
    for change in (
        *("segments SET watermark = 9223372036854775807", "segments SET watermark = 'much'"),
        *("segments SET watermark = 9e999", "segments SET watermark = -4"),
        *("files SET size = 3", "files SET size = 'big'", "files SET size = NULL"),
    ):
        damage(store, f"UPDATE {change}")
        assert [one.safe_bytes for one in store.progress(task)] == [0]
        assert store.load_checkpoint(file.id) is None
        store.save_checkpoint(file.id, saved, previous=saved)
        assert store.load_checkpoint(file.id) == saved


def test_of_services_the_last_one_seen_is_first_and_a_damaged_time_is_long_ago(store, clock):
    store.services.started("first", "/data")
    clock.advance(1)
    store.services.started("second", "/data")
    damage(store, "UPDATE services SET seen_at = 'yesterday' WHERE owner = 'second'")
    assert [service.owner for service in store.services.list()] == ["first", "second"]


def test_a_service_whose_name_was_damaged_is_forgotten_once_it_is_silent(store, clock):
    store.services.started("lost", "/data")
    for name in ("CAST(owner AS BLOB)", "NULL"):
        damage(store, f"UPDATE services SET owner = {name}")
        assert len(store.services.list()) == (name != "NULL")
        clock.advance(3600)
        store.services.started("new", "/data")
        assert [service.owner for service in store.services.list()] == ["new"]
    with closing(sqlite3.connect(store.location)) as connection:
        assert connection.execute("SELECT owner FROM services").fetchall() == [("new",)]


@pytest.fixture
def lively(where, clock):
    """The path of a state with a bit of everything in it, closed."""
    with StateStore.open(where, clock=clock) as store:
        tasks = [task.id for task, _ in store.agenda.watch(["a", "b", "c"], "/data")]
        for task in tasks:
            [file] = store.save_plan(task, [Planned])
            segments = (Segment(start=0, stop=4, watermark=4), Segment(start=4, stop=9))
            store.save_checkpoint(file.id, Checkpoint(etag="e", size=9, segments=segments))
        store.services.started(LIVING, "/data")
        store.agenda.take_due(LIVING, 2, lease_seconds=LEASE)
        store.agenda.record_ready(tasks[0], LIVING, "SUCCESS", seconds=7)
        store.agenda.settle(tasks[0], LIVING, event="complete", phase=Phase.PUBLISHED)
    return where


COLUMNS = [
    f"{table.name}.{column.name}"
    for table in schema.metadata.tables.values()
    for column in table.columns
    if table.name != "meta"
]
VALUES = (
    st.integers(-(2**63), 2**63 - 1)
    | st.none()
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.sampled_from(["2", "9999-12-31 23:59:59.999999", "0001-01-01 00:00:00+24:00", "{}"])
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(st.tuples(st.sampled_from(COLUMNS), VALUES), min_size=1, max_size=4))
@pytest.mark.thorough
def test_whatever_is_in_a_row_every_question_has_an_answer(lively, tmp_path, clock, changes):
    owner = current_owner()
    for left in tmp_path.glob("copy.db*"):
        left.unlink()
    path = shutil.copy(lively, tmp_path / "copy.db")
    for field, value in changes:
        table, column = field.split(".")
        with suppress(sqlite3.IntegrityError):  # a number is one
            damage(path, f'UPDATE OR IGNORE {table} SET "{column}" = ?', value)
    with StateStore.open(path, clock=clock) as store:
        store.put_right()
        assert store.put_right() == 0
        numbers = [task.id for task in store.find_tasks()]
        store.progress_of(numbers)
        store.histories_of(numbers)
        store.services.list()
        store.services.started(owner, "/data")
        store.agenda.release_dead()
        store.agenda.durations(9)
        assert sum(store.agenda.counts().values()) == len(numbers) == 3
        store.notices.take_due(9, claim_seconds=1)
        clock.advance(LEASE)
        due = {task.id for task in store.agenda.take_due(owner, 9, lease_seconds=LEASE)}
        assert due == {task.id for task in store.find_tasks() if task.is_watched}
        store.agenda.hand_back(owner)
        for number in numbers:
            assert store.acquire(number, owner, LEASE) is not None
            store.release(number, owner)
            store.list_files(number)
            store.load_checkpoints(number)
            store.agenda.cancel(number)
            assert store.agenda.retry(number) is Wanted.ADDED
            store.forget_task(number)
        assert store.find_tasks() == []


# Put right


def test_a_state_that_is_whole_has_nothing_to_put_right(store, task, clock):
    store.agenda.take_due(LIVING, 1, lease_seconds=LEASE)
    ended = store.ensure_task("ended", "/data").id
    store.set_phase(ended, Phase.FAILED)
    before = store.find_tasks()
    assert store.put_right() == 0
    assert store.find_tasks() == before


def taken_by(store, owner):
    return [task.id for task in store.agenda.take_due(owner, 9, lease_seconds=LEASE)]


def test_what_is_put_off_as_long_as_a_setting_allows_is_not_damaged(store, task, clock):
    """`poll_max_interval` may be ten years, and a history must not speak of damage then."""
    [taken] = store.agenda.take_due("somebody", 1, lease_seconds=LEASE)
    later = clock() + timedelta(days=3650)
    assert store.agenda.put_off(taken.id, "somebody", later)
    assert store.put_right() == 0
    assert store.get_task(task).due_at == later


def test_a_task_whose_time_is_none_is_due_again(store, task):
    for due_at in ("yesterday", "2x", b"soon", "9999-12-31 00:00:00", "", 7, 0.5):
        damage(store, "UPDATE tasks SET due_at = ?", due_at)
        assert store.put_right() == 1
        assert store.get_task(task).due_at == AT_ONCE
        assert taken_by(store, "me") == [task]
        store.agenda.hand_back("me")
    assert {line.kind for line in store.list_events(task)} == {"added", "mended"}


def test_a_cancelled_task_stays_so_whatever_its_time_is(store, task):
    store.agenda.cancel(task)
    for due_at in ("yesterday", 7):
        damage(store, "UPDATE tasks SET due_at = ?", due_at)
        assert store.put_right() == 1
        assert taken_by(store, "me") == []
    assert store.get_task(task).phase is Phase.CANCELLED


ENDLESS = ("for ever", "3", b"2", None, "2924-02-29 12:00:00.000000")


def test_a_lease_without_an_end_is_nobodys(store, task):
    """By the clock it would never end, and whoever holds it can be on another machine."""
    for until in (*ENDLESS, 7):
        store.agenda.take_due(LIVING, 1, lease_seconds=LEASE)
        damage(store, "UPDATE tasks SET acquired_until = ?", until)
        assert store.put_right() == 1
        assert taken_by(store, "me") == [task]
        store.agenda.hand_back("me")


def test_a_fetch_takes_a_task_whose_lease_has_no_end(store, task):
    """Whoever followed the holder instead would not see it, and ask for the lease for ever."""
    for until, holder in product(ENDLESS, (LIVING, b"\xff")):
        damage(store, "UPDATE tasks SET acquired_by = ?, acquired_until = ?", holder, until)
        assert store.acquire(task, "me", LEASE) is not None
        assert store.renew(task, "me", LEASE)


def test_a_phase_that_nobody_knows_is_found_among_those_that_have_failed(store, task):
    damage(store, "UPDATE tasks SET phase = 'astonished'")
    assert store.find_tasks(phase=Phase.FAILED) == []
    assert store.put_right() == 1
    assert [found.id for found in store.find_tasks(phase=Phase.FAILED)] == [task]


def test_a_task_whose_end_has_no_time_is_kept_as_long_as_any_other(store, clock):
    store.set_phase(store.ensure_task("t", "/data").id, Phase.FAILED)
    for updated_at in ("yesterday", 5, b"2", ""):
        damage(store, "UPDATE tasks SET updated_at = ?", updated_at)
        assert store.put_right() == 1
        assert store.agenda.forget_older(clock(), limit=9) == 0
    clock.advance(1)
    assert store.agenda.forget_older(clock(), limit=9) == 1


def test_an_id_in_bytes_is_found_again_unless_another_task_has_it(store, task):
    damage(store, "UPDATE tasks SET task_id = x'74'")
    assert store.find_tasks("t") == []
    assert store.put_right() == 1
    assert [found.id for found in store.find_tasks("t")] == [task]
    damage(store, "UPDATE tasks SET task_id = x'74'")
    other = store.ensure_task("t", "/data").id
    assert store.put_right() == 0
    assert [found.id for found in store.find_tasks("t")] == [other]
    assert [found.task_id for found in store.find_tasks()] == ["t", "t"]


def test_what_is_to_be_announced_comes_into_sight_and_what_is_of_no_task_goes(store, clock):
    tasks = [task.id for task, _ in store.agenda.watch(["a", "b", "c"], "/data")]
    phases = (Phase.PUBLISHED, Phase.FAILED, Phase.FAILED)
    store.agenda.take_due("me", 9, lease_seconds=LEASE)
    for task, phase in zip(tasks, phases, strict=True):
        store.agenda.settle(task, "me", event="x", phase=phase)
    damage(store, "UPDATE notices SET due_at = 'later', attempts = 'some'")
    damage(store, "UPDATE notices SET task = 99 WHERE task = ?", tasks[2])
    assert store.put_right() == 3
    found = store.notices.take_due(9, claim_seconds=LEASE)
    told = [(notice.task, notice.event, notice.attempts) for notice in found]
    assert told == [(tasks[0], "complete", 0), (tasks[1], "failure", 0)]


@pytest.mark.parametrize("number", [2**63 - 1, 2**62])
def test_a_row_with_the_last_number_leaves_numbers_for_others(lively, clock, number):
    """SQLite would call the disk full."""
    naming = {"tasks": ("files", "events", "notices"), "files": ("segments",)}
    for table in ("tasks", "files", "events", "notices"):
        damage(lively, f"UPDATE {table} SET id = ? WHERE id = 1", number)
        for other in naming.get(table, ()):
            column = table.removesuffix("s")
            damage(lively, f"UPDATE {other} SET {column} = ? WHERE {column} = 1", number)
    with StateStore.open(lively, clock=clock) as store:
        new = store.ensure_task("new", "/data").id
        store.save_plan(new, [Planned])
        store.add_event(new, "note", "")
        [found] = store.find_tasks("a")
        assert (found.id, new) == (4, 5)
        [file] = store.list_files(found.id)
        assert store.load_checkpoint(file.id).safe_bytes == 4
        assert [line.kind for line in store.list_events(found.id)] == ["added"]
        assert [notice.task for notice in store.notices.take_due(9, claim_seconds=1)] == [found.id]


ENDED = 3000
ENDED_TASKS = f"""
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {ENDED})
    INSERT INTO tasks (task_id, dest, phase, polls, created_at, updated_at)
    SELECT 't-' || n, '/data', 'published', 1, '2024-02-29 12:00:00.0', '2024-02-29 12:00:00.0'
    FROM numbers
"""


def test_to_look_for_what_is_to_be_put_right_takes_as_long_with_many_tasks_as_with_few(store):
    """Every command looks, and of 100,000 tasks that would be felt."""
    damage(store, ENDED_TASKS)
    steps = []
    with store._database.reading() as connection:
        raw = connection.connection.driver_connection
    raw.set_progress_handler(lambda: steps.append(None), 1)
    assert store.put_right() == 0
    raw.set_progress_handler(None, 0)
    assert 0 < len(steps) < ENDED
