"""Whose work it is: a dead process gives it back at once, everybody else only by the clock."""

import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from state_helpers import START

from state import StateStore, current_owner, describe_owner, is_dead, is_held, lease
from state.lease import is_living

pytest_plugins = ["state_helpers"]

FIELDS = ["host", "machine", "boot", "namespace", "pid", "started", "suffix"]

pytestmark = pytest.mark.skipif(
    not current_owner().split("/")[2], reason="this system does not tell its boot (no /proc)"
)


def changed(owner, **values):
    """Return the owner with some of its facts replaced."""
    facts = dict(zip(FIELDS, owner.split("/"), strict=True))
    assert facts.keys() >= values.keys()
    return "/".join((facts | {name: str(value) for name, value in values.items()}).values())


@pytest.fixture
def process(start_python):
    """Start another process; give it and the owner that it would call itself."""
    started = start_python("import sys; print(flush=True); sys.stdin.read()")
    started.stdout.readline()
    began = lease._process_stat(started.pid).started
    return started, changed(current_owner(), pid=started.pid, started=began)


def test_a_process_calls_itself_what_others_see_of_it(process, start_python):
    """The tests below rely on it, and so does everyone who looks for a dead holder."""
    named = start_python("from state import current_owner; print(current_owner())")
    own, seen = named.stdout.readline().strip(), process[1]
    assert own.split("/")[:4] == seen.split("/")[:4]
    assert own.split("/")[4] == str(named.pid)


def pid_of_the_dead():
    """Return the number of a process that has just ended and was waited for."""
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    return ended.pid


# Owners


def test_an_owner_names_its_process_and_no_two_are_the_same():
    one, two = current_owner(), current_owner()
    assert one != two
    facts = dict(zip(FIELDS, one.split("/"), strict=True))
    assert facts["pid"] == str(os.getpid())
    assert facts["started"].isdecimal()
    assert not re.search(r"\s", one)


def test_an_owner_does_not_tell_the_machines_id(tmp_path, monkeypatch):
    """It is confidential (machine-id(5)), and a state may be anybody's server."""
    identity = tmp_path / "machine-id"
    identity.write_text("0123456789abcdef0123456789abcdef\n")
    monkeypatch.setattr(lease, "MACHINE_ID", identity)
    owner = current_owner()
    assert "0123456789abcdef" not in owner
    assert owner.split("/")[1]


def test_a_hosts_name_cannot_shift_the_other_facts(monkeypatch):
    monkeypatch.setattr(lease.socket, "gethostname", lambda: "a/b c")
    assert current_owner().split("/")[0] == "a_b_c"


def test_an_owner_is_described_for_people():
    owner = changed(current_owner(), host="node7", pid=4711)
    assert describe_owner(owner) == "process 4711 on node7"
    assert describe_owner("who knows") == "another process"


# Dead or alive


def test_a_living_process_is_not_dead(process):
    _, owner = process
    assert not is_dead(owner)
    assert not is_dead(current_owner())


def test_a_process_that_ended_is_dead(process):
    started, owner = process
    started.stdin.close()
    started.wait()
    assert is_dead(owner)


def test_a_killed_process_is_dead_before_its_parent_has_noticed(process):
    """It stays a zombie until it is waited for, which a busy supervisor may not do for long."""
    started, owner = process
    started.kill()
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    assert lease._process_stat(started.pid).state == "Z"
    assert is_dead(owner)


def test_a_stopped_process_is_alive(process):
    """Somebody pressed Ctrl-Z, and will go on tomorrow."""
    started, owner = process
    started.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, started.pid, os.WSTOPPED | os.WNOWAIT)
    assert not is_dead(owner)


def test_a_reused_number_is_not_the_process_that_had_it(process):
    _, owner = process
    facts = dict(zip(FIELDS, owner.split("/"), strict=True))
    assert is_dead(changed(owner, started=int(facts["started"]) - 1))


