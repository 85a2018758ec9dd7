"""The service against both stand-ins: what becomes of tasks, whatever happens to them."""

import asyncio
import dataclasses
import logging
from datetime import timedelta

import pytest
from fetch_helpers import NOTES, TBI, VCF, Heard
from service_helpers import happens
from sqlalchemy import text

from downloader.fetch import fetch_task
from downloader.polling import PollOptions
from downloader.sandbox import Fault, PlatformFault
from downloader.service.judging import FIRST_PAUSE_SECONDS
from state import AT_ONCE, Phase, StateStore, StateUnreadable, Wanted, is_held
from state.agenda import Agenda

pytest_plugins = ["service_helpers"]

KEY = "run/a.vcf.gz"


async def damage(rig, statement, **values):
    """Write to the state as nobody should."""

    def write(store):
        with store._database.writing() as connection:
            connection.execute(text(statement), values)

    await rig.store.run(write)


class TestTheStory:
    async def test_a_task_is_asked_for_until_it_is_ready_then_brought_and_left_alone(self, rig):
        task_id = await rig.add(states=("PENDING", "STARTED", "SUCCESS"))
        await rig.ask()
        task = await rig.task(task_id)
        assert (task.phase, task.status, task.polls) == (Phase.WAITING, "PENDING", 1)
        assert task.due_at > rig.clock()
        assert task.acquired_by is None
        await rig.until(lambda: is_published(rig, task_id))
        assert (rig.final(task_id) / "a.vcf.gz").read_bytes() == VCF
        assert (rig.final(task_id) / "a.vcf.gz.tbi").read_bytes() == TBI
        task = await rig.task(task_id)
        assert (task.due_at, task.acquired_by, task.polls) == (None, None, 3)
        calls = len(rig.sandbox.platform.calls)
        await rig.live(7200, step=600)
        assert len(rig.sandbox.platform.calls) == calls

    async def test_its_history_tells_it_from_the_first_to_the_last(self, rig):
        task_id = await rig.add()
        await rig.rest()
        kinds = await rig.kinds(task_id)
        assert kinds == ["added", "started", "planned", "transferred", "verified", "published"]

    async def test_a_task_is_asked_for_once_before_it_is_brought(self, rig):
        """The answer that says SUCCESS has the links; nobody asks for them again."""
        task_id = await rig.add()
        await rig.rest()
        assert rig.sandbox.platform.polls[task_id] == 1
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_a_task_that_failed_there_is_failed_here_for_the_same_reason(self, rig):
        task_id = await rig.add(states=("FAILURE",))
        await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.exit_code, task.due_at) == (Phase.FAILED, 3, None)
        assert "FAILURE" in task.message
        assert await rig.kinds(task_id) == ["added", "failed"]

    async def test_a_task_that_is_never_ready_is_given_up_at_its_deadline(self, rig):
        task_id = await rig.add(states=("PENDING",))
        await rig.until(lambda: is_over(rig, task_id), step=6 * 3600)
        task = await rig.task(task_id)
        assert (task.phase, task.exit_code) == (Phase.FAILED, 4)
        assert "PENDING of ids it does not know" in task.message
        assert timedelta(days=7) <= rig.clock() - task.watched_since < timedelta(days=8)

    async def test_a_published_task_that_is_added_again_moves_nothing(self, rig):
        task_id = await rig.add()
        await rig.rest()
        assert await rig.watch(task_id) == [Wanted.PUBLISHED]
        assert await rig.retry(task_id) is Wanted.ADDED
        before = len(rig.sandbox.store.requests)
        await rig.rest()
        assert len(rig.sandbox.store.requests) == before
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED


