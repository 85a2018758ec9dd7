"""Hooks with real children and a real receiver on loopback."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from downloader.sandbox.loopback import LoopbackServer, reset_connection
from downloader.service import child_process, webhook
from downloader.service.child_process import OUTPUT_BYTES, run_command
from downloader.service.hooks import Announcement, Hooks
from downloader.service.webhook import signature

DOCS = Path(__file__).parents[2] / "docs" / "hooks.md"
SECRET = "not-a-real-secret"
PLACE = "/services/T00000000/hush-hush?token=hush-token"
NOW = 1767225600.9
FOREVER = "import signal; signal.pause()"
DEAF = """
import os, signal
line = os.open(os.environ["LIFELINE"], os.O_WRONLY)
signal.signal(signal.SIGTERM, lambda *_: os.write(line, b"heard"))
os.write(line, b"up")
while True:
    signal.pause()
"""


@pytest.fixture
def announcement(tmp_path):
    path = tmp_path / "results" / "task-1"
    path.mkdir(parents=True)
    manifest = path / "bge-manifest.json"
    manifest.write_text(json.dumps({"task_id": "task-1", "files": [{"name": "样本.vcf.gz"}]}))
    return Announcement(
        key="0f" * 16,
        event="complete",
        task_id="task-1",
        path=path,
        manifest=manifest,
        message=None,
        exit_code=0,
        attempt=1,
    )


@pytest.fixture
def failure(announcement):
    return replace(
        announcement, event="failure", manifest=None, message="The task failed", exit_code=3
    )


# Commands.


def python(code):
    return [sys.executable, "-c", code]


def shell(code):
    return ["/bin/sh", "-c", code, "sh"]


def told_of(lifeline):
    return {**os.environ, "LIFELINE": str(lifeline.path)}


async def ran(words, announcement, **options):
    """Deliver to a command; no descriptor, no thread and no child is left of it."""
    before = what_is_held()
    hooks = Hooks(on_complete=words, on_failure=words, **options)
    delivery = await hooks.deliver("command", announcement)
    assert what_is_held() == before
    return delivery


def what_is_held():
    return len([*Path("/proc/self/fd").iterdir()]), threading.active_count(), children()


def children():
    """Return the processes whose parent this one is, those included that nobody has reaped."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(stat.parent.name)
    return found


class Lifeline:
    """A FIFO that children hold open for writing: its end is the end of the last of them."""

    def __init__(self, path):
        os.mkfifo(path)
        self.path = path
        self.words = b""
        self.is_cut = asyncio.Event()
        self._news = asyncio.Event()
        self._reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    async def tells(self, word):
        while word not in self.words:
            self._news.clear()
            await self._news.wait()

    def _read(self):
        if words := os.read(self._reading, 4096):
            self.words += words
            self._news.set()
        else:
            self.close()

    def close(self):
        if not self.is_cut.is_set():
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)
            self.is_cut.set()


@pytest.fixture
async def lifeline(tmp_path):
    line = Lifeline(tmp_path / "lifeline")
    yield line
    line.close()


@contextlib.contextmanager
def ignoring_sigterm():
    """Let what is started be deaf from its first moment: what is ignored is inherited."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_a_command_gets_the_facts_and_the_manifest_as_its_last_argument(
    announcement, tmp_path, monkeypatch
):
    told = tmp_path / "told.json"
    monkeypatch.setenv("BGE_WEBHOOK_SECRET", SECRET)
    code = f"""
