"""The lease of a fetch: kept while it can be kept, and what is shown of another's fetch."""

import asyncio
from math import inf

import pytest
from fetch_helpers import Heard

from downloader import holding
from downloader.errors import DestinationTaken, TaskCancelled
from downloader.holding import claim_or_follow, keep_lease, why_lost
from downloader.retry import without_waiting
from state import (
    AsyncStore,
    Checkpoint,
    Phase,
    Segment,
    StateStore,
    StateUnreadable,
    current_owner,
)


class Object:
    """What a plan tells of an object."""

    def __init__(self, name):
        self.name, self.bucket, self.key = name, "bucket", name


@pytest.fixture
async def store(tmp_path):
    async with await AsyncStore.open(tmp_path / "state.db") as store:
        yield store


@pytest.fixture
async def task(store):
    return await store.call(StateStore.ensure_task, "t1", "/results")


@pytest.fixture
def _hasty(monkeypatch):
    monkeypatch.setattr(holding, "HEARTBEAT_SECONDS", 0.001)


class Failing:
    """Refuses so many renewals before it carries them out."""

    def __init__(self, store, times):
        self.store, self.times = store, times
        self.renewed = asyncio.Event()

    async def call(self, method, *args):
        if self.times:
            self.times -= 1
            raise StateUnreadable("busy")
        result = await self.store.call(method, *args)
        self.renewed.set()
        return result


@pytest.mark.usefixtures("_hasty")
async def test_a_state_that_is_busy_for_a_while_does_not_end_the_fetch(store, task):
    """The lease is good for four heartbeats; a lock that is held for one of them passes."""
    owner = current_owner()
    await store.call(StateStore.acquire, task.id, owner, 60)
    failing = Failing(store, times=3)
    keeping = asyncio.ensure_future(keep_lease(task, store=failing, owner=owner))
    await failing.renewed.wait()
    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping


@pytest.mark.usefixtures("_hasty")
async def test_a_state_that_is_busy_for_as_long_as_the_lease_ends_the_fetch(
    store, task, monkeypatch
):
    """After that, somebody else may have the task, and nobody can say so."""
    monkeypatch.setattr(holding, "LEASE_SECONDS", 0.0)
    with pytest.raises(StateUnreadable, match="busy"):
        await keep_lease(task, store=Failing(store, times=10**9), owner=current_owner())


@pytest.mark.usefixtures("_hasty")
async def test_a_lease_that_is_somebody_elses_ends_the_fetch(store, task):
    await store.call(StateStore.acquire, task.id, current_owner(), 60)
    with pytest.raises(DestinationTaken, match="t1"):
        await keep_lease(task, store=store, owner=current_owner())


STARTED = ("started", "Fetching", {})


@pytest.mark.parametrize("entered", [None, Phase.TRANSFERRING])
async def test_a_cancelled_fetch_says_so_whatever_phase_it_has_entered_since(store, task, entered):
    await store.call(StateStore.acquire, task.id, current_owner(), 60)
    await store.run(lambda state: state.set_phase(task.id, Phase.WAITING, told=STARTED))
    await store.run(lambda state: state.agenda.cancel(task.id))
    if entered is not None:
        await store.call(StateStore.set_phase, task.id, entered)
    assert isinstance(await why_lost(task, store=store), TaskCancelled)


@pytest.mark.parametrize("phase", [Phase.FAILED, Phase.WAITING, Phase.PUBLISHED])
async def test_what_another_has_ended_was_taken_over_and_not_cancelled(store, task, phase):
    """Also where somebody had cancelled it long before."""
    await store.run(lambda state: state.agenda.cancel(task.id))
    for owner in (current_owner(), current_owner()):
        await store.call(StateStore.acquire, task.id, owner, -1)
        await store.run(lambda state: state.set_phase(task.id, Phase.WAITING, told=STARTED))
    await store.call(StateStore.set_phase, task.id, phase)
    await store.call(StateStore.release, task.id, owner)
    assert isinstance(await why_lost(task, store=store), DestinationTaken)


async def test_a_free_task_is_claimed_at_once(store, task):
    owner, heard = current_owner(), Heard()
    assert (
        await claim_or_follow(task, store=store, owner=owner, reporter=heard, patience=60) is None
    )
    assert (await store.call(StateStore.get_task, task.id)).acquired_by == owner
    assert heard.facts == []


async def test_a_follower_shows_what_the_holder_has_saved(store, task):
    """Each plan once, each size once, every byte once, and taken back where it was lost."""
    holder, heard = current_owner(), Heard()
    await store.call(StateStore.acquire, task.id, holder, 60)
    files = await store.call(StateStore.save_plan, task.id, [Object("a"), Object("b")])

    def saved(number, watermark):
        segment = Segment(start=0, stop=100, watermark=watermark)
        checkpoint = Checkpoint(etag='"1"', size=100, segments=(segment,))
        return lambda state: state.save_checkpoint(files[number].id, checkpoint)

    story = [
        lambda _: None,
        lambda _: None,  # no size is known yet, twice: planned once
        saved(0, 40),
        saved(0, 90),
        saved(0, 90),
        lambda state: state.clear_checkpoint(files[0].id),
        saved(0, 10),
        saved(0, 100),
        saved(1, 100),  # whole when it is first seen
        lambda state: state.set_phase(task.id, Phase.PUBLISHED),
        lambda state: state.release(task.id, holder),
    ]
    following = holding._Following(task, store=store, reporter=heard, give_up_at=inf)
    show = following._show_progress

    async def shown_then_changed():
        await show()
        await store.run(story.pop(0))

    following._show_progress = shown_then_changed
    with without_waiting():
        ended = await following.to_the_end()
    assert ended.phase is Phase.PUBLISHED
    assert heard.of("planned") == [(["a", "b"],)]
    assert heard.of("sized") == [("a", 100, 40), ("b", 100, 100)]
    assert heard.of("received") == [("a", 50), ("a", -80), ("a", 90)]
    assert heard.of("done") == [("a",), ("b",)]


async def test_the_end_of_an_earlier_run_is_not_taken_for_this_ones(store, task):
    """The holder has just begun anew, and has not said so yet."""
    holder = current_owner()
    await store.call(StateStore.set_phase, task.id, Phase.FAILED, message="long ago", exit_code=1)
    await store.call(StateStore.acquire, task.id, holder, 60)
    following = holding._Following(task, store=store, reporter=Heard(), give_up_at=inf)

    async def released():
        await store.call(StateStore.release, task.id, holder)

    following._show_progress = released
    with without_waiting():
        assert await following.to_the_end() is None


async def test_a_lease_that_ends_by_the_clock_is_taken_over(store, task):
    """A holder on another machine that died is known to nobody but the clock."""
    await store.call(StateStore.acquire, task.id, "another-machine", -1)
    owner = current_owner()
    assert (
        await claim_or_follow(task, store=store, owner=owner, reporter=Heard(), patience=60) is None
    )


async def test_a_result_that_is_there_is_followed_by_the_most_impatient(store, task):
    """Between the platform's SUCCESS and the first byte, the holder is not waiting any more."""
    holder = current_owner()
    await store.call(StateStore.acquire, task.id, holder, 60)
    await store.call(StateStore.record_poll, task.id, "SUCCESS")
    following = holding._Following(task, store=store, reporter=Heard(), give_up_at=-inf)

    async def published():
        await store.call(StateStore.set_phase, task.id, Phase.PUBLISHED)
        await store.call(StateStore.release, task.id, holder)

    following._show_progress = published
    with without_waiting():
        assert (await following.to_the_end()).phase is Phase.PUBLISHED
