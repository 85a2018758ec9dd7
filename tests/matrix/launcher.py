"""A process that has loaded the program, and forks it as often as it is asked to.

Loading takes three times as long as a small fetch, and a row may need several processes. It is
the program all the same: its own process, session, environment, arguments and descriptors.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import socket
import sys
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
    sys.argv = ["bge-downloader", *request["arguments"]]
    sys.modules["downloader.__main__"].main()
    raise SystemExit(0)


if __name__ == "__main__":
    main()
