"""`verify --repair` that is killed or interrupted goes on where it was, without blocks as well."""

import signal

import pytest
from e2e_helpers import MIB, until

from downloader.sandbox import Fault, samples

pytest_plugins = ["e2e_helpers"]
DATA = samples.incompressible(12 * MIB)
COME = 6 * MIB  # before the store holds the rest back


@pytest.fixture
async def place(program, sandbox):
    """A published result with a file in which nothing tells where a flipped byte is."""
    sandbox.add_task({"run/data.bin": DATA}, task_id="good", states=("SUCCESS",))
    assert (await program.run("fetch", "good", "--quiet")).exit_code == 0
    (program.dest / "good/data.bin").write_bytes(samples.flipped_byte(DATA, 99))
    sandbox.store.forget_requests()
    return program.dest / "good"


@pytest.fixture
async def running(program, sandbox, place):
    """Give a repair of which some MiBs are safe; no more will come."""
    sandbox.store.inject(Fault.STALL, covering=COME, after=COME)
    one = {"BGE_SEGMENTS": "1"}
    running = await program.start("verify", "good", "--repair", environment=one)
    await until(lambda: is_noted(place))
    return running


def is_noted(place):
    """Tell whether something of what has come is noted down, and not only the copy of the rest."""
    return any(f", {COME}]" in note.read_text() for note in place.glob("bge-repair~*/*.json"))


def repair_directories(place):
    return [path.name for path in place.iterdir() if path.name.startswith("bge-repair~")]


@pytest.mark.thorough
async def test_a_repair_that_is_killed_fetches_only_the_rest(program, sandbox, place, running):
    before = (place / "data.bin").read_bytes()
    running.signal(signal.SIGKILL)
    assert (await running.ends()).exit_code == -signal.SIGKILL
    assert (place / "data.bin").read_bytes() == before
    sandbox.store.clear_faults()
    sandbox.store.forget_requests()
    looked = await program.run("verify", "good")
    assert "an interrupted repair has left it; `verify --repair` goes on there" in looked.stderr
    ended = await program.run("verify", "good", "--repair")
    assert ended.exit_code == 0, ended.stderr
    assert (place / "data.bin").read_bytes() == DATA
    assert repair_directories(place) == []
    assert sandbox.store.bytes_served == len(DATA) - COME


@pytest.mark.thorough
async def test_a_repair_that_is_interrupted_says_so_and_goes_on(program, sandbox, place, running):
    running.signal(signal.SIGTERM)
    ended = await running.ends()
    assert ended.exit_code == 143
    assert ended.complaints[-1].endswith("what has come is kept, and the same command goes on")
    sandbox.store.clear_faults()
    sandbox.store.forget_requests()
    ended = await program.run("verify", place, "--repair", "--quiet")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "", "")
    assert sandbox.store.bytes_served == len(DATA) - COME


@pytest.mark.thorough
async def test_what_was_left_of_a_file_that_is_whole_by_now_goes_without_asking(
    program, sandbox, place, running
):
    running.signal(signal.SIGKILL)
    await running.ends()
    (place / "data.bin").write_bytes(DATA)
    sandbox.store.forget_requests()
    ended = await program.run("verify", place, "--repair", without=("BGE_APP_KEY",))
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert repair_directories(place) == []
    assert sandbox.store.requests == []
