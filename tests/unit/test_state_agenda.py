"""What the service watches: who gets a task, when, and what becomes of it, on both databases."""

import shutil
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import event, text
from state_helpers import LINK, START, Clock

from state import (
    AT_ONCE,
    Phase,
    Polled,
    RecordMissing,
    StateError,
    StateStore,
    Wanted,
    current_owner,
)

pytest_plugins = ["state_helpers"]

LEASE = 60
DIRTY = f"{LINK} \0 \ud800"
CLEAN = "https://b.oss-cn-x.aliyuncs.com/k?… \\0 \\ud800"


@pytest.fixture
def agenda(store):
    return store.agenda


@pytest.fixture
def task(agenda):
    return watch(agenda, "t-1")[0]


@pytest.fixture
def held(agenda, task, clock):
    """Give a task that was taken, and by whom."""
    clock.advance(1)
    owner = current_owner()
    assert take(agenda, owner) == [task]
    return task, owner


@pytest.fixture(scope="module")
def dead():
    """Give the owner that a process called itself that is no more."""
    code = "from state import current_owner; print(current_owner())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return said.stdout.strip()


@pytest.fixture
def living(start_python):
    """Give the owner that another process of this machine calls itself, which lives."""
    code = "import sys; from state import current_owner; print(current_owner(), flush=True)"
    return start_python(f"{code}; sys.stdin.read()").stdout.readline().strip()


def watch(agenda, *task_ids, dest="/data"):
    """Watch tasks; return their numbers."""
    return [task.id for task, _ in agenda.watch(task_ids, dest)]


def take(agenda, owner, limit=100):
    return [task.id for task in agenda.take_due(owner, limit, lease_seconds=LEASE)]


def soon(clock, seconds=30):
    return clock() + timedelta(seconds=seconds)


def kinds(store, task):
    return [event.kind for event in store.list_events(task)]


def notices(store):
    return store.notices.take_due(100, claim_seconds=0)


# Tasks in and out


def test_a_watched_task_is_due_at_once_and_its_history_tells_why(store, task):
    found = store.get_task(task)
    assert found.is_watched
    assert (found.due_at, found.watched_since, found.phase) == (AT_ONCE, START, Phase.WAITING)
    [line] = store.list_events(task)
    assert (line.kind, line.message) == ("added", "To be fetched into /data (added)")


def test_watching_tells_what_became_of_each_task_once_and_in_their_order(store, agenda, clock):
    failed, cancelled, published, watched = watch(agenda, "failed", "cancelled", "whole", "known")
    store.set_phase(published, Phase.PUBLISHED)
    owner = current_owner()
    take(agenda, owner)
    agenda.settle(failed, owner, event=None, phase=Phase.FAILED, message="No.", exit_code=1)
    agenda.settle(published, owner, event=None)
    agenda.cancel(cancelled)
    clock.advance(5)
    task_ids = ["new", "known", "failed", "new", "whole", "cancelled"]
    outcomes = agenda.watch(task_ids, "/data", source="by list.txt")
    assert [(task.task_id, outcome) for task, outcome in outcomes] == [
        ("new", Wanted.ADDED),
        ("known", Wanted.WATCHED),
        ("failed", Wanted.ADDED),
        ("whole", Wanted.PUBLISHED),
        ("cancelled", Wanted.ADDED),
    ]
    again = store.get_task(failed)
    assert (again.phase, again.message, again.exit_code) == (Phase.WAITING, None, None)
    assert (again.due_at, again.watched_since) == (AT_ONCE, clock())
    assert kinds(store, watched) == ["added"]
    assert not store.get_task(published).is_watched


def test_of_tasks_one_of_which_cannot_be_stored_none_is_watched(store, agenda):
    with pytest.raises(StateError, match=r"value that it cannot keep|cannot be used"):
        agenda.watch(["one", "\ud800", "two"], "/data")
    assert store.find_tasks() == []


def test_no_task_at_all_can_be_watched(agenda):
    assert agenda.watch([], "/data") == []


def test_thousands_of_tasks_are_watched_at_once(store, agenda):
    task_ids = [f"t-{number}" for number in range(2500, 0, -1)]
    assert len(set(watch(agenda, *task_ids))) == 2500
    assert agenda.watched_count() == 2500
    assert {outcome for _, outcome in agenda.watch(task_ids, "/data")} == {Wanted.WATCHED}


@pytest.mark.parametrize(
    "dest", ["/样本/ö", '/it\'s "%41" {x}?', "/a\\b\n;--", "/:name", "/😀" * 9]
)
def test_a_destination_comes_back_exactly_as_it_was_given(store, agenda, dest):
    [task] = watch(agenda, "t", dest=dest)
    assert store.get_task(task).dest == dest
    assert watch(agenda, "t", dest=dest) == [task]


def test_a_task_that_a_fetch_works_on_is_watched_and_keeps_its_phase(store, agenda, clock):
    task, fetch, service = store.ensure_task("t", "/data").id, current_owner(), current_owner()
    store.acquire(task, fetch, LEASE)
    store.set_phase(task, Phase.TRANSFERRING)
    assert agenda.watch(["t"], "/data")[0][1] is Wanted.ADDED
    found = store.get_task(task)
    assert (found.phase, found.acquired_by) == (Phase.TRANSFERRING, fetch)
    assert take(agenda, service) == []
    store.release(task, fetch)
    assert take(agenda, service) == [task]


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.PUBLISHED, Phase.CANCELLED])
def test_however_a_task_ended_it_can_be_tried_again(store, agenda, held, phase):
    task, owner = held
    store.set_phase(task, phase, message="It ended.", exit_code=5)
    agenda.settle(task, owner, event=None)
    assert agenda.retry(task) is Wanted.ADDED
    found = store.get_task(task)
    assert (found.phase, found.message, found.published_at) == (Phase.WAITING, None, None)
    assert (found.due_at, found.tries) == (AT_ONCE, 0)
    assert kinds(store, task)[-1] == "retried"


