"""On a terminal, bars: with bytes, rate and time left, and gone without a trace at the end."""

import asyncio
import contextlib
import fcntl
import os
import re
import signal
import struct
import termios

import pytest
from e2e_helpers import MIB, until

from downloader.sandbox import Fault, samples

pytest_plugins = ["e2e_helpers"]

ROWS, COLUMNS = 24, 100
BAR = re.compile(
    r"data\.bin +([0-9]+)% \|[^|]+\|"
    r" +[0-9.]+ [KM]iB of 6\.0 MiB +[0-9.]+ [KM]iB/s +([0-9]+ s) left"
)


class Terminal:
    """A pseudo-terminal, and what a person would see on it."""

    def __init__(self):
        self._ours, self.theirs = os.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        os.set_blocking(self._ours, False)
        self.written = ""
        asyncio.get_running_loop().add_reader(self._ours, self.take)

    def take(self):
        """Take what was written since the last time."""
        with contextlib.suppress(BlockingIOError, OSError):  # EIO: nobody holds the other side
            while data := os.read(self._ours, 65536):
                self.written += data.decode()

    def close(self):
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)
        os.close(self.theirs)

    @property
    def screen(self):
        """The lines that are seen now, as this small terminal understands what was written."""
        lines, row, column = [""], 0, 0
        for token in re.findall(r"\x1b\[[0-9]*[AKJ]|\r|\n|[^\x1b\r\n]+|\x1b", self.written):
            if token == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif token == "\r":
                column = 0
            elif token.endswith("A") and token.startswith("\x1b["):
                row -= int(token[2:-1] or 1)
            elif token.endswith(("K", "J")) and token.startswith("\x1b["):
                lines[row] = lines[row][:column]
                if token.endswith("J"):
                    del lines[row + 1 :]
            else:
                assert "\x1b" not in token, "an escape sequence that is not known here"
                lines[row] = lines[row][:column].ljust(column) + token
                column += len(token)
        return [line.rstrip() for line in lines if line.rstrip()]


async def test_bars_are_drawn_with_bytes_rate_and_time_left_and_leave_a_clean_screen(
    program, sandbox
):
    sandbox.add_task({"run/data.bin": samples.incompressible(6 * MIB)}, task_id="task")
    sandbox.store.total_bytes_per_second = 4 * MIB
    with contextlib.closing(Terminal()) as terminal:
        running = await program.start(
            "fetch", "task", stderr=terminal.theirs, environment={"TERM": "xterm"}
        )
        await until(lambda: BAR.search(terminal.written))
        ended = await running.ends()
        terminal.take()
        assert ended.exit_code == 0
        drawn = BAR.findall(terminal.written)
        assert drawn
        percents = [int(percent) for percent, _ in drawn]
        assert percents == sorted(percents)
        assert [line.partition(";")[0].partition(" in ")[0] for line in terminal.screen] == [
            "Published 1 file, 6.0 MiB",
            "Received 6.0 MiB",
        ]
        assert ended.stdout == f"{program.dest / 'task'}\n"


@pytest.mark.thorough
async def test_an_interrupted_run_leaves_one_sentence_where_the_bars_were(program, sandbox):
    sandbox.add_task({"run/data.bin": samples.incompressible(6 * MIB)}, task_id="task")
    sandbox.store.inject(Fault.STALL, covering=0, after=3 * MIB)
    with contextlib.closing(Terminal()) as terminal:
        running = await program.start(
            "fetch", "task", stderr=terminal.theirs, environment={"TERM": "xterm"}
        )
        await until(lambda: "data.bin" in terminal.written)  # it is drawn once it has taken a while
        running.signal(signal.SIGINT)
        assert (await running.ends()).exit_code == 130
        terminal.take()
        said = "".join(terminal.screen)
        assert said.startswith("bge-downloader: Interrupted; ")
        assert said.endswith("To go on: bge-downloader fetch task")