class TestFetchesBeside:
    async def test_what_a_fetch_has_brought_is_settled_at_once(self, rig):
        task_id = await rig.add(states=("PENDING", "PENDING", "SUCCESS"))
        await rig.ask()
        assert (await rig.task(task_id)).due_at > rig.clock()
        await fetch_beside(rig, task_id)
        await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.due_at) == (Phase.PUBLISHED, None)
        assert (await rig.kinds(task_id)).count("published") == 1

    @pytest.mark.parametrize("word", ["FAILURE", "PENDING"])
    async def test_what_a_fetch_has_brought_is_settled_whatever_the_platform_says(self, rig, word):
        """It says PENDING of ids that it has forgotten."""
        task_id = await rig.add(states=("SUCCESS", word))
        await fetch_beside(rig, task_id)
        calls = len(rig.sandbox.platform.calls)
        for _ in range(2):
            await rig.ask()
            await rig.service.bringing.settled()
        task = await rig.task(task_id)
        assert (task.phase, task.due_at) == (Phase.PUBLISHED, None)
        assert len(rig.sandbox.platform.calls) == calls
        [notice] = await rig.store.run(lambda store: store.notices.take_due(9, claim_seconds=60))
        assert notice.event == "complete"

    @pytest.mark.parametrize("phase", [Phase.TRANSFERRING, Phase.VERIFYING, Phase.RETRYING])
    async def test_what_was_published_by_a_process_that_died_then_is_settled(self, rig, phase):
        task_id = await rig.add(states=("SUCCESS", "FAILURE"))
        await fetch_beside(rig, task_id)
        number = (await rig.task(task_id)).id
        await rig.store.run(lambda store: store.set_phase(number, phase))
        await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.due_at) == (Phase.PUBLISHED, None)
        assert task.published_at is not None

    async def test_what_is_published_waits_for_a_place_like_any_other(self, rig, monkeypatch):
        task_id = await rig.add(states=("SUCCESS", "FAILURE"))
        await fetch_beside(rig, task_id)
        with monkeypatch.context() as full:
            none = rig.settings.model_copy(update={"parallel_tasks": 0})
            full.setattr(rig.equipment, "settings", none)
            await rig.ask()
        task = await rig.task(task_id)
        assert (task.phase, task.acquired_by) == (Phase.PUBLISHED, None)
        assert task.due_at > rig.clock()
        await rig.rest()
        assert (await rig.task(task_id)).due_at is None

    async def test_of_a_damaged_result_the_platform_is_asked(self, rig):
        task_id = await rig.add(states=("SUCCESS", "PENDING", "SUCCESS"))
        await fetch_beside(rig, task_id)
        (rig.final(task_id) / "a.vcf.gz").unlink()
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.WAITING
        await rig.until(lambda: is_published(rig, task_id))
        assert (rig.final(task_id) / "a.vcf.gz").read_bytes() == VCF

    async def test_a_task_that_a_fetch_holds_is_left_to_it(self, rig):
        task_id = await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        fetching = asyncio.ensure_future(fetch_beside(rig, task_id))
        await happens(held.happened)
        await rig.ask()
        assert rig.service.bringing.tasks == set()
        held.released.set()
        await fetching
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_a_fetch_follows_the_service_to_the_end(self, rig):
        task_id = await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        heard = Heard()
        fetching = asyncio.ensure_future(fetch_beside(rig, task_id, reporter=heard))
        await heard.hears("note")
        held.released.set()
        await rig.service.bringing.settled()
        report = await fetching
        assert report.already_published
        assert "following it" in heard.notes[0]
        assert rig.sandbox.platform.polls[task_id] == 1


async def fetch_beside(rig, task_id, *, reporter=None):
    """Fetch as a one-shot does that has the same state."""
    equipment = rig.equipment
    return await fetch_task(
        task_id,
        rig.dest,
        api=equipment.api,
        store=rig.store,
        session=equipment.session,
        options=dataclasses.replace(equipment.options, poll=PollOptions()),
        reporter=reporter,
    )


