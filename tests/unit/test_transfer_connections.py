"""How many connections there are: what they bring decides, and a store that asks for less."""

import asyncio
import contextlib
import os
import random

import pytest

from downloader.transfer import connections as module
from downloader.transfer import file_turns, growth
from downloader.transfer.connections import Connections

FOR_EVER = 10_000
MIB = 1024 * 1024
GIB = 1024 * MIB
SMALL = 8 * MIB


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

    def want_file(self, left, *, obeys=True):
        """Let a file of so many bytes want a connection; it gives it back when it is told."""
        file = File(left)
        file.job = asyncio.ensure_future(file.run(self.connections, obeys=obeys))
        self.jobs.append(file.job)
        return file

    async def waits(self, seconds):
        """Let time pass, and somebody look."""
        self.now += seconds
        self.connections._look()
        await settled()

    @property
    def counts(self):
        """What is none when nobody is there."""
        there = self.connections
        return (
            there.in_use,
            there._brief,
            there._begun,
            there._told,
            there._recalled,
            there._waiting.new,
            there._waiting.begun,
            len(there._turns),
            len(there._loans),
        )

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


class File:
    """A file that is transferred for ever, in turns."""

    def __init__(self, left):
        self.left = left
        self.turns = 0
        self.turn = None
        self.job = None

    @property
    def is_on(self):
        return self.turn is not None and self.turn.is_held

    async def run(self, connections, *, obeys):
        async with connections.of_a_file(left=lambda: self.left, brief_bytes=SMALL) as turn:
            self.turn = turn
            while True:
                self.turns += 1
                over = asyncio.Event()
                with turn.may_end(over.set) if obeys else contextlib.nullcontext():
                    await over.wait()
                await turn.again()


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
    await there.passes(seconds=growth.PATIENCE_SECONDS)
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
    assert there.connections._waiting.new == 0
    assert len(there.connections._helpers) == 1


async def test_what_was_lent_goes_back_to_a_file_that_has_none(world):
    """A file of a few bytes does not wait for a segment of a large one."""
    there = world(lambda _: MIB, most=4)
    there.want(1)
    there.want(3, more=True)
    await settled()
    there.want(2)
    await settled()
    assert not there.connections._waiting.new
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
    assert not there.connections._waiting.new


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


# Large files and small ones.


async def four_large_ones(world, **options):
    there = world(lambda _: MIB, **options)
    large = [there.want_file((100 + number) * GIB) for number in range(4)]
    await settled()
    assert all(file.is_on for file in large)
    return there, large


async def test_a_small_file_goes_beside_large_ones_that_have_kept_all_connections(world):
    there, large = await four_large_ones(world)
    there.now += 60
    small = there.want_file(0)
    await settled()
    assert not small.is_on
    await there.waits(file_turns.BRIEF_AFTER_SECONDS)
    assert small.turn.is_brief
    assert there.connections.in_use == module.FIRST + 1
    assert all(file.turns == 1 for file in large)


async def test_only_a_few_go_beside(world):
    there, _ = await four_large_ones(world)
    small = [there.want_file(0) for _ in range(9)]
    await settled()
    await there.waits(file_turns.BRIEF_AFTER_SECONDS)
    assert [file.is_on for file in small] == [True] * module.BRIEF + [False] * 5
    small[0].job.cancel()
    await settled()
    assert small[module.BRIEF].is_on


async def test_nobody_goes_beside_small_files_that_flow(world):
    """One connection is enough for that; more than bring more are not wanted."""
    there = world(lambda _: MIB)
    for _ in range(3):
        there.want_file(100 * GIB)
    small = [there.want_file(0) for _ in range(30)]
    for file in small[:20]:
        await settled()
        assert file.is_on
        await there.waits(0.9 * file_turns.BRIEF_AFTER_SECONDS)
        assert there.connections.in_use == module.FIRST
        file.job.cancel()


async def test_whoever_proves_to_be_large_waits_for_an_ordinary_one(world):
    there, _ = await four_large_ones(world)
    other = there.want_file(0, obeys=False)
    await settled()
    await there.waits(file_turns.BRIEF_AFTER_SECONDS)
    assert other.turn.is_brief
    assert not other.turn.may_be_ended
    other.left = 100 * GIB
    again = asyncio.ensure_future(other.turn.again())
    await settled()
    await there.waits(file_turns.BRIEF_AFTER_SECONDS)
    assert not other.is_on
    assert there.connections.in_use == module.FIRST
    again.cancel()
    await settled()


@pytest.mark.parametrize("options", [{"most": 4}, {"most_files": 4}])
async def test_nobody_goes_beside_where_no_more_may_be(world, options):
    there, _ = await four_large_ones(world, **options)
    there.want_file(0)
    await settled()
    await there.waits(file_turns.BRIEF_AFTER_SECONDS)
    assert there.connections.in_use == 4


async def test_nobody_goes_beside_while_a_store_is_throttling(world):
    there, _ = await four_large_ones(world)
    there.want_file(0)
    await settled()
    there.connections.throttled()
    await there.waits(file_turns.BRIEF_AFTER_SECONDS)
    assert there.connections.in_use == 4
    await there.waits(module.THROTTLED_SECONDS)
    assert there.connections.in_use == 5


async def test_a_file_that_is_due_ends_the_turn_of_who_has_most_left(world):
    there, large = await four_large_ones(world)
    medium = there.want_file(200 * MIB)
    await settled()
    await there.waits(19.9)
    assert not medium.is_on
    await there.waits(0.2)
    assert medium.is_on
    assert [file.is_on for file in large] == [True, True, True, False]
    medium.job.cancel()
    await settled()
    assert all(file.is_on for file in large)


