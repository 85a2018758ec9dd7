"""One object, from its store to a part file: whole, proved, and not a byte asked for twice."""

import asyncio
import itertools
import re
import threading
from pathlib import Path

import pytest
from transfer_helpers import DATA, KEY, MIB, PROBE, SMALL, around_writes, reply, scripted_server

from downloader.errors import DiskFull, HostNotAllowed
from downloader.hosts import HostRules
from downloader.sandbox import Fault
from downloader.transfer import RateLimit
from downloader.transfer.part_file import PartFile
from state.records import Segment

pytest_plugins = ["transfer_helpers"]


async def test_a_large_object_arrives_whole_and_each_byte_travels_once(rig):
    stored = rig.store.get(KEY)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.store.bytes_served == len(DATA)
    assert (done.etag, done.size, done.crc64) == (stored.etag, len(DATA), stored.crc64)
    assert (done.crc64_confirmed, done.resumed_bytes, done.received_bytes) == (True, 0, len(DATA))
    assert (rig.heard.sizes, rig.heard.shown, rig.heard.notes) == ([len(DATA)], len(DATA), [])


async def test_the_segments_tile_the_object(rig):
    await rig.transfer()
    edges = [0, PROBE, PROBE + MIB, PROBE + 2 * MIB, PROBE + 3 * MIB, len(DATA)]
    assert rig.asked == list(itertools.pairwise(edges))


async def test_segments_are_fetched_side_by_side(rig):
    """Three connections at once: the two that hang wait until the probe's body is done."""
    hanging = [rig.store.inject(Fault.HANG, covering=PROBE + at * MIB) for at in range(2)]
    running = asyncio.ensure_future(rig.transfer())
    for injection in hanging:
        await injection.happened.wait()
    assert rig.store.connections_open == 3
    rig.store.clear_faults()
    await running
    assert rig.on_disk == DATA


async def test_one_connection_is_enough(rig):
    rig.use(segments=1)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.store.connections_peak <= (2 if rig.is_straight else 1)  # one is the probe's


async def test_every_request_after_the_first_names_the_version(rig):
    """The probe cannot know it; from then on the store itself refuses another version."""
    await rig.transfer()
    first, *others = [request.if_match for request in rig.store.requests]
    assert first is None
    assert set(others) == {rig.store.get(KEY).etag}


@pytest.mark.parametrize("data", [b"", b"x", SMALL, DATA[:PROBE], DATA[: PROBE + 1]])
async def test_any_size_is_right(rig, data):
    """Nothing, one byte, less than a probe, exactly a probe, a byte more."""
    rig.store.put(KEY, data)
    done = await rig.transfer()
    assert rig.on_disk == data
    assert done.crc64 == rig.store.get(KEY).crc64
    assert done.crc64_confirmed
    assert rig.store.bytes_served_by_key[KEY] - _error_bytes(rig) == len(data)


def _error_bytes(rig):
    return sum(request.bytes_sent for request in rig.store.requests if request.status >= 400)


async def test_a_small_object_costs_one_request(rig):
    rig.store.put(KEY, SMALL)
    await rig.transfer()
    assert rig.statuses == [206]


async def test_emptiness_is_not_believed_of_a_refusal(rig):
    """A lying 416 would publish an empty file; the plain answer has the checksum."""
    lie = {"Content-Range": "bytes */0"}
    rig.store.inject(Fault.STATUS, status=416, code="InvalidRange", headers=lie)
    await rig.transfer()
    assert rig.on_disk == DATA


async def test_a_finished_object_is_proved_again_without_fetching_it(rig):
    """The last checkpoint says that all is here; the bytes are read back, one is asked for."""
    await rig.transfer()
    assert all(segment.is_complete for segment in rig.checkpoints.saved.segments)
    rig.store.forget_requests()
    again = await rig.transfer()
    assert rig.asked == [(len(DATA) - 1, len(DATA))]
    assert (again.resumed_bytes, again.received_bytes) == (len(DATA), 0)
    assert again.crc64 == rig.store.get(KEY).crc64


async def test_an_object_without_a_checksum_is_fetched_and_said_to_be_unconfirmed(rig):
    rig.store.put(KEY, DATA, crc=False)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert not done.crc64_confirmed


async def test_a_checksum_once_told_stays_told(rig):
    """A late reply without the header must not switch the proof off."""
    rig.use(segments=2)
    rig.store.inject(Fault.NO_CRC, covering=0)
    late = rig.store.inject(Fault.HANG, covering=PROBE)
    running = asyncio.ensure_future(rig.transfer())
    await rig.heard.has_shown(len(DATA) - MIB)
    rig.store.put(KEY, DATA, crc=False)
    late.release()
    assert (await running).crc64_confirmed


@pytest.mark.parametrize("fault", [Fault.NO_ETAG, Fault.WEAK_ETAG])
async def test_without_a_strong_etag_everything_comes_in_one_reply(rig, fault):
    """RFC 9110 §14.1.2: ranges may be joined by strong validators only."""
    rig.store.inject(fault, times=None)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert (done.etag, done.crc64_confirmed) == (None, True)
    assert set(rig.asked) == {(0, PROBE), (0, len(DATA))}


async def test_nothing_is_asked_of_a_host_that_is_not_allowed(rig):
    rig.use(rules=HostRules.of(["*.aliyuncs.com"]))
    with pytest.raises(HostNotAllowed, match=re.escape("the host 127.0.0.1, which is not one of")):
        await rig.transfer()
    assert rig.store.requests == []
    assert not rig.part_path.exists()


