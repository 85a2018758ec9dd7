"""The service as a process: many tasks at once, of every kind, and each has its own end.

With BGE_TEST_TORTURE=1 they are 200, otherwise 30.
"""

import os
from collections import Counter
from pathlib import Path

import pytest
from e2e_helpers import MIB, TBI, VCF, until

from downloader.sandbox import Fault, samples

pytest_plugins = ["e2e_helpers"]

LATER = ("PENDING", "STARTED", "SUCCESS")
SHARE = 1.0 if os.environ.get("BGE_TEST_TORTURE") else 0.15
SETTINGS = {
    "BGE_CALLS_PER_SECOND": "1000",
    "BGE_TASK_ATTEMPTS": "1",  # a second one would come half a minute later
    "BGE_ALLOWED_HOSTS": "127.0.0.1",
}


class Kinds:
    """Adds tasks to the sandbox, and knows how each must end."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.ends = {}  # phase and exit code by task id
        self.files = {}  # what must be published

    def add(self, count, phase, exit_code, make):
        for number in range(max(1, round(SHARE * count))):
            task_id, files = make(number)
            self.ends[task_id] = (phase, exit_code)
            if phase == "published":
                self.files[task_id] = {Path(key).name: data for key, data in files.items()}

    def task(self, files, **details):
        return self.sandbox.add_task(files, **{"states": LATER, **details}), files

    def faulty(self, files, fault, **details):
        key = next(iter(files))
        self.sandbox.store.inject(fault, key=key, **details)
        return self.task(files)


def pair(number, kind):
    return {f"{kind}/{number}/a.vcf.gz": VCF, f"{kind}/{number}/a.vcf.gz.tbi": TBI}


def add_all(kinds):
    large = samples.incompressible(9 * MIB)
    kinds.add(110, "published", None, lambda n: kinds.task(pair(n, "plain")))
    kinds.add(20, "published", None, lambda n: kinds.faulty(pair(n, "cut"), Fault.CUT, after=100))
    kinds.add(10, "published", None, lambda n: kinds.faulty(pair(n, "flip"), Fault.FLIP_BYTE))
    kinds.add(10, "published", None, lambda n: kinds.faulty(pair(n, "expired"), Fault.EXPIRED))
    kinds.add(5, "published", None, lambda n: kinds.task({f"large/{n}/b.bin": large}))
    kinds.add(
        10,
        "published",
        None,
        lambda n: kinds.task({f"many/{n}/{i}.txt": f"{n} {i}".encode() for i in range(30)}),
    )
    kinds.add(15, "failed", 3, lambda n: kinds.task({}, states=("PENDING", "FAILURE")))
    kinds.add(5, "failed", 1, lambda n: kinds.task({}, result=["https://example.org/a.vcf.gz"]))
    kinds.add(5, "failed", 5, lambda n: kinds.task({f"broken/{n}/a.vcf.gz": b"not one block"}))
    kinds.add(5, "failed", 1, lambda n: kinds.task({}, result="not a list at all"))
    kinds.add(5, "cancelled", None, lambda n: kinds.task({}, states=("PENDING",)))


@pytest.fixture
def kinds(sandbox):
    kinds = Kinds(sandbox)
    add_all(kinds)
    return kinds


def memory_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def open_files(pid):
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


@pytest.mark.thorough
async def test_many_tasks_at_once_each_come_to_their_own_end(program, kinds, tmp_path, sandbox):
    told = tmp_path / "told"
    hook = f'["sh", "-c", "echo $BGE_EVENT $BGE_TASK_ID >> {told}"]'
    (program.cwd / "bge-downloader.toml").write_text(f"on_complete = {hook}\non_failure = {hook}\n")
    service = await program.start("run", environment=SETTINGS)
    await service.says("Ready")
    at_first = memory_mib(service.pid)

    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(kinds.ends))
    added = await program.run("add", "--file", ids, "--quiet")
    assert (added.exit_code, added.stdout) == (0, "")

    awaited = Counter(phase for phase, _ in kinds.ends.values())
    ended = awaited["published"] + awaited["failed"]
    await until(lambda: told.exists() and told.read_text().count("\n") >= ended)
    files = open_files(service.pid)
    never = [task_id for task_id, end in kinds.ends.items() if end[0] == "cancelled"]
    assert (await program.run("cancel", *never)).exit_code == 0

    status = await program.run("status", "--json")
    tasks = {task["task_id"]: task for task in status.events}
    found = {task_id: (task["phase"], task["exit_code"]) for task_id, task in tasks.items()}
    assert found == kinds.ends
    for task_id, expected in kinds.files.items():
        directory = program.dest / task_id
        assert {name: (directory / name).read_bytes() for name in expected} == expected
        assert [event["kind"] for event in tasks[task_id]["events"]][-1] == "announced"

    announced = Counter(line.split()[0] for line in told.read_text().splitlines())
    assert announced == {"complete": awaited["published"], "failure": awaited["failed"]}
    # 64 tasks at a time, their checks (htslib), and 16 MiB of buffers.
    assert memory_mib(service.pid) < at_first + 90
    assert files < 200  # connections that are kept for the next request are among them
    service.signal(15)
    ended = await service.ends()
    assert ended.exit_code == 143
    assert sandbox.app_secret not in ended.stderr
    assert "Signature" not in ended.stderr
