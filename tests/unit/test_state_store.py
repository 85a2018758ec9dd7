"""The store's promises, the same on SQLite and on PostgreSQL."""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, timedelta, timezone

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text
from state_helpers import START

from state import (
    Checkpoint,
    FileProgress,
    Phase,
    RecordMissing,
    Segment,
    StateError,
    StateUnreadable,
    current_owner,
)

pytest_plugins = ["state_helpers"]

MIB = 1024 * 1024


@dataclass(frozen=True)
class Planned:
    name: str
    bucket: str = "results"
    key: str = "a/b"


@pytest.fixture
def task(store):
    return store.ensure_task("t-1", "/data").id


@pytest.fixture
def file_id(store, task):
    return store.save_plan(task, [Planned("a.vcf.gz")])[0].id


# Tasks


def test_a_new_task_is_waiting_and_was_never_polled(store):
    task = store.ensure_task("44e5b0fc", "/data/样本")
    assert (task.task_id, task.dest) == ("44e5b0fc", "/data/样本")
    assert (task.phase, task.polls, task.status) == (Phase.WAITING, 0, None)
    assert task.created_at == task.updated_at == START
    assert task.created_at.tzinfo is UTC


def test_ensuring_a_task_twice_gives_the_same_one(store, clock):
    first = store.ensure_task("t", "/data")
    clock.advance(5)
    assert store.ensure_task("t", "/data") == first


def test_one_task_id_may_go_to_two_destinations(store):
    one, two = store.ensure_task("t", "/a"), store.ensure_task("t", "/b")
    assert one.id != two.id
    assert store.find_tasks(task_id="t") == [one, two]


def test_tasks_are_found_by_everything_that_is_given(store):
    one, two = store.ensure_task("t", "/a"), store.ensure_task("u", "/a")
    store.set_phase(two.id, Phase.VERIFYING)
    assert [task.id for task in store.find_tasks(dest="/a")] == [one.id, two.id]
    assert [task.id for task in store.find_tasks(phase=Phase.VERIFYING)] == [two.id]
    assert [task.id for task in store.find_tasks(limit=1)] == [one.id]
    assert store.find_tasks(task_id="t", phase=Phase.VERIFYING) == []


def test_a_poll_is_counted_with_the_platforms_word(store, task, clock):
    clock.advance(1)
    store.record_poll(task, "PENDING")
    store.record_poll(task, "STARTED")
    found = store.get_task(task)
    assert (found.polls, found.status) == (2, "STARTED")
    assert found.updated_at == START + timedelta(seconds=1)


def test_publishing_keeps_its_time(store, task, clock):
    clock.advance(60)
    store.set_phase(task, Phase.PUBLISHED)
    assert store.get_task(task).published_at == START + timedelta(seconds=60)


def test_leaving_failed_clears_its_message_and_exit_code(store, task):
    store.set_phase(task, Phase.FAILED, message="The store refused.", exit_code=5)
    failed = store.get_task(task)
    assert (failed.message, failed.exit_code) == ("The store refused.", 5)
    store.set_phase(task, Phase.WAITING)
    again = store.get_task(task)
    assert (again.message, again.exit_code) == (None, None)


def test_a_forgotten_task_takes_everything_with_it(store, task, file_id):
    store.save_checkpoint(file_id, Checkpoint(etag="e", size=1))
    store.add_event(task, "planned", "One file.")
    store.forget_task(task)
    store.forget_task(task)
    assert store.find_tasks() == []
    assert store.load_checkpoint(file_id) is None
    assert store.list_events(task) == []


def test_the_number_of_a_forgotten_task_is_not_given_again(store, task):
    """A late writer must not hit the successor of what it knew."""
    store.forget_task(task)
    assert store.ensure_task("t-1", "/data").id != task


