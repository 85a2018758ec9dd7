"""A service in trouble for minutes: tasks come and go, everything fails now and then, and it dies.

For `make torture` alone. BGE_TEST_SOAK_SECONDS says how long, BGE_TEST_SOAK_SEED which trouble.
"""

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from e2e_helpers import Program

from downloader.sandbox import Fault, PlatformFault, Sandbox, samples
from state import Phase, StateStore

SECONDS = float(os.environ.get("BGE_TEST_SOAK_SECONDS", "120"))
SEED = int(os.environ.get("BGE_TEST_SOAK_SEED", "1"))
MIB = 1024 * 1024

pytestmark = pytest.mark.timeout(SECONDS + 600)

# The program itself, but for its patience: what takes it minutes takes seconds here.
HASTY = """
import sys
from downloader import holding
from downloader.service import bringing, daemon, judging
daemon.ROUND_SECONDS, daemon.HEARTBEAT_SECONDS = 0.1, 1.0
judging.FIRST_PAUSE_SECONDS, judging.MAX_PAUSE_SECONDS = 0.3, 2.0
holding.HEARTBEAT_SECONDS = 1.0
from downloader.__main__ import main
sys.argv = ["bge-downloader", *sys.argv[1:]]
main()
"""
SETTINGS = {
    "BGE_CALLS_PER_SECOND": "200",
    "BGE_TASK_ATTEMPTS": "1000",
    "BGE_STALL_TIMEOUT": "1s",
    "BGE_CONNECT_TIMEOUT": "1s",
    "BGE_MAX_RETRIES": "1",
    "BGE_MIN_FREE_SPACE": "0",
    "BGE_SEGMENT_SIZE": "1M",
    "BGE_POLL_DEADLINE": "1d",
}
STORE_FAULTS = {
    Fault.CUT: {"after": 5000},
    Fault.RESET: {"after": 5000},
    Fault.STALL: {"after": 5000},
    Fault.FLIP_BYTE: {},
    Fault.IGNORE_RANGE: {},
    Fault.WRONG_PART: {},
    Fault.WRONG_CONTENT_RANGE: {},
    Fault.SHORT_RANGE: {},
    Fault.STATUS: {"status": 503},
    Fault.EXPIRED: {},
    Fault.HTML_200: {},
    Fault.HANG: {},
    Fault.NO_CRC: {},
    Fault.CHUNKED: {},
}
PLATFORM_FAULTS = {
    PlatformFault.STATUS: {"status": 502},
    PlatformFault.HTML: {},
    PlatformFault.BROKEN_JSON: {},
    PlatformFault.RESET: {},
    PlatformFault.HANG: {},
}


