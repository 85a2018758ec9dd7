"""Files that share connections: small ones go beside large ones, large ones take turns."""

import asyncio
import contextlib
from dataclasses import replace
from itertools import groupby

import pytest
from transfer_helpers import (
    DATA,
    MIB,
    OTHER,
    PROBE,
    SMALL,
    Heard,
    MemoryCheckpoints,
    StoreClock,
)

from downloader.sandbox import FakeObjectStore, Fault
from downloader.transfer import Connections, RateLimit
from downloader.transfer import connections as module

pytest_plugins = ["transfer_helpers"]


@pytest.fixture
def hasty(monkeypatch):
    """Let nobody have a connection for longer than the next one needs to ask for it."""
    monkeypatch.setattr(module, "TURN_SECONDS", 0)
    monkeypatch.setattr("downloader.transfer.file_turns.MAX_PATIENCE_SECONDS", 0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)


@pytest.fixture
def beside(monkeypatch):
    """Let small files go beside large ones at once."""
    monkeypatch.setattr(module, "BRIEF_AFTER_SECONDS", 0)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)


def another(rig, key, data, *, store=None):
    """Put another object into the store, and return what brings it by the same connections."""
    store = store or rig.store
    store.put(key, data)
    directory = rig.directory / key
    directory.mkdir()
    return replace(
        rig,
        store=store,
        directory=directory,
        checkpoints=MemoryCheckpoints(),
        heard=Heard(),
        url=store.object_url(key),
    )


async def begun(rigs):
    """Start the transfers, and return once bytes of each are on their way."""
    running = [asyncio.ensure_future(one.transfer()) for one in rigs]
    for one in rigs:
        await one.heard.has_shown(1)
    return running


async def until(is_so):
    while not is_so():  # noqa: ASYNC110 - nobody tells of it
        await asyncio.sleep(0)


async def cancelled(running):
    for one in running:
        one.cancel()
    for one in running:
        with contextlib.suppress(asyncio.CancelledError):
            await one


async def test_a_small_file_does_not_wait_for_large_ones(rig, beside):
    """They have all connections, the line is full, and more of them would bring nothing."""
    rig.store.total_bytes_per_second = 10 * MIB
    running = await begun([another(rig, f"large{number}", DATA * 5) for number in range(4)])
    small = another(rig, "small", SMALL)
    await small.transfer()
    assert small.on_disk == SMALL
    assert not any(one.done() for one in running)
    await cancelled(running)
    assert rig.options.connections.in_use == 0


async def test_a_large_file_that_had_a_look_waits_for_its_turn(rig, beside):
    """Nothing of it is begun, and nothing kept of the look."""
    rig.store.inject(Fault.STALL, times=1, after=100)
    rig.use(connections=Connections(2, most_files=2))
    rig.options.connections.limit = 1
    first = asyncio.ensure_future(another(rig, "first", DATA).transfer())
    await until(lambda: rig.store.requests)
    second = another(rig, "second", OTHER)
    running = asyncio.ensure_future(second.transfer())
    await until(lambda: len(rig.store.requests) == 2 and rig.options.connections.in_use == 1)
    assert not second.part_path.exists()
    rig.options.connections.limit = 2
    rig.options.connections.change(most=2)
    await running
    assert second.on_disk == OTHER
    asked = [request.asked for request in rig.store.requests if request.key == "second"]
    assert asked[:2] == [(0, PROBE - 1)] * 2 or asked[:2] == [(0, PROBE)] * 2
    await cancelled([first])


async def test_large_files_take_turns_and_lose_nothing(rig, hasty):
    rig.store.total_bytes_per_second = 30 * MIB
    rig.use(segment_size=64 * MIB, connections=Connections(1))
    files = [another(rig, "one", DATA), another(rig, "other", OTHER)]
    done = await asyncio.gather(*(file.transfer() for file in files))
    assert [file.on_disk for file in files] == [DATA, OTHER]
    assert [one.received_bytes for one in done] == [len(DATA)] * 2
    turns = [key for key, _ in groupby(request.key for request in rig.store.requests)]
    assert len(turns) > 3
    assert rig.options.connections._begun == 0


@pytest.mark.thorough
async def test_many_files_take_turns_with_helpers_too(rig, hasty):
    rig.store.total_bytes_per_second = 100 * MIB
    rig.use(segment_size=2 * MIB, connections=Connections(3))
    files = [another(rig, f"file{number}", DATA) for number in range(5)]
    await asyncio.gather(*(file.transfer() for file in files))
    assert all(file.on_disk == DATA for file in files)
    assert rig.options.connections.in_use == 0