@pytest.mark.parametrize(
    "late",
    [
        lambda store, task: store.get_task(task),
        lambda store, task: store.record_poll(task, "PENDING"),
        lambda store, task: store.set_phase(task, Phase.VERIFYING),
        lambda store, task: store.save_plan(task, [Planned("a")]),
        lambda store, task: store.add_event(task, "note", "Late."),
        lambda store, task: store.acquire(task, current_owner(), 30),
        lambda store, task: store.save_checkpoint(task, Checkpoint(etag=None, size=0)),
    ],
)
def test_writing_to_a_forgotten_task_says_that_it_is_gone(store, task, late):
    store.forget_task(task)
    with pytest.raises(RecordMissing, match=r"not in the state .* any more"):
        late(store, task)


def test_times_of_other_zones_come_back_as_utc(store, clock):
    clock.now = START.astimezone(timezone(timedelta(hours=8)))
    created_at = store.ensure_task("t", "/d").created_at
    assert created_at == START
    assert created_at.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(store, clock):
    clock.now = START.replace(tzinfo=None)
    with pytest.raises(StateUnreadable, match="time zone"):
        store.ensure_task("t", "/d")


def test_a_path_that_is_no_unicode_is_refused_in_a_sentence(store):
    with pytest.raises(StateError, match=r"value that it cannot keep|cannot be used"):
        store.ensure_task("t", "/data/\udcff")


# Leases


def test_of_two_living_owners_only_one_holds_a_task(store, task):
    one, two = current_owner(), current_owner()
    lease = store.acquire(task, one, 30)
    assert (lease.task, lease.acquired_by) == (task, one)
    assert lease.acquired_until == START + timedelta(seconds=30)
    assert store.acquire(task, two, 30) is None
    assert store.get_task(task).acquired_by == one


def test_an_owner_may_acquire_its_task_again(store, task, clock):
    owner = current_owner()
    store.acquire(task, owner, 30)
    clock.advance(10)
    assert store.acquire(task, owner, 30).acquired_until == START + timedelta(seconds=40)


def test_a_lease_ends_by_the_clock(store, task, clock):
    one, two = current_owner(), current_owner()
    store.acquire(task, one, 30)
    clock.advance(29.999)
    assert store.acquire(task, two, 30) is None
    clock.advance(0.001)
    assert store.acquire(task, two, 30).acquired_by == two
    assert store.renew(task, one, 30) is False


def test_a_heartbeat_prolongs_a_lease(store, task, clock):
    one, two = current_owner(), current_owner()
    store.acquire(task, one, 30)
    clock.advance(20)
    assert store.renew(task, one, 30) is True
    clock.advance(20)
    assert store.acquire(task, two, 30) is None


def test_only_the_holder_can_release(store, task):
    one, two = current_owner(), current_owner()
    store.acquire(task, one, 30)
    store.release(task, two)
    assert store.acquire(task, two, 30) is None
    store.release(task, one)
    assert store.acquire(task, two, 30) is not None


# Files


def test_files_come_back_in_the_order_of_the_plan(store, task):
    plan = [Planned("b.vcf.gz", key="k/b"), Planned("变异/a.vcf.gz", key="k/变异")]
    saved = store.save_plan(task, plan)
    assert [(file.name, file.key, file.task) for file in saved] == [
        ("b.vcf.gz", "k/b", task),
        ("变异/a.vcf.gz", "k/变异", task),
    ]
    assert store.list_files(task) == saved


def test_a_plan_made_again_keeps_what_is_unchanged(store, task):
    same, moved, gone = Planned("a", key="k/a"), Planned("b", key="k/b"), Planned("c", key="k/c")
    before = store.save_plan(task, [same, moved, gone])
    saved = Checkpoint(etag='"e"', size=10, segments=(Segment(start=0, stop=10, watermark=4),))
    for file in before:
        store.save_checkpoint(file.id, saved)

    after = store.save_plan(task, [Planned("b", key="other/b"), same])

    assert [file.name for file in after] == ["b", "a"]
    assert after[1].id == before[0].id
    assert store.load_checkpoint(after[1].id) == saved
    assert store.load_checkpoint(after[0].id) is None
    assert {file.name for file in store.list_files(task)} == {"a", "b"}


