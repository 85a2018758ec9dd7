"""Checkpoints: after the sync, at a steady pace, and fast bytes wait for a slow disk."""

import asyncio

import pytest

from downloader.errors import DiskError
from downloader.transfer import checkpointing
from downloader.transfer.checkpointing import MAX_UNSAFE_BYTES, Checkpointer
from downloader.transfer.part_file import PartFile
from downloader.transfer.ranged_get import Version
from downloader.transfer.segment_run import SegmentRun
from downloader.transfer.throttle import RateLimit
from state.records import Segment

MIB = 1024 * 1024


class Saved:
    """Checkpoints that write down what was saved, and how much the disk had synced by then."""

    def __init__(self):
        self.history = []

    async def save(self, checkpoint, *, previous=None):
        self.history.append(checkpoint)


@pytest.fixture
def part(tmp_path):
    part = PartFile.open(tmp_path / "a.part")
    yield part
    part.close()


@pytest.fixture
def run():
    return SegmentRun(Segment(start=0, stop=100 * MIB))


@pytest.fixture
def saved():
    return Saved()


@pytest.fixture
def checkpointer(saved, part, run):
    version = Version(etag='"1"', size=100 * MIB, crc64=None)
    return Checkpointer(saved, version=version, part=part, runs=[run])


async def test_nothing_new_is_not_saved_again(checkpointer, saved, part, run):
    await checkpointer.save()
    run.write(part, [memoryview(b"abc")])
    await checkpointer.save()
    await checkpointer.save()
    assert [checkpoint.safe_bytes for checkpoint in saved.history] == [3]
    assert run.unsafe_bytes == 0


async def test_what_comes_during_the_sync_is_for_the_next_checkpoint(
    checkpointer, saved, part, run, monkeypatch
):
    sync = part.sync

    def slow_sync():
        sync()
        run.write(part, [memoryview(b"late")])

    run.write(part, [memoryview(b"abc")])
    monkeypatch.setattr(part, "sync", slow_sync)
    await checkpointer.save()
    assert saved.history[-1].safe_bytes == 3
    assert run.unsafe_bytes == 4


async def test_nothing_is_saved_that_could_not_be_synced(
    checkpointer, saved, part, run, monkeypatch
):
    def refuse():
        raise DiskError("no")

    run.write(part, [memoryview(b"abc")])
    monkeypatch.setattr(part, "sync", refuse)
    with pytest.raises(DiskError):
        await checkpointer.save()
    assert saved.history == []
    assert run.unsafe_bytes == 3


@pytest.mark.parametrize(
    ("unsafe", "after", "saves"),
    [
        (MAX_UNSAFE_BYTES, 5, 0),  # eight mebibytes may be lost
        (MAX_UNSAFE_BYTES + 1, 0.5, 0),  # or a second
        (MAX_UNSAFE_BYTES + 1, 1.5, 1),  # not more than both
    ],
)
async def test_a_segment_that_is_too_far_ahead_waits_for_the_disk(
    checkpointer, saved, run, *, unsafe, after, saves, monkeypatch
):
    run.position += unsafe
    now = checkpointing.time.monotonic() + after
    monkeypatch.setattr(checkpointing, "time", FrozenTime(now))
    await checkpointer.catch_up(run)
    assert len(saved.history) == saves


class FrozenTime:
    def __init__(self, now):
        self.monotonic = lambda: now


async def test_the_last_checkpoint_is_saved_when_everything_is_filled(
    checkpointer, saved, part, run
):
    filled = asyncio.Event()
    keeping = asyncio.ensure_future(checkpointer.keep_saving(filled))
    await asyncio.sleep(0)
    run.write(part, [memoryview(b"abc")])
    filled.set()
    await keeping
    assert [checkpoint.safe_bytes for checkpoint in saved.history] == [3]


@pytest.mark.parametrize(
    ("rate", "portion"), [(None, MIB), (10**9, MIB), (MIB, MIB // 10), (5, 1), (1, 1)]
)
def test_nobody_takes_more_at_once_than_a_tenth_of_a_second_brings(rate, portion):
    """Whoever waits for the limit holds bytes that a crash would take."""
    assert RateLimit(rate).portion == portion


async def test_silence_is_made_up_for_by_a_moment_only():
    """An idle hour must not become an hour's burst."""
    now, slept = 1000.0, []

    async def sleep(seconds):
        slept.append(seconds)

    limit = RateLimit(100, clock=lambda: now, sleep=sleep)
    await limit.take(5)
    assert slept == []
    await limit.take(100)
    assert slept == [pytest.approx(1.0)]
    await limit.take(100)
    assert slept[1:] == [pytest.approx(2.0)]
