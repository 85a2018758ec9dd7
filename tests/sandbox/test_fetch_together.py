"""Several fetches of one task: one does the work, the others follow it or leave it alone."""

import asyncio
import errno
import fcntl
import os
import stat
import subprocess
import sys

import pytest
from fetch_helpers import NOTES, PAIR, TBI, VCF, Heard

from downloader import holding
from downloader.errors import (
    DestinationTaken,
    ObjectMissing,
    TaskCancelled,
    TaskFailed,
    TaskNotReady,
)
from downloader.fetch import FollowedFailure
from downloader.polling import PollOptions
from downloader.sandbox import Fault
from state import AsyncStore, Phase, StateStore, Wanted, current_owner

pytest_plugins = ["fetch_helpers"]

KEY = "run/a.vcf.gz"


async def both(rig, task_id, store, injection):
    """Start one fetch, a second when the first is held in mid-transfer, and let both end."""
    follower = Heard()
    first = asyncio.ensure_future(rig.fetch(task_id))
    await injection.happened.wait()
    second = asyncio.ensure_future(rig.fetch(task_id, store=store, reporter=follower))
    await follower.hears("note")
    injection.release()
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    return *outcomes, follower


async def test_a_second_fetch_follows_the_first_and_downloads_nothing(rig, other_store):
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    first, second, follower = await both(rig, task_id, other_store, held)
    assert (first.already_published, second.already_published) == (False, True)
    assert second.files == first.files
    assert rig.moved == len(VCF) + len(TBI)
    assert rig.calls == ["task_result"]
    assert f"process {os.getpid()} on" in follower.notes[0]
    assert follower.of("planned") == [(["a.vcf.gz", "a.vcf.gz.tbi"],)]
    assert follower.facts[-1] == ("finished",)
    assert (await rig.history(task_id)).count("published") == 1
    assert (await rig.task(task_id)).acquired_by is None


async def test_a_followers_outcome_is_the_firsts_failure_too(rig, other_store):
    task_id = rig.add()
    rig.sandbox.store.delete("run/a.vcf.gz.tbi")
    held = rig.sandbox.store.inject(Fault.HANG, key="run/a.vcf.gz.tbi")
    first, second, _ = await both(rig, task_id, other_store, held)
    assert isinstance(first, ObjectMissing)
    assert isinstance(second, FollowedFailure)
    assert second.exit_code == first.exit_code
    assert str(first) in str(second)


async def test_a_followers_exit_code_is_the_firsts(rig, other_store):
    task_id = rig.sandbox.add_task(states=("PENDING", "FAILURE"), result="it broke")
    follower = Heard()
    second = None

    class Starts(Heard):
        def polled(self, status, *, polls, next_in_seconds):
            nonlocal second
            second = asyncio.ensure_future(rig.fetch(task_id, store=other_store, reporter=follower))

    rig.heard = Starts()
    original = rig.api.task_result

    async def held_until_followed(asked):
        if second is not None and not follower.notes:
            await follower.hears("note")
        return await original(asked)

    rig.api.task_result = held_until_followed
    await rig.fails(task_id, TaskFailed)
    with pytest.raises(FollowedFailure) as caught:
        await second
    assert caught.value.exit_code == 3
    assert "it broke" in str(caught.value)


async def test_a_follower_goes_on_where_an_interrupted_holder_has_stopped(rig, other_store):
    """Otherwise the first Ctrl-C would end every other wait for the same task."""
    task_id = rig.add({"run/notes.txt": NOTES, "run/held.txt": NOTES})
    held = rig.sandbox.store.inject(Fault.STALL, key="run/held.txt", after=10)
    first = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    follower = Heard()
    second = asyncio.ensure_future(rig.fetch(task_id, store=other_store, reporter=follower))
    await follower.hears("note")
    first.cancel()
    report = await second
    assert first.cancelled()
    assert not report.already_published
    assert rig.published(task_id) == {"notes.txt": NOTES, "held.txt": NOTES}


async def test_a_follower_that_is_cancelled_disturbs_nobody(rig, other_store):
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    first = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    follower = Heard()
    second = asyncio.ensure_future(rig.fetch(task_id, store=other_store, reporter=follower))
    await follower.hears("note")
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    held.release()
    assert not (await first).already_published
    assert (await rig.history(task_id)).count("interrupted") == 0