def test_what_somebody_works_on_is_not_begun_again(store, agenda, held):
    task, _ = held
    before = store.get_task(task)
    assert agenda.retry(task) is Wanted.AT_WORK
    assert store.get_task(task) == before


def test_many_tasks_are_tried_again_at_once_and_each_tells_what_came_of_it(store, agenda, clock):
    tasks, owner = watch(agenda, *(f"t-{number}" for number in range(1200))), current_owner()
    [held] = take(agenda, owner, limit=1)
    for task in tasks[1:3]:
        store.set_phase(task, Phase.FAILED, message="Lost.", exit_code=1)
    store.forget_task(tasks[-1])
    outcomes = agenda.retry_all(tasks)
    assert held == tasks[0]
    assert outcomes == [Wanted.AT_WORK, *[Wanted.ADDED] * 1198, Wanted.ENDED]
    assert {store.get_task(task).phase for task in tasks[1:3]} == {Phase.WAITING}
    assert kinds(store, tasks[1]) == ["added", "retried"]
    assert kinds(store, held) == ["added"]
    assert agenda.retry_all([]) == []


def test_whoever_let_its_lease_end_cannot_end_what_was_begun_again(store, agenda, held, clock):
    task, late = held
    clock.advance(LEASE)
    assert agenda.retry(task) is Wanted.ADDED
    assert agenda.settle(task, late, event="failure", phase=Phase.FAILED) is False
    assert agenda.renew_all(late, LEASE) == set()
    assert store.get_task(task).is_watched


def test_a_task_that_a_dead_process_held_is_begun_again_at_once(store, agenda, task, dead):
    store.acquire(task, dead, LEASE)
    assert agenda.retry(task) is Wanted.ADDED
    assert take(agenda, current_owner()) == [task]


# Cancelled


def test_a_cancelled_task_is_nobodys_and_due_never(store, agenda, held, clock):
    task, owner = held
    assert agenda.cancel(task) is Wanted.CANCELLED
    found = store.get_task(task)
    assert (found.phase, found.due_at, found.acquired_by) == (Phase.CANCELLED, None, None)
    assert store.renew(task, owner, LEASE) is False
    assert agenda.put_off(task, owner, soon(clock)) is False
    assert agenda.settle(task, owner, event="complete") is False
    agenda.record_polls(owner, [Polled(task=task, status="PENDING", due_at=soon(clock))])
    assert agenda.hasten() == 0
    assert agenda.hasten(tasks=[task]) == 0
    agenda.hand_back(owner)
    assert store.get_task(task) == found
    assert notices(store) == []
    assert agenda.cancel(task) is Wanted.ENDED


def test_a_fetch_that_nobody_watches_can_be_cancelled(store, agenda):
    """Also in its first moment, when the phase is still that of the fetch before."""
    task, owner = store.ensure_task("t", "/data").id, current_owner()
    store.set_phase(task, Phase.FAILED, message="Before.", exit_code=1)
    assert agenda.cancel(task) is Wanted.ENDED
    store.acquire(task, owner, LEASE)
    assert agenda.cancel(task) is Wanted.CANCELLED
    assert store.renew(task, owner, LEASE) is False


def test_what_is_published_cannot_be_cancelled_and_is_announced(store, agenda, held):
    """The service has published it, and not yet ended its watching."""
    task, owner = held
    store.set_phase(task, Phase.PUBLISHED)
    assert agenda.cancel(task) is Wanted.ENDED
    assert agenda.settle(task, owner, event="complete") is True
    assert store.get_task(task).phase is Phase.PUBLISHED


@pytest.mark.parametrize("entered", [Phase.TRANSFERRING, Phase.VERIFYING, Phase.FAILED])
def test_a_phase_that_was_entered_after_the_cancelling_is_put_right(store, agenda, held, entered):
    task, _ = held
    agenda.cancel(task)
    store.set_phase(task, entered)
    agenda.confirm_cancelled(task)
    assert store.get_task(task).phase is Phase.CANCELLED


@pytest.mark.parametrize(
    "since",
    [
        lambda store, task: store.set_phase(task, Phase.PUBLISHED),
        lambda store, task: store.agenda.retry(task),
        lambda store, task: store.agenda.watch(["t-1"], "/data"),
        lambda store, task: store.acquire(task, current_owner(), LEASE),
    ],
)
def test_what_was_begun_again_since_is_not_cancelled_by_those_who_stop(store, agenda, held, since):
    task, _ = held
    agenda.cancel(task)
    store.set_phase(task, Phase.TRANSFERRING)
    since(store, task)
    before = store.get_task(task)
    agenda.confirm_cancelled(task)
    assert store.get_task(task) == before


# What is due


def test_the_most_urgent_tasks_come_first(agenda, clock):
    late, later, new, other = watch(agenda, "late", "later", "new", "other")
    owner = current_owner()
    take(agenda, owner)
    for task, seconds in ((late, 30), (later, 20), (new, 40), (other, 41)):
        agenda.put_off(task, owner, soon(clock, seconds))
    clock.advance(40)
    agenda.hasten(tasks=[new])
    assert take(agenda, owner, limit=2) == [new, later]
    assert take(agenda, owner) == [late]
    assert take(agenda, owner) == []


