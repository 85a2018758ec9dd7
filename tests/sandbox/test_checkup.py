"""Each thing that `doctor` can find wrong, found; and that it leaves everything as it is."""

import os
from datetime import UTC, datetime, timedelta

import pytest
from fetch_helpers import tree

from downloader.checkup import examine
from downloader.config import load_settings
from downloader.errors import InvalidSettings
from downloader.sandbox import PlatformFault, Sandbox
from state import StateStore


class Clock:
    def __init__(self):
        self.ahead = timedelta()

    def __call__(self):
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def sandbox(clock, monkeypatch, tmp_path):
    """A sandbox that the environment's settings lead to, and a working directory of its own."""
    home = tmp_path / "work"
    home.mkdir()
    monkeypatch.chdir(home)
    async with Sandbox(clock=clock) as sandbox:
        for name, value in sandbox.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("BGE_MAX_RETRIES", "0")
        yield sandbox


async def diagnosed(**flags):
    """Return what was found by what was looked at."""
    return {one.what: one for one in await examine(load_settings(flags))}


async def test_all_is_well_where_all_is_well(sandbox):
    found = await diagnosed()
    assert {one.verdict for one in found.values()} == {"ok"}
    assert set(found) == {
        "program",
        "credentials",
        "clock",
        "destination",
        "disk",
        "state",
        "open files",
    }
    assert sandbox.endpoint in found["credentials"].found


async def test_nothing_on_disk_is_changed(sandbox, tmp_path):
    """Whoever is told that something is wrong looks at it next, and must find it as it was."""
    with StateStore.open(tmp_path / "state.db") as store:
        store.ensure_task("t1", "/results")

    def look():
        files = {path for path in tmp_path.rglob("*") if path.is_file()}
        return set(tmp_path.rglob("*")), {file: file.stat().st_mtime_ns for file in files}

    before = tree(tmp_path), look()
    for state in ("state.db", "work/new/state.db"):
        await diagnosed(state=str(tmp_path / state), dest=str(tmp_path / "work/deep/results"))
    await diagnosed(state=f"sqlite:///{tmp_path}/another.db")
    assert (tree(tmp_path), look()) == before


async def test_missing_credentials_are_told_with_the_ways_to_give_them(sandbox, monkeypatch):
    monkeypatch.delenv("BGE_APP_SECRET")
    found = await diagnosed()
    assert found["credentials"].verdict == "failed"
    assert "BGE_APP_SECRET" in found["credentials"].found
    assert "clock" not in found
    assert sandbox.platform.calls == []


async def test_a_wrong_secret_is_told_in_the_platforms_own_words(sandbox, monkeypatch):
    monkeypatch.setenv("BGE_APP_SECRET", "wr0ng")
    found = await diagnosed()
    assert found["credentials"].verdict == "failed"
    assert "签名错误" in found["credentials"].found
    assert "app_secret" in found["credentials"].mend
    assert found["clock"].verdict == "ok"
    assert "wr0ng" not in str(found)
    assert len(sandbox.platform.refused) == 1


async def test_a_platform_that_is_down_is_told(sandbox):
    sandbox.platform.inject(PlatformFault.STATUS, times=None, status=503)
    found = await diagnosed()
    assert found["platform"].verdict == "failed"
    assert "503" in found["platform"].found
    assert "credentials" not in found


async def test_a_platform_that_cannot_be_reached_is_told(sandbox, monkeypatch):
    monkeypatch.setenv("BGE_ENDPOINT", "http://127.0.0.1:9")
    assert (await diagnosed())["platform"].verdict == "failed"


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (timedelta(minutes=2), "behind"),
        (timedelta(hours=8), "behind"),  # a clock that was set to local time
        (timedelta(minutes=-2), "ahead of"),
        (timedelta(hours=-8), "ahead of"),
    ],
)
async def test_a_wrong_clock_is_told_and_is_no_reason_to_stop(sandbox, clock, ahead, words):
    clock.ahead = ahead
    found = await diagnosed()
    assert found["clock"].verdict == "warning"
    assert f"{words} the platform's clock" in found["clock"].found
    assert "timedatectl" in found["clock"].mend
    assert found["credentials"].verdict == "ok"
    assert sandbox.platform.calls


async def test_a_destination_that_is_a_file_is_told(sandbox, tmp_path):
    (tmp_path / "file").write_text("mine")
    for dest in ("file", "file/below"):
        found = await diagnosed(dest=str(tmp_path / dest))
        assert found["destination"].verdict == "failed"
        assert "disk" not in found


async def test_a_destination_behind_a_closed_door_is_told(sandbox, as_nobody, open_directory):
    (open_directory / "closed").mkdir(mode=0o700)
    (open_directory / "readable").mkdir(mode=0o755)
    if os.geteuid() != 0:
        (open_directory / "closed").chmod(0)
        (open_directory / "readable").chmod(0o555)
    with as_nobody():
        for dest in ("closed", "closed/deep/below", "readable", "readable/new"):
            found = await diagnosed(
                dest=str(open_directory / dest), state=str(open_directory / dest / "state.db")
            )
            assert found["destination"].verdict == "failed"
            assert found["state"].verdict == "failed"


