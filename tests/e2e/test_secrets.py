"""After a whole run with everything that can go wrong, no secret is anywhere but in memory."""

import asyncio
import contextlib
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
from cli_helpers import service
from e2e_helpers import PAIR, until
from secret_search import leaks

from downloader.sandbox import Fault, PlatformFault

pytest_plugins = ["cli_helpers", "e2e_helpers"]

TOKEN = "sts-token-of-nobody"
WEBHOOK_TOKEN, WEBHOOK_SECRET = "webhook-token-of-nobody", "webhook-secret-of-nobody"
PASSWORD = "database-password-of-nobody"
COMMANDS = [
    ["fetch", "t"],
    *(pytest.param([name], marks=pytest.mark.thorough) for name in ("status", "run", "doctor")),
]
# Notes what it is called with and what it finds around itself, and fails the first time.
HOOK = """
import os, pathlib, sys
noted = pathlib.Path(os.environ["HOME"], "hook.txt")
is_first = not noted.exists()
with noted.open("a") as file:
    print(sys.argv, dict(os.environ), file=file)
    print(pathlib.Path("/proc/self/cmdline").read_text(), file=file)
    print(pathlib.Path(f"/proc/{os.getppid()}/cmdline").read_text(), file=file)
print("a hook may say much", file=sys.stderr)
sys.exit(3 if is_first else 0)
"""


def secrets_of(sandbox):
    """Return what must not be seen: the secret, and what is secret in a link to an object."""
    link = sandbox.store.object_url("run/a.vcf.gz", security_token=TOKEN)
    access_key = re.search(r"OSSAccessKeyId=([^&]+)", link)[1]
    return [sandbox.app_secret, access_key, TOKEN]


def written(program):
    """Return every byte that is on disk: results, state with its journals, logs, leftovers."""
    places = (program.dest, program.state.parent, program.home, program.cwd)
    return {
        str(path): path.read_bytes().decode("latin-1")
        for place in places
        for path in place.rglob("*")
        if path.is_file() and not path.name.startswith(".coverage")
    }


def titles_of(pid):
    """Return what anybody on this machine may read of a process and its threads."""
    told = ""
    for path in Path("/proc", str(pid)).glob("task/*/comm"):
        with contextlib.suppress(OSError):  # the thread has ended
            told += path.read_text()
    return told + Path("/proc", str(pid), "cmdline").read_text()


async def test_no_secret_is_told_or_kept(program, sandbox):
    """Through expired links, redirects, a platform that fails, and a log of every call."""
    for key, data in PAIR.items():
        sandbox.store.put(key, data)
    links = [sandbox.store.object_url(key, security_token=TOKEN) for key in PAIR]
    bare = sandbox.store.object_url("run/gone.vcf.gz", security_token=TOKEN)
    sandbox.add_task(task_id="good", result=links)
    sandbox.add_task(task_id="gone", result=[bare])
    sandbox.add_task(task_id="evil", result=["https://evil.example/a?Signature=c2VjcmV0"])
    sandbox.add_task(task_id="told", states=("FAILURE",), result=f"cannot read {links[0]}")
    sandbox.platform.inject(PlatformFault.HTML)
    sandbox.store.inject(Fault.EXPIRED, key="run/a.vcf.gz")
    sandbox.store.inject(Fault.REDIRECT, key="run/a.vcf.gz.tbi", location=links[1])
    sandbox.store.inject(Fault.CUT, key="run/a.vcf.gz", after=1000)
    held = sandbox.store.inject(Fault.HANG, key="run/a.vcf.gz")
    running = await program.start("fetch", "good", "gone", "evil", "told", "--verbose", "--json")
    await held.happened.wait()
    await until(lambda: "evil.example" in running.text("stderr"))
    proc = Path("/proc", str(running.pid))
    titles = (proc / "cmdline").read_text() + (proc / "comm").read_text()
    held.release()
    ended = await running.ends()
    assert ended.exit_code == 1
    assert (program.dest / "good" / "a.vcf.gz").read_bytes() == PAIR["run/a.vcf.gz"]
    secrets = secrets_of(sandbox)
    assert {*secrets[1:]} < {*leaks(links[0], secrets)}  # it is found where it is
    history = await program.run("status", "--json")
    assert "renewed" in ended.stdout
    everything = {
        "title": titles,
        "stdout": ended.stdout,
        "stderr": ended.stderr,
        "status": history.stdout,
        **written(program),
    }
    assert str(program.state) in everything
    assert str(program.dest / "good" / "bge-manifest.json") in everything
    assert {
        where: found for where, text in everything.items() if (found := leaks(text, secrets))
    } == {}