async def test_equally_large_files_come_one_after_the_other(world):
    """Whoever has waited for five minutes has a turn, and nobody before."""
    there, _ = await four_large_ones(world)
    fifth = there.want_file(100 * GIB)
    await settled()
    for _ in range(14):
        await there.waits(20)
    assert not fifth.is_on
    await there.waits(file_turns.MAX_PATIENCE_SECONDS)
    assert fifth.is_on


async def test_nobody_waits_for_ever(world):
    """However many small files come, and though each of them is preferred."""
    there = world(lambda _: MIB, most=2)
    large = [there.want_file(100 * GIB) for _ in range(4)]
    small = []
    for _ in range(2000):
        await settled()
        await there.waits(1)
        small.append(there.want_file(0))
        if len(small) > 3:
            small.pop(0).job.cancel()
    assert all(file.turns > 1 for file in large)


async def test_whoever_does_not_listen_keeps_his_connection(world):
    """A stream that cannot be resumed would be lost."""
    there = world(lambda _: MIB, most=1)
    stream = there.want_file(100 * GIB, obeys=False)
    there.want_file(0)
    await settled()
    await there.waits(3600)
    assert stream.is_on
    assert there.connections._told == 0


async def test_no_more_files_are_begun_than_may_be_open(world, monkeypatch):
    monkeypatch.setattr(module, "MAX_BEGUN", 2)
    there = world(lambda _: MIB, most=1)
    files = [there.want_file(100 * GIB) for _ in range(4)]
    for _ in range(100):
        await settled()
        await there.waits(60)
    assert [file.turns > 5 for file in files] == [True, True, False, False]
    files[0].job.cancel()
    await settled()
    await there.waits(400)
    assert files[2].turns == 1


async def test_whoever_is_cancelled_in_a_pause_leaves_his_place_to_the_next(world, monkeypatch):
    """He held no connection that could be given back, and yet one more file may begin."""
    monkeypatch.setattr(module, "MAX_BEGUN", 2)
    there = world(lambda _: MIB, most=4)
    away = asyncio.Event()

    async def pause():
        async with there.connections.of_a_file() as turn, turn.away():
            away.set()
            await asyncio.Event().wait()

    pausing = [asyncio.ensure_future(pause()) for _ in range(2)]
    await away.wait()
    await settled()
    third = there.want_file(MIB)
    await settled()
    assert third.turns == 0
    for job in pausing:
        job.cancel()
    await settled()
    assert third.turns == 1


async def test_whoever_pauses_lets_others_have_his_connection(world):
    there = world(lambda _: MIB, most=1)
    paused, over = asyncio.Event(), asyncio.Event()

    async def pause():
        async with there.connections.of_a_file() as turn, turn.away():
            paused.set()
            await over.wait()

    there.jobs.append(asyncio.ensure_future(pause()))
    await paused.wait()
    other = there.want_file(0)
    await settled()
    assert other.is_on
    over.set()
    await settled()
    assert there.connections._waiting.begun == 1
    other.job.cancel()
    await settled()
    assert there.jobs[0].done()


# Bounds that change.


async def test_what_is_too_much_under_a_new_bound_goes_back_at_once(world):
    there, large = await four_large_ones(world)
    there.connections.change(most=1)
    await settled()
    assert there.connections.in_use == 1
    assert large[0].is_on  # it has the least left
    there.connections.change(most=64)
    await there.waits(0.1)
    await there.passes(3)
    assert there.connections.in_use > 1


async def test_loans_go_back_before_files_have_to(world):
    there = world(lambda _: MIB)
    file = there.want_file(100 * GIB)
    there.want(3, more=True)
    await settled()
    there.connections.change(most=1)
    await settled()
    assert file.is_on
    assert there.connections.in_use == 1


async def test_fewer_files_at_a_time_and_more_again(world):
    there, large = await four_large_ones(world)
    there.connections.change(most_files=2)
    await settled()
    assert sum(file.is_on for file in large) == 2
    there.connections.change(most_files=4)
    await settled()
    assert all(file.is_on for file in large)


async def test_never_more_than_there_is_memory_for(world):
    there = world(lambda count: count * MIB, most=8, ceiling=4)
    there.want(50)
    await there.passes(5)
    there.connections.change(most=64)
    await there.passes(5)
    assert there.connections.in_use == 4


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_nothing_is_left_behind(world, seed):
    """Files and helpers come and go, are told and are cancelled at any moment."""
    chance = random.Random(seed)
    there = world(lambda count: count * 20 * MIB, most=8, most_files=6)
    for _ in range(400):
        match chance.randrange(8):
            case 0 | 1:
                there.want_file(chance.choice([0, 100 * MIB, 100 * GIB]))
            case 2:
                there.want(1, more=True)
            case 3 | 4 if there.jobs:
                there.jobs.pop(chance.randrange(len(there.jobs))).cancel()
            case 5:
                there.connections.change(most=chance.randint(1, 8), most_files=chance.randint(1, 6))
            case 6:
                there.connections.throttled()
            case _:
                await there.waits(chance.choice([0.1, 1, 30]))
        assert there.connections.in_use <= 8 + len(there.connections._loans)
        for _ in range(chance.randrange(3)):
            await asyncio.sleep(0)
    await there.ends()
    await settled()
    assert there.counts == (0,) * len(there.counts)