class TestFailures:
    async def test_what_passes_is_tried_again_after_a_pause_and_goes_on_where_it_was(self, rig):
        task_id = await rig.add()
        fault = rig.sandbox.store.inject(Fault.STATUS, key=KEY, status=500, times=None)
        await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.tries, task.exit_code) == (Phase.RETRYING, 1, 1)
        pause = (task.due_at - rig.clock()).total_seconds()
        assert FIRST_PAUSE_SECONDS / 2 <= pause <= FIRST_PAUSE_SECONDS
        assert not rig.final(task_id).exists()
        rig.sandbox.store.clear_faults()
        rig.clock.move(FIRST_PAUSE_SECONDS)
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED
        assert fault.hits >= 3

    @pytest.mark.parametrize("service_settings", [{"task_attempts": 3}])
    async def test_pauses_grow_and_attempts_are_bounded(self, rig):
        task_id = await rig.add()
        rig.sandbox.store.inject(Fault.STATUS, key=KEY, status=500, times=None)
        pauses = []
        for _ in range(2):
            await rig.rest()
            task = await rig.task(task_id)
            pauses.append((task.due_at - rig.clock()).total_seconds())
            rig.clock.now = task.due_at
        await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.due_at, task.exit_code) == (Phase.FAILED, None, 1)
        assert pauses[1] > pauses[0] / 2
        kinds = await rig.kinds(task_id)
        assert (kinds.count("retrying"), kinds.count("given up")) == (2, 1)

    async def test_what_cannot_become_right_is_not_tried_again(self, rig):
        task_id = await rig.add({"a/x.vcf.gz": b"no BGZF at all"})
        other = await rig.add(result=["https://elsewhere.example.org/a.vcf.gz"])
        await rig.until(lambda: is_over(rig, task_id))
        await rig.until(lambda: is_over(rig, other))
        assert ((await rig.task(task_id)).exit_code, (await rig.task(other)).exit_code) == (5, 1)
        assert "not one of the allowed hosts" in (await rig.task(other)).message

    async def test_a_broken_task_holds_up_no_other(self, rig):
        stuck = await rig.add({"stuck/b.txt": NOTES})
        held = rig.sandbox.store.inject(Fault.HANG, key="stuck/b.txt", times=None)
        await rig.ask()
        await happens(held.happened)
        others = [await rig.add() for _ in range(5)]
        await rig.ask()
        jobs = rig.service.bringing._jobs
        await asyncio.wait([job.running for job in jobs.values() if job.task.task_id != stuck])
        assert {(await rig.task(other)).phase for other in others} == {Phase.PUBLISHED}
        assert [job.task.task_id for job in jobs.values()] == [stuck]
        held.released.set()
        await rig.service.bringing.settled()
        assert (await rig.task(stuck)).phase is Phase.PUBLISHED

    async def test_a_mistake_of_ours_in_one_task_is_told_and_tried_again(
        self, rig, monkeypatch, caplog
    ):
        task_id = await rig.add()
        module = "downloader.service.bringing.fetch_task"

        async def mistaken(*_, **__):
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(module, mistaken)
            await rig.rest()
        task = await rig.task(task_id)
        assert task.phase is Phase.RETRYING
        assert "mistake in the program (ZeroDivisionError)" in task.message
        assert any(record.exc_info for record in caplog.records)
        rig.clock.move(60)
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED


