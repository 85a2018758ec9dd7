"""Runs commands one after the other and tells what they took: the only one who measures.

It is a process of its own, started as `python -I -S launch.py`, because of how Linux counts: a
process's `ru_maxrss` begins with that of whoever started it. The smaller that one is, the smaller
are the peaks that can be told.
"""

import json
import os
import sys
import time


def main() -> None:
    order = json.load(sys.stdin)
    os.chdir(order["cwd"])
    taken = {"wall": 0.0, "cpu": 0.0, "rss": 0, "exit_code": 0}
    for command in order["commands"]:
        one = _run(command, order["environment"], order["log"])
        taken["wall"] += one["wall"]
        taken["cpu"] += one["cpu"]
        taken["rss"] = max(taken["rss"], one["rss"])
        taken["exit_code"] = one["exit_code"]
        if taken["exit_code"]:
            break
    json.dump(taken, sys.stdout)


def _run(command: list[str], environment: dict[str, str], log: str) -> dict[str, float]:
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, appended, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    began = time.monotonic()
    pid = os.posix_spawnp(command[0], command, environment, file_actions=streams)
    _, status, usage = os.wait4(pid, 0)
    return {
        "wall": time.monotonic() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": usage.ru_maxrss * 1024,
        "exit_code": os.waitstatus_to_exitcode(status),
    }


if __name__ == "__main__":
    main()
