"""Where a fetch must end early: one sentence, the right exit code, nothing where it must not be."""

import pytest
from fetch_helpers import NOTES, PAIR, READY, RULES, SECRETS, TBI, VCF

from downloader.api import AsyncPrivateAPI
from downloader.errors import (
    BadTaskResult,
    BusinessError,
    DestinationTaken,
    DiskError,
    HostNotAllowed,
    InvalidTaskId,
    ObjectMissing,
    PlatformUnavailable,
    TaskFailed,
    TaskNotReady,
)
from downloader.polling import PollOptions
from downloader.sandbox import Fault, PlatformFault
from downloader.transfer import TransferOptions
from state import Phase, StateStore

pytest_plugins = ["fetch_helpers"]


def is_one_sentence(error):
    text = str(error)
    return bool(text) and "\n" not in text and not any(secret in text for secret in SECRETS)


# Results that nobody can download


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (None, BadTaskResult, "is null"),
        ([], BadTaskResult, "is empty"),
        ("https://a.aliyuncs.com/a.vcf.gz", BadTaskResult, "is text"),
        ({"files": []}, BadTaskResult, "is an object"),
        (7, BadTaskResult, "is a number"),
        ([None], BadTaskResult, "Entry 1"),
        (["http://127.0.0.1/a", {"url": "http://127.0.0.1/b"}], BadTaskResult, "Entry 2"),
        (["a.vcf.gz"], HostNotAllowed, "not a link"),
        (["file:///etc/passwd"], HostNotAllowed, "not a link"),
        (["file://127.0.0.1/etc/passwd"], HostNotAllowed, "file:"),
        (["ftp://127.0.0.1/a"], HostNotAllowed, "ftp:"),
        (["https://evil.example/a?Signature=s3cr3t"], HostNotAllowed, "evil.example"),
        (["http://me:s3cr3t@127.0.0.1/a"], HostNotAllowed, "user name"),
        (["http://127.0.0.1/run/../../../etc/cron.d/a"], BadTaskResult, "does not name a file"),
        (["http://127.0.0.1/run/%2e%2e/%2e%2e/a"], BadTaskResult, "does not name a file"),
        (["http://127.0.0.1/..%2f..%2fa"], BadTaskResult, "does not name a file"),
        (["http://127.0.0.1/"], BadTaskResult, "does not name a file"),
        (["http://127.0.0.1/a%00b"], BadTaskResult, "characters"),
        (["http://127.0.0.1/run/bge-manifest.json"], BadTaskResult, "whose place is needed"),
    ],
)
async def test_a_result_that_cannot_be_fetched_ends_before_anything_is_written(
    rig, result, kind, words
):
    task_id = rig.sandbox.add_task(states=READY, result=result)
    error = await rig.fails(task_id, kind)
    assert error.exit_code == 1
    assert words in str(error)
    assert is_one_sentence(error)
    assert "s3cr3t" not in str(error)
    assert [path.name for path in rig.directory.iterdir() if path.name != "results"] == [
        path.name for path in rig.directory.glob("state.db*")
    ]
    assert list(rig.dest.iterdir()) == []
    assert rig.sandbox.store.requests == []
    task = await rig.task(task_id)
    assert (task.phase, task.exit_code, task.message) == (Phase.FAILED, 1, str(error))
    assert task.acquired_by is None


async def test_an_object_that_is_missing_is_named_and_the_others_are_kept(rig):
    task_id = rig.add()
    rig.sandbox.store.delete("run/a.vcf.gz.tbi")
    error = await rig.fails(task_id, ObjectMissing, parallel_files=1)
    assert is_one_sentence(error)
    assert "a.vcf.gz.tbi" in str(error)
    assert not rig.final(task_id).exists()
    rig.sandbox.store.put("run/a.vcf.gz.tbi", TBI)
    report = await rig.fetch(task_id)
    assert (report.received_bytes, report.resumed_bytes) == (len(TBI), len(VCF))


async def test_a_redirect_to_another_host_is_not_followed(rig):
    task_id = rig.add()
    rig.sandbox.store.inject(Fault.REDIRECT, location="https://evil.example/a?Signature=s3cr3t")
    error = await rig.fails(task_id, HostNotAllowed)
    assert "evil.example" in str(error)
    assert is_one_sentence(error)


