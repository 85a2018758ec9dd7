"""Bytes that are wrong, late or another version's: never published, and never fetched for ever."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

import pytest
from fetch_helpers import MIB, NOTES, PAIR, SECRETS, TBI, VCF, rig_in

from downloader import proving
from downloader.errors import LinkRefused, TransferError, VerificationFailed
from downloader.sandbox import Fault, samples
from downloader.transfer import TransferOptions
from state import Phase, StateStore

pytest_plugins = ["fetch_helpers"]

BIG = random.Random(3).randbytes(9 * MIB + 77)
SMALL_VCF, SMALL_TBI = samples.small_pair()
NAMES = ("a.vcf.gz", "a.vcf.gz.tbi")


# Wrong in the store


@pytest.mark.parametrize(
    ("vcf", "tbi"),
    [
        (samples.truncated(SMALL_VCF), SMALL_TBI),
        (samples.without_eof(SMALL_VCF), SMALL_TBI),
        (samples.flipped_byte(SMALL_VCF, len(SMALL_VCF) // 2), SMALL_TBI),
        (samples.not_a_vcf(), SMALL_TBI),
        (SMALL_VCF, samples.wrong_index()),
        (SMALL_VCF, samples.truncated(SMALL_TBI)),
        (SMALL_VCF, b""),
        (b"", SMALL_TBI),
        samples.index_beyond_end(SMALL_VCF),
    ],
    ids=[
        "truncated",
        "without its end",
        "a flipped byte",
        "no VCF",
        "another's index",
        "a truncated index",
        "an empty index",
        "an empty VCF",
        "an index beyond the end",
    ],
)
async def test_what_is_wrong_in_the_store_is_told_and_never_published(rig, vcf, tbi):
    """Fetching it again would bring the same bytes, so nobody does that."""
    task_id = rig.add(dict(zip(PAIR, (vcf, tbi), strict=True)))
    error = await rig.fails(task_id, VerificationFailed)
    assert error.exit_code == 5
    assert "wrong there" in str(error)
    assert str(rig.partial(task_id)) in str(error)
    # A byte of each tells whether it is there still.
    assert 0 <= rig.moved - len(vcf) - len(tbi) <= len(PAIR)
    assert not rig.final(task_id).exists()
    assert (await rig.task(task_id)).exit_code == 5
    rig.forget()
    again = await rig.fails(task_id, VerificationFailed)
    assert str(again) == str(error)
    assert rig.moved <= 2 * len(PAIR)  # before the check and behind it
    assert not rig.final(task_id).exists()


async def test_what_was_wrong_in_the_store_is_fetched_once_it_was_mended(rig):
    task_id = rig.add({"run/a.vcf.gz": samples.without_eof(VCF), "run/a.vcf.gz.tbi": TBI})
    await rig.fails(task_id, VerificationFailed)
    rig.sandbox.store.replace("run/a.vcf.gz", VCF)
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == dict(zip(NAMES, (VCF, TBI), strict=True))
    assert (report.received_bytes, report.resumed_bytes) == (len(VCF), len(TBI))


# Wrong in transit, where the store tells no checksum


def _without_checksums(rig, task_files=PAIR):
    task_id = rig.add(task_files)
    for key, data in task_files.items():
        rig.sandbox.store.put(key, data, crc=False)
    return task_id


async def test_without_the_stores_checksum_a_result_is_published_and_says_so(rig):
    task_id = _without_checksums(rig)
    await rig.fetch(task_id)
    assert [file["crc64_confirmed"] for file in rig.manifest(task_id)["files"]] == [False, False]


async def test_damage_that_no_checksum_shows_is_found_and_fetched_again(rig):
    """Blocks carry their own checksums; a second try finds out whether the line was to blame."""
    task_id = _without_checksums(rig)
    rig.sandbox.store.inject(Fault.FLIP_BYTE, key="run/a.vcf.gz", offset=len(VCF) // 2)
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == dict(zip(NAMES, (VCF, TBI), strict=True))
    assert report.received_bytes == 2 * (len(VCF) + len(TBI))
    assert report.resumed_bytes == 0
    (note,) = [note for note in rig.heard.notes if "Fetching again" in note]
    assert "a.vcf.gz" in note


async def test_damage_that_comes_again_and_again_ends_and_leaves_nothing_to_believe(rig):
    task_id = _without_checksums(rig)
    rig.sandbox.store.inject(Fault.FLIP_BYTE, key="run/a.vcf.gz", offset=len(VCF) // 2, times=None)
    error = await rig.fails(task_id, VerificationFailed)
    assert error.exit_code == 5
    assert "nothing was published" in str(error)
    assert not rig.final(task_id).exists()
    rig.sandbox.store.clear_faults()
    rig.forget()
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == dict(zip(NAMES, (VCF, TBI), strict=True))
    assert (report.received_bytes, report.resumed_bytes) == (report.size, 0)


async def test_only_what_may_be_wrong_is_fetched_again(rig):
    """A file whose checksum the store has confirmed is right, whatever its neighbour is."""
    task_id = rig.add()
    rig.sandbox.store.put("run/a.vcf.gz.tbi", TBI, crc=False)
    rig.sandbox.store.inject(Fault.FLIP_BYTE, key="run/a.vcf.gz.tbi", offset=len(TBI) // 2)
    report = await rig.fetch(task_id)
    assert report.received_bytes == len(VCF) + 2 * len(TBI)
    assert report.resumed_bytes == 0


async def test_a_byte_that_rots_on_disk_between_transfer_and_check_is_fetched_again(rig):
    """The transfer has proved the bytes as they were written, not as the disk gives them back."""
    task_id = rig.add()

    class Rot(type(rig.heard)):
        def file_done(self, name):
            if name == "a.vcf.gz" and ("done", name) not in self.facts:
                part = rig.partial(task_id) / "a.vcf.gz.part"
                part.write_bytes(samples.flipped_byte(VCF, len(VCF) // 2))
            super().file_done(name)

    rig.heard = Rot()
    await rig.fetch(task_id, parallel_files=1)
    assert rig.published(task_id) == dict(zip(NAMES, (VCF, TBI), strict=True))
    assert any("Fetching again: a.vcf.gz" in note for note in rig.heard.notes)


async def test_rot_between_transfer_and_check_costs_the_damaged_block(rig):
    """The store has told the file's checksum, so reading it back tells what is right of it."""
    task_id = rig.add(dict(zip(PAIR, (SMALL_VCF, SMALL_TBI), strict=True)))
    starts = list(samples.block_starts(SMALL_VCF))

    class Rot(type(rig.heard)):
        def file_done(self, name):
            if name == "a.vcf.gz" and ("done", name) not in self.facts:
                part = rig.partial(task_id) / "a.vcf.gz.part"
                part.write_bytes(samples.flipped_byte(SMALL_VCF, starts[1] + 99))
            super().file_done(name)

    rig.heard = Rot()
    report = await rig.fetch(task_id, parallel_files=1)
    assert rig.published(task_id) == dict(zip(NAMES, (SMALL_VCF, SMALL_TBI), strict=True))
    assert report.received_bytes == report.size + starts[2] - starts[1]


