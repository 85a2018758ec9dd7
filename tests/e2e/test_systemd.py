"""The units under a real systemd: valid, tight, and they do what their comments promise."""

import asyncio
import re

import pytest
from e2e_helpers import MIB, PAIR, published, until
from systemd_helpers import UNITS, booted, why_no_machine

from downloader.sandbox import Fault, samples

pytest_plugins = ["e2e_helpers"]

DAEMON = "bge-downloader.service"
TEMPLATE = "bge-downloader-fetch@.service"
BOTH_UNITS = "bge-.service"  # systemd.unit(5): drop-ins of all whose names begin so
BOTH = pytest.mark.parametrize("unit", [DAEMON, TEMPLATE])
WORST_EXPOSURE = 15  # tenths: 1.5 of 10
DYNAMIC_USERS = range(61184, 65520)  # systemd's docs/UIDS-GIDS.md
STATE = "/var/lib/private/bge-downloader"  # where StateDirectory= of a dynamic user is
ELSEWHERE = "/var/data/results"
ACCOUNT = 777
NO_CREDENTIALS = "243"  # systemd.exec(5), EXIT_CREDENTIALS
READY = ("SUCCESS",)  # the daemon asks once a second at the most
BIG = samples.incompressible(12 * MIB, seed=5)


@pytest.fixture(scope="module")
def booted_machine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("machine")
    if reason := why_no_machine(directory):
        pytest.skip(reason)
    with booted(directory) as machine:
        yield machine


@pytest.fixture
async def machine(booted_machine, sandbox):
    """Give the machine, set up for the sandbox; nothing that is started there outlives the test."""
    machine = booted_machine
    settings = sandbox.environment()
    for name in ("app_key", "app_secret"):
        secret = settings.pop(f"BGE_{name.upper()}")
        machine.write(f"/etc/bge-downloader/{name}", secret, mode=0o600)
    settings |= {
        "BGE_POLL_INTERVAL": "0.01",
        "BGE_POLL_MAX_INTERVAL": "0.05",
        "BGE_RETRY_MAX_DELAY": "0.05",
        "BGE_SEGMENTS": "1",  # others would help the one that is held back
    }
    lines = [f"Environment={name}={value}" for name, value in settings.items()]
    machine.configure(BOTH_UNITS, "[Service]\n" + "\n".join(lines), name="settings")
    machine.configure(DAEMON, "[Service]\nRestartSec=50ms\nWatchdogSec=4s\n", name="haste")
    yield machine
    await systemctl(machine, "stop", "bge-downloader*")
    await systemctl(machine, "reset-failed")
    await asyncio.to_thread(machine.run, "rm", "-rf", STATE)


@pytest.fixture
async def daemon(machine):
    """Give the number of the daemon's process, once systemd knows that it works."""
    await systemctl(machine, "start", DAEMON)
    return machine.show(DAEMON, "MainPID")


async def systemctl(machine, *arguments, check=True):
    """Run systemctl while this loop goes on serving the sandbox."""
    return await asyncio.to_thread(machine.systemctl, *arguments, check=check)


async def add(machine, *task_ids):
    """Tell the daemon of tasks, as root does."""
    command = ["bge-downloader", "add", *task_ids, "--state", "/var/lib/bge-downloader/state.db"]
    await asyncio.to_thread(machine.run, *command)


def hold_back(sandbox, task_id):
    """Add a task whose last MiBs come only once what this returns is released."""
    sandbox.add_task({f"{task_id}/data.bin": BIG}, task_id=task_id, states=READY)
    return sandbox.store.inject(Fault.STALL, covering=len(BIG) - 1, after=MIB)


async def until_held(sandbox):
    await until(lambda: sandbox.store.bytes_served == 9 * MIB)


def result(machine, task_id):
    return machine.path(f"{STATE}/results/{task_id}")


def fetch_unit(task_id):
    return TEMPLATE.replace("@", f"@{task_id}")


def hardening(unit):
    text = (UNITS / unit).read_text(encoding="utf-8")
    return re.search(r"^# --- Hardening.*^# --- End of hardening", text, re.DOTALL | re.MULTILINE)[
        0
    ]


# What they say


@BOTH
def test_a_unit_is_valid(booted_machine, unit):
    checked = booted_machine.run("systemd-analyze", "verify", f"/run/systemd/system/{unit}")
    assert checked.stdout + checked.stderr == ""


