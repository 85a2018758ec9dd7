"""Ends that are still to be told: each to one teller at a time, until it was told."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from state import Notice, Phase, StateStore, current_owner

pytest_plugins = ["state_helpers"]

CLAIM = 90
FAILED = {"phase": Phase.FAILED, "message": "No.", "exit_code": 5}


def end(store, *task_ids, event="failure"):
    """Let tasks end, so that their ends are to be told; return the tasks' numbers."""
    tasks, owner = [task.id for task, _ in store.agenda.watch(task_ids, "/data")], current_owner()
    store.agenda.take_due(owner, 100, lease_seconds=60)
    for task in tasks:
        assert store.agenda.settle(task, owner, event=event, **FAILED)
    return tasks


def take(store, limit=100):
    return store.notices.take_due(limit, claim_seconds=CLAIM)


def test_the_end_of_a_task_is_told_at_once_with_a_key_of_its_own(store):
    one, two = end(store, "one", "two", event="complete")
    first, second = take(store)
    assert first == Notice(
        id=first.id,
        task=one,
        event="complete",
        key=first.key,
        attempts=0,
        delivered=(),
        message="No.",
        exit_code=5,
    )
    assert second.task == two
    assert len({first.key, second.key}) == 2
    assert min(len(first.key), len(second.key)) == 32


def test_nobody_else_gets_a_notice_while_it_is_being_told(store, clock):
    end(store, "t")
    [notice] = take(store)
    clock.advance(CLAIM - 0.001)
    assert take(store) == []
    clock.advance(0.001)
    assert take(store) == [notice]


def test_only_as_many_are_given_as_are_wanted_the_longest_due_first(store, clock):
    end(store, "one", "two")
    one, two = take(store)
    store.notices.put_off(one.id, clock() + timedelta(seconds=20), attempts=1, delivered=[])
    store.notices.put_off(two.id, clock() + timedelta(seconds=10), attempts=1, delivered=[])
    clock.advance(20)
    assert take(store, limit=0) == take(store, limit=-1) == []
    assert [notice.id for notice in take(store, limit=1)] == [two.id]
    assert [notice.id for notice in take(store)] == [one.id]


def test_a_notice_that_is_put_off_remembers_what_has_worked(store, clock):
    end(store, "t")
    [notice] = take(store)
    due_at = clock() + timedelta(seconds=10)
    store.notices.put_off(notice.id, due_at, attempts=3, delivered=["command", "webhook"])
    assert take(store) == []
    clock.advance(10)
    [again] = take(store)
    assert (again.key, again.attempts) == (notice.key, 3)
    assert again.delivered == ("command", "webhook")


def test_what_was_told_is_gone(store, clock):
    end(store, "t")
    [notice] = take(store)
    for _ in range(2):
        store.notices.remove(notice.id)
    clock.advance(CLAIM)
    store.notices.put_off(notice.id, clock(), attempts=1, delivered=[])
    assert take(store) == []


def test_after_a_service_has_died_its_notices_are_due_at_once(store):
    end(store, "t")
    [notice] = take(store)
    store.notices.hasten()
    assert take(store) == [notice]


def test_a_failure_is_told_as_it_was_whatever_became_of_the_task(store):
    [task] = end(store, "t")
    store.set_phase(task, Phase.PUBLISHED)
    [notice] = take(store)
    assert (notice.event, notice.message, notice.exit_code) == ("failure", "No.", 5)


@pytest.mark.parametrize(
    "begin",
    [
        lambda store, task: store.agenda.retry(task),
        lambda store, task: store.agenda.watch([store.get_task(task).task_id], "/data"),
    ],
)
def test_an_end_that_is_one_no_more_is_not_told(store, clock, begin):
    """A hook that was away would hear of the failure after the completion."""
    task, other = end(store, "t", "other")
    begin(store, task)
    assert [notice.task for notice in take(store)] == [other]


def test_of_two_ends_the_last_is_told(store):
    """As where an older program has begun the task again."""
    [task], owner = end(store, "t"), current_owner()
    with store._database.writing() as connection:
        connection.execute(text("UPDATE tasks SET due_at = updated_at"))
    store.acquire(task, owner, 60)
    assert store.agenda.settle(task, owner, event="complete")
    [notice] = take(store)
    assert (notice.event, notice.message) == ("complete", None)


def test_what_a_clock_that_was_ahead_has_put_off_is_told_at_once(store, clock):
    end(store, "t")
    clock.advance(86400)
    [notice] = take(store)
    clock.advance(-86400)
    assert store.notices.wake(86400 + CLAIM) == 0
    assert take(store) == []
    assert store.notices.wake(CLAIM) == 1
    assert take(store) == [notice]


def test_a_removed_task_takes_its_notices_with_it(store):
    [task] = end(store, "t")
    store.forget_task(task)
    assert take(store) == []


def test_a_task_that_ends_again_is_told_again(store):
    end(store, "t")
    [first] = take(store)
    end(store, "t")
    [second] = take(store)
    assert first.task == second.task
    assert first.key != second.key


def test_a_notice_that_another_is_about_to_take_is_passed_over(empty_postgresql_state, clock):
    locked = "SELECT id FROM notices WHERE task = :task FOR UPDATE"
    with StateStore.open(empty_postgresql_state, clock=clock) as store:
        one, two = end(store, "one", "two")
        with store._database.writing() as other:
            other.execute(text(locked), {"task": one})
            assert [notice.task for notice in take(store)] == [two]


TAKER = """
import sys
from state import StateStore
with StateStore.open(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    while taken := store.notices.take_due(3, claim_seconds=90):
        print(*(notice.id for notice in taken), flush=True)
"""


def test_no_notice_goes_to_two_services(store, start_python, tmp_path, request):
    end(store, *(f"t-{number}" for number in range(40)))
    is_sqlite = "sqlite" in request.node.name
    where = (
        tmp_path / "state.db" if is_sqlite else request.getfixturevalue("empty_postgresql_state")
    )
    takers = [start_python(TAKER, where) for _ in range(2)]
    assert [taker.stdout.readline() for taker in takers] == ["ready\n"] * 2
    for taker in takers:
        taker.stdin.write("\n")
        taker.stdin.flush()
    taken = [int(number) for taker in takers for number in taker.stdout.read().split()]
    assert [taker.wait(timeout=30) for taker in takers] == [0, 0]
    assert len(taken) == len(set(taken)) == 40