async def test_a_byte_that_is_flipped_in_transit_costs_its_block(rig):
    task_id = rig.add(dict(zip(PAIR, (SMALL_VCF, SMALL_TBI), strict=True)))
    starts = list(samples.block_starts(SMALL_VCF))
    rig.sandbox.store.inject(Fault.FLIP_BYTE, key="run/a.vcf.gz", offset=starts[1] + 99)
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == dict(zip(NAMES, (SMALL_VCF, SMALL_TBI), strict=True))
    assert report.received_bytes == rig.moved == report.size + starts[2] - starts[1]


# Interrupted


async def test_what_was_received_before_an_interruption_is_not_fetched_again(rig):
    task_id = rig.add({"run/big": BIG, "run/notes.txt": NOTES})
    held = rig.sandbox.store.inject(Fault.STALL, key="run/big", covering=8 * MIB, after=MIB)
    await rig.interrupted(task_id, held)
    task = await rig.task(task_id)
    assert (task.phase, task.acquired_by) == (Phase.TRANSFERRING, None)
    assert (await rig.history(task_id))[-1] == "interrupted"
    assert rig.partial(task_id).is_dir()
    safe = {one.name: one.safe_bytes for one in await rig.store.call(StateStore.progress, task.id)}
    assert safe["big"] > 0
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == {"big": BIG, "notes.txt": NOTES}
    assert report.resumed_bytes == sum(safe.values())
    assert report.received_bytes == report.size - sum(safe.values())
    assert rig.moved <= report.received_bytes + 1


