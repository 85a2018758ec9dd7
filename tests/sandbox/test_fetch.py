"""The story of one task from the first poll to the rename, over real sockets and a real state."""

import hashlib

import pytest
from fastcrc import crc64
from fetch_helpers import NOTES, PAIR, READY, SECRETS, TBI, VCF, tree

from downloader.errors import DestinationTaken, ObjectMissing
from downloader.sandbox import samples
from state import Phase, StateStore

pytest_plugins = ["fetch_helpers"]


async def test_a_task_is_waited_for_and_its_pair_published_whole(rig):
    task_id = rig.sandbox.add_task(PAIR)
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI}
    assert rig.sandbox.platform.polls[task_id] == 3
    assert report.path == rig.final(task_id)
    assert (report.received_bytes, report.resumed_bytes) == (report.size, 0)
    assert report.size == len(VCF) + len(TBI)
    assert not report.already_published
    assert not rig.partial(task_id).exists()


async def test_the_state_knows_the_end_and_the_history_tells_the_way(rig):
    task_id = rig.sandbox.add_task(PAIR)
    await rig.fetch(task_id)
    task = await rig.task(task_id)
    assert (task.phase, task.status, task.polls) == (Phase.PUBLISHED, "SUCCESS", 3)
    assert task.published_at is not None
    assert (task.acquired_by, task.message) == (None, None)
    events = await rig.events(task_id)
    assert [event.kind for event in events] == [
        "started",
        *3 * ["status"],
        "planned",
        "transferred",
        "verified",
        "published",
    ]
    words = [event.message.rpartition(" ")[2] for event in events if event.kind == "status"]
    assert words == ["PENDING", "STARTED", "SUCCESS"]


async def test_the_history_counts_as_people_do(rig):
    one, two = rig.sandbox.add_task({"run/notes.txt": NOTES}), rig.sandbox.add_task(PAIR)
    planned = []
    for task_id in (one, two):
        await rig.fetch(task_id)
        planned += [each.message for each in await rig.events(task_id) if each.kind == "planned"]
    assert planned == ["1 file is to come", "2 files are to come"]


async def test_a_status_that_stays_is_told_once(rig):
    """A task that is pending for a week must not fill its history with that."""
    task_id = rig.sandbox.add_task(PAIR, states=("PENDING", "SUCCESS"), polls_per_state=5)
    await rig.fetch(task_id)
    assert (await rig.history(task_id)).count("status") == 2
    assert (await rig.task(task_id)).polls == 6


async def test_the_manifest_tells_what_was_proved(rig):
    task_id = rig.add()
    await rig.fetch(task_id)
    manifest = rig.manifest(task_id)
    assert (manifest["task_id"], manifest["verified"]) == (task_id, "full")
    for entry, key in zip(manifest["files"], PAIR, strict=True):
        assert entry["key"] == key
        assert entry["size"] == len(PAIR[key])
        assert entry["crc64ecma"] == str(crc64.xz(PAIR[key]))
        assert entry["crc64_confirmed"] is True
        assert entry["etag"] == rig.sandbox.store.get(key).etag


async def test_no_part_of_a_link_is_ever_written_down(rig):
    """A signed link opens the object for whoever reads the manifest, the state or its log."""
    task_id = rig.add()
    await rig.fetch(task_id)
    written = rig.all_written()
    assert not [secret for secret in SECRETS if secret.encode() in written]
    assert rig.sandbox.app_secret.encode() not in written


async def test_the_index_is_never_older_than_its_vcf(rig):
    """Htslib warns of it at every use, and people learn to overlook its warnings."""
    task_id = rig.add(dict(reversed(PAIR.items())))  # the index arrives first
    await rig.fetch(task_id, parallel_files=1)
    vcf = (rig.final(task_id) / "a.vcf.gz").stat().st_mtime_ns
    assert (rig.final(task_id) / "a.vcf.gz.tbi").stat().st_mtime_ns >= vcf


async def test_the_reporter_hears_of_every_byte_and_of_the_end(rig):
    task_id = rig.sandbox.add_task(PAIR)
    await rig.fetch(task_id)
    heard = rig.heard
    assert heard.of("polled") == [("PENDING",), ("STARTED",)]
    assert heard.of("planned") == [(["a.vcf.gz", "a.vcf.gz.tbi"],)]
    assert sum(delta for _, delta in heard.of("received")) == len(VCF) + len(TBI)
    assert {name for (name,) in heard.of("done")} == {"a.vcf.gz", "a.vcf.gz.tbi"}
    assert [name for (name,) in heard.of("verifying")] == ["a.vcf.gz", "a.vcf.gz.tbi"]
    assert heard.facts[-1] == ("finished",)


# What a second fetch does