def test_the_files_of_a_plan_share_its_texts(store, task):
    """20,000 files need not have their names, buckets and keys twice in memory."""
    plan = [Planned(f"name-{i}", key=f"key/{i}") for i in range(3)]
    for saved in (store.save_plan(task, plan), store.save_plan(task, plan[1:])):
        for file in saved:
            [planned] = [one for one in plan if one.name == file.name]
            assert file.name is planned.name
            assert file.key is planned.key
            assert file.bucket is planned.bucket


def test_an_object_whose_name_holds_a_secret_is_refused(store, task):
    with pytest.raises(StateError, match="signed link") as caught:
        store.save_plan(task, [Planned("a", key="a?Expires=1&Signature=geheim")])
    assert "geheim" not in str(caught.value)
    assert store.list_files(task) == []


# Checkpoints


def test_a_checkpoint_that_was_never_saved_is_none(store, file_id):
    assert store.load_checkpoint(file_id) is None
    assert store.load_checkpoint(file_id + 1000) is None


def test_the_checkpoint_of_an_empty_object_is_not_none(store, file_id):
    empty = Checkpoint(etag=None, size=0)
    store.save_checkpoint(file_id, empty)
    assert store.load_checkpoint(file_id) == empty


def test_a_checkpoint_replaces_the_one_before(store, task, file_id):
    old = (Segment(start=0, stop=4), Segment(start=4, stop=8, watermark=1))
    store.save_checkpoint(file_id, Checkpoint(etag="a", size=8, segments=old))
    new = Checkpoint(etag="b", size=9, segments=(Segment(start=0, stop=9, watermark=9),))
    store.save_checkpoint(file_id, new)
    assert store.load_checkpoint(file_id) == new
    file = store.list_files(task)[0]
    assert (file.etag, file.size) == ("b", 9)


def test_a_cleared_checkpoint_leaves_nothing(store, task, file_id):
    segments = (Segment(start=0, stop=8, watermark=8),)
    store.save_checkpoint(file_id, Checkpoint(etag="a", size=8, segments=segments))
    store.clear_checkpoint(file_id)
    assert store.load_checkpoint(file_id) is None
    assert (store.list_files(task)[0].etag, store.list_files(task)[0].size) == (None, None)
    assert store.progress(task) == [FileProgress(name="a.vcf.gz", size=None, safe_bytes=0)]


def test_progress_sums_what_is_safe(store, task):
    one, _ = store.save_plan(task, [Planned("a", key="1"), Planned("b", key="2")])
    size = 5_000_000 * MIB  # beyond 32 bits
    segments = (
        Segment(start=0, stop=MIB, watermark=MIB),
        Segment(start=MIB, stop=size, watermark=7),
    )
    store.save_checkpoint(one.id, Checkpoint(etag="a", size=size, segments=segments))
    assert store.progress(task) == [
        FileProgress(name="a", size=size, safe_bytes=MIB + 7),
        FileProgress(name="b", size=None, safe_bytes=0),
    ]
    assert type(store.progress(task)[0].safe_bytes) is int


@st.composite
def checkpoints(draw):
    """Any checkpoint that makes sense: sorted segments with gaps, with any watermark."""
    size = draw(st.integers(0, 2**50))
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=8)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    segments = tuple(
        Segment(start=start, stop=stop, watermark=draw(st.integers(0, stop - start)))
        for start, stop in pairs
    )
    etags = st.none() | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
    part_ids = st.none() | st.from_regex(r"[1-9]\d{0,19}:\d{1,12}\.\d{9}", fullmatch=True)
    return Checkpoint(etag=draw(etags), size=size, segments=segments, part_id=draw(part_ids))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(checkpoint=checkpoints())
def test_any_checkpoint_comes_back_as_it_was_saved(store, file_id, checkpoint):
    store.save_checkpoint(file_id, checkpoint)
    assert store.load_checkpoint(file_id) == checkpoint