def test_of_tasks_of_one_moment_the_first_comes_first(agenda, clock):
    first = watch(agenda, "b", "a")
    clock.advance(1)
    second = watch(agenda, "0")
    assert take(agenda, current_owner()) == sorted(first) + second


def test_nothing_is_taken_when_nothing_is_wanted(agenda, task):
    assert take(agenda, current_owner(), limit=0) == take(agenda, current_owner(), limit=-1) == []


def test_a_task_that_is_held_is_taken_by_nobody_until_its_lease_ends(agenda, held, clock):
    task, owner = held
    other = current_owner()
    clock.advance(LEASE - 0.001)
    assert take(agenda, other) == take(agenda, owner) == []
    clock.advance(0.001)
    assert take(agenda, other) == [task]
    assert agenda.renew_all(owner, LEASE) == set()


def test_what_a_stopped_process_holds_is_taken_by_nobody_and_holds_up_no_other(
    agenda, clock, living
):
    """It is the most urgent one for as long as that process is stopped."""
    tasks = watch(agenda, "stopped")
    assert take(agenda, living) == tasks
    tasks += watch(agenda, "other")
    clock.advance(10 * LEASE)
    assert take(agenda, current_owner(), limit=1) == tasks[1:]
    assert take(agenda, current_owner(), limit=1) == []
    assert agenda.renew_all(living, LEASE) == {tasks[0]}


def test_what_a_clock_that_was_ahead_has_put_off_is_due_at_once(store, agenda, held, clock):
    task, owner = held
    [asked, mine] = watch(agenda, "asked", "mine")
    assert take(agenda, owner) == [asked, mine]
    clock.advance(365 * 86400)
    agenda.record_polls(owner, [Polled(task=asked, status="PENDING", due_at=soon(clock, 60))])
    agenda.put_off(task, owner, soon(clock, 60))
    clock.advance(-365 * 86400)
    assert take(agenda, owner) == []
    assert agenda.wake(366 * 86400) == 0
    assert agenda.wake(7200) == 2
    assert sorted(take(agenda, owner)) == [task, asked]
    assert store.get_task(mine).due_at == AT_ONCE


def test_no_ordinary_pause_is_cut_short(store, agenda, held, clock):
    task, owner = held
    agenda.put_off(task, owner, soon(clock, 7200))
    assert agenda.wake(7200) == 0
    assert store.get_task(task).due_at == soon(clock, 7200)


def test_the_task_comes_with_its_new_holder(agenda, task, clock):
    owner = current_owner()
    [taken] = agenda.take_due(owner, 1, lease_seconds=LEASE)
    assert (taken.acquired_by, taken.acquired_until) == (owner, soon(clock, LEASE))


def test_polls_are_kept_and_the_tasks_given_back(store, agenda, clock):
    tasks = watch(agenda, *(f"t-{number}" for number in range(40)))
    owner = current_owner()
    take(agenda, owner)
    clock.advance(2)
    polls = [
        Polled(task=task, status=f"WORD-{task}", due_at=soon(clock, task))
        for task in reversed(tasks)
    ]
    agenda.record_polls(owner, polls)
    for task in tasks:
        found = store.get_task(task)
        assert (found.status, found.polls, found.asked_at) == (f"WORD-{task}", 1, clock())
        assert (found.due_at, found.acquired_by) == (soon(clock, task), None)
        assert (found.phase, found.message, found.tries) == (Phase.WAITING, None, 0)


def test_polls_without_an_answer_keep_the_phase_the_word_and_the_count(store, agenda, clock):
    waiting, retrying = watch(agenda, "waiting", "retrying")
    owner = current_owner()
    take(agenda, owner)
    agenda.record_polls(owner, [Polled(task=waiting, status="PENDING", due_at=clock())])
    agenda.put_off(retrying, owner, clock(), phase=Phase.RETRYING, exit_code=5, tries=2)
    take(agenda, owner)
    agenda.record_polls(
        owner,
        [
            Polled(task=task, status=None, due_at=soon(clock), message="No answer.", tries=3)
            for task in (waiting, retrying)
        ],
    )
    first, second = store.get_task(waiting), store.get_task(retrying)
    assert (first.phase, first.status, first.polls) == (Phase.WAITING, "PENDING", 1)
    assert (second.phase, second.status, second.polls) == (Phase.RETRYING, None, 0)
    assert {(task.message, task.tries, task.due_at) for task in (first, second)} == {
        ("No answer.", 3, soon(clock))
    }


def test_a_poll_of_what_is_somebody_elses_by_now_is_left_out(store, agenda, held, clock):
    task, late = held
    [ours] = watch(agenda, "ours")
    take(agenda, late)
    clock.advance(LEASE)
    agenda.renew_all(late, LEASE)
    agenda.cancel(task)
    agenda.watch(["t-1"], "/data")
    take(agenda, current_owner())
    before = store.get_task(task)
    polls = [Polled(task=one, status="PENDING", due_at=soon(clock)) for one in (task, ours)]
    agenda.record_polls(late, polls)
    assert store.get_task(task) == before
    assert store.get_task(ours).polls == 1


def test_a_ready_task_keeps_how_long_it_took_the_first_time(store, agenda, held, clock):
    task, owner = held
    assert agenda.record_ready(task, owner, "SUCCESS", seconds=None)
    assert store.get_task(task).ready_after_seconds is None
    agenda.record_ready(task, owner, "SUCCESS", seconds=12.5)
    agenda.record_ready(task, owner, "SUCCESS", seconds=99)
    found = store.get_task(task)
    assert (found.ready_after_seconds, found.polls, found.asked_at) == (12.5, 3, clock())


