"""What the platform demands of a request before it answers: form, signature, parameters.

Each refusal is a business error with the platform's number for it; HTTP says 200 all the same.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl

from downloader.api.signing import sign

__all__ = ["CALLS", "Call", "Gatekeeper", "RefusedError", "parse_form"]

COMMON = {"app_key", "signature_nonce", "timestamp", "sign"}
OLDEST = timedelta(seconds=300)
NEWEST = timedelta(seconds=60)

_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_CONDITION = {"data_element_identifier_de", "operator", "concept_code", "content"}

Check = Callable[[str], bool]


class RefusedError(Exception):
    """The platform refuses a call: its number and its words."""

    def __init__(self, code: int, msg: str, *, http_status: int = 200) -> None:
        super().__init__(msg)
        self.code = code
        self.msg = msg
        self.http_status = http_status


def parse_form(body: bytes) -> dict[str, str]:
    """Read a form body strictly: UTF-8, no parameter twice, nothing that is no pair."""
    try:
        text = body.decode("utf-8")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, errors="strict")
    except ValueError:
        raise RefusedError(1001, "the body is no form of UTF-8 text") from None
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RefusedError(1001, f"parameter given twice: {', '.join(twice)}")
    return dict(pairs)


@dataclass(slots=True, kw_only=True)
class Gatekeeper:
    """Knows the one client of the sandbox, and every nonce that it has used."""

    app_key: str
    app_secret: str = field(repr=False)
    clock: Callable[[], datetime]
    _nonces: set[str] = field(default_factory=set)

    def check(self, params: Mapping[str, str]) -> None:
        """Refuse a request that is not signed as the platform's document tells it."""
        missing = sorted(COMMON - params.keys())
        if missing:
            raise RefusedError(1001, f"missing parameter: {', '.join(missing)}")
        if params["app_key"] != self.app_key:
            raise RefusedError(1401, "app_key is not known")
        self._check_timestamp(params["timestamp"])
        nonce = params["signature_nonce"]
        if not re.fullmatch(r"[0-9a-fA-F]{32}", nonce):
            raise RefusedError(1402, "signature_nonce is not 32 hex digits")
        unsigned = {name: value for name, value in params.items() if name != "sign"}
        right = sign(unsigned, self.app_secret)
        if not hmac.compare_digest(right.encode(), params["sign"].encode()):
            raise RefusedError(1400, "签名错误 (wrong signature)")
        if nonce.lower() in self._nonces:
            raise RefusedError(1402, "signature_nonce used before")
        self._nonces.add(nonce.lower())

    def _check_timestamp(self, text: str) -> None:
        try:
            at = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            at = None
        if at is None or not _TIMESTAMP.fullmatch(text):  # strptime takes digits that are missing
            raise RefusedError(1403, "timestamp is not written as %Y-%m-%dT%H:%M:%SZ")
        if not -NEWEST <= self.clock() - at <= OLDEST:
            raise RefusedError(1403, "timestamp expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of the platform: its name and what its parameters must be."""

    name: str
    required: Mapping[str, Check]
    optional: Mapping[str, Check] = field(default_factory=dict)

    def parameters(self, params: Mapping[str, str]) -> dict[str, str]:
        """Return the call's own parameters; refuse missing, unknown and wrong ones."""
        own = {name: value for name, value in params.items() if name not in COMMON}
        missing = sorted(self.required.keys() - own.keys())
        if missing:
            raise RefusedError(1001, f"missing parameter: {', '.join(missing)}")
        checks = {**self.required, **self.optional}
        unknown = sorted(own.keys() - checks.keys())
        if unknown:
            raise RefusedError(1001, f"unknown parameter: {', '.join(unknown)}")
        for name, value in own.items():
            if not checks[name](value):
                raise RefusedError(1001, f"parameter is not valid: {name}")
        return own


def _is_text(value: str) -> bool:
    return bool(value.strip())


def _is_text_list(value: str) -> bool:
    return all(_is_text(part) for part in value.split(","))


def _is_count(value: str) -> bool:
    return bool(re.fullmatch(r"[1-9][0-9]{0,8}", value))


def _is_region(value: str) -> bool:
    return value in ("domestic", "international")


def _are_conditions(value: str) -> bool:
    """Accept `null`, or a list of conditions, each with `concept_code`, `content` or both."""
    try:
        conditions = json.loads(value)
    except ValueError:
        return False
    if conditions is None:
        return True
    return isinstance(conditions, list) and all(_is_condition(one) for one in conditions)


def _is_condition(condition: object) -> bool:
    if not isinstance(condition, dict) or not condition.keys() <= _CONDITION:
        return False
    names = (condition.get("data_element_identifier_de"), condition.get("operator"))
    given = [condition.get(name) for name in ("concept_code", "content")]
    return all(isinstance(name, str) and name for name in names) and any(
        value is not None for value in given
    )


CALLS: dict[str, Call] = {
    "/api/survey/task": Call(name="task_result", required={"task_id": _is_text}),
    "/api/survey/projects": Call(name="survey_projects", required={"project_ids": _is_text_list}),
    "/api/survey/target": Call(
        name="survey_target",
        required={"AND": _are_conditions, "OR": _are_conditions},
        optional={"limit": _is_count, "page": _is_count},
    ),
    "/api/survey/question_size": Call(name="question_size", required={"user_id": _is_text}),
    "/openbge/wechat/profile": Call(name="wechat_profile", required={"user_id": _is_text}),
    "/service/oss/sign_url": Call(
        name="sign_url",
        required={"object_name": _is_text},
        optional={"region": _is_region, "expiration_time": _is_count},
    ),
}