import json, os, sys
facts = [sys.argv[1:], os.getcwd(), sys.stdin.read(), {{**os.environ}}]
json.dump(facts, open({str(told)!r}, "w"))
print("loaded", os.getpgid(0) == os.getpid())
"""
    delivery = await ran([*python(code), "a b; $HOME"], announcement)
    assert (delivery.is_done, delivery.may_help_again) == (True, False)
    assert (delivery.exit_code, delivery.output) == (0, "loaded True")
    assert delivery.summary == f"The command {Path(sys.executable).name} ended with exit code 0"
    arguments, directory, heard, environment = json.loads(told.read_text())
    assert arguments == ["a b; $HOME", str(announcement.manifest)]
    assert (directory, heard) == ("/", "")
    assert environment["BGE_TASK_ID"] == "task-1"
    assert environment["BGE_IDEMPOTENCY_KEY"] == announcement.key
    assert "BGE_WEBHOOK_SECRET" not in environment


async def test_a_failure_is_told_with_the_task_id_as_its_last_argument(failure):
    delivery = await ran(shell('echo "$1 $BGE_EVENT $BGE_EXIT_CODE: $BGE_MESSAGE"'), failure)
    assert delivery.output == "task-1 failure 3: The task failed"


async def test_another_exit_code_may_end_otherwise_the_next_time(announcement):
    delivery = await ran(shell("echo no; echo disk >&2; exit 3"), announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert (delivery.exit_code, delivery.output) == (3, "no\ndisk")
    assert delivery.summary == "The command sh ended with exit code 3"


async def test_a_signal_is_named(announcement):
    delivery = await ran(shell("kill -SEGV $$"), announcement)
    assert (delivery.exit_code, delivery.may_help_again) == (139, True)
    assert delivery.summary == "The command sh was killed by SIGSEGV"


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (None, 0o755, "not there"),
        ("#!/no/such/interpreter\n", 0o755, "not there"),
        ("#!/bin/sh\n", 0o644, "may not execute it"),
        ("\0no program", 0o755, "it is no program"),
    ],
)
async def test_a_program_that_cannot_be_started_is_a_sentence(
    announcement, tmp_path, content, mode, reason
):
    program = tmp_path / "notify\x1b.sh"
    if content is not None:
        program.write_text(content)
        program.chmod(mode)
    delivery = await ran([str(program), "hush"], announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert delivery.exit_code is None
    assert delivery.summary.startswith("The command notify?.sh could not be started: ")
    assert reason in delivery.summary


async def test_a_command_is_found_on_the_path(announcement, tmp_path, monkeypatch):
    program = tmp_path / "notify-lab"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert (await ran(["notify-lab"], announcement)).output == "found"


async def test_a_machine_without_room_for_a_child_is_a_sentence(announcement):
    """A longer argument than the kernel takes stands in for a lack of memory."""
    delivery = await ran([*shell("true"), "x" * 1024 * 1024], announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert "could not be started: Argument list too long" in delivery.summary


async def test_much_output_is_read_and_its_end_is_kept(announcement):
    code = "for _ in range(160): print('x' * 65535)\nprint('the end')"
    delivery = await ran(python(code), announcement)
    assert delivery.is_done
    assert delivery.output == "…\nthe end"
    assert len(delivery.output) < OUTPUT_BYTES


async def test_output_is_printable_and_without_secrets(announcement):
    text = "样本 \x1b[31mred\x07\r\nGET https://b.example/a?Signature=aHVzaA%3D%3D&x=1\n\udcff"
    code = f"import sys; sys.stdout.buffer.write({text!r}.encode(errors='surrogateescape'))"
    delivery = await ran(python(code), announcement)
    assert delivery.output == "样本 ?[31mred?\nGET https://b.example/a?Signature=…&x=1\n\ufffd"


class Leash:
    """A FIFO from which children read a line: they stay until it is let go."""

    def __init__(self, path):
        os.mkfifo(path)
        self.path = path
        self._held = os.open(path, os.O_RDWR)

    def let_go(self):
        os.write(self._held, b"\n")

    def close(self):
        os.close(self._held)


@pytest.fixture
def leash(tmp_path):
    with contextlib.closing(Leash(tmp_path / "leash")) as held:
        yield held


async def test_what_a_command_leaves_in_the_background_holds_nobody_up(lifeline, leash):
    """It has the pipe too, so the pipe's end says nothing; and it is left alone."""
    code = f"exec 9>{lifeline.path}; read x < {leash.path} & echo done; echo up >&9"
    ended = await run_command(shell(code), environment={**os.environ}, timeout=60, linger=0)
    assert (ended.exit_code, ended.output) == (0, "done")
    await lifeline.tells(b"up")
    assert not lifeline.is_cut.is_set()
    leash.let_go()
    await lifeline.is_cut.wait()


async def test_output_that_comes_just_after_the_end_is_kept(lifeline, leash):
    """A shell that prints through `tee` ends before it."""
    code = f"exec 9>{lifeline.path}; (read x < {leash.path}; echo late) & echo early; echo $$ >&9"
    running = asyncio.create_task(
        run_command(shell(code), environment={**os.environ}, timeout=60, linger=60)
    )
    await lifeline.tells(b"\n")
    leash.let_go()
    assert (await running).output == "early\nlate"


async def test_a_command_that_takes_too_long_is_ended(announcement, leash):
    delivery = await ran(shell(f"exec cat < {leash.path}"), announcement, timeout=0.05)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert delivery.exit_code == 143
    assert delivery.summary == "The command sh had not ended after 0.05s, so it was ended"