def test_an_answer_about_a_task_that_is_its_askers_no_more_is_not_kept(store, agenda, held, clock):
    """Another one has it by now, or nobody wants it: what became of it since is not undone."""
    task, owner = held
    clock.advance(LEASE)
    [mine] = take(agenda, "another")
    before = store.get_task(mine)
    assert not agenda.record_ready(task, owner, "SUCCESS", seconds=1)
    assert store.get_task(task) == before
    agenda.cancel(task)
    before = store.get_task(task)
    assert not agenda.record_ready(task, "another", "SUCCESS", seconds=1)
    assert store.get_task(task) == before


@pytest.mark.parametrize(("phase", "tries"), [(Phase.WAITING, 0), (Phase.RETRYING, 2)])
def test_failures_to_ask_are_forgotten_by_an_answer_and_others_are_not(
    store, held, clock, phase, tries
):
    (task, owner), agenda = held, store.agenda
    agenda.put_off(task, owner, clock(), phase=phase, tries=2)
    take(agenda, owner)
    agenda.record_ready(task, owner, "SUCCESS", seconds=None)
    assert store.get_task(task).tries == tries


def test_a_task_is_put_off_by_its_holder_alone(store, agenda, held, clock):
    task, owner = held
    before = store.get_task(task)
    assert agenda.put_off(task, current_owner(), soon(clock)) is False
    assert store.get_task(task) == before
    told = ("retrying", "Later.")
    assert agenda.put_off(
        task,
        owner,
        soon(clock),
        phase=Phase.RETRYING,
        message="No.",
        exit_code=1,
        tries=1,
        told=told,
    )
    found = store.get_task(task)
    assert (found.phase, found.message, found.exit_code) == (Phase.RETRYING, "No.", 1)
    assert (found.due_at, found.tries, found.acquired_by) == (soon(clock), 1, None)
    assert kinds(store, task)[-1] == "retrying"
    assert agenda.put_off(task, owner, soon(clock), told=told) is False
    assert kinds(store, task).count("retrying") == 1


def test_an_end_is_announced_once_by_its_holder_alone(store, agenda, held):
    task, owner = held
    assert agenda.settle(task, current_owner(), event="failure", phase=Phase.FAILED) is False
    assert notices(store) == []
    ending = {"event": "failure", "phase": Phase.FAILED, "message": "No.", "exit_code": 3}
    assert agenda.settle(task, owner, told=("given up", "Given up."), **ending) is True
    assert agenda.settle(task, owner, **ending) is False
    [notice] = notices(store)
    assert (notice.task, notice.event) == (task, "failure")
    found = store.get_task(task)
    assert (found.phase, found.message, found.exit_code) == (Phase.FAILED, "No.", 3)
    assert (found.due_at, found.acquired_by) == (None, None)
    assert kinds(store, task)[-1] == "given up"


def test_what_an_owner_gives_back_is_due_at_once_if_it_is_watched(store, agenda, held):
    task, owner = held
    fetched = store.ensure_task("fetched", "/data").id
    store.acquire(fetched, owner, LEASE)
    [others] = watch(agenda, "others")
    other = current_owner()
    take(agenda, other)
    agenda.hand_back(owner)
    assert take(agenda, current_owner()) == [task]
    assert store.get_task(fetched).acquired_by is None
    assert not store.get_task(fetched).is_watched
    assert store.get_task(others).acquired_by == other


# Room


def paused(agenda, clock, *task_ids, dest="/data"):
    tasks = watch(agenda, *task_ids, dest=dest)
    owner = current_owner()
    take(agenda, owner)
    for task in reversed(tasks):
        clock.advance(1)
        agenda.put_off(task, owner, soon(clock, 600), phase=Phase.PAUSED, message="Full.")
    return tasks


def test_where_there_is_room_again_paused_tasks_are_due_the_longest_paused_first(agenda, clock):
    one, two, three = paused(agenda, clock, "one", "two", "three")
    paused(agenda, clock, "one", dest="/full")
    owner = current_owner()
    assert agenda.hasten(paused_in="/data", limit=1) == 1
    assert take(agenda, owner) == [three]
    assert agenda.hasten(paused_in="/data", limit=1) == 1
    assert agenda.hasten(paused_in="/data") == 1
    assert set(take(agenda, owner)) == {two, one}
    assert agenda.hasten(paused_in="/data") == 0
    assert agenda.hasten(paused_in="/nowhere") == 0


def test_a_task_that_is_held_or_due_already_is_not_hastened(store, agenda, held, clock):
    task, owner = held
    watch(agenda, "due")
    agenda.put_off(task, owner, soon(clock, 1))
    clock.advance(1)
    assert take(agenda, owner)[-1] == task
    assert agenda.hasten(tasks=range(9999)) == 0
    assert store.get_task(task).due_at == clock()
    agenda.put_off(task, owner, soon(clock))
    assert agenda.hasten(tasks=range(9999)) == 1


# Who works on what


def test_one_heartbeat_prolongs_all_leases_and_tells_which_are_left(store, agenda, clock):
    one, two, three = watch(agenda, "one", "two", "three")
    owner = current_owner()
    take(agenda, owner)
    agenda.cancel(two)
    store.forget_task(three)
    clock.advance(LEASE - 1)
    assert agenda.renew_all(owner, LEASE) == {one}
    assert store.get_task(one).acquired_until == soon(clock, LEASE)