@pytest.mark.parametrize("poll", [PollOptions(wait=False), PollOptions(deadline=0)])
async def test_whoever_waits_no_longer_does_not_wait_for_anothers_waiting(rig, other_store, poll):
    """The service may poll a task for a week; `--no-wait` beside it must answer at once."""
    task_id = rig.sandbox.add_task(PAIR, states=("PENDING",))
    first = asyncio.ensure_future(rig.fetch(task_id))
    await rig.heard.hears("polled")
    rig.poll = poll
    error = await rig.fails(task_id, TaskNotReady, store=other_store, reporter=Heard())
    assert error.exit_code == 4
    assert f"process {os.getpid()} on" in str(error)
    assert "last heard PENDING" in str(error)
    holder = (await rig.task(task_id)).acquired_by
    assert holder is not None
    assert "not ready" not in await rig.history(task_id)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("poll", [PollOptions(wait=False), PollOptions(deadline=0)])
async def test_what_is_on_its_way_is_followed_by_the_most_impatient(rig, other_store, poll):
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    rig.poll = poll
    _, second, _ = await both(rig, task_id, other_store, held)
    assert second.already_published


async def test_many_fetches_at_once_download_once(rig, other_store):
    task_id = rig.add()
    reports = await asyncio.gather(
        *(rig.fetch(task_id, store=store) for store in 3 * [rig.store, other_store])
    )
    assert [report.already_published for report in reports].count(False) == 1
    assert rig.moved == len(VCF) + len(TBI)
    assert (await rig.history(task_id)).count("published") == 1


@pytest.fixture
def dead_owner():
    code = "from state import current_owner; print(current_owner())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ended.stdout.strip()


async def test_the_lease_of_a_process_that_died_is_taken_over_at_once(rig, dead_owner):
    """Its next heartbeat would be a minute away, and never comes."""
    task_id = rig.add()
    task = await rig.store.call(StateStore.ensure_task, task_id, str(rig.dest))
    await rig.store.call(StateStore.acquire, task.id, dead_owner, 3600)
    await rig.fetch(task_id)
    assert rig.heard.notes == []
    assert len(rig.published(task_id)) == 2


@pytest.fixture
def _hasty_heartbeat(monkeypatch):
    monkeypatch.setattr(holding, "HEARTBEAT_SECONDS", 0.001)


@pytest.mark.usefixtures("_hasty_heartbeat")
async def test_a_holder_that_lost_its_lease_stops_and_leaves_the_record_to_the_other(rig):
    """After a long sleep of the machine somebody else may have taken over, rightly."""
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    running = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    task = await rig.task(task_id)
    other = current_owner()
    await rig.store.call(StateStore.release, task.id, task.acquired_by)
    await rig.store.call(StateStore.acquire, task.id, other, 3600)
    with pytest.raises(DestinationTaken, match="taken over"):
        await running
    now = await rig.task(task_id)
    assert (now.acquired_by, now.phase, now.message) == (other, Phase.TRANSFERRING, None)
    assert rig.partial(task_id).is_dir()


@pytest.mark.usefixtures("_hasty_heartbeat")
async def test_a_task_that_was_removed_meanwhile_ends_and_says_so(rig):
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    running = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    await rig.store.call(StateStore.forget_task, (await rig.task(task_id)).id)
    with pytest.raises(TaskCancelled, match="was removed while it was being fetched"):
        await running
    assert not rig.final(task_id).exists()


async def test_a_bare_directory_that_a_power_loss_has_left_goes_and_a_claimed_one_stays(rig):
    task_id = rig.add()
    await rig.fetch(task_id)
    rig.partial(task_id).mkdir()
    assert (await rig.fetch(task_id)).already_published
    assert not rig.partial(task_id).exists()
    rig.partial(task_id).mkdir()
    (rig.partial(task_id) / "bge-claim.part").write_text("another state")
    await rig.fetch(task_id)
    assert rig.partial(task_id).exists()


@pytest.mark.usefixtures("_hasty_heartbeat")
async def test_a_task_that_was_cancelled_meanwhile_ends_and_stays_cancelled(rig):
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    running = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    task = await rig.task(task_id)
    assert await rig.store.run(lambda store: store.agenda.cancel(task.id)) is Wanted.CANCELLED
    with pytest.raises(TaskCancelled, match="was cancelled while it was being fetched"):
        await running
    assert (await rig.task(task_id)).phase is Phase.CANCELLED
    assert not rig.final(task_id).exists()
    await rig.fetch(task_id)
    assert rig.final(task_id).exists()


