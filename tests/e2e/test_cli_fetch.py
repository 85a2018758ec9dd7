"""`fetch` as people and scripts meet it: what is on disk, what it says, and the exit code."""

import hashlib
import json

import pytest
from e2e_helpers import PAIR, TBI, VCF, published, tree

from downloader.sandbox import samples

pytest_plugins = ["e2e_helpers"]

FILES = {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI}


def add_damaged(sandbox):
    """Add a task whose VCF is damaged in the store itself."""
    damaged = samples.flipped_byte(VCF, len(VCF) // 2)
    return sandbox.add_task({"bad/b.vcf.gz": damaged, "bad/b.vcf.gz.tbi": TBI}, task_id="damaged")


def add_failed(sandbox):
    return sandbox.add_task(PAIR, task_id="failed", states=("PENDING", "FAILURE"))


async def test_a_fetch_publishes_the_files_and_stdout_is_their_place(program, sandbox):
    task_id = sandbox.add_task(PAIR)
    ended = await program.run("fetch", task_id)
    assert ended.exit_code == 0
    assert ended.stdout == f"{program.dest / task_id}\n"
    assert "Published 2 files" in ended.stderr
    assert "every CRC-64 is the store's" in ended.stderr
    assert published(program.dest / task_id) == FILES
    assert [path.name for path in program.dest.iterdir()] == [task_id]


async def test_a_published_task_moves_no_byte_and_says_so(program, sandbox):
    """It does not ask the platform either, so it works when that is away."""
    task_id = sandbox.add_task(PAIR)
    first = await program.run("fetch", task_id)
    before = tree(program.dest)
    sandbox.store.forget_requests()
    sandbox.platform.calls.clear()
    second = await program.run("fetch", task_id)
    assert (second.exit_code, second.stdout) == (0, first.stdout)
    assert "Already published" in second.stderr
    assert "no byte was moved" in second.stderr
    assert sandbox.store.requests == []
    assert sandbox.platform.calls == []
    assert tree(program.dest) == before


async def test_of_several_tasks_every_one_is_tried_and_the_first_failure_is_the_exit_code(
    program, sandbox
):
    """Standard output has the good one's place; the failures are told in their own sentences."""
    tasks = [add_damaged(sandbox), sandbox.add_task(PAIR, task_id="good"), add_failed(sandbox)]
    ended = await program.run("fetch", *tasks, "good")
    assert ended.exit_code == 5
    assert ended.stdout == f"{program.dest / 'good'}\n"
    assert published(program.dest / "good") == FILES
    assert not (program.dest / "damaged").exists()
    assert not (program.dest / "failed").exists()
    assert len(ended.complaints) == 2
    assert any(one.startswith("failed: The platform says") for one in ended.complaints)
    assert any(one.startswith("damaged: b.vcf.gz") for one in ended.complaints)


async def test_json_is_one_object_a_line_and_the_last_of_a_task_is_how_it_ended(program, sandbox):
    tasks = [add_failed(sandbox), sandbox.add_task(PAIR, task_id="good")]
    ended = await program.run("fetch", *tasks, "--json")
    assert ended.exit_code == 3
    of_good = [event for event in ended.events if event["task_id"] == "good"]
    kinds = [event["event"] for event in of_good]
    assert {"polled", "planned", "file_sized", "progress", "file_done", "verifying"} <= {*kinds}
    assert kinds[-1] == "published"
    last = of_good[-1]
    assert last["path"] == str(program.dest / "good")
    assert last["size"] == last["received_bytes"] == len(VCF) + len(TBI)
    assert [(file["name"], file["size"]) for file in last["files"]] == [
        ("a.vcf.gz", len(VCF)),
        ("a.vcf.gz.tbi", len(TBI)),
    ]
    failed = [event for event in ended.events if event["task_id"] == "failed"][-1]
    assert failed["event"] == "failed"
    assert failed["error"] == "TaskFailed"
    assert failed["exit_code"] == 3
    assert failed["message"] in ended.stderr


@pytest.mark.thorough
async def test_quiet_says_nothing_but_errors(program, sandbox):
    good = sandbox.add_task(PAIR)
    ended = await program.run("fetch", "--quiet", good, add_failed(sandbox))
    assert ended.exit_code == 3
    assert ended.stdout == f"{program.dest / good}\n"
    assert "has failed (FAILURE)" in ended.sentence


@pytest.mark.thorough
async def test_no_wait_asks_once(program, sandbox):
    task_id = sandbox.add_task(PAIR)
    ended = await program.run("fetch", task_id, "--no-wait")
    assert ended.exit_code == 4
    assert "has no result yet" in ended.sentence
    assert sandbox.platform.polls[task_id] == 1


async def test_the_deadline_ends_a_wait_and_hints_at_unknown_ids(program):
    ended = await program.run("fetch", "nobodys-task", "--timeout", "0.1", "--quiet")
    assert ended.exit_code == 4
    assert ended.stdout == ""
    assert "after 0.1 s" in ended.sentence
    assert "PENDING of ids it does not know too" in ended.sentence


async def test_a_task_that_failed_there_is_told_in_the_platforms_words(program, sandbox):
    task_id = sandbox.add_task(states=("FAILURE",), result="样本不存在 (no such sample)")
    ended = await program.run("fetch", task_id)
    assert (ended.exit_code, ended.stdout) == (3, "")
    assert ended.sentence.endswith("has failed (FAILURE): 样本不存在 (no such sample)")


@pytest.mark.thorough
async def test_a_damaged_vcf_is_never_published(program, sandbox):
    """The store's checksum is right, for the store has the damage too; its bytes are kept."""
    ended = await program.run("fetch", add_damaged(sandbox), "--quiet")
    assert (ended.exit_code, ended.stdout) == (5, "")
    assert "b.vcf.gz" in ended.sentence
    assert "Nothing was published" in ended.sentence
    assert [path.name for path in program.dest.iterdir()] == ["damaged.partial"]


@pytest.mark.thorough
async def test_a_file_that_is_not_in_the_store_fails_the_task(program, sandbox):
    ended = await program.run("fetch", sandbox.add_task(["gone.vcf.gz"]), "--quiet")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert "NoSuchKey" in ended.sentence


@pytest.mark.thorough
async def test_checksum_files_are_what_their_tools_would_write(program, sandbox):
    sandbox.add_task({"run/x/a.bin": b"abc", "run/y/a.bin": b""}, task_id="sums")
    ended = await program.run("fetch", "sums", "--checksums", "sha256,md5")
    assert ended.exit_code == 0
    for algorithm in ("sha256", "md5"):
        digests = [hashlib.new(algorithm, data).hexdigest() for data in (b"abc", b"")]
        written = (program.dest / "sums" / f"{algorithm.upper()}SUMS").read_text()
        assert written == f"{digests[0]}  x/a.bin\n{digests[1]}  y/a.bin\n"


async def test_the_manifest_tells_what_was_proved(program, sandbox):
    """Two files of one name from two folders both survive, in their folders."""
    sandbox.add_task({"k/1/a.bin": b"one", "k/2/a.bin": b"two"}, task_id="two")
    await program.run("fetch", "two")
    manifest = json.loads((program.dest / "two" / "bge-manifest.json").read_text())
    assert manifest["task_id"] == "two"
    assert [(file["name"], file["key"], file["crc64_confirmed"]) for file in manifest["files"]] == [
        ("1/a.bin", "k/1/a.bin", True),
        ("2/a.bin", "k/2/a.bin", True),
    ]
    assert published(program.dest / "two") == {
        "1": None,
        "1/a.bin": b"one",
        "2": None,
        "2/a.bin": b"two",
    }
