"""`run`: how the service starts, takes other settings, is killed, and stops; and what it logs."""

import asyncio
import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from cli_helpers import BIG, COMES, has_come, hold_back, impatient, phases, service
from e2e_helpers import PAIR, published, tree, until

from downloader.sandbox import PlatformFault, Sandbox
from state import StateStore

pytest_plugins = ["cli_helpers", "e2e_helpers"]

CONTRACT_SECONDS = 5
ROOMY = {"BGE_MIN_FREE_SPACE": "0"}


def last_event(ended):
    """Return the last line of the log, without time and level."""
    return ended.stderr.splitlines()[-1].split(" ", 2)[2]


def events(ended):
    """Return the log as JSON objects; every line must be one."""
    return [json.loads(line) for line in ended.stderr.splitlines()]


def standard_streams(pid):
    """Return what a process has as stdin, stdout and stderr."""
    return [Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)]


async def stopped(running, number=signal.SIGTERM):
    """Send the signal and return how the service ended, which must be soon."""
    running.signal(number)
    return await asyncio.wait_for(running.ends(), CONTRACT_SECONDS)


async def transferring(program, sandbox, typed, *arguments, **environment):
    """Start the service; return it once half of a task's file has come."""
    hold_back(sandbox)
    typed("add", "task", "-q")
    running = await service(program, *arguments, **environment)
    await until(lambda: has_come(program))
    return running


