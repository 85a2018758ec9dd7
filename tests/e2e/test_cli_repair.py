"""`verify --repair`: the real program mends a published result, or says why it does not."""

import pytest
from e2e_helpers import PAIR, VCF

from downloader.sandbox import samples

pytest_plugins = ["e2e_helpers"]
STARTS = list(samples.block_starts(VCF))


@pytest.fixture
async def place(program, sandbox):
    """A published result with a flipped byte in its second block."""
    sandbox.add_task(PAIR, task_id="good", states=("SUCCESS",))
    assert (await program.run("fetch", "good", "--quiet")).exit_code == 0
    path = program.dest / "good"
    (path / "a.vcf.gz").write_bytes(samples.flipped_byte(VCF, STARTS[1] + 99))
    sandbox.store.forget_requests()
    return path


async def test_a_damaged_file_is_mended_and_proved(program, place):
    ended = await program.run("verify", "good", "--repair")
    assert ended.exit_code == 0, ended.stderr
    assert ended.stdout == "OK      a.vcf.gz\nOK      a.vcf.gz.tbi\n"
    count = STARTS[2] - STARTS[1]
    assert f"a.vcf.gz: repaired and proved; {count:,} bytes came" in ended.complaints
    assert (place / "a.vcf.gz").read_bytes() == VCF
    assert {path.name for path in place.iterdir()} == {
        "a.vcf.gz",
        "a.vcf.gz.tbi",
        "bge-manifest.json",
    }
    again = await program.run("verify", "good", "--repair")
    assert (again.exit_code, again.stderr) == (0, "")


@pytest.mark.thorough
async def test_what_was_mended_is_told_to_programs_too(program, place):
    ended = await program.run("verify", "--repair", "--json", place)
    kinds = [event["event"] for event in ended.events]
    assert kinds == ["repaired", "verified", "verified"]
    assert ended.events[0] == {
        "event": "repaired",
        "name": "a.vcf.gz",
        "received_bytes": STARTS[2] - STARTS[1],
    }


@pytest.mark.thorough
async def test_another_version_in_the_store_is_no_repair(program, place, sandbox):
    sandbox.store.replace("run/a.vcf.gz", samples.other_pair()[0])
    ended = await program.run("verify", "--repair", place)
    assert ended.exit_code == 5
    assert ended.stdout == "FAILED  a.vcf.gz\nOK      a.vcf.gz.tbi\n"
    assert "does not have the version that was published any more" in ended.complaints[-1]


@pytest.mark.thorough
async def test_without_credentials_what_is_damaged_is_told_all_the_same(program, place):
    secrets = ("BGE_APP_KEY", "BGE_APP_SECRET")
    ended = await program.run("verify", "--repair", place, without=secrets)
    assert ended.exit_code == 2
    assert ended.stdout == "FAILED  a.vcf.gz\nOK      a.vcf.gz.tbi\n"
    assert "app_key" in ended.complaints[-1]
    (place / "a.vcf.gz").write_bytes(VCF)
    assert (await program.run("verify", "--repair", place, without=secrets)).exit_code == 0


async def test_a_damaged_manifest_is_told_with_what_to_do(program, place):
    (place / "bge-manifest.json").write_text("{}")
    ended = await program.run("verify", "--repair", place)
    assert ended.exit_code == 5
    assert "`fetch` of the task sets this result aside and brings it anew" in ended.sentence