async def test_a_second_fetch_moves_nothing_and_asks_nobody(rig):
    task_id = rig.add()
    first = await rig.fetch(task_id)
    before = tree(rig.final(task_id)), await rig.history(task_id)
    rig.forget()
    second = await rig.fetch(task_id)
    assert second.already_published
    assert (second.received_bytes, second.files) == (0, first.files)
    assert (rig.sandbox.store.requests, rig.calls) == ([], [])
    assert (tree(rig.final(task_id)), await rig.history(task_id)) == before


def _lose(path):
    path.unlink()


def _shorten(path):
    path.write_bytes(path.read_bytes()[:-1])


def _spoil_manifest(path):
    (path.parent / "bge-manifest.json").write_bytes(b"\0" * 100)


@pytest.mark.parametrize("damage", [_lose, _shorten, _spoil_manifest])
async def test_a_published_result_that_is_damaged_is_set_aside_and_fetched_again(rig, damage):
    """Bad local data must not fail for ever, and must not be taken for good; nor is it deleted."""
    task_id = rig.add()
    await rig.fetch(task_id)
    damage(rig.final(task_id) / "a.vcf.gz.tbi")
    left = tree(rig.final(task_id))
    report = await rig.fetch(task_id)
    assert not report.already_published
    assert rig.published(task_id) == {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI}
    (aside,) = rig.dest.glob(f"{task_id}.damaged-*")
    assert tree(aside) == left
    assert str(aside) in rig.heard.notes[0]
    assert "damaged" in await rig.history(task_id)


async def test_a_result_that_was_moved_away_is_fetched_anew(rig):
    """Its old checkpoints tell of bytes that are not there any more."""
    task_id = rig.add()
    await rig.fetch(task_id)
    rig.final(task_id).rename(rig.directory / "elsewhere")
    report = await rig.fetch(task_id)
    assert (report.already_published, report.received_bytes) == (False, report.size)
    assert rig.published(task_id) == {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI}


async def test_a_crash_behind_the_rename_is_healed_without_moving_a_byte(rig):
    task_id = rig.add()
    await rig.fetch(task_id)
    task = await rig.task(task_id)
    await rig.store.call(StateStore.set_phase, task.id, Phase.VERIFYING)
    rig.forget()
    report = await rig.fetch(task_id)
    assert report.already_published
    assert (rig.sandbox.store.requests, rig.calls) == ([], [])
    task = await rig.task(task_id)
    assert task.phase is Phase.PUBLISHED
    assert task.published_at is not None


async def test_a_crash_before_the_rename_costs_a_probe_of_each_file(rig):
    """Between two renames one file has its name already and the other has not."""
    task_id = rig.add()
    await rig.fetch(task_id)
    final, partial = rig.final(task_id), rig.partial(task_id)
    final.rename(partial)
    (partial / "a.vcf.gz").rename(partial / "a.vcf.gz.part")
    task = await rig.task(task_id)
    await rig.store.call(StateStore.set_phase, task.id, Phase.VERIFYING)
    rig.forget()
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI}
    assert (report.received_bytes, report.resumed_bytes) == (0, report.size)
    assert rig.moved == 2


# Which results there are


async def test_one_file_alone_is_a_result(rig):
    task_id = rig.add({"deep/in/folders/notes.txt": NOTES})
    await rig.fetch(task_id)
    assert rig.published(task_id) == {"notes.txt": NOTES}


async def test_an_empty_file_is_a_file(rig):
    task_id = rig.add({"run/empty.txt": b"", "run/notes.txt": NOTES})
    await rig.fetch(task_id)
    assert rig.published(task_id) == {"empty.txt": b"", "notes.txt": NOTES}


async def test_two_files_of_one_name_from_two_folders_both_survive(rig):
    other, other_index = samples.other_pair()
    task_id = rig.add(
        {
            "run/one/a.vcf.gz": VCF,
            "run/one/a.vcf.gz.tbi": TBI,
            "run/two/deep/a.vcf.gz": other,
            "run/two/deep/a.vcf.gz.tbi": other_index,
        }
    )
    await rig.fetch(task_id)
    assert rig.published(task_id) == {
        "one/a.vcf.gz": VCF,
        "one/a.vcf.gz.tbi": TBI,
        "two/deep/a.vcf.gz": other,
        "two/deep/a.vcf.gz.tbi": other_index,
    }


async def test_names_in_other_scripts_survive(rig):
    task_id = rig.add({"结果/样本 1.txt": NOTES, "结果/100%.txt": NOTES})
    await rig.fetch(task_id)
    assert rig.published(task_id) == {"样本 1.txt": NOTES, "100%.txt": NOTES}


