"""The platform's stand-in, over real sockets: what it refuses, answers and does wrong."""

import asyncio
import errno
import json
import uuid
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import aiohttp
import pytest

from downloader.api.signing import sign
from downloader.sandbox import PlatformFault, Sandbox

TASK = "/api/survey/task"
TARGET = "/api/survey/target"
CONDITION = {"data_element_identifier_de": "de", "operator": "=", "concept_code": "c1"}


class Clock:
    """A clock that tests turn."""

    def __init__(self):
        self.now = datetime(2026, 11, 24, 8, 0, 0, tzinfo=UTC)

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def sandbox(clock):
    async with Sandbox(clock=clock) as sandbox:
        yield sandbox


@pytest.fixture
async def client():
    async with aiohttp.ClientSession() as session:
        yield session


def signed(clock, **params):
    """Sign as the document tells it; what is given wins over what is right."""
    params = {
        "app_key": Sandbox.app_key,
        "signature_nonce": uuid.uuid4().hex,
        "timestamp": clock.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        **params,
    }
    return {"sign": sign(params, Sandbox.app_secret), **params}


@pytest.fixture
def ask(sandbox, client, clock):
    """Return a function that posts a signed call and gives the envelope."""

    async def ask(path, **params):
        async with client.post(sandbox.endpoint + path, data=signed(clock, **params)) as reply:
            assert reply.headers["Content-Type"] == "application/json"
            return await reply.json()

    return ask


async def post(client, url, body, **headers):
    """Post a body as it is; return the HTTP status and the business code."""
    named = {"Content-Type": "application/x-www-form-urlencoded", **headers}
    async with client.post(url, data=body, headers=named) as reply:
        return reply.status, (await reply.json())["code"]


async def test_the_documents_examples_are_answered_word_for_word(ask):
    task = await ask(TASK, task_id="69909614-9e77-4fbd-b437-4f5b284e3dcc")
    vcf = (
        "https://bge-developer.oss-cn-shenzhen.aliyuncs.com/"
        "DUS-12345678912-F4QPfredao9slVB2ua4vVeOryOHsSsC62wM1TUmm/"
        "20210829TZ-2bb87999f5e646f589598976a51914a0/E-B19137107158_233_1630209166.vcf.gz"
    )
    assert task == {
        "code": 0,
        "msg": "",
        "data": {"status": "SUCCESS", "result": [vcf + ".tbi", vcf]},
    }
    assert list(task["data"]) == ["status", "result"]

    projects = (await ask("/api/survey/projects", project_ids="P-W19126783988"))["data"]
    project = {"project_id": "P-W19126783988", "comment": "低深度全基因组", "release_survey_id": 5}
    assert list(projects.items()) == [
        ("limit", 50),
        ("total", 1),
        ("result", [project]),
        ("count", 1),
        ("page", 1),
        ("pages", 1),
    ]

    target = (await ask(TARGET, AND=json.dumps([CONDITION]), OR="null"))["data"]
    assert list(target.items()) == [
        ("total", 1),
        ("page", 1),
        ("count", 1),
        ("limit", 50),
        ("pages", 1),
        ("result", [{"user_id": "00000000000000000001"}]),
    ]

    user_id = "5c033e04f89dd15e44d48b7d"
    assert (await ask("/api/survey/question_size", user_id=user_id))["data"] == {"total": 22}
    profile = (await ask("/openbge/wechat/profile", user_id=user_id))["data"]
    assert list(profile) == ["openid", "nickname"]
    assert list(profile["openid"]) == ["home", "wgs", "bger"]
    assert profile["nickname"] == "刘小姐"


async def test_what_the_document_does_not_know_is_answered_too(ask):
    projects = (await ask("/api/survey/projects", project_ids="P-1,P-2"))["data"]
    assert (projects["result"], projects["total"], projects["pages"]) == ([], 0, 0)
    assert (await ask("/api/survey/question_size", user_id="u"))["data"] == {"total": 0}
    assert (await ask("/openbge/wechat/profile", user_id="u"))["code"] == 1404
    page = (await ask(TARGET, AND="null", OR="null", limit="7", page="2"))["data"]
    assert (page["result"], page["count"], page["limit"], page["page"]) == ([], 0, 7, 2)