def test_a_process_of_another_user_is_alive(process, as_nobody):
    """To signal it is forbidden, which proves that it exists."""
    _, owner = process
    with as_nobody():
        assert not is_dead(owner)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"host": "another"},
        {"namespace": "1"},  # a container with process numbers of its own
        {"namespace": ""},
        {"boot": ""},
        {"boot": "another", "machine": "another"},
        {"boot": "another", "host": "another"},  # a machine made from the same image
        {"boot": "another", "machine": ""},
    ],
)
def test_what_cannot_be_seen_from_here_is_never_called_dead(elsewhere):
    owner = changed(current_owner(), pid=pid_of_the_dead())
    assert is_dead(owner)
    assert not is_dead(changed(owner, **elsewhere))


def test_a_process_from_before_the_machines_restart_is_dead():
    here = changed(current_owner(), machine="m", namespace=lease.FIRST_PID_NAMESPACE)
    there = changed(here, boot="before", pid=os.getpid())
    assert is_dead(there, here=here)
    assert not is_dead(there, here=changed(here, namespace="4026532000"))  # we are in a container


def test_a_process_whose_start_is_unknown_counts_as_alive_while_its_number_does(process):
    _, owner = process
    assert not is_dead(changed(owner, started=""))


def test_a_process_that_may_not_be_looked_at_is_alive(process, monkeypatch, tmp_path):
    """`/proc` may be mounted with `hidepid`, and shows nothing of others."""
    _, owner = process
    here = current_owner()
    monkeypatch.setattr(lease, "PROC", tmp_path)
    assert not is_dead(owner, here=here)


@pytest.mark.parametrize(
    "owner",
    [
        "",
        "/",
        "//////",
        "somebody",
        "h/m/b/n/1/2/3/4",
        *(f"h/m/b/n/{pid}/1/x" for pid in ("0", "-1", "x", "1.5", " 1", "\u0661", "\u00b2")),
        f"h/m/b/n/{'9' * 5000}/1/x",
        "\0",
    ],
)
def test_an_owner_that_nobody_can_read_is_not_dead(owner):
    assert not is_dead(owner)
    assert describe_owner(owner) == "another process"


def test_a_number_beyond_every_system_is_a_sentence_and_no_crash():
    owner = changed(current_owner(), pid=10**18)
    assert is_dead(owner) in {True, False}
    assert describe_owner(owner).startswith("process 1000000000000000000 on ")


def test_another_process_of_this_machine_certainly_lives_until_it_ends(process):
    started, owner = process
    assert is_living(owner)
    started.stdin.close()
    started.wait()
    assert not is_living(owner)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"host": "another"},
        {"boot": "another"},
        {"boot": ""},
        {"namespace": "4026532000"},
        {"namespace": ""},
        {"started": "1"},
        {"started": ""},
    ],
)
def test_of_nobody_else_it_is_certain_that_he_lives(process, elsewhere):
    _, owner = process
    assert not is_living(changed(owner, **elsewhere))


def test_what_this_process_let_end_it_works_on_no_more():
    assert not is_living(current_owner())


seven_texts = st.lists(st.text(max_size=8), min_size=7, max_size=7)


@given(owner=st.text(max_size=60) | seven_texts.map("/".join))
def test_no_text_in_a_lease_breaks_who_reads_it(owner):
    assert not is_dead(owner)
    assert not is_living(owner)
    assert describe_owner(owner)


# Leases


@pytest.fixture
def task(store):
    return store.ensure_task("t", "/data").id


def test_a_lease_is_acquired_renewed_and_released_by_the_clock(store, task, clock):
    one, two = current_owner(), current_owner()
    assert store.acquire(task, one, 30).acquired_until == START + timedelta(seconds=30)
    clock.advance(29)
    assert store.acquire(task, two, 30) is None
    assert store.renew(task, one, 30)
    assert store.get_task(task).acquired_until == START + timedelta(seconds=59)
    clock.advance(29.9)
    assert store.acquire(task, two, 30) is None
    store.release(task, one)
    assert (store.get_task(task).acquired_by, store.get_task(task).acquired_until) == (None, None)
    assert store.acquire(task, two, 30).acquired_by == two


