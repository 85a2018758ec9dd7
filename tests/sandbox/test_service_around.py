"""What the service does around its tasks: it announces, takes in, takes settings anew, tells."""

import asyncio
import json
import logging
import shutil
import sys
from datetime import datetime, timedelta

import pytest
from aiohttp import web
from apscheduler.triggers.cron import CronTrigger
from fetch_helpers import VCF
from service_helpers import happens

from downloader.config import load_settings
from downloader.errors import InvalidSettings
from downloader.sandbox import Fault, PlatformFault
from downloader.service import announcing
from state import Phase, is_alive

pytest_plugins = ["service_helpers"]

KEY = "run/a.vcf.gz"
MIB = 1024 * 1024

# Writes down what it was told; fails as long as there is a file `broken` beside it.
HOOK = """
import json, os, pathlib, sys
place = pathlib.Path(sys.argv[1])
told = {name: os.environ[name] for name in os.environ if name.startswith("BGE_")}
with (place / "told").open("a") as lines:
    print(json.dumps({"arguments": sys.argv[2:], **told}), file=lines)
sys.exit((place / "broken").exists() and 7)
"""


@pytest.fixture
def hook(tmp_path):
    """A command, and what it was told each time."""

    class Hook:
        command = (sys.executable, "-c", HOOK, str(tmp_path))
        broken = tmp_path / "broken"

        @property
        def told(self):
            lines = (tmp_path / "told").read_text().splitlines()
            return [json.loads(line) for line in lines]

    return Hook()


class TestCommands:
    @pytest.fixture
    def service_settings(self, hook):
        return {"on_complete": hook.command, "on_failure": hook.command}

    async def test_an_end_is_announced_with_the_task_s_facts(self, rig, hook):
        task_id = await rig.add()
        await rig.rest()
        [told] = hook.told
        manifest = rig.final(task_id) / "bge-manifest.json"
        assert told["arguments"] == [str(manifest)]
        assert told["BGE_TASK_ID"] == task_id
        assert told["BGE_RESULT_PATH"] == str(rig.final(task_id))
        assert told["BGE_EVENT"] == "complete"
        assert "BGE_APP_SECRET" not in told
        assert (await rig.kinds(task_id))[-1] == "announced"
        await rig.live(7200, step=600)
        assert len(hook.told) == 1

    async def test_a_failure_is_announced_once_it_is_certain(self, rig, hook):
        task_id = await rig.add(states=("REVOKED",))
        await rig.rest()
        [told] = hook.told
        assert (told["BGE_EVENT"], told["BGE_EXIT_CODE"]) == ("failure", "3")
        assert "REVOKED" in told["BGE_MESSAGE"]
        assert told["arguments"] == [task_id]

    async def test_an_attempt_that_has_failed_is_not_announced(self, rig, hook, tmp_path):
        await rig.add()
        rig.sandbox.store.inject(Fault.STATUS, key=KEY, status=500, times=None)
        await rig.rest()
        assert not (tmp_path / "told").exists()

    async def test_a_command_that_fails_is_called_again_with_the_same_key(self, rig, hook):
        hook.broken.touch()
        task_id = await rig.add()
        await rig.rest()
        rig.clock.move(60)
        await rig.rest()
        hook.broken.unlink()
        rig.clock.move(3600)
        await rig.rest()
        assert [told["BGE_ATTEMPT"] for told in hook.told] == ["1", "2", "3"]
        assert len({told["BGE_IDEMPOTENCY_KEY"] for told in hook.told}) == 1
        assert (await rig.kinds(task_id))[-3:] == ["not told", "not told", "announced"]
        events = await rig.events(task_id)
        assert events[-2].facts["exit_code"] == 7

    async def test_a_failure_that_is_none_any_more_is_not_told_after_the_completion(
        self, rig, hook
    ):
        hook.broken.touch()
        task_id = await rig.add(states=("FAILURE", "SUCCESS"))
        await rig.rest()
        await rig.retry(task_id)
        hook.broken.unlink()
        await rig.rest()
        await rig.live(7200, step=600)
        assert [told["BGE_EVENT"] for told in hook.told] == ["failure", "complete"]

    async def test_a_clock_that_was_ahead_and_is_put_right_keeps_nothing_from_being_told(
        self, rig, hook
    ):
        hook.broken.touch()
        rig.clock.move(30 * 86400 - 3600)
        await rig.add(states=("FAILURE",))
        await rig.rest()
        hook.broken.unlink()
        rig.clock.move(-30 * 86400)
        await rig.service.heartbeat()
        await rig.rest()
        assert [told["BGE_ATTEMPT"] for told in hook.told] == ["1", "2"]

    async def test_it_is_given_up_after_so_many_attempts(self, rig, hook):
        hook.broken.touch()
        await rig.add()
        for _ in range(2 * announcing.MAX_ATTEMPTS):
            await rig.rest()
            rig.clock.move(7200)
        assert len(hook.told) == announcing.MAX_ATTEMPTS

    async def test_what_a_dead_service_was_announcing_is_announced_again(self, rig, hook):
        task_id = await rig.add()
        await rig.ask()
        await rig.service.bringing.settled()
        taken = await rig.store.run(lambda store: store.notices.take_due(5, claim_seconds=600))
        assert len(taken) == 1
        rig.clock.move(120)  # nothing was heard of it for so long
        other = await rig.another(on_complete=hook.command)
        await other.rest()
        assert [told["BGE_TASK_ID"] for told in hook.told] == [task_id]


