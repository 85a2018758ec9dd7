"""Checkpoints: after the sync, at a steady pace, and fast bytes wait for a slow disk."""

import asyncio

import pytest

from downloader.errors import DiskError
from downloader.transfer import checkpointing
from downloader.transfer.checkpointing import (
    MAX_UNSAFE_BYTES,
    Checkpointer,
    checkpoint_with,
    remembered_crc64,
)
from downloader.transfer.part_file import PartFile
from downloader.transfer.ranged_get import Version
from downloader.transfer.segment_run import SegmentRun
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


@pytest.mark.parametrize("told", [None, 0, 1, 2**64 - 1])
def test_the_checksum_that_the_store_has_told_is_kept(told):
    version = Version(etag='"1"', size=1, crc64=told)
    assert remembered_crc64(checkpoint_with(version, (), part_id=None)) == told


async def test_a_checksum_that_is_told_late_is_in_the_next_checkpoint(
    checkpointer, saved, part, run
):
    run.write(part, [memoryview(b"abc")])
    await checkpointer.save()
    checkpointer.learn_checksum(77)
    run.write(part, [memoryview(b"def")])
    await checkpointer.save()
    assert [remembered_crc64(checkpoint) for checkpoint in saved.history] == [None, 77]


def test_without_a_checkpoint_no_checksum_is_remembered():
    assert remembered_crc64(None) is None