async def test_checksum_files_are_those_of_the_files(rig):
    task_id = rig.add()
    await rig.fetch(task_id, checksums=("sha256", "md5"))
    for algorithm in ("sha256", "md5"):
        lines = (rig.final(task_id) / f"{algorithm.upper()}SUMS").read_text().splitlines()
        assert lines == [
            f"{hashlib.new(algorithm, VCF).hexdigest()}  a.vcf.gz",
            f"{hashlib.new(algorithm, TBI).hexdigest()}  a.vcf.gz.tbi",
        ]


async def test_an_untidy_result_passes_with_a_warning_that_stays(rig):
    """A VCF without an index may be what was asked for; whoever reads the manifest must know."""
    task_id = rig.add({"run/a.vcf.gz": VCF})
    report = await rig.fetch(task_id)
    (warning,) = report.warnings
    assert "there is no index" in warning
    assert rig.manifest(task_id)["warnings"] == [warning]
    assert rig.heard.notes == [f"Warning: {warning}"]
    (verified,) = [event for event in await rig.events(task_id) if event.kind == "verified"]
    assert verified.facts == {"warnings": [warning], "level": "full"}
    assert (await rig.fetch(task_id)).warnings == report.warnings


async def test_an_untidy_header_passes_with_a_warning(rig):
    without_contigs = [
        line for line in samples.unbgzf(VCF).splitlines(keepends=True) if b"##contig" not in line
    ]
    untidy = samples.bgzf(b"".join(without_contigs))
    task_id = rig.add({"run/a.vcf.gz": untidy})
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == {"a.vcf.gz": untidy}
    assert any("header" in warning for warning in report.warnings), report.warnings


async def test_unchecked_is_written_down(rig):
    """A result that nobody looked at must not pass for one that was proved."""
    task_id = rig.add({"run/a.vcf.gz": b"no vcf at all"})
    await rig.fetch(task_id, verify="off")
    assert rig.manifest(task_id)["verified"] == "off"
    (verified,) = [event for event in await rig.events(task_id) if event.kind == "verified"]
    assert verified.message == "No check was wanted"


# When the result's list changes between two runs


async def _left_by_another_plan(rig, files):
    """Let a run of these files, and one that the store does not have, fail; return the task."""
    task_id = rig.add(files)
    rig.sandbox.platform.add_task(task_id, files=[*files, "run/gone.txt"], states=READY)
    await rig.fails(task_id, ObjectMissing, parallel_files=1)
    rig.forget()
    return task_id


async def test_a_file_that_is_in_the_result_no_more_is_not_published(rig):
    """What an older plan has left was never held against this result."""
    task_id = await _left_by_another_plan(rig, {**PAIR, "run/old/notes.txt": NOTES})
    assert (rig.partial(task_id) / "old/notes.txt.part").exists()
    rig.sandbox.platform.add_task(task_id, files=list(PAIR), states=READY)
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI}
    assert not (rig.final(task_id) / "old").exists()
    assert (report.received_bytes, rig.moved) == (0, 2)


async def test_a_file_that_is_new_in_the_result_is_all_that_moves(rig):
    task_id = await _left_by_another_plan(rig, PAIR)
    rig.add({**PAIR, "run/notes.txt": NOTES}, task_id=task_id)
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI, "notes.txt": NOTES}
    assert (report.received_bytes, report.resumed_bytes) == (len(NOTES), len(VCF) + len(TBI))


async def test_a_plan_whose_places_move_begins_anew_in_the_new_places(rig):
    """With one folder less, the files of the other are at the top."""
    task_id = await _left_by_another_plan(rig, {"run/one/a.txt": NOTES, "run/two/a.txt": NOTES})
    rig.sandbox.platform.add_task(task_id, files=["run/one/a.txt"], states=READY)
    await rig.fetch(task_id)
    assert rig.published(task_id) == {"a.txt": NOTES}


async def test_an_object_that_was_replaced_between_two_runs_is_fetched_whole(rig):
    """Two versions never meet in one file, however much of the old one is on disk."""
    task_id = await _left_by_another_plan(rig, PAIR)
    other = samples.other_pair()
    rig.add(dict(zip(PAIR, other, strict=True)), task_id=task_id)
    await rig.fetch(task_id)
    assert rig.published(task_id) == dict(zip(["a.vcf.gz", "a.vcf.gz.tbi"], other, strict=True))


async def test_a_foreign_file_beside_the_parts_is_neither_published_nor_removed(rig):
    task_id = await _left_by_another_plan(rig, PAIR)
    rig.sandbox.platform.add_task(task_id, files=list(PAIR), states=READY)
    (rig.partial(task_id) / "my own notes.txt").write_text("mine")
    error = await rig.fails(task_id, DestinationTaken)
    assert "my own notes.txt" in str(error)
    (rig.partial(task_id) / "my own notes.txt").rename(rig.directory / "mine.txt")
    assert (await rig.fetch(task_id)).received_bytes == 0
    assert rig.published(task_id) == {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI}
