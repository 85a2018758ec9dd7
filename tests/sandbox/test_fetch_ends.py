"""A fetch that is cancelled, or whose state fails, at any moment: nothing half, nothing held."""

import asyncio
import itertools

import pytest
from fetch_helpers import NOTES, Heard

from downloader.publish import ResultDirectory
from state import Phase, StateError, StateStore, StateUnreadable

pytest_plugins = ["fetch_helpers"]

FILES = {"run/a.txt": NOTES, "run/b.txt": NOTES[:100]}
NAMED = {"a.txt": NOTES, "b.txt": NOTES[:100]}


def at_call(store, number, deed):
    """Let `deed` come before the state's call of that number; return a list of what it did."""
    run, numbers, done = type(store).run, itertools.count(1), []

    async def counted(work):
        if next(numbers) == number:
            done.append(number)
            deed()
        return await run(store, work)

    store.run = counted
    return done


def as_usual(store):
    del store.run


class Cancels(Heard):
    """Cancels what is running when it hears the fact of that number."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.running = None

    def _hear(self, *fact):
        super()._hear(*fact)
        if len(self.facts) == self.number:
            self.running.cancel()


async def assert_all_is_well(rig, task_id):
    """Whatever has ended a fetch: the result is whole or absent, and the next fetch succeeds."""
    assert not rig.final(task_id).exists() or rig.published(task_id) == NAMED
    for task in await rig.store.call(StateStore.find_tasks, task_id):
        assert task.acquired_by is None
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == NAMED
    assert {file.name for file in report.files} == NAMED.keys()
    assert not rig.partial(task_id).exists()
    assert (await rig.task(task_id)).phase is Phase.PUBLISHED
    assert (await rig.fetch(task_id)).already_published


@pytest.mark.thorough
async def test_a_fetch_may_be_cancelled_at_every_call_of_the_state(rig):
    """Ctrl-C comes when it comes; the call that was made is carried out all the same."""
    for number in itertools.count(1):
        task_id = rig.add(FILES)
        running = asyncio.ensure_future(rig.fetch(task_id))
        done = at_call(rig.store, number, running.cancel)
        await asyncio.wait([running])
        as_usual(rig.store)
        if not done:
            break
        assert running.cancelled()
        await assert_all_is_well(rig, task_id)
    assert number > 15


async def test_a_state_may_fail_at_every_call(rig):
    """A full disk ends the fetch with the state's own sentence, and the next fetch goes on."""

    def fail():
        raise StateUnreadable("The state's disk is full")

    for number in itertools.count(1):
        task_id = rig.add(FILES)
        done = at_call(rig.store, number, fail)
        (outcome,) = await asyncio.gather(rig.fetch(task_id), return_exceptions=True)
        as_usual(rig.store)
        if not done:
            break
        # The one call whose failure is nobody's concern gives the lease back.
        was_release = not isinstance(outcome, BaseException)
        assert was_release or str(outcome) == "The state's disk is full"
        if was_release:
            task = await rig.task(task_id)
            await rig.store.call(StateStore.release, task.id, task.acquired_by)
        await assert_all_is_well(rig, task_id)
    assert number > 15


async def test_a_state_that_has_failed_for_good_ends_with_its_own_sentence(rig):
    """What is told is the first error, not the one met while it was written down."""
    task_id = rig.add(FILES)
    failed = []

    async def refuse(_):
        failed.append(True)
        raise StateUnreadable(f"failure {len(failed)}")

    class Breaks(Heard):
        def planned(self, files):
            rig.store.run = refuse

    rig.heard = Breaks()
    error = await rig.fails(task_id, StateError)
    assert str(error) == "failure 1"
    as_usual(rig.store)
    assert not rig.final(task_id).exists()


async def test_a_fetch_may_be_cancelled_whenever_anything_is_told(rig):
    for number in itertools.count(1):
        task_id = rig.add(FILES)
        told = Cancels(number)
        told.running = asyncio.ensure_future(rig.fetch(task_id, reporter=told))
        await asyncio.wait([told.running])
        assert told.facts.count(("finished",)) == 1
        await assert_all_is_well(rig, task_id)
        if len(told.facts) < number:
            break
    assert number > 8


async def test_a_fetch_that_is_cancelled_while_it_publishes_has_published(rig, monkeypatch):
    """A rename cannot be taken back; the next fetch sees it and moves nothing."""
    task_id = rig.add(FILES)
    loop = asyncio.get_running_loop()
    publish = ResultDirectory.publish

    def cancelled_meanwhile(place, *args, **kwargs):
        loop.call_soon_threadsafe(running.cancel)
        publish(place, *args, **kwargs)

    monkeypatch.setattr(ResultDirectory, "publish", cancelled_meanwhile)
    running = asyncio.ensure_future(rig.fetch(task_id))
    with pytest.raises(asyncio.CancelledError):
        await running
    assert rig.published(task_id) == NAMED
    assert (await rig.task(task_id)).phase is Phase.VERIFYING
    rig.forget()
    assert (await rig.fetch(task_id)).already_published
    assert rig.calls == []
    assert (await rig.task(task_id)).phase is Phase.PUBLISHED


async def test_an_interrupted_fetch_is_in_the_history_and_is_no_failure(rig):
    task_id = rig.sandbox.add_task(FILES)
    rig.heard.polled = lambda *_, **__: running.cancel()
    running = asyncio.ensure_future(rig.fetch(task_id))
    with pytest.raises(asyncio.CancelledError):
        await running
    task = await rig.task(task_id)
    assert (task.phase, task.message, task.acquired_by) == (Phase.WAITING, None, None)
    assert (await rig.history(task_id))[-1] == "interrupted"


async def test_a_failure_of_an_earlier_run_is_forgotten_by_a_later_success(rig):
    task_id = rig.add(FILES)
    rig.sandbox.store.delete("run/a.txt")
    await rig.fails(task_id, Exception)
    assert (await rig.task(task_id)).phase is Phase.FAILED
    rig.sandbox.store.put("run/a.txt", NOTES)
    await rig.fetch(task_id)
    task = await rig.task(task_id)
    assert (task.phase, task.message, task.exit_code) == (Phase.PUBLISHED, None, None)
