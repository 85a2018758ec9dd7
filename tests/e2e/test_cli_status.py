"""`status`: tables, histories, JSON; once or again and again; on terminals of any width."""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
import termios
from datetime import UTC, datetime, timedelta

import pytest
from cli_helpers import service
from e2e_helpers import PAIR, until

from downloader.screens.text import cells
from state import Phase, StateStore

pytest_plugins = ["cli_helpers", "e2e_helpers"]

OWNER = "host/machine/boot/1/4242/1/x"  # of another machine, so nobody here knows that it is dead
UUID = "69909614-9e77-4fbd-b437-{:012}"
HASTY = """
import sys
from downloader.cli import status_command
status_command.WATCH_SECONDS = 0.05
from downloader.__main__ import main
sys.argv = ["bge-downloader", "status", *sys.argv[1:]]
main()
"""


def added(store, *task_ids, dest="/data"):
    """Let the service watch tasks; return their numbers by their ids."""
    return {task.task_id: task.id for task, _ in store.agenda.watch(task_ids, dest)}


def held(store, number):
    """Let somebody who seems to be alive work on a task."""
    assert store.acquire(number, OWNER, 60) is not None


def put_off(store, number, minutes, phase, **values):
    """Let the service have looked at a task, and want to do so again."""
    held(store, number)
    due_at = datetime.now(UTC) + timedelta(minutes=minutes)
    assert store.agenda.put_off(number, OWNER, due_at, phase=phase, **values)


def rows(ended):
    """Return the cells of the table by the first of them."""
    assert ended.exit_code == 0, ended.stderr
    table = [re.split(r" {2,}", line) for line in ended.stdout.splitlines()]
    return {row[0]: dict(zip(table[0], row, strict=True)) for row in table[1:]}


# The table


def test_a_state_without_tasks_has_no_table(typed, store):
    ended = typed("status")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (0, "", "No task is known yet.\n")
    assert (typed("status", "--json").stdout, typed("status", "--all").stdout) == ("", "")


def test_a_row_tells_what_is_done_and_what_comes_next(typed, store):
    tasks = added(store, "new", "asked", "busy", "retrying", "full", "off", "dead")
    put_off(store, tasks["asked"], 20, Phase.WAITING)
    held(store, tasks["busy"])
    store.set_phase(tasks["busy"], Phase.TRANSFERRING)
    put_off(store, tasks["retrying"], 30, Phase.RETRYING, message="Link broken", tries=1)
    put_off(store, tasks["full"], 600, Phase.PAUSED, message="No room")
    store.agenda.cancel(tasks["off"])
    store.set_phase(tasks["dead"], Phase.VERIFYING)  # by a process that lives no more
    ended = typed("status")
    found = rows(ended)
    assert {name: (row["PHASE"], row["NEXT"]) for name, row in found.items()} == {
        "new": ("waiting", "at once"),
        "asked": ("waiting", "in 20 min"),
        "busy": ("transferring", "now"),
        "retrying": ("retrying", "in 30 min"),
        "full": ("paused", "in 10 h"),
        "off": ("cancelled", "-"),
        "dead": ("interrupted", "at once"),
    }
    assert found["new"]["PLACE"] == "/data/new"
    assert ended.stderr.splitlines() == [
        "retrying: Link broken",
        "full: No room",
        "off: Cancelled; what was received is kept",
        ("7 tasks: 1 cancelled, 1 paused, 1 retrying, 1 transferring, 1 verifying, 2 waiting"),
    ]


@pytest.mark.thorough
def test_of_many_tasks_those_that_matter_are_shown(typed, store):
    """Those at work first, some that wait, and the last that ended; --all shows all."""
    tasks = added(store, *(f"t{number:03}" for number in range(100)))
    for number in range(60):
        store.set_phase(tasks[f"t{number:03}"], Phase.PUBLISHED)
    store.set_phase(tasks["t099"], Phase.TRANSFERRING)
    ended = typed("status")
    shown = [*rows(ended)]
    assert shown[0] == "t099"
    assert shown[1:30] == [f"t{number:03}" for number in range(60, 89)]
    assert shown[30:] == [f"t{number:03}" for number in range(40, 60)]
    assert ended.stderr == (
        "100 tasks: 60 published, 1 transferring, 39 waiting (50 not shown; --all shows them)\n"
    )
    everything = typed("status", "--all")
    assert len(rows(everything)) == 100
    assert "not shown" not in everything.stderr
    assert len(typed("status", "--json").events) == 100


