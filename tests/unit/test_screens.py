"""What is counted, what is written as lines and JSON, and that no text can hurt a terminal."""

import asyncio
import io
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.logs import printable, safe_lines
from downloader.progress import PlannedFile, Reporter
from downloader.screens import Bars, JsonLines, Lines, Quiet, Screen, choose_screen
from downloader.screens.screen import Beat
from downloader.screens.tally import Pace, Tally
from downloader.screens.text import (
    cells,
    fitted,
    short_id,
    shortened,
    time_left,
    waiting_phrase,
)

MIB = 1024 * 1024
TASK = "6990ab12-0000-4c11-9a10-5f2d1e3f2a00"
OTHER = "6990ab12-0000-4c11-9a10-5f2d1e3f2bcd"


class Clock:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


class Broken(io.StringIO):
    """A stream whose reader has gone away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# Text.


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sample.vcf.gz", "sample.vcf.gz"),
        ("样本.vcf.gz", "样本.vcf.gz"),
        ("\x1b[31mred\x07", "?[31mred?"),  # escape sequences end here
        ("two\nlines\tand a tab\r", "two lines and a tab "),
        ("\x9b2J", "?2J"),  # the one-byte form of ESC [
        ("abc\u202egpj", "abc?gpj"),  # would be read from right to left
        ("\udcff.vcf", "?.vcf"),  # a byte that was no UTF-8
    ],
)
def test_no_control_character_gets_out(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_whatever_is_printed_is_printable(text):
    assert all(line.isprintable() for line in [printable(text), *safe_lines(text)])


def test_a_message_keeps_its_lines_and_loses_its_secrets():
    assert safe_lines("one\nGET /a?Signature=abc&x=1") == ["one", "GET /a?Signature=…&x=1"]


@pytest.mark.parametrize(
    ("text", "width"),
    [("abc", 3), ("样本", 4), ("ｗｉｄｅ", 8), ("e\u0301", 1), ("", 0)],  # noqa: RUF001
)
def test_width_is_counted_as_a_terminal_does(text, width):
    assert cells(text) == width


@pytest.mark.parametrize(
    ("width", "shown"),
    [(40, "20210829TZ/E-B19137107158.vcf.gz"), (15, "2021082….vcf.gz"), (1, "…"), (0, "")],
)
def test_a_long_name_loses_its_middle(width, shown):
    assert shortened("20210829TZ/E-B19137107158.vcf.gz", width) == shown


@given(st.text(), st.integers(0, 50))
def test_a_fitted_text_has_exactly_its_width(text, width):
    assert cells(fitted(printable(text), width)) == width


def test_ids_that_were_given_out_in_order_stay_different_when_short():
    assert (short_id(TASK), short_id(OTHER)) == ("6990…2a00", "6990…2bcd")


@pytest.mark.parametrize(
    ("polls", "seconds", "width", "shown"),
    [
        (1, 5.2, None, "PENDING, asked once, next in 5 s"),
        (3, 80, None, "PENDING, asked 3 times, next in 1 min 20 s"),
        (3, -0.3, None, "PENDING, asked 3 times, asking now"),
        (3, 12, 25, "PENDING, next in 12 s"),
        (3, 12, 10, "PEND… 12 s"),
    ],
)
def test_the_waiting_phrase(polls, seconds, width, shown):
    told = waiting_phrase("PENDING", polls=polls, next_in_seconds=seconds, width=width)
    assert told == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.2, "0 s"),
        (9.4, "9 s"),
        (599, "9 min 59 s"),
        (601, "10 min"),
        (35_999, "10 h"),  # 9 h 59 min 59 s
        (36_100, "10 h"),
        (10 * 86_400 + 40_000, "10 d"),
    ],
)
def test_a_long_time_left_is_told_coarsely(seconds, shown):
    assert time_left(seconds) == shown


# Pace and tally.


def test_a_steady_pace_is_told_as_it_is_from_the_first_moment(clock):
    pace = Pace(clock())
    rates = []
    for _ in range(100):
        clock.advance(0.1)
        pace.add(1000)
        rates.append(pace.rate(clock()))
    assert rates[:4] == [None] * 4  # too early to tell
    assert rates[5:] == pytest.approx([10_000] * 95)


def test_a_stall_pulls_the_pace_down_and_then_is_called_one(clock):
    pace = Pace(clock())
    pace.add(10_000)
    clock.advance(1)
    before = pace.rate(clock())
    clock.advance(5)
    during = pace.rate(clock())
    clock.advance(5)
    assert before == pytest.approx(10_000)
    assert 0 < during < before / 2
    assert pace.rate(clock()) == 0


@pytest.fixture
def tally(clock):
    return Tally(TASK, clock=clock, changed=lambda: None)


def test_resumed_bytes_count_as_done_but_not_as_fast(tally, clock):
    tally.planned([PlannedFile("a.vcf.gz")])
    tally.file_sized("a.vcf.gz", 100 * MIB, resumed=80 * MIB)
    clock.advance(1)
    tally.received("a.vcf.gz", MIB)
    assert tally.totals().done_bytes == 81 * MIB
    assert tally.pace.rate(clock()) == pytest.approx(MIB)
    assert tally.active["a.vcf.gz"].progress(clock()).seconds_left == pytest.approx(19)


def test_bytes_that_are_taken_back_move_the_file_back(tally):
    tally.file_sized("a", 100, resumed=10)
    tally.received("a", 50)
    tally.received("a", -60)
    assert tally.active["a"].done == tally.totals().done_bytes == 0


def test_a_file_that_is_sized_again_begins_anew_with_its_new_size(tally):
    tally.planned([PlannedFile("a", 100), PlannedFile("b", 50)])
    tally.file_sized("a", 100, resumed=0)
    tally.received("a", 70)
    tally.file_sized("a", 200, resumed=20)
    totals = tally.totals()
    assert (totals.done_bytes, totals.total_bytes, totals.files) == (20, 250, 2)


def test_a_done_file_that_is_found_wrong_is_active_again(tally):
    tally.planned([PlannedFile("a")])
    tally.file_sized("a", 100, resumed=0)
    tally.file_done("a")
    tally.verifying("a")
    assert (tally.totals().files_done, tally.totals().done_bytes) == (1, 100)
    tally.received("a", -30)
    assert (tally.totals().files_done, tally.totals().done_bytes) == (0, 70)
    tally.file_sized("a", 100, resumed=0)
    assert (tally.totals().done_bytes, tally.checking) == (0, None)


def test_a_file_that_was_here_already_counts_as_done(tally):
    tally.planned([PlannedFile("a", 100), PlannedFile("b")])
    tally.file_done("a")
    tally.file_done("b")
    totals = tally.totals()
    assert (totals.files_done, totals.done_bytes, totals.fraction) == (2, 100, 1)


def test_progress_is_counted_in_files_until_every_size_is_known(tally):
    """By known bytes, a list whose files are sized one by one would seem nearly done for ever."""
    tally.planned([PlannedFile("a"), PlannedFile("b")])
    tally.file_sized("a", 100, resumed=0)
    tally.received("a", 50)
    assert tally.totals().fraction == 0.25
    assert tally.totals().progress(10.0).seconds_left is None
    tally.file_sized("b", 900, resumed=0)
    assert tally.totals().fraction == 0.05
    assert tally.totals().progress(10.0).seconds_left == 95


@given(
    st.lists(
        st.tuples(st.sampled_from(["sized", "received", "lost", "done"]), st.sampled_from("abc"))
    )
)
def test_the_sum_is_the_sum_of_its_files(events):
    """Whatever is sized again, lost or finished in between, the total never drifts."""
    tally = Tally(TASK, clock=lambda: 0.0, changed=lambda: None)
    tally.planned([PlannedFile(name) for name in "abc"])
    done: dict[str, int] = {}
    for event, name in events:
        if event == "sized":
            tally.file_sized(name, 100, resumed=10)
            done[name] = 10
        elif event == "done":
            tally.file_done(name)
            done[name] = 100 if name in done else 0
        elif done.get(name) and name in tally.active:
            delta = 7 if event == "received" else -7
            tally.received(name, delta)
            done[name] += delta
    sized = [name for name in done if tally.size_of(name) is not None]
    assert tally.totals().done_bytes == max(0, sum(done[name] for name in sized))
    assert tally.totals().total_bytes == 100 * len(sized)


# Lines.


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def lines(log, clock):
    return Lines(log, clock=clock)


def test_a_whole_story_in_lines(lines, log, clock):
    task = lines.reporter(TASK)
    task.polled("PENDING", polls=1, next_in_seconds=5)
    task.planned([PlannedFile("a.vcf.gz"), PlannedFile("a.vcf.gz.tbi")])
    task.file_sized("a.vcf.gz", 100 * MIB, resumed=10 * MIB)
    task.file_sized("a.vcf.gz.tbi", 1000, resumed=0)
    task.received("a.vcf.gz.tbi", 1000)
    task.file_done("a.vcf.gz.tbi")
    clock.advance(10)
    task.received("a.vcf.gz", 20 * MIB)
    task.note("a.vcf.gz: its link was renewed")
    task.received("a.vcf.gz", 70 * MIB)
    task.file_done("a.vcf.gz")
    task.verifying("a.vcf.gz")
    task.finished()
    assert log.getvalue().splitlines() == [
        f"{TASK} PENDING, asked once, next in 5 s",
        "2 files to fetch",
        "a.vcf.gz.tbi done, 1000 B (1/2)",
        "1/2 files, 30.0 MiB of 100.0 MiB (30%), 2.0 MiB/s, 35 s left",
        "a.vcf.gz: its link was renewed",
        "a.vcf.gz done, 100.0 MiB (2/2)",
        "checking a.vcf.gz",
    ]


def test_waiting_gives_a_line_for_each_change_and_one_in_five_minutes(lines, log, clock):
    task = lines.reporter(TASK)
    for polls, status in enumerate(["PENDING"] * 60 + ["STARTED"] * 2, start=1):
        task.polled(status, polls=polls, next_in_seconds=10)
        clock.advance(10)
    asked = [line.partition(" ")[2] for line in log.getvalue().splitlines()]
    assert asked == [
        "PENDING, asked once, next in 10 s",
        "PENDING, asked 31 times, next in 10 s",
        "STARTED, asked 61 times, next in 10 s",
    ]


def test_all_tasks_together_give_one_line_of_progress_in_ten_seconds(lines, log, clock):
    tasks = [lines.reporter(TASK), lines.reporter(OTHER)]
    for task in tasks:
        task.planned([PlannedFile("a", 100 * MIB)])
        task.file_sized("a", 100 * MIB, resumed=0)
    for _ in range(250):
        clock.advance(0.1)
        for task in tasks:
            task.received("a", MIB // 10)
    progress = [line for line in log.getvalue().splitlines() if " of " in line]
    assert [line.partition(",")[0] for line in progress] == ["0/2 files"] * 2
    assert progress[0] == "0/2 files, 19.9 MiB of 200.0 MiB (9%), 2.0 MiB/s, 1 min 31 s left"


def test_lines_name_their_task_only_beside_another(lines, log):
    first = lines.reporter(TASK)
    first.note("alone")
    second = lines.reporter(OTHER)
    second.note("two")
    first.note("lines\nof one message")
    assert log.getvalue().splitlines() == [
        "alone",
        "6990…2bcd two",
        "6990…2a00 lines",
        "6990…2a00 of one message",
    ]


def test_single_files_of_a_very_long_list_get_no_line(lines, log):
    task = lines.reporter(TASK)
    names = [f"{number}.tbi" for number in range(20_000)]
    task.planned([PlannedFile(name, 10) for name in names])
    for name in names:
        task.file_sized(name, 10, resumed=0)
        task.file_done(name)
        task.verifying(name)
    assert log.getvalue().splitlines() == ["20,000 files to fetch, 195.3 KiB"]


async def test_a_stall_is_told_though_nothing_is_heard(lines, log, clock):
    task = lines.reporter(TASK)
    task.planned([PlannedFile("a", MIB), PlannedFile("b")])
    task.file_sized("a", MIB, resumed=1024)
    clock.advance(30)
    lines._beat._strike()
    assert log.getvalue().splitlines()[-1] == "0/2 files, 1.0 KiB so far, stalled"
    assert lines._beat._handle is not None  # it goes on until the task has finished
    task.finished()
    assert lines._beat._handle is None


async def test_a_beat_strikes_once_without_being_called_and_no_more_once_stopped():
    struck = asyncio.Event()
    beat = Beat(struck.set, seconds=0)
    beat.start()
    await struck.wait()
    struck.clear()
    beat.start()
    beat.stop()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not struck.is_set()


def test_a_beat_goes_on_under_a_second_event_loop():
    """The first one ended with a strike outstanding."""
    beat = Beat(lambda: None, seconds=1000)

    async def start():
        beat.start()
        return beat._loop

    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert first.run(start()) is not second.run(start())
    beat.stop()


def test_an_old_encoding_gets_what_it_can_show(clock):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Lines(stream, clock=clock).say("样本…")
    assert raw.getvalue() == b"???\n"


# JSON lines.


@pytest.fixture
def events(log):
    return lambda: [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_whole_story_in_json(log, events, clock):
    task = JsonLines(log, clock=clock).reporter(TASK)
    task.polled("PENDING", polls=1, next_in_seconds=5.01234)
    task.planned([PlannedFile("样本.vcf.gz"), PlannedFile("b", 7)])
    task.file_sized("样本.vcf.gz", 100, resumed=40)
    task.received("样本.vcf.gz", 10)
    task.file_done("样本.vcf.gz")
    task.verifying("样本.vcf.gz")
    task.note("GET /a?Signature=abc\x1b[0m")
    task.finished()
    assert log.getvalue().isascii()
    assert all(event.pop("task_id") == TASK for event in events())
    assert [{k: v for k, v in event.items() if k != "task_id"} for event in events()] == [
        {"event": "polled", "status": "PENDING", "polls": 1, "next_in_seconds": 5.012},
        {
            "event": "planned",
            "files": [{"file": "样本.vcf.gz", "size": None}, {"file": "b", "size": 7}],
        },
        {"event": "file_sized", "file": "样本.vcf.gz", "size": 100, "resumed": 40},
        {
            "event": "progress",
            "files": 2,
            "files_done": 0,
            "done_bytes": 50,
            "total_bytes": 107,
            "bytes_per_second": None,
            "seconds_left": None,
        },
        {"event": "file_done", "file": "样本.vcf.gz", "size": 100},
        {"event": "verifying", "file": "样本.vcf.gz"},
        {"event": "note", "message": "GET /a?Signature=…"},
    ]


def test_json_progress_comes_once_a_second_for_each_task(log, events, clock):
    screen = JsonLines(log, clock=clock)
    tasks = [screen.reporter(TASK), screen.reporter(OTHER)]
    for task in tasks:
        task.file_sized("a", 10_000, resumed=0)
    for _ in range(20):
        clock.advance(0.1)
        for task in tasks:
            task.received("a", 100)
    progress = [event for event in events() if event["event"] == "progress"]
    assert [event["task_id"] for event in progress] == [TASK, OTHER] * 2
    assert progress[-1]["done_bytes"] == 1100
    assert progress[-1]["bytes_per_second"] == pytest.approx(1000, rel=0.02)


def test_people_read_stderr_while_json_goes_to_stdout(log, clock):
    people = io.StringIO()
    JsonLines(log, people=people, clock=clock).say("for people")
    assert (log.getvalue(), people.getvalue()) == ("", "for people\n")


# All of them.


@pytest.mark.parametrize("kind", [Bars, Lines, JsonLines])
def test_a_reader_that_goes_away_never_ends_the_work(kind, clock):
    with kind(Broken(), clock=clock) as screen:
        task = screen.reporter(TASK)
        task.polled("PENDING", polls=1, next_in_seconds=5)
        task.planned([PlannedFile("a")])
        task.file_sized("a", 10, resumed=0)
        task.note("still there?")
        screen.say("hello")


@pytest.mark.parametrize("kind", [Bars, Lines, JsonLines])
def test_what_is_heard_after_the_close_is_not_shown(kind, log, clock):
    screen = kind(log, clock=clock)
    task = screen.reporter(TASK)
    screen.close()
    screen.close()
    before = log.getvalue()
    task.polled("PENDING", polls=1, next_in_seconds=5)
    task.planned([PlannedFile("a")])
    task.file_sized("a", 10, resumed=0)
    clock.advance(60)
    task.received("a", 10)
    task.finished()
    assert log.getvalue() == before


def test_the_base_is_silent():
    with Quiet() as screen:
        screen.say("nothing")
        assert type(screen.reporter(TASK)) is Reporter


@pytest.mark.parametrize(
    ("flags", "term", "stderr", "kind"),
    [
        ("", "xterm-256color", Terminal, Bars),
        ("", "xterm-256color", io.StringIO, Lines),
        ("", "dumb", Terminal, Lines),
        ("", "", Terminal, Lines),
        ("quiet", "xterm", Terminal, Screen),
        ("json", "xterm", Terminal, JsonLines),
        ("json quiet", "xterm", Terminal, JsonLines),
        ("", "xterm", lambda: None, Screen),  # started without a stderr
    ],
)
def test_the_screen_fits_the_place(flags, term, stderr, kind, monkeypatch):
    monkeypatch.setenv("TERM", term)
    screen = choose_screen(
        quiet="quiet" in flags, json="json" in flags, stderr=stderr(), stdout=io.StringIO()
    )
    assert type(screen) is kind


def test_a_closed_stderr_is_no_terminal():
    stderr = io.StringIO()
    stderr.close()
    assert type(choose_screen(quiet=False, json=False, stderr=stderr, stdout=None)) is Lines


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_silences_stderr_beside_json(quiet):
    stderr = io.StringIO()
    choose_screen(quiet=quiet, json=True, stderr=stderr, stdout=io.StringIO()).say("for people")
    assert stderr.getvalue() == ("" if quiet else "for people\n")


def test_only_bars_pay_for_tqdm():
    code = "import sys, downloader.screens as s; s.Lines(sys.stderr); print('tqdm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
