"""Every other command: what it prints, and what its exit code says."""

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest
import typer
from e2e_helpers import PAIR, TBI, VCF, published, tree
from typer.testing import CliRunner

from downloader.cli import app
from downloader.sandbox import Sandbox, answers, samples

pytest_plugins = ["e2e_helpers"]

USER = "5c033e04f89dd15e44d48b7d"
CONDITION = '[{"data_element_identifier_de": "a", "operator": "=", "concept_code": "b"}]'


async def fetched(program, sandbox, **options):
    """Fetch a pair as task `good`; return where it is."""
    sandbox.add_task(PAIR, task_id="good", **options)
    assert (await program.run("fetch", "good")).exit_code == 0
    return program.dest / "good"


# status


async def test_status_of_nothing_makes_nothing(program):
    before = tree(program.cwd.parent)
    ended = await program.run("status")
    assert (ended.exit_code, ended.stdout) == (0, "")
    assert ended.stderr == "No task is known yet.\n"
    unknown = await program.run("status", "task")
    assert unknown.exit_code == 1
    assert "task is not known" in unknown.sentence
    assert tree(program.cwd.parent) == before


async def test_status_shows_a_table_a_history_and_json(program, sandbox):
    place = await fetched(program, sandbox)
    failed = sandbox.add_task(states=("FAILURE",), result="样本不存在", task_id="failed")
    await program.run("fetch", failed)

    table = await program.run("status")
    assert table.exit_code == 0
    rows = [line.split() for line in table.stdout.splitlines()]
    assert rows[0][:4] == ["TASK", "PHASE", "PLATFORM", "FILES"]
    assert rows[1][:4] == ["good", "published", "SUCCESS", "2"]
    assert rows[1][-1] == str(place)
    assert rows[2][:4] == ["failed", "failed", "FAILURE", "-"]
    assert "样本不存在" in table.stderr

    history = (await program.run("status", "good")).stdout
    assert f"Place     {place}" in history
    assert "Platform  SUCCESS (asked 3 times)" in history
    assert "a.vcf.gz.tbi" in history
    kinds = [line.split()[2] for line in history.partition("History")[2].splitlines()[1:]]
    assert kinds[0] == "started"
    assert kinds[-1] == "published"

    facts = {event["task_id"]: event for event in (await program.run("status", "--json")).events}
    assert facts["good"]["phase"] == "published"
    assert facts["good"]["path"] == str(place)
    assert [file["size"] for file in facts["good"]["files"]] == [len(VCF), len(TBI)]
    assert (facts["failed"]["exit_code"], facts["failed"]["status"]) == (3, "FAILURE")


# verify


async def test_verify_finds_a_flipped_byte_by_path_and_by_task(program, sandbox):
    place = await fetched(program, sandbox)
    whole = await program.run("verify", "good")
    assert (whole.exit_code, whole.stderr) == (0, "")
    assert whole.stdout == "OK      a.vcf.gz\nOK      a.vcf.gz.tbi\n"

    (place / "a.vcf.gz").write_bytes(samples.flipped_byte(VCF, 5000))
    before = tree(place)
    damaged = await program.run("verify", place)
    assert damaged.exit_code == 5
    assert damaged.stdout == "FAILED  a.vcf.gz\nOK      a.vcf.gz.tbi\n"
    assert "its CRC-64 on disk is" in damaged.complaints[0]
    assert damaged.complaints[-1] == "1 of 2 files is not what it must be"
    assert tree(place) == before

    # From elsewhere, with another destination: the state knows the place. JSON tells it too.
    told = await program.run("verify", "good", "--json", "--dest", program.home)
    assert told.exit_code == 5
    assert [event["name"] for event in told.events] == ["a.vcf.gz", "a.vcf.gz.tbi"]
    assert told.events[0]["ok"] is False


@pytest.mark.thorough
async def test_verify_takes_one_file_and_a_folder_of_anybodys(program):
    (program.cwd / "a.vcf.gz").write_bytes(VCF)
    (program.cwd / "a.vcf.gz.tbi").write_bytes(TBI)
    for target in ("a.vcf.gz", "."):
        ended = await program.run("verify", target)
        assert ended.exit_code == 0
        assert "OK      a.vcf.gz\n" in ended.stdout
        assert "there is no manifest" in ended.sentence


async def test_verify_of_what_is_not_there_is_a_usage_error(program):
    ended = await program.run("verify", "nowhere")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.sentence.startswith("nowhere is neither a path that exists nor a task")