def test_who_lost_a_lease_can_neither_renew_nor_release_it(store, task, clock):
    one, two = current_owner(), current_owner()
    store.acquire(task, one, 30)
    clock.advance(30)
    store.acquire(task, two, 30)
    assert not store.renew(task, one, 30)
    store.release(task, one)
    assert store.get_task(task).acquired_by == two


def test_a_lease_that_ran_out_unnoticed_is_still_its_owners(store, task, clock):
    """A laptop slept; nobody else came, so nothing is lost."""
    owner = current_owner()
    store.acquire(task, owner, 30)
    clock.advance(3600)
    assert store.renew(task, owner, 30)
    assert store.get_task(task).acquired_until == clock() + timedelta(seconds=30)


def test_nobody_renews_a_task_that_nobody_holds(store, task):
    assert not store.renew(task, current_owner(), 30)


HOLDER = """
import sys
from state import StateStore, current_owner
store = StateStore.open(sys.argv[1])
[task] = store.find_tasks()
owner = current_owner()
assert store.acquire(task.id, owner, 3600)
print(owner, flush=True)
sys.stdin.read()
"""


def test_a_killed_process_gives_its_lease_back_at_once(where, store, task, start_python):
    """Its clock would have held everybody else up for an hour."""
    store._clock = lambda: datetime.now(UTC)  # the other process has the real one
    holder = start_python(HOLDER, where)
    theirs, ours = holder.stdout.readline().strip(), current_owner()
    assert store.get_task(task).acquired_by == theirs
    assert store.acquire(task, ours, 30) is None
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert store.acquire(task, ours, 30).acquired_by == ours


def test_a_stopped_process_keeps_its_task_until_it_ends(store, task, process, clock):
    """Whoever took it over would find its directory locked, and both would fail."""
    started, theirs = process
    store.acquire(task, theirs, 30)
    started.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, started.pid, os.WSTOPPED | os.WNOWAIT)
    clock.advance(3600)
    assert is_held(store.get_task(task), now=clock())
    assert store.acquire(task, current_owner(), 30) is None
    assert store.renew(task, theirs, 30)
    clock.advance(3600)
    started.kill()
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
    assert store.acquire(task, current_owner(), 30) is not None


def test_a_lease_that_ended_long_ago_binds_nobody(store, task, process, clock):
    """A clock that was wrong has written it."""
    store.acquire(task, process[1], 30)
    clock.advance(30 + lease.LONGEST.total_seconds())
    assert store.acquire(task, current_owner(), 30) is not None


def test_another_hosts_lease_ends_only_by_the_clock(store, task, clock):
    there = changed(current_owner(), host="another", pid=pid_of_the_dead())
    store.acquire(task, there, 30)
    assert store.acquire(task, current_owner(), 30) is None
    clock.advance(29.999)
    assert store.acquire(task, current_owner(), 30) is None
    clock.advance(0.001)
    assert store.acquire(task, current_owner(), 30) is not None


def test_a_damaged_holder_is_waited_for_and_no_crash(store, task, clock):
    store.acquire(task, f"h/m/b/n/{'9' * 5000}/1/x", 30)
    assert store.acquire(task, current_owner(), 30) is None
    clock.advance(30)
    assert store.acquire(task, current_owner(), 30) is not None


CLAIMER = """
import sys
from state import StateStore, current_owner
store = StateStore.open(sys.argv[1])
tasks = [task.id for task in store.find_tasks()]
owner = current_owner()
print("ready", flush=True)
sys.stdin.readline()
print(*[task for task in tasks if store.acquire(task, owner, 3600)], flush=True)
sys.stdin.read()
"""


def test_of_two_processes_that_claim_at_once_each_task_has_one(where, start_python):
    with StateStore.open(where) as store:
        tasks = {store.ensure_task(f"t-{number}", "/data").id for number in range(25)}
    claimers = [start_python(CLAIMER, where) for _ in range(2)]
    assert [claimer.stdout.readline() for claimer in claimers] == ["ready\n"] * 2
    for claimer in claimers:
        claimer.stdin.write("\n")
        claimer.stdin.flush()
    claims = [[int(word) for word in claimer.stdout.readline().split()] for claimer in claimers]
    assert sorted(claims[0] + claims[1]) == sorted(tasks)