@pytest.mark.usefixtures("_hasty_heartbeat")
async def test_a_long_fetch_keeps_its_lease(rig):
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    running = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    renewed = asyncio.Event()
    call = rig.store.call

    async def heard(method, *args, **kwargs):
        result = await call(method, *args, **kwargs)
        if method is StateStore.renew:
            assert result is True
            renewed.set()
        return result

    rig.store.call = heard
    await renewed.wait()
    held.release()
    await running


# Two states that know nothing of each other


@pytest.fixture
async def stranger(rig):
    async with await AsyncStore.open(rig.directory / "other.db") as store:
        yield store


async def test_another_states_fetch_into_the_same_place_is_refused(rig, stranger):
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    first = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    error = await rig.fails(task_id, DestinationTaken, store=stranger)
    assert "Another process is working in" in str(error)
    assert error.exit_code == 1
    held.release()
    assert not (await first).already_published
    assert (await rig.fetch(task_id, store=stranger)).already_published
    assert (await rig.task(task_id, store=stranger)).phase is Phase.PUBLISHED


def without_locks_on(kinds, monkeypatch):
    """Let `flock` fail as it does on network disks, for descriptors of these kinds."""
    lock = fcntl.flock

    def refuse(descriptor, operation):
        if stat.S_IFMT(os.fstat(descriptor).st_mode) in kinds:
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", refuse)


async def test_where_directories_have_no_locks_a_file_is_locked(rig, stranger, monkeypatch):
    """NFS locks what is open for writing, and no directory is."""
    without_locks_on({stat.S_IFDIR}, monkeypatch)
    task_id = rig.add()
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=100)
    first = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    error = await rig.fails(task_id, DestinationTaken, store=stranger)
    assert "Another process is working in" in str(error)
    held.release()
    await first


async def test_where_there_are_no_locks_each_state_works_in_its_own_place(
    rig, stranger, monkeypatch
):
    """Lustre may have none: nobody loses his file to another, whatever its name is."""
    without_locks_on({stat.S_IFDIR, stat.S_IFREG}, monkeypatch)
    task_id = rig.add({"run/data.bin": NOTES * 50})
    held = rig.sandbox.store.inject(Fault.STALL, key="run/data.bin", after=40_000)
    first = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    rig.sandbox.store.inject(Fault.STALL, key="run/data.bin", after=10)
    heard = Heard()
    intruder = asyncio.ensure_future(rig.fetch(task_id, store=stranger, reporter=heard))
    await heard.hears("received")
    intruder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await intruder
    held.release()
    assert not (await first).already_published
    assert rig.published(task_id) == {"data.bin": NOTES * 50}


async def test_what_another_state_has_published_meanwhile_is_not_fetched_again(rig, stranger):
    """Both waited for the platform; the slower one must not download it all to find that out."""
    task_id = rig.sandbox.add_task(PAIR, states=("PENDING", "SUCCESS"))
    quick = []

    class Slower(Heard):
        def polled(self, status, *, polls, next_in_seconds):
            quick.append(asyncio.ensure_future(rig.fetch(task_id, store=stranger)))

    original, slow = rig.api.task_result, Slower()

    async def answer(asked):
        if quick and not quick[0].done() and asyncio.current_task() is not quick[0]:
            await quick[0]
        return await original(asked)

    rig.api.task_result = answer
    report = await rig.fetch(task_id, reporter=slow)
    assert report.already_published
    assert not quick[0].result().already_published
    assert rig.moved == len(VCF) + len(TBI)
    assert not rig.partial(task_id).exists()
    assert (await rig.task(task_id)).phase is Phase.PUBLISHED


async def test_a_stale_checkpoint_of_another_state_never_spoils_a_file(rig, stranger):
    """The other state's run has emptied the part file that this state's checkpoint speaks of."""
    task_id = rig.add({"run/notes.txt": NOTES, "run/held.txt": NOTES * 50})
    held = rig.sandbox.store.inject(Fault.STALL, key="run/held.txt", after=40_000)
    await rig.interrupted(task_id, held)
    held = rig.sandbox.store.inject(Fault.STALL, key="run/held.txt", after=10)
    running = asyncio.ensure_future(rig.fetch(task_id, store=stranger))
    await held.happened.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    rig.sandbox.store.clear_faults()
    await rig.fetch(task_id)
    assert rig.published(task_id) == {"notes.txt": NOTES, "held.txt": NOTES * 50}
