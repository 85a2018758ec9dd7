"""After anything a run goes on: only what is missing travels, and only what is proved counts."""

import asyncio
import itertools
import os
import random
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_helpers import DATA, KEY, MIB, OTHER, PROBE, SMALL, WAYS, around_writes, rig_in

from downloader.errors import DiskError, DiskFull, ObjectChanged, VerificationFailed
from downloader.sandbox import Fault
from downloader.transfer.part_file import PartFile
from state.records import Checkpoint, Segment

pytest_plugins = ["transfer_helpers"]

HALF_DONE = (
    (0, PROBE, PROBE),
    (PROBE, PROBE + MIB, 300_000),
    (PROBE + MIB, PROBE + 2 * MIB, 0),
    (PROBE + 2 * MIB, len(DATA), 5),
)
MISSING = sum(stop - start - watermark for start, stop, watermark in HALF_DONE)


async def test_only_what_is_missing_is_fetched(rig):
    rig.left_by_an_earlier_run(*HALF_DONE)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.asked == [
        (PROBE + 300_000, PROBE + MIB),
        (PROBE + MIB, PROBE + 2 * MIB),
        (PROBE + 2 * MIB + 5, len(DATA)),
    ]
    assert rig.store.bytes_served == MISSING == done.received_bytes
    assert done.resumed_bytes == len(DATA) - MISSING
    assert rig.heard.shown == len(DATA)


async def test_a_resumed_run_names_the_version_from_its_first_request_on(rig):
    rig.left_by_an_earlier_run(*HALF_DONE)
    await rig.transfer()
    assert {request.if_match for request in rig.store.requests} == {rig.store.get(KEY).etag}


async def test_a_cancelled_run_saves_what_it_has(rig):
    """Cancelling is what a signal does: everything received so far is kept."""
    await rig.interrupted(rig.store.inject(Fault.STALL, covering=PROBE + MIB, after=1000))
    saved = rig.checkpoints.saved
    for segment in saved.segments:
        assert (
            rig.on_disk[segment.start : segment.position] == DATA[segment.start : segment.position]
        )
    assert saved.safe_bytes == rig.heard.shown
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.store.bytes_served == len(DATA) - saved.safe_bytes
    assert done.resumed_bytes == saved.safe_bytes


async def test_it_goes_on_however_often_it_is_interrupted(rig):
    """Each run loses what was on the wire and nothing that it had."""
    served = 0
    last = PROBE + 3 * MIB - 1  # of a segment whose bytes come in four runs
    for after in (10, 200_000, 500_000):
        await rig.interrupted(rig.store.inject(Fault.STALL, covering=last, after=after))
        assert served <= rig.checkpoints.saved.safe_bytes
        served = rig.checkpoints.saved.safe_bytes
    await rig.transfer()
    assert rig.on_disk == DATA


async def test_a_run_cancelled_in_the_middle_of_a_write_waits_for_it(rig, monkeypatch):
    """However often: a late write must not meet a descriptor that is another file's by then."""
    loop, entered, released = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def slow_write(write, _):
        loop.call_soon_threadsafe(entered.set)
        assert released.wait(30)
        return write()

    around_writes(monkeypatch, slow_write)
    running = asyncio.ensure_future(rig.transfer())
    await entered.wait()
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
    assert not running.done()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert 0 < rig.checkpoints.saved.safe_bytes == rig.heard.shown


async def test_a_run_cancelled_while_it_opens_the_file_leaves_it_closed(rig, monkeypatch):
    loop, entered, released = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    opened = []
    really_open = PartFile.open

    def slow_open(path, **how):
        loop.call_soon_threadsafe(entered.set)
        assert released.wait(30)
        opened.append(really_open(path, **how))
        return opened[0]

    monkeypatch.setattr(PartFile, "open", slow_open)
    running = asyncio.ensure_future(rig.transfer())
    await entered.wait()
    running.cancel()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert opened[0].is_closed


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_checkpoint_that_is_true_is_gone_on_from(way, seed):
    """Cuts and watermarks anywhere, as the segments' settings may have been others."""
    choose = random.Random(seed)
    cuts = sorted({0, len(SMALL), *(choose.randrange(len(SMALL)) for _ in range(6))})
    segments = [
        (start, stop, choose.choice([0, stop - start, choose.randint(0, stop - start)]))
        for start, stop in itertools.pairwise(cuts)
    ]
    missing = sum(stop - start - watermark for start, stop, watermark in segments)
    assert asyncio.run(_resumed(segments, way)) == (SMALL, missing)


