"""A service in trouble for minutes: tasks come and go, everything fails now and then, and it dies.

In the first half of the time it dies often; through the second it lives, and must not have grown.
`make soak` does only this. BGE_TEST_SOAK_SECONDS says how long, BGE_TEST_SOAK_SEED which trouble.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from e2e_helpers import Program, until

from downloader.sandbox import Fault, PlatformFault, Sandbox, samples
from downloader.units import counted
from state import Phase, StateStore

SECONDS = float(os.environ.get("BGE_TEST_SOAK_SECONDS", "120"))
SEED = int(os.environ.get("BGE_TEST_SOAK_SEED", "1"))
MIB = 1024 * 1024
REST_SECONDS = 300  # that everything which is left may take, once nothing fails any more

pytestmark = pytest.mark.timeout(SECONDS + 900)

# The program itself, but for its patience: what takes it minutes takes seconds here. Asked by a
# signal, it tells what it holds.
HASTY = """
import asyncio, gc, json, os, signal, sys, threading
from downloader import holding
from downloader.service import bringing, daemon, judging
daemon.ROUND_SECONDS, daemon.HEARTBEAT_SECONDS = 0.1, 1.0
judging.FIRST_PAUSE_SECONDS, judging.MAX_PAUSE_SECONDS = 0.3, 2.0
holding.HEARTBEAT_SECONDS = 1.0

def tell(*_):
    gc.collect()
    holds = {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }
    with open(place + ".new", "w") as file:
        json.dump(holds, file)
    os.replace(place + ".new", place)