@BOTH
def test_a_unit_leaves_little_to_attack(booted_machine, unit):
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={WORST_EXPOSURE}"]
    rated = booted_machine.run(*command, f"/run/systemd/system/{unit}", check=False)
    assert rated.returncode == 0, rated.stdout + rated.stderr


def test_both_units_are_hardened_alike():
    assert hardening(DAEMON) == hardening(TEMPLATE)


@BOTH
def test_every_block_of_a_unit_begins_with_its_reason(unit):
    lines = (UNITS / unit).read_text(encoding="utf-8").splitlines()
    pairs = zip(["", *lines], lines, strict=False)
    starts = [line for before, line in pairs if "=" in line and before == "" and line[0] != "#"]
    assert starts == []


# One task


async def test_one_task_is_fetched_by_a_user_that_only_systemd_knows(machine, sandbox):
    """The secret comes from a credential that root alone can read, and goes nowhere."""
    task_id = sandbox.add_task(PAIR)
    await systemctl(machine, "start", fetch_unit(task_id))
    assert published(result(machine, task_id)).keys() == {"a.vcf.gz", "a.vcf.gz.tbi"}
    owners = {path.lstat().st_uid for path in machine.path(STATE).rglob("*")}
    assert len(owners) == 1
    assert owners <= {*DYNAMIC_USERS}
    assert sandbox.app_secret not in str(machine.journal())


@pytest.mark.thorough
async def test_what_a_killed_fetch_held_is_taken_over_at_once(machine, sandbox):
    """The next one can see in /proc that its owner is dead, however much is hidden from it."""
    held, unit = hold_back(sandbox, "task"), fetch_unit("task")
    await systemctl(machine, "start", "--no-block", unit)
    await until_held(sandbox)
    await systemctl(machine, "kill", "--signal=KILL", unit)
    await until(lambda: machine.show(unit, "ActiveState") == "failed")
    held.release()
    await systemctl(machine, "start", unit)
    assert published(result(machine, "task")) == {"data.bin": BIG}


@pytest.mark.thorough
async def test_a_fetch_that_is_stopped_has_not_failed(machine, sandbox):
    hold_back(sandbox, "task")
    unit = fetch_unit("task")
    await systemctl(machine, "start", "--no-block", unit)
    await until_held(sandbox)
    await systemctl(machine, "stop", unit)
    assert machine.show(unit, "ActiveState") == "inactive"
    assert machine.show(unit, "Result") == "success"


@pytest.mark.thorough
async def test_with_an_account_results_may_go_anywhere(machine, sandbox):
    """As docs/systemd.md has it: an account, and one drop-in for both units."""
    task_id = sandbox.add_task(PAIR)
    passwd = machine.path("/etc/passwd")
    before = passwd.read_text()
    passwd.write_text(f"{before}bge-downloader:x:{ACCOUNT}:{ACCOUNT}::/:/usr/sbin/nologin\n")
    machine.run("install", "-d", f"--owner={ACCOUNT}", f"--group={ACCOUNT}", ELSEWHERE)
    lines = ["[Service]", f"Environment=BGE_DEST={ELSEWHERE}", f"ReadWritePaths={ELSEWHERE}"]
    machine.configure(BOTH_UNITS, "\n".join(lines), name="elsewhere")
    await systemctl(machine, "start", fetch_unit(task_id))
    machine.configure(BOTH_UNITS, "", name="elsewhere")
    passwd.write_text(before)
    assert published(machine.path(f"{ELSEWHERE}/{task_id}")).keys() == {"a.vcf.gz", "a.vcf.gz.tbi"}
    assert machine.path(f"{ELSEWHERE}/{task_id}").stat().st_uid == ACCOUNT


@pytest.mark.thorough
async def test_a_task_that_failed_there_fails_its_unit_in_the_platforms_words(machine, sandbox):
    task_id = sandbox.add_task(states=("FAILURE",), result="no such sample")
    await systemctl(machine, "start", fetch_unit(task_id), check=False)
    assert machine.show(fetch_unit(task_id), "ExecMainStatus") == "3"
    said = [entry["MESSAGE"] for entry in machine.journal("-u", fetch_unit(task_id))]
    assert any("no such sample" in message for message in said)


# The daemon


