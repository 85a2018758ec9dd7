"""`add`, `retry`, `cancel` and `remove`: what they say, what they change, and who hears of it."""

import os
import re
import signal
import sqlite3
import sys
from contextlib import closing

import pytest
from cli_helpers import BIG, COMES, has_come, hold_back, impatient, phases, service
from e2e_helpers import MIB, PAIR, published, tree, until
from sqlalchemy import Engine, event

from state import Phase

pytest_plugins = ["cli_helpers", "e2e_helpers"]


def outcomes(ended):
    """Return what became of each task, as it was told in JSON."""
    assert ended.exit_code == 0, ended.stderr
    return {event["task_id"]: event["outcome"] for event in ended.events}


def change(store, statement, *values):
    """Write to the state as nobody should."""
    with closing(sqlite3.connect(store.location)) as connection, connection:
        connection.execute(statement, values)


def kinds(store, task):
    return [event.kind for event in store.list_events(task.id)]


# add: which tasks


def test_tasks_are_added_once_each_and_nobody_at_work_is_told(typed, program, store):
    first = typed("add", "one", "two", "one")
    assert (first.exit_code, first.stdout) == (0, "")
    assert first.stderr.splitlines() == [
        f"one: will be fetched into {program.dest}/one",
        f"two: will be fetched into {program.dest}/two",
        (
            f"No service is at work with the state {program.state}; "
            "`bge-downloader run`, or systemd, starts one."
        ),
    ]
    again = typed("add", "two", "three")
    assert again.stderr.splitlines()[:2] == [
        "two: is watched already",
        f"three: will be fetched into {program.dest}/three",
    ]
    assert {*phases(store)} == {"one", "two", "three"}
    assert all(task.is_watched for task in store.find_tasks())
    quiet = typed("add", "three", "four", "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_json_tells_what_became_of_each(typed, program):
    typed("add", "one")
    ended = typed("add", "one", "two", "--json", "--quiet")
    assert ended.events == [
        {"task_id": "one", "outcome": "watched", "path": f"{program.dest}/one"},
        {"task_id": "two", "outcome": "added", "path": f"{program.dest}/two"},
    ]
    assert ended.stderr == ""


def test_a_list_may_be_of_any_editor(typed, program, store):
    """With a byte order mark, CRLF, comments and blanks."""
    (program.cwd / "ids.txt").write_bytes(
        "\ufeff# 结果\r\none\r\n\r\n  two # urgent\r\n\tthree\n#four\rone\r\nfive".encode()
    )
    assert typed("add", "zero", "--file", "ids.txt").exit_code == 0
    assert {*phases(store)} == {"zero", "one", "two", "three", "five"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "ids.txt: No such file"),
        (b"a\nb\n../c\n", "'../c' is no task id"),
        (b"a b\n", "'a b' is no task id"),
        (b"a\0b", "is no task id"),
        (b"\xff\xfea\x00\n\x00", "ids.txt: it is not UTF-8 text"),
        (b"x" * 5000, "characters; expected"),
    ],
)
def test_of_a_bad_list_nothing_is_added(typed, program, content, reason):
    if content is not None:
        (program.cwd / "ids.txt").write_bytes(content)
    ended = typed("add", "good", "--file", "ids.txt")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert reason in ended.sentence
    assert len(ended.sentence) < 300
    assert not program.state.exists()


def test_a_list_of_nothing_is_an_error_unless_something_else_is_named(typed, program):
    (program.cwd / "-").write_bytes(b"# none\n\n")
    ended = typed("add", "--file", "./-")
    assert ended.exit_code == 2
    assert ended.sentence == "No id of a task is in ./-; expected one a line"
    assert outcomes(typed("add", "good", "--file", "./-", "--json")) == {"good": "added"}