def with_segments(store, task, count=3):
    """Plan files, each with a checkpoint of its own; return the checkpoints by the files' ids."""
    files = store.save_plan(task, [Planned(f"f{i}", key=f"k/{i}") for i in range(count)])
    saved = {
        file.id: Checkpoint(
            etag=f'"{number}"',
            size=10 + number,
            segments=(Segment(start=0, stop=5, watermark=1), Segment(start=5, stop=10)),
        )
        for number, file in enumerate(files)
    }
    store.save_checkpoints(saved)
    return saved


def test_many_checkpoints_are_saved_at_once_each_whole(store, task):
    """More of them than are handed to the database in one slice."""
    saved = with_segments(store, task, count=1100)
    assert store.load_checkpoints(task) == saved
    shorter = {
        file_id: Checkpoint(etag=None, size=1, segments=(Segment(start=0, stop=1, watermark=1),))
        for file_id in list(saved)[:2]
    }
    store.save_checkpoints(shorter)
    assert store.load_checkpoints(task) == saved | shorter


@pytest.mark.parametrize(
    "write",
    [
        lambda store, saved: store.save_checkpoints(
            {file_id: Checkpoint(etag=None, size=0) for file_id in saved}
        ),
        lambda store, saved: store.clear_checkpoints(saved),
    ],
)
def test_of_a_batch_with_a_file_that_is_gone_nothing_is_written(store, task, write):
    saved = with_segments(store, task)
    missing = max(saved) + 7
    with pytest.raises(RecordMissing, match=f"file number {missing} is not in the state"):
        write(store, [*saved, missing])
    assert store.load_checkpoints(task) == saved


def test_a_batch_with_one_nonsense_is_refused_as_a_whole(store, task):
    saved = with_segments(store, task)
    first, second, _ = saved
    with pytest.raises(ValueError, match="makes no sense"):
        store.save_checkpoints(
            {first: Checkpoint(etag=None, size=1), second: Checkpoint(etag=None, size=-1)}
        )
    assert store.load_checkpoints(task) == saved


def test_the_checkpoints_of_some_files_are_cleared_at_once(store, task):
    saved = with_segments(store, task)
    first, second, third = saved
    store.clear_checkpoints(iter([third, first]))
    assert store.load_checkpoints(task) == {second: saved[second]}
    assert [file.etag for file in store.list_files(task)] == [None, '"1"', None]


def test_a_batch_of_nothing_does_nothing(store, task):
    saved = with_segments(store, task)
    store.save_checkpoints({})
    store.clear_checkpoints([])
    assert store.load_checkpoints(task) == saved


def test_a_tasks_checkpoints_are_its_own_and_sound(store, task):
    with_segments(store, store.ensure_task("another", "/data").id)
    saved = with_segments(store, task)
    damaged, never_saved, good = saved
    store.clear_checkpoint(never_saved)
    with store._database.writing() as connection:
        connection.execute(
            text("UPDATE segments SET stop = 9 WHERE start = 0 AND file = :file"), {"file": damaged}
        )
    assert store.load_checkpoints(task) == {good: saved[good]}


@contextmanager
def written_rows(store):
    """Give a list that gets the rows of every statement that writes."""
    rows = []

    def see(*arguments):
        _, _, statement, parameters, _, executemany = arguments
        if not statement.startswith(("SELECT", "BEGIN")):
            rows.extend(parameters if executemany else [parameters])

    engine = store._database._writer
    event.listen(engine, "before_cursor_execute", see)
    try:
        yield rows
    finally:
        event.remove(engine, "before_cursor_execute", see)


