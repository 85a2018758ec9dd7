import json

import pytest

from downloader.api import endpoints
from downloader.api.envelope import (
    Reply,
    parse_reply,
    speaks_of_expired_timestamp,
    speaks_of_used_nonce,
)
from downloader.errors import (
    BusinessError,
    InvalidArgument,
    PlatformError,
    PlatformUnavailable,
)

ELEMENT = {"data_element_identifier_de": "50d78d39", "operator": "="}
GOOD = {**ELEMENT, "concept_code": "c1"}


def reply(content, status=200, **headers):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Reply(url="https://p.example/api", status=status, body=body, **headers)


@pytest.mark.parametrize(
    ("call", "path", "params"),
    [
        (endpoints.task_result("t"), "/api/survey/task", {"task_id": "t"}),
        (endpoints.survey_projects("P-1,P-2"), "/api/survey/projects", {"project_ids": "P-1,P-2"}),
        (endpoints.survey_projects(["a", "b"]), "/api/survey/projects", {"project_ids": "a,b"}),
        (endpoints.survey_target(), "/api/survey/target", {"AND": "null", "OR": "null"}),
        (
            endpoints.survey_target(None, [], 5, 2),
            "/api/survey/target",
            {"AND": "null", "OR": "[]", "limit": "5", "page": "2"},
        ),
        (endpoints.question_size("u"), "/api/survey/question_size", {"user_id": "u"}),
        (endpoints.wechat_profile("u"), "/openbge/wechat/profile", {"user_id": "u"}),
        (endpoints.sign_url("a b/中.vcf"), "/service/oss/sign_url", {"object_name": "a b/中.vcf"}),
        (
            endpoints.sign_url("k", "international", 60),
            "/service/oss/sign_url",
            {"object_name": "k", "region": "international", "expiration_time": "60"},
        ),
    ],
)
def test_a_call_is_a_path_and_text_parameters(call, path, params):
    assert (call.path, call.params) == (path, params)


def test_conditions_travel_as_json_text():
    both = {**GOOD, "content": "ignored by the platform"}
    call = endpoints.survey_target(AND=[GOOD, both])
    assert json.loads(call.params["AND"]) == [GOOD, both]


@pytest.mark.parametrize("value", ["", " ", "\t", None, 7, b"t", ["t"], "a\nb", "\ud800"])
@pytest.mark.parametrize(
    "build",
    [endpoints.task_result, endpoints.question_size, endpoints.wechat_profile, endpoints.sign_url],
)
def test_an_id_that_is_no_line_of_text_is_refused(build, value):
    with pytest.raises(InvalidArgument, match=r"_id|object_name"):
        build(value)


@pytest.mark.parametrize("value", ["", "a,,b", ",", [], ["a", ""], [1], None, 7, {"a"}, b"ab"])
def test_project_ids_must_be_one_or_several_ids(value):
    with pytest.raises(InvalidArgument, match="project_ids"):
        endpoints.survey_projects(value)