class TestThePlatform:
    async def test_while_it_is_away_tasks_wait_and_it_is_said_once(self, rig, caplog):
        caplog.set_level(logging.INFO)
        tasks = [await rig.add() for _ in range(5)]
        rig.sandbox.platform.inject(PlatformFault.STATUS, status=502, times=None)
        await rig.rest()
        assert "502" in rig.service.condition
        assert sum("gives no result" in record.message for record in caplog.records) == 1
        for task_id in tasks:
            task = await rig.task(task_id)
            assert (task.phase, task.tries) == (Phase.WAITING, 1)
            assert "502" in task.message
        rig.sandbox.platform.clear_faults()
        rig.clock.move(10)
        await rig.rest()
        assert rig.service.condition is None
        for task_id in tasks:
            assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_its_wish_to_be_left_alone_holds_for_all_tasks(self, rig):
        await rig.add()
        await rig.add()
        rig.sandbox.platform.inject(PlatformFault.RATE_LIMIT, retry_after="120", times=1)
        await rig.ask()
        assert rig.equipment.turns.wait_seconds > 60

    async def test_what_it_refuses_for_one_task_alone_is_given_up(self, rig):
        """What it refuses for all, as when a secret is wrong, is asked again and again."""
        refused = await rig.add()

        def refuse():
            rig.sandbox.platform.inject(
                PlatformFault.BUSINESS_ERROR, code=4004, message="no such task", times=None
            )

        refuse()
        for _ in range(8):
            await rig.rest()
            rig.clock.move(300)
        assert (await rig.task(refused)).phase is Phase.WAITING
        rig.sandbox.platform.clear_faults()
        good = rig.sandbox.add_task(states=("PENDING",))
        task = await rig.task(refused)
        await rig.store.run(lambda store: store.agenda.watch([good], str(rig.dest)))
        rig.clock.now = task.due_at - timedelta(seconds=1)
        await rig.rest()
        rig.clock.move(1)
        refuse()
        await rig.rest()
        task = await rig.task(refused)
        assert (task.phase, task.due_at, task.exit_code) == (Phase.FAILED, None, 1)
        assert "no such task" in task.message

    async def test_a_proxy_that_is_none_is_a_reason_to_ask_later(self, rig, monkeypatch):
        """It concerns every call: nothing is given up, and `status` says so."""
        task_id = await rig.add()
        with monkeypatch.context() as patch:
            patch.setattr("downloader.network.is_loopback", lambda _: False)
            patch.setenv("HTTP_PROXY", "socks5://127.0.0.1:1")
            await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.tries, task.acquired_by) == (Phase.WAITING, 1, None)
        assert "no proxy" in rig.service.condition
        rig.clock.move(60)
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_a_task_whose_place_was_damaged_is_given_up_and_others_are_not(self, rig):
        """Its fetch does not find it: it would be begun again, in vain, for ever."""
        lost, other = await rig.add(), await rig.add()
        number = (await rig.task(lost)).id
        await damage(rig, "UPDATE tasks SET dest = dest || '/lost/' WHERE id = :task", task=number)
        await rig.rest()
        task = await rig.task(lost)
        assert (task.phase, task.is_watched) == (Phase.FAILED, False)
        assert "is damaged" in task.message
        assert not (rig.dest / "lost").exists()
        assert (await rig.task(other)).phase is Phase.PUBLISHED

    async def test_a_task_whose_time_was_damaged_is_not_passed_over_for_ever(self, rig):
        """In SQLite, a text that is no time is later than every time."""
        first = await rig.add()
        await damage(rig, "UPDATE tasks SET due_at = 'yesterday', phase = 'astonished'")
        await rig.ask()
        assert rig.service.bringing.tasks == set()
        await rig.service.upkeep()
        await rig.rest()
        assert rig.final(first).exists()
        second = await rig.add()
        await damage(rig, "UPDATE tasks SET due_at = x'00' WHERE phase = 'waiting'")
        await (await rig.another()).rest()
        assert rig.final(second).exists()

    async def test_an_answer_that_the_state_does_not_take_is_asked_for_again(
        self, rig, monkeypatch, caplog
    ):
        task_id = await rig.add()

        def refuse(*_, **__):
            raise StateUnreadable("The state was locked by another process")

        with monkeypatch.context() as patch:
            patch.setattr(Agenda, "record_ready", refuse)
            await rig.ask()
        assert any("took no answer" in record.message for record in caplog.records)
        assert rig.service.asking.tasks == set()
        for _ in range(2):  # its lease is nobody's by now
            await rig.service.heartbeat()
        rig.clock.move(120)
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_a_failure_to_ask_is_no_failure_to_fetch(self, rig):
        task_id = await rig.add()
        rig.sandbox.platform.inject(PlatformFault.STATUS, status=502, times=7)
        for _ in range(7):
            await rig.rest()
            rig.clock.move(300)
        assert (await rig.task(task_id)).tries == 7
        rig.sandbox.store.inject(Fault.STATUS, key=KEY, status=500, times=3)
        await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.tries) == (Phase.RETRYING, 1)


class TestInAndOut:
    async def test_a_cancelled_task_stops_and_what_came_is_kept(self, rig):
        task_id = await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        assert await rig.cancel(task_id) is Wanted.CANCELLED
        await rig.service.round()
        await rig.service.bringing.settled()
        task = await rig.task(task_id)
        assert (task.phase, task.due_at, task.acquired_by) == (Phase.CANCELLED, None, None)
        assert rig.partial(task_id).exists()
        await rig.live(600, step=60)
        assert (await rig.task(task_id)).phase is Phase.CANCELLED
        assert await rig.retry(task_id) is Wanted.ADDED
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_a_removed_task_stops(self, rig):
        task_id = await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        await rig.store.call(StateStore.forget_task, (await rig.task(task_id)).id)
        await rig.service.round()
        await rig.service.bringing.settled()
        assert not rig.final(task_id).exists()
        assert await rig.store.call(StateStore.find_tasks, task_id) == []

    @pytest.mark.parametrize("service_settings", [{"parallel_tasks": 1}])
    async def test_a_ready_task_waits_for_a_place_and_is_called_when_there_is_one(self, rig):
        first = await rig.add({"first/b.txt": NOTES})
        held = rig.sandbox.store.inject(Fault.HANG, key="first/b.txt")
        await rig.ask()
        await happens(held.happened)
        second = await rig.add()
        await rig.ask()
        task = await rig.task(second)
        assert (task.phase, task.status) == (Phase.WAITING, "SUCCESS")
        assert task.due_at > rig.clock()
        held.released.set()
        await rig.service.bringing.settled()
        await rig.rest()
        assert (await rig.task(first)).phase is Phase.PUBLISHED
        assert (await rig.task(second)).phase is Phase.PUBLISHED