def test_what_is_too_large_for_a_list_is_not_read_in_part(typed, program):
    with (program.cwd / "genome").open("wb") as file:
        file.truncate(64 * MIB + 1)
    ended = typed("add", "--file", "genome")
    assert ended.exit_code == 2
    assert ended.sentence == (
        "The ids cannot be read from genome: it is too large for a list of ids"
    )


@pytest.mark.parametrize("task_id", ["", "../../etc/passwd", "a\nb", "..", "x" * 5000])
@pytest.mark.parametrize("command", ["add", "retry", "cancel", "remove", "status"])
def test_what_is_no_task_id_is_refused_by_every_command(typed, program, command, task_id):
    ended = typed(command, "--", "good", task_id)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "task id" in ended.sentence
    assert not program.state.exists()


def test_nothing_named_is_a_usage_error(typed):
    assert typed("add").sentence.startswith("Name the tasks to be watched, or give --file FILE")
    assert typed("retry").sentence == "Name the tasks to try again, or say --failed"
    assert {typed(command).exit_code for command in ("add", "retry", "cancel", "remove")} == {2}


@pytest.mark.thorough
async def test_a_list_of_thousands_comes_by_standard_input(program, store):
    with program.cwd.joinpath("ids").open("wb+") as ids:
        ids.write(b"".join(b"task-%d\n" % number for number in range(1200)))
        ids.seek(0)
        running = await program.start("add", "--file", "-", "--json", stdin=ids)
    assert len(outcomes(await running.ends())) == 1200
    assert store.agenda.watched_count() == 1200


async def test_a_standard_input_that_is_closed_names_no_task(program):
    shell = 'exec "$0" -m downloader add --file - 0<&-'
    replaced = "import os, sys; os.execvp('sh', ['sh', '-c', *sys.argv[1:]])"
    running = await program.start_python("-c", replaced, shell, sys.executable)
    ended = await running.ends()
    assert ended.exit_code == 2
    assert ended.sentence == "No id of a task is in standard input; expected one a line"


# add: where to


def added_to(typed, *arguments, **options):
    ended = typed("add", "task", "--json", "-q", *arguments, **options)
    assert ended.exit_code == 0, ended.stderr
    return ended.events[0]["path"].removesuffix("/task")


def test_the_destination_is_what_was_said_or_the_services_or_the_working_directory(
    typed, program, store
):
    bare = {"without": ["BGE_DEST"]}
    assert added_to(typed, **bare) == str(program.cwd)
    store.services.started("somebody", "/srv/results")
    assert added_to(typed, **bare) == "/srv/results"
    store.services.stopped("somebody")
    assert added_to(typed, **bare) == "/srv/results"  # where the last one has put them
    settings = program.cwd / "bge-downloader.toml"
    settings.write_text('dest = "/of/the/file"\n')
    assert added_to(typed, **bare) == "/of/the/file"
    settings.write_text('dest = "."\n')
    assert added_to(typed, **bare) == str(program.cwd)
    assert added_to(typed) == str(program.dest)
    assert added_to(typed, BGE_DEST="~/there") == str(program.home / "there")
    assert added_to(typed, "--dest", "结果/") == str(program.cwd / "结果")


def test_a_service_at_work_counts_more_than_one_that_has_stopped(typed, store):
    store.services.started("old", "/old")
    store.services.started("new", "/new")
    store.services.seen("old", dest="/old", condition=None)
    store.services.stopped("old")
    assert added_to(typed, without=["BGE_DEST"]) == "/new"


async def test_a_working_directory_that_is_no_utf8_is_no_destination(program):
    program.cwd = program.cwd / os.fsdecode(b"b\xfft")
    program.cwd.mkdir()
    ended = await program.run("add", "task", without=("BGE_DEST",))
    assert ended.exit_code == 2
    assert ended.sentence.endswith("/b?t is no UTF-8; choose another --dest")


# add: what is known of the task already