async def _resumed(segments, way):
    with tempfile.TemporaryDirectory() as directory:
        async with rig_in(Path(directory), way) as rig:
            rig.store.put(KEY, SMALL)
            rig.left_by_an_earlier_run(*segments, data=SMALL)
            done = await rig.transfer()
            return rig.on_disk, done.received_bytes


async def test_a_damaged_part_file_is_found_and_fetched_again(rig):
    """The checkpoint says that the byte is right; the bytes themselves say that it is not."""
    rig.left_by_an_earlier_run(*HALF_DONE)
    with rig.part_path.open("r+b") as file:
        file.seek(1234)
        file.write(bytes([DATA[1234] ^ 1]))
    await rig.transfer()
    assert rig.on_disk == DATA
    (note,) = rig.heard.notes
    assert "the CRC-64 of the bytes on disk is" in note
    assert rig.heard.shown == len(DATA)


async def test_a_part_file_that_is_gone_is_fetched_again(rig):
    rig.left_by_an_earlier_run(*HALF_DONE)
    rig.part_path.unlink()
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert (done.resumed_bytes, rig.store.bytes_served) == (0, len(DATA))


async def test_a_shorter_part_file_counts_as_far_as_it_goes(rig):
    rig.left_by_an_earlier_run(*HALF_DONE)
    os.truncate(rig.part_path, PROBE - 7)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert done.resumed_bytes == PROBE - 7
    assert rig.store.bytes_served == len(DATA) - (PROBE - 7)


async def test_a_longer_part_file_is_cut(rig):
    rig.left_by_an_earlier_run(*HALF_DONE)
    with rig.part_path.open("ab") as file:
        file.write(b"more")
    await rig.transfer()
    assert rig.on_disk == DATA


async def test_a_part_file_that_became_a_link_is_refused(rig, tmp_path):
    """What it leads to belongs to somebody else and is left as it is."""
    rig.left_by_an_earlier_run(*HALF_DONE)
    elsewhere = tmp_path / "precious"
    rig.part_path.rename(elsewhere)
    before = elsewhere.read_bytes()
    rig.part_path.symlink_to(elsewhere)
    with pytest.raises(DiskError, match="no ordinary file of its own; move it away"):
        await rig.transfer()
    assert elsewhere.read_bytes() == before
    assert not rig.store.requests  # so nothing was forgotten either


async def test_a_part_file_replaced_while_it_is_written_is_not_called_done(rig, tmp_path):
    """The name would lead whoever publishes it to another file's bytes."""

    def replace():
        (tmp_path / "other").write_bytes(OTHER)
        (tmp_path / "other").replace(rig.part_path)

    rig.heard.when_sized = replace
    with pytest.raises(DiskError, match="was replaced by another program"):
        await rig.transfer()


@pytest.mark.parametrize(
    "segments",
    [
        (),
        ((0, len(DATA), len(DATA) + 1),),  # more than it has
        ((0, len(DATA), -1),),
        ((5, len(DATA), 0),),  # a gap at the start
        ((0, PROBE, 1), (PROBE + 1, len(DATA), 0)),  # in the middle
        ((0, PROBE, 1),),  # at the end
        ((0, PROBE, 1), (PROBE - 1, len(DATA), 0)),  # an overlap
        ((0, PROBE, 1), (PROBE, PROBE - 9, 0), (PROBE - 9, len(DATA), 0)),  # backwards
        ((0, len(DATA) + 9, 0),),
    ],
)
async def test_a_garbled_checkpoint_is_not_believed(rig, segments):
    rig.left_by_an_earlier_run((0, len(DATA), len(DATA)))
    rig.checkpoints.saved = Checkpoint(
        etag=rig.store.get(KEY).etag,
        size=len(DATA),
        segments=tuple(Segment(start=a, stop=b, watermark=w) for a, b, w in segments),
    )
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert (done.resumed_bytes, rig.store.bytes_served) == (0, len(DATA))


@pytest.mark.parametrize("etag", ["", "abc", 'W/"abc"', '"a"\r\nX: "b"', '"\udcff"', '"ü"', '""'])
async def test_a_checkpoint_whose_etag_cannot_be_sent_is_not_believed(rig, etag):
    """A damaged state must not fail each run the same way, nor write headers of its own."""
    rig.left_by_an_earlier_run(*HALF_DONE, etag=etag or " ")
    done = await rig.transfer()
    assert (rig.on_disk, done.resumed_bytes) == (DATA, 0)


