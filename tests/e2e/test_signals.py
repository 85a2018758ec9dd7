"""Ctrl-C and SIGTERM, whatever the program is doing: it ends within 5 s, and nothing is lost."""

import asyncio
import contextlib
import os
import shlex
import signal
import sqlite3
import sys
from pathlib import Path

import pytest
from e2e_helpers import MIB, PAIR, published, until

from downloader.sandbox import Fault, PlatformFault, samples
from downloader.units import format_bytes

pytest_plugins = ["e2e_helpers"]

CONTRACT_SECONDS = 5
FIRST = 8 * MIB  # what the first request asks for
HELD = 6 * MIB  # of the big one; more is on its way when the signal comes
BIG = samples.incompressible(12 * MIB, seed=3)


def add_stalling(sandbox, name):
    """Add a task with one file whose first segment stops in the middle, once."""
    sandbox.add_task({f"{name}/data.bin": BIG}, task_id=name)
    sandbox.store.inject(Fault.STALL, key=f"{name}/data.bin", covering=0, after=3 * MIB)


def holds_most(partial):
    """Tell whether all is in the part file but what is held back and what is in a buffer."""
    part = partial / "data.bin.part"
    data = part.read_bytes() if part.exists() else b""
    return data[: 2 * MIB] == BIG[: 2 * MIB] and data[FIRST:] == BIG[FIRST:]


def told(ended):
    """Return what the last sentence says is safe."""
    sentence = ended.complaints[-1]
    assert sentence.startswith("Interrupted; ")
    return sentence.removeprefix("Interrupted; ").partition(" are safe on disk.")[0]


async def stopped(running, number):
    """Send the signal and return how it ended, which must be soon."""
    running.signal(number)
    return await asyncio.wait_for(running.ends(), CONTRACT_SECONDS)


async def typed(program, ended):
    """Type the very command that the program has named; return how it ended."""
    command = ended.stderr.rpartition("To go on: ")[2].strip()
    binaries = Path(sys.executable).parent
    shell = await program.start_python(
        "-c",
        "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])",
        *shlex.split(command),
        environment={"PATH": f"{binaries}:{program.environment['PATH']}"},
    )
    return await shell.ends()


async def test_a_signal_while_waiting_for_the_platform(program, sandbox):
    """The platform has not even answered; the same command goes on waiting, and finishes."""
    task_id = sandbox.add_task(PAIR)
    held = sandbox.platform.inject(PlatformFault.HANG)
    running = await program.start("fetch", task_id, "--checksums", "md5")
    await held.happened.wait()
    ended = await stopped(running, signal.SIGINT)
    assert (ended.exit_code, ended.stdout) == (130, "")
    assert ended.sentence == (
        "Interrupted before any byte was safe on disk. "
        f"To go on: bge-downloader fetch {task_id} --checksums md5"
    )
    again = await typed(program, ended)
    assert (again.exit_code, again.stdout) == (0, f"{program.dest / task_id}\n")
    assert (program.dest / task_id / "MD5SUMS").exists()


async def test_a_signal_in_a_transfer_keeps_what_it_says(program, sandbox):
    """Not one byte that it calls safe is fetched again."""
    add_stalling(sandbox, "task")
    running = await program.start("fetch", "task", "--json")
    await until(lambda: holds_most(program.dest / "task.partial"))
    ended = await stopped(running, signal.SIGTERM)
    assert ended.exit_code == 143
    assert not (program.dest / "task").exists()
    last = ended.events[-1]
    safe = last.pop("safe_bytes")
    assert safe >= HELD
    assert last == {"event": "interrupted", "task_id": "task", "size": len(BIG), "exit_code": 143}
    sandbox.store.forget_requests()
    again = await typed(program, ended)
    assert again.exit_code == 0
    resumed = again.events[-1]["resumed_bytes"]
    assert resumed == safe
    assert told(ended) == f"{format_bytes(resumed)} of 12.0 MiB ({100 * resumed // len(BIG)} %)"
    assert sandbox.store.bytes_served == len(BIG) - resumed
    assert published(program.dest / "task") == {"data.bin": BIG}