def test_of_a_long_checkpoint_only_what_has_changed_is_written(store, file_id):
    """A file of 100 GB has 1,600 segments, and is saved several times a second."""
    segments = [Segment(start=MIB * i, stop=MIB * (i + 1)) for i in range(300)]
    before = Checkpoint(etag="e", size=300 * MIB, segments=tuple(segments))
    store.save_checkpoint(file_id, before)
    segments[7] = replace(segments[7], watermark=5)
    segments[9:10] = [
        Segment(start=9 * MIB, stop=9 * MIB + 10, watermark=3),
        Segment(start=9 * MIB + 10, stop=10 * MIB),
    ]
    after = replace(before, segments=tuple(segments))
    with written_rows(store) as rows:
        store.save_checkpoint(file_id, after, previous=before)
    assert len(rows) == 1 + 3  # the file, two segments that changed, and the one that was cut off
    assert store.load_checkpoint(file_id) == after


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(before=checkpoints(), after=checkpoints(), is_same_version=st.booleans())
def test_what_changed_since_gives_what_a_whole_replacement_gives(
    store, file_id, before, after, is_same_version
):
    if is_same_version:
        size = max(before.size, after.size)
        before = replace(before, size=size)
        after = replace(after, size=size, etag=before.etag, part_id=before.part_id)
    store.save_checkpoint(file_id, before)
    store.save_checkpoint(file_id, after, previous=before)
    assert store.load_checkpoint(file_id) == after
    [task] = store.find_tasks()
    [file] = store.list_files(task.id)
    assert (file.etag, file.size) == (after.etag, after.size)


PART_DONE = Checkpoint(etag="e", size=9, segments=(Segment(start=0, stop=9, watermark=3),))


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda store, file_id: store.clear_checkpoint(file_id),
        lambda store, file_id: store.save_checkpoint(
            file_id,
            replace(
                PART_DONE,
                segments=(
                    Segment(start=0, stop=4, watermark=4),
                    Segment(start=4, stop=9, watermark=1),
                ),
            ),
        ),
        lambda store, file_id: store.save_checkpoint(file_id, replace(PART_DONE, etag="f")),
        lambda store, file_id: store.save_checkpoint(file_id, replace(PART_DONE, etag=None)),
        lambda store, file_id: store.save_checkpoint(file_id, replace(PART_DONE, size=10)),
        lambda store, file_id: store.save_checkpoint(file_id, replace(PART_DONE, part_id="1:2.3")),
    ],
)
def test_a_checkpoint_that_is_not_the_previous_one_is_replaced_whole(store, file_id, meanwhile):
    """Whoever was cancelled while it saved does not know what was saved last."""
    store.save_checkpoint(file_id, PART_DONE)
    meanwhile(store, file_id)
    now = replace(
        PART_DONE, segments=(Segment(start=0, stop=5, watermark=3), Segment(start=5, stop=9))
    )
    store.save_checkpoint(file_id, now, previous=PART_DONE)
    assert store.load_checkpoint(file_id) == now


@pytest.mark.parametrize(
    ("before", "after"), [(None, "1:2.3"), ("1:2.3", "4:5.6"), ("1:2.3", None)]
)
def test_the_checkpoint_of_another_part_file_is_replaced_with_it(store, file_id, before, after):
    one, other = replace(PART_DONE, part_id=before), replace(PART_DONE, part_id=after)
    store.save_checkpoint(file_id, one)
    store.save_checkpoint(file_id, other, previous=one)
    assert store.load_checkpoint(file_id) == other


def test_a_file_that_is_gone_is_missing_with_a_previous_checkpoint_too(store, task, file_id):
    store.save_checkpoint(file_id, PART_DONE)
    store.forget_task(task)
    with pytest.raises(RecordMissing, match=f"file number {file_id} is not"):
        store.save_checkpoint(file_id, PART_DONE, previous=PART_DONE)


NONSENSE = [
    (10, [(0, 6, 0), (5, 10, 0)]),  # two segments overlap
    (10, [(0, 5, 6)]),  # more is safe than the segment holds
    (10, [(0, 11, 0)]),  # beyond the end
    (10, [(-1, 5, 0)]),  # before the beginning
    (10, [(5, 4, 0)]),  # backwards
    (10, [(0, 5, -1)]),
    (-1, []),
    (None, [(0, 5, 0)]),  # no size at all
]