@pytest.mark.parametrize("length", [len(DATA), len(DATA) - 1000, len(DATA) + 1000, 0])
async def test_two_versions_never_meet_between_runs(rig, length):
    """The object was replaced after the checkpoint: everything is thrown away."""
    rig.left_by_an_earlier_run(*HALF_DONE)
    new = (OTHER + OTHER)[:length]
    rig.store.replace(KEY, new)
    done = await rig.transfer()
    assert rig.on_disk == new
    assert done.received_bytes == len(new)
    assert "the object was replaced in the store" in rig.heard.notes[0].lower()
    assert rig.heard.shown == len(new)


async def test_two_versions_never_meet_within_a_run(rig):
    """The object is replaced while two segments are on their way and two are not yet asked for."""
    rig.heard.when_sized = lambda: rig.store.replace(KEY, OTHER)
    await rig.transfer()
    assert rig.on_disk == OTHER
    assert rig.heard.shown == len(OTHER)
    assert rig.checkpoints.saved.etag == rig.store.get(KEY).etag


async def test_an_object_that_is_replaced_again_and_again_is_given_up(rig):
    versions = iter(range(1000))
    rig.heard.when_sized = lambda: rig.store.replace(KEY, OTHER + b"%d" % next(versions))
    with pytest.raises(ObjectChanged, match=r"replaced in the store .*, 4 times in a row"):
        await rig.transfer()
    assert rig.checkpoints.saved is None
    assert not rig.part_path.exists()


async def test_a_checksum_that_is_wrong_once_costs_one_more_fetch(rig):
    """The engine cannot know who was wrong, so it begins again."""
    rig.store.put(KEY, SMALL)
    rig.store.inject(Fault.WRONG_CRC)
    done = await rig.transfer()
    assert rig.on_disk == SMALL
    assert (done.crc64_confirmed, done.received_bytes) == (True, 2 * len(SMALL))
    assert rig.heard.shown == len(SMALL)


async def test_a_byte_that_was_flipped_on_the_way_costs_one_more_fetch(rig):
    rig.store.inject(Fault.FLIP_BYTE, offset=PROBE + 77)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.store.bytes_served == 2 * len(DATA)


async def test_a_checksum_that_is_always_wrong_ends_it_and_leaves_nothing_to_believe(rig):
    """Others fail for ever on their own record of a wrong byte; the next run is a fresh one."""
    rig.store.put(KEY, SMALL)
    rig.store.inject(Fault.WRONG_CRC, times=None)
    with pytest.raises(VerificationFailed, match=r"the store's is .* 2 times in a row") as error:
        await rig.transfer()
    assert error.value.exit_code == 5
    assert rig.store.bytes_served == 2 * len(SMALL)  # the same bytes twice are what there is
    assert rig.checkpoints.saved is None
    assert not rig.part_path.exists()
    rig.store.clear_faults()
    rig.store.forget_requests()
    await rig.transfer()
    assert (rig.on_disk, rig.store.bytes_served) == (SMALL, len(SMALL))


async def test_a_full_disk_is_told_once_and_everything_is_kept(rig, monkeypatch):
    """A write that failed is never asked of the store again and again."""
    rig.use(segments=1)

    def full(write):
        def refuse(descriptor, data, offset):
            if offset >= PROBE + MIB:
                raise OSError(28, "No space left on device")
            return write(descriptor, data, offset)

        return refuse

    with monkeypatch.context() as patch:
        for name in ("pwritev", "pwrite"):
            patch.setattr(os, name, full(getattr(os, name)))
        with pytest.raises(DiskFull, match="free some space and run the same command again"):
            await rig.transfer()
    assert len(rig.store.requests) == 3
    saved = rig.checkpoints.saved.safe_bytes
    assert saved == PROBE + MIB
    rig.store.forget_requests()
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.store.bytes_served == len(DATA) - saved


async def test_a_sync_that_failed_is_never_followed_by_a_checkpoint(rig, monkeypatch):
    """The kernel tells of lost pages once; the next sync succeeds and means nothing."""
    sync, failures = os.fdatasync, [OSError(5, "Input/output error")]

    def fail_once(descriptor):
        if failures:
            raise failures.pop()
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", fail_once)
    with pytest.raises(DiskError, match="could not be synced: Input/output error"):
        await rig.transfer()
    assert rig.checkpoints.history == []


async def test_bytes_that_cannot_be_read_back_are_told(rig, monkeypatch):
    rig.left_by_an_earlier_run(*HALF_DONE)

    def refuse(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(DiskError, match="could not be read back: Input/output error"):
        await rig.transfer()