class TestWebhook:
    async def test_a_post_is_tried_again_and_a_way_that_worked_is_not(self, rig, hook):
        answers, heard = [503, 200], []

        async def answer(request):
            heard.append((request.headers["Idempotency-Key"], await request.json()))
            return web.Response(status=answers.pop(0))

        runner = web.ServerRunner(web.Server(answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        try:
            await take_settings(
                rig, on_complete=list(hook.command), webhook=f"http://127.0.0.1:{port}/hook"
            )
            task_id = await rig.add()
            await rig.rest()
            rig.clock.move(120)
            await rig.rest()
        finally:
            await runner.cleanup()
        assert len(hook.told) == 1
        assert [body["task_id"] for _, body in heard] == [task_id] * 2
        keys = {key for key, _ in heard} | {told["BGE_IDEMPOTENCY_KEY"] for told in hook.told}
        assert len(keys) == 1
        assert heard[1][1]["manifest"]["task_id"] == task_id


class TestInbox:
    @pytest.fixture
    def service_settings(self, tmp_path):
        return {"inbox": tmp_path / "inbox"}  # which the service makes

    async def look(self, rig):
        for _ in range(2):  # a file must look the same twice
            await rig.service.intake.round()

    async def test_a_file_named_by_a_task_brings_that_task(self, rig, tmp_path):
        task_id = rig.sandbox.add_task({"a/b.vcf.gz": VCF}, states=("SUCCESS",))
        await self.look(rig)
        (tmp_path / "inbox" / task_id).touch()
        await self.look(rig)
        assert "by " + task_id in (await rig.events(task_id))[0].message
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED
        assert (tmp_path / "inbox/accepted" / task_id).exists()

    async def test_what_is_published_is_left_alone_and_said_and_begun_again_once_it_is_gone(
        self, rig, tmp_path, caplog
    ):
        caplog.set_level(logging.INFO)
        task_id = rig.sandbox.add_task({"a/b.vcf.gz": VCF}, states=("SUCCESS",))
        for name, is_again in [("first", True), ("second", False), ("third", True)]:
            await self.look(rig)
            (tmp_path / "inbox" / f"{name}.txt").write_text(f"{task_id}\n")
            await self.look(rig)
            task = await rig.task(task_id)
            assert (task.phase is Phase.WAITING) == is_again
            told = [record.message for record in caplog.records if "already" in record.message]
            assert len(told) == (name != "first")
            await rig.rest()
            assert (rig.final(task_id) / "b.vcf.gz").read_bytes() == VCF
            if name == "second":
                shutil.rmtree(rig.final(task_id))

    async def test_what_lists_no_tasks_is_put_aside_with_the_reason(self, rig, tmp_path, caplog):
        await self.look(rig)
        (tmp_path / "inbox/list.txt").write_text("no task at all!\n")
        await self.look(rig)
        assert (tmp_path / "inbox/rejected/list.txt").exists()
        assert any("Rejected" in record.message for record in caplog.records)

    async def test_an_inbox_that_is_gone_is_told_once(self, rig, tmp_path, caplog):
        await self.look(rig)
        (tmp_path / "inbox").rmdir()
        for _ in range(3):
            await rig.service.intake.round()
        assert sum("inbox" in record.message for record in caplog.records) == 1


class TestReload:
    async def test_other_credentials_hold_from_the_next_call_on(self, rig):
        task_id = await rig.add()
        await take_settings(rig, app_secret="another-secret-not-real")
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.WAITING
        assert "refused" in rig.service.condition
        await take_settings(rig)
        rig.clock.move(60)
        await rig.rest()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED

    async def test_what_is_under_way_goes_on(self, rig):
        task_id = await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        await take_settings(rig, limit_rate="3M", connections="7", parallel_files="3")
        assert rig.equipment.rate_limit.bytes_per_second == 3 * MIB
        held.released.set()
        await rig.service.bringing.settled()
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED
        assert (await rig.kinds(task_id)).count("started") == 1

    async def test_the_watchdog_is_as_patient_as_the_settings(self, rig):
        before = rig.equipment.pulse.patience
        await take_settings(rig, retry_max_delay="10m")
        assert rig.equipment.pulse.patience > before + 3 * 500

    async def test_settings_that_cannot_be_used_change_nothing(self, rig, caplog):
        before = rig.equipment.settings

        def load():
            raise InvalidSettings("segments is 'many', but a whole number is expected")

        await rig.service.reload(load)
        assert rig.equipment.settings is before
        assert any("old settings" in record.message for record in caplog.records)
        assert next(iter(rig.told.sent[0])) == "RELOADING"
        assert "READY" in rig.told.sent[-1]

    async def test_what_only_a_new_start_can_change_is_named(self, rig, caplog):
        await take_settings(rig, stall_timeout="7s")
        [record] = [record for record in caplog.records if "next start" in record.message]
        assert record.facts["settings"] == "stall_timeout"


class TestSchedule:
    async def test_no_job_is_dropped_for_being_late_and_none_meets_itself(self, rig):
        """APScheduler's defaults would drop a job that is a second late, quietly."""
        rig.service._schedule()
        jobs = rig.service._scheduler.get_jobs()
        names = {job.name for job in jobs}
        assert names == {"round", "announcements", "inbox", "heartbeat", "status", "upkeep"}
        rig.service._scheduler.start(paused=True)
        for job in rig.service._scheduler.get_jobs():
            assert (job.coalesce, job.max_instances, job.misfire_grace_time) == (True, 1, None)

    @pytest.mark.parametrize("service_settings", [{"limit_rate_times": ["08:00-18:00 20M"]}])
    async def test_the_timetable_is_followed(self, rig):
        rig.service._schedule()
        triggers = [
            job.trigger for job in rig.service._scheduler.get_jobs() if job.name == "timetable"
        ]
        assert triggers
        assert all(isinstance(trigger, CronTrigger) for trigger in triggers)
        midday = datetime.now().astimezone().replace(hour=12) + timedelta(days=1)
        rig.clock.now = midday
        await rig.service.follow_timetable()
        assert rig.equipment.rate_limit.bytes_per_second == 20 * MIB
        rig.clock.move(8 * 3600)
        await rig.service.follow_timetable()
        assert rig.equipment.rate_limit.bytes_per_second is None

    async def test_work_that_fails_is_told_once_and_done_again(self, rig, caplog):
        caplog.set_level(logging.INFO)
        outcomes = [InvalidSettings("no"), InvalidSettings("no"), None, ZeroDivisionError()]

        async def work():
            if (outcome := outcomes.pop(0)) is not None:
                raise outcome

        for _ in range(4):
            await rig.service._told(work, "work")
        assert [record.message for record in caplog.records] == [
            "The work could not be done",
            "The work could be done again",
            "A mistake in the program, in the work",
        ]

    async def test_the_scheduler_really_runs_the_rounds(self, rig):
        """The one test that waits for its clock: a second."""
        asked = asyncio.Event()
        rig.sandbox.platform._on_request = lambda _: asked.set()
        await rig.add()
        await rig.service.start()
        await happens(asked)


class TestUpkeep:
    async def test_what_ended_long_ago_is_forgotten_and_its_result_stays(self, rig):
        old, waiting = await rig.add(), await rig.add(states=("PENDING",))
        await rig.rest()
        rig.clock.move(91 * 86400)
        await rig.service.upkeep()
        found = await rig.store.run(lambda store: store.find_tasks())
        assert [task.task_id for task in found] == [waiting]
        assert (rig.final(old) / "a.vcf.gz").read_bytes() == VCF

    async def test_the_service_tells_that_it_is_there_and_what_keeps_it_from_working(self, rig):
        await rig.add()
        rig.sandbox.platform.inject(PlatformFault.STATUS, status=502, times=None)
        await rig.rest()
        await rig.service.heartbeat()
        [service] = await rig.store.run(lambda store: store.services.list())
        assert is_alive(service, now=rig.clock())
        assert "502" in service.condition
        assert service.dest == str(rig.dest)
        await rig.service.tell_status()
        assert "1 task watched, 0 under way; " in rig.told.statuses[-1]
        await rig.service.stop()
        [service] = await rig.store.run(lambda store: store.services.list())
        assert not is_alive(service, now=rig.clock())


class TestWatchdog:
    def fed(self, rig):
        return sum("WATCHDOG" in fields for fields in rig.told.sent)

    @pytest.fixture
    def seconds(self, rig):
        """The pulse's clock, that of the test."""
        pulse = rig.equipment.pulse
        pulse._clock = lambda: rig.clock().timestamp()
        pulse.tick()
        pulse.beat()
        return rig.clock

    async def test_it_is_fed_while_there_is_no_work(self, rig, seconds):
        for _ in range(100):
            seconds.move(30)
            await rig.service.round()
            await rig.service.feed_watchdog()
        assert self.fed(rig) == 100

    async def test_it_starves_when_the_rounds_end(self, rig, seconds):
        seconds.move(61)
        await rig.service.feed_watchdog()
        assert self.fed(rig) == 0

    async def test_it_is_fed_while_a_transfer_waits_patiently_and_starves_when_it_hangs(
        self, rig, seconds
    ):
        await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        patience = rig.equipment.pulse.patience
        assert 600 < patience < 3600
        await rig.service.feed_watchdog()
        seconds.move(patience - 10)
        rig.equipment.pulse.tick()
        await rig.service.feed_watchdog()
        assert self.fed(rig) == 2
        seconds.move(20)
        rig.equipment.pulse.tick()
        await rig.service.feed_watchdog()
        assert self.fed(rig) == 2
        held.released.set()
        await rig.service.bringing.settled()
        await rig.service.feed_watchdog()
        assert self.fed(rig) == 3

    async def test_a_store_s_own_wish_is_waited_for(self, rig, seconds):
        await rig.add()
        held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=1000)
        await rig.ask()
        await happens(held.happened)
        rig.equipment.slow_down.ask("127.0.0.1:1", 3600)
        for _ in range(10):
            seconds.move(600)
            rig.equipment.pulse.tick()
            await rig.service.feed_watchdog()
        assert self.fed(rig) == 10
        held.released.set()
        await rig.service.bringing.settled()


async def take_settings(rig, **changed):
    """Let the service take its settings anew, as they were but for what changed."""
    given = {name: getattr(rig.settings, name) for name in type(rig.settings).model_fields}
    given |= {"app_secret": rig.sandbox.app_secret, **changed}
    given = {name: value for name, value in given.items() if value is not None}
    await rig.service.reload(lambda: load_settings(defaults=given))
