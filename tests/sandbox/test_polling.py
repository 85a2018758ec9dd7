"""How a task is waited for: how often, how long, and what the platform may say meanwhile."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from downloader import polling
from downloader.errors import BadTaskResult, PlatformUnavailable, TaskNotReady
from downloader.polling import PollOptions, wait_for_result
from downloader.progress import Reporter
from downloader.retry import without_waiting


class Platform:
    """Gives one answer after the other, and stays with the last; an error is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    async def task_result(self, task_id):
        assert task_id == "t1"
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, dict) else {"status": answer, "result": ["link"]}


class Pauses(Reporter):
    def __init__(self):
        self.seconds = []
        self.statuses = []
        self.notes = []

    def polled(self, status, *, polls, next_in_seconds):
        self.seconds.append(next_in_seconds)
        self.statuses.append((status, polls))

    def note(self, message):
        self.notes.append(message)


async def waited(platform, pauses=None, **options):
    recorded = []

    async def record(status):
        recorded.append(status)

    with without_waiting():
        result = await wait_for_result(
            "t1",
            api=platform,
            options=PollOptions(**options),
            reporter=pauses or Pauses(),
            record=record,
        )
    return result, recorded


async def test_every_poll_is_recorded_and_the_result_comes_as_it_is():
    result, recorded = await waited(Platform("PENDING", "STARTED", "SUCCESS"))
    assert (result, recorded) == (["link"], ["PENDING", "STARTED", "SUCCESS"])


async def test_pauses_grow_while_nothing_changes_and_begin_anew_when_something_does():
    pauses = Pauses()
    platform = Platform(*8 * ["PENDING"], "STARTED", "SUCCESS")
    await waited(platform, pauses, interval=10, max_interval=100)
    *pending, started = pauses.seconds
    for number, seconds in enumerate(pending):
        most = min(100, 10 * 2**number)
        assert most / 2 <= seconds <= most
    assert 5 <= started <= 10
    assert pauses.statuses[-1] == ("STARTED", 9)


async def test_the_platforms_own_wish_is_a_lower_bound():
    pauses = Pauses()
    away = PlatformUnavailable("too many requests", retry_after=500)
    await waited(Platform("PENDING", away, "SUCCESS"), pauses, interval=1)
    assert pauses.seconds[1] == 500
    assert "still waiting" in pauses.notes[0]


async def test_no_pause_is_longer_than_what_is_left():
    pauses = Pauses()
    away = PlatformUnavailable("away", retry_after=500)
    await waited(Platform("PENDING", away, "SUCCESS"), pauses, interval=200, deadline=100)
    assert max(pauses.seconds) <= 100


async def test_a_platform_that_never_answered_ends_the_waiting():
    """A wrong endpoint must not be waited for until the deadline, a week away."""
    platform = Platform(PlatformUnavailable("no such host"))
    with pytest.raises(PlatformUnavailable):
        await waited(platform)
    assert platform.asked == 1


async def test_without_waiting_a_platform_that_is_away_ends_it():
    with pytest.raises(PlatformUnavailable):
        await waited(Platform(PlatformUnavailable("away")), wait=False)


async def test_an_answer_that_never_comes_ends_by_the_deadline(monkeypatch):
    monkeypatch.setattr(polling, "LAST_ASK_SECONDS", 0.01)

    class Silent:
        async def task_result(self, _):
            await asyncio.Event().wait()

    with pytest.raises(TaskNotReady, match="gave no answer"):
        await waited(Silent(), deadline=0)


async def test_at_the_deadline_itself_the_task_is_asked_for_once_more():
    """What is ready at the last moment is fetched."""
    result, _ = await waited(Platform("SUCCESS"), deadline=0)
    assert result == ["link"]


@pytest.mark.parametrize("status", ["SPLINES_RETICULATED", "pending review", "x" * 1000])
async def test_a_state_that_is_not_known_goes_on_and_is_in_the_log_once(status, caplog):
    with caplog.at_level(logging.WARNING, logger="downloader.polling"):
        _, recorded = await waited(Platform(status, status, "SUCCESS"))
    assert len(caplog.records) == 1
    assert recorded[0].removesuffix("…") == status.upper()[:40]


async def test_a_state_in_small_letters_is_the_same_state():
    assert (await waited(Platform("success")))[1] == ["SUCCESS"]


@pytest.mark.parametrize("answer", [{}, {"status": None}, {"status": ""}, {"status": 3}])
async def test_an_answer_without_a_state_is_no_answer_of_the_platform(answer):
    with pytest.raises(BadTaskResult, match="endpoint"):
        await waited(Platform(answer))


async def test_a_sentence_about_a_task_that_is_not_ready_tells_what_to_do():
    with pytest.raises(TaskNotReady) as caught:
        await waited(Platform("STARTED"), deadline=0)
    assert "it is STARTED" in str(caught.value)
    assert "check the id" not in str(caught.value)
    with pytest.raises(TaskNotReady, match="check the id"):
        await waited(Platform("PENDING"), deadline=0)


async def test_a_long_deadline_is_told_as_people_say_it(monkeypatch):
    clock = iter([0.0, *10 * [8 * 86400.0]])
    monkeypatch.setattr(polling, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(TaskNotReady, match="after 7 d"):
        await waited(Platform("PENDING"), deadline=7 * 86400)
