"""A checkpoint is believed about the part file that it was saved of, and about another by proof."""

import os
import random
import shutil
import sqlite3
from contextlib import closing

import pytest
from fetch_helpers import MIB

from downloader.sandbox import Fault
from downloader.transfer import TransferOptions, part_identity
from downloader.transfer.part_identity import identity_at
from state import AsyncStore, StateStore

pytest_plugins = ["fetch_helpers"]

KEY = "run/report.bin"  # nothing but a checksum tells whether it is right
DATA = random.Random(1).randbytes(4 * MIB)
FAR, NEAR = 3 * MIB, MIB  # how much is safe, at least, when a run is cut
MISSING = len(DATA) - FAR


@pytest.fixture(autouse=True)
def _one_after_the_other(rig):
    rig.transfer = TransferOptions(
        segments=1, segment_size=MIB, first_length=MIB, max_attempts=4, rules=rig.transfer.rules
    )


@pytest.fixture
def births(tmp_path):
    if identity_at(tmp_path) is None:
        pytest.skip("the file system of this directory tells no birth time")


def add(rig, *, crc):
    task_id = rig.add({KEY: DATA, "run/x.txt": b"x"})
    rig.sandbox.store.put(KEY, DATA, crc=crc)
    return task_id


async def cut_at(rig, task_id, offset, **how):
    """Fetch until what is before the offset has come, and let that be safe."""
    stalled = rig.sandbox.store.inject(Fault.STALL, key=KEY, covering=offset, after=MIB // 2)
    await rig.interrupted(task_id, stalled, **how)


def is_right(rig, task_id):
    return rig.published(task_id) == {"report.bin": DATA, "x.txt": b"x"}


async def test_one_directory_by_two_names_is_never_filled_by_the_checkpoint_of_the_other(rig):
    """For each name the state has a task of its own; each of them begins the part file anew."""
    task_id = add(rig, crc=False)
    rig.dest.mkdir()
    link = rig.directory / "link"
    link.symlink_to(rig.dest)
    await cut_at(rig, task_id, FAR)
    await cut_at(rig, task_id, NEAR, dest=link)
    tasks = await rig.store.call(StateStore.find_tasks, task_id)
    progress = [await rig.store.call(StateStore.progress, one.id) for one in tasks]
    far, near = (files[0].safe_bytes for files in progress)
    assert NEAR <= near < FAR <= far
    await rig.fetch(task_id)
    assert is_right(rig, task_id)
    assert any("not the one that earlier runs have left" in note for note in rig.heard.notes)


async def test_a_state_that_was_restored_is_not_believed_about_a_file_begun_since(rig, tmp_path):
    task_id, state, backup = add(rig, crc=False), tmp_path / "own.db", tmp_path / "backup.db"
    async with await AsyncStore.open(state) as store:
        await cut_at(rig, task_id, FAR, store=store)
    with closing(sqlite3.connect(state)) as one, closing(sqlite3.connect(backup)) as other:
        one.backup(other)
    async with await AsyncStore.open(state) as store:
        task = await rig.task(task_id, store=store)
        await store.call(StateStore.forget_task, task.id)
        await cut_at(rig, task_id, NEAR, store=store)
    for suffix in ("-wal", "-shm"):
        state.with_name(state.name + suffix).unlink(missing_ok=True)
    backup.replace(state)
    async with await AsyncStore.open(state) as store:
        await rig.fetch(task_id, store=store)
    assert is_right(rig, task_id)


async def copied(rig, task_id):
    """Let the partial directory come back from another disk: its files are others, and equal."""
    elsewhere = rig.directory / "elsewhere"
    shutil.copytree(rig.partial(task_id), elsewhere)
    shutil.rmtree(rig.partial(task_id))
    elsewhere.rename(rig.partial(task_id))


async def test_a_partial_directory_that_was_moved_goes_on_where_a_checksum_proves_it(rig):
    task_id = add(rig, crc=True)
    await cut_at(rig, task_id, FAR)
    await copied(rig, task_id)
    await rig.fetch(task_id)
    assert is_right(rig, task_id)
    assert rig.moved <= MISSING + 1  # one byte of the other file, which was whole


async def test_a_checksum_that_only_an_earlier_run_was_told_proves_it_too(rig):
    task_id = add(rig, crc=True)
    await cut_at(rig, task_id, FAR)
    await copied(rig, task_id)
    rig.sandbox.store.inject(Fault.NO_CRC, key=KEY, times=None)
    await rig.fetch(task_id)
    assert is_right(rig, task_id)
    assert rig.moved <= MISSING + 1


async def test_a_checksum_that_is_told_only_now_proves_it_too(rig):
    task_id = add(rig, crc=False)
    await cut_at(rig, task_id, FAR)
    await copied(rig, task_id)
    rig.sandbox.store.put(KEY, DATA)
    await rig.fetch(task_id)
    assert is_right(rig, task_id)
    assert rig.moved <= MISSING + 1


async def test_the_very_part_file_goes_on_without_a_checksum(rig, births):
    task_id = add(rig, crc=False)
    await cut_at(rig, task_id, FAR)
    await rig.fetch(task_id)
    assert is_right(rig, task_id)
    assert rig.moved <= MISSING + 1


@pytest.mark.parametrize("crc", [True, False])
async def test_without_birth_times_only_a_checksum_lets_it_go_on(rig, monkeypatch, crc):
    monkeypatch.setattr(part_identity, "_statx", lambda: None)
    task_id = add(rig, crc=crc)
    await cut_at(rig, task_id, FAR)
    await rig.fetch(task_id)
    assert is_right(rig, task_id)
    assert (rig.moved < len(DATA)) is crc


async def test_a_part_file_that_was_cut_is_not_believed_without_a_checksum(rig):
    """Once it is as long as before, with nothing in its end, nothing else would tell."""
    task_id = add(rig, crc=False)
    await cut_at(rig, task_id, FAR)
    os.truncate(rig.partial(task_id) / "report.bin.part", MIB)
    await rig.fetch(task_id)
    assert is_right(rig, task_id)
    assert rig.moved >= len(DATA)