class Soak:
    """The service's life, and what must have come of it."""

    def __init__(self, program, sandbox, chance):
        self.program = program
        self.sandbox = sandbox
        self.chance = chance
        self.versions = {}  # the bytes that each object has had
        self.tasks = {}  # the keys of each task
        self.counts = Counter()
        self.service = None

    async def start(self):
        self.service = await self.program.start_python(
            "-c", HASTY, "run", environment=SETTINGS, stderr=asyncio.subprocess.DEVNULL
        )

    async def type(self, *arguments):
        ended = await self.program.run(*arguments)
        assert ended.exit_code in (0, 1), ended
        self.counts[arguments[0]] += 1

    # What happens.

    async def tasks_come(self):
        added = [self.new_task() for _ in range(self.chance.randint(3, 8))]
        await self.type("add", *added, "--quiet")

    def new_task(self):
        number = len(self.tasks)
        vcf, tbi = samples.small_pair()
        kinds = [
            {f"{number}/a.vcf.gz": vcf, f"{number}/a.vcf.gz.tbi": tbi},
            {
                f"{number}/{name}.bin": self.noise(self.chance.randint(0, 20_000))
                for name in "abcdefgh"
            },
            {f"{number}/large.bin": self.noise(self.chance.randint(1, 12) * MIB + 77)},
        ]
        files = self.chance.choice(kinds)
        task_id = self.sandbox.add_task(files, states=("PENDING", "SUCCESS"))
        self.tasks[task_id] = list(files)
        self.versions |= {key: [data] for key, data in files.items()}
        return task_id

    def noise(self, size):
        return samples.incompressible(size, seed=self.chance.randrange(1_000_000))

    async def the_store_goes_wrong(self):
        fault = self.chance.choice([*STORE_FAULTS])
        key = self.chance.choice([*self.versions, None]) if self.versions else None
        times = self.chance.randint(1, 5)
        self.sandbox.store.inject(fault, key=key, times=times, **STORE_FAULTS[fault])
        self.counts["faults of the store"] += times

    async def the_platform_goes_wrong(self):
        fault = self.chance.choice([*PLATFORM_FAULTS])
        self.sandbox.platform.inject(fault, times=3, **PLATFORM_FAULTS[fault])
        self.counts["faults of the platform"] += 3

    async def everything_is_released(self):
        self.sandbox.store.clear_faults()
        self.sandbox.platform.clear_faults()

    async def an_object_is_replaced(self):
        keys = [key for key in self.versions if key.endswith(".bin")]
        if keys:
            key = self.chance.choice(keys)
            data = self.noise(len(self.versions[key][-1]) + self.chance.randint(0, 99))
            self.versions[key].append(data)
            self.sandbox.store.put(key, data)
            self.counts["replaced"] += 1

    async def it_is_killed(self):
        self.service.signal(signal.SIGKILL)
        await self.service.ends()
        self.counts["kills"] += 1
        await self.start()

    async def it_is_stopped(self):
        self.service.signal(signal.SIGTERM)
        assert (await self.service.ends()).exit_code in (143, -signal.SIGTERM)
        self.counts["stops"] += 1
        await self.start()

    async def a_task_is_cancelled_and_wanted_again(self):
        if self.tasks:
            task_id = self.chance.choice([*self.tasks])
            await self.type("cancel", task_id, "--quiet")
            await self.type("retry", task_id, "--quiet")

    async def live(self):
        deeds = {
            self.tasks_come: 5,
            self.the_store_goes_wrong: 12,
            self.the_platform_goes_wrong: 2,
            self.everything_is_released: 2,
            self.an_object_is_replaced: 2,
            self.it_is_killed: 2,
            self.it_is_stopped: 1,
            self.a_task_is_cancelled_and_wanted_again: 1,
        }
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            [deed] = self.chance.choices([*deeds], weights=[*deeds.values()])
            await deed()
            await asyncio.sleep(self.chance.uniform(0, 0.4))

    # What must have come of it.

    async def come_to_rest(self):
        await self.everything_is_released()
        give_up_at = time.monotonic() + 300
        with StateStore.open(self.program.state) as store:
            while left := [
                task for task in store.find_tasks() if task.phase is not Phase.PUBLISHED
            ]:
                assert time.monotonic() < give_up_at, [(task.phase, task.message) for task in left]
                for task in left:
                    if task.phase.is_final:
                        store.agenda.retry(task.id)
                await asyncio.sleep(0.5)
            assert {task.task_id for task in store.find_tasks()} == {*self.tasks}

    def check(self):
        for task_id, keys in self.tasks.items():
            directory = self.program.dest / task_id
            assert {path.name for path in directory.iterdir()} == {
                *(key.rpartition("/")[2] for key in keys),
                "bge-manifest.json",
            }
            for key in keys:
                assert (directory / key.rpartition("/")[2]).read_bytes() in self.versions[key], key
        left = [path.name for path in self.program.dest.iterdir() if path.name.endswith(".partial")]
        assert left == []

    def resources(self):
        place = Path(f"/proc/{self.service.pid}")
        status = dict(
            line.split(":", 1)
            for line in (place / "status").read_text().splitlines()
            if ":" in line
        )
        return {
            "descriptors": len([*(place / "fd").iterdir()]),
            "memory": int(status["VmRSS"].split()[0]) // 1024,
            "threads": int(status["Threads"]),
        }


async def test_nothing_is_lost_wrong_or_leaked(tmp_path, capsys):
    async with Sandbox() as sandbox:
        program = Program(tmp_path, sandbox.environment())
        soak = Soak(program, sandbox, random.Random(SEED))
        try:
            await soak.start()
            await soak.tasks_come()
            await soak.live()
            await soak.come_to_rest()
            soak.check()
            used = soak.resources()
        finally:
            await program.end_all()
    assert used["descriptors"] < 200, used  # connections that are kept are among them
    assert used["memory"] < 250, used
    served = sum(request.bytes_sent for request in sandbox.store.requests)
    size = sum(path.stat().st_size for path in program.dest.rglob("*") if path.is_file())
    told = ", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items()))
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(soak.tasks)} tasks in {SECONDS:.0f} s: {told}\n"
            f"{size / MIB:.0f} MiB published, {served / MIB:.0f} MiB served; {used}\n"
        )
