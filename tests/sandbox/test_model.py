"""Whatever happens, in whatever order: the promises hold after every step.

Bounded here; with BGE_TEST_TORTURE=1 for longer, and differently each time.
"""

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from matrix.story import FIRST_LENGTH, Heard, story_in

from downloader.sandbox import Fault, PlatformFault

TORTURE = bool(os.environ.get("BGE_TEST_TORTURE"))
KIB = 1024
KEYS = ("run/data.bin", "run/b/notes.txt")
SIZES = (0, 1, 1000, FIRST_LENGTH - 1, FIRST_LENGTH, FIRST_LENGTH + 1, 160 * KIB)
STATES = ("state.db", "other.db")
ROADS = ("plain", "straight")
MOST_TIMES = 3
HELD = (Fault.STALL, Fault.HANG, PlatformFault.HANG)  # they go on as soon as they have happened

DETAILS = {
    Fault.TRICKLE: {"chunk": 8192, "interval": 0},
    Fault.REDIRECT: {"location": "https://evil.example/a?Signature=x"},
    PlatformFault.HUGE_JSON: {"size": 2**24 + 1},
    PlatformFault.TRICKLE: {"interval": 0},
    PlatformFault.BODY: {"body": b'{"code": 0, "data": {}}'},
}
STATUSES = (400, 403, 404, 408, 412, 416, 429, 500, 503)
WITH_STATUS = (Fault.STATUS, PlatformFault.STATUS)
WAYS = st.tuples(st.sampled_from(ROADS), st.sampled_from(STATES))

# What may happen to the rows of the files; `:n` is any number.
DAMAGES = (
    "UPDATE segments SET watermark = :n",
    "UPDATE segments SET watermark = stop - start",
    "UPDATE segments SET stop = :n",
    "UPDATE OR IGNORE segments SET start = :n",
    "DELETE FROM segments WHERE start > :n",
    "UPDATE files SET size = :n",
    "UPDATE files SET etag = '\"' || :n || '\"'",
    "UPDATE files SET etag = NULL",
    "UPDATE files SET size = 'big', checkpoint_at = 'never'",
)


def some_bytes(size, seed):
    return random.Random(seed).randbytes(size)


VERSIONS = st.builds(some_bytes, st.sampled_from(SIZES), st.integers(0, 9))
# Most of them are the store's: what the platform does wrong moves no byte.
FAULTS = st.lists(
    st.tuples(
        st.sampled_from([*Fault, *Fault, *PlatformFault]),
        st.sampled_from(KEYS),
        st.integers(1, MOST_TIMES),
        st.sampled_from(STATUSES),
    ),
    max_size=3,
)


class Cancels(Heard):
    """Cancels what is running when it has been told so many things."""

    def __init__(self, number):
        super().__init__()
        self.left = number
        self.running = None

    def _count(self, *_, **__):
        self.left -= 1
        if self.left == 0:
            self.running.cancel()

    polled = planned = file_sized = received = file_done = verifying = finished = _count