# Tasks that failed


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
async def test_a_task_that_failed_ends_with_the_platforms_reason(rig, state):
    task_id = rig.sandbox.add_task(states=("PENDING", state), result="样本质量太低 (low quality)")
    error = await rig.fails(task_id, TaskFailed)
    assert error.exit_code == 3
    assert f"({state})" in str(error)
    assert "样本质量太低 (low quality)" in str(error)
    task = await rig.task(task_id)
    assert (task.phase, task.exit_code, task.status) == (Phase.FAILED, 3, state)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (None, "it gives no reason"),
        ("", "it gives no reason"),
        ({}, "it gives no reason"),
        ({"exc_type": "ValueError", "exc_message": ["bad"]}, "ValueError"),
        (["a", "b"], '["a", "b"]'),
        (False, "false"),
        ("one\nline\tonly \x1b[31m\0", "one line only ?[31m?"),
        ("x" * 10_000_000, "x" * 500 + "…"),
        ("see http://h/a?Expires=1&OSSAccessKeyId=s3cr3t&Signature=s3cr3t", "see http://h/a?"),
        ({"url": "http://h/a?Signature=s3cr3t", "app_secret": "s3cr3t"}, "http://h/a?"),
        ("y" * 480 + " Signature=" + "s3cr3t" * 2000, "y" * 480),
    ],
)
async def test_any_reason_becomes_one_line_without_secrets(rig, reason, told):
    """The reason may be a traceback, a dict, or megabytes; it goes to terminals and into state."""
    task_id = rig.sandbox.add_task(states=("FAILURE",), result=reason)
    error = await rig.fails(task_id, TaskFailed)
    assert told in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 700
    assert "s3cr3t" not in str(error)
    assert b"s3cr3t" not in rig.all_written()


# Tasks that are not ready


async def test_an_id_that_nobody_knows_ends_by_the_deadline(rig):
    """The platform says PENDING of it for ever, and the sentence tells that."""
    rig.poll = PollOptions(deadline=0.05)
    error = await rig.fails("00000000-1111", TaskNotReady)
    assert error.exit_code == 4
    assert "check the id" in str(error)
    task = await rig.task("00000000-1111")
    assert (task.phase, task.exit_code, task.status) == (Phase.WAITING, 4, "PENDING")
    assert task.polls >= 1
    assert (await rig.history("00000000-1111"))[-1] == "not ready"


async def test_without_waiting_a_task_is_asked_for_once(rig):
    rig.poll = PollOptions(wait=False)
    task_id = rig.sandbox.add_task(PAIR)
    for state in ("PENDING", "STARTED"):
        error = await rig.fails(task_id, TaskNotReady)
        assert error.exit_code == 4
        assert f"it is {state}" in str(error)
    assert rig.calls == ["task_result"] * 2
    await rig.fetch(task_id)
    assert len(rig.published(task_id)) == 2


# The platform


async def test_a_wrong_secret_ends_at_once_with_the_platforms_own_words(rig):
    task_id = rig.add()
    async with AsyncPrivateAPI(rig.sandbox.app_key, "wr0ng", rig.sandbox.endpoint) as api:
        rig.api = api
        error = await rig.fails(task_id, BusinessError)
    assert (error.exit_code, error.code) == (1, 1400)
    assert "签名错误" in str(error)
    assert [code for _, code in rig.sandbox.platform.refused] == [1400]
    assert b"wr0ng" not in rig.all_written()


async def test_a_secret_that_the_platform_quotes_is_not_written_down(rig):
    """A refusal may quote the request that it refuses."""
    task_id = rig.add()
    quoted = "cannot take app_secret=s3cr3t&sign=s3cr3t"
    rig.sandbox.platform.inject(PlatformFault.BUSINESS_ERROR, code=1001, message=quoted)
    await rig.fails(task_id, BusinessError)
    assert "cannot take" in (await rig.task(task_id)).message
    assert b"s3cr3t" not in rig.all_written()


@pytest.mark.parametrize(
    "fault",
    [
        PlatformFault.STATUS,
        PlatformFault.RATE_LIMIT,
        PlatformFault.HTML,
        PlatformFault.BROKEN_JSON,
        PlatformFault.RESET,
    ],
)
async def test_passing_faults_of_the_platform_are_survived(rig, fault):
    task_id = rig.sandbox.add_task(PAIR)
    injected = rig.sandbox.platform.inject(fault, times=3)
    await rig.fetch(task_id)
    assert injected.hits == 3
    assert len(rig.published(task_id)) == 2