@pytest.mark.parametrize(
    ("change", "code", "msg"),
    [
        ({"sign": "AAAA"}, 1400, "签名错误"),
        ({"sign": "错"}, 1400, "签名错误"),
        ({"app_key": "other"}, 1401, "app_key"),
        ({"signature_nonce": "abc"}, 1402, "32 hex digits"),
        ({"timestamp": "2026-11-24 08:00:00"}, 1403, "written as"),
        ({"timestamp": "2026-11-24T8:0:0Z"}, 1403, "written as"),
        ({"timestamp": "2026-13-24T08:00:00Z"}, 1403, "written as"),
        ({"timestamp": "2026-11-24T07:54:59Z"}, 1403, "timestamp expired"),
        ({"timestamp": "2026-11-24T08:01:01Z"}, 1403, "timestamp expired"),
        ({"extra": "1"}, 1001, "unknown parameter: extra"),
        ({"task_id": " "}, 1001, "not valid: task_id"),
    ],
)
async def test_a_request_that_is_not_right_is_refused(ask, sandbox, change, code, msg):
    answer = await ask(TASK, **{"task_id": "t", **change})
    assert (answer["code"], answer["data"]) == (code, None)
    assert msg in answer["msg"]
    assert sandbox.platform.refused == [("task_result", code)]
    assert sandbox.platform.calls == []


@pytest.mark.parametrize("timestamp", ["2026-11-24T07:55:00Z", "2026-11-24T08:01:00Z"])
async def test_a_timestamp_may_be_five_minutes_old_or_one_minute_early(ask, timestamp):
    assert (await ask(TASK, task_id="t", timestamp=timestamp))["code"] == 0


async def test_a_nonce_is_good_once(ask):
    nonce = uuid.uuid4().hex
    assert (await ask(TASK, task_id="t", signature_nonce=nonce))["code"] == 0
    again = await ask(TASK, task_id="t", signature_nonce=nonce.upper())
    assert (again["code"], again["msg"]) == (1402, "signature_nonce used before")


async def test_a_nonce_is_used_even_where_the_answer_was_a_fault(ask, sandbox, client, clock):
    """A retry needs a fresh nonce, whatever became of the attempt before it."""
    sandbox.platform.inject(PlatformFault.STATUS, status=503)
    params = signed(clock, task_id="t")
    async with client.post(sandbox.endpoint + TASK, data=params) as reply:
        assert reply.status == 503
    async with client.post(sandbox.endpoint + TASK, data=params) as reply:
        assert (await reply.json())["code"] == 1402


@pytest.mark.parametrize("name", ["app_key", "signature_nonce", "timestamp", "sign", "task_id"])
async def test_nothing_may_be_missing(sandbox, client, clock, name):
    params = {key: value for key, value in signed(clock, task_id="t").items() if key != name}
    if name == "task_id":
        params = signed(clock)
    assert await post(client, sandbox.endpoint + TASK, urlencode(params)) == (200, 1001)


async def test_the_form_is_read_strictly(sandbox, client, clock):
    url = sandbox.endpoint + TASK
    good = urlencode(signed(clock, task_id="t"))
    assert await post(client, url, good + "&task_id=t") == (200, 1001)
    assert await post(client, url, good + "&x") == (200, 1001)
    assert await post(client, url, good + "&x=%FF") == (200, 1001)
    assert await post(client, url, b"\xff=1") == (200, 1001)
    assert await post(client, url + "?a=1", good) == (200, 1001)
    assert await post(client, url, good, **{"Content-Type": "application/json"}) == (415, 415)
    assert await post(client, sandbox.endpoint + "/api/none", good) == (404, 404)
    assert await post(client, url, good) == (200, 0)