async def test_one_that_is_deaf_to_sigterm_is_killed(announcement):
    with ignoring_sigterm():
        delivery = await ran(python(FOREVER), announcement, timeout=0.05, grace=0.05)
    assert (delivery.is_done, delivery.exit_code) == (False, 137)


async def test_cancellation_ends_a_command_and_what_it_has_started(lifeline, leash):
    """The grandchild is deaf to SIGTERM, and outlives its parent until the group is killed."""
    deaf = f"(trap '' TERM; echo up >&9; cat < {leash.path})"
    code = f"exec 9>{lifeline.path}; {deaf} & cat < {leash.path}"
    before = what_is_held()
    running = asyncio.create_task(
        run_command(shell(code), environment={**os.environ}, timeout=60, grace=0.05)
    )
    await lifeline.tells(b"up")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await lifeline.is_cut.wait()
    files, threads, others = before
    assert what_is_held() == (files - 1, threads, others)  # the lifeline's own was closed


async def test_a_second_cancellation_does_not_wait_for_the_grace(lifeline):
    before = children()
    running = asyncio.create_task(
        run_command(python(DEAF), environment=told_of(lifeline), timeout=60, grace=60)
    )
    await lifeline.tells(b"up")
    running.cancel()
    await lifeline.tells(b"heard")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await lifeline.is_cut.wait()
    assert children() == before


async def test_a_machine_without_pidfds_will_do(announcement, monkeypatch):
    def refused(_pid):
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", refused)
    monkeypatch.setattr(child_process, "LOOK_SECONDS", 0)
    delivery = await ran(shell("echo seen; exit 4"), announcement)
    assert (delivery.exit_code, delivery.output) == (4, "seen")


def test_any_threads_loop_will_do(announcement):
    """The watcher of children that asyncio has did not work there in every version."""
    with ThreadPoolExecutor(1) as pool:
        delivery = pool.submit(lambda: asyncio.run(ran(shell("exit 5"), announcement))).result()
    assert delivery.exit_code == 5
    assert asyncio.run(ran(shell("exit 6"), announcement), debug=True).exit_code == 6


# The webhook.


class Receiver:
    """Notes each POST, and answers with what `answer` says."""

    def __init__(self):
        self.server = LoopbackServer(self._serve)
        self.requests = []
        self.headers = {}
        self.body = b""
        self.is_asked = asyncio.Event()
        self.is_left = asyncio.Event()

    @property
    def url(self):
        return self.server.url + PLACE

    async def answer(self, _request):
        return web.Response(status=204)

    async def _serve(self, request):
        self.body = b"".join([chunk async for chunk in request.content.iter_any()])
        self.headers = dict(request.headers)
        self.requests.append(request.raw_path)
        self.is_asked.set()
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            self.is_left.set()
            raise

    def answers(self, status, **options):
        async def answer(_request):
            return web.Response(status=status, **options)

        self.answer = answer


@pytest.fixture
async def receiver():
    receiving = Receiver()
    await receiving.server.start()
    yield receiving
    await receiving.server.close()


async def posted(url, announcement, **options):
    """Deliver to a webhook; nothing that is told repeats its address."""
    options.setdefault("webhook_secret", SECRET)
    hooks = Hooks(webhook=url, clock=lambda: NOW, **options)
    delivery = await hooks.deliver("webhook", announcement)
    for hidden in ("hush", "T00000000", SECRET):
        assert hidden not in repr(delivery)
    assert delivery.summary.startswith("The webhook at ")
    return delivery


async def test_a_result_is_posted_with_its_manifest_and_signed(receiver, announcement):
    delivery = await posted(receiver.url, announcement)
    assert (delivery.is_done, delivery.may_help_again) == (True, False)
    assert delivery.summary == f"The webhook at {receiver.server.url} answered HTTP 204"
    assert receiver.requests == [PLACE]
    assert json.loads(receiver.body) == {
        "event": "task.complete",
        "key": announcement.key,
        "task_id": "task-1",
        "path": str(announcement.path),
        "message": None,
        "exit_code": 0,
        "attempt": 1,
        "sent_at": "2026-01-01T00:00:00Z",
        "manifest_path": str(announcement.manifest),
        "manifest": {"task_id": "task-1", "files": [{"name": "样本.vcf.gz"}]},
    }
    headers = receiver.headers
    signed = hmac.new(SECRET.encode(), b"1767225600." + receiver.body, hashlib.sha256)
    assert headers["X-BGE-Signature"] == f"sha256={signed.hexdigest()}"
    assert headers["X-BGE-Timestamp"] == "1767225600"
    assert headers["X-BGE-Event"] == "task.complete"
    assert headers["Idempotency-Key"] == announcement.key
    assert headers["Content-Type"] == "application/json"
    assert headers["Content-Length"] == str(len(receiver.body))
    assert headers["User-Agent"].startswith("bge-downloader/")
    assert headers["Connection"] == "close"


