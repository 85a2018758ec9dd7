"""A process that has loaded the program, and forks it as often as it is asked to.

Loading takes three times as long as a small fetch, and a row may need several processes. It is
the program all the same: its own process, session, environment, arguments and descriptors. Where
the loading is what a row is about, the program is started from nothing.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import socket
import sys
from dataclasses import replace
from typing import Any, NoReturn

MODULES = ("downloader.__main__", "downloader.cli.fetch_command", "downloader.app", "state.store")
MAX_REQUEST = 65536


def main() -> None:
    """Serve the socket that is stdin, until it is closed."""
    for name in MODULES:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    link = socket.socket(fileno=os.dup(0))
    while True:
        message, descriptors, _, _ = socket.recv_fds(link, MAX_REQUEST, 3)
        if not message:
            return
        if os.fork() == 0:
            link.close()
            _keep(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _keep(request: dict[str, Any], out: int, err: int, told: int) -> NoReturn:
    """Fork the program, tell its number, wait for it, and tell its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _become(request, out, err)
    os.close(out)
    os.close(err)
    os.write(told, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request: dict[str, Any], out: int, err: int) -> NoReturn:
    os.setsid()
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
        os.dup2(descriptor, number)
    os.closerange(3, 64)
    os.environ.clear()
    os.environ.update(request["environment"])
    if (most := request["largest_file"]) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    _hear_signals()
    arguments = request["arguments"]
    if request["is_cold"]:
        os.execv(sys.executable, [sys.executable, "-m", "downloader", *arguments])
    if request["first_length"] is not None:
        _take_for_large(request["first_length"], road=request["road"])
    if (orders := os.environ.get("FAULTY_ORDERS")) is not None:
        ctypes.CDLL(None).faulty_obey(os.fsencode(orders))
    sys.argv = ["bge-downloader", *arguments]
    sys.modules["downloader.__main__"].main()
    raise SystemExit(0)


def _hear_signals() -> None:
    """Let signals do what they usually do: a job in the background has no Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _take_for_large(first_length: int, *, road: str) -> None:
    """Let a file of some KiB come as one of gigabytes does: by two segments, on this road."""
    app = sys.modules["downloader.app"]
    usual = app.fetch_options

    def options(*args: object, **details: object) -> object:
        given = usual(*args, **details)
        transfer = replace(given.transfer, first_length=first_length, segments=2)
        if road == "plain":
            transfer = replace(transfer, straight_road=None)
        return replace(given, transfer=transfer)

    app.fetch_options = options


if __name__ == "__main__":
    main()
