"""Whatever is handed in: the right exit code, one plain sentence, and nothing out of its place."""

import os
import sys
from pathlib import Path

import pytest
from e2e_helpers import PAIR, Program, tree

from downloader.sandbox import Fault

pytest_plugins = ["e2e_helpers"]

BAD_IDS = {
    "empty": "",
    "slash": "../../etc/passwd",
    "newline": "a\nb",
    "dots": "..",
    "long": "x" * 5000,
}


@pytest.fixture
def bare(tmp_path):
    """Give the program in a place of its own; nobody listens at its platform."""
    (tmp_path / "bare").mkdir()
    nowhere = {"BGE_ENDPOINT": "http://127.0.0.1:9", "BGE_ALLOWED_HOSTS": "127.0.0.1"}
    secrets = {"BGE_APP_KEY": "key", "BGE_APP_SECRET": "secret"}
    return Program(tmp_path / "bare", {**nowhere, **secrets})


async def refused(program, *arguments, exit_code, **options):
    """Run what must be refused; return its one sentence. Nothing may have been made or touched."""
    root = program.cwd.parent
    before = tree(root)
    ended = await program.run(*arguments, **options)
    assert (ended.exit_code, ended.stdout) == (exit_code, ""), ended.stderr
    assert "Traceback" not in ended.stderr
    assert tree(root) == before
    return ended.sentence


@pytest.mark.parametrize("task_id", BAD_IDS.values(), ids=BAD_IDS)
@pytest.mark.thorough
async def test_what_is_no_task_id_makes_nothing(bare, task_id):
    sentence = await refused(bare, "fetch", "--", task_id, exit_code=2)
    assert "task id" in sentence
    assert len(sentence) < 300


@pytest.mark.thorough
async def test_bad_results_end_in_one_sentence_each_and_write_nothing(program, sandbox):
    """The platform is not trusted either: not with hosts, not with paths, not with types."""
    host = sandbox.store.url.removeprefix("http://")
    results = {
        "null": (None, "its result is null"),
        "empty": ([], "its result is empty"),
        "object": ({"url": "https://a.aliyuncs.com/a"}, "its result is an object"),
        "number": ([7], "Entry 1 of the task's result is a number"),
        "words": (["not a link"], "was not followed"),
        "file": (["file:///etc/passwd"], "'file:///etc/passwd' is not a link"),
        "host": (
            ["https://evil.example/a.vcf.gz"],
            "evil.example, which is not one of the allowed",
        ),
        "plain": (["http://bucket.oss-cn-shenzhen.aliyuncs.com/a"], "is not one of the allowed"),
        "user": ([f"http://me@{host}/a.vcf.gz"], "carries a user name"),
        "climbs": ([f"http://{host}/a/%2e%2e%2f%2e%2e%2fb"], "does not name a file below"),
        "null-byte": ([f"http://{host}/a/b%00c"], "characters that no file name may have"),
    }
    for task_id, (result, _) in results.items():
        sandbox.add_task(task_id=task_id, states=("SUCCESS",), result=result)
    ended = await program.run("fetch", *results, "--quiet")
    assert (ended.exit_code, ended.stdout) == (1, "")
    said = dict(line.split(": ", 1) for line in ended.complaints)
    assert len(ended.stderr.splitlines()) == len(said) == len(results)
    assert {
        task_id for task_id, (_, words) in results.items() if words not in said[task_id]
    } == set()
    assert tree(program.dest) == {}
    assert sandbox.store.requests == []


async def test_missing_credentials_are_told_with_every_way_to_give_them(bare):
    sentence = await refused(
        bare, "fetch", "task", exit_code=2, without=("BGE_APP_KEY", "BGE_APP_SECRET")
    )
    assert sentence.startswith("No app_key and no app_secret was given")
    assert "BGE_APP_KEY and BGE_APP_SECRET" in sentence
    assert "app_secret_file" in sentence