async def test_a_failure_is_posted_with_its_reason(receiver, failure):
    await posted(receiver.url, replace(failure, attempt=4))
    told = json.loads(receiver.body)
    assert (told["event"], told["message"], told["exit_code"]) == (
        "task.failure",
        "The task failed",
        3,
    )
    assert (told["manifest"], told["manifest_path"], told["attempt"]) == (None, None, 4)


async def test_without_a_secret_nothing_is_signed(receiver, announcement):
    await posted(receiver.url, announcement, webhook_secret=None)
    assert "X-BGE-Signature" not in receiver.headers


async def test_a_manifest_of_thousands_of_files_is_sent_whole(receiver, announcement):
    content = {"files": [{"name": f"{number}.vcf.gz" * 10} for number in range(30_000)]}
    announcement.manifest.write_text(json.dumps(content))
    assert (await posted(receiver.url, announcement)).is_done
    assert json.loads(receiver.body)["manifest"] == content


@pytest.mark.parametrize("content", [" " * 1025 + "{}", "{", None, "a link"])
async def test_a_manifest_that_is_too_large_damaged_gone_or_a_link_is_only_named(
    receiver, announcement, monkeypatch, content
):
    monkeypatch.setattr(webhook, "MAX_MANIFEST_BYTES", 1024)
    announcement.manifest.unlink()
    if content == "a link":
        elsewhere = announcement.manifest.with_name("elsewhere.json")
        elsewhere.write_text('{"nobody": "knows"}')
        announcement.manifest.symlink_to(elsewhere)
    elif content is not None:
        announcement.manifest.write_text(content)
    assert (await posted(receiver.url, announcement)).is_done
    told = json.loads(receiver.body)
    assert told["manifest"] is None
    assert told["manifest_path"] == str(announcement.manifest)


async def test_a_manifest_that_would_unpack_to_much_more_is_only_named(receiver, announcement):
    announcement.manifest.write_bytes(b"[" + b"{}," * 500_000 + b"{}]")
    assert (await posted(receiver.url, announcement)).is_done
    assert json.loads(receiver.body)["manifest"] is None


@pytest.mark.parametrize(
    ("status", "is_done", "may_help_again"),
    [
        (200, True, False),
        (202, True, False),
        (304, False, False),
        (400, False, False),
        (401, False, False),
        (404, False, False),
        (408, False, True),
        (410, False, False),
        (413, False, False),
        (425, False, True),
        (429, False, True),
        (500, False, True),
        (503, False, True),
    ],
)
async def test_an_answer_says_whether_another_attempt_may_help(
    receiver, announcement, status, is_done, may_help_again
):
    receiver.answers(status, headers={"Retry-After": "120"})
    delivery = await posted(receiver.url, announcement)
    assert (delivery.is_done, delivery.may_help_again) == (is_done, may_help_again)
    assert delivery.retry_after == (120.0 if may_help_again else None)
    assert f"answered HTTP {status}" in delivery.summary


async def test_a_redirect_is_not_followed(receiver, announcement):
    """What is posted is meant for one address, and a POST would become a GET."""
    receiver.answers(302, headers={"Location": "/elsewhere"})
    delivery = await posted(receiver.url, announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, False)
    assert "a redirect, which is not followed; set `webhook`" in delivery.summary
    assert receiver.requests == [PLACE]


async def test_the_start_of_a_reply_is_kept_without_the_address(receiver, announcement):
    text = f"no\x1b route for {PLACE} or HUSH%2DHUSH\n{'x' * 500}"
    receiver.answers(404, text=text)
    delivery = await posted(receiver.url, announcement)
    assert delivery.output.startswith("no? route for /…/…/…?…=… or HUSH%2DHUSH xxx")
    assert len(delivery.output) == 201


async def test_of_an_endless_reply_only_the_start_is_read(receiver, announcement):
    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"on and on " * 10_000)

    receiver.answer = answer
    delivery = await posted(receiver.url, announcement)
    assert delivery.is_done
    assert delivery.output.startswith("on and on on")
    assert len(delivery.output) <= 201


async def test_a_reply_that_breaks_off_counts_by_its_status(receiver, announcement):
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"ok")
        reset_connection(request)
        return response

    receiver.answer = answer
    assert (await posted(receiver.url, announcement)).is_done