async def test_an_object_that_is_replaced_in_mid_transfer_is_never_mixed(rig):
    other = random.Random(4).randbytes(len(BIG))
    task_id = rig.add({"run/big": BIG})
    held = rig.sandbox.store.inject(Fault.HANG, key="run/big", covering=8 * MIB)
    running = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    rig.sandbox.store.replace("run/big", other)
    held.release()
    await running
    assert rig.published(task_id) == {"big": other}
    (file,) = rig.manifest(task_id)["files"]
    assert file["etag"] == rig.sandbox.store.get("run/big").etag
    assert any("starting this file again" in note for note in rig.heard.notes)


# Links


class Clock:
    """The store's and the platform's time, which a test may put forward."""

    def __init__(self):
        self.ahead = timedelta()

    def __call__(self):
        return datetime.now(UTC) + self.ahead


async def test_links_that_have_expired_are_renewed_by_one_question(tmp_path):
    """Two files that were refused together need one answer, for it lists both."""
    clock = Clock()
    async with rig_in(tmp_path, clock=clock) as rig:
        task_id = rig.add(link_lifetime=60)
        rig.heard.planned = lambda _: setattr(clock, "ahead", timedelta(seconds=90))
        await rig.fetch(task_id)
        assert rig.calls == ["task_result", "task_result"]
        assert rig.published(task_id) == dict(zip(NAMES, (VCF, TBI), strict=True))
        assert len([note for note in rig.heard.notes if "renewed" in note]) == 1


async def test_links_that_expire_while_the_task_is_fetched_are_renewed(tmp_path):
    clock = Clock()
    async with rig_in(tmp_path, clock=clock) as rig:
        task_id = rig.add({"run/big": BIG, "run/notes.txt": NOTES}, link_lifetime=600)
        held = rig.sandbox.store.inject(Fault.STALL, key="run/big", covering=8 * MIB, after=MIB)
        running = asyncio.ensure_future(rig.fetch(task_id))
        await held.happened.wait()
        clock.ahead = timedelta(hours=1)
        rig.sandbox.store.inject(Fault.CUT, key="run/big", after=1)
        held.release()
        await running
        assert rig.published(task_id) == {"big": BIG, "notes.txt": NOTES}
        assert not [secret for secret in SECRETS if secret in str(rig.heard.facts)]


async def test_a_bare_link_that_is_refused_is_signed(rig):
    """The seed's links carry no signature; the store may want one all the same."""
    task_id = rig.add(signed=False)
    await rig.fetch(task_id)
    assert rig.published(task_id) == dict(zip(NAMES, (VCF, TBI), strict=True))
    assert rig.calls.count("sign_url") == 2
    assert rig.calls.count("task_result") == 2


async def test_a_bare_link_that_is_served_is_left_bare(rig):
    rig.sandbox.store.public = True
    task_id = rig.add(signed=False)
    await rig.fetch(task_id)
    assert rig.calls == ["task_result"]


async def test_a_store_that_refuses_every_link_ends_it_with_everything_kept(rig):
    task_id = rig.add()
    rig.sandbox.store.inject(Fault.EXPIRED, key="run/a.vcf.gz", times=None)
    error = await rig.fails(task_id, LinkRefused, parallel_files=1)
    assert error.exit_code == 1
    assert "a.vcf.gz" in str(error)
    assert not [secret for secret in SECRETS if secret in str(error)]
    assert len(rig.sandbox.store.requests) < 10
    assert (await rig.task(task_id)).phase is Phase.FAILED
    rig.sandbox.store.clear_faults()
    await rig.fetch(task_id)
    assert len(rig.published(task_id)) == 2


# A poor line


@pytest.mark.parametrize(
    "fault",
    [
        Fault.CUT,
        Fault.RESET,
        Fault.TRUNCATE_CHUNKED,
        Fault.IGNORE_RANGE,
        Fault.WRONG_CONTENT_RANGE,
        Fault.WRONG_PART,
        Fault.SHORT_RANGE,
        Fault.HTML_200,
        Fault.FLIP_BYTE,
        Fault.STATUS,
    ],
)
async def test_what_the_store_does_wrong_once_is_not_in_the_result(rig, fault):
    task_id = rig.add()
    rig.sandbox.store.inject(fault, key="run/a.vcf.gz")
    await rig.fetch(task_id)
    assert rig.published(task_id) == dict(zip(NAMES, (VCF, TBI), strict=True))