@pytest.mark.thorough
async def test_of_several_tasks_each_one_saves_its_last_bytes(program, sandbox):
    for name in ("one", "two"):
        add_stalling(sandbox, name)
    running = await program.start("fetch", "one", "two", "--json")
    await until(
        lambda: all(holds_most(program.dest / f"{name}.partial") for name in ("one", "two"))
    )
    ended = await stopped(running, signal.SIGINT)
    assert ended.exit_code == 130
    again = await typed(program, ended)
    ends = [event for event in again.events if event["event"] == "published"]
    resumed = [end["resumed_bytes"] for end in ends]
    assert len(resumed) == 2
    assert min(resumed) >= HELD
    assert told(ended).startswith(f"{format_bytes(sum(resumed))} of 24.0 MiB")


async def test_a_second_signal_ends_it_at_once(program, sandbox):
    """Here the first one cannot: somebody holds a lock on the state, which the drain waits for."""
    add_stalling(sandbox, "task")
    running = await program.start("fetch", "task")
    await until(lambda: holds_most(program.dest / "task.partial"))
    with contextlib.closing(sqlite3.connect(program.state, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        running.signal(signal.SIGTERM)
        ended = await stopped(running, signal.SIGINT)
    assert ended.exit_code in (130, 143)  # of two at once, either may come first
    assert "Traceback" not in ended.stderr
    assert (await program.run("fetch", "task")).exit_code == 0
    assert published(program.dest / "task") == {"data.bin": BIG}


@pytest.mark.thorough
async def test_a_signal_while_the_files_are_verified(program, sandbox, tmp_path):
    """The checks of a large VCF are stopped; they begin anew, and nothing travels again."""
    vcf, tbi = samples.write_pair(tmp_path / "made", "large.vcf.gz", records=80_000)
    task_id = sandbox.add_task({"run/large.vcf.gz": vcf, "run/large.vcf.gz.tbi": tbi})
    running = await program.start("fetch", task_id)
    await running.says("checking large.vcf.gz")
    ended = await stopped(running, signal.SIGTERM)
    assert (ended.exit_code, ended.stdout) == (143, "")
    assert "(100 %) are safe on disk" in ended.complaints[-1]
    assert not (program.dest / task_id).exists()
    sandbox.store.forget_requests()
    assert (await typed(program, ended)).exit_code == 0
    assert published(program.dest / task_id)["large.vcf.gz"] == vcf.read_bytes()
    assert sandbox.store.bytes_served <= 2  # a byte of each file, to ask for its version


@pytest.mark.thorough
async def test_json_tells_each_unfinished_task_and_no_size_that_nobody_knows(program, sandbox):
    done, waiting = sandbox.add_task(PAIR), sandbox.add_task(PAIR, states=("PENDING",))
    running = await program.start("fetch", done, waiting, "--json", "--quiet")
    await running.says('"event": "published"', stream="stdout")
    ended = await stopped(running, signal.SIGINT)
    assert (ended.exit_code, ended.stderr) == (130, "")
    interrupted = {"event": "interrupted", "task_id": waiting, "safe_bytes": 0, "size": None}
    told = [event for event in ended.events if event["event"] == "interrupted"]
    assert told == [{**interrupted, "exit_code": 130}]


@pytest.mark.thorough
async def test_quiet_is_quiet_when_interrupted_too(program, sandbox):
    task_id = sandbox.add_task(PAIR)
    held = sandbox.platform.inject(PlatformFault.HANG)
    running = await program.start("fetch", "-q", task_id)
    await held.happened.wait()
    ended = await stopped(running, signal.SIGINT)
    assert (ended.exit_code, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.thorough
async def test_an_interrupted_demo_takes_its_fetch_with_it(program, tmp_path):
    demo = await program.start("demo", "--dest", tmp_path / "demo", "--records", "2000")
    await demo.says("PENDING")  # the fetch's own words
    ended = await stopped(demo, signal.SIGINT)
    assert ended.exit_code == 130
    assert "Traceback" not in ended.stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)