# Start


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"BGE_SEGMENTS": "many"}, "BGE_SEGMENTS is 'many'"),
        ({"BGE_CALLS_PER_SECOND": "0"}, "a number from 0.01 to 1000"),
        ({"BGE_LIMIT_RATE_TIMES": "always fast"}, "a list of windows such as"),
        ({"BGE_ON_COMPLETE": "./hush"}, "BGE_ON_COMPLETE cannot be used"),
        ({"BGE_WEBHOOK": "http://lab.example.org/hush"}, "BGE_WEBHOOK cannot be used"),
        ({"BGE_WEBHOOK_SECRET_FILE": "/nowhere"}, "/nowhere: No such file"),
        ({"BGE_APP_KEY": ""}, "No app_key was given"),
        ({"BGE_STATE": "mysql://me:hush@host/db"}, "BGE_STATE cannot be used"),
        ({"BGE_DEST": os.fsdecode(b"/data/\xff")}, "a path in UTF-8"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_its_settings_is_one_sentence(program, typed, settings, words):
    before = tree(program.cwd.parent)
    ended = typed("run", **settings)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert words in ended.sentence
    assert "hush" not in ended.sentence
    assert tree(program.cwd.parent) == before


@pytest.mark.thorough
async def test_an_endpoint_that_is_none_is_a_wrong_setting(program):
    before = tree(program.cwd.parent)
    ended = await program.run("run", "--endpoint", "ftp://host")
    assert ended.exit_code == 2
    assert ended.sentence.startswith("The endpoint is no http address")
    assert tree(program.cwd.parent) == before


@pytest.mark.thorough
async def test_a_state_that_is_none_is_named_and_left_as_it_is(program):
    program.state.parent.mkdir()
    program.state.write_bytes(b"my thesis, only copy\n" * 100)
    before = tree(program.cwd.parent)
    ended = await program.run("run")
    assert ended.exit_code == 1
    assert "not a database" in ended.sentence
    assert tree(program.cwd.parent) == before


@pytest.mark.thorough
async def test_with_all_streams_closed_it_brings_what_is_added(program, sandbox, typed):
    """At its own pace, which is a look a second; and no file of ours is taken for a stream."""
    sandbox.add_task(PAIR, task_id="task", states=("SUCCESS",))
    shell = 'exec "$0" -m downloader run 0<&- 1>&- 2>&-'
    replaced = "import os, sys; os.execvp('sh', ['sh', '-c', *sys.argv[1:]])"
    running = await program.start_python("-c", replaced, shell, sys.executable, environment=ROOMY)
    await until(program.state.exists)
    typed("add", "task", "-q")
    await until((program.dest / "task").exists)
    assert standard_streams(running.pid) == [Path(os.devnull)] * 3
    assert {*published(program.dest / "task")} == {*map(os.path.basename, PAIR)}
    assert (await stopped(running)).exit_code == 143


@pytest.mark.thorough
async def test_two_services_share_a_state_and_do_nothing_twice(program, sandbox, typed, store):
    names = [f"task-{number}" for number in range(6)]
    for name in names:
        sandbox.add_task({f"{name}/data.bin": BIG[:100_000]}, task_id=name, states=("SUCCESS",))
    running = [await service(program), await service(program)]
    typed("add", *names, "-q")
    await until(lambda: {*phases(store).values()} == {"published"})
    logs = [(await stopped(each)).stderr for each in running]
    assert "".join(logs).count(" Fetching task=") == len(names)
    assert sandbox.store.bytes_served == 100_000 * len(names)


# Stop


@pytest.mark.thorough
async def test_a_signal_in_a_transfer_drains_and_the_next_service_goes_on(program, sandbox, typed):
    running = await transferring(program, sandbox, typed)
    ended = await stopped(running)
    assert (ended.exit_code, ended.stdout) == (143, "")
    assert last_event(ended) == "Stopped"
    assert 'Stopped task=task reason="the service stops"' in ended.stderr
    with StateStore.open(program.state) as store:
        (task,), (record,) = store.find_tasks(), store.services.list()
    assert (task.acquired_by, task.is_watched) == (None, True)
    assert record.stopped_at is not None
    sandbox.store.clear_faults()
    sandbox.store.forget_requests()
    again = await service(program)
    await again.says("Published task=task")
    assert sandbox.store.bytes_served <= len(BIG) - COMES
    assert published(program.dest / "task") == {"data.bin": BIG}


@pytest.mark.thorough
async def test_a_second_signal_ends_it_at_once(program, sandbox, typed):
    """Here the first one cannot: somebody holds a lock on the state, which the drain waits for."""
    running = await transferring(program, sandbox, typed)
    with closing(sqlite3.connect(program.state, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        running.signal(signal.SIGTERM)
        await running.says("Stopping")
        ended = await stopped(running, signal.SIGINT)
    assert ended.exit_code == 130
    assert has_come(program)


async def test_killed_in_a_transfer_it_goes_on_where_the_last_checkpoint_was(
    program, sandbox, typed, store
):
    running = await transferring(program, sandbox, typed)
    (task,) = store.find_tasks()
    await until(lambda: sum(file.safe_bytes for file in store.progress(task.id)) >= COMES)
    running.signal(signal.SIGKILL)
    assert (await running.ends()).exit_code == -signal.SIGKILL
    assert "interrupted" in typed("status").stdout
    sandbox.store.clear_faults()
    sandbox.store.forget_requests()
    again = await service(program)
    await again.says("Published task=task")
    assert "Going on with what was left tasks=1" in again.text("stderr")
    assert sandbox.store.bytes_served <= len(BIG) - COMES
    assert published(program.dest / "task") == {"data.bin": BIG}


# SIGHUP


@pytest.mark.thorough
async def test_other_settings_are_taken_at_sighup_and_bad_ones_are_not(program, sandbox, typed):
    file = program.cwd / "bge-downloader.toml"
    running = await service(program)
    for content, words in {
        "segmets = 3\n": "unknown setting 'segmets'; did you mean segments?",
        'calls_per_second = "fast"\n': "but a number from 0.01 to 1000 is expected",
        'webhook_secret_file = "/nowhere"\n': "/nowhere: No such file",
        'buffer_memory = "8M"\n': "hold from the next start on settings=buffer_memory",
        'checksums = "md5"\n': "Took the settings anew",
    }.items():
        file.write_text(content)
        running.signal(signal.SIGHUP)
        await running.says(words)
    await until(lambda: running.text("stderr").count("Took the settings anew") == 2)
    sandbox.add_task(PAIR, task_id="task", states=("SUCCESS",))
    typed("add", "task", "-q")
    await running.says("Published task=task")
    ended = await stopped(running, signal.SIGINT)
    assert ended.exit_code == 130
    assert last_event(ended) == "Stopped"
    assert ended.stderr.count("ERROR Going on with the old settings reason=") == 3
    assert (program.dest / "task" / "MD5SUMS").exists()


# Beside it


async def test_a_fetch_follows_the_service_and_ends_with_its_outcome(program, sandbox, typed):
    running = await transferring(program, sandbox, typed, BGE_SEGMENTS="1")
    follower = await impatient(program, "fetch", "task", "--json")
    await follower.says(f"process {running.pid} on ", stream="stdout")
    await follower.says('"file_sized"', stream="stdout")
    sandbox.store.clear_faults()
    ended = await follower.ends()
    assert ended.exit_code == 0
    sized = next(event for event in ended.events if event["event"] == "file_sized")
    assert sized["resumed"] >= COMES
    assert ended.events[-1]["event"] == "published"
    assert ended.events[-1]["path"] == str(program.dest / "task")
    assert sandbox.store.bytes_served == len(BIG)


@pytest.mark.thorough
async def test_a_fetch_ends_as_the_service_ends(program, sandbox, typed, store):
    sandbox.add_task(task_id="task", states=("PENDING", "FAILURE"), result="样本不存在")
    typed("add", "task", "-q")
    await service(program)
    await until(lambda: phases(store)["task"] == "failed")
    ended = await program.run("fetch", "task")
    assert ended.exit_code == 3
    assert "样本不存在" in ended.sentence


# What it logs


@pytest.mark.thorough
async def test_the_log_is_json_lines_without_secrets_and_without_progress(program, sandbox, typed):
    running = await transferring(
        program, sandbox, typed, "--json", BGE_WEBHOOK="http://127.0.0.1:9/hush-hush"
    )
    sandbox.store.clear_faults()
    await running.says('"event": "Published"')
    await running.says("could not be told")
    ended = await stopped(running)
    told = [event["event"] for event in events(ended)]
    assert told[0] == "Ready"
    assert told[-1] == "Stopped"
    assert len(told) < 12
    for secret in (Sandbox.app_secret, "hush", "Signature=", "OSSAccessKeyId="):
        assert secret not in ended.stderr


@pytest.mark.thorough
async def test_a_task_that_is_removed_while_it_is_asked_for_is_gone(program, sandbox, typed, store):
    sandbox.add_task(PAIR, task_id="task", states=("SUCCESS",))
    asked = sandbox.platform.inject(PlatformFault.HANG)
    running = await service(program)
    typed("add", "task", "-q")
    await asked.happened.wait()
    assert typed("remove", "task", "--files").exit_code == 0
    asked.release()
    sandbox.add_task(PAIR, task_id="next", states=("SUCCESS",))
    typed("add", "next", "-q")
    await running.says("Published task=next")
    assert phases(store) == {"next": "published"}
    assert [path.name for path in program.dest.iterdir()] == ["next"]