async def test_a_platform_that_never_answered_is_told_at_once(rig):
    task_id = rig.add()
    rig.sandbox.platform.inject(PlatformFault.STATUS, times=None, status=502)
    error = await rig.fails(task_id, PlatformUnavailable)
    assert error.exit_code == 1
    assert is_one_sentence(error)


async def test_a_platform_that_goes_away_while_a_task_is_waited_for_is_waited_for_too(rig):
    """A week's waiting must not end because of one night's maintenance."""
    task_id = rig.sandbox.add_task(PAIR)

    class Outage(type(rig.heard)):
        def polled(self, status, *, polls, next_in_seconds):
            super().polled(status, polls=polls, next_in_seconds=next_in_seconds)
            if polls == 1 and len(self.of("polled")) == 1:
                rig.sandbox.platform.inject(PlatformFault.STATUS, times=9, status=503)

    rig.heard = Outage()
    await rig.fetch(task_id)
    assert len([note for note in rig.heard.notes if "still waiting" in note]) == 2
    assert len(rig.published(task_id)) == 2


# The destination


async def test_a_destination_that_cannot_be_written_is_found_before_anybody_is_asked(rig):
    """Days of waiting for a task must not end at a directory that never could be written."""
    task_id = rig.add()
    rig.dest.write_text("a file")
    error = await rig.fails(task_id, DiskError)
    assert error.exit_code == 1
    assert str(rig.dest) in str(error)
    assert (rig.calls, rig.sandbox.store.requests) == ([], [])
    assert await rig.store.call(StateStore.find_tasks) == []


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link", "another's result"])
async def test_what_stands_in_the_results_place_is_left_alone(rig, kind):
    task_id = rig.add()
    other = rig.add()
    rig.dest.mkdir()
    final = rig.final(task_id)
    if kind == "file":
        final.write_text("mine")
    elif kind == "directory":
        final.mkdir()
        (final / "mine.txt").write_text("mine")
    elif kind == "dangling link":
        final.symlink_to(rig.directory / "nowhere")
    else:
        await rig.fetch(other)
        rig.final(other).rename(final)
        rig.forget()
    error = await rig.fails(task_id, DestinationTaken)
    assert error.exit_code == 1
    assert str(final) in str(error)
    assert final.is_symlink() or final.exists()
    assert (rig.calls, rig.sandbox.store.requests) == ([], [])


async def test_what_appears_in_the_results_place_meanwhile_is_left_alone(rig):
    task_id = rig.add()

    class Rival(type(rig.heard)):
        def verifying(self, name):
            super().verifying(name)
            rig.final(task_id).mkdir(exist_ok=True)

    rig.heard = Rival()
    error = await rig.fails(task_id, DestinationTaken)
    assert "appeared while" in str(error)
    assert list(rig.final(task_id).iterdir()) == []
    rig.final(task_id).rmdir()
    rig.forget()
    report = await rig.fetch(task_id)
    assert report.received_bytes == 0
    assert rig.published(task_id) == {"a.vcf.gz": VCF, "a.vcf.gz.tbi": TBI}


async def test_a_link_in_the_partial_directory_leads_nobody_out_of_it(rig):
    task_id = rig.add({"run/one/a.txt": NOTES, "run/two/a.txt": NOTES})
    outside = rig.directory / "outside"
    outside.mkdir()
    rig.partial(task_id).mkdir(parents=True)
    (rig.partial(task_id) / "one").symlink_to(outside)
    await rig.fails(task_id, DiskError)
    assert list(outside.iterdir()) == []


async def test_an_id_that_is_no_name_for_a_directory_is_refused_before_anything(rig):
    for text in ("../a", "a/b", "", ".", "a.partial"):
        with pytest.raises(InvalidTaskId):
            await rig.fetch(text)
    assert not rig.dest.exists()
    assert rig.calls == []


async def test_no_host_is_allowed_by_default(rig):
    rig.transfer = TransferOptions()
    task_id = rig.add()
    error = await rig.fails(task_id, HostNotAllowed)
    assert "allowed_hosts" in str(error)
    assert RULES.patterns == ("127.0.0.1",)