async def test_only_post_is_allowed(sandbox, client):
    async with client.get(sandbox.endpoint + TASK) as reply:
        assert (reply.status, reply.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("conditions", "code"),
    [
        ("null", 0),
        (json.dumps([CONDITION]), 0),
        (json.dumps([{**CONDITION, "content": "x"}]), 0),
        ("", 1001),
        ("{}", 1001),
        ("[1]", 1001),
        ("[{'a': 1}]", 1001),
        (json.dumps([{**CONDITION, "concept_code": None}]), 1001),
        (json.dumps([{**CONDITION, "operator": ""}]), 1001),
        (json.dumps([{**CONDITION, "more": 1}]), 1001),
    ],
)
async def test_conditions_are_json_and_complete(ask, conditions, code):
    assert (await ask(TARGET, AND=conditions, OR="null"))["code"] == code
    assert (await ask(TARGET, AND="null", OR=conditions))["code"] == code


@pytest.mark.parametrize("change", [{"limit": "0"}, {"page": "-1"}, {"page": "x"}])
async def test_pages_are_counted_from_one(ask, change):
    assert (await ask(TARGET, AND="null", OR="null", **change))["code"] == 1001


async def test_the_date_header_is_the_sandboxs_clock(sandbox, client, clock):
    """That is how a client learns that its own clock is wrong."""
    params = signed(clock, task_id="t")
    clock.now += timedelta(hours=5)
    async with client.post(sandbox.endpoint + TASK, data=params) as reply:
        assert reply.headers["Date"] == "Tue, 24 Nov 2026 13:00:00 GMT"
        assert (await reply.json())["code"] == 1403


async def polled(ask, task_id, times):
    return [(await ask(TASK, task_id=task_id))["data"]["status"] for _ in range(times)]


async def test_a_task_goes_through_its_states_by_count(ask, sandbox):
    task_id = sandbox.add_task({"k": b"x"}, polls_per_state=2)
    expected = ["PENDING", "PENDING", "STARTED", "STARTED", "SUCCESS", "SUCCESS"]
    assert await polled(ask, task_id, 6) == expected
    assert sandbox.platform.polls[task_id] == 6
    assert sandbox.platform.calls[-1] == ("task_result", {"task_id": task_id})


async def test_a_task_goes_through_its_states_by_the_clock(ask, sandbox, clock):
    task_id = sandbox.add_task({"k": b"x"}, seconds_per_state=10)
    assert await polled(ask, task_id, 3) == ["PENDING"] * 3
    clock.now += timedelta(seconds=10)
    assert await polled(ask, task_id, 1) == ["STARTED"]
    clock.now += timedelta(seconds=1000)
    assert await polled(ask, task_id, 1) == ["SUCCESS"]


async def test_links_are_made_anew_for_each_answer(ask, sandbox, client, clock):
    task_id = sandbox.add_task({"a b/k": b"x"}, states=["SUCCESS"], link_lifetime=60)
    (old,) = (await ask(TASK, task_id=task_id))["data"]["result"]
    clock.now += timedelta(seconds=61)
    (new,) = (await ask(TASK, task_id=task_id))["data"]["result"]
    for url, status in ((old, 403), (new, 200)):
        async with client.get(aiohttp.client.URL(url, encoded=True)) as reply:
            assert reply.status == status


async def test_an_unknown_task_is_pending_for_ever(ask):
    answer = await ask(TASK, task_id="nobody-knows")
    assert answer["data"] == {"status": "PENDING", "result": None}


async def test_a_task_may_fail_or_succeed_with_anything(ask, sandbox):
    failed = sandbox.add_task(states=["FAILURE"], result="样品不存在")
    revoked = sandbox.add_task(states=["REVOKED"])
    odd = sandbox.add_task(states=["SUCCESS"], result={"not": ["a list"]})
    null = sandbox.add_task(states=["SUCCESS"], result=None)
    bare = sandbox.add_task(["k"], states=["SUCCESS"], signed=False)
    data = {one: (await ask(TASK, task_id=one))["data"] for one in (failed, revoked, odd, null)}
    assert data[failed] == {"status": "FAILURE", "result": "样品不存在"}
    assert data[revoked]["result"] == "The task ended as REVOKED in the sandbox."
    assert data[odd]["result"] == {"not": ["a list"]}
    assert data[null] == {"status": "SUCCESS", "result": None}
    result = (await ask(TASK, task_id=bare))["data"]["result"]
    assert result == [f"{sandbox.store.url}/k"]


