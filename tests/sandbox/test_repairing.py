"""Published files that are damaged: mended from the same version, or left as they are."""

import asyncio
import errno
import gzip
import os
import stat
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest
from fetch_helpers import MIB, NOTES, READY, VCF, rig_in, tree

from downloader.errors import (
    DestinationTaken,
    DiskError,
    DiskFull,
    InvalidArgument,
    LinkRefused,
    PlatformUnavailable,
    StoreUnavailable,
    VerificationFailed,
)
from downloader.recheck import recheck
from downloader.repair_directory import held_for_repair, told_of_leftovers
from downloader.repairing import repair
from downloader.retry import without_waiting
from downloader.sandbox import Fault, PlatformFault, samples
from state import Checkpoint

pytest_plugins = ["fetch_helpers"]

BIG_VCF, BIG_TBI = samples.small_pair()
STARTS = [*samples.block_starts(BIG_VCF), len(BIG_VCF)]
FILES = {"run/a.vcf.gz": BIG_VCF, "run/a.vcf.gz.tbi": BIG_TBI, "run/logs/notes.txt": NOTES}
MANIFEST = "bge-manifest.json"


class Mended:
    """A published result, and what became of it."""

    def __init__(self, rig, task_id):
        self.rig = rig
        self.task_id = task_id
        self.place = rig.final(task_id)
        self.vcf = self.place / "a.vcf.gz"
        self.store = rig.sandbox.store

    async def repair(self, path=None):
        found = await recheck(path or self.place, level="full")
        self.rig.forget()
        with without_waiting():
            return await repair(
                found,
                api=self.rig.api,
                session=self.rig.session,
                options=self.rig.transfer,
                reporter=self.rig.heard,
            )

    async def fails(self, kind):
        """Return the error by which the only damaged file cannot be mended; nothing was changed."""
        before = tree(self.place)
        (one,) = await self.repair()
        assert isinstance(one.error, kind)
        assert tree(self.place) == before
        return one.error

    def flip(self, *offsets, path=None):
        data = (path or self.vcf).read_bytes()
        for offset in offsets:
            data = samples.flipped_byte(data, offset)
        (path or self.vcf).write_bytes(data)


@pytest.fixture
async def result(rig):
    task_id = rig.add(FILES)
    await rig.fetch(task_id)
    return Mended(rig, task_id)


async def is_whole(result):
    found = await recheck(result.place, level="full")
    return (found.problems, found.warnings) == ([], ())


@pytest.mark.thorough
async def test_one_flipped_byte_costs_one_block(result):
    whole = tree(result.place)
    result.flip(STARTS[1] + 500)
    (one,) = await result.repair()
    assert (one.name, one.error) == ("a.vcf.gz", None)
    assert tree(result.place) == whole
    block = STARTS[2] - STARTS[1]
    assert one.received_bytes == block
    assert result.rig.moved == block + 1  # and a byte, to see which version is there
    assert {request.if_match for request in result.store.requests} == {
        result.store.get("run/a.vcf.gz").etag
    }
    assert result.rig.calls == ["task_result"]
    assert await is_whole(result)


def first_block(data):
    return [*samples.block_starts(data), len(data)][1]


READS = gzip.compress(samples.incompressible(3000), mtime=0)
COSTS = {
    "a.vcf.gz": (BIG_VCF, first_block(BIG_VCF)),
    "a.vcf.gz.tbi": (BIG_TBI, first_block(BIG_TBI)),  # BGZF, too
    "reads.fastq.gz": (READS, len(READS)),  # gzip alone: it is one block
    "notes.txt": (NOTES, len(NOTES)),
}


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.thorough
async def test_a_flipped_byte_costs_no_more_than_the_file_can_tell(rig, name):
    data, cost = COSTS[name]
    task_id = rig.add({f"run/{each}": content for each, (content, _) in COSTS.items()})
    await rig.fetch(task_id)
    result = Mended(rig, task_id)
    result.flip(40, path=result.place / name)
    (one,) = await result.repair()
    assert (one.error, one.received_bytes) == (None, cost)
    assert (result.place / name).read_bytes() == data


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.thorough
async def test_a_byte_that_the_line_flips_costs_as_much(rig, name):
    data, cost = COSTS[name]
    task_id = rig.add({f"run/{each}": content for each, (content, _) in COSTS.items()})
    rig.sandbox.store.inject(Fault.FLIP_BYTE, key=f"run/{name}", offset=40)
    report = await rig.fetch(task_id)
    assert (rig.final(task_id) / name).read_bytes() == data
    assert report.received_bytes == sum(len(each) for each, _ in COSTS.values()) + cost