@pytest.mark.parametrize("target", ["/dev/null", "/etc/passwd", "data.bin"])
@pytest.mark.thorough
async def test_verify_of_what_nothing_can_prove_is_a_usage_error(program, target):
    (program.cwd / "data.bin").write_bytes(b"anything")
    ended = await program.run("verify", target)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "there is nothing to verify it by" in ended.sentence


# doctor


async def test_doctor_finds_nothing_wrong_and_changes_nothing(program):
    before = tree(program.cwd.parent)
    ended = await program.run("doctor")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert "FAILED" not in ended.stdout
    assert "OK       credentials: accepted by http://127.0.0.1" in ended.stdout
    assert "app_secret = set  (BGE_APP_SECRET)" in ended.stdout
    assert Sandbox.app_secret not in ended.stdout
    assert tree(program.cwd.parent) == before


@pytest.mark.thorough
async def test_doctor_names_a_wrong_secret_and_the_mend(program):
    ended = await program.run("doctor", "--json", environment={"BGE_APP_SECRET": "wrong"})
    assert ended.exit_code == 1
    found = {event["what"]: event for event in ended.events}
    assert found["credentials"]["verdict"] == "failed"
    assert "签名错误" in found["credentials"]["found"]
    assert "app_secret" in found["credentials"]["mend"]
    assert found["destination"]["verdict"] == "ok"


# api

CALLS = {
    "task-result": (
        [answers.SAMPLE_TASK_ID],
        {"status": "SUCCESS", "result": answers.SAMPLE_TASK_RESULT},
    ),
    "survey-projects": (
        ["P-W19126783988", "nobodys"],
        answers.survey_projects({"project_ids": "P-W19126783988,nobodys"}),
    ),
    "survey-target": (["--and", CONDITION, "--limit", "5"], answers.survey_target({"limit": "5"})),
    "question-size": ([USER], {"total": 22}),
    "wechat-profile": ([USER], answers.wechat_profile({"user_id": USER})),
}


@pytest.mark.thorough
async def test_api_prints_the_documents_json(program):
    """With text in its own script, as the document has it."""
    ends = [await program.run("api", name, *given) for name, (given, _) in CALLS.items()]
    assert [end.exit_code for end in ends] == [0] * len(CALLS)
    assert [json.loads(end.stdout) for end in ends] == [answer for _, answer in CALLS.values()]
    assert "低深度全基因组" in ends[1].stdout
    assert "刘小姐" in ends[4].stdout


async def test_api_sign_url_gives_a_link_that_the_store_accepts(program, sandbox):
    ended = await program.run("api", "sign-url", "run/ä b.vcf.gz", "--expiration-time", "60")
    answer = json.loads(ended.stdout)
    assert answer["url"].startswith(f"{sandbox.store.url}/run/%C3%A4%20b.vcf.gz?")
    assert sandbox.platform.calls[-1] == (
        "sign_url",
        {"object_name": "run/ä b.vcf.gz", "expiration_time": "60"},
    )


async def test_api_refuses_what_is_no_condition_before_anything_is_sent(program, sandbox):
    ended = await program.run("api", "survey-target", "--or", "{oops")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.sentence.startswith("--or is no JSON")
    assert sandbox.platform.calls == []


# sandbox and demo


async def test_a_fetch_with_exactly_what_the_sandbox_prints_works(program, tmp_path):
    """The folder's pair is a task; SIGTERM ends it, and the end is a good one."""
    data = tmp_path / "data" / "batch 1"
    data.mkdir(parents=True)
    (data / "own.vcf.gz").write_bytes(VCF)
    (data / "own.vcf.gz.tbi").write_bytes(TBI)
    served = await program.start("sandbox", "--data", data.parent)
    await served.says("Ctrl-C ends it.", stream="stdout")
    lines = served.text("stdout").splitlines()
    exports = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    environment = dict(shlex.split(export)[0].split("=", 1) for export in exports)
    assert {*environment} == {
        "BGE_ENDPOINT",
        "BGE_APP_KEY",
        "BGE_APP_SECRET",
        "BGE_ALLOWED_HOSTS",
    }
    command = next(line for line in lines if line.startswith("bge-downloader fetch "))
    task_id = command.split()[-1]
    ended = await program.run("fetch", task_id, environment=environment)
    assert ended.exit_code == 0, ended.stderr
    assert published(program.dest / task_id) == {"own.vcf.gz": VCF, "own.vcf.gz.tbi": TBI}
    served.signal(signal.SIGTERM)
    end = await served.ends()
    assert end.exit_code == 0
    assert "platform task_result -> code 0" in end.stderr


