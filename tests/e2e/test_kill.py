"""`kill -9` at any point, and two processes at once: right bytes in the end, each fetched once."""

import os
import random
import signal

import pytest
from e2e_helpers import MIB, PAIR, TBI, VCF, published, until

from downloader.sandbox import Fault, samples

pytest_plugins = ["e2e_helpers"]

# A run that is killed loses what came since its last checkpoint, 0.2 s before or a bit more. So
# the whole must take several times longer than all that is lost, however fast the line is.
LONG = bool(os.environ.get("BGE_TEST_LONG"))
SIZE, RATE = (200 * MIB, 20 * MIB) if LONG else (24 * MIB, 5 * MIB)
KILLS = 10
BIG = samples.incompressible(12 * MIB)


@pytest.mark.timeout(300 if LONG else 60)
@pytest.mark.thorough
async def test_killed_at_ten_random_points_it_goes_on_from_there(program, sandbox):
    """The bytes are right in the end, and what was here already is not fetched again.

    Some points lie so close together that the program is killed before it has begun.
    """
    data = samples.incompressible(SIZE)
    sandbox.add_task({"run/data.bin": data, **PAIR}, task_id="task")
    total = SIZE + len(VCF) + len(TBI)
    rng = random.Random(7)
    points = sorted(total * rng.uniform(0, 0.9) for _ in range(KILLS))
    sandbox.store.total_bytes_per_second = RATE
    for point in points:
        running = await program.start("fetch", "task", "--quiet")
        await until(lambda point=point: sandbox.store.bytes_served >= point)
        running.signal(signal.SIGKILL)
        assert (await running.ends()).exit_code == -signal.SIGKILL
        assert not (program.dest / "task").exists()
    sandbox.store.total_bytes_per_second = None
    ended = await program.run("fetch", "task")
    assert ended.exit_code == 0, ended.stderr
    assert published(program.dest / "task") == {
        "a.vcf.gz": VCF,
        "a.vcf.gz.tbi": TBI,
        "data.bin": data,  # not a VCF, and not taken for one
    }
    assert sandbox.store.bytes_served < 1.5 * total


@pytest.fixture
async def first(program, sandbox):
    """Give a process that fetches `task`; the store holds the last MiBs of it back.

    By one connection: others would help it with what is held back, and some bytes come twice.
    """
    sandbox.add_task({"run/data.bin": BIG}, task_id="task")
    sandbox.store.inject(Fault.STALL, covering=len(BIG) - 1, after=MIB)
    running = await program.start("fetch", "task", "--segments", "1")
    await until(lambda: sandbox.store.bytes_served == 9 * MIB)
    return running


async def test_of_two_processes_one_downloads_and_the_other_follows(program, sandbox, first):
    """Both end well and name the same place; the bytes travel once."""
    second = await program.start("fetch", "task")
    await second.says("is fetching this task already; following it")
    sandbox.store.clear_faults()
    ends = [await first.ends(), await second.ends()]
    assert [end.exit_code for end in ends] == [0, 0]
    assert {end.stdout for end in ends} == {f"{program.dest / 'task'}\n"}
    assert published(program.dest / "task") == {"data.bin": BIG}
    assert sandbox.store.bytes_served == len(BIG)


@pytest.mark.thorough
async def test_the_follower_takes_over_from_one_that_was_killed(program, sandbox, first):
    """A lease ends with its process, and not by the clock only."""
    second = await program.start("fetch", "task")
    await second.says("is fetching this task already; following it")
    first.signal(signal.SIGKILL)
    sandbox.store.clear_faults()
    ended = await second.ends()
    assert (ended.exit_code, ended.stdout) == (0, f"{program.dest / 'task'}\n")
    assert published(program.dest / "task") == {"data.bin": BIG}


@pytest.mark.thorough
async def test_status_does_not_call_a_dead_process_busy(program, first):
    assert "transferring" in (await program.run("status")).stdout
    first.signal(signal.SIGKILL)
    await first.ends()
    assert "interrupted" in (await program.run("status")).stdout


@pytest.mark.thorough
async def test_with_two_states_the_second_process_keeps_its_hands_off(program, sandbox, first):
    """The state does not tell it of the first one; the lock on the directory does."""
    other = program.state.with_name("other.db")
    ended = await program.run("fetch", "task", "--state", other, "--quiet")
    assert ended.exit_code == 1
    assert "Another process is working in" in ended.sentence
    sandbox.store.clear_faults()
    assert (await first.ends()).exit_code == 0
