"""Real settings become ready objects, and what they fetch is whole."""

import pytest
from fetch_helpers import NOTES, PAIR, READY, TBI, VCF

from downloader.app import fetch_options, open_app, store_session
from downloader.config import load_settings
from downloader.errors import HostNotAllowed, MissingCredentials, TaskNotReady
from downloader.retry import without_waiting
from downloader.sandbox import Fault, Sandbox
from downloader.transfer import Connections
from state import StateStore, StateUnreadable


@pytest.fixture
async def sandbox(monkeypatch, tmp_path):
    """A sandbox that the environment's settings lead to."""
    monkeypatch.chdir(tmp_path)
    async with Sandbox() as sandbox:
        for name, value in sandbox.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("BGE_DEST", "results")
        monkeypatch.setenv("BGE_STATE", str(tmp_path / "deep/state.db"))
        yield sandbox


async def fetched(task_id, **details):
    with without_waiting():
        async with open_app(load_settings(), **details) as app:
            return await app.fetch(task_id)


async def test_the_environments_settings_fetch_a_task(sandbox, tmp_path):
    task_id = sandbox.add_task(PAIR)
    report = await fetched(task_id)
    assert report.path == tmp_path / "results" / task_id
    assert (report.path / "a.vcf.gz").read_bytes() == VCF
    assert (report.path / "a.vcf.gz.tbi").read_bytes() == TBI
    with StateStore.open(tmp_path / "deep/state.db") as store:
        (task,) = store.find_tasks()
        assert task.task_id == task_id
    assert (await fetched(task_id)).already_published


async def test_missing_credentials_make_nothing(sandbox, monkeypatch, tmp_path):
    """Neither a state nor a destination appears because somebody forgot a variable."""
    monkeypatch.delenv("BGE_APP_KEY")
    with pytest.raises(MissingCredentials):
        await fetched("t1")
    assert list(tmp_path.iterdir()) == []
    assert sandbox.platform.calls == []


async def test_a_state_that_is_no_database_ends_it_with_everything_closed(sandbox, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/state.db").write_text("mine")
    with pytest.raises(StateUnreadable):
        await fetched("t1")
    assert (tmp_path / "deep/state.db").read_text() == "mine"
    assert sandbox.platform.calls == []


async def test_without_waiting_means_one_question(sandbox):
    task_id = sandbox.add_task(PAIR)
    with pytest.raises(TaskNotReady):
        await fetched(task_id, wait=False)
    assert sandbox.platform.polls[task_id] == 1


async def test_only_hosts_of_the_settings_are_downloaded_from(sandbox, monkeypatch):
    monkeypatch.delenv("BGE_ALLOWED_HOSTS")
    task_id = sandbox.add_task(PAIR, states=READY)
    with pytest.raises(HostNotAllowed):
        await fetched(task_id)
    assert sandbox.store.requests == []


async def test_checks_and_checksums_are_those_of_the_settings(sandbox, monkeypatch):
    monkeypatch.setenv("BGE_VERIFY", "off")
    monkeypatch.setenv("BGE_CHECKSUMS", "sha256")
    task_id = sandbox.add_task({"run/a.vcf.gz": NOTES}, states=READY)
    report = await fetched(task_id)
    assert (report.path / "SHA256SUMS").exists()


async def test_several_tasks_side_by_side_share_everything(sandbox):
    task_ids = [sandbox.add_task({f"run{number}/notes.txt": NOTES}) for number in range(3)]
    with without_waiting():
        async with open_app(load_settings({"parallel_files": 1})) as app:
            for task_id in task_ids:
                await app.fetch(task_id)
    assert len({request.key for request in sandbox.store.requests}) == 3


async def test_a_body_is_stored_as_it_came_whatever_its_label_says(sandbox):
    """An HTTP client that decompressed a `.vcf.gz` on the way would store another file."""
    task_id = sandbox.add_task(PAIR, states=READY)
    sandbox.store.inject(Fault.CONTENT_ENCODING, times=None)
    report = await fetched(task_id)
    assert (report.path / "a.vcf.gz").read_bytes() == VCF


async def test_a_body_of_days_has_no_time_limit_but_silence_has(sandbox):
    settings = load_settings({"stall_timeout": "7s", "connect_timeout": "3s"})
    async with store_session(settings) as session:
        assert session.timeout.total is None
        assert (session.timeout.sock_read, session.timeout.sock_connect) == (7, 3)
        assert not session.auto_decompress


async def test_every_setting_of_a_fetch_reaches_it(sandbox):
    settings = load_settings(
        {
            "segments": 3,
            "segment_size": "8M",
            "parallel_files": 5,
            "poll_interval": "1s",
            "poll_max_interval": "2s",
            "poll_deadline": "3s",
            "retry_max_delay": "4s",
            "min_free_space": "5M",
            "limit_rate": "6M",
            "verify": "quick",
        }
    )
    options = fetch_options(settings, wait=False, connections=Connections())
    assert (options.transfer.segments, options.transfer.segment_size) == (3, 8 * 1024**2)
    assert options.transfer.retry_max_delay == 4
    assert options.transfer.min_free_space == 5 * 1024**2
    assert options.verify == "quick"
    poll = options.poll
    assert (poll.interval, poll.max_interval, poll.deadline, poll.wait) == (1, 2, 3, False)