@settings(
    max_examples=300 if TORTURE else 12,
    stateful_step_count=40 if TORTURE else 15,
    derandomize=not TORTURE,
    deadline=None,
    database=None,
    print_blob=True,
    # Only at length is an example made smaller: that takes longer than a test may.
    phases=Phase if TORTURE else [Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
class Fetching(RuleBasedStateMachine):
    """One task, two states, a store and a platform that go wrong, a disk that is not left alone."""

    def __init__(self):
        super().__init__()
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.directory = Path(tempfile.mkdtemp(prefix="bge-test-", dir=memory))
        self.runner = asyncio.Runner()
        self.stack = contextlib.AsyncExitStack()
        entered = self.stack.enter_async_context(story_in(self.directory, "plain"))
        self.story = self.runner.run(entered)
        self.published = None  # the files by their names, while nobody has damaged the result
        self.injected = []  # what goes wrong with the fetch that runs
        self.window = {}  # what the store had of each object while it was fetched
        self.trouble = 0  # what has happened since the last fetch that may cost bytes

    def teardown(self):
        self.runner.run(self.stack.aclose())
        self.runner.close()
        shutil.rmtree(self.directory)

    @initialize(sizes=st.tuples(*[st.sampled_from(SIZES)] * len(KEYS)))
    def begin(self, sizes):
        self.story.files = {
            key: some_bytes(size, seed)
            for seed, (key, size) in enumerate(zip(KEYS, sizes, strict=True))
        }
        self.story.add_task()

    # What the program does, and what goes wrong meanwhile.

    @rule(way=WAYS, faults=FAULTS)
    def fetch(self, way, faults):
        self.run(self.whole(), way, faults)

    @rule(way=WAYS, faults=FAULTS, after=st.integers(1, 12))
    def fetch_and_cancel_by_what_is_told(self, way, faults, after):
        self.run(self.cancelled(after), way, faults)

    @rule(way=WAYS, faults=FAULTS, at=st.integers(0, 160 * KIB))
    def fetch_and_cancel_in_a_body(self, way, faults, at):
        self.run(self.held_and_cancelled(at), way, faults)

    @rule(way=WAYS, faults=FAULTS, key=st.sampled_from(KEYS), data=VERSIONS)
    def fetch_while_an_object_is_replaced(self, way, faults, key, data):
        self.run(self.replaced_meanwhile(key, data), way, faults)

    @rule()
    def another_task_has_the_same_files(self):
        if self.published is None:  # no precondition: what was drawn must not hang on what came
            return
        self.story.add_task()
        self.published, self.trouble = None, 0

    # What the others do.

    @rule(key=st.sampled_from(KEYS), data=VERSIONS)
    def an_object_is_replaced(self, key, data):
        self.story.replace(key, data)
        self.trouble += 1

    @rule(hours=st.sampled_from([1, 24]))
    def time_passes(self, hours):
        self.story.clock.ahead += timedelta(hours=hours)
        self.story.state_clock.ahead += timedelta(hours=hours)

    @rule(hours=st.sampled_from([-24, 1]))
    def the_clock_here_jumps(self, hours):
        self.story.state_clock.ahead += timedelta(hours=hours)

    @rule()
    def the_links_expire_when_they_are_told(self):
        clock = self.story.clock
        later = clock.ahead + timedelta(hours=1)
        self.story.heard.when_planned = lambda: setattr(clock, "ahead", later)

    # What happens to the disk.

    @rule(
        how=st.sampled_from(["lost", "cut", "longer", "altered", "zeros"]),
        at=st.integers(0, 160 * KIB),
        which=st.integers(0, 3),
    )
    def a_part_file_is_damaged(self, how, at, which):
        parts = sorted(self.story.dest.glob(f"{self.story.task_id}*partial*/**/*.part"))
        if parts:
            damage(parts[which % len(parts)], how, at)
            self.trouble += 1

    @rule(statement=st.sampled_from(DAMAGES), number=st.integers(-5, 200 * KIB))
    def rows_are_damaged(self, statement, number):
        for name in STATES:
            path = self.story.state.with_name(name)
            if path.exists():
                with contextlib.closing(sqlite3.connect(path)) as connection, connection:
                    connection.execute(statement, {"n": number} if ":n" in statement else {})
        self.trouble += 2

    @rule()
    def the_result_is_moved_away(self):
        if self.published is not None:
            shutil.rmtree(self.story.final)
            self.published = None
            self.trouble += 2

    @rule(name=st.sampled_from(["data.bin", "bge-manifest.json"]))
    def the_result_is_cut_short(self, name):
        path = self.story.final / name
        if self.published is not None and path.stat().st_size:
            os.truncate(path, path.stat().st_size // 2)
            self.published = None
            self.trouble += 2

    # Fetching.

    def run(self, fetching, way, faults):
        """Let a fetch come to its end, and hold its promises against what has become of it."""
        story = self.story
        story.road, story.state_name = way
        before, self.window = self.published, {key: [data] for key, data in story.files.items()}
        story.store.forget_requests()
        self.injected = [self.inject(*each) for each in faults]
        outcome = self.runner.run(self.with_releases(fetching))
        story.store.clear_faults()
        story.platform.clear_faults()
        self.check_end(outcome, before, is_well=not faults)
        self.check_bytes(sum(one.hits for one in self.injected))
        self.check_leaks()
        story.heard = Heard()

    def inject(self, fault, key, times, status):
        details = {"status": status} if fault in WITH_STATUS else DETAILS.get(fault, {})
        if isinstance(fault, PlatformFault):
            return self.story.platform.inject(fault, times=times, **details)
        return self.story.store.inject(fault, key=key, times=times, **details)

    def check_end(self, outcome, before, *, is_well):
        if before is not None:
            assert self.found() == before
            assert self.story.served == 0
            return
        if outcome == 0:
            found = self.found()
            assert found.keys() == {*map(name_of, KEYS)}
            for key in KEYS:
                assert found[name_of(key)] in self.window[key]
            self.published = found
        elif self.story.final.exists() and (found := self.found()) is not None:
            assert outcome is None  # it was cancelled when it had been published
            assert all(found[name_of(key)] in self.window[key] for key in KEYS)
            self.published = found
        else:
            assert not (is_well and outcome is not None), "without a fault it must succeed"

    def check_bytes(self, hits):
        """Every byte once, and some of them again for each thing that went wrong."""
        largest = max(sum(map(len, versions)) for versions in self.window.values())
        once = sum(sum(map(len, versions)) for versions in self.window.values())
        most = once + 2 * (hits + self.trouble) * (largest + KIB) + len(KEYS) + KIB
        assert self.story.served <= most
        self.trouble = 0 if self.published is not None else self.trouble

    def check_leaks(self):
        held = [place for place in open_places() if place.startswith(str(self.directory))]
        assert held == []

    def found(self):
        """Return the published files, but not our own; None if the result is a damaged one."""
        final = self.story.final
        if not (final / "bge-manifest.json").exists():
            return None
        return {
            path.relative_to(final).as_posix(): path.read_bytes()
            for path in final.rglob("*")
            if path.is_file() and path.name != "bge-manifest.json"
        }

    async def with_releases(self, fetching):
        """Run it; what a fault holds goes on at once. Leave no job of the program behind."""
        releasing = [
            asyncio.ensure_future(release(one)) for one in self.injected if one.fault in HELD
        ]
        try:
            return await fetching
        finally:
            for job in releasing:
                job.cancel()
            await asyncio.gather(*releasing, return_exceptions=True)
            await check_jobs()

    async def whole(self):
        return (await self.story.fetch()).exit_code

    async def cancelled(self, after):
        self.story.heard = heard = Cancels(after)
        heard.running = asyncio.ensure_future(self.story.fetch())
        return await outcome_of(heard.running)

    async def held_and_cancelled(self, at):
        held = self.story.store.inject(Fault.STALL, covering=at, after=at % FIRST_LENGTH)
        running = asyncio.ensure_future(self.story.fetch())
        waiting = asyncio.ensure_future(held.happened.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        running.cancel()
        outcome = await outcome_of(running)
        held.times = 0  # it is spent, whether it has come or not
        held.release()
        return outcome

    async def replaced_meanwhile(self, key, data):
        def replace():
            self.story.heard.when_planned = lambda: None
            self.story.replace(key, data)
            self.window[key].append(data)
            self.trouble += 1

        self.story.heard.when_planned = replace
        return (await self.story.fetch()).exit_code

    @invariant()
    def nothing_that_is_half_is_published(self):
        if self.published is not None:
            assert self.found() == self.published

    @invariant()
    def no_secret_is_written_down(self):
        self.story.check_secrets()


def name_of(key):
    return key.removeprefix("run/")


def damage(path, how, at):
    size = path.stat().st_size
    if how == "lost":
        path.unlink()
    elif how == "cut":
        os.truncate(path, min(at, size))
    elif how == "longer":
        os.truncate(path, size + 5)
    elif size:
        with path.open("r+b") as file:
            file.seek(at % size)
            file.write(bytes(4096) if how == "zeros" else b"other bytes")


def open_places():
    """Yield what the descriptors of this process lead to."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one by which they are listed
            yield str(entry.readlink())


def is_ours(job):
    place = job.get_coro().cr_code.co_filename
    return "/downloader/" in place and "/sandbox/" not in place


async def check_jobs():
    """Insist that every job of the program ends, those that look out for a batch after a look."""
    if left := [job for job in asyncio.all_tasks() if is_ours(job)]:
        _, endless = await asyncio.wait(left, timeout=5)
        assert not endless


async def release(injection):
    """Let everything go on that the fault holds, as often as it happens."""
    await injection.happened.wait()
    injection.release()


async def outcome_of(running):
    """Return its exit code; None where it was cancelled."""
    await asyncio.wait([running])
    return None if running.cancelled() else running.result().exit_code


TestFetching = Fetching.TestCase
if TORTURE:
    TestFetching = pytest.mark.timeout(0)(TestFetching)
