"""What the platform, or the line to it, may do wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import timedelta

from downloader.polling import PollOptions
from downloader.sandbox import PlatformFault
from downloader.sandbox.fake_platform import GIVEN_BY_FILES
from matrix.causes import deed, of_platform
from matrix.row import STRAIGHT, Cause, Row
from matrix.secure_front import (
    NO_TLS,
    NOT_TRUSTED,
    OLD_TLS,
    PLATFORM,
    outdated,
    secured,
    silent,
    slamming,
    without_tls,
)
from matrix.story import KEY, Story

__all__ = ["ROWS"]

IS_ASKED_AGAIN = "it is asked again, with a fresh nonce and time stamp"
IS_GIVEN_UP = "after `max_retries` more attempts it ends; nothing was fetched"
ENDS_AT_ONCE = "it ends at once; nothing was fetched"
GIVEN_UP = r".*\(4 attempts of /api/survey/task failed\)"
CLOSED_PORT = "http://127.0.0.1:1"


def _row(fault: str, cause: Cause, **facts) -> Row:
    return Row(fault=fault, cause=cause, **{"roads": STRAIGHT, **facts})


def _once(fault: str, kind: PlatformFault, happens: str = IS_ASKED_AGAIN, **details) -> Row:
    return _row(fault, of_platform(kind, **details), happens=happens)


def _ever(fault: str, kind: PlatformFault, says: str, **details) -> Row:
    cause = of_platform(kind, times=None, **details)
    return _row(f"{fault}, always", cause, happens=IS_GIVEN_UP, ends=1, says=says + GIVEN_UP)


def _at_once(fault: str, kind: PlatformFault, says: str, **details) -> Row:
    cause = of_platform(kind, times=None, **details)
    return _row(fault, cause, happens=ENDS_AT_ONCE, ends=1, says=says)


def _result(result: object, states: tuple[str, ...] = ("SUCCESS",)) -> Cause:
    """Let the task have this result, and then the right one."""
    return deed(lambda story: _become(story, result, states), _become)


def _become(
    story: Story, result: object = GIVEN_BY_FILES, states: tuple[str, ...] = ("SUCCESS",)
) -> None:
    given = result(story) if callable(result) else result
    files = list(story.files)
    story.platform.add_task(story.task_id, files=files, states=states, result=given)


def _odd(fault: str, result: object, says: str) -> Row:
    return _row(fault, _result(result), happens=ENDS_AT_ONCE, ends=1, says=says)


def _link(story: Story) -> str:
    return story.store.object_url(KEY)


def _clock_ahead(**by: float) -> Cause:
    def put(story: Story, ahead: timedelta) -> None:
        story.clock.ahead = ahead

    return deed(lambda story: put(story, timedelta(**by)), lambda story: put(story, timedelta()))


def _endpoint(url: str) -> Cause:
    return deed(
        lambda story: setattr(story, "endpoint", url),
        lambda story: setattr(story, "endpoint", None),
    )


def _patience(**options: object) -> Cause:
    return deed(
        lambda story: setattr(story, "poll", PollOptions(**options)),
        lambda story: setattr(story, "poll", PollOptions()),
    )


def _credentials(**given: str) -> Cause:
    def give(story: Story) -> None:
        for name, value in given.items():
            setattr(story.sandbox, name, value)

    def take_back(story: Story) -> None:
        for name in given:
            delattr(story.sandbox, name)

    return deed(give, take_back)


@contextlib.asynccontextmanager
async def _away_while_waited_for(story: Story) -> AsyncIterator[None]:
    """Let the platform be away after it has answered once, for longer than one call's attempts."""
    _become(story, states=("PENDING", "SUCCESS"))
    heard = story.heard.polled

    def polled(status: str, *, polls: int, next_in_seconds: float) -> None:
        if not injected:
            injected.append(story.platform.inject(PlatformFault.STATUS, times=9, status=503))

    injected = []
    story.heard.polled = polled
    yield
    story.heard.polled = heard
    assert injected


@contextlib.asynccontextmanager
async def _never_ready(story: Story) -> AsyncIterator[None]:
    _become(story, states=("PENDING",))
    story.poll = PollOptions(deadline=0.05)
    yield
    story.poll = PollOptions()
    _become(story)


def _envelope(**data: object) -> bytes:
    return json.dumps({"code": 0, "msg": "", "data": data}).encode()


BODY = PlatformFault.BODY
NONCE_USED = {
    "kind": PlatformFault.BUSINESS_ERROR,
    "code": 1402,
    "message": "signature_nonce used before",
}
NO_JSON = "where a JSON object was expected"
NOT_ANSWERED = r"did not answer within 0\.\d+ s"