async def test_a_lost_connection_may_help_again(receiver, announcement):
    async def answer(request):
        reset_connection(request)
        return web.Response()

    receiver.answer = answer
    delivery = await posted(receiver.url, announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert "could not be told: " in delivery.summary


async def test_nobody_listening_may_help_again(announcement, unused_tcp_port):
    delivery = await posted(f"http://127.0.0.1:{unused_tcp_port}{PLACE}", announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert delivery.summary.endswith("could not be told: Connection refused")


async def test_no_answer_in_time_may_help_again(receiver, announcement):
    async def answer(_request):
        await asyncio.Event().wait()

    receiver.answer = answer
    delivery = await posted(receiver.url, announcement, timeout=0.1)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert delivery.summary.endswith("did not answer within 0.1s")


async def test_cancellation_closes_the_connection(receiver, announcement):
    async def answer(_request):
        await asyncio.Event().wait()

    receiver.answer = answer
    running = asyncio.create_task(posted(receiver.url, announcement))
    await receiver.is_asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await receiver.is_left.wait()


async def test_no_password_and_no_cookie_is_sent(receiver, announcement):
    (Path.home() / ".netrc").write_text("default login bob password hush\n")
    (Path.home() / ".netrc").chmod(0o600)
    receiver.answers(503, headers={"Set-Cookie": "a=b"})
    for _ in range(2):
        await posted(receiver.url, announcement)
    assert not {"Authorization", "Cookie"} & {*receiver.headers}


@pytest.mark.parametrize(("status", "may_help_again"), [(403, False), (502, True)])
async def test_a_proxy_that_refuses_is_told_apart(
    announcement, monkeypatch, status, may_help_again
):
    heads = []

    async def serve(reader, writer):
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        monkeypatch.setenv("https_proxy", f"http://bob:hush@127.0.0.1:{port}")
        delivery = await posted(f"https://hooks.example.org{PLACE}", announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, may_help_again)
    assert f"HTTP {status}" in delivery.summary
    assert heads[0].startswith(b"CONNECT hooks.example.org:443 ")


async def test_a_proxy_that_cannot_be_used_is_a_sentence(announcement, monkeypatch):
    monkeypatch.setenv("https_proxy", "socks5://hush@proxy.example.org")
    delivery = await posted(f"https://hooks.example.org{PLACE}", announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, False)
    assert "HTTPS_PROXY is no proxy that can be used" in delivery.summary


async def test_a_receiver_that_nobody_vouches_for_is_not_told(announcement, tmp_path):
    """Another attempt may help: certificates that ran out are renewed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(tmp_path))

    async def serve(_reader, writer):
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        delivery = await posted(f"https://localhost:{port}{PLACE}", announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert "The certificate of localhost is not trusted" in delivery.summary


async def test_a_receiver_that_speaks_no_tls_is_told_apart(receiver, announcement):
    delivery = await posted(receiver.url.replace("http:", "https:"), announcement)
    assert (delivery.is_done, delivery.may_help_again) == (False, True)
    assert "could not be told: what answers there speaks no TLS" in delivery.summary


def certificate(directory):
    """Make a certificate for localhost that is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    paths = directory / "certificate.pem", directory / "key.pem"
    kind = (
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    subprocess.run(
        ["openssl", *kind.split(), "-out", paths[0], "-keyout", paths[1]],
        check=True,
        capture_output=True,
    )
    return paths


# The handbook.


def example(language, holding):
    """Return the one block of the handbook that holds a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if holding in block]
    return found


async def test_the_handbooks_check_in_python_knows_our_signature(receiver, announcement):
    names = {}
    exec(example("python", "def is_ours"), names)
    await posted(receiver.url, announcement)
    headers, body = receiver.headers, receiver.body
    is_ours = names["is_ours"]
    assert is_ours(headers, body, SECRET, now=lambda: NOW)
    assert not is_ours(headers, body + b" ", SECRET, now=lambda: NOW)
    assert not is_ours(headers, body, "another", now=lambda: NOW)
    assert not is_ours(headers, body, SECRET, now=lambda: NOW + 301)
    assert not is_ours({}, body, SECRET)


def test_the_handbooks_check_by_openssl_makes_our_signature(tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to check with")
    body = '{"name": "样本"}\n'.encode()
    (tmp_path / "body.json").write_bytes(body)
    printed = subprocess.run(
        shell(example("sh", "openssl")),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "TIMESTAMP": "1767225600", "SECRET": SECRET},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = signature(body, timestamp=1767225600, secret=SECRET)
    assert f"sha256={printed.stdout.strip()}" == expected
