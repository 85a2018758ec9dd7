"""Bars as a person sees them: on a real pseudo-terminal, read through a small emulator."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
import unicodedata
from collections.abc import Iterator

import pytest

from downloader.progress import PlannedFile
from downloader.screens import Bars

MIB = 1024 * 1024
TASK = "6990ab12-0000-4c11-9a10-5f2d1e3f2a00"
OTHER = "6990ab12-0000-4c11-9a10-5f2d1e3f2bcd"
CHINESE = "样本的全基因组变异检测结果_20240829_最终版本.vcf.gz"
END = "\x04"  # written behind everything else, so that reading knows where to stop


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def cells_of(char: str) -> int:
    if unicodedata.category(char) == "Mn":
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


class Emulator:
    """As much of a terminal as the bars may use; anything else is an error."""

    PIECES = re.compile(r"\x1b\[(\d*)([AKJ])|([\r\n])|([^\x00-\x1f\x7f-\x9f])", re.DOTALL)

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        position = 0
        while position < len(text):
            piece = self.PIECES.match(text, position)
            assert piece, f"unexpected {text[position : position + 9]!r}"
            position = piece.end()
            count, command, move, char = piece.groups()
            if command == "A":
                self.row = max(0, self.row - int(count or 1))
            elif command:
                self._clear(below=command == "J")
            elif move:
                self._go_to(self.row + (move == "\n"), self.column if move == "\n" else 0)
            else:
                self._put(char)

    def _clear(self, *, below: bool) -> None:
        del self.rows[self.row][self.column :]
        if below:
            del self.rows[self.row + 1 :]

    def _go_to(self, row: int, column: int) -> None:
        self.row, self.column = row, column
        while len(self.rows) <= row:
            self.rows.append([])

    def _put(self, char: str) -> None:
        width = cells_of(char)
        if self.column + width > self.columns:
            self._go_to(self.row + 1, 0)
        row = self.rows[self.row]
        row.extend(" " * (self.column + width - len(row)))
        if not width:
            row[self.column - 1] += char
        row[self.column : self.column + width] = [char, ""][:width]
        self.column += width

    def lines(self) -> list[str]:
        shown = ["".join(row).rstrip() for row in self.rows]
        while shown and not shown[-1]:
            shown.pop()
        return shown


class Window:
    """A pseudo-terminal with the emulator behind it."""

    def __init__(self, columns: int = 100, rows: int = 30) -> None:
        self.master, slave = pty.openpty()
        self.slave = os.fdopen(slave, "w", encoding="utf-8")
        self.resize(columns, rows)
        self.emulator = Emulator(columns)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def lines(self) -> list[str]:
        os.write(self.slave.fileno(), END.encode())
        text = b""
        while not text.endswith(END.encode()):
            text += os.read(self.master, 65536)
        self.emulator.feed(text.decode().removesuffix(END))
        return self.emulator.lines()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.master)
        with contextlib.suppress(OSError):
            self.slave.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def window() -> Iterator[Window]:
    window = Window()
    yield window
    window.close()


@pytest.fixture
def bars(window, clock):
    with Bars(window.slave, clock=clock) as bars:
        yield bars


def begin(bars, *names, task_id=TASK, size=100 * MIB):
    """Let a task plan files of the same size and begin with all of them."""
    task = bars.reporter(task_id)
    task.planned([PlannedFile(name) for name in names])
    for name in names:
        task.file_sized(name, size, resumed=0)
    return task


def test_waiting_is_one_line_that_counts_down_in_place_and_goes_when_files_come(
    bars, window, clock
):
    task = bars.reporter(TASK)
    task.polled("PENDING", polls=3, next_in_seconds=12)
    assert window.lines() == ["6990…2a00 PENDING, asked 3 times, next in 12 s"]
    clock.advance(5)
    bars.touch()
    assert window.lines() == ["6990…2a00 PENDING, asked 3 times, next in 7 s"]
    clock.advance(7)
    task.planned([PlannedFile("a"), PlannedFile("b")])
    assert window.lines() == ["0/2 files                  0% |            |        0 B"]


def test_tasks_that_wait_share_one_line(bars, window, clock):
    bars.reporter(TASK).polled("PENDING", polls=1, next_in_seconds=60)
    clock.advance(1)
    bars.reporter(OTHER).polled("STARTED", polls=2, next_in_seconds=5)
    assert window.lines() == ["6990…2bcd (and 1 more) STARTED, asked 2 times, next in 5 s"]


def test_there_is_a_line_for_all_files_and_one_for_each(bars, window, clock):
    task = begin(bars, "a.vcf.gz", "b.vcf.gz")
    task.received("a.vcf.gz", 40 * MIB)
    task.received("b.vcf.gz", 10 * MIB)
    clock.advance(1)
    bars.touch()
    label, rest = zip(*(line.split("|", 1) for line in window.lines()), strict=True)
    assert label == (
        "0/2 files                 25% ",
        "a.vcf.gz                  40% ",
        "b.vcf.gz                  10% ",
    )
    assert rest == (
        "███         |   50.0 MiB of 200.0 MiB    50.0 MiB/s  3 s left",
        "████▊       |   40.0 MiB of 100.0 MiB    40.0 MiB/s  2 s left",
        "█▏          |   10.0 MiB of 100.0 MiB    10.0 MiB/s  9 s left",
    )


@pytest.mark.parametrize("columns", [200, 100, 89, 88, 60, 57, 40, 36, 20, 8, 2])
@pytest.mark.parametrize("name", ["a", CHINESE, "n" * 300, "e\u0301" * 80, "a{b}%s\x1b[2J"])
def test_no_line_is_wrapped_and_all_columns_stand_in_line(columns, name, clock):
    window = Window(columns)
    with Bars(window.slave, clock=clock) as bars:
        task = begin(bars, name, "b.vcf.gz.tbi")
        bars.reporter(OTHER).polled("PENDING", polls=7, next_in_seconds=3599)
        clock.advance(1)
        task.received(name, 33 * MIB)
        task.verifying(name)
        clock.advance(1)
        bars.touch()
        lines = window.lines()
        assert len(lines) == 5
        bar_columns = [sum(map(cells_of, line.partition("|")[0])) for line in lines[:3]]
        assert len(set(bar_columns)) == 1 or columns < 40  # where there is no bar
    window.close()


def test_no_more_than_eight_files_and_no_more_than_fit_are_shown(bars, window, clock):
    begin(bars, *(f"{number}.vcf.gz" for number in range(20)))
    clock.advance(1)
    bars.touch()
    assert len(window.lines()) == 1 + 8
    window.resize(100, 5)
    clock.advance(1)
    bars.say("a smaller window")
    assert [line[:9].strip() for line in window.lines()] == [
        "a smaller",
        "0/20 file",
        "0.vcf.gz",
        "1.vcf.gz",
        "2.vcf.gz",
    ]


def test_a_file_that_is_here_in_a_moment_gets_no_bar(bars, window, clock):
    task = bars.reporter(TASK)
    task.planned([PlannedFile(f"{number}.tbi", 10) for number in range(20_000)])
    for number in range(100):
        task.file_sized(f"{number}.tbi", 10, resumed=0)
        clock.advance(0.2)
        task.received(f"{number}.tbi", 10)
        task.file_done(f"{number}.tbi")
    clock.advance(0.1)
    bars.touch()
    lines = window.lines()
    assert len(lines) == 1
    assert lines[0].startswith("100/20,000 files")


def test_a_hundred_percent_is_all_of_it(bars, window, clock):
    task = begin(bars, "a", size=1000)
    task.received("a", 999)
    clock.advance(1)
    bars.touch()
    assert all(" 99% " in line for line in window.lines())


def test_a_restarted_file_moves_its_bar_back_and_the_reason_stays_above(bars, window, clock):
    task = begin(bars, "a.vcf.gz")
    task.received("a.vcf.gz", 80 * MIB)
    clock.advance(1)
    bars.touch()
    before = window.lines()
    task.received("a.vcf.gz", -80 * MIB)
    task.note("a.vcf.gz: the object changed; starting this file again")
    task.file_sized("a.vcf.gz", 50 * MIB, resumed=0)
    clock.advance(0.1)
    bars.touch()
    after = window.lines()
    assert " 80% " in before[1]
    assert after[0] == "a.vcf.gz: the object changed; starting this file again"
    assert [" 0% " in line for line in after[1:]] == [True, True]
    assert "0 B of 50.0 MiB" in after[2]


def test_a_message_longer_than_the_window_leaves_nothing_behind(bars, window, clock):
    begin(bars, "a", "b", "c")
    clock.advance(1)
    bars.say("word " * 50)
    clock.advance(1)
    bars.say("\x1b[31mshort\x1b[0m")
    lines = window.lines()
    assert lines[3] == "?[31mshort?[0m"
    assert [line[:2].strip() for line in lines[4:]] == ["0/", "a", "b", "c"]


def test_checking_is_shown_below(bars, window, clock):
    task = begin(bars, "a.vcf.gz")
    task.file_done("a.vcf.gz")
    clock.advance(0.2)
    task.verifying("a.vcf.gz")
    total, checking = window.lines()
    assert total == f"1/1 file                 100% |{'█' * 12}|  100.0 MiB of 100.0 MiB"
    assert checking == "checking a.vcf.gz"


def test_a_finished_task_takes_its_bars_away_and_still_counts_beside_others(bars, window, clock):
    first = begin(bars, "a.vcf.gz", "b.vcf.gz")
    second = begin(bars, "c.vcf.gz", task_id=OTHER)
    clock.advance(1)
    first.file_done("a.vcf.gz")
    assert [line[:18].rstrip() for line in window.lines()] == [
        "1/3 files",
        "6990…2a00 b.vcf.gz",
        "6990…2bcd c.vcf.gz",
    ]
    first.finished()
    assert [line[:18].rstrip() for line in window.lines()] == ["1/2 files", "6990…2bcd c.vcf.gz"]
    second.finished()
    assert window.lines() == []


def test_an_exception_leaves_the_terminal_clean(window, clock):
    def interrupted():
        with Bars(window.slave, clock=clock) as bars:
            begin(bars, "a", "b")
            clock.advance(1)
            bars.say("kept")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert window.lines() == ["kept"]
    assert (window.emulator.row, window.emulator.column) == (1, 0)


def test_bars_step_aside_for_another_writer_and_come_back_below(bars, window, clock):
    begin(bars, "a")
    clock.advance(1)
    bars.touch()
    with bars.aside():
        assert window.lines() == []
        print("a result", file=window.slave, flush=True)
    clock.advance(1)
    bars.touch()
    assert [line[:9].rstrip() for line in window.lines()] == ["a result", "0/1 file", "a"]


def test_what_is_said_after_the_close_is_a_plain_line(window, clock):
    bars = Bars(window.slave, clock=clock)
    begin(bars, "a")
    bars.close()
    bars.say("goodbye")
    assert window.lines() == ["goodbye"]


def test_drawing_is_throttled_to_ten_a_second(clock):
    """Chunks arrive by the thousand; formatting each of them would cost the transfer its speed."""

    class Counting(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            return len(text)

    stream = Counting()
    with Bars(stream, clock=clock) as bars:
        task = begin(bars, "a")
        stream.writes = 0
        for _ in range(10_000):
            clock.advance(0.0001)
            task.received("a", 1000)
    assert stream.writes <= 11


async def test_bars_go_on_drawing_while_nothing_is_heard(bars, clock):
    """A stall must be seen; the drawing is done by the event loop, and ends with the close."""
    drawn = []
    begin(bars, "a")
    bars._draw()
    assert bars._beat._handle is not None
    clock.advance(60)
    bars._block.paint = lambda lines, **_: drawn.append(lines) or True
    bars._beat._strike()
    assert all("stalled" in line for line in drawn[0])
    bars.close()
    assert bars._beat._handle is None


def test_no_thread_is_left_behind(bars, clock):
    before = threading.active_count()
    task = begin(bars, "a", "b")
    clock.advance(1)
    task.received("a", 1)
    assert threading.active_count() == before


def test_a_paused_terminal_pauses_the_screen_and_not_the_work(bars, window, clock):
    """Ctrl-S: writing would block the event loop, and with it every transfer."""
    task = begin(bars, "a")
    before = window.lines()
    termios.tcflow(window.slave, termios.TCOOFF)
    clock.advance(1)
    task.received("a", MIB)  # a write that waits would wait for ever: the time limit tells
    bars.say("said meanwhile")
    termios.tcflow(window.slave, termios.TCOON)
    assert window.lines() == before
    clock.advance(1)
    bars.touch()
    assert window.lines()[0] == "said meanwhile"


def test_a_terminal_that_hangs_up_is_left_alone(bars, window, clock):
    task = begin(bars, "a")
    os.close(window.master)
    clock.advance(1)
    task.received("a", MIB)
    bars.say("nobody reads this")


def test_an_old_encoding_gets_an_ascii_bar(clock):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    with Bars(stream, clock=clock) as bars:
        task = begin(bars, CHINESE)
        clock.advance(1)
        task.received(CHINESE, 50 * MIB)
        bars.touch()
        shown = raw.getvalue().decode("latin-1")
    assert "|##" in shown
    assert "?" in shown
