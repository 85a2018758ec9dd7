"""What `verify` finds in results that were really published, and what it leaves as it is."""

import gzip
import os
import shutil
from pathlib import Path

import pytest
from fastcrc import crc64
from fetch_helpers import NOTES, PAIR, TBI, VCF, tree
from pipe_helpers import lonely_pipe

from downloader.errors import InvalidArgument, VerificationFailed
from downloader.recheck import recheck, results_in
from downloader.sandbox import samples

pytest_plugins = ["fetch_helpers"]


@pytest.fixture
async def result(rig):
    """A published result, with a file in a folder of its own."""
    task_id = rig.add({**PAIR, "run/logs/notes.txt": NOTES})
    await rig.fetch(task_id)
    return rig.final(task_id)


async def test_a_published_result_is_good(result):
    names = []
    found = await recheck(result, level="full", on_file=names.append)
    assert found.problems == []
    assert found.warnings == ()
    assert names == [finding.name for finding in found.findings]
    assert {finding.name: finding.size for finding in found.findings} == {
        "a.vcf.gz": len(VCF),
        "a.vcf.gz.tbi": len(TBI),
        "logs/notes.txt": len(NOTES),
    }


async def test_looking_changes_nothing(result):
    def facts():
        return {path: path.stat().st_mtime_ns for path in [result, *result.rglob("*")]}

    before = tree(result), facts()
    await recheck(result, level="full")
    assert (tree(result), facts()) == before


