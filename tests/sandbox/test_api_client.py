"""One suite for both faces of the platform client, over real sockets."""

import asyncio
import email.utils
import gc
import gzip
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest
from aiohttp import web

from downloader import retry
from downloader.api import AsyncPrivateAPI, Model, PrivateAPI, client, transport
from downloader.api.signing import sign
from downloader.errors import (
    BusinessError,
    InvalidArgument,
    InvalidSettings,
    MissingCredentials,
    PlatformError,
    PlatformUnavailable,
)

KEY, SECRET = "app~key+/=", "very-hush-secret"
TASK = "69909614-9e77-4fbd-b437-4f5b284e3dcc"
CONDITION = {
    "data_element_identifier_de": "50d78d39-baf7-43c7-aab1-52704b9ab180",
    "operator": "=",
    "concept_code": "c1",
}
PROJECT = {"project_id": "P-W19126783988", "comment": "低深度全基因组", "release_survey_id": "s"}
ANSWERS = {
    "/api/survey/task": {"data": {"status": "SUCCESS", "result": ["https://b.example/a.vcf.gz"]}},
    "/api/survey/projects": {"data": [PROJECT], "pagination": {"count": 1, "total": 1}},
    "/api/survey/target": {"data": [{"user_id": "0…1"}], "pagination": {"total": 1}},
    "/api/survey/question_size": {"data": {"total": 22}},
    "/openbge/wechat/profile": {"data": {"openid": {"home": "h"}, "nickname": "小明"}},
    "/service/oss/sign_url": {
        "data": {"url": "https://b.example/k?Signature=hush", "expires": "9"}
    },
}