def test_a_task_that_has_failed_or_was_cancelled_is_begun_again(typed, program, store):
    typed("add", "failed", "cancelled", "-q")
    (failed,), owner = store.find_tasks("failed"), "somebody"
    store.acquire(failed.id, owner, 60)
    store.agenda.settle(
        failed.id, owner, event=None, phase=Phase.FAILED, message="It broke", exit_code=5
    )
    typed("cancel", "cancelled", "-q")
    assert phases(store) == {"failed": "failed", "cancelled": "cancelled"}
    again = typed("add", "failed", "cancelled", "--json", "-q")
    assert outcomes(again) == {"failed": "added", "cancelled": "added"}
    assert {*phases(store).values()} == {"waiting"}
    assert store.get_task(failed.id).message is None


def publish(store, program, task_id="task"):
    """Let the state, and the disk, have a published task."""
    task = store.ensure_task(task_id, str(program.dest))
    store.set_phase(task.id, Phase.PUBLISHED)
    (program.dest / task_id).mkdir(parents=True)
    return program.dest / task_id


def test_a_published_task_is_left_alone_while_its_result_is_there(typed, program, store):
    place = publish(store, program)
    ended = typed("add", "task")
    assert ended.stderr == f"task: is published already, in {place}\n"
    assert phases(store) == {"task": "published"}
    # Without the whole destination, as on another host, nobody can tell.
    program.dest.rename(program.dest.with_name("unmounted"))
    assert outcomes(typed("add", "task", "--json")) == {"task": "published"}


def test_a_published_task_whose_result_is_gone_is_begun_again(typed, program, store):
    publish(store, program).rmdir()
    assert outcomes(typed("add", "task", "--json")) == {"task": "added"}
    assert phases(store) == {"task": "waiting"}


# retry, cancel, remove: which tasks


@pytest.mark.parametrize("command", [["retry"], ["cancel"], ["remove"], ["remove", "--files"]])
def test_of_tasks_that_are_not_all_known_none_is_touched(typed, program, store, command):
    typed("add", "task", "-q")
    before = phases(store)
    ended = typed(*command, "task", "other")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.sentence == (
        f"other is not known to the state {program.state}; `bge-downloader status` lists what is"
    )
    assert phases(store) == before
    elsewhere = typed(*command, "task", "--dest", "/elsewhere")
    assert elsewhere.exit_code == 1
    assert "with the destination /elsewhere" in elsewhere.sentence


@pytest.mark.parametrize(
    "command", [["retry", "task"], ["retry", "--failed"], ["cancel", "task"], ["remove", "task"]]
)
def test_asking_makes_no_state(typed, program, command):
    ended = typed(*command)
    assert ended.exit_code == 1
    assert ended.sentence.endswith(f" known: there is no state at {program.state} yet")
    assert not program.state.exists()


@pytest.mark.parametrize(
    "command", [["add", "a"], ["retry", "a"], ["cancel", "a"], ["remove", "a"], ["status"]]
)
def test_a_state_that_is_none_is_named_and_left_as_it_is(typed, program, command):
    program.state.parent.mkdir()
    program.state.write_bytes(b"my thesis, only copy\n" * 100)
    before = tree(program.state.parent)
    ended = typed(*command)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert str(program.state) in ended.sentence
    assert "not a database" in ended.sentence
    assert tree(program.state.parent) == before


def test_of_two_destinations_one_may_be_meant(typed, store):
    for dest in ("/one", "/two"):
        typed("add", "task", "--dest", dest, "-q")
    ended = typed("cancel", "task", "--dest", "/two/", "--json")
    assert [event["path"] for event in ended.events] == ["/two/task"]
    assert [task.phase.value for task in store.find_tasks()] == ["waiting", "cancelled"]
    assert len(typed("retry", "task", "--json", "-q").events) == 2
    typed("remove", "task", "--dest", "/one", "-q")
    assert [task.dest for task in store.find_tasks()] == ["/two"]