@pytest.mark.parametrize(
    ("conditions", "complaint"),
    [
        (GOOD, "must be a list"),
        ("text", "must be a list"),
        (["text"], "Condition 1 of AND is of type str"),
        ([GOOD, ELEMENT], "Condition 2 of AND has neither concept_code nor content"),
        ([{**ELEMENT, "concept_code": None, "content": " "}], "neither"),
        ([{"operator": "=", "content": "x"}], "no data_element_identifier_de"),
        ([{**GOOD, "operator": ""}], "no operator"),
        ([{**GOOD, "operator": 1}], "no operator"),
        ([{**GOOD, "content": object()}], "cannot be written as JSON"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused(conditions, complaint):
    with pytest.raises(InvalidArgument, match=complaint):
        endpoints.survey_target(AND=conditions)
    with pytest.raises(InvalidArgument, match=complaint.replace("AND", "OR")):
        endpoints.survey_target(OR=conditions)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3"])
def test_counts_must_be_positive_whole_numbers(value):
    for name in ("limit", "page"):
        with pytest.raises(InvalidArgument, match=name):
            endpoints.survey_target(**{name: value})
    with pytest.raises(InvalidArgument, match="expiration_time"):
        endpoints.sign_url("k", expiration_time=value)


@pytest.mark.parametrize("bad", [{"object_name": "/k"}, {"object_name": "k", "region": "mars"}])
def test_a_link_is_asked_for_by_key_and_known_region(bad):
    with pytest.raises(InvalidArgument, match=r"slash|region"):
        endpoints.sign_url(**bad)


@pytest.mark.parametrize(
    ("content", "data"),
    [
        ({"code": 0, "msg": "", "data": {"total": 22}}, {"total": 22}),
        ({"code": "0", "data": {"total": 22}}, {"total": 22}),
        ({"code": 0, "data": None}, {}),
        ({"code": 0}, {}),
        ({"code": 0, "data": [1, 2]}, {"result": [1, 2]}),
        ({"code": 0, "data": [1], "pagination": {"page": 1}}, {"page": 1, "result": [1]}),
        ({"code": 0, "data": {"a": 1}, "pagination": {"page": 1}}, {"page": 1, "a": 1}),
        ({"code": 0, "data": [], "pagination": None}, {"result": []}),
        ({"code": 0, "data": "text"}, {"result": "text"}),
        ({"status": "PENDING"}, {"status": "PENDING"}),
    ],
)
def test_the_envelope_is_taken_off(content, data):
    assert parse_reply(reply(content)).json() == data


@pytest.mark.parametrize("status", [200, 400, 401, 403])
def test_a_code_is_a_refusal_whatever_the_status_below_500(status):
    with pytest.raises(BusinessError) as caught:
        parse_reply(reply({"code": 1402, "msg": "签名\n\x1b[31m错误", "data": None}, status))
    assert caught.value.code == 1402
    assert caught.value.msg == "签名 ?[31m错误"


@pytest.mark.parametrize("content", [b"", b"<html>", b"{", b"[1]", b"1", b"\xff\xfe{", b"[" * 9999])
def test_what_is_no_json_object_is_a_passing_fault(content):
    with pytest.raises(PlatformUnavailable, match="JSON object was expected"):
        parse_reply(reply(content))


def test_json_nested_absurdly_deep_is_a_passing_fault():
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    with pytest.raises(PlatformUnavailable, match="JSON"):
        parse_reply(reply(deep))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_platform_is_a_passing_fault_that_keeps_the_wish_for_a_pause(status):
    with pytest.raises(PlatformUnavailable, match=str(status)) as caught:
        parse_reply(reply({"code": 1}, status, retry_after="7"))
    assert caught.value.retry_after == 7


@pytest.mark.parametrize("wish", ["soon", "²", "-1"])
def test_a_pause_that_cannot_be_read_is_none(wish):
    with pytest.raises(PlatformUnavailable) as caught:
        parse_reply(reply(b"", 503, retry_after=wish))
    assert caught.value.retry_after is None


@pytest.mark.parametrize("content", [b"<html>", {"detail": "Not Found"}, {"code": 0}])
def test_another_4xx_is_permanent(content):
    with pytest.raises(PlatformError, match="HTTP 404") as caught:
        parse_reply(reply(content, 404))
    assert not caught.value.retryable


def test_a_redirect_is_named_without_its_query():
    with pytest.raises(PlatformError, match=r"https://p\.example/login\?…") as caught:
        parse_reply(reply(b"", 302, location="/login?token=hush"))
    assert "hush" not in str(caught.value)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    ("code", "msg", "expired"),
    [
        (1403, "timestamp expired", True),
        (1403, "Invalid Timestamp", True),
        ("InvalidTimeStamp.Expired", "", True),
        (1, "时间戳已过期", True),
        (1, "the time stamp has expired", True),
        (1403, "task expired", False),
        (1402, "signature invalid", False),
        (1, "timestamp missing", False),
    ],
)
def test_an_expired_time_stamp_is_recognised(code, msg, expired):
    assert speaks_of_expired_timestamp(BusinessError(code, msg)) is expired


@pytest.mark.parametrize(
    ("msg", "used"),
    [
        ("signature_nonce used before", True),
        ("Specified nonce was used already", True),
        ("SignatureNonce 重复", True),
        ("随机数已使用", True),
        ("signature_nonce is not 32 hex digits", False),
        ("this e-mail address is used already", False),
        ("", False),
    ],
)
def test_a_nonce_that_was_used_is_recognised(msg, used):
    assert speaks_of_used_nonce(BusinessError(1402, msg)) is used


def test_a_reply_does_not_show_its_body():
    assert "Signature" not in repr(reply({"url": "https://x/?Signature=hush"}))
