"""Small files that are synced and remembered together."""

import asyncio
import errno
import os

import pytest

from downloader.errors import DiskError
from downloader.transfer.part_file import PartFile
from downloader.transfer.sync_batch import SyncBatch
from state.errors import StateUnreadable
from state.records import Checkpoint

WHOLE = Checkpoint(etag='"1"', size=3)


class Saved:
    """Keeps what is saved, a batch at a time; a batch waits until it may go on."""

    def __init__(self):
        self.batches = []
        self.entered = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.error = None

    async def __call__(self, checkpoints):
        self.entered.set()
        await self.may_go_on.wait()
        if self.error:
            raise self.error
        self.batches.append(set(checkpoints))


@pytest.fixture
def saved():
    return Saved()


@pytest.fixture
def batch(saved):
    return SyncBatch(saved, is_more_coming=lambda: False)


@pytest.fixture
def parts(tmp_path):
    opened = [PartFile.open(tmp_path / f"{number}.part") for number in range(20)]
    yield opened
    for part in opened:
        part.close()


async def test_what_arrives_during_a_batch_is_the_next_one(batch, saved, parts):
    saved.may_go_on.clear()
    first = asyncio.ensure_future(batch.add(0, parts[0], WHOLE))
    await saved.entered.wait()
    others = [asyncio.ensure_future(batch.add(n, parts[n], WHOLE)) for n in range(1, 20)]
    await asyncio.sleep(0)
    saved.may_go_on.set()
    await asyncio.gather(first, *others)
    assert saved.batches == [{0}, set(range(1, 20))]
    assert all(part.is_closed for part in parts)


async def test_everything_is_synced_before_anything_is_remembered(batch, saved, parts, monkeypatch):
    synced = []
    sync, sync_directory = os.fdatasync, os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append("file"), sync(fd)))
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append("names"), sync_directory(fd)))

    async def save(checkpoints):
        synced.append(len(checkpoints))

    batch._save = save
    saved.may_go_on.clear()
    await asyncio.gather(*(batch.add(n, parts[n], WHOLE) for n in range(5)))
    assert synced == ["file"] * 5 + ["names", 5]  # one directory, synced once


async def test_a_file_that_cannot_be_synced_is_not_remembered(batch, saved, parts, monkeypatch):
    failing, sync = parts[1], PartFile.sync

    def fail(part, **how):
        if part is failing:
            raise DiskError("no")
        return sync(part, **how)

    monkeypatch.setattr(PartFile, "sync", fail)
    adding = [batch.add(n, parts[n], WHOLE) for n in range(3)]
    outcomes = await asyncio.gather(*adding, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None), DiskError, type(None)]
    assert set().union(*saved.batches) == {0, 2}


async def test_files_whose_names_cannot_be_synced_are_not_remembered(
    batch, saved, parts, monkeypatch
):
    """After a power loss they would not be there."""

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    adding = [batch.add(n, parts[n], WHOLE) for n in range(3)]
    outcomes = await asyncio.gather(*adding, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DiskError] * 3
    assert f"{parts[0].path.parent} could not be synced: Input/output error" in str(outcomes[0])
    assert saved.batches == []


async def test_a_state_that_cannot_be_written_is_told_to_everybody(batch, saved, parts):
    saved.error = StateUnreadable("no")
    adding = [batch.add(n, parts[n], WHOLE) for n in range(3)]
    outcomes = await asyncio.gather(*adding, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StateUnreadable] * 3


async def test_who_is_cancelled_waits_for_his_file(batch, saved, parts):
    """It would be closed under the thread that syncs it."""
    saved.may_go_on.clear()
    adding = asyncio.ensure_future(batch.add(0, parts[0], WHOLE))
    await saved.entered.wait()
    adding.cancel()
    await asyncio.sleep(0)
    assert not adding.done()
    saved.may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert saved.batches == [{0}]


async def test_after_a_pause_it_goes_on(batch, saved, parts):
    await batch.add(0, parts[0], WHOLE)
    await batch.add(1, parts[1], WHOLE)
    assert saved.batches == [{0}, {1}]


async def test_while_more_is_coming_it_gathers(saved, parts):
    """A commit for each file would cost more than the file."""
    is_coming = True
    batch = SyncBatch(saved, is_more_coming=lambda: is_coming)
    await batch.add(0, parts[0], WHOLE)
    adding = [asyncio.ensure_future(batch.add(n, parts[n], WHOLE)) for n in range(1, 10)]
    await asyncio.sleep(0)
    assert saved.batches == [{0}]
    is_coming = False
    await asyncio.gather(*adding)
    assert saved.batches == [{0}, set(range(1, 10))]