async def test_a_store_that_is_away_ends_it_with_everything_kept(rig):
    rig.transfer = TransferOptions(max_attempts=2, rules=rig.transfer.rules)
    task_id = rig.add()
    rig.sandbox.store.inject(Fault.STATUS, key="run/a.vcf.gz", status=503, times=None)
    error = await rig.fails(task_id, TransferError, parallel_files=1)
    assert "a.vcf.gz" in str(error)
    rig.sandbox.store.clear_faults()
    rig.forget()
    await rig.fetch(task_id)
    assert len(rig.published(task_id)) == 2


# Of two results


async def begun(rig, files, *, held):
    """Begin a fetch that waits for one of the files until every other one has arrived."""
    task_id = rig.add(files)
    hanging = rig.sandbox.store.inject(Fault.HANG, key=held)
    running = asyncio.ensure_future(rig.fetch(task_id))
    await hanging.happened.wait()
    async with asyncio.timeout(30):
        while len(rig.heard.of("done")) < len(files) - 1:  # noqa: ASYNC110 - no event of its own
            await asyncio.sleep(0.005)
    return task_id, running, hanging


async def test_files_of_two_runs_of_a_task_are_never_one_result(rig, monkeypatch):
    """Each of them is whole, and nobody could tell afterwards."""
    monkeypatch.setattr(proving, "SETTLED_SECONDS", 0.0)
    old = {"run/a.csv": b"run 1" * 99, "run/data.bin": b"1" * 9 * MIB}
    new = {"run/a.csv": b"run 2" * 99, "run/data.bin": b"2" * 9 * MIB}
    task_id, running, hanging = await begun(rig, old, held="run/data.bin")
    for key, data in new.items():
        rig.sandbox.store.replace(key, data)
    hanging.release()
    await running
    for key, data in new.items():
        assert (rig.final(task_id) / key.removeprefix("run/")).read_bytes() == data
    assert any("Replaced in the store while others came" in note for note in rig.heard.notes)


async def test_a_file_that_is_gone_from_the_store_meanwhile_is_here(rig, monkeypatch):
    monkeypatch.setattr(proving, "SETTLED_SECONDS", 0.0)
    files = {"run/a.csv": b"run 1" * 99, "run/data.bin": b"1" * 9 * MIB}
    task_id, running, hanging = await begun(rig, files, held="run/data.bin")
    rig.sandbox.store.delete("run/a.csv")
    hanging.release()
    await running
    assert (rig.final(task_id) / "a.csv").read_bytes() == files["run/a.csv"]


async def test_a_pair_of_two_runs_is_fetched_again_and_blamed_on_nobody(rig):
    """Also where one came just after the other, so that nobody asks before they are checked."""
    old, new = (samples.small_pair(), samples.index_beyond_end(SMALL_VCF))
    task_id, running, hanging = await begun(
        rig, dict(zip(PAIR, new, strict=True)), held="run/a.vcf.gz"
    )
    for key, data in zip(PAIR, old, strict=True):
        rig.sandbox.store.replace(key, data)
    hanging.release()
    await running
    for name, data in zip(NAMES, old, strict=True):
        assert (rig.final(task_id) / name).read_bytes() == data


async def test_what_is_replaced_again_and_again_ends_it(rig, monkeypatch):
    monkeypatch.setattr(proving, "SETTLED_SECONDS", 0.0)
    files = {"run/a.csv": b"run 1" * 99, "run/data.bin": b"1" * 9 * MIB}
    task_id = rig.add(files)
    inner = proving.Proving._side_by_side

    async def replaced_behind_it(self):
        arrived = await inner(self)
        for key in files:
            rig.sandbox.store.replace(key, random.randbytes(99))
        return arrived

    monkeypatch.setattr(proving.Proving, "_side_by_side", replaced_behind_it)
    error = await rig.fails(task_id, TransferError)
    assert "are not of one result" in str(error)
    assert not rig.final(task_id).exists()
