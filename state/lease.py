"""Who holds a lease: a process named so well that others can tell when it has died.

Process numbers are reused, containers have numbers of their own, and machines share names. So
an owner is the machine, its boot, the pid namespace, the process and its start time. Only what
is certain counts as dead or as living; everything else waits for the lease to end by the clock.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

from state.records import Task

__all__ = [
    "LONGEST",
    "Owner",
    "current_owner",
    "describe_owner",
    "is_dead",
    "is_held",
    "is_living",
]

# Who holds a lease renews it within a minute: a longer one is of a clock that was wrong, and so is
# one that ended longer ago.
LONGEST = timedelta(days=30)
PROC = Path("/proc")
MACHINE_ID = Path("/etc/machine-id")
# Linux, include/linux/proc_ns.h: PROC_PID_INIT_INO, the namespace outside of all containers.
FIRST_PID_NAMESPACE = "4026531836"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process, and one user of the state in it; empty where the system does not tell."""

    host: str
    machine: str  # a digest: the id itself is not for others (man machine-id)
    boot: str
    namespace: str
    pid: int
    started: str  # clock ticks since boot
    suffix: str  # tells two users of the state in one process apart

    def __str__(self) -> str:
        return "/".join(str(getattr(self, field.name)) for field in fields(self))


def current_owner() -> str:
    """Return a new owner in this process; every call gives another."""
    stat = _process_stat(os.getpid())
    return str(
        Owner(
            host=re.sub(r"[^\w.-]", "_", socket.gethostname()),
            machine=_machine(),
            boot=_first_line(PROC / "sys/kernel/random/boot_id"),
            namespace=_pid_namespace(),
            pid=os.getpid(),
            started=stat.started if stat else "",
            suffix=secrets.token_hex(4),
        )
    )


def describe_owner(owner: str) -> str:
    """Return who that is, for people."""
    known = _parsed(owner)
    return f"process {known.pid} on {known.host}" if known else "another process"


def is_dead(owner: str, *, here: str | None = None) -> bool:
    """Tell whether the owner certainly lives no more, seen from `here` (this process).

    True only if its machine has been started anew, or if it was a process of this machine and
    this pid namespace that does not exist any more.
    """
    other, this = _parsed(owner), _parsed(here or current_owner())
    if other is None or this is None or not other.boot or not this.boot:
        return False
    if other.boot != this.boot:
        return _is_same_machine(other, this)
    if not other.namespace or (other.host, other.namespace) != (this.host, this.namespace):
        return False
    return _is_gone(other.pid, other.started)


def is_living(owner: str, *, here: str | None = None) -> bool:
    """Tell whether the owner certainly lives: another process that `here` (this one) can see.

    If its lease has ended, somebody has stopped it, and it will go on. This process runs: what it
    let end itself, it works on no more.
    """
    other, this = _parsed(owner), _parsed(here or current_owner())
    if other is None or this is None or not other.boot or not other.namespace:
        return False
    places = {(one.host, one.boot, one.namespace) for one in (other, this)}
    if len(places) > 1 or other.pid == this.pid:
        return False
    stat = _process_stat(other.pid)
    is_same = stat is not None and bool(other.started) and stat.started == other.started
    return is_same and not _is_gone(other.pid, other.started)


def is_held(task: Task, *, now: datetime | None = None) -> bool:
    """Tell whether somebody, who may be alive, works on the task now, or at that time."""
    if task.acquired_by is None or task.acquired_until is None:
        return False
    left = task.acquired_until - (now or datetime.now(UTC))
    if left > timedelta():
        return left < LONGEST and not is_dead(task.acquired_by)
    return -left < LONGEST and is_living(task.acquired_by)


def _is_same_machine(one: Owner, other: Owner) -> bool:
    """Tell whether two boots are of one machine; a container's name can move to another one."""
    namespaces = {one.namespace, other.namespace}
    is_same = bool(one.machine) and (one.machine, one.host) == (other.machine, other.host)
    return is_same and namespaces == {FIRST_PID_NAMESPACE}


def _parsed(owner: str) -> Owner | None:
    parts = owner.split("/")
    names = [field.name for field in fields(Owner)]
    values = dict(zip(names, parts, strict=False))
    pid = values.get("pid", "")
    # Python refuses to read a number of thousands of digits, which only damage can have written.
    if len(parts) != len(names) or not re.fullmatch(r"[1-9][0-9]{0,18}", pid):
        return None
    texts = {name: value for name, value in values.items() if name != "pid"}
    return Owner(pid=int(pid), **texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ProcessStat:
    state: str
    threads: str
    started: str


def _process_stat(pid: int) -> _ProcessStat | None:
    """Read what proc(5) tells in fields 3, 20 and 22; None if it tells nothing."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # Field 2 is the program's name in parentheses, and may hold spaces and parentheses.
    fields_from_3 = text.rpartition(")")[2].split()
    try:
        state, threads, started = (fields_from_3[number - 3] for number in (3, 20, 22))
    except IndexError:
        return None
    return _ProcessStat(state=state, threads=threads, started=started)


def _is_gone(pid: int, started: str) -> bool:
    """Tell whether the process with that number and start time certainly exists no more."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass  # it exists and is somebody else's, or the number is none
    # /proc alone is no proof of absence: `hidepid` hides the processes of others.
    stat = _process_stat(pid)
    if stat is None or not started:
        return False
    # A zombie has ended and waits for its parent, unless threads of it go on.
    return stat.started != started or (stat.state in "ZX" and stat.threads in {"0", "1"})


def _machine() -> str:
    identity = _first_line(MACHINE_ID)
    return (
        hashlib.sha256(f"bge-downloader {identity}".encode()).hexdigest()[:12] if identity else ""
    )


def _pid_namespace() -> str:
    try:
        return re.sub(r"\D", "", str((PROC / "self/ns/pid").readlink()))
    except OSError:
        return ""


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
