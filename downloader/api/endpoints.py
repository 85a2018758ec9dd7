"""The platform's calls as data: a path and checked parameters; no I/O.

Every function raises `InvalidArgument` before anything could be sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from downloader.errors import InvalidArgument

__all__ = [
    "Call",
    "Condition",
    "question_size",
    "sign_url",
    "survey_projects",
    "survey_target",
    "task_result",
    "wechat_profile",
]

Condition = Mapping[str, object]

REGIONS = ("domestic", "international")


@dataclass(frozen=True, slots=True)
class Call:
    """One call, ready to be signed: where it goes and its own parameters as text."""

    path: str
    params: Mapping[str, str] = field(default_factory=dict)


def task_result(task_id: str) -> Call:
    """Ask for a task's status and, once it is SUCCESS, the URLs of its files."""
    return Call("/api/survey/task", {"task_id": _text("task_id", task_id)})


def survey_projects(project_ids: str | Sequence[str]) -> Call:
    """Ask what is known of projects: one id, ids joined by commas, or a sequence of ids."""
    if isinstance(project_ids, str):
        ids = _text("project_ids", project_ids).split(",")
    elif isinstance(project_ids, Sequence) and len(project_ids) > 0:
        ids = list(project_ids)
    else:
        raise InvalidArgument("project_ids is empty or no text; give one project id or several")
    joined = ",".join(_text("each of project_ids", project_id) for project_id in ids)
    return Call("/api/survey/projects", {"project_ids": joined})


def survey_target(
    AND: Sequence[Condition] | None = None,  # noqa: N803 - the vendor's parameter names
    OR: Sequence[Condition] | None = None,  # noqa: N803
    limit: int | None = None,
    page: int | None = None,
) -> Call:
    """Ask which users meet all conditions of AND and at least one of OR."""
    params = {"AND": _conditions("AND", AND), "OR": _conditions("OR", OR)}
    if limit is not None:
        params["limit"] = _positive("limit", limit)
    if page is not None:
        params["page"] = _positive("page", page)
    return Call("/api/survey/target", params)


def question_size(user_id: str) -> Call:
    """Ask how many questions a user has answered."""
    return Call("/api/survey/question_size", {"user_id": _text("user_id", user_id)})


def wechat_profile(user_id: str) -> Call:
    """Ask for a user's WeChat ids and nickname."""
    return Call("/openbge/wechat/profile", {"user_id": _text("user_id", user_id)})


def sign_url(
    object_name: str, region: str | None = None, expiration_time: int | None = None
) -> Call:
    """Ask for a fresh signed URL of an object, valid for `expiration_time` seconds."""
    params = {"object_name": _text("object_name", object_name)}
    if object_name.startswith("/"):
        raise InvalidArgument("object_name begins with a slash; give the object's key without it")
    if region is not None:
        if region not in REGIONS:
            raise InvalidArgument(f"region is {region!r}; it must be domestic or international")
        params["region"] = region
    if expiration_time is not None:
        params["expiration_time"] = _positive("expiration_time", expiration_time)
    return Call("/service/oss/sign_url", params)


def _text(name: str, value: object) -> str:
    """Return the value if it is text with something in it that can be sent as one line."""
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} is of type {type(value).__name__}; it must be text")
    if not value.strip():
        raise InvalidArgument(f"{name} is empty; nothing was sent")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):  # noqa: PLR2004
        raise InvalidArgument(f"{name} holds a line break or another control character: {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{name} is no valid Unicode text: {value!r}") from None
    return value


def _positive(name: str, value: object) -> str:
    """Return a positive whole number as text."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgument(f"{name} is {value!r}; it must be a whole number, 1 or more")
    return str(value)


def _conditions(name: str, conditions: object) -> str:
    """Return the conditions as JSON text, `null` where there are none."""
    if conditions is None:
        return "null"
    if not isinstance(conditions, list | tuple):
        kind = type(conditions).__name__
        raise InvalidArgument(f"{name} is of type {kind}; it must be a list of conditions")
    for number, condition in enumerate(conditions, start=1):
        _check_condition(f"Condition {number} of {name}", condition)
    try:
        return json.dumps([dict(condition) for condition in conditions])
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name} cannot be written as JSON: {error}") from error


def _check_condition(where: str, condition: object) -> None:
    """Raise unless the condition names a data element, an operator and something to compare."""
    if not isinstance(condition, Mapping):
        raise InvalidArgument(f"{where} is of type {type(condition).__name__}; it must be a dict")
    for key in ("data_element_identifier_de", "operator"):
        if not isinstance(condition.get(key), str) or _is_missing(condition[key]):
            raise InvalidArgument(f"{where} has no {key}; it must be there, as text")
    if all(_is_missing(condition.get(key)) for key in ("concept_code", "content")):
        raise InvalidArgument(
            f"{where} has neither concept_code nor content; one of them must be there"
        )


def _is_missing(value: object) -> bool:
    """Tell whether a condition's value is absent or blank."""
    return value is None or (isinstance(value, str) and not value.strip())