@pytest.mark.parametrize("level", ["full", "quick", "off"])
async def test_one_flipped_byte_is_found_at_every_level(result, level):
    """The checks of the VCF may be off; that the bytes are the store's is never off."""
    path = result / "a.vcf.gz"
    wrong = samples.flipped_byte(VCF, len(VCF) // 2)
    path.write_bytes(wrong)
    found = await recheck(result, level=level)
    problem = found.problems[0]
    assert problem.startswith("a.vcf.gz is damaged")
    assert str(crc64.xz(VCF)) in problem
    assert str(crc64.xz(wrong)) in problem


async def test_all_files_are_looked_at_whatever_is_found_in_the_first(result):
    (result / "a.vcf.gz").unlink()
    (result / "logs/notes.txt").write_bytes(NOTES[:-1])
    found = await recheck(result, level="off")
    assert len(found.findings) == 3
    missing, short = found.problems
    assert missing.startswith("a.vcf.gz is not there")
    assert f"notes.txt has {len(NOTES) - 1} bytes, and the manifest says {len(NOTES)}" in short


async def test_a_stranger_is_warned_of_and_is_no_problem(result):
    (result / "logs/mine.txt").write_text("mine")
    (result / "link").symlink_to("/nowhere")
    (result / "SHA256SUMS").write_text("")
    found = await recheck(result, level="full")
    assert found.problems == []
    assert found.warnings == (
        "link: it is not in the manifest.",
        "logs/mine.txt: it is not in the manifest.",
    )


async def test_a_pipe_in_a_files_place_is_not_waited_for(rig):
    """It has as many bytes as an empty file."""
    task_id = rig.add({"run/empty.txt": b"", "run/notes.txt": NOTES})
    await rig.fetch(task_id)
    path = rig.final(task_id) / "empty.txt"
    path.unlink()
    os.mkfifo(path)
    found = await recheck(rig.final(task_id), level="full")
    assert found.problems == ["empty.txt is no file"]


async def test_what_a_repair_has_left_is_no_stranger(result):
    (result / "bge-repair~0123abcd.partial").mkdir()
    (result / "bge-repair~0123abcd.partial/0123456789abcdef.part").touch()
    assert (await recheck(result, level="full")).warnings == ()


async def test_one_file_of_a_result_is_held_against_its_manifest(result):
    found = await recheck(result / "a.vcf.gz", level="full")
    assert (found.problems, len(found.findings), found.warnings) == ([], 1, ())
    assert found.findings[0].crc64ecma == str(crc64.xz(VCF))
    (result / "a.vcf.gz").write_bytes(samples.flipped_byte(VCF, 100))
    assert len((await recheck(result / "a.vcf.gz", level="full")).problems) == 1


async def test_an_index_alone_is_checked_with_its_vcf(tmp_path):
    (tmp_path / "a.vcf.gz").write_bytes(VCF)
    (tmp_path / "a.vcf.gz.tbi").write_bytes(samples.wrong_index())
    found = await recheck(tmp_path / "a.vcf.gz.tbi", level="full")
    assert found.manifest is None
    assert len(found.problems) == 1


async def test_a_folder_without_a_manifest_is_checked_by_its_files_own_structure(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/good.vcf.gz").write_bytes(VCF)
    (tmp_path / "deep/good.vcf.gz.tbi").write_bytes(TBI)
    (tmp_path / "bad.vcf.gz").write_bytes(samples.without_eof(VCF))
    (tmp_path / "plain.vcf").write_bytes(gzip.decompress(VCF))
    (tmp_path / "notes.txt").write_bytes(NOTES)
    found = await recheck(tmp_path, level="full")
    assert found.manifest is None
    assert {finding.name: finding.problem is None for finding in found.findings} == {
        "bad.vcf.gz": False,
        "deep/good.vcf.gz": True,
        "deep/good.vcf.gz.tbi": True,
        "plain.vcf": True,
    }
    assert [finding.crc64ecma for finding in found.findings] == [None] * 4


async def test_a_damaged_index_is_not_told_twice_by_its_vcf(result):
    (result / "a.vcf.gz.tbi").write_bytes(samples.flipped_byte(TBI, len(TBI) // 2))
    found = await recheck(result, level="off")
    assert [problem.split()[0] for problem in found.problems] == ["a.vcf.gz.tbi"]


@pytest.mark.parametrize("name", ["t1.partial", "t1.partial/a.vcf.gz.part", "t1.partial/a.vcf.gz"])
async def test_what_is_not_published_is_refused(tmp_path, name):
    """It would be called wrong, though it is only not finished."""
    (tmp_path / "t1.partial").mkdir()
    for part in ("a.vcf.gz.part", "a.vcf.gz"):
        (tmp_path / "t1.partial" / part).write_bytes(VCF[:100])
    with pytest.raises(InvalidArgument, match="run the same fetch again"):
        await recheck(tmp_path / name, level="full")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 50,
        b"[]",
        b"{}",
        b'{"task_id": "t", "published_at": "", "files": [{"name": "../../etc/passwd"}]}',
    ],
)
async def test_a_damaged_manifest_is_told(result, text):
    (result / "bge-manifest.json").write_bytes(text)
    with pytest.raises(VerificationFailed, match=r"bge-manifest\.json is damaged") as caught:
        await recheck(result, level="full")
    assert caught.value.exit_code == 5


async def test_what_is_not_there_or_has_nothing_to_check_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_bytes(NOTES)
    with pytest.raises(InvalidArgument, match="nothing to verify"):
        await recheck(tmp_path / "empty", level="full")
    with pytest.raises(InvalidArgument, match="is not there"):
        await recheck(tmp_path / "missing", level="full")


async def test_a_warning_about_the_content_is_passed_on(tmp_path):
    (tmp_path / "a.vcf.gz").write_bytes(VCF)
    found = await recheck(tmp_path / "a.vcf.gz", level="full")
    assert found.problems == []
    assert "there is no index" in found.warnings[0]


async def test_a_pair_is_checked_once_though_it_is_two_files(tmp_path):
    """Reading a VCF of 100 GB twice costs an hour, and each warning would come twice."""
    (tmp_path / "a.vcf.gz").write_bytes(VCF)
    (tmp_path / "a.vcf.gz.tbi").write_bytes(TBI)
    os.utime(tmp_path / "a.vcf.gz.tbi", (0, 0))
    found = await recheck(tmp_path, level="full")
    assert len(found.findings) == 2
    assert len(found.warnings) == 1
    assert "older than" in found.warnings[0]


async def test_a_damaged_vcf_does_not_blame_its_index(result):
    (result / "a.vcf.gz").write_bytes(samples.flipped_byte(VCF, len(VCF) // 2))
    found = await recheck(result, level="full")
    assert [finding.name for finding in found.findings if finding.problem] == ["a.vcf.gz"]


async def test_an_index_of_another_vcf_is_the_one_at_fault(tmp_path):
    (tmp_path / "a.vcf.gz").write_bytes(VCF)
    (tmp_path / "a.vcf.gz.tbi").write_bytes(samples.wrong_index())
    found = await recheck(tmp_path, level="full")
    assert [finding.name for finding in found.findings if finding.problem] == ["a.vcf.gz.tbi"]


async def test_a_damaged_index_does_not_blame_its_vcf(tmp_path):
    (tmp_path / "a.vcf.gz").write_bytes(VCF)
    (tmp_path / "a.vcf.gz.tbi").write_bytes(TBI[:-30])
    found = await recheck(tmp_path, level="full")
    assert [finding.name for finding in found.findings if finding.problem] == ["a.vcf.gz.tbi"]


async def test_a_vcf_that_cannot_be_read_does_not_blame_its_index(open_directory, as_nobody):
    (open_directory / "a.vcf.gz").write_bytes(VCF)
    (open_directory / "a.vcf.gz.tbi").write_bytes(TBI)
    (open_directory / "a.vcf.gz").chmod(0)
    with as_nobody():
        found = await recheck(open_directory, level="full")
    assert [finding.name for finding in found.findings if finding.problem] == ["a.vcf.gz"]


async def test_a_file_in_a_folder_of_a_result_is_held_against_its_manifest(result):
    """Its manifest stands further up."""
    path = result / "logs/notes.txt"
    found = await recheck(path, level="off")
    assert [finding.name for finding in found.findings] == ["logs/notes.txt"]
    assert found.findings[0].crc64ecma == str(crc64.xz(NOTES))
    path.write_bytes(NOTES[::-1])
    [problem] = (await recheck(path, level="off")).problems
    assert problem.startswith("logs/notes.txt is damaged")


@pytest.mark.parametrize("name", ["a.vcf.gz", "."])
async def test_with_the_checks_off_nothing_is_good_without_a_manifest(tmp_path, name):
    (tmp_path / "a.vcf.gz").write_bytes(samples.without_eof(VCF))
    with pytest.raises(InvalidArgument, match="nothing to verify it by"):
        await recheck(tmp_path / name, level="off")


@pytest.mark.parametrize("name", ["data.bin", "notes.txt.gz"])
async def test_a_file_that_nothing_can_prove_is_refused(tmp_path, name):
    """To say OK of it would be no truth."""
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(InvalidArgument, match="nothing to verify it by"):
        await recheck(tmp_path / name, level="full")


async def test_a_device_is_refused():
    with pytest.raises(InvalidArgument, match="nothing to verify it by"):
        await recheck(Path("/dev/null"), level="full")


async def test_nobody_waits_for_a_pipe_in_the_place_of_an_index(tmp_path):
    """Htslib opens an index by itself, whoever has asked for it."""
    vcf, index = samples.write_pair(tmp_path, "a.vcf.gz", records=3)
    index.unlink()
    with lonely_pipe(index):
        for path in (vcf, tmp_path):
            found = await recheck(path, level="full")
            assert found.problems == ["a.vcf.gz.tbi beside it is no file; move it away"]


# Of a folder of results


@pytest.fixture
async def folder(rig):
    """Give a destination with two results, the second damaged, and one that was set aside."""
    places = []
    for _ in range(2):
        task_id = rig.add({"run/report.bin": b"whole"})
        await rig.fetch(task_id)
        places.append(rig.final(task_id))
    shutil.copytree(places[1], f"{places[1]}.damaged-20261124T000000Z")
    (places[1] / "report.bin").write_bytes(b"wrong")
    return places


async def test_a_folder_of_results_means_each_of_them(folder):
    meant = results_in(folder[0].parent)
    assert meant == sorted(folder)
    found = {path: await recheck(path, level="full") for path in meant}
    assert [len(found[path].problems) for path in folder] == [0, 1]


async def test_what_is_of_no_result_is_looked_at_for_itself(folder):
    vcf, _ = samples.write_pair(folder[0].parent, "own.vcf.gz", records=3)
    samples.write_pair(folder[0], "of-the-result.vcf.gz", records=3)
    *results, rest = results_in(folder[0].parent)
    assert (results, rest) == (sorted(folder), folder[0].parent)
    found = await recheck(rest, level="full")
    assert [one.name for one in found.findings] == [vcf.name, f"{vcf.name}.tbi"]


def test_a_result_a_file_and_what_is_not_there_mean_themselves(folder):
    for path in (folder[0], folder[0] / "report.bin", folder[0] / "gone"):
        assert results_in(path) == [path]
