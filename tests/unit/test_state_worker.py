"""The store for asyncio: in order, never on the loop's thread, and nothing asked for is lost."""

import asyncio
import contextlib
import gc
import threading
from datetime import UTC, datetime

import pytest

from state import AsyncStore, RecordMissing, StateStore, StateUnreadable


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


@pytest.fixture
async def store(path):
    async with await AsyncStore.open(path) as opened:
        yield opened


class Gate:
    """Keeps the worker thread busy until the test opens it."""

    def __init__(self):
        self.reached, self.may_go = threading.Event(), threading.Event()

    def __call__(self, _):
        self.reached.set()
        assert self.may_go.wait(30)

    async def close(self, store):
        waiting = asyncio.create_task(store.run(self))
        assert await asyncio.to_thread(self.reached.wait, 30)
        return waiting


async def let_others_run():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_call_gives_what_the_method_gives(store):
    task = await store.call(StateStore.ensure_task, "t", "/data")
    assert await store.call(StateStore.find_tasks, task_id="t", limit=1) == [task]


async def test_an_error_is_raised_where_the_call_was_made(store):
    with pytest.raises(RecordMissing):
        await store.call(StateStore.get_task, 7)
    assert await store.call(StateStore.find_tasks) == []


async def test_a_state_that_cannot_be_opened_is_told(path):
    path.write_text("a diary")
    with pytest.raises(StateUnreadable, match="not a database"):
        await AsyncStore.open(path)
    for thread in threading.enumerate():
        if thread.name.startswith("state"):
            await asyncio.to_thread(thread.join, 30)
            assert not thread.is_alive()


async def test_work_is_done_on_one_thread_that_is_not_the_loops(store):
    threads = await asyncio.gather(*(store.run(lambda _: threading.get_ident()) for _ in range(20)))
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


async def test_calls_are_carried_out_in_the_order_they_were_made(store):
    done = []
    await asyncio.gather(*(store.run(lambda _, n=number: done.append(n)) for number in range(50)))
    assert done == list(range(50))


async def test_the_loop_goes_on_while_the_state_is_busy(store):
    gate = Gate()
    waiting = await gate.close(store)
    await let_others_run()
    assert not waiting.done()
    gate.may_go.set()
    await waiting


@pytest.mark.parametrize("how_far", ["queued", "running"])
async def test_what_a_cancelled_caller_asked_for_is_written_all_the_same(store, how_far):
    """A checkpoint that was asked for just before Ctrl-C would be missing after it."""
    gate = Gate()

    def write(opened):
        if how_far == "running":
            gate(opened)
        opened.ensure_task("late", "/data")

    if how_far == "queued":
        busy = await gate.close(store)
    caller = asyncio.create_task(store.run(write))
    await let_others_run()
    assert await asyncio.to_thread(gate.reached.wait, 30)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.may_go.set()
    if how_far == "queued":
        await busy
    assert [task.task_id for task in await store.call(StateStore.find_tasks)] == ["late"]


async def test_closing_waits_for_everything_that_was_asked_for(path):
    store = await AsyncStore.open(path)
    gate = Gate()
    busy = await gate.close(store)
    writes = [
        asyncio.create_task(store.call(StateStore.ensure_task, f"t-{number}", "/data"))
        for number in range(5)
    ]
    await let_others_run()
    for write in writes:
        write.cancel()
    closing = asyncio.create_task(store.aclose())
    await let_others_run()
    assert not closing.done()
    gate.may_go.set()
    await closing
    await busy
    with StateStore.open(path) as again:
        assert len(again.find_tasks()) == 5


async def test_closing_twice_waits_twice_and_closes_once(path):
    """The second caller, too, may remove the file when it returns."""
    store = await AsyncStore.open(path)
    gate = Gate()
    busy = await gate.close(store)
    both = [asyncio.create_task(store.aclose()) for _ in range(2)]
    await let_others_run()
    assert [closing.done() for closing in both] == [False, False]
    gate.may_go.set()
    await asyncio.gather(busy, *both)
    await store.aclose()


async def test_closing_that_was_cancelled_is_carried_out(path):
    store = await AsyncStore.open(path)
    gate = Gate()
    busy = await gate.close(store)
    closing = asyncio.create_task(store.aclose())
    await let_others_run()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    gate.may_go.set()
    await busy
    await store.aclose()
    assert not path.with_name("state.db-wal").exists()  # the last connection took it away


async def test_a_closed_store_refuses_and_says_so(path):
    store = await AsyncStore.open(path)
    await store.aclose()
    with pytest.raises(RuntimeError, match="closed before this call"):
        await store.call(StateStore.find_tasks)


async def test_no_thread_outlives_its_store(path):
    store = await AsyncStore.open(path)
    worker = await store.run(lambda _: threading.current_thread())
    await store.aclose()
    await asyncio.to_thread(worker.join, 30)
    assert not worker.is_alive()


async def test_a_state_that_was_opened_for_nobody_is_closed_again(path, monkeypatch):
    """The caller was cancelled while another process held the file."""
    gate, closed = Gate(), threading.Event()
    real_open, real_close = StateStore.open, StateStore.close

    def slow_open(*arguments, **options):
        gate(None)
        return real_open(*arguments, **options)

    def close(opened):
        real_close(opened)
        closed.set()

    monkeypatch.setattr(StateStore, "open", slow_open)
    monkeypatch.setattr(StateStore, "close", close)
    opening = asyncio.create_task(AsyncStore.open(path))
    assert await asyncio.to_thread(gate.reached.wait, 30)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    gate.may_go.set()
    assert await asyncio.to_thread(closed.wait, 30)


async def test_the_clock_is_handed_to_the_store(path):
    moment = datetime(2024, 2, 29, tzinfo=UTC)
    async with await AsyncStore.open(path, clock=lambda: moment) as store:
        task = await store.call(StateStore.ensure_task, "t", "/data")
    assert task.created_at == moment


async def test_an_error_that_nobody_waits_for_any_more_is_no_complaint(store, caplog):
    """Asyncio would log a traceback about it when the future is collected."""
    gate = Gate()
    waiting = await gate.close(store)
    failing = asyncio.create_task(store.call(StateStore.get_task, 12345))
    await let_others_run()
    failing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await failing
    gate.may_go.set()
    await waiting
    await store.call(StateStore.find_tasks)  # behind the failing call
    await let_others_run()
    del failing
    gc.collect()
    assert caplog.records == []