class StrictPlatform:
    """Checks signature, nonce and time stamp of every request; misbehaves as scripted."""

    def __init__(self):
        self.script = []  # handlers that answer the next requests instead
        self.forms = []
        self.headers = []
        self.nonces = set()
        self.ahead = timedelta(0)  # of the real time
        self.sends_date = True

    async def start(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        self.released = asyncio.Event()
        self.runner = web.AppRunner(app, shutdown_timeout=0, access_log=None)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.port = self.runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"

    async def stop(self):
        self.released.set()
        await self.runner.cleanup()

    @property
    def now(self):
        return datetime.now(UTC) + self.ahead

    async def answer(self, request):
        form = dict(await request.post())
        self.forms.append(form)
        self.headers.append(request.headers.copy())
        response = await self.script.pop(0)(request) if self.script else self.check(request, form)
        if response.prepared:
            return response
        if self.sends_date:
            response.headers["Date"] = email.utils.format_datetime(self.now, usegmt=True)
        else:
            response.headers["Date"] = "nonsense"
        return response

    def check(self, request, form):
        stamp = datetime.strptime(form["timestamp"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        if request.method != "POST" or form["app_key"] != KEY:
            return refusal(1401, "unknown app_key")
        if form["sign"] != sign(form, SECRET):
            return refusal(1402, "签名错误")
        if abs(self.now - stamp) > timedelta(seconds=300):
            return refusal(1403, "timestamp expired")
        if form["signature_nonce"] in self.nonces:
            return refusal(1404, "nonce was used before")
        self.nonces.add(form["signature_nonce"])
        return web.json_response({"code": 0, "msg": "", **ANSWERS[request.path]})


def refusal(code, msg):
    return web.json_response({"code": code, "msg": msg, "data": None})


def answers(**kwargs):
    async def handler(_request):
        return web.Response(**kwargs)

    return handler


async def resets(request):
    """Cut the connection without a word."""
    request.transport.abort()
    return web.Response()


async def cuts_body(request):
    """Promise more than is sent."""
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b'{"code": 0')
    request.transport.close()
    return response


async def sends_17_mib(request):
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(17):
        await response.write(b" " * 1024 * 1024)
    return response


BAD_GZIP = {"body": gzip.compress(b"{}" * 99)[:20] + b"xx", "headers": {"Content-Encoding": "gzip"}}
PASSING_FAULTS = {
    "a reset connection": resets,
    "a cut body": cuts_body,
    "429": answers(status=429),
    "408": answers(status=408),
    "500": answers(status=500, text="oops"),
    "502": answers(status=502, text="<html>Bad Gateway</html>"),
    "503": answers(status=503),
    "504": answers(status=504),
    "an HTML page": answers(text="<html>maintenance</html>", content_type="text/html"),
    "broken JSON": answers(text='{"code": 0, "data'),
    "JSON that is no object": answers(text="[1, 2]"),
    "no body": answers(),
    "no UTF-8": answers(body=b'{"code": 0, "msg": "\xff\xff"}'),
    "broken gzip": answers(**BAD_GZIP),
}


@pytest.fixture
def clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def platform(clean_environment):
    """The strict platform on a loop in a thread of its own, so that both faces can be served."""
    strict = StrictPlatform()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(strict.start(), loop).result()
    yield strict
    asyncio.run_coroutine_threadsafe(strict.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Face:
    """Lets a test speak to either client in the same words."""

    def __init__(self, client):
        self.client = client

    async def ask(self, method, *args, **kwargs):
        with retry.without_waiting():
            answer = getattr(self.client, method)(*args, **kwargs)
            return await answer if isinstance(self.client, AsyncPrivateAPI) else answer

    async def close(self):
        closing = self.client.close()
        if closing is not None:
            await closing


@pytest.fixture(params=[AsyncPrivateAPI, PrivateAPI], ids=["async", "sync"])
def make(request, platform):
    """Make a client of the face under test."""
    faces = []

    def make(*args, **kwargs):
        args = args or (KEY, SECRET)
        kwargs.setdefault("endpoint", platform.url)
        faces.append(Face(request.param(*args, **kwargs)))
        return faces[-1]

    yield make
    for face in faces:
        if isinstance(face.client, PrivateAPI):
            face.client.close()


@pytest.fixture
async def face(make):
    face = make()
    yield face
    await face.close()


async def test_every_call_returns_its_data(face):
    assert (await face.ask("task_result", TASK)).status == "SUCCESS"
    projects = await face.ask("survey_projects", project_ids="P-W19126783988")
    assert projects.result[0].comment == "低深度全基因组"
    assert projects.count == projects.total == 1
    found = await face.ask("survey_target", AND=[CONDITION], limit=5, page=1)
    assert found.result[0].user_id == "0…1"
    assert (
        str(await face.ask("question_size", "5c033e04f89dd15e44d48b7d")) == "Model({'total': 22})"
    )
    assert (await face.ask("wechat_profile", "5c033e04f89dd15e44d48b7d")).openid.home == "h"
    assert (await face.ask("sign_url", "k", region="domestic", expiration_time=60)).expires == "9"


async def test_the_parameters_arrive_as_they_were_given(face, platform):
    await face.ask("survey_target", OR=[CONDITION])
    form = platform.forms[-1]
    assert form["AND"] == "null"
    assert json.loads(form["OR"]) == [CONDITION]
    assert "limit" not in form
    assert platform.headers[-1]["User-Agent"].startswith("bge-downloader/")


@pytest.mark.parametrize("fault", PASSING_FAULTS.values(), ids=PASSING_FAULTS)
async def test_a_passing_fault_is_tried_again_with_a_fresh_nonce(face, platform, fault):
    platform.script = [fault, fault, fault]
    assert (await face.ask("question_size", "u")).total == 22
    assert len(platform.forms) == 4
    assert len({form["signature_nonce"] for form in platform.forms}) == 4
    assert len({form["sign"] for form in platform.forms}) == 4


@pytest.mark.parametrize("fault", PASSING_FAULTS.values(), ids=PASSING_FAULTS)
async def test_a_fault_that_stays_ends_after_all_attempts(make, platform, fault):
    face = make(max_retries=2)
    platform.script = [fault] * 9
    with pytest.raises(PlatformUnavailable, match=r"3 attempts of /api/survey/question_size"):
        await face.ask("question_size", "u")
    assert len(platform.forms) == 3
    await face.close()


async def test_no_retries_means_one_attempt(make, platform):
    face = make(max_retries=0)
    platform.script = [resets] * 9
    with pytest.raises(PlatformUnavailable, match="1 attempt of"):
        await face.ask("question_size", "u")
    assert len(platform.forms) == 1
    await face.close()


async def test_a_platform_that_does_not_answer_is_given_up_after_the_timeout(make, platform):
    async def hangs(_request):
        await platform.released.wait()
        return web.Response()

    face = make(timeout=0.1, max_retries=1)
    platform.script = [hangs] * 2
    with pytest.raises(PlatformUnavailable, match=r"within 0\.1 s \(2 attempts"):
        await face.ask("question_size", "u")
    assert len(platform.forms) == 2
    await face.close()


async def test_a_platform_that_is_not_there_is_named(make, unused_tcp_port):
    face = make(endpoint=f"http://127.0.0.1:{unused_tcp_port}", max_retries=1)
    with pytest.raises(PlatformUnavailable, match=rf"127\.0\.0\.1:{unused_tcp_port} failed: \w+"):
        await face.ask("question_size", "u")
    await face.close()


async def test_the_pause_that_the_platform_asks_for_is_kept(face, platform, monkeypatch):
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(retry, "pause", pause)
    wish = {"Retry-After": "120"}
    platform.script = [answers(status=429, headers=wish), answers(status=503)]
    await face.ask("question_size", "u")
    assert pauses[0] == 120
    assert pauses[1] < 60


async def test_a_refusal_is_final_and_in_the_platforms_words(make, platform):
    face = make(KEY, "wrong-secret")
    with pytest.raises(BusinessError, match="签名错误") as caught:
        await face.ask("question_size", "u")
    assert (caught.value.code, caught.value.msg) == (1402, "签名错误")
    assert len(platform.forms) == 1
    await face.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answers(status=404, text="<html>"), "HTTP 404"),
        (answers(status=307, headers={"Location": "/elsewhere?t=hush"}), "redirects .HTTP 307."),
        (sends_17_mib, "larger than 16 MiB"),
    ],
)
async def test_a_fault_that_will_not_pass_is_not_tried_again(face, platform, fault, message):
    platform.script = [fault]
    with pytest.raises(PlatformError, match=message) as caught:
        await face.ask("question_size", "u")
    assert not caught.value.retryable
    assert "hush" not in str(caught.value)
    assert len(platform.forms) == 1


