"""Ctrl-C before the program has begun, and after it is done: as any program, and not a word."""

import signal
import subprocess
import sys

import pytest

WHILE_IT_LOADS = """
import os, signal, sys
from downloader.__main__ import main

class Interrupts:
    def find_spec(self, name, *_):
        if name == "downloader.cli.options":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
sys.argv = ["bge-downloader", "--version"]
main()
"""
# What asyncio hears of signals by is closed first; only then it stops listening.
WHILE_ITS_LOOP_ENDS = """
import asyncio, os, signal
from asyncio import selector_events
from downloader.cli.running import run, told

close = selector_events.BaseSelectorEventLoop._close_self_pipe

def closes(self):
    close(self)
    os.kill(os.getpid(), signal.{name})

selector_events.BaseSelectorEventLoop._close_self_pipe = closes

async def work():
    pass

with told():
    run(work())
"""
WHEN_ALL_IS_TOLD = """
import atexit, os, signal, threading
from downloader.__main__ import main

atexit.register(os.kill, os.getpid(), signal.SIGINT)
main()
"""


def ended(code, *arguments):
    """Return how a program ends that gets a signal as it says, and what it says on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_ctrl_c_while_it_loads():
    assert ended(WHILE_IT_LOADS) == (-signal.SIGINT, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_the_loop_ends(name):
    code = WHILE_ITS_LOOP_ENDS.format(name=name)
    assert ended(code) == (-signal.Signals[name], "")


def test_ctrl_c_when_all_is_told():
    assert ended(WHEN_ALL_IS_TOLD, "--version") == (-signal.SIGINT, "")