def test_all_that_have_failed_are_tried_again(typed, store):
    assert typed("add", "a", "b", "c", "-q").exit_code == 0
    none = typed("retry", "--failed")
    assert (none.exit_code, none.stderr) == (0, "No task has failed.\n")
    for task in store.find_tasks()[:2]:
        store.set_phase(task.id, Phase.FAILED, message="It broke", exit_code=1)
    ended = typed("retry", "a", "--failed", "--json", "-q")
    assert outcomes(ended) == {"a": "added", "b": "added"}
    assert len(ended.events) == 2
    assert phases(store) == dict.fromkeys("abc", "waiting")


def test_many_that_have_failed_are_tried_again_with_few_syncs_of_the_disk(typed, store):
    """One for each took a minute of 10,000."""
    store.agenda.watch([f"t-{number}" for number in range(200)], "/data")
    change(store, "UPDATE tasks SET phase = 'failed', due_at = NULL")
    syncs = []

    def count(connection):
        syncs.append(connection)

    event.listen(Engine, "commit", count)
    try:
        told = outcomes(typed("retry", "--failed", "--json", "-q"))
    finally:
        event.remove(Engine, "commit", count)
    assert {*told.values()} == {"added"}
    assert len(told) == 200
    assert len(syncs) < 20


def test_a_task_whose_phase_was_damaged_is_one_that_has_failed(typed, store):
    typed("add", "task", "-q")
    change(store, "UPDATE tasks SET phase = 'astonished', due_at = 'yesterday'")
    assert " failed " in typed("status").stdout
    assert outcomes(typed("retry", "--failed", "--json", "-q")) == {"task": "added"}
    assert phases(store) == {"task": "waiting"}


@pytest.mark.parametrize(
    ("damaged", "shown"),
    [("../else", "../else"), ("\x1b[2J", "?[2J"), ("", ""), (b"a\xff", "a�")],
)
def test_a_task_whose_id_was_damaged_is_removed_by_what_is_shown(
    typed, program, store, damaged, shown
):
    """And whatever lies where such an id leads to is none of its files."""
    elsewhere = program.dest.with_name("else.partial")
    for directory in (program.dest, elsewhere):
        directory.mkdir()
    typed("add", "task", "-q")
    change(store, "UPDATE tasks SET task_id = ?", damaged)
    assert f"Task      {shown}" in typed("status", "--", shown).stdout
    removed = typed("remove", "--files", "--", shown)
    assert (removed.exit_code, store.find_tasks()) == (0, [])
    assert elsewhere.is_dir()


def test_a_task_that_has_ended_is_not_cancelled(typed, program, store):
    publish(store, program)
    ended = typed("cancel", "task")
    assert (ended.exit_code, ended.stderr) == (0, "task: had ended already (published)\n")
    assert phases(store) == {"task": "published"}


def test_a_published_result_survives_its_removal(typed, program, store):
    place = publish(store, program)
    (place / "a.vcf.gz").write_bytes(b"x")
    ended = typed("remove", "task", "--files")
    assert (ended.exit_code, ended.stderr) == (0, "task: removed\n")
    assert phases(store) == {}
    assert tree(program.dest) == {"task": None, "task/a.vcf.gz": b"x"}


@pytest.mark.thorough
async def test_a_state_of_a_fleet_is_a_state_like_any_other(typed, postgresql_url):
    fleet = {"BGE_STATE": postgresql_url}
    assert outcomes(typed("add", "one", "two", "--json", **fleet)) == dict.fromkeys(
        ("one", "two"), "added"
    )
    assert outcomes(typed("cancel", "one", "--json", **fleet)) == {"one": "cancelled"}
    assert outcomes(typed("retry", "one", "--json", **fleet)) == {"one": "added"}
    assert typed("remove", "one", **fleet).stderr == "one: removed\n"
    assert [event["task_id"] for event in typed("status", "--json", **fleet).events] == ["two"]
    unknown = typed("retry", "one", **fleet)
    assert unknown.exit_code == 1
    assert "one is not known to the state postgresql" in unknown.sentence