@pytest.mark.thorough
async def test_a_wrong_secret_ends_at_once_in_the_platforms_own_words(program, sandbox):
    """No retry can mend it, so the platform is asked once."""
    task_id = sandbox.add_task(PAIR)
    ended = await program.run("fetch", task_id, environment={"BGE_APP_SECRET": "wrong"})
    assert ended.exit_code == 1
    assert "签名错误 (wrong signature)" in ended.sentence
    assert sandbox.platform.refused == [("task_result", 1400)]


@pytest.mark.thorough
async def test_a_state_that_is_no_database_is_named_and_left_as_it_is(bare):
    bare.state.parent.mkdir()
    bare.state.write_bytes(b"my thesis, only copy\n" * 100)
    sentence = await refused(bare, "fetch", "task", exit_code=1)
    assert str(bare.state) in sentence
    assert "not a database" in sentence


@pytest.mark.thorough
async def test_a_destination_that_cannot_be_written_is_found_before_anything_is_asked(
    program, sandbox
):
    task_id = sandbox.add_task(PAIR)
    program.dest.write_text("a file, where a directory should be")
    ended = await program.run("fetch", task_id, "--dest", program.dest / "below")
    assert ended.exit_code == 1
    assert str(program.dest / "below") in ended.sentence
    assert sandbox.platform.calls == []


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
async def test_a_bad_setting_is_told_with_where_it_stands(bare, source):
    arguments, environment = ["fetch", "task"], {}
    if source == "flag":
        arguments += ["--segments", "many"]
    elif source == "environment":
        environment["BGE_SEGMENTS"] = "many"
    else:
        (bare.cwd / "bge-downloader.toml").write_text('segments = "many"\n')
    sentence = await refused(bare, *arguments, exit_code=2, environment=environment)
    where = {"flag": "--segments", "environment": "BGE_SEGMENTS", "file": "bge-downloader.toml"}
    assert where[source] in sentence
    assert "'many'" in sentence
    assert "a whole number from 1 to 64 is expected" in sentence


async def test_an_unknown_setting_in_a_file_names_the_nearest_known_one(bare):
    (bare.cwd / "bge-downloader.toml").write_text("segmets = 3\n")
    sentence = await refused(bare, "fetch", "task", exit_code=2)
    assert sentence.endswith("unknown setting 'segmets'; did you mean segments?")