@pytest.mark.thorough
async def test_whoever_is_cancelled_while_others_have_their_turn_resumes(rig, hasty):
    rig.store.total_bytes_per_second = 30 * MIB
    rig.use(segment_size=64 * MIB, connections=Connections(1))
    one, other = another(rig, "one", DATA), another(rig, "other", OTHER)
    running = [asyncio.ensure_future(file.transfer()) for file in (one, other)]
    await one.heard.has_shown(PROBE // 2)
    await other.heard.has_shown(PROBE // 2)
    await cancelled(running)
    assert rig.options.connections.in_use == rig.options.connections._told == 0
    rig.store.total_bytes_per_second = None
    for file, data in ((one, DATA), (other, OTHER)):
        done = await file.transfer()
        assert done.resumed_bytes > 0
        assert file.on_disk == data


@pytest.mark.thorough
async def test_a_stream_that_cannot_be_resumed_is_not_interrupted(rig, hasty):
    rig.store.total_bytes_per_second = 60 * MIB
    rig.use(connections=Connections(1))
    stream, other = another(rig, "stream", DATA), another(rig, "other", OTHER)
    rig.store.inject(Fault.NO_ETAG, key="stream", times=None)
    await asyncio.gather(stream.transfer(), other.transfer())
    assert stream.on_disk == DATA
    assert other.on_disk == OTHER
    assert rig.store.bytes_served < 3 * len(DATA)


@pytest.mark.thorough
async def test_a_store_that_ignores_ranges_is_read_in_one_stream_all_the_same(rig, hasty):
    """Whoever finds out, and whoever has the connection just then."""
    rig.store.total_bytes_per_second = 100 * MIB
    rig.use(connections=Connections(2), segment_size=MIB)
    files = [another(rig, f"file{number}", DATA) for number in range(3)]
    running = [asyncio.ensure_future(file.transfer()) for file in files]
    await files[0].heard.has_shown(1)
    rig.store.inject(Fault.IGNORE_RANGE, times=None)
    await asyncio.gather(*running)
    assert all(file.on_disk == DATA for file in files)
    assert rig.options.connections.in_use == 0


async def test_another_store_does_not_wait_with_one_that_throttles(rig, monkeypatch):
    """Nor for the connection of those who wait for it."""
    paused, over = asyncio.Event(), asyncio.Event()

    async def pause(_):
        paused.set()
        await over.wait()

    monkeypatch.setattr("downloader.transfer.patience.pause", pause)
    monkeypatch.setattr("downloader.transfer.throttle.pause", pause)
    rig.use(connections=Connections(1))
    rig.store.inject(Fault.STATUS, status=503, headers={"Retry-After": "3600"})
    slow = [asyncio.ensure_future(another(rig, f"slow{n}", DATA).transfer()) for n in range(3)]
    await paused.wait()
    async with FakeObjectStore(clock=StoreClock()) as store:
        quick = another(rig, "quick", OTHER, store=store)
        await quick.transfer()
    assert quick.on_disk == OTHER
    assert len(rig.store.requests) == 1
    over.set()
    await asyncio.gather(*slow)


@pytest.mark.parametrize("at", [PROBE, len(DATA) - 1])
async def test_helpers_do_not_keep_connections_while_their_store_throttles(rig, monkeypatch, at):
    """Nor does the file its own, though all the others of its segments are full."""
    paused, over = asyncio.Event(), asyncio.Event()

    async def pause(_):
        paused.set()
        await over.wait()

    monkeypatch.setattr("downloader.transfer.asking.pause", pause)
    monkeypatch.setattr("downloader.transfer.throttle.pause", pause)
    rig.store.inject(Fault.STATUS, status=503, headers={"Retry-After": "3600"}, covering=at)
    running = asyncio.ensure_future(rig.transfer())
    await paused.wait()
    await until(lambda: rig.options.connections.in_use == 0)
    over.set()
    await running
    assert rig.on_disk == DATA


async def test_a_limit_that_is_lifted_is_lifted_at_once(rig):
    """At 1 KiB/s it would take two hours."""
    rig.use(rate_limit=RateLimit(1024))
    running = asyncio.ensure_future(rig.transfer())
    await rig.heard.has_shown(1)
    rig.options.rate_limit.change(None)
    await running
    assert rig.on_disk == DATA


async def test_fewer_connections_while_a_file_is_transferred(rig):
    rig.store.total_bytes_per_second = 30 * MIB
    rig.use(segment_size=MIB, connections=Connections(3))
    running = asyncio.ensure_future(rig.transfer())
    await until(lambda: rig.options.connections.in_use == 3)
    rig.options.connections.change(most=1)
    await running
    assert rig.on_disk == DATA
