"""What the program does not load: whoever asks for its version, or for a file, waits for it."""

import json

import pytest

pytest_plugins = ["e2e_helpers"]

# Runs the program on each line of its arguments; says at last what that has loaded.
LOADS = """
import contextlib, gc, io, json, sys
before = set(sys.modules)
from downloader.__main__ import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["bge-downloader", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
print(json.dumps({"loaded": sorted(set(sys.modules) - before), "collects": gc.isenabled()}))
"""
SLOW = ("aiofiles", "aiohttp", "asyncio", "attr", "logging", "pydantic", "pydantic_settings", "ssl")
SLOWER = ("apscheduler", "psycopg", "pysam", "rich", "sqlalchemy", "tenacity", "tqdm", "yarl")


@pytest.fixture
def loads(program):
    """Give a function that tells what command lines, one after the other, have loaded."""

    async def loads(*lines):
        ended = await program.start_python("-c", LOADS, json.dumps(lines))
        ended = await ended.ends()
        assert (ended.exit_code, ended.stderr) == (0, "")
        return json.loads(ended.stdout)

    return loads


async def test_the_version_and_the_help_load_nothing_that_a_command_needs(loads):
    found = await loads(["--version"], ["--help"])
    assert "typer" in found["loaded"]
    assert not {*SLOW, *SLOWER} & {*found["loaded"]}


async def test_a_fetch_loads_nothing_for_the_files_that_it_does_not_bring(loads, sandbox, program):
    """And once it has loaded what it needs, Python looks for garbage as it always does."""
    task_id = sandbox.add_task({"a/note.txt": b"x" * 1024}, states=("SUCCESS",))
    found = await loads(["fetch", task_id, "--quiet"])
    assert (program.dest / task_id / "note.txt").read_bytes() == b"x" * 1024
    assert {"aiohttp", "sqlalchemy"} <= {*found["loaded"]}
    assert not {"apscheduler", "psycopg", "pysam", "rich", "tqdm"} & {*found["loaded"]}
    assert found["collects"]