async def test_sign_url_gives_a_link_that_opens(ask, sandbox, client, clock):
    sandbox.store.put("a b/中", b"content")
    data = (await ask("/service/oss/sign_url", object_name="a b/中", expiration_time="60"))["data"]
    assert data["expires"] == str(int(clock.now.timestamp()) + 60)
    async with client.get(aiohttp.client.URL(data["url"], encoded=True)) as reply:
        assert await reply.read() == b"content"
    wrong = await ask("/service/oss/sign_url", object_name="k", region="moon")
    assert wrong["code"] == 1001


@pytest.mark.parametrize(
    ("fault", "details", "status", "kind", "body"),
    [
        (PlatformFault.STATUS, {"status": 502}, 502, "text/plain", b"upstream error"),
        (PlatformFault.RATE_LIMIT, {"retry_after": 3}, 429, "text/plain", b"too many"),
        (PlatformFault.HTML, {}, 200, "text/html", b"<!DOCTYPE html>"),
        (PlatformFault.BROKEN_JSON, {}, 200, "application/json", b'{"code": 0, "msg"'),
        (PlatformFault.NOT_OBJECT, {}, 200, "application/json", b'["code", 0]'),
        (
            PlatformFault.BUSINESS_ERROR,
            {"code": 7, "message": "坏"},
            200,
            "application/json",
            b'{"code": 7',
        ),
    ],
)
async def test_a_fault_is_answered_once_and_then_the_truth(  # noqa: PLR0917 - one row, one case
    ask, sandbox, client, clock, fault, details, status, kind, body
):
    sandbox.platform.inject(fault, call="task_result", **details)
    assert (await ask("/api/survey/question_size", user_id="u"))["code"] == 0
    async with client.post(sandbox.endpoint + TASK, data=signed(clock, task_id="t")) as reply:
        assert (reply.status, reply.content_type) == (status, kind)
        assert (await reply.read()).startswith(body)
        if fault is PlatformFault.RATE_LIMIT:
            assert reply.headers["Retry-After"] == "3"
    assert (await ask(TASK, task_id="t"))["code"] == 0
    assert sandbox.platform.polls["t"] == 1


async def test_a_refused_request_meets_no_fault(ask, sandbox):
    injection = sandbox.platform.inject(PlatformFault.STATUS)
    assert (await ask(TASK, task_id="t", sign="x"))["code"] == 1400
    assert injection.hits == 0
    sandbox.platform.clear_faults()
    assert (await ask(TASK, task_id="t"))["code"] == 0


async def test_a_hang_ends_with_the_right_answer(ask, sandbox):
    injection = sandbox.platform.inject(PlatformFault.HANG)
    asking = asyncio.create_task(ask(TASK, task_id="t"))
    await injection.happened.wait()
    assert not asking.done()
    injection.release()
    assert (await asking)["code"] == 0


async def test_a_reset_is_a_tcp_reset(ask, sandbox):
    sandbox.platform.inject(PlatformFault.RESET)
    with pytest.raises(aiohttp.ClientOSError) as caught:
        await ask(TASK, task_id="t")
    assert caught.value.errno == errno.ECONNRESET


async def test_a_huge_answer_is_good_json_of_that_size(sandbox, client, clock):
    sandbox.platform.inject(PlatformFault.HUGE_JSON, size=1_000_000)
    async with client.post(sandbox.endpoint + TASK, data=signed(clock, task_id="t")) as reply:
        body = await reply.read()
    assert len(body) == 1_000_000
    assert json.loads(body)["code"] == 0


async def test_the_request_log_and_the_calls_have_no_secret(clock, client):
    lines = []
    async with Sandbox(clock=clock, on_request=lines.append) as sandbox:
        params = signed(clock, task_id="t")
        await post(client, sandbox.endpoint + TASK, urlencode(params))
        await post(client, sandbox.endpoint + TASK, urlencode(params))
        said = f"{lines} {sandbox.platform.calls} {sandbox.platform._gatekeeper!r}"
    assert lines == [
        "08:00:00 platform task_result -> code 0",
        "08:00:00 platform task_result -> code 1402",
    ]
    assert params["sign"] not in said
    assert Sandbox.app_secret not in said