@pytest.mark.thorough
async def test_nothing_is_asked_where_nothing_is_damaged(result):
    assert await result.repair() == []
    assert result.rig.calls == []
    assert result.store.requests == []


async def test_a_published_file_is_never_written_to(result):
    """Who has it open reads on in what it was."""
    result.flip(STARTS[1] + 500)
    before = result.vcf.read_bytes()
    with result.vcf.open("rb") as reader:
        await result.repair()
        assert reader.read() == before
    assert result.vcf.read_bytes() == BIG_VCF


async def test_mode_and_times_are_kept_and_the_index_is_not_older(result):
    result.flip(STARTS[1] + 500)
    result.vcf.chmod(0o640)
    os.utime(result.vcf, ns=(10**18, 2 * 10**18))
    await result.repair()
    facts = result.vcf.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_mtime_ns) == (0o640, 2 * 10**18)
    assert result.vcf.with_name("a.vcf.gz.tbi").stat().st_mtime_ns >= facts.st_mtime_ns
    assert await is_whole(result)


@pytest.mark.skipif(
    "crc64" not in {each.name for each in fields(Checkpoint)}, reason="the state keeps none yet"
)
@pytest.mark.thorough
async def test_a_store_that_tells_no_checksum_is_held_to_the_manifests(result):
    result.flip(STARTS[1] + 500)
    result.store.inject(Fault.NO_CRC, times=None)
    (one,) = await result.repair()
    assert (one.error, one.received_bytes) == (None, STARTS[2] - STARTS[1])
    assert await is_whole(result)


@pytest.mark.parametrize("name", ["a.vcf.gz", "a.vcf.gz.tbi", "logs/notes.txt"])
@pytest.mark.thorough
async def test_a_file_that_is_gone_is_fetched_whole(result, name):
    (result.place / name).unlink()
    (one,) = await result.repair()
    assert one.error is None
    assert one.received_bytes == len(FILES[f"run/{name}"])
    assert await is_whole(result)


@pytest.mark.thorough
async def test_a_folder_that_is_gone_is_made_again(result):
    (result.place / "logs/notes.txt").unlink()
    (result.place / "logs").rmdir()
    await result.repair()
    assert await is_whole(result)


@pytest.mark.thorough
async def test_a_file_that_was_cut_short_gets_its_tail(result):
    os.truncate(result.vcf, STARTS[2] + 5)
    (one,) = await result.repair()
    assert one.received_bytes == len(BIG_VCF) - STARTS[2] - 5
    assert await is_whole(result)


async def test_a_file_that_has_too_much_is_cut(result):
    with result.vcf.open("ab") as file:
        file.write(b"more")
    (one,) = await result.repair()
    assert (one.error, one.received_bytes) == (None, 0)
    assert await is_whole(result)


@pytest.mark.thorough
async def test_a_file_without_blocks_is_fetched_whole(result):
    result.flip(7, path=result.place / "logs/notes.txt")
    (one,) = await result.repair()
    assert (one.error, one.received_bytes) == (None, len(NOTES))
    assert await is_whole(result)


@pytest.mark.thorough
async def test_one_damaged_file_can_be_named(result):
    result.flip(500)
    result.flip(7, path=result.place / "logs/notes.txt")
    (one,) = await result.repair(result.vcf)
    assert (one.name, one.error) == ("a.vcf.gz", None)
    found = await recheck(result.place, level="full")
    assert [finding.name for finding in found.findings if finding.problem] == ["logs/notes.txt"]


async def test_all_are_tried_whatever_becomes_of_the_first(result):
    result.flip(500)
    result.flip(7, path=result.place / "logs/notes.txt")
    result.store.replace("run/a.vcf.gz", VCF)
    first, second = await result.repair()
    assert isinstance(first.error, VerificationFailed)
    assert second.error is None
    assert (result.place / "logs/notes.txt").read_bytes() == NOTES