def test_a_wide_or_wicked_text_moves_no_column_and_no_cursor(typed, store):
    tasks = added(store, "one", "two", dest="/数据/\x1b[31m结\u202e果\n")
    store.record_poll(tasks["one"], "进行中")
    store.set_phase(tasks["two"], Phase.FAILED, message="broken\x1b]0;owned\x07\r")
    ended = typed("status")
    assert ended.stdout.isascii() is False
    for text in (ended.stdout, ended.stderr, typed("status", "one", "two").stdout):
        assert all(line.isprintable() for line in text.splitlines())
    starts = {cells(line.partition("-  ")[0]) for line in ended.stdout.splitlines()[1:]}
    assert ended.stdout.splitlines()[2].endswith("/数据/?[31m结?果 /two")
    places = [cells(line[: line.index("/数据")]) for line in ended.stdout.splitlines()[1:]]
    assert len({*places}) == 1, starts


# One task


def test_a_history_tells_of_every_pause(typed, store):
    number = added(store, "task")["task"]
    assert "Next      at once\n" in typed("status", "task").stdout
    for tries in (1, 2):
        told = ("retrying", f"Attempt {tries} of 8 has failed; the next one comes in 30 min")
        put_off(store, number, 30, Phase.RETRYING, message="It broke", tries=tries, told=told)
    text = typed("status", "task").stdout
    assert "Phase     retrying: It broke\n" in text
    assert "Next      in 30 min, after 2 failures in a row\n" in text
    put_off(store, number, 600, Phase.PAUSED, message="No room", told=("paused", "Paused: No room"))
    lines = typed("status", "task").stdout.splitlines()
    assert lines[:6] == [
        "Task      task",
        "Phase     paused: No room",
        "Platform  not asked",
        "Next      in 10 h, after 2 failures in a row",
        "Place     /data/task",
        "On disk   -",
    ]
    told = [line.split()[2] for line in lines[lines.index("History (UTC)") + 1 :]]
    assert told == ["added", "retrying", "retrying", "paused"]
    held(store, number)
    assert "Next      now, after 2" in typed("status", "task").stdout


def test_json_tells_everything_a_task_a_line(typed, store):
    tasks = added(store, "one", "two", dest="/数据")
    put_off(store, tasks["two"], 30, Phase.RETRYING, message="It broke", exit_code=5, tries=3)
    one, two = typed("status", "--json").events
    assert (one["task_id"], one["phase"], one["tries"]) == ("one", "waiting", 0)
    assert (two["phase"], two["message"], two["exit_code"]) == ("retrying", "It broke", 5)
    assert (two["tries"], two["path"]) == (3, "/数据/two")
    assert datetime.fromisoformat(two["due_at"]) > datetime.now(UTC)
    assert [event["kind"] for event in two["events"]] == ["added"]
    assert [event["task_id"] for event in typed("status", "two", "--json").events] == ["two"]


def test_of_tasks_that_are_not_all_known_none_is_shown(typed, store):
    added(store, "task")
    for more in ([], ["--json"]):
        ended = typed("status", "task", "other", *more)
        assert (ended.exit_code, ended.stdout) == (1, "")
        assert ended.sentence.startswith("other is not known to the state ")


# The service


@pytest.mark.thorough
async def test_a_service_at_work_is_named_and_so_is_what_holds_it_up(program, sandbox, typed):
    sandbox.add_task(PAIR, task_id="task", states=("SUCCESS",))
    running = await service(program, BGE_MIN_FREE_SPACE="1000T")
    assert typed("status").stderr.startswith(f"Service: process {running.pid} on ")
    typed("add", "task", "-q")
    await until(lambda: f"paused, no room in {program.dest}: " in typed("status").stderr)
    row = rows(typed("status"))["task"]
    assert (row["PHASE"], row["PLATFORM"]) == ("paused", "SUCCESS")
    assert "paused       Paused: " in typed("status", "task").stdout
    second = await service(program)
    assert typed("status").stderr.count("Service: process") == 2
    for each in (running, second):
        each.signal(signal.SIGTERM)
        assert (await each.ends()).exit_code == 143
    assert typed("status").stderr.startswith("Service: none is at work; the last one was seen at ")


# On terminals


class Terminal:
    """A pseudo-terminal, and everything that was written to it."""

    def __init__(self, columns, lines=24):
        self._ours, self.theirs = os.openpty()
        self.resize(columns, lines)
        os.set_blocking(self._ours, False)
        self.written = ""
        asyncio.get_running_loop().add_reader(self._ours, self.take)

    def resize(self, columns, lines=24):
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def take(self):
        with contextlib.suppress(BlockingIOError, OSError):  # EIO: nobody holds the other side
            while data := os.read(self._ours, 65536):
                self.written += data.decode()

    @property
    def frames(self):
        """The pages that were drawn one over the other, as lines."""
        ends = self.written.split("\x1b[J")[:-1]
        return [
            [
                line.removeprefix("\x1b[2J").removesuffix("\x1b[K")
                for line in end.rpartition("\x1b[H")[2].split("\r\n")
            ]
            for end in ends
        ]

    def close(self):
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)
        os.close(self.theirs)