@pytest.mark.parametrize("hours", [-3, 8])
async def test_a_wrong_clock_is_learned_and_kept(make, platform, hours):
    """The second try comes at once and takes no retry; later calls need no second try."""
    face = make(max_retries=0)
    platform.ahead = timedelta(hours=hours)
    assert face.client.clock_skew == timedelta(0)
    assert (await face.ask("question_size", "u")).total == 22
    assert len(platform.forms) == 2
    assert abs(face.client.clock_skew - platform.ahead) < timedelta(seconds=3)
    await face.ask("question_size", "u")
    assert len(platform.forms) == 3
    await face.close()


async def test_a_clock_that_changes_again_is_learned_again(face, platform):
    platform.ahead = timedelta(hours=8)
    await face.ask("question_size", "u")
    platform.ahead = timedelta(0)
    assert (await face.ask("question_size", "u")).total == 22
    assert abs(face.client.clock_skew) < timedelta(seconds=3)


async def test_an_expired_time_stamp_that_the_clock_does_not_explain_is_final(face, platform):
    async def expired(_request):
        return refusal(1403, "timestamp expired")

    platform.script = [expired] * 9
    with pytest.raises(BusinessError, match="timestamp expired"):
        await face.ask("question_size", "u")
    assert len(platform.forms) == 1
    assert abs(face.client.observed_clock_skew) < timedelta(seconds=3)


async def test_a_platform_that_goes_on_refusing_the_right_time_is_not_asked_for_ever(
    face, platform
):
    async def expired(_request):
        return refusal(1403, "timestamp expired")

    platform.ahead = timedelta(hours=8)
    platform.script = [expired] * 9
    with pytest.raises(BusinessError, match="timestamp expired"):
        await face.ask("question_size", "u")
    assert len(platform.forms) == 2


async def test_without_a_usable_date_the_clock_is_left_alone(face, platform):
    platform.ahead = timedelta(hours=8)
    platform.sends_date = False
    with pytest.raises(BusinessError, match="timestamp expired"):
        await face.ask("question_size", "u")
    assert face.client.clock_skew == timedelta(0)


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Shanghai"])
async def test_time_stamps_are_utc_in_every_time_zone(face, platform, monkeypatch, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        await face.ask("question_size", "u")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert len(platform.forms) == 1  # taken at once, not after learning a skew


@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("task_result", [""]),
        ("task_result", [None]),
        ("survey_projects", [[]]),
        ("survey_target", [[{**CONDITION, "concept_code": ""}]]),
        ("survey_target", [None, None, 0]),
        ("question_size", ["  "]),
        ("wechat_profile", [5]),
        ("sign_url", ["k", "mars"]),
    ],
)
async def test_wrong_arguments_send_nothing(face, platform, method, args):
    with pytest.raises(InvalidArgument):
        await face.ask(method, *args)
    assert platform.forms == []