async def test_a_missing_credential_is_told_and_not_tried_again(machine):
    machine.path("/etc/bge-downloader/app_secret").unlink()
    await systemctl(machine, "start", DAEMON, check=False)
    assert machine.show(DAEMON, "ActiveState") == "failed"
    assert machine.show(DAEMON, "ExecMainStatus") == NO_CREDENTIALS
    assert machine.show(DAEMON, "NRestarts") == "0"
    said = [entry["MESSAGE"] for entry in machine.journal("-u", DAEMON)]
    assert any("credentials" in message for message in said)


async def test_a_wrong_setting_is_not_tried_again(machine):
    machine.write("/etc/bge-downloader/config.toml", "segmints = 3\n")
    await systemctl(machine, "start", DAEMON, check=False)
    machine.path("/etc/bge-downloader/config.toml").unlink()
    assert machine.show(DAEMON, "ActiveState") == "failed"
    assert machine.show(DAEMON, "ExecMainStatus") == "2"
    assert machine.show(DAEMON, "NRestarts") == "0"


async def test_the_daemon_publishes_what_is_added(machine, sandbox, daemon):
    """It is active only when it works, says in a line what it does, and feeds the watchdog."""
    assert machine.show(DAEMON, "ActiveState") == "active"
    assert machine.show(DAEMON, "StatusText") != ""
    first_sign = machine.show(DAEMON, "WatchdogTimestampMonotonic")
    task_id = sandbox.add_task(PAIR, states=READY)
    await add(machine, task_id)
    await until(result(machine, task_id).exists)
    assert published(result(machine, task_id)).keys() == {"a.vcf.gz", "a.vcf.gz.tbi"}
    await until(lambda: machine.show(DAEMON, "WatchdogTimestampMonotonic") != first_sign)
    assert machine.show(DAEMON, "MainPID") == daemon
    sandbox.store.forget_requests()
    await systemctl(machine, "start", fetch_unit(task_id))  # the two share state and results
    assert sandbox.store.requests == []


async def test_a_reload_drops_no_transfer(machine, sandbox, daemon):
    held = hold_back(sandbox, "task")
    await add(machine, "task")
    await until_held(sandbox)
    await systemctl(machine, "reload", DAEMON)
    await until(lambda: machine.show(DAEMON, "SubState") == "running")
    held.release()
    await until(result(machine, "task").exists)
    assert machine.show(DAEMON, "MainPID") == daemon
    assert sandbox.store.bytes_served == len(BIG)


async def test_a_killed_daemon_is_started_again_and_goes_on(machine, sandbox, daemon):
    held = hold_back(sandbox, "task")
    await add(machine, "task")
    await until_held(sandbox)
    await systemctl(machine, "kill", "--signal=KILL", "--kill-whom=main", DAEMON)
    held.release()
    await until(result(machine, "task").exists)
    assert published(result(machine, "task")) == {"data.bin": BIG}
    assert machine.show(DAEMON, "NRestarts") == "1"
    assert machine.show(DAEMON, "MainPID") != daemon


@pytest.mark.usefixtures("daemon")
async def test_a_daemon_that_is_stopped_drains_and_has_not_failed(machine, sandbox):
    """Whatever it was doing; nobody has to be killed for it."""
    hold_back(sandbox, "task")
    await add(machine, "task")
    await until_held(sandbox)
    await systemctl(machine, "stop", DAEMON)
    assert machine.show(DAEMON, "ActiveState") == "inactive"
    assert machine.show(DAEMON, "Result") == "success"
    assert not result(machine, "task").exists()


@pytest.mark.usefixtures("daemon")
async def test_lines_in_the_journal_have_priorities_and_no_time_of_their_own(machine, sandbox):
    good = sandbox.add_task(PAIR, states=READY)
    failed = sandbox.add_task(states=("FAILURE",), result="no such sample")
    await add(machine, good, failed)
    await until(result(machine, good).exists)
    await until(lambda: "no such sample" in str(words(machine)))
    await systemctl(machine, "stop", DAEMON)
    entries = words(machine)
    priorities = {entry["PRIORITY"] for entry in entries}
    assert "6" in priorities
    assert priorities & {"3", "4"}
    for entry in entries:
        assert not re.search(r"^<\d>|\d\d:\d\d:\d\d|\d{4}-\d\d-\d\d[T ]", entry["MESSAGE"])
    assert sandbox.app_secret not in str(entries)


def words(machine):
    """Return what the program itself has said as a daemon, since the machine was booted."""
    return machine.journal(f"_SYSTEMD_UNIT={DAEMON}", "_TRANSPORT=stdout")