class TestClocks:
    async def test_a_clock_that_was_ahead_and_is_put_right_makes_no_task_sleep(self, rig, caplog):
        rig.clock.move(30 * 86400 - 3600)
        task_id = await rig.add(states=("PENDING", "SUCCESS"))
        await rig.ask()
        rig.clock.move(-30 * 86400)
        await rig.service.heartbeat()
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED
        assert any("clock" in record.message for record in caplog.records)


class TestStoppingAndStarting:
    async def test_a_stop_keeps_what_came_and_the_next_service_goes_on_at_once(self, rig):
        task_id = await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        await rig.service.stop()
        task = await rig.task(task_id)
        assert (task.acquired_by, task.due_at) == (None, AT_ONCE)
        assert (await rig.kinds(task_id))[-1] == "interrupted"
        other = await rig.another()
        await other.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_two_services_share_the_tasks_and_do_none_twice(self, rig):
        other = await rig.another()
        tasks = [await rig.add() for _ in range(20)]
        await asyncio.gather(rig.rest(), other.rest())
        for task_id in tasks:
            assert (await rig.task(task_id)).phase is Phase.PUBLISHED
            assert rig.sandbox.platform.polls[task_id] == 1
            assert (await rig.kinds(task_id)).count("started") == 1

    @pytest.mark.parametrize("service_settings", [{"state": "postgresql"}], indirect=True)
    @pytest.mark.thorough
    async def test_a_fleet_shares_the_tasks_of_a_server(self, rig, service_settings):
        others = [await rig.another(**service_settings) for _ in range(2)]
        tasks = [await rig.add() for _ in range(20)]
        await asyncio.gather(*(service.rest() for service in (rig, *others)))
        for task_id in tasks:
            assert (await rig.task(task_id)).phase is Phase.PUBLISHED
            assert (await rig.kinds(task_id)).count("started") == 1

    async def test_a_lease_that_is_lost_stops_the_work(self, rig):
        task_id = await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        task = await rig.task(task_id)
        await rig.store.call(StateStore.release, task.id, rig.equipment.owner)
        await rig.store.call(StateStore.acquire, task.id, "somebody else", 60)
        await rig.service.heartbeat()
        await rig.service.bringing.settled()
        assert (await rig.task(task_id)).acquired_by == "somebody else"

    async def test_the_heartbeat_keeps_every_lease(self, rig):
        task_id = await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        for _ in range(10):
            rig.clock.move(15)
            await rig.service.heartbeat()
        task = await rig.task(task_id)
        assert task.acquired_until > rig.clock()
        held.released.set()
        await rig.service.bringing.settled()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_a_lease_of_which_no_part_knows_is_given_back(self, rig):
        """As when the state could not be written at the end of a task."""
        task_id = await rig.add()
        [task] = await rig.store.run(
            lambda store: store.agenda.take_due(rig.equipment.owner, 5, lease_seconds=60)
        )
        await rig.service.heartbeat()
        assert (await rig.task(task_id)).acquired_by == rig.equipment.owner
        await rig.service.heartbeat()
        assert (await rig.task(task_id)).acquired_by is None
        rig.clock.move(120)
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED
        assert not is_held(task) or task.acquired_by


async def is_published(rig, task_id):
    return (await rig.task(task_id)).phase is Phase.PUBLISHED


async def is_over(rig, task_id):
    return (await rig.task(task_id)).phase.is_final