def test_cancelled_and_removed_tasks_are_told_from_watched_ones(store, agenda):
    watched, cancelled, removed = watch(agenda, "watched", "cancelled", "removed")
    fetched = store.ensure_task("fetched", "/data").id
    agenda.cancel(cancelled)
    store.forget_task(removed)
    asked = [watched, cancelled, removed, fetched]
    assert agenda.unwatched_among(asked) == {cancelled, removed, fetched}
    assert agenda.unwatched_among([]) == set()


def test_a_task_that_was_begun_again_at_once_is_its_holders_no_more(agenda, held):
    task, owner = held
    assert agenda.unwatched_among([task], owner=owner) == set()
    agenda.cancel(task)
    agenda.retry(task)
    assert agenda.unwatched_among([task]) == set()
    assert agenda.unwatched_among([task], owner=owner) == {task}


def test_what_the_dead_have_left_is_due_at_once_and_what_the_living_hold_is_not(
    store, agenda, held, dead
):
    task, owner = held
    [left] = watch(agenda, "left")
    take(agenda, dead)
    fetched = store.ensure_task("fetched", "/data").id
    store.acquire(fetched, dead, LEASE)
    assert take(agenda, current_owner()) == []
    assert agenda.release_dead() == [left, fetched]
    assert agenda.release_dead() == []
    assert take(agenda, current_owner()) == [left]
    assert not store.get_task(fetched).is_watched
    assert store.get_task(task).acquired_by == owner


# What is known of all


def test_tasks_are_counted_by_their_phases(store, agenda, held):
    watch(agenda, "one", "two")
    store.set_phase(store.ensure_task("old", "/data").id, Phase.PUBLISHED)
    agenda.cancel(held[0])
    assert agenda.counts() == {Phase.WAITING: 2, Phase.PUBLISHED: 1, Phase.CANCELLED: 1}
    assert agenda.watched_count() == 2


def test_the_last_durations_come_the_oldest_first(agenda):
    tasks, owner = watch(agenda, *"abcd"), current_owner()
    take(agenda, owner)
    for number, task in enumerate(tasks):
        seconds = None if number == 2 else number + 0.5
        agenda.record_ready(task, owner, "SUCCESS", seconds=seconds)
    assert agenda.durations(2) == [1.5, 3.5]
    assert agenda.durations(9) == [0.5, 1.5, 3.5]


def ended(store, agenda, *task_ids, event=None):
    tasks, owner = watch(agenda, *task_ids), current_owner()
    take(agenda, owner)
    for task in tasks:
        store.set_phase(task, Phase.PUBLISHED)
        agenda.settle(task, owner, event=event)
    return tasks


def test_what_ended_long_ago_is_forgotten_some_at_a_time(store, agenda, clock):
    old = ended(store, agenda, "a", "b", "c")
    clock.advance(10)
    [young] = ended(store, agenda, "young")
    than = clock() - timedelta(seconds=5)
    assert agenda.forget_older(than, limit=2) == 2
    assert agenda.forget_older(than, limit=2) == 1
    assert agenda.forget_older(than, limit=2) == 0
    assert [task.id for task in store.find_tasks()] == [young]
    assert store.list_events(old[0]) == []


@pytest.mark.parametrize(
    "keep",
    [
        lambda store, _: watch(store.agenda, "watched"),
        lambda store, _: ended(store, store.agenda, "to be told", event="complete"),
        lambda store, task: store.acquire(task, current_owner(), LEASE),
        lambda store, task: store.set_phase(task, Phase.TRANSFERRING),
        lambda store, task: store.agenda.retry(task),
    ],
)
def test_what_is_watched_held_unfinished_or_not_told_is_never_forgotten(store, agenda, clock, keep):
    [task] = ended(store, agenda, "t")
    keep(store, task)
    kept = store.find_tasks()[-1].id
    clock.advance(LEASE - 1)
    agenda.forget_older(clock(), limit=9)
    assert store.get_task(kept)


def test_what_a_lost_process_held_long_ago_is_forgotten(store, agenda, clock):
    [task] = ended(store, agenda, "t")
    store.acquire(task, current_owner(), LEASE)
    clock.advance(LEASE)
    assert agenda.forget_older(clock(), limit=9) == 1


def test_what_a_stopped_process_holds_is_not_forgotten(store, agenda, clock, living):
    [task] = ended(store, agenda, "t")
    store.acquire(task, living, LEASE)
    clock.advance(2 * LEASE)
    assert agenda.forget_older(clock(), limit=9) == 0


def test_a_task_is_forgotten_once_its_end_is_told_and_holds_up_no_other(store, agenda, clock):
    ended(store, agenda, "to be told", event="complete")
    clock.advance(1)
    ended(store, agenda, "told")
    clock.advance(1)
    assert [agenda.forget_older(clock(), limit=1) for _ in range(2)] == [1, 0]
    [notice] = notices(store)
    store.notices.remove(notice.id)
    assert agenda.forget_older(clock(), limit=1) == 1


def test_what_nobody_sees_any_more_is_put_right(store, agenda, clock):
    """A server takes nothing for a time but times, but any word for a phase."""
    tasks = watch(agenda, *"abcd")
    take(agenda, "another", limit=1)
    with store._database.writing() as connection:
        for change in (
            "acquired_until = NULL WHERE acquired_by IS NOT NULL",
            "phase = 'astonished' WHERE task_id = 'b'",
            "due_at = '9999-12-31 00:00:00.000000' WHERE task_id = 'c'",
        ):
            connection.execute(text(f"UPDATE tasks SET {change}"))
    assert store.get_task(tasks[1]).phase is Phase.FAILED
    assert take(agenda, "me") == [tasks[1], tasks[3]]
    agenda.hand_back("me")
    assert store.put_right() == 3
    assert store.put_right() == 0
    assert set(take(agenda, "me")) == {*tasks}
    assert store.find_tasks(phase=Phase.FAILED) == [store.get_task(tasks[1])]
    assert [kinds(store, task)[-1] for task in tasks] == ["mended", "mended", "mended", "added"]