# With a service at work


async def test_a_service_takes_up_what_is_added_and_nobody_is_told_that_there_is_none(
    program, sandbox, typed
):
    sandbox.add_task(PAIR, task_id="task", states=("SUCCESS",))
    running = await service(program)
    ended = typed("add", "task")
    assert ended.stderr == f"task: will be fetched into {program.dest}/task\n"
    await running.says("Published task=task files=2")
    assert {*published(program.dest / "task")} == {"a.vcf.gz", "a.vcf.gz.tbi"}
    assert outcomes(typed("add", "task", "--json")) == {"task": "published"}
    assert outcomes(typed("retry", "task", "--json")) == {"task": "added"}
    await running.says("Already published task=task")


async def test_a_cancelled_transfer_of_the_service_stops_and_goes_on_where_it_was(
    program, sandbox, typed, store
):
    hold_back(sandbox)
    running = await service(program)
    typed("add", "task", "-q")
    await until(lambda: has_come(program))
    at_work = typed("retry", "task", "--json")
    assert outcomes(at_work) == {"task": "at work"}
    assert outcomes(typed("cancel", "task", "--json")) == {"task": "cancelled"}
    await running.says("Stopped task=task")
    assert has_come(program)
    assert "cancelled" in typed("status").stdout
    (task,) = store.find_tasks()
    assert (task.acquired_by, task.due_at) == (None, None)
    sandbox.store.clear_faults()
    sandbox.store.forget_requests()
    assert outcomes(typed("retry", "task", "--json")) == {"task": "added"}
    await running.says("Published task=task")
    assert published(program.dest / "task") == {"data.bin": BIG}
    assert sandbox.store.bytes_served <= len(BIG) - COMES
    assert kinds(store, task)[-1] == "published"


@pytest.mark.parametrize("command", ["cancel", "remove"])
@pytest.mark.thorough
async def test_a_fetch_whose_task_is_taken_away_stops_and_says_why(
    program, sandbox, typed, store, command
):
    hold_back(sandbox)
    running = await impatient(program, "fetch", "task")
    await until(lambda: has_come(program))
    assert typed(command, "task", "-q").exit_code == 0
    ended = await running.ends()
    assert (ended.exit_code, ended.stdout) == (1, "")
    # What is removed is cancelled first, and either may be noticed.
    verbs = {"cancel": "cancelled", "remove": "(cancelled|removed)"}
    assert re.search(f"was {verbs[command]} while it was being fetched", ended.complaints[-1])
    assert has_come(program)
    assert phases(store) == ({"task": "cancelled"} if command == "cancel" else {})
    sandbox.store.clear_faults()
    sandbox.store.forget_requests()
    assert (await program.run("fetch", "task")).exit_code == 0
    assert published(program.dest / "task") == {"data.bin": BIG}
    assert (sandbox.store.bytes_served < len(BIG)) is (command == "cancel")


@pytest.mark.parametrize("files", [True, False])
@pytest.mark.thorough
async def test_a_task_that_is_removed_while_it_is_brought_is_gone(
    program, sandbox, typed, store, files
):
    """With --files, what was received too; and nothing comes back."""
    hold_back(sandbox)
    running = await service(program)
    typed("add", "task", "-q")
    await until(lambda: has_come(program))
    ended = typed("remove", "task", *(["--files"] if files else []))
    assert ended.exit_code == 0, ended.stderr
    running.signal(signal.SIGTERM)
    assert (await running.ends()).exit_code == 143
    assert phases(store) == {}
    partial = program.dest / "task.partial"
    if files:
        assert ended.stderr.splitlines()[-1] == "task: removed"
        assert tree(program.dest) == {}
    else:
        assert ended.stderr == f"task: removed; what was received stays in {partial}\n"
        assert has_come(program)