def write_rows(store, file_id, size, rows):
    """Write what this program never would, past its guards."""
    with store._database.writing() as connection:
        connection.execute(text("DELETE FROM segments"))
        connection.execute(
            text("UPDATE files SET size = :size, checkpoint_at = created_at FROM tasks"),
            {"size": size},
        )
        for start, stop, watermark in rows:
            values = {"file": file_id, "start": start, "stop": stop, "watermark": watermark}
            connection.execute(
                text("INSERT INTO segments VALUES (:file, :start, :stop, :watermark)"), values
            )


@pytest.mark.parametrize(("size", "rows"), NONSENSE)
def test_rows_that_make_no_sense_are_no_checkpoint(store, file_id, size, rows):
    write_rows(store, file_id, size, rows)
    assert store.load_checkpoint(file_id) is None


def test_sound_rows_written_by_hand_are_a_checkpoint(store, file_id):
    """The counterpart of the nonsense: it is the numbers that are refused, not the hand."""
    write_rows(store, file_id, 10, [(5, 10, 5), (0, 5, 0)])
    assert store.load_checkpoint(file_id).safe_bytes == 5


@pytest.mark.parametrize(("size", "rows"), [*NONSENSE, (2**63, [])])
def test_nonsense_is_not_saved_either(store, file_id, size, rows):
    parts = tuple(Segment(start=start, stop=stop, watermark=mark) for start, stop, mark in rows)
    with pytest.raises(ValueError, match="makes no sense"):
        store.save_checkpoint(file_id, Checkpoint(etag=None, size=size, segments=parts))
    assert store.load_checkpoint(file_id) is None


# Events


def test_events_tell_a_tasks_history_in_order(store, task, clock):
    store.add_event(task, "polled", "还没好", polls=1, nested={"a": [1, None, "é"]})
    clock.advance(2)
    store.add_event(task, "planned", "Two files.")
    first, second = store.list_events(task)
    assert (first.at, first.kind, first.message) == (START, "polled", "还没好")
    assert first.facts == {"polls": 1, "nested": {"a": [1, None, "é"]}}
    assert (second.at, second.facts) == (START + timedelta(seconds=2), {})


def test_a_limit_gives_the_last_events(store, task):
    for number in range(5):
        store.add_event(task, "note", str(number))
    assert [event.message for event in store.list_events(task, limit=2)] == ["3", "4"]


@pytest.mark.parametrize("fact", [object(), {1, 2}, float("nan"), b"bytes"])
def test_facts_that_are_not_json_are_refused(store, task, fact):
    with pytest.raises((TypeError, ValueError)):
        store.add_event(task, "note", "", fact=fact)
    assert store.list_events(task) == []


def test_halves_of_surrogates_and_nul_do_not_break_the_history(store, task):
    """JSON can carry both, and the platform's words end up here."""
    store.add_event(task, "failed", "a\udcffb\0c", reason="x\ud800\0")
    store.set_phase(task, Phase.FAILED, message="\ud800\0", exit_code=3)
    store.record_poll(task, "\udfff")
    assert store.list_events(task)[0].message == "a\\udcffb\\0c"
    assert store.get_task(task).message == "\\ud800\\0"


def test_no_secret_reaches_the_state(store, task, file_id):
    link = "https://b.oss-cn-x.aliyuncs.com/k.vcf.gz?Expires=9&OSSAccessKeyId=AK&Signature=geheim"
    store.add_event(task, "note", f"Got {link}.", urls=[link], deep={"by": {link: link}})
    store.set_phase(task, Phase.FAILED, message=f"Refused: {link}")
    store.save_checkpoint(file_id, Checkpoint(etag=f"lying {link}", size=0))
    event = store.list_events(task)[0]
    told = f"{event} {store.get_task(task)} {store.load_checkpoint(file_id)}"
    assert event.message == "Got https://b.oss-cn-x.aliyuncs.com/k.vcf.gz?…"
    assert not any(word in told for word in ("geheim", "Signature", "OSSAccessKeyId", "AK"))