# What is written


def test_no_secret_and_nothing_that_cannot_be_kept_is_written(store, agenda, clock):
    dest = "/data"
    first, second, third = (
        task.id for task, _ in agenda.watch(["a", "b", "c"], dest, source=DIRTY)
    )
    owner = current_owner()
    take(agenda, owner)
    polls = [
        Polled(task=first, status=DIRTY, due_at=clock(), message=DIRTY),
        Polled(task=second, status=None, due_at=clock(), message=DIRTY),
    ]
    agenda.record_polls(owner, polls)
    agenda.record_ready(third, owner, DIRTY, seconds=1)
    assert store.get_task(third).status == CLEAN
    told = ("note", DIRTY)
    agenda.put_off(third, owner, clock(), phase=Phase.RETRYING, message=DIRTY, told=told)
    take(agenda, owner)
    agenda.settle(second, owner, event=None, phase=Phase.FAILED, message=DIRTY, told=told)
    for task in (first, second, third):
        assert store.get_task(task).message == CLEAN
        assert {event.kind for event in store.list_events(task)} <= {"added", "note"}
        assert all(CLEAN in event.message for event in store.list_events(task))
    assert store.get_task(first).status == CLEAN


@pytest.mark.parametrize(
    ("late", "outcome"),
    [
        (lambda agenda, task, _: agenda.retry(task), Wanted.ENDED),
        (lambda agenda, task, _: agenda.cancel(task), Wanted.ENDED),
        (lambda agenda, task, _: agenda.confirm_cancelled(task), None),
        (lambda agenda, task, owner: agenda.settle(task, owner, event="failure"), False),
        (lambda agenda, task, owner: agenda.put_off(task, owner, START), False),
        (
            lambda agenda, task, owner: agenda.record_ready(task, owner, "SUCCESS", seconds=1),
            False,
        ),
        (lambda agenda, task, _: agenda.hasten(tasks=[task]), 0),
        (lambda agenda, _, owner: agenda.renew_all(owner, LEASE), set()),
        (
            lambda agenda, task, owner: agenda.record_polls(
                owner, [Polled(task=task, status="PENDING", due_at=START)]
            ),
            None,
        ),
    ],
)
def test_a_task_may_be_removed_at_any_moment(store, agenda, held, late, outcome):
    task, owner = held
    store.forget_task(task)
    assert late(agenda, task, owner) == outcome
    assert store.find_tasks() == []
    assert notices(store) == []
    with pytest.raises(RecordMissing):
        store.get_task(task)


# Several processes


TAKER = """
import sys
from state import StateStore, current_owner
with StateStore.open(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    while taken := store.agenda.take_due(current_owner(), 7, lease_seconds=60):
        for task in taken:
            print(task.id, flush=True)
"""

WATCHER = """
import sys
from state import StateStore
with StateStore.open(sys.argv[1]) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for round in range(5):
        task_ids = [f"t-{round}-{number}" for number in range(400)][:: int(sys.argv[2])]
        outcomes = store.agenda.watch(task_ids, "/data")
        print(*(outcome.name for _, outcome in outcomes), flush=True)
"""


def run_together(start_python, code, where, *arguments):
    """Let processes begin at one moment; return what each has printed."""
    processes = [start_python(code, where, *each) for each in arguments]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * len(processes)
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    printed = [process.stdout.read().split() for process in processes]
    assert [process.wait(timeout=30) for process in processes] == [0] * len(processes)
    return printed


@pytest.mark.thorough
def test_no_task_goes_to_two_services(where, store, start_python):
    tasks = watch(store.agenda, *(f"t-{number}" for number in range(100)))
    one, two = run_together(start_python, TAKER, where, (), ())
    assert sorted(map(int, one + two)) == sorted(tasks)


@pytest.mark.thorough
def test_two_that_watch_the_same_tasks_in_other_orders_wait_for_each_other_once(
    where, store, start_python
):
    """On PostgreSQL, two who lock the same rows in two orders would be ended by the server."""
    one, two = run_together(start_python, WATCHER, where, ("1",), ("-1",))
    assert sorted(one + two) == ["ADDED"] * 2000 + ["WATCHED"] * 2000
    assert store.agenda.watched_count() == 2000


@pytest.fixture
def on_server(empty_postgresql_state, clock):
    with StateStore.open(empty_postgresql_state, clock=clock) as opened:
        yield opened


@contextmanager
def while_another_changes(store, work, statement, *, at_the_end=None):
    """Let `work` meet the rows of a transaction that ends only once it waits, or is done."""
    with ThreadPoolExecutor() as pool, store._database.writing() as other:
        other.execute(text(statement))
        working = pool.submit(work)
        while not working.done() and not _is_waited_for(store):
            pass
        if at_the_end is not None:
            other.execute(text(at_the_end))
        yield working
    working.result(timeout=30)


def _is_waited_for(store):
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with store._database.reading() as connection:
        return connection.execute(text(waiting)).scalar_one() > 0


CANCELLING = (
    "UPDATE tasks SET phase = 'cancelled', due_at = NULL, acquired_by = NULL, acquired_until = NULL"
)