async def test_ranges_that_the_disk_cannot_read_are_fetched(result, monkeypatch):
    """A disk that is dying gives errors in place of bytes; all the rest of the file is good."""
    copy = os.copy_file_range
    bad = range(STARTS[1] + 100, STARTS[1] + 200)

    def unreadable(source, target, count, at, to):
        if at < bad.stop and bad.start < at + count:
            raise OSError(errno.EIO, "Input/output error")
        return copy(source, target, count, at, to)

    result.flip(STARTS[1] + 150)  # as far as recheck is concerned
    monkeypatch.setattr(os, "copy_file_range", unreadable)
    (one,) = await result.repair()
    assert one.error is None
    assert one.received_bytes <= 2 * 64 * 1024
    assert await is_whole(result)


async def test_a_file_system_without_copying_is_read_and_written(result, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    result.flip(500)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    (one,) = await result.repair()
    assert one.error is None
    assert await is_whole(result)


# What cannot be mended


@pytest.mark.thorough
async def test_another_version_in_the_store_changes_nothing(result):
    result.flip(500)
    result.store.replace("run/a.vcf.gz", samples.other_pair()[0])
    error = await result.fails(VerificationFailed)
    assert error.exit_code == 5
    assert "does not have the version that was published any more" in str(error)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
@pytest.mark.thorough
async def test_without_an_etag_the_checksum_tells_the_version(rig, etag):
    task_id = rig.add(FILES)
    rig.sandbox.store.put("run/a.vcf.gz", BIG_VCF, etag='W/"weak"')
    await rig.fetch(task_id)
    result = Mended(rig, task_id)
    result.flip(500)
    if etag is None:
        (one,) = await result.repair()
        assert one.error is None
        assert await is_whole(result)
    else:
        rig.sandbox.store.put("run/a.vcf.gz", samples.other_pair()[0], etag=etag)
        assert "any more" in str(await result.fails(VerificationFailed))


async def test_an_object_that_is_gone_changes_nothing(result):
    result.flip(500)
    result.store.inject(Fault.STATUS, status=404, code="NoSuchKey", times=None)
    error = await result.fails(VerificationFailed)
    assert "NoSuchKey" in str(error)


async def test_a_result_that_does_not_list_the_file_any_more_changes_nothing(result):
    result.flip(500)
    result.rig.sandbox.add_task({"run/logs/notes.txt": NOTES}, task_id=result.task_id, states=READY)
    error = await result.fails(VerificationFailed)
    assert "does not list it any more" in str(error)


async def test_a_damaged_entry_of_the_manifest_is_told_from_a_damaged_file(result):
    """The file is the store's; it is the manifest that is not what it was."""
    path = result.place / MANIFEST
    crc64 = result.rig.manifest(result.task_id)["files"][0]["crc64ecma"]
    path.write_text(path.read_text().replace(crc64, "12345"))
    error = await result.fails(VerificationFailed)
    assert "its manifest, which is damaged itself" in str(error)
    assert "move the result away and fetch the task again" in str(error).lower()


@pytest.mark.parametrize("written", ["12345", f'"{"9" * 5000}"'])
async def test_an_entry_of_the_manifest_that_is_no_checksum_stops_no_other_file(result, written):
    path = result.place / MANIFEST
    crc64 = result.rig.manifest(result.task_id)["files"][0]["crc64ecma"]
    path.write_text(path.read_text().replace(f'"{crc64}"', written))
    error = await result.fails(VerificationFailed)
    assert "its manifest, which is damaged itself" in str(error)


@pytest.mark.thorough
async def test_without_a_manifest_nothing_can_be_repaired(result):
    result.flip(500)
    (result.place / MANIFEST).unlink()
    with pytest.raises(InvalidArgument, match="nothing tells what to repair it by"):
        await result.repair()


async def test_what_is_wrong_in_the_store_too_is_left(rig):
    """Its bytes are those that were published."""
    task_id = rig.add({"run/a.vcf.gz": samples.without_eof(VCF)})
    await rig.fetch(task_id, verify="off")
    result = Mended(rig, task_id)
    assert await result.repair() == []
    assert rig.calls == []


async def test_a_link_in_a_files_place_is_refused(result, tmp_path):
    result.vcf.rename(tmp_path / "precious")
    result.vcf.symlink_to(tmp_path / "precious")
    result.flip(500)
    before = (tmp_path / "precious").read_bytes()
    (one,) = await result.repair()
    assert isinstance(one.error, DiskError)
    assert (tmp_path / "precious").read_bytes() == before
    assert result.vcf.is_symlink()


async def test_a_full_disk_changes_nothing(result, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    result.flip(500)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    await result.fails(DiskFull)


async def test_a_store_that_is_away_changes_nothing(result):
    result.flip(500)
    result.store.inject(Fault.STATUS, status=503, times=None)
    error = await result.fails(StoreUnavailable)
    assert error.exit_code == 1


async def test_a_platform_that_is_away_is_told(result):
    result.flip(500)
    before = tree(result.place)
    result.rig.sandbox.platform.inject(PlatformFault.STATUS, status=500, times=None)
    with pytest.raises(PlatformUnavailable):
        await result.repair()
    assert tree(result.place) == before


@pytest.mark.thorough
async def test_a_link_that_expires_meanwhile_is_renewed(tmp_path):
    ahead = timedelta()
    async with rig_in(tmp_path, clock=lambda: datetime.now(UTC) + ahead) as rig:
        task_id = rig.add(FILES, link_lifetime=60)
        await rig.fetch(task_id)
        result = Mended(rig, task_id)
        result.flip(500)

        def expire(*_, **__):
            nonlocal ahead
            ahead = timedelta(seconds=90)

        rig.forget = lambda: setattr(rig.heard, "file_sized", expire)
        rig.sandbox.platform.calls.clear()
        (one,) = await result.repair()
        assert one.error is None
        assert rig.calls == ["task_result", "task_result"]
        assert await is_whole(result)


async def test_a_store_that_refuses_every_link_changes_nothing(result):
    result.flip(500)
    result.store.inject(Fault.EXPIRED, times=None)
    await result.fails(LinkRefused)


async def interrupted(result, name, *, after, covering=None):
    """Repair until so many bytes of an answer have come, then cancel, as a signal does."""
    held = result.store.inject(Fault.STALL, key=f"run/{name}", after=after, covering=covering)
    running = asyncio.ensure_future(result.repair())
    await held.happened.wait()
    heard = result.rig.heard
    while sum(max(0, delta) for _, delta in heard.of("received")) < after:
        await heard.hears("received")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    result.store.clear_faults()


def without_leftovers(files):
    return {name: data for name, data in files.items() if not name.startswith("bge-repair~")}


@pytest.mark.parametrize("name", ["a.vcf.gz", "logs/notes.txt"])
async def test_a_repair_that_is_interrupted_changes_no_file_and_is_gone_on_with(result, name):
    """Of a file without blocks as well, only what is missing is fetched again."""
    path, whole = result.place / name, FILES[f"run/{name}"]
    result.flip(500, path=path)
    before = tree(result.place)
    grain = STARTS[1] if name == "a.vcf.gz" else len(whole)
    await interrupted(result, name, covering=500, after=grain // 2)
    assert without_leftovers(tree(result.place)) == before
    (left,) = told_of_leftovers(result.place)
    assert "`verify --repair` goes on there" in left
    (one,) = await result.repair()
    assert one.error is None
    assert one.received_bytes == grain - grain // 2
    assert await is_whole(result)
    assert told_of_leftovers(result.place) == []


@pytest.mark.thorough
async def test_a_file_that_is_gone_is_gone_on_with_too(result):
    result.vcf.unlink()
    await interrupted(result, "a.vcf.gz", after=len(BIG_VCF) // 2)
    assert not result.vcf.exists()
    (one,) = await result.repair()
    assert one.error is None
    assert one.received_bytes == len(BIG_VCF) - len(BIG_VCF) // 2
    assert await is_whole(result)


@pytest.mark.thorough
async def test_a_byte_that_rots_between_two_repairs_is_found(result):
    """What an earlier run has left is read back, and never believed as it was noted."""
    result.vcf.unlink()
    await interrupted(result, "a.vcf.gz", after=STARTS[2])
    (copy,) = result.place.glob("bge-repair~*/*.part")
    copy.write_bytes(samples.flipped_byte(copy.read_bytes(), STARTS[1] + 9))
    (one,) = await result.repair()
    assert one.error is None
    assert one.received_bytes == len(BIG_VCF) - STARTS[1]
    assert await is_whole(result)


@pytest.mark.thorough
async def test_what_has_come_before_the_store_went_away_is_kept(result):
    path = result.place / "logs/notes.txt"
    result.flip(7, path=path)
    before = tree(result.place)
    result.store.inject(Fault.CUT, key="run/logs/notes.txt", covering=7, after=100)
    result.store.inject(Fault.STATUS, status=503, times=None, covering=500)
    (one,) = await result.repair()
    assert isinstance(one.error, StoreUnavailable)
    assert without_leftovers(tree(result.place)) == before
    result.store.clear_faults()
    (one,) = await result.repair()
    assert one.received_bytes == len(NOTES) - 100
    assert await is_whole(result)


async def test_what_cannot_be_gone_on_with_is_not_kept(result):
    """Another version has come meanwhile."""
    result.flip(7, path=result.place / "logs/notes.txt")
    before = tree(result.place)
    await interrupted(result, "logs/notes.txt", covering=7, after=100)
    result.store.replace("run/logs/notes.txt", b"other words")
    (one,) = await result.repair()
    assert isinstance(one.error, VerificationFailed)
    assert tree(result.place) == before


@pytest.mark.thorough
async def test_what_has_come_before_the_disk_refused_is_kept(result, monkeypatch):
    result.flip(7, path=result.place / "logs/notes.txt")
    result.store.inject(Fault.CUT, key="run/logs/notes.txt", covering=7, after=100)
    write = os.pwritev

    def refuse(descriptor, buffers, offset):
        if offset >= 100:
            raise OSError(errno.EIO, "Input/output error")
        return write(descriptor, buffers, offset)

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwritev", refuse)
        (one,) = await result.repair()
    assert isinstance(one.error, DiskError)
    (one,) = await result.repair()
    assert (one.error, one.received_bytes) == (None, len(NOTES) - 100)


@pytest.mark.thorough
async def test_a_copy_that_the_disk_cannot_read_is_begun_anew(result, monkeypatch):
    """It would be as unreadable the next time."""
    result.flip(7, path=result.place / "logs/notes.txt")
    await interrupted(result, "logs/notes.txt", covering=7, after=100)

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", refuse)
        (one,) = await result.repair()
    assert isinstance(one.error, DiskError)
    (one,) = await result.repair()
    assert (one.error, one.received_bytes) == (None, len(NOTES))


@pytest.mark.thorough
async def test_what_was_left_of_a_file_that_somebody_else_has_mended_goes(result):
    path = result.place / "logs/notes.txt"
    result.flip(7, path=path)
    await interrupted(result, "logs/notes.txt", covering=7, after=100)
    path.write_bytes(NOTES)
    assert told_of_leftovers(result.place) != []
    assert await result.repair() == []
    assert told_of_leftovers(result.place) == []
    assert result.rig.calls == []


async def test_two_repairs_do_not_meet(result):
    result.flip(500)
    with held_for_repair(result.place), pytest.raises(DestinationTaken, match="is repairing"):
        await result.repair()
    (one,) = await result.repair()
    assert one.error is None


async def test_progress_is_honest(result):
    result.flip(STARTS[1] + 500)
    await result.repair()
    sized = result.rig.heard.of("sized")
    shown = sum(resumed for _, _, resumed in sized)
    shown += sum(delta for _, delta in result.rig.heard.of("received"))
    assert shown == len(BIG_VCF)
    assert result.rig.heard.of("planned") == [(["a.vcf.gz"],)]
    assert result.rig.heard.of("done") == [("a.vcf.gz",)]
    assert len(result.rig.heard.of("finished")) == 1
    assert any("of its blocks are intact" in note for note in result.rig.heard.notes)
    assert result.rig.moved < MIB