@pytest.mark.parametrize("credentials", [("", SECRET), (KEY, ""), (None, SECRET), (KEY, " ")])
def test_missing_credentials_are_told_at_once(make, credentials):
    with pytest.raises(MissingCredentials, match=r"app_(key|secret) is missing") as caught:
        make(*credentials)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": "http://api.private.omgut.com"},
        {"endpoint": "http://127.0.0.1.evil.example"},
        {"endpoint": "api.private.omgut.com"},
        {"endpoint": "ftp://127.0.0.1"},
        {"endpoint": "https://"},
        {"endpoint": "https://h:99999"},
        {"endpoint": "https://a..b"},
        {"endpoint": f"https://{64 * 'a'}.example"},
        {"endpoint": "https://h h"},
        {"endpoint": "https://user:very-hush-secret@h"},
        {"endpoint": "https://h?x=very-hush-secret"},
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"timeout": 0},
        {"timeout": float("nan")},
    ],
)
def test_settings_that_cannot_be_used_are_told_at_once(make, settings):
    with pytest.raises(InvalidSettings) as caught:
        make(**settings)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", [None, "", "http://localhost:1/", "http://[::1]:1", "https://h/base"]
)
def test_endpoints_that_are_fine_are_taken(make, endpoint):
    options = make(endpoint=endpoint).client._transport.options
    assert options.endpoint == (endpoint or "https://api.private.omgut.com").rstrip("/")


async def test_a_path_in_the_endpoint_is_kept(make, platform):
    face = make(endpoint=f"{platform.url}/base/", max_retries=0)
    seen = []

    async def look(request):
        seen.append(request.path)
        return web.json_response({"code": 0, "data": {}})

    platform.script = [look]
    await face.ask("question_size", "u")
    assert seen == ["/base/api/survey/question_size"]
    await face.close()


async def test_no_secret_shows_anywhere(make, platform, caplog):
    caplog.set_level(logging.DEBUG)
    face = make(verbose=True, max_retries=1)
    await face.ask("sign_url", "k")
    platform.script = [resets, answers(status=503)]
    with pytest.raises(PlatformUnavailable) as caught:
        await face.ask("question_size", "u-123")
    signs = [form["sign"] for form in platform.forms]
    shown = "\n".join([repr(face.client), repr(caught.value), repr(vars(face.client)), caplog.text])
    assert "POST /api/survey/question_size {'user_id': 'u-123'}" in caplog.text
    assert "HTTP 503" in caplog.text
    for secret in (SECRET, "hush", *signs):
        assert secret not in shown
    await face.close()


async def test_it_is_quiet_unless_told_to_be_verbose(face, caplog):
    caplog.set_level(logging.INFO)
    await face.ask("question_size", "u")
    assert caplog.text == ""


def test_verbose_is_seen_where_no_logging_is_set_up(make, monkeypatch):
    apart = logging.Logger("apart", level=logging.WARNING)
    monkeypatch.setattr(client, "logger", apart)
    make()
    assert not apart.handlers
    make(verbose=True)
    make(verbose=True)
    assert apart.isEnabledFor(logging.INFO)
    assert len(apart.handlers) == 1


async def test_a_closed_client_says_so(make, platform):
    face = make()
    await face.ask("question_size", "u")
    await face.close()
    await face.close()
    with pytest.raises(RuntimeError, match="closed"):
        await face.ask("question_size", "u")
    assert len(platform.forms) == 1


async def test_a_proxy_is_not_asked_for_this_machine(make, monkeypatch, unused_tcp_port):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_tcp_port}")
    face = make(max_retries=0)
    assert (await face.ask("question_size", "u")).total == 22
    await face.close()


async def test_a_proxy_that_refuses_is_named(make, monkeypatch, platform):
    """The proxy's own credentials stay out of the message."""
    monkeypatch.setenv("https_proxy", f"http://user:{SECRET}@127.0.0.1:{platform.port}")
    face = make(endpoint="https://platform.example")
    # The platform's stand-in knows no CONNECT, and refuses it as a proxy might.
    with pytest.raises(PlatformError, match=r"proxy refused .* \(HTTP 404\)") as caught:
        await face.ask("question_size", "u")
    assert SECRET not in str(caught.value)
    await face.close()


# What only one face can do.


async def test_the_async_face_leaves_a_session_that_it_was_given_open(platform):
    async with aiohttp.ClientSession() as session:
        async with AsyncPrivateAPI(KEY, SECRET, platform.url, session=session) as api:
            assert (await api.question_size("u")).total == 22
        assert not session.closed


async def test_the_async_face_lets_itself_be_cancelled(platform):
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def hangs(_request):
        loop.call_soon_threadsafe(arrived.set)
        await platform.released.wait()
        return web.Response()

    platform.script = [hangs]
    async with AsyncPrivateAPI(KEY, SECRET, platform.url) as api:
        call = asyncio.create_task(api.question_size("u"))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert len(platform.forms) == 1