THE_LINE = [
    _row(
        "refused: nobody listens at its address",
        _endpoint(CLOSED_PORT),
        happens=IS_GIVEN_UP,
        ends=1,
        says="The connection to 127.0.0.1:1 failed: Connection refused" + GIVEN_UP,
    ),
    _once("reset", PlatformFault.RESET),
    _ever("reset", PlatformFault.RESET, "The connection to .* failed: Connection reset by peer"),
    _once("hung: no answer", PlatformFault.HANG, timeout=0.15),
    _ever("hung", PlatformFault.HANG, NOT_ANSWERED, timeout=0.05),
    _once(
        "slow: a few bytes at a time",
        PlatformFault.TRICKLE,
        "slow is no fault, up to `timeout`",
        interval=0,
    ),
    _ever("too slow", PlatformFault.TRICKLE, NOT_ANSWERED, interval=0.03, timeout=0.06),
    _once("cut in mid-answer", PlatformFault.CUT),
    _ever("cut in mid-answer", PlatformFault.CUT, "it was closed in the middle of the answer"),
    _once("no HTTP", PlatformFault.GARBAGE),
    _ever("no HTTP", PlatformFault.GARBAGE, "The connection to .* failed: what came is no HTTP"),
]

SECURELY = [
    *(
        _row(
            f"TLS: {fault}",
            secured(PLATFORM, **how),
            happens=ENDS_AT_ONCE,
            ends=1,
            says=f"The certificate of localhost is not trusted {says}",
        )
        for fault, how, says in NOT_TRUSTED
    ),
    _row(
        "TLS: no version but those that are not safe",
        outdated(PLATFORM),
        happens=IS_GIVEN_UP,
        ends=1,
        says=rf"The connection to localhost:\d+ failed: {OLD_TLS}{GIVEN_UP}",
    ),
    _row(
        "TLS: the port speaks plain HTTP",
        without_tls(PLATFORM),
        happens=IS_GIVEN_UP,
        ends=1,
        says=rf"The connection to 127\.0\.0\.1:\d+ failed: {NO_TLS}{GIVEN_UP}",
    ),
    _row(
        "TLS: the handshake is reset",
        slamming(PLATFORM),
        happens=IS_GIVEN_UP,
        ends=1,
        says=r"The connection to localhost:\d+ failed: Connection reset by peer" + GIVEN_UP,
    ),
    _row(
        "TLS: the handshake is never answered",
        silent(PLATFORM),
        happens=IS_GIVEN_UP,
        ends=1,
        says=NOT_ANSWERED + GIVEN_UP,
    ),
]

THE_ANSWER = [
    _at_once("404 without JSON", PlatformFault.STATUS, "HTTP 404 .*`endpoint`", status=404),
    _at_once("403 without JSON", PlatformFault.STATUS, "HTTP 403 .*`endpoint`", status=403),
    _at_once("401 without JSON", PlatformFault.STATUS, "HTTP 401 .*`endpoint`", status=401),
    _at_once(
        "400 with a refusal in JSON",
        BODY,
        r"The platform refused the call: no such task \(code 1404\)",
        status=400,
        body=b'{"code": 1404, "msg": "no such task"}',
    ),
    _once("408", PlatformFault.STATUS, status=408),
    _once("500", PlatformFault.STATUS, status=500),
    _ever("500", PlatformFault.STATUS, "HTTP 500", status=500),
    _once("503", PlatformFault.STATUS, status=503, headers={"Retry-After": "nonsense"}),
    _once("429 with Retry-After", PlatformFault.RATE_LIMIT, retry_after="30"),
    _ever("429", PlatformFault.RATE_LIMIT, "HTTP 429"),
    _once("a web page", PlatformFault.HTML),
    _ever("a web page", PlatformFault.HTML, f"an HTML page {NO_JSON}"),
    _once("502 with a web page", PlatformFault.HTML, status=502),
    _ever("502 with a web page", PlatformFault.HTML, "HTTP 502", status=502),
    _once("broken JSON", PlatformFault.BROKEN_JSON),
    _ever("broken JSON", PlatformFault.BROKEN_JSON, f"something else {NO_JSON}"),
    _once("JSON that is no object", PlatformFault.NOT_OBJECT),
    _once("JSON of 100,000 levels", BODY, body=b"[" * 100_000),
    _once("a number of 10,000 digits", BODY, body=b'{"code": ' + b"9" * 10_000 + b"}"),
    _once("no UTF-8", BODY, body=b'{"code": 0, "msg": "\xff\xfe"}'),
    _once("nothing with status 200", BODY, body=b""),
    _at_once("JSON of a million lists", BODY, "which no answer has", body=b"[" + b"[]," * 10**6),
    _at_once("JSON of over 16 MiB", PlatformFault.HUGE_JSON, "larger than 16 MiB", size=2**24 + 9),
    _at_once(
        "a redirect elsewhere",
        PlatformFault.REDIRECT,
        "a signed call is never redirected",
        location="https://evil.example/",
    ),
    _at_once(
        "a refusal", PlatformFault.BUSINESS_ERROR, r"系统错误 \(business error\) \(code 1500\)"
    ),
    _at_once("a code that is no number", BODY, r"\(code boom\)", body=b'{"code": "boom"}'),
    _at_once("`data` is null", BODY, "names no status", body=b'{"code": 0, "data": null}'),
]

