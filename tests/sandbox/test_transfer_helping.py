"""Connections that help: a segment that is slow is cut, and what is lent goes back."""

import asyncio
from dataclasses import replace

import pytest
from transfer_helpers import DATA, KEY, MIB, PROBE, SMALL, Heard, MemoryCheckpoints, around_writes

from downloader.sandbox import Fault
from downloader.transfer import (
    Connections,
    buffers,
    filling,
    segment_run,
    straight_body,
    throttle,
)

pytest_plugins = ["transfer_helpers"]


@pytest.fixture
def impatient(monkeypatch):
    """Let a segment count as slow at once."""
    monkeypatch.setattr(segment_run, "SILENT_SECONDS", 0)
    monkeypatch.setattr(filling, "WORTH_SECONDS", 0)
    monkeypatch.setattr(filling, "LOOK_SECONDS", 0.01)


async def test_a_segment_that_hangs_is_helped(rig, impatient):
    """Its later half does not wait until the connection is given up."""
    rig.stall_timeout = 1
    rig.use(segment_size=64 * MIB, segments=2)
    hanging = rig.store.inject(Fault.STALL, covering=PROBE + 1, after=100)
    await rig.transfer()
    assert hanging.happened.is_set()
    assert rig.on_disk == DATA
    later = [start for start, _ in rig.asked if start > PROBE + 100]
    assert later  # somebody else has begun in the middle of it
    checkpoint = rig.checkpoints.saved
    assert checkpoint.safe_bytes == len(DATA)
    assert len(checkpoint.segments) > 2


async def test_nobody_is_called_to_help_with_what_is_claimed(rig, monkeypatch):
    """A rest that cannot be cut is left alone, and nobody looks at it without a pause."""
    data = (DATA * 2)[: 7 * MIB + 100_000]
    rig.store.put(KEY, data)
    rig.use(segment_size=64 * MIB, segments=3)
    stalled = rig.store.inject(Fault.STALL, covering=PROBE + 1, after=MIB + 10_000)
    help_out, helpers = filling.Filling._help, []

    async def counted(*args):
        helpers.append(args)
        await help_out(*args)

    monkeypatch.setattr(straight_body, "FLUSH_SECONDS", 0)
    monkeypatch.setattr(filling, "BUFFER_SECONDS", 0)
    monkeypatch.setattr(filling, "LOOK_SECONDS", 0)
    monkeypatch.setattr(filling.Filling, "_help", counted)
    running = asyncio.ensure_future(rig.transfer())
    await rig.heard.has_shown(PROBE + MIB + 10_000)
    monkeypatch.setattr(filling, "WORTH_SECONDS", 0)
    called = len(helpers)
    for _ in range(200):
        await asyncio.sleep(0)
    called = len(helpers) - called
    stalled.release()
    await running
    assert rig.on_disk == data
    assert called <= 1


async def test_what_was_cut_is_resumed_as_it_was(rig, impatient):
    """A checkpoint of segments that were cut is as good as any other."""
    rig.stall_timeout = 1
    rig.use(segment_size=64 * MIB, segments=2)
    rig.store.inject(Fault.STALL, covering=PROBE + 1, after=100)
    held = rig.store.inject(Fault.STALL, covering=len(DATA) - 1, after=500_000, times=1)
    await rig.interrupted(held)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert done.resumed_bytes + done.received_bytes == len(DATA)


async def test_a_small_file_does_not_wait_for_a_large_ones_segment(rig, monkeypatch):
    """Connections that were lent to a large file go back to one that has none."""
    large = DATA * 3
    rig.store.put(KEY, large)
    rig.store.put("small", SMALL)
    rig.store.total_bytes_per_second = 50 * MIB  # or the large one would be done before
    rig.use(segment_size=64 * MIB, segments=3, connections=Connections(3))
    in_use, begun = rig.options.connections, asyncio.Event()
    loop = asyncio.get_running_loop()

    def look(write, offset):
        if offset > PROBE and in_use.in_use == 3:
            loop.call_soon_threadsafe(begun.set)
        return write()

    around_writes(monkeypatch, look)
    running = asyncio.ensure_future(rig.transfer())
    await begun.wait()
    before = len(rig.store.requests)
    await _bring_small(rig)
    await running
    assert rig.on_disk == large
    later = [request.key for request in rig.store.requests[before:]]
    assert KEY in later  # what was put back was asked for again, by whoever had time first
    assert in_use.in_use == 0


async def test_what_is_put_back_last_is_not_forgotten(rig, monkeypatch):
    """Nobody has work any more, and the last helper's connection is wanted for another file."""
    rig.store.put("small", SMALL)
    rig.use(segment_size=64 * MIB, segments=2, connections=Connections(2))
    stalled = rig.store.inject(Fault.STALL, covering=PROBE + 1, after=1_400_000)
    let_go, is_let_go = segment_run.SegmentRun.let_go, asyncio.Event()

    def noted(run):
        is_let_go.set()
        return let_go(run)

    # Little is claimed, so that something is left to be put back.
    monkeypatch.setattr(buffers, "LARGE_BYTES", buffers.SMALL_BYTES)
    monkeypatch.setattr(throttle, "MAX_PORTION", buffers.SMALL_BYTES)
    monkeypatch.setattr(filling, "LOOK_SECONDS", 0)
    monkeypatch.setattr(segment_run.SegmentRun, "let_go", noted)
    running = asyncio.ensure_future(rig.transfer())
    await rig.heard.has_shown(PROBE + 1_400_000)
    for _ in range(10):  # whoever has nothing to do leaves
        await asyncio.sleep(0)
    small = asyncio.ensure_future(_bring_small(rig))
    # Where the file's own connection has the last segment, the helper's is free at once.
    asked = asyncio.ensure_future(is_let_go.wait())
    await asyncio.wait([asked, small], return_when=asyncio.FIRST_COMPLETED)
    stalled.release()
    done = await running
    await small
    asked.cancel()
    assert rig.on_disk == DATA
    assert done.received_bytes == len(DATA)


async def _bring_small(rig):
    """Bring the small object beside the large one, by the same connections."""
    directory = rig.directory / "small"
    directory.mkdir()
    url = rig.store.object_url("small")
    small = replace(
        rig, directory=directory, checkpoints=MemoryCheckpoints(), heard=Heard(), url=url
    )
    await small.transfer()
    assert small.on_disk == SMALL
