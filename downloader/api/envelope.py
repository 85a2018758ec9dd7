"""What the platform's reply means: a result, a refusal, or a fault; no I/O."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin

from downloader.api.model import Model
from downloader.errors import BusinessError, PlatformError, PlatformUnavailable, redacted
from downloader.logs import one_line
from downloader.retry import retry_after_seconds

__all__ = ["Reply", "parse_reply", "speaks_of_expired_timestamp", "speaks_of_used_nonce"]

MAX_MSG_LENGTH = 1000
MAX_CODE_LENGTH = 100
# What Python makes of a reply may take a hundred times the memory of its text: 16 MiB of `[],` took
# over 1 GiB, and held everybody up for seconds. No answer comes near to these numbers, though the
# signs in its texts are counted too.
MAX_CONTAINERS = 200_000
MAX_VALUES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One HTTP reply, read whole. Its body may hold signed URLs, so it is not shown."""

    url: str
    status: int
    body: bytes
    date: str | None = None
    retry_after: str | None = None
    location: str | None = None

    def __repr__(self) -> str:
        return f"Reply(status={self.status}, {len(self.body)} bytes)"


def parse_reply(reply: Reply) -> Model:
    """Return the data that the reply carries, or raise what it means instead.

    Raises:
        PlatformUnavailable: a passing fault (408, 429, 5xx, or no JSON object).
        BusinessError: the platform understood the call and refused it.
        PlatformError: anything else that will not pass by itself.
    """
    _refuse_faults(reply)
    _refuse_bombs(reply.body)
    try:
        content = json.loads(reply.body)
        document = Model(content) if isinstance(content, dict) else None
    except (ValueError, RecursionError) as error:  # broken, not UTF-8, or nested absurdly deep
        raise _not_json(reply) from error
    if document is None:
        raise _not_json(reply)
    if "code" in document and document["code"] not in (0, "0"):
        raise BusinessError(_code(document), _msg(document), document.get("data"))
    if reply.status >= HTTPStatus.BAD_REQUEST:
        raise _permanent(reply)
    return _data(document) if "code" in document else document


def speaks_of_expired_timestamp(error: BusinessError) -> bool:
    """Tell whether the platform refused the call because of its time stamp."""
    text = f"{error.code} {error.msg}".lower().replace("time stamp", "timestamp")
    names_it = "timestamp" in text or "时间戳" in text
    return names_it and any(word in text for word in ("expire", "invalid", "过期", "失效", "无效"))


def speaks_of_used_nonce(error: BusinessError) -> bool:
    """Tell whether the platform has had the call before, as where a proxy repeats it."""
    text = error.msg.lower()
    words = ("used", "repeat", "duplicate", "replay", "exist", "重复", "已使用", "用过", "已存在")
    names_it = "nonce" in text or "随机" in text
    return names_it and any(word in text for word in words)


def _refuse_faults(reply: Reply) -> None:
    """Raise where the status alone tells that there is no answer to read."""
    status = reply.status
    if status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= (
        HTTPStatus.INTERNAL_SERVER_ERROR
    ):
        raise PlatformUnavailable(
            f"The platform answered HTTP {status}",
            retry_after=retry_after_seconds(reply.retry_after),
        )
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        target = redacted(urljoin(reply.url, reply.location)) if reply.location else "nowhere"
        raise PlatformError(
            f"The platform redirects (HTTP {status}) to {target}; a signed call is never "
            "redirected: set `endpoint` to the platform's right address"
        )


def _refuse_bombs(body: bytes) -> None:
    """Raise before a text is read that would fill the memory, though it is short."""
    containers = body.count(b"{") + body.count(b"[")
    if containers > MAX_CONTAINERS or body.count(b",") > MAX_VALUES:
        raise PlatformError(
            f"The platform's reply has over {MAX_CONTAINERS:,} objects or {MAX_VALUES:,} values, "
            "which no answer has; ask for fewer items at a time (limit, page)"
        )


def _not_json(reply: Reply) -> PlatformError:
    """Say that the body is no JSON object: a passing fault, unless the status is a 4xx."""
    if reply.status >= HTTPStatus.BAD_REQUEST:
        return _permanent(reply)
    looks_like_html = reply.body.lstrip()[:1] == b"<"
    found = "an HTML page" if looks_like_html else "something else"
    return PlatformUnavailable(
        f"The platform answered HTTP {reply.status} with {found} where a JSON object was expected",
        retry_after=retry_after_seconds(reply.retry_after),
    )


def _permanent(reply: Reply) -> PlatformError:
    return PlatformError(
        f"The platform answered HTTP {reply.status} without saying why in JSON; "
        "check that `endpoint` is the platform's address"
    )


def _code(document: Model) -> object:
    """Return the platform's code: a number as it is, anything else as a line safe to print."""
    code = document["code"]
    if isinstance(code, int) and abs(code) < 10**MAX_CODE_LENGTH:
        return code
    return one_line(str(code), MAX_CODE_LENGTH)


def _msg(document: Model) -> str:
    """Return the platform's words as one line that is safe to print."""
    words = document.get("msg")
    return "" if words is None else one_line(str(words), MAX_MSG_LENGTH)


def _data(document: Model) -> Model:
    """Return `data` as a Model, a list under `result`, with the pagination's fields beside it."""
    pagination = document.get("pagination")
    data: Any = document.get("data")
    merged = Model(pagination if isinstance(pagination, dict) else {})
    if isinstance(data, dict):
        merged.update(data)
    elif data is not None:
        merged["result"] = data
    return merged