@pytest.mark.thorough
def test_what_is_being_cancelled_is_not_hastened(on_server, clock):
    agenda, owner = on_server.agenda, current_owner()
    [task] = watch(agenda, "t")
    take(agenda, owner)
    agenda.put_off(task, owner, soon(clock))
    with while_another_changes(on_server, agenda.hasten, CANCELLING) as hastening:
        pass
    assert hastening.result() == 0
    assert not on_server.get_task(task).is_watched


@pytest.mark.thorough
def test_what_is_being_published_is_not_begun_again(on_server):
    task = on_server.ensure_task("t", "/data").id
    publishing = "UPDATE tasks SET phase = 'published'"
    with while_another_changes(
        on_server, lambda: on_server.agenda.watch(["t"], "/data"), publishing
    ) as watching:
        pass
    assert watching.result()[0][1] is Wanted.PUBLISHED
    assert on_server.get_task(task).phase is Phase.PUBLISHED


@pytest.mark.parametrize(
    ("first", "then"),
    [("DELETE FROM tasks", None), ("SELECT id FROM tasks FOR UPDATE", "DELETE FROM tasks")],
)
def test_what_is_being_removed_is_watched_anew(on_server, first, then):
    """It may go before it is found, and between being found and being locked."""
    [task] = watch(on_server.agenda, "t")
    with while_another_changes(
        on_server, lambda: watch(on_server.agenda, "t"), first, at_the_end=then
    ) as watching:
        pass
    assert watching.result() != [task]
    assert on_server.agenda.watched_count() == 1


def test_a_task_that_another_is_about_to_take_or_change_is_passed_over(on_server):
    agenda = on_server.agenda
    _, free = watch(agenda, "locked", "free")
    locked = "SELECT id FROM tasks WHERE task_id = 'locked' FOR UPDATE"
    with while_another_changes(on_server, lambda: take(agenda, current_owner()), locked) as taking:
        assert taking.result() == [free]


def test_a_task_that_is_being_watched_again_is_not_forgotten(on_server, clock):
    agenda = on_server.agenda
    [task] = ended(on_server, agenda, "t")
    clock.advance(1)
    with while_another_changes(
        on_server,
        lambda: agenda.forget_older(clock(), limit=9),
        "UPDATE tasks SET due_at = now(), phase = 'waiting'",
    ) as forgetting:
        assert forgetting.result() == 0
    assert on_server.get_task(task).is_watched


# What it costs

MANY = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000)
    INSERT INTO tasks (task_id, dest, phase, polls, created_at, updated_at, watched_since, due_at)
    SELECT 't-' || n, '/data', iif(n % 3, 'waiting', 'paused'), 1, :now, :now, :now, :due
    FROM numbers
"""
MANY_NOTICES = """
    INSERT INTO notices (task, event, key, due_at, attempts, delivered)
    SELECT id, 'failure', 'key-' || id, :now, 0, '' FROM tasks WHERE id <= 5000