place = sys.argv.pop(1)
signal.signal(signal.SIGUSR2, tell)
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
        self.holds = program.cwd / "holds.json"
        self.versions = {}  # the bytes that each object has had
        self.tasks = {}  # the keys of each task
        self.counts = Counter()
        self.service = None

    async def start(self):
        self.service = await self.program.start_python(
            "-c", HASTY, self.holds, "run", environment=SETTINGS, stderr=asyncio.subprocess.DEVNULL
        )

    async def type(self, *arguments, ends=(0, 1)):
        ended = await self.program.run(*arguments)
        assert ended.exit_code in ends, ended
        assert "Traceback" not in ended.stderr, ended

    # What happens.

    async def tasks_come(self):
        added = [self.new_task() for _ in range(self.chance.randint(3, 8))]
        await self.type("add", *added, "--quiet")

    async def somebody_fetches(self):
        """It is the service's already, or will be."""
        new = self.new_task()
        await self.type("add", new, "--quiet")
        task_id = self.chance.choice([new, *self.tasks])
        await self.type("fetch", task_id, "--quiet", "--timeout", "20", ends=range(6))
        self.counts["fetches beside it"] += 1

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
            self.counts["objects replaced"] += 1

    async def a_published_file_rots(self):
        """Flip one of its bytes; who looks is told, and what is mended is whole again."""
        whole = [
            (task_id, key)
            for task_id, keys in self.tasks.items()
            for key in keys
            if len(self.versions[key]) == 1 and self.place(task_id, key).is_file()
        ]
        if not whole:
            return
        task_id, key = self.chance.choice(whole)
        path, content = self.place(task_id, key), self.versions[key][0]
        if not content:
            return
        with path.open("r+b") as file:
            position = self.chance.randrange(len(content))
            file.seek(position)
            file.write(bytes([content[position] ^ 0x55]))
        await self.type("verify", path.parent, "--quiet", ends=[5])
        while path.read_bytes() != content:  # the store, or the platform, may be in trouble
            await self.everything_is_released()
            await self.type("verify", path.parent, "--repair", "--quiet", ends=[0, 1, 5])
        self.counts["bytes rotten, and mended"] += 1

    def place(self, task_id, key):
        return self.program.dest / task_id / key.rpartition("/")[2]

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

    async def it_sleeps(self):
        """As with the lid of a laptop: longer than anybody waits for it."""
        self.service.signal(signal.SIGSTOP)
        await asyncio.sleep(2)
        self.service.signal(signal.SIGCONT)
        self.counts["sleeps"] += 1

    async def it_reads_its_settings_anew(self):
        if await self.answers():  # a signal that comes before it listens ends it
            self.service.signal(signal.SIGHUP)
            self.counts["reloads"] += 1

    async def answers(self):
        return bool(await self.holds_now())

    async def a_task_is_cancelled_and_wanted_again(self):
        if self.tasks:
            task_id = self.chance.choice([*self.tasks])
            await self.type("cancel", task_id, "--quiet")
            await self.type("retry", task_id, "--quiet")

    async def live(self, seconds, *, dies):
        deeds = {
            self.tasks_come: 5,
            self.somebody_fetches: 1,
            self.the_store_goes_wrong: 12,
            self.the_platform_goes_wrong: 2,
            self.everything_is_released: 2,
            self.an_object_is_replaced: 2,
            self.a_published_file_rots: 1,
            self.it_is_killed: 2 if dies else 0,
            self.it_is_stopped: 1 if dies else 0,
            self.it_sleeps: 1,
            self.it_reads_its_settings_anew: 1,
            self.a_task_is_cancelled_and_wanted_again: 1,
        }
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            [deed] = self.chance.choices([*deeds], weights=[*deeds.values()])
            await deed()
            await asyncio.sleep(self.chance.uniform(0, 0.4))

    # What must have come of it.

    async def come_to_rest(self):
        await self.everything_is_released()
        give_up_at = time.monotonic() + REST_SECONDS
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
                assert self.place(task_id, key).read_bytes() in self.versions[key], key
        left = [path.name for path in self.program.dest.iterdir() if path.name not in self.tasks]
        assert left == []

    async def holds_now(self):
        """Return what the service holds, once it has told it; None while it does not listen yet."""
        status = self.status()
        if not int(status["SigCgt"], 16) >> (signal.SIGHUP - 1) & 1:
            return None
        self.holds.unlink(missing_ok=True)
        self.service.signal(signal.SIGUSR2)
        await until(self.holds.exists)
        memory = int(status["VmRSS"].split()[0]) // 1024  # MiB
        return {**json.loads(self.holds.read_text()), "memory": memory}

    def status(self):
        """Return what the kernel tells of the service."""
        text = Path(f"/proc/{self.service.pid}/status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines())

    async def holds_at_rest(self):
        """Return the least that it holds within a while, for some work ends a moment later."""
        told = []
        for _ in range(20):
            told.append(await self.holds_now())
            await asyncio.sleep(0.25)
        return {name: min(one[name] for one in told) for name in told[0]}


async def test_nothing_is_lost_wrong_or_leaked(tmp_path, record_property):
    async with Sandbox() as sandbox:
        program = Program(tmp_path, sandbox.environment())
        soak = Soak(program, sandbox, random.Random(SEED))
        try:
            await soak.start()
            await soak.tasks_come()
            await soak.live(0.4 * SECONDS, dies=True)
            await soak.come_to_rest()
            await soak.live(SECONDS / 10, dies=False)  # everything is loaded and made for once
            await soak.come_to_rest()
            before, known = await soak.holds_at_rest(), len(soak.tasks)
            await soak.live(SECONDS / 2, dies=False)
            await soak.come_to_rest()
            soak.check()
            after = await soak.holds_at_rest()
        finally:
            await program.end_all()
    more = len(soak.tasks) - known
    held = f"at rest {before}, and {more} tasks later {after}"
    assert more > SECONDS / 10, held
    assert after["tasks"] <= before["tasks"] + 1, held
    assert after["threads"] <= before["threads"] + 16, held  # its pools grow to their size
    assert after["descriptors"] <= before["descriptors"] + 32, held  # connections that are kept
    assert after["objects"] <= before["objects"] + 300, held
    assert after["memory"] <= before["memory"] + 32, held
    served = sum(request.bytes_sent for request in sandbox.store.requests)
    size = sum(len(soak.versions[key][-1]) for keys in soak.tasks.values() for key in keys)
    record_property(
        "figures of the soak",
        [
            counted(len(soak.tasks), "task"),
            f"{SECONDS:.0f} s",
            ", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items())),
            f"{size / MIB:.0f} MiB published, {served / MIB:.0f} MiB served",
            held,
        ],
    )