async def test_a_link_goes_out_as_it_was_written(rig):
    """The signature is over the link: not a percent sign of it may be written anew."""
    key = "run/sample a+b%/ü.vcf.gz"
    rig.store.put(key, SMALL)
    rig.url = rig.store.object_url(key, security_token="t/o+k=")
    await rig.transfer()
    assert rig.on_disk == SMALL


async def test_a_label_of_an_encoding_changes_no_byte(rig):
    rig.store.inject(Fault.CONTENT_ENCODING, times=None)
    await rig.transfer()
    assert rig.on_disk == DATA


async def test_it_asks_for_the_bytes_as_they_are_stored(rig):
    """Whoever compresses on the way changes what the ranges mean."""
    answer = reply(206, b"abc", Content_Range="bytes 0-2/3", ETag='"1"')
    async with scripted_server(answer) as (rig.url, heads):
        await rig.transfer()
    assert "\r\nAccept-Encoding: identity\r\n" in heads[0]
    assert f"\r\nRange: bytes=0-{PROBE - 1}\r\n" in heads[0]


async def test_what_does_not_fit_on_the_disk_is_not_begun(rig):
    rig.use(min_free_space=2**60)
    with pytest.raises(DiskFull, match=f"are needed and {2**60} are to stay free; free some space"):
        await rig.transfer()
    assert rig.part_path.stat().st_size == 0


async def test_the_rate_limit_is_obeyed_by_all_segments_together(rig):
    clock = LimiterClock()
    rig.use(rate_limit=RateLimit(MIB, clock=clock, sleep=clock.sleep, wait=clock.wait))
    await rig.transfer()
    assert clock.now == pytest.approx(len(DATA) / MIB, abs=0.06)
    assert rig.on_disk == DATA


class LimiterClock:
    """A clock that only the limiter's own pauses put forward, those of threads too."""

    def __init__(self):
        self.now = 0.0
        self._lock = threading.Lock()
        self._looked_at = threading.local()

    def __call__(self):
        self._looked_at.now = self.now
        return self.now

    async def sleep(self, seconds):
        until = self._looked_at.now + seconds
        await asyncio.sleep(0)
        self._go_on(until)

    def wait(self, _, seconds):
        self._go_on(self._looked_at.now + seconds)

    def _go_on(self, until):
        with self._lock:
            self.now = max(self.now, until)


async def test_a_slow_disk_holds_the_network_back(rig, monkeypatch):
    """What was received and is not written stays below 2 MiB a segment."""
    data = DATA * 3
    rig.store.put(KEY, data)
    rig.use(segment_size=8 * MIB)
    loop, entered, released = asyncio.get_running_loop(), asyncio.Semaphore(0), threading.Event()

    def slow_write(write, _):
        loop.call_soon_threadsafe(entered.release)
        assert released.wait(30)
        return write()

    around_writes(monkeypatch, slow_write)
    running = asyncio.ensure_future(rig.transfer())
    for _ in range(3):
        await entered.acquire()
    # Every segment waits for its own write by now, so nobody reads.
    assert 0 < rig.options.connections.meter.total < 3 * 2 * MIB
    released.set()
    await running
    assert rig.on_disk == data


async def test_a_checkpoint_never_tells_of_bytes_that_were_not_synced(rig, monkeypatch):
    """What is written while the disk syncs belongs to the next checkpoint."""
    lock, done, synced = threading.Lock(), set(), [frozenset()]
    sync = PartFile.sync

    def noted_write(write, offset):
        written = write()
        with lock:
            done.add((offset, offset + written))
        return written

    def noted_sync(self):
        with lock:
            before = frozenset(done)
        sync(self)
        synced.append(before)

    around_writes(monkeypatch, noted_write)
    monkeypatch.setattr(PartFile, "sync", noted_sync)
    monkeypatch.setattr("downloader.transfer.checkpointing.MIN_SAVE_SECONDS", 0)
    save = rig.checkpoints.save

    async def checked_save(checkpoint, **_):
        durable = sum(stop - start for start, stop in synced[-1])
        assert checkpoint.safe_bytes <= durable
        for segment in checkpoint.segments:
            edges = {start for start, _ in synced[-1]} | {stop for _, stop in synced[-1]}
            assert segment.watermark == 0 or segment.position in edges
        await save(checkpoint)

    monkeypatch.setattr(rig.checkpoints, "save", checked_save)
    await rig.transfer()
    assert len(rig.checkpoints.history) > 1
    assert rig.checkpoints.saved.safe_bytes == len(DATA)


async def test_the_checkpoint_of_a_finished_transfer_says_so(rig):
    await rig.transfer()
    first, *_, last = rig.checkpoints.saved.segments
    assert first == Segment(start=0, stop=PROBE, watermark=PROBE)
    assert last == Segment(start=PROBE + 3 * MIB, stop=len(DATA), watermark=123)


async def test_nothing_is_left_open(rig):
    """No descriptor, no task, no connection outlives the transfer, whatever became of it."""
    before = _descriptors()
    await rig.transfer()
    rig.store.inject(Fault.STATUS, status=404, code="NoSuchKey", times=None)
    with pytest.raises(Exception, match="no such object"):
        await rig.transfer()
    assert {str(path) for path in _descriptors() - before if path.match("*.part")} == set()
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    assert not [name for name in names if "_OneVersion" in name or "Checkpointer" in name]


def _descriptors():
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(entry.readlink())
        except OSError:  # the descriptor of this very listing
            continue
    return found