@pytest.fixture
async def receiver():
    """A webhook's other side: it refuses the first announcement of each task."""
    heard = []

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: ([0-9]+)", head)[1])
        body = await reader.readexactly(length)
        status = b"204 No Content" if body in [known for _, known in heard] else b"500 Oh"
        heard.append((head.decode(), body))
        writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.heard = heard
    port = server.sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}/{WEBHOOK_TOKEN}?key={WEBHOOK_TOKEN}"
    async with server:
        yield server


@pytest.mark.parametrize("log_format", [pytest.param("text", marks=pytest.mark.thorough), "json"])
async def test_the_service_tells_and_keeps_no_secret(program, sandbox, typed, receiver, log_format):
    """Through results, failures, hooks that fail, and an announcement that is refused at first."""
    for key, data in PAIR.items():
        sandbox.store.put(key, data)
    links = [sandbox.store.object_url(key, security_token=TOKEN) for key in PAIR]
    sandbox.add_task(task_id="good", result=links)
    sandbox.add_task(task_id="evil", result=["https://evil.example/a?Signature=c2VjcmV0"])
    sandbox.add_task(task_id="told", states=("FAILURE",), result=f"cannot read {links[0]}")
    sandbox.store.inject(Fault.EXPIRED, key="run/a.vcf.gz")
    sandbox.platform.inject(
        PlatformFault.BUSINESS_ERROR, code=7, message=f"wrong: app_secret={sandbox.app_secret}"
    )
    hook = program.cwd / "hook.py"
    hook.write_text(HOOK)
    command = shlex.join([sys.executable, str(hook)])
    typed("add", "good", "evil", "told", "-q")
    running = await service(
        program,
        BGE_ON_COMPLETE=command,
        BGE_ON_FAILURE=command,
        BGE_WEBHOOK=receiver.url,
        BGE_WEBHOOK_SECRET=WEBHOOK_SECRET,
        BGE_LOG_FORMAT=log_format,
    )
    await until(lambda: (program.dest / "good").exists() and len(receiver.heard) >= 2)
    titles = titles_of(running.pid)
    status = typed("status", "--json").stdout + typed("status", "good", "evil", "told").stdout
    running.signal(signal.SIGTERM)
    ended = await running.ends()
    assert WEBHOOK_TOKEN in receiver.heard[0][0]
    secrets = [*secrets_of(sandbox), WEBHOOK_TOKEN, WEBHOOK_SECRET]
    everything = {
        "titles": titles,
        "stdout": ended.stdout,
        "stderr": ended.stderr,
        "status": status,
        "announcements": "".join(body.decode() for _, body in receiver.heard),
        **written(program),
    }
    assert str(program.home / "hook.txt") in everything
    assert {
        where: found for where, text in everything.items() if (found := leaks(text, secrets))
    } == {}


@pytest.mark.parametrize("arguments", COMMANDS, ids=str)
async def test_a_database_password_is_refused_as_an_argument_and_not_repeated(program, arguments):
    """All users see arguments, and a fetch that is interrupted prints them."""
    state = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/db"
    ended = await program.run(*arguments, "--state", state)
    assert ended.exit_code == 2
    assert "never an argument" in ended.sentence
    assert PASSWORD not in ended.stderr + ended.stdout


@pytest.mark.parametrize("arguments", COMMANDS, ids=str)
async def test_a_database_that_cannot_be_reached_is_named_without_its_password(program, arguments):
    state = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/db"
    running = await program.start(*arguments, environment={"BGE_STATE": state})
    titles = titles_of(running.pid)
    ended = await running.ends()
    assert ended.exit_code != 0
    assert "postgresql://127.0.0.1/db" in ended.stderr + ended.stdout
    everything = {"titles": titles, "stdout": ended.stdout, "stderr": ended.stderr}
    everything |= written(program)
    assert [where for where, text in everything.items() if PASSWORD in text] == []