async def test_calls_that_run_together_all_survive_a_wrong_clock(platform):
    platform.ahead = timedelta(hours=8)
    async with AsyncPrivateAPI(KEY, SECRET, platform.url, max_retries=0) as api:
        found = await asyncio.gather(*(api.question_size("u") for _ in range(20)))
    assert [model.total for model in found] == [22] * 20


async def test_the_sync_face_works_where_a_loop_is_running(platform):
    """As in Jupyter: the cell blocks, and has its answer."""
    with PrivateAPI(KEY, SECRET, platform.url) as private:
        assert private.question_size("u").total == 22


def test_the_sync_face_serves_many_threads_at_once(platform):
    with PrivateAPI(KEY, SECRET, platform.url) as private, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(private.question_size, ["u"] * 40))
    assert found == [Model({"total": 22})] * 40
    assert len(platform.nonces) == 40


def test_closing_the_sync_face_ends_a_call_of_another_thread(platform):
    arrived = threading.Event()

    async def hangs(_request):
        arrived.set()
        await platform.released.wait()
        return web.Response()

    platform.script = [hangs]
    private = PrivateAPI(KEY, SECRET, platform.url)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(private.question_size, "u")
        arrived.wait()
        private.close()
        with pytest.raises(RuntimeError, match="closed during the call"):
            call.result()


def test_a_sync_face_that_is_dropped_leaves_nothing_behind(platform):
    """Warnings are errors here, so an unclosed session or loop would show."""
    private = PrivateAPI(KEY, SECRET, platform.url)
    private.question_size("u")
    thread = private._background._thread
    del private
    gc.collect()
    assert not thread.is_alive()


def test_a_sync_face_that_was_never_used_starts_no_thread(platform):
    private = PrivateAPI(KEY, SECRET, platform.url)
    assert private._background._thread is None
    private.close()


def test_a_loop_that_cannot_start_leaves_nobody_waiting(platform, monkeypatch):
    private = PrivateAPI(KEY, SECRET, platform.url)
    monkeypatch.setattr(private._background, "_serve", lambda _ready: None)
    monkeypatch.setattr(threading, "excepthook", lambda _args: None)
    with pytest.raises(RuntimeError, match="No event loop"):
        private.question_size("u")
    private.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_is_told_instead_of_left_waiting(platform):
    """The loop's thread does not live in the child, so its answer would never come."""
    with PrivateAPI(KEY, SECRET, platform.url) as private:
        private.question_size("u")
        private._background._pid -= 1  # what a child process would see
        with pytest.raises(RuntimeError, match="fork"):
            private.question_size("u")
        private._background._pid += 1


def test_a_client_cannot_be_pickled_with_its_secret(platform):
    with PrivateAPI(KEY, SECRET, platform.url) as private, pytest.raises(TypeError):
        pickle.dumps(private)


VENDOR_DOCUMENT = """
private = PrivateAPI(app_key, app_secret, endpoint=endpoint,
                 max_retries=3, timeout=16, verbose=False)
result = private.task_result('69909614-9e77-4fbd-b437-4f5b284e3dcc')
print(result.dumps(indent=4))
result = private.survey_projects(project_ids='P-W19126783988')
print(result.dumps(indent=4))
result = private.survey_target(AND=[{"data_element_identifier_de": \
"50d78d39-baf7-43c7-aab1-52704b9ab180", "operator": "=", "concept_code": "c1"}])
print(result)
result = private.question_size('5c033e04f89dd15e44d48b7d')
print(result)
result = private.wechat_profile('5c033e04f89dd15e44d48b7d')
print(result.dumps(indent=4))
"""


def test_the_vendors_own_code_runs_and_ends_quietly(platform):
    """Run as a script of its own that closes nothing, with every warning shown."""
    names = f"app_key, app_secret, endpoint = {KEY!r}, {SECRET!r}, {platform.url!r}"
    code = f"from downloader.api import PrivateAPI\n{names}\n{VENDOR_DOCUMENT}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "TZ": "America/Los_Angeles"},
        timeout=30,
    )
    printed = done.stdout.decode()
    assert done.stderr == b""
    assert '"comment": "低深度全基因组"' in printed
    assert "Model({'total': 22})" in printed
    assert "Model({'total': 1, 'result': [Model({'user_id': '0…1'})]})" in printed
    assert '    "nickname": "小明"' in printed


def test_the_reply_limit_is_16_mib():
    assert transport.MAX_REPLY_BYTES == 2**24