@pytest.fixture
async def watched(program):
    """Give a function that starts `status` on a terminal of a certain width."""
    with contextlib.ExitStack() as stack:

        async def watched(columns, *arguments, term="xterm", lines=24):
            terminal = stack.enter_context(contextlib.closing(Terminal(columns, lines)))
            running = await program.start_python(
                "-c",
                HASTY,
                *arguments,
                stdout=terminal.theirs,
                stderr=terminal.theirs,
                environment={"TERM": term},
            )
            return terminal, running

        yield watched


@pytest.mark.parametrize(
    ("columns", "heads"),
    [
        (200, "TASK PHASE PLATFORM FILES ON DISK UPDATED (UTC) NEXT PLACE"),
        (130, "TASK PHASE PLATFORM FILES ON DISK UPDATED (UTC) NEXT PLACE"),
        (80, "TASK PHASE PLATFORM FILES ON DISK NEXT"),
        (60, "TASK PHASE ON DISK"),
        (30, "TASK PHASE"),
    ],
)
@pytest.mark.thorough
async def test_a_table_fits_into_its_terminal(watched, store, columns, heads):
    for number in range(3):
        added(store, UUID.format(number), dest="/数据/很长的路径/" + "很长的路径" * 10)
    terminal, running = await watched(columns)
    assert (await running.ends()).exit_code == 0
    terminal.take()
    lines = terminal.written.splitlines()
    assert re.sub(" +", " ", lines[0]) == heads
    assert len(lines) == 5
    assert all(cells(line) <= columns for line in lines[:4])
    assert all(line.partition("  ")[0].endswith(str(n)) for n, line in enumerate(lines[1:4]))
    assert "\x1b" not in terminal.written


@pytest.mark.thorough
async def test_a_watch_draws_one_page_over_the_other_and_ends_quietly(watched, store):
    """The screen is cleared once, so that nothing flickers, and again when its size changes."""
    tasks = added(store, "one")
    terminal, running = await watched(80, "--watch")
    await until(lambda: len(terminal.frames) > 2)
    assert terminal.frames[0][1].split()[:2] == ["one", "waiting"]
    store.agenda.cancel(tasks["one"])
    await until(lambda: terminal.frames[-1][1].split()[:2] == ["one", "cancelled"])
    assert terminal.written.count("\x1b[2J") == 1
    terminal.resize(20, 4)
    await until(lambda: terminal.written.count("\x1b[2J") == 2)
    assert all(cells(line) <= 20 for line in terminal.frames[-1])
    running.signal(signal.SIGINT)
    assert (await running.ends()).exit_code == 130
    terminal.take()
    assert terminal.written.rpartition("\x1b[J")[2] in ("\r\n", "^C\r\n")


@pytest.mark.thorough
async def test_of_a_page_that_is_too_long_the_middle_is_left_out(watched, store):
    number = added(store, "task")["task"]
    for each in range(100):
        store.add_event(number, "noted", f"Number {each}")
    terminal, _ = await watched(80, "task", "--watch", lines=10)
    await until(lambda: terminal.frames)
    page = terminal.frames[0]
    assert len(page) == 10
    assert page[0] == "Task      task"
    assert page[4] == "… 99 more lines"
    assert page[-1].endswith("Number 99")


@pytest.mark.thorough
async def test_a_watch_waits_for_a_state_and_writes_blocks_into_a_pipe(program):
    running = await program.start_python("-c", HASTY, "--watch")
    await running.says("No task is known yet.\nNo task is known yet.\n")
    with StateStore.open(program.state) as store:
        added(store, "one")
    await running.says("/data/one\n\nTASK", stream="stdout")
    running.signal(signal.SIGINT)
    ended = await running.ends()
    assert ended.exit_code == 130
    assert "\x1b" not in ended.stdout
    assert "bge-downloader:" not in ended.stderr


@pytest.mark.thorough
async def test_a_terminal_that_cannot_move_its_cursor_gets_blocks(watched, store):
    added(store, "one")
    terminal, running = await watched(80, "--watch", term="dumb")
    await until(lambda: terminal.written.count("TASK") > 1)
    running.signal(signal.SIGINT)
    assert (await running.ends()).exit_code == 130
    assert "\x1b" not in terminal.written


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.thorough
async def test_a_watch_ends_quietly_when_its_reader_leaves(program, store, more):
    added(store, "one")
    reading, writing = os.pipe()
    running = await program.start_python("-c", HASTY, "--watch", *more, stdout=writing)
    os.close(writing)
    assert await asyncio.to_thread(os.read, reading, 65536)
    os.close(reading)
    ended = await running.ends()
    assert ended.exit_code == 1
    assert ended.complaints == []
    assert "Traceback" not in ended.stderr