"""


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    path = tmp_path_factory.mktemp("many") / "state.db"
    shown = {"now": "2024-02-29 12:00:00.000000", "due": "2024-02-29 13:00:00.000000"}
    with StateStore.open(path) as store, store._database.writing() as connection:
        connection.execute(text(MANY), shown)
        connection.execute(text(MANY_NOTICES), shown)
    return path


@pytest.mark.parametrize("is_tidied", [False, True])
@pytest.mark.thorough
def test_what_a_service_asks_reads_no_task_that_it_need_not(many, tmp_path, clock, is_tidied):
    """A question that read all of 100,000 watched tasks would do so every second."""
    path, asked = shutil.copy(many, tmp_path / "state.db"), []

    def see(*arguments):
        _, _, statement, parameters, _, executemany = arguments
        asked.append((statement, parameters[0] if executemany else parameters))

    clock.advance(3600)
    owner = current_owner()
    with StateStore.open(path, clock=clock) as store:
        if is_tidied:
            with store._database.writing() as connection:
                connection.exec_driver_sql("ANALYZE")
        store.tidy()
        event.listen(store._database._writer, "before_cursor_execute", see)
        agenda = store.agenda
        taken = take(agenda, owner, limit=16)
        assert len(taken) == 16
        agenda.renew_all(owner, LEASE)
        agenda.unwatched_among(taken, owner=owner)
        agenda.release_dead()
        agenda.record_polls(owner, [Polled(task=taken[0], status="PENDING", due_at=clock())])
        agenda.put_off(taken[1], owner, soon(clock), phase=Phase.PAUSED)
        agenda.settle(taken[2], owner, event="failure", phase=Phase.FAILED)
        agenda.cancel(taken[3])
        agenda.confirm_cancelled(taken[3])
        agenda.retry(taken[3])
        agenda.record_ready(taken[4], owner, "SUCCESS", seconds=3)
        agenda.hasten(paused_in="/data", limit=1)
        agenda.hasten(tasks=taken)
        agenda.wake(3600)
        agenda.hand_back(owner)
        agenda.watched_count()
        agenda.watch(["t-1", "new"], "/data")
        agenda.forget_older(clock(), limit=1000)
        [notice, *_] = store.notices.take_due(4, claim_seconds=60)
        store.notices.put_off(notice.id, clock(), attempts=1, delivered=[])
        store.notices.hasten()
        store.notices.wake(3600)
        store.notices.remove(notice.id)
        agenda.counts()
    questions = {
        question: values
        for question, values in asked
        if question.startswith(("SELECT", "UPDATE", "DELETE"))
    }
    assert len(questions) > 25
    with closing(sqlite3.connect(path)) as raw:
        for question, values in questions.items():
            steps = raw.execute(f"EXPLAIN QUERY PLAN {question}", values).fetchall()
            plan = [step[-1] for step in steps]
            # All phases are counted, in an index that holds nothing but them.
            allowed = "SCAN tasks USING COVERING INDEX" if "GROUP BY" in question else "SEARCH"
            assert all(not step.startswith("SCAN") or step.startswith(allowed) for step in plan), (
                question,
                plan,
            )
            if "tasks.due_at <=" in question:  # the overdue are not sorted to find 16 of them
                assert not any("TEMP B-TREE" in step for step in plan), plan


# Whatever happens, in whatever order

NAMES = ("a", "b")
OWNERS = (current_owner(), current_owner())
owners, names = st.sampled_from(OWNERS), st.sampled_from(NAMES)


@settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
class Watching(RuleBasedStateMachine):
    """Two services, a fetch now and then, and people who change their minds."""

    def __init__(self):
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.clock = Clock()
        self.store = StateStore.open(Path(self.directory) / "state.db", clock=self.clock)
        self.agenda = self.store.agenda
        self.numbers = dict(zip(NAMES, watch(self.agenda, *NAMES), strict=True))
        self.leases = {}  # by number: the owner and the end of what was given last
        self.unwatched = set()
        self.cancelled = set()
        self.told = 0

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.directory)

    def is_held(self, number):
        return number in self.leases and self.leases[number][1] > self.clock()

    def holds(self, number, owner):
        return number in self.leases and self.leases[number][0] == owner

    def gave_back(self, number, owner, given):
        assert given == (self.holds(number, owner) and number not in self.unwatched)
        if given:
            del self.leases[number]

    @rule(seconds=st.sampled_from([1, 20, LEASE]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @rule(owner=owners, limit=st.integers(0, 2))
    def take(self, owner, limit):
        for number in take(self.agenda, owner, limit):
            assert not self.is_held(number)
            assert number not in self.unwatched
            self.leases[number] = (owner, soon(self.clock, LEASE))

    @rule(owner=owners, name=names)
    def fetch(self, owner, name):
        number = self.numbers[name]
        lease = self.store.acquire(number, owner, LEASE)
        assert (lease is None) == (self.is_held(number) and not self.holds(number, owner))
        if lease is not None:
            self.leases[number] = (owner, lease.acquired_until)
            self.cancelled.discard(number)
            self.store.set_phase(number, Phase.TRANSFERRING)

    @rule(owner=owners)
    def heartbeat(self, owner):
        held = {number for number in self.leases if self.holds(number, owner)}
        assert self.agenda.renew_all(owner, LEASE) == held
        self.leases |= dict.fromkeys(held, (owner, soon(self.clock, LEASE)))

    @rule(owner=owners, name=names, seconds=st.sampled_from([0, 30]))
    def put_off(self, owner, name, seconds):
        number, due_at = self.numbers[name], soon(self.clock, seconds)
        given = self.agenda.put_off(number, owner, due_at, phase=Phase.RETRYING)
        self.gave_back(number, owner, given)

    @rule(owner=owners, name=names)
    def settle(self, owner, name):
        number = self.numbers[name]
        given = self.agenda.settle(number, owner, event="failure", phase=Phase.FAILED)
        self.gave_back(number, owner, given)
        if given:
            self.unwatched.add(number)
            self.told += 1

    @rule(owner=owners, name=names)
    def poll(self, owner, name):
        number = self.numbers[name]
        poll = Polled(task=number, status="PENDING", due_at=soon(self.clock))
        self.agenda.record_polls(owner, [poll])
        if self.holds(number, owner) and number not in self.unwatched:
            del self.leases[number]

    @rule(owner=owners)
    def stop(self, owner):
        self.agenda.hand_back(owner)
        self.leases = {number: one for number, one in self.leases.items() if one[0] != owner}

    @rule()
    def hasten(self):
        self.agenda.hasten()

    @rule(name=names)
    def cancel(self, name):
        number = self.numbers[name]
        if self.agenda.cancel(number) is Wanted.CANCELLED:
            self.leases.pop(number, None)
            self.unwatched.add(number)
            self.cancelled.add(number)

    @precondition(lambda self: self.cancelled)
    @rule()
    def stop_what_was_cancelled(self):
        for number in self.cancelled:
            self.store.set_phase(number, Phase.VERIFYING)
            self.agenda.confirm_cancelled(number)

    @rule(name=names)
    def watch(self, name):
        [(task, outcome)] = self.agenda.watch([name], "/data")
        assert (outcome is Wanted.WATCHED) == (task.id not in self.unwatched)
        if outcome is Wanted.ADDED:
            self.begun(task.id)

    @rule(name=names)
    def retry(self, name):
        number = self.numbers[name]
        outcome = self.agenda.retry(number)
        assert outcome is (Wanted.AT_WORK if self.is_held(number) else Wanted.ADDED)
        if outcome is Wanted.ADDED:
            self.begun(number)

    def begun(self, number):
        self.unwatched.discard(number)
        self.cancelled.discard(number)
        if not self.is_held(number):
            self.leases.pop(number, None)

    @invariant()
    def every_task_is_where_it_was_left(self):
        for task in self.store.find_tasks():
            assert task.is_watched == (task.id not in self.unwatched)
            assert task.acquired_by == self.leases.get(task.id, (None,))[0]
            if task.id in self.cancelled:
                assert task.phase is Phase.CANCELLED

    @invariant()
    def every_end_is_announced_once(self):
        with self.store._database.reading() as connection:
            count = connection.execute(text("SELECT count(*) FROM notices")).scalar_one()
        assert count == self.told


TestWatching = pytest.mark.thorough(Watching.TestCase)
