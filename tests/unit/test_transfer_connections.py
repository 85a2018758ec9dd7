"""How many connections there are: what they bring decides, and a store that asks for less."""

import asyncio
import contextlib
import os

import pytest

from downloader.transfer import connections as module
from downloader.transfer.connections import Connections

FOR_EVER = 10_000
MIB = 1024 * 1024


class World:
    """A line of a given kind, the time, and as many files as want to be transferred."""

    def __init__(self, rate_of, **options):
        self.now = 100.0
        self.rate_of = rate_of  # bytes per second of so many connections
        self.used = 0.0  # of the processors, in seconds
        self.connections = Connections(
            clock=lambda: self.now, processor_clock=lambda: self.used, **options
        )
        self.jobs = []

    def want(self, count, *, more=False):
        for _ in range(count):
            self.jobs.append(asyncio.ensure_future(self._use(more=more)))

    async def _use(self, *, more):
        wanted = asyncio.Event()  # for ever, where it is a file's own
        lend = self.connections.of_a_file()
        if more:
            lend = self.connections.one_more(wanted_back=wanted.set)
        async with lend:
            await wanted.wait()

    async def passes(self, looks=1, *, seconds=0.1):
        """Let so many seconds pass before each look, with the bytes that come in them."""
        for _ in range(looks):
            await settled()
            self.now += seconds
            came = self.rate_of(self.connections.in_use) * seconds
            self.connections.meter.add(int(came))
            self.connections._look()
        await settled()

    async def ends(self):
        for job in self.jobs:
            job.cancel()
        for job in self.jobs:
            with contextlib.suppress(asyncio.CancelledError):
                await job


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
async def world(monkeypatch):
    """Give a function that makes a world; nothing but the test looks."""
    monkeypatch.setattr(module, "LOOK_SECONDS", FOR_EVER)
    made = []

    def make(rate_of, **options):
        made.append(World(rate_of, **options))
        return made[-1]

    yield make
    for one in made:
        await one.ends()


async def test_where_each_connection_is_capped_there_are_as_many_as_may_be(world):
    there = world(lambda count: count * 20 * MIB)
    there.want(200)
    await there.passes(7)
    assert there.connections.in_use == there.connections.limit == 64


async def test_where_more_bring_nothing_it_stays_with_a_few(world):
    there = world(lambda _: 1000 * MIB)
    there.want(200)
    await there.passes(7)
    assert there.connections.limit == module.FIRST


async def test_where_the_processors_are_busy_with_this_program_more_would_only_cost(
    world, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    there = world(lambda count: count * 20 * MIB)
    there.want(200)
    for _ in range(5):
        there.used += 0.09
        await there.passes()
    assert there.connections.limit == module.FIRST
    there.used += 0.07
    await there.passes()
    assert there.connections.limit == 2 * module.FIRST


async def test_it_stops_where_the_line_is_full(world):
    """Of 120 MiB/s, six connections of 20 take all: eight are tried, and sixteen in vain."""
    there = world(lambda count: min(count * 20, 120) * MIB)
    there.want(200)
    await there.passes(7)
    assert there.connections.limit == 8


async def test_a_large_file_is_judged_once_its_connections_have_gained_speed(world):
    """What a line brings in its first moments tells nothing of what more lines would bring."""
    there = world(lambda count: min(count * 100, 120) * MIB)
    whole = there.rate_of
    there.want(1)
    there.want(15, more=True)
    await there.passes()
    for part in (16, 8, 4, 2, 1):  # it rises by itself, and nobody steps in
        there.rate_of = lambda count, part=part: whole(count) // part
        await there.passes()
        assert there.connections.limit == module.FIRST
    await there.passes(2)  # steady: a step is tried, and does not pay
    assert there.connections.limit == 2 * module.FIRST
    await there.passes(2)
    assert there.connections.limit == module.FIRST


async def test_a_step_that_did_not_pay_is_tried_again_after_a_while(world):
    """What was full at noon is free at night."""
    there = world(lambda _: 10 * MIB)
    there.want(200)
    await there.passes(3)
    assert there.connections.limit == 4
    there.rate_of = lambda count: count * 20 * MIB
    await there.passes(seconds=module.PATIENCE_SECONDS)
    assert there.connections.limit > 4


async def test_nothing_is_concluded_while_nobody_waits_for_a_connection(world):
    there = world(lambda count: count * 20 * MIB)
    there.want(3)
    await there.passes(5)
    assert there.connections.limit == module.FIRST


async def test_a_store_that_throttles_gets_half_as_many_and_once_for_all(world):
    there = world(lambda count: count * 20 * MIB)
    there.want(200)
    await there.passes(5)
    assert there.connections.limit == 64
    for _ in range(64):
        there.connections.throttled()  # each connection hears of it
    assert there.connections.limit == 32
    there.now += module.THROTTLED_SECONDS - 1
    there.connections._look()
    assert there.connections.limit == 32


async def test_never_more_than_may_be_and_never_none(world):
    there = world(lambda count: count * MIB, most=3)
    there.want(10)
    await there.passes(5)
    assert there.connections.in_use == 3
    for _ in range(5):
        there.now += module.EPISODE_SECONDS
        there.connections.throttled()
    assert there.connections.limit == 1


async def test_a_file_without_a_connection_comes_before_one_that_wants_more(world):
    there = world(lambda _: MIB, most=4)
    there.want(4)
    await settled()
    there.want(1, more=True)
    there.want(1)
    await settled()
    there.jobs[0].cancel()
    await settled()
    assert len(there.connections._files) == 0
    assert len(there.connections._helpers) == 1


async def test_what_was_lent_goes_back_to_a_file_that_has_none(world):
    """A file of a few bytes does not wait for a segment of a large one."""
    there = world(lambda _: MIB, most=4)
    there.want(1)
    there.want(3, more=True)
    await settled()
    there.want(2)
    await settled()
    assert not there.connections._files
    assert sum(job.done() for job in there.jobs) == 2
    assert there.connections.in_use == 4
    assert there.connections._recalled == 0


async def test_what_was_lent_goes_back_when_a_step_did_not_pay(world):
    there = world(lambda _: 100 * MIB)
    there.want(1)
    there.want(20, more=True)
    await there.passes(4)
    assert there.connections.limit == 2 * module.FIRST
    await there.passes(2)
    assert there.connections.in_use == module.FIRST


async def test_no_more_files_at_a_time_than_may_be(world):
    there = world(lambda _: MIB, most_files=2)
    there.want(5)
    await settled()
    assert there.connections.in_use == 2


async def test_who_is_cancelled_while_he_waits_leaves_nothing_behind(world):
    """Also if it was lent to him in that very moment."""
    there = world(lambda _: MIB, most=1)
    there.want(3)
    await settled()
    there.jobs[1].cancel()
    there.jobs[0].cancel()  # its connection goes to the next one in the same turn of the loop
    await settled()
    assert there.connections.in_use == 1
    there.jobs[2].cancel()
    await settled()
    assert there.connections.in_use == 0
    assert not there.connections._files


async def test_who_is_cancelled_just_as_it_was_lent_gives_it_back(world):
    there = world(lambda _: MIB, most=1)
    there.want(2)
    await settled()
    there.jobs[0].cancel()
    await asyncio.sleep(0)  # lent to the second by now, who does not know it yet
    there.jobs[1].cancel()
    await settled()
    assert there.connections.in_use == 0


async def test_it_does_not_look_while_nothing_goes_on(world):
    there = world(lambda _: MIB)
    there.want(1)
    await settled()
    await there.ends()
    there.connections._look()
    assert there.connections._looking is None