async def test_a_disk_that_is_too_full_is_told(sandbox):
    found = await diagnosed(min_free_space="1000000T")
    assert found["disk"].verdict == "failed"
    assert "min_free_space" in found["disk"].found


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"x" * 5000])
async def test_a_state_that_is_no_database_is_told_and_left(sandbox, tmp_path, content):
    path = tmp_path / "state.db"
    path.write_bytes(content)
    found = await diagnosed(state=str(path))
    assert found["state"].verdict == "failed"
    assert str(path) in found["state"].found
    assert path.read_bytes() == content


async def test_an_empty_state_is_one_that_will_be_made(sandbox, tmp_path):
    path = tmp_path / "state.db"
    path.touch()
    found = await diagnosed(state=str(path))
    assert found["state"].verdict == "ok"
    assert path.read_bytes() == b""


@pytest.mark.parametrize(("tasks", "known"), [(0, "0 tasks"), (1, "1 task"), (2, "2 tasks")])
async def test_a_state_tells_how_much_it_knows(sandbox, tmp_path, tasks, known):
    path = tmp_path / "state.db"
    with StateStore.open(path) as store:
        for number in range(tasks):
            store.ensure_task(f"t{number}", "/results")
    assert (await diagnosed(state=str(path)))["state"].found == f"{path}, {known} known"


async def test_a_state_that_is_in_use_is_looked_at_beside_its_user(sandbox, tmp_path):
    path = tmp_path / "state.db"
    with StateStore.open(path) as store:
        store.ensure_task("t1", "/results")
        found = (await diagnosed(state=str(path)))["state"]
    assert (found.verdict, found.found) == ("ok", f"{path}, 1 task known")


async def test_a_variable_that_is_no_setting_is_told_with_the_nearest_one(sandbox, monkeypatch):
    monkeypatch.setenv("BGE_SEGMENT", "3")
    found = await diagnosed()
    assert found["environment"].verdict == "warning"
    assert "BGE_SEGMENT is no setting" in found["environment"].found
    assert "BGE_SEGMENTS" in found["environment"].mend


async def test_a_secret_that_others_can_read_is_told(sandbox, monkeypatch, tmp_path):
    path = tmp_path / "secret"
    path.write_text(sandbox.app_secret)
    path.chmod(0o644)
    monkeypatch.delenv("BGE_APP_SECRET")
    monkeypatch.setenv("BGE_APP_SECRET_FILE", str(path))
    found = await diagnosed()
    assert found["secret"].verdict == "warning"
    assert found["secret"].mend == f"chmod 600 {path}"
    assert found["credentials"].verdict == "ok"
    assert sandbox.app_secret not in str(found)
    path.chmod(0o600)
    assert "secret" not in await diagnosed()


@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_a_proxy_is_told_without_its_password(sandbox, monkeypatch, scheme):
    monkeypatch.setenv("https_proxy", f"{scheme}me:s3cr3t@proxy.lab:3128")
    found = await diagnosed()
    assert found["proxy"].found == "https by http://proxy.lab:3128"
    assert "s3cr3t" not in str(found)


@pytest.mark.parametrize(
    "named", ["me:12/s3cr3t@proxy.lab:3128", "http://me:s3cr3t/a@proxy.lab", "socks5://me:s3cr3t@p"]
)
async def test_nothing_is_told_of_a_proxy_that_cannot_be_used(sandbox, monkeypatch, named):
    """The raw `/` of a password moves the host; what is left of it may be the password."""
    monkeypatch.setenv("https_proxy", named)
    found = await diagnosed()
    assert found["proxy"].found == "https by an address that cannot be used"


async def test_too_few_descriptors_are_told(sandbox, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    found = await diagnosed(segments=64, parallel_files=64)
    assert found["open files"].verdict == "failed"
    assert "ulimit -n" in found["open files"].mend


async def test_a_setting_that_cannot_be_used_is_the_settings_own_error(sandbox):
    with pytest.raises(InvalidSettings):
        await diagnosed(segments="many")


async def test_what_the_service_uses_is_looked_at_where_it_is_set(sandbox, monkeypatch, tmp_path):
    monkeypatch.setenv("BGE_ON_COMPLETE", "sh -c true")
    monkeypatch.setenv("BGE_ON_FAILURE", "/nowhere/tell --all")
    (tmp_path / "file").touch()
    monkeypatch.setenv("BGE_INBOX", str(tmp_path / "file"))
    found = await diagnosed()
    assert found["on_complete"].verdict == "ok"
    assert found["on_failure"].verdict == found["inbox"].verdict == "failed"
    assert "/nowhere/tell is no program" in found["on_failure"].found
    monkeypatch.setenv("BGE_INBOX", str(tmp_path / "new" / "inbox"))
    assert "which will be made" in (await diagnosed())["inbox"].found
    assert not (tmp_path / "new").exists()