THE_TASK = [
    _odd("SUCCESS, and the result is null", None, "its result is null; expected a list of links"),
    _odd("SUCCESS, and the result is empty", [], "its result is empty"),
    _odd("SUCCESS, and the result is text", "https://a/b", "its result is text"),
    _odd("SUCCESS, and the result is an object", {"url": "x"}, "its result is an object"),
    _odd(
        "an entry that is null",
        lambda story: [_link(story), None],
        "Entry 2 .* is null, where a link was expected; nothing was fetched: ask",
    ),
    _odd("an entry that is empty", [""], "Entry 1 .* is empty, where"),
    _odd("an entry that is no link", ["no link"], "was not followed|not a link"),
    _odd("a link to a forbidden host", ["https://evil.example/a"], "the host evil.example"),
    _odd("a link to a local file", ["file:///etc/passwd"], "not a link to a host"),
    _odd(
        "a link whose path leads upwards",
        lambda story: [f"{story.store.url}/run/%2e%2e/%2e%2e/etc/passwd"],
        "does not name a file below the task's directory",
    ),
    _odd(
        "a file that is named as our manifest",
        lambda story: [f"{story.store.url}/run/bge-manifest.json"],
        "whose place is needed for another file",
    ),
    _odd(
        "two files of which one is the other's directory",
        lambda story: [f"{story.store.url}/run/{name}" for name in ("a", "a/b")],
        "whose place is needed for another file",
    ),
    _row(
        "the same link twice",
        _result(lambda story: [story.store.object_url(key) for key in story.files] * 2),
        happens="the file is fetched once",
    ),
    _row(
        "a status that nobody knows",
        _result(GIVEN_BY_FILES, ("PENDING", "ASTONISHED", "SUCCESS")),
        happens="it counts as going on",
    ),
    _at_once("a status that is no text", BODY, "names no status", body=_envelope(status=7)),
    _row(
        "FAILURE",
        _result("样本质量太低 (low quality)", ("FAILURE",)),
        happens="it ends at once with the platform's reason",
        ends=3,
        says=r"has failed \(FAILURE\): 样本质量太低 \(low quality\)",
    ),
    _row(
        "REVOKED, and the reason quotes a secret",
        _result({"url": "http://h/a?Signature=s3cr3t&Expires=1"}, ("REVOKED",)),
        happens="it ends at once with the platform's reason, without the secret",
        ends=3,
        says=r"has failed \(REVOKED\): (?!.*s3cr3t)",
    ),
    _row(
        "never ready, as of an id that it does not know",
        _never_ready,
        happens="`poll_deadline` ends it; the same command goes on waiting",
        ends=4,
        says="the platform says PENDING of ids it does not know too",
    ),
    _row(
        "away for a while, when it has answered before",
        _away_while_waited_for,
        happens="it is waited for, up to `poll_deadline`",
        notes="still waiting for the task",
    ),
]

WHO_ASKS = [
    _row(
        "its clock is 3 hours ahead",
        _clock_ahead(hours=3),
        happens="its `Date` tells, and calls are stamped with its time",
    ),
    _row(
        "its clock is 40 days behind",
        _clock_ahead(days=-40),
        happens="its `Date` tells, and calls are stamped with its time",
    ),
    _once("the answer is lost, and the nonce with it", PlatformFault.RESET),
    _once("it takes a nonce for used, as when a proxy repeats a call", **NONCE_USED),
    _at_once(
        "it takes every nonce for used", says="signature_nonce used before .*1402", **NONCE_USED
    ),
    _row(
        "a wrong app_secret",
        _credentials(app_secret="wrong-and-not-real"),
        happens="it ends at once with the platform's own words",
        ends=1,
        says=r"签名错误 .*1400",
    ),
    _row(
        "an app_key that it does not know",
        _credentials(app_key="unknown"),
        happens="it ends at once with the platform's own words",
        ends=1,
        says=r"app_key is not known .*1401",
    ),
]

ROWS = [*THE_LINE, *SECURELY, *THE_ANSWER, *THE_TASK, *WHO_ASKS]