@pytest.mark.thorough
async def test_the_sandbox_says_what_is_wrong_with_its_folder_and_its_rate(program):
    empty = await program.run("sandbox", "--data", program.home)
    assert empty.exit_code == 2
    assert "nothing to serve" in empty.sentence
    fast = await program.run("sandbox", "--rate", "fast")
    assert fast.exit_code == 2
    assert "--rate" in fast.sentence


async def test_the_demo_proves_its_promises_and_leaves_the_published_pair(program, tmp_path):
    """It is killed and resumed on the way, and a proxy of the user's is not asked for loopback."""
    dest = tmp_path / "demo"
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    ended = await program.run("demo", "--dest", dest, "--records", "2000", environment=proxy)
    assert ended.exit_code == 0, ended.stderr
    assert "Killed. The same command goes on" in ended.stdout
    assert "Fetching a published task moves no byte." in ended.stdout
    (place,) = [path for path in dest.iterdir() if path.is_dir()]
    assert {*published(place)} == {"sample.vcf.gz", "sample.vcf.gz.tbi"}


# The front door

PAGES = {
    "": [
        *("fetch", "run", "add", "status", "retry", "cancel", "remove"),
        *("verify", "doctor", "sandbox", "demo", "api"),
    ],
    "run": ["--dest", "--limit-rate", "--json", "[1G]"],
    "add": ["--file", "--dest", "--json", "--quiet"],
    "retry": ["--failed", "--dest", "--json"],
    "cancel": ["--dest", "--json"],
    "remove": ["--files", "--dest"],
    "fetch": ["--dest", "--timeout", "--no-wait", "--json", "--quiet"],
    "status": ["--all", "--watch", "--json"],
    "verify": ["PATH|TASK_ID"],
    "doctor": ["--json"],
    "sandbox": ["--data"],
    "demo": ["--records"],
    "api": [*CALLS, "sign-url"],
    **{f"api {name}": ["--endpoint"] for name in [*CALLS, "sign-url"]},
}


@pytest.mark.parametrize(("command", "words"), PAGES.items(), ids=[page or "-" for page in PAGES])
def test_every_help_page_is_whole(command, words):
    """Nothing in it is cut off with dots, in a terminal of 80 columns; -h is --help."""
    pages = [
        CliRunner().invoke(app, [*command.split(), flag], env={"COLUMNS": "80"}).stdout
        for flag in ("-h", "--help")
    ]
    assert pages[0] == pages[1]
    body = pages[0].split("\n", 2)[2]
    usage = pages[0].splitlines()[0]
    assert "..." not in body.replace("HOST,...", "").replace('"..."', "")
    assert "[[" not in usage
    assert all(word in pages[0] for word in words)
    assert max(map(len, pages[0].splitlines())) <= 80


def test_no_page_is_left_out():
    group = typer.main.get_command(app)
    api = group.commands["api"]
    known = {"", *group.commands, *(f"api {name}" for name in api.commands)}
    assert known == {*PAGES}


async def test_the_console_script_and_the_module_are_one_program(program):
    script = Path(sys.executable).with_name("bge-downloader")
    ends = [
        await program.run("--version"),
        await (await program.start_python(script, "--version")).ends(),
        await program.run("-h"),
        await (await program.start_python(script, "-h")).ends(),
    ]
    assert [end.exit_code for end in ends] == [0] * 4
    assert ends[0] == ends[1]
    assert ends[2] == ends[3]
    assert ends[0].stdout.startswith("bge-downloader ")
    assert ends[2].stdout.startswith("Usage: bge-downloader ")


async def test_the_completion_script_of_the_shell_is_printed(program):
    """Whose shell it is the program learns from its parent, so it gets a bash as one."""
    bash = 'PATH="$(dirname "$0"):$PATH" bge-downloader --show-completion; exit $?'
    running = await program.start_python(
        "-c",
        "import os, sys; os.execvp('bash', ['bash', '-c', *sys.argv[1:]])",
        bash,
        sys.executable,
        environment={"SHELL": "/bin/bash"},
    )
    ended = await running.ends()
    assert ended.exit_code == 0, ended.stderr
    assert "_BGE_DOWNLOADER_COMPLETE=complete_bash" in ended.stdout