@pytest.mark.parametrize("arguments", [["fetc", "task"], ["fetch", "task", "--dst", "x"]])
@pytest.mark.thorough
async def test_a_slip_of_the_keyboard_is_a_usage_error_that_names_the_right_word(bare, arguments):
    ended = await bare.run(*arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    assert ("fetch" if arguments[0] == "fetc" else "--dest") in ended.stderr.splitlines()[-1]


@pytest.mark.thorough
async def test_a_reader_that_has_left_stops_no_download(program, sandbox):
    """As in `fetch a b | head -1`: both are published, and there is no traceback."""
    tasks = [sandbox.add_task(PAIR), sandbox.add_task(PAIR)]
    reading, writing = os.pipe()
    os.close(reading)
    running = await program.start("fetch", *tasks, stdout=writing)
    os.close(writing)
    ended = await running.ends()
    assert ended.exit_code == 1
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert all((program.dest / task_id / "a.vcf.gz").exists() for task_id in tasks)


@pytest.mark.thorough
async def test_a_full_disk_behind_stdout_is_an_error_in_one_sentence(program, sandbox):
    task_id = sandbox.add_task(PAIR)
    with open("/dev/full", "wb") as full:  # noqa: ASYNC230, PTH123 - a device, and never blocking
        running = await program.start("fetch", task_id, "--quiet", stdout=full)
    ended = await running.ends()
    assert ended.exit_code == 1
    assert ended.sentence == "The output could not be written: No space left on device"
    assert (program.dest / task_id).exists()


def standard_streams(pid):
    """Return what a process has as stdin, stdout and stderr."""
    return [Path(f"/proc/{pid}/fd/{number}").readlink() for number in range(3)]


async def test_closed_standard_streams_are_never_taken_for_files(program, sandbox):
    """Otherwise the state or a part file would be stderr, and get every warning."""
    task_id = sandbox.add_task({"run/data.bin": b"x" * 1000})
    stalled = sandbox.store.inject(Fault.STALL, after=500)
    shell = 'exec "$0" -m downloader fetch "$1" 0<&- 1>&- 2>&-'
    replaced = "import os, sys; os.execvp('sh', ['sh', '-c', *sys.argv[1:]])"
    running = await program.start_python("-c", replaced, shell, sys.executable, task_id)
    await stalled.happened.wait()
    held = standard_streams(running.pid)
    stalled.release()
    assert (await running.ends()).exit_code == 0
    assert held == [Path(os.devnull)] * 3
    assert (program.dest / task_id).exists()


@pytest.mark.thorough
async def test_a_stranger_in_the_results_place_is_not_touched(program, sandbox):
    """It is told before anything is asked for."""
    task_id = sandbox.add_task(PAIR)
    (program.dest / task_id).mkdir(parents=True)
    (program.dest / task_id / "notes.txt").write_text("mine")
    ended = await program.run("fetch", task_id)
    assert ended.exit_code == 1
    assert str(program.dest / task_id) in ended.sentence
    assert tree(program.dest) == {task_id: None, f"{task_id}/notes.txt": b"mine"}
    assert sandbox.platform.calls == []


@pytest.mark.thorough
async def test_a_platform_that_is_not_there_is_one_sentence(bare):
    ended = await bare.run("fetch", "task", "--max-retries", "1")
    assert ended.exit_code == 1
    assert "127.0.0.1:9" in ended.sentence


@pytest.mark.parametrize("arguments", [["verify", ""], ["demo", "--dest", "/dev/null/below"]])
async def test_other_commands_refuse_in_one_sentence_too(bare, arguments):
    sentence = await refused(bare, *arguments, exit_code=2 if arguments[0] == "verify" else 1)
    assert "expected a path" in sentence or "/dev/null/below" in sentence


@pytest.mark.thorough
async def test_a_place_that_stdout_cannot_spell_is_spelled_out(program, sandbox):
    task_id = sandbox.add_task(PAIR)
    ended = await program.run(
        "fetch", task_id, "--dest", "结果", environment={"PYTHONIOENCODING": "ascii"}
    )
    assert ended.exit_code == 0
    assert ended.stdout == f"{program.cwd}/\\u7ed3\\u679c/{task_id}\n"
    assert (program.cwd / "结果" / task_id).exists()


async def test_a_destination_that_is_no_utf8_is_told_by_its_name(bare):
    sentence = await refused(bare, "fetch", "task", "--dest", os.fsdecode(b"/x/\xff"), exit_code=2)
    assert "--dest" in sentence
    assert "/x/" in sentence
    assert "UTF-8" in sentence


async def test_a_working_directory_that_is_no_utf8_is_no_destination(bare):
    bare.cwd = bare.cwd / os.fsdecode(b"b\xfft")
    bare.cwd.mkdir()
    sentence = await refused(bare, "fetch", "task", exit_code=2, without=("BGE_DEST",))
    assert sentence == f"The destination {bare.cwd.parent}/b?t is no UTF-8; choose another --dest"


@pytest.mark.parametrize("command", [["fetch", "task"], ["status"], ["doctor"]])
@pytest.mark.thorough
async def test_a_state_in_another_database_is_a_wrong_setting(bare, command):
    for url in ("mysql://me@host/state", "mysql://me:geheim@host/state"):
        sentence = await refused(bare, *command, "--state", url, exit_code=2)
        assert "--state" in sentence
        assert "geheim" not in sentence


async def test_a_sentence_steers_no_terminal_and_tells_no_secret(bare):
    said = "\x1b]0;owned\x07\n?Signature=geheim"
    sentence = await refused(bare, "verify", said, exit_code=2)
    assert sentence.startswith("?]0;owned? ?Signature=… is neither a path")
