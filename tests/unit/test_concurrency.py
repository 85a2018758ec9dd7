"""Threads are waited for, however often somebody stops waiting, and errors come bare."""

import asyncio
import gc
import threading

import pytest

from downloader.concurrency import beside, in_stoppable_thread, in_thread, run_together
from downloader.errors import DiskError, DiskFull


class Work:
    """Blocking work that begins and ends when the test says so."""

    def __init__(self, error=None):
        self.began, self.may_end, self.ended = (threading.Event() for _ in range(3))
        self.error = error

    def __call__(self, *_):
        self.began.set()
        self.may_end.wait(30)
        self.ended.set()
        if self.error:
            raise self.error
        return "done"

    async def until_it_began(self):
        assert await asyncio.to_thread(self.began.wait, 30)


@pytest.fixture
async def complaints():
    """Collect what asyncio would only log."""
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    return heard


async def let_others_run():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_work_in_a_thread_gives_its_value_and_its_error():
    assert await in_thread(divmod, 7, 2) == (3, 1)
    assert await in_thread(int, "7", base=8) == 7
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 7, 0)


@pytest.mark.parametrize("run", [in_thread, in_stoppable_thread])
@pytest.mark.parametrize("times", [1, 2, 5])
async def test_a_cancelled_caller_returns_only_when_its_thread_has_ended(run, times):
    """A second Ctrl-C must not free the descriptor that a thread is writing to."""
    work = Work()
    caller = asyncio.create_task(run(work))
    await work.until_it_began()
    for _ in range(times):
        caller.cancel()
        await let_others_run()
        assert not caller.done()
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.ended.is_set()


@pytest.mark.parametrize("run", [in_thread, in_stoppable_thread])
async def test_the_error_of_work_that_nobody_waits_for_is_no_complaint(run, complaints):
    work = Work(error=DiskFull("full"))
    caller = asyncio.create_task(run(work))
    await work.until_it_began()
    caller.cancel()
    await let_others_run()
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gc.collect()
    assert complaints == []


async def test_stoppable_work_hears_that_nobody_waits_any_more():
    heard, began = [], threading.Event()

    def work(is_stopped):
        heard.append(is_stopped())
        began.set()
        while not is_stopped():
            pass
        heard.append(True)

    caller = asyncio.create_task(in_stoppable_thread(work))
    await asyncio.to_thread(began.wait, 30)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert heard == [False, True]


async def forever(ended=None):
    try:
        await asyncio.Event().wait()
    finally:
        if ended is not None:
            ended.append(True)


async def fail(error):
    raise error


def full_disk():
    """Return an error that knows the reason which the system gave."""
    error = DiskFull("full")
    error.__cause__ = OSError(28, "No space left on device")
    return error


async def test_of_a_group_the_first_error_comes_bare_and_stops_the_others():
    ended = []
    with pytest.raises(DiskError) as caught:
        await run_together([forever(ended), fail(full_disk()), forever(ended)])
    assert ended == [True, True]
    assert caught.value.args == ("full",)


async def test_an_error_keeps_the_cause_that_it_had():
    """Why the disk refused is what a person needs to mend it."""
    with pytest.raises(DiskError) as caught:
        await run_together([fail(full_disk())])
    assert isinstance(caught.value.__cause__, OSError)


async def test_an_error_from_a_group_in_a_group_comes_bare_too():
    async def nested():
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(full_disk()))

    with pytest.raises(DiskError):
        await run_together([nested()])


async def test_jobs_that_end_well_give_nothing():
    assert await run_together([]) is None
    assert await run_together([asyncio.sleep(0), asyncio.sleep(0)]) is None


async def test_a_cancelled_group_stops_its_jobs():
    ended = []
    group = asyncio.create_task(run_together([forever(ended), forever(ended)]))
    await let_others_run()
    group.cancel()
    with pytest.raises(asyncio.CancelledError):
        await group
    assert ended == [True, True]


async def test_a_job_beside_a_block_ends_with_it():
    ended = []
    async with beside(forever(ended)):
        await let_others_run()
        assert ended == []
    assert ended == [True]


async def test_a_job_beside_a_block_ends_the_block_when_it_fails():
    async def block():
        async with beside(fail(full_disk())):
            await forever()

    with pytest.raises(DiskError) as caught:
        await block()
    assert isinstance(caught.value.__cause__, OSError)


async def test_the_error_of_a_block_ends_the_job_beside_it():
    ended = []

    async def block():
        async with beside(forever(ended)):
            await let_others_run()
            raise full_disk()

    with pytest.raises(DiskError):
        await block()
    assert ended == [True]
