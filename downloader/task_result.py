"""Reads what a user or the platform hands in: task ids, and results as links and places on disk.

Pure: nothing is sent or written here, and nothing leaves it that was not checked.
"""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from urllib.parse import unquote

from downloader.errors import BadTaskResult, InvalidTaskId
from downloader.hosts import HostRules

__all__ = ["MANIFEST_NAME", "PARTIAL_SUFFIX", "PlannedObject", "plan_objects", "valid_task_id"]

PARTIAL_SUFFIX = ".partial"
PART_SUFFIX = ".part"
MANIFEST_NAME = "bge-manifest.json"
RESERVED_NAMES = (MANIFEST_NAME, "SHA256SUMS", "MD5SUMS")
MAX_TASK_ID = 128
MAX_NAME_BYTES = 240  # a file system's 255, less our suffixes
MAX_KEY_BYTES = 1023  # OSS's own limit, far below what a path may have
MAX_FILES = 1_000_000
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OSS_HOST = re.compile(r"([a-z0-9-]+)\.oss-[a-z0-9-]+\.aliyuncs\.com")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedObject:
    """One object of a result: its identity in the store, its place on disk, its link."""

    name: str  # relative POSIX path inside the task's directory
    bucket: str
    key: str
    url: str


def valid_task_id(text: str) -> str:
    """Return the task id, which is safe as a directory's name.

    Raises:
        InvalidTaskId: it is empty, too long, or has characters that no task id has.
    """
    shown = text if len(text) <= 40 else f"{text[:40]}…"  # noqa: PLR2004
    if not text.strip():
        raise InvalidTaskId("The task id is empty; expected the id that the platform gave")
    if len(text) > MAX_TASK_ID:
        raise InvalidTaskId(
            f"The task id {shown!r} has {len(text)} characters; expected {MAX_TASK_ID} at most"
        )
    if not _TASK_ID.fullmatch(text) or text.endswith(PARTIAL_SUFFIX):
        raise InvalidTaskId(
            f"{shown!r} is no task id; expected letters, digits and '-', '_' or '.', "
            "such as 69909614-9e77-4fbd-b437-4f5b284e3dcc"
        )
    return text


def plan_objects(result: object, *, rules: HostRules) -> list[PlannedObject]:
    """Turn the result of a finished task into objects, each with a place of its own.

    A file's place is its key's path relative to the longest common directory of all links, so
    that two files of one name from two folders both survive.

    Raises:
        BadTaskResult: the result is not a list of links, or a name in it cannot be used.
        HostNotAllowed: a link leads to where nothing may be fetched from.
    """
    links = _links(result)
    identities: dict[tuple[str, str], str] = {}
    for link in links:
        parts = rules.check(link)
        host = (parts.hostname or "").lower().removesuffix(".")
        match = _OSS_HOST.fullmatch(host)
        identities.setdefault((match[1] if match else host, _key(parts.path)), link)
    places = _places(list(identities))
    return [
        PlannedObject(name=place, bucket=bucket, key=key, url=link)
        for ((bucket, key), link), place in zip(identities.items(), places, strict=True)
    ]


def _links(result: object) -> list[str]:
    if not isinstance(result, list) or not result:
        kind = "empty" if result == [] else f"{_kind(result)}"
        raise BadTaskResult(
            f"The task is finished, but its result is {kind}; expected a list of links. "
            "Ask the platform's support, naming the task id"
        )
    if len(result) > MAX_FILES:
        raise BadTaskResult(f"The task's result lists more than {MAX_FILES} links")
    for number, link in enumerate(result, start=1):
        if not isinstance(link, str) or not link:
            raise BadTaskResult(
                f"Entry {number} of the task's result is {_kind(link)}; expected a link"
            )
    return result


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    return {list: "a list", str: "text", bool: "true or false"}.get(type(value), "a number")


def _key(path: str) -> str:
    """Return the object's key: the path without the leading slash, percent-decoded."""
    try:
        key = unquote(path.removeprefix("/"), errors="strict")
    except UnicodeDecodeError:
        raise BadTaskResult("A link's path is not UTF-8; nothing was fetched") from None
    if len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        raise BadTaskResult(
            f"A link in the task's result has a path of over {MAX_KEY_BYTES} bytes: "
            f"{key[:40]!r}…; nothing was fetched"
        )
    try:
        os.fsencode(key)
    except UnicodeEncodeError:
        raise BadTaskResult(
            f"A file of the task's result is named {key!r}, which this locale's encoding "
            f"({sys.getfilesystemencoding()}) does not have; set LC_ALL=C.UTF-8 and try again"
        ) from None
    for component in key.split("/"):
        if component in ("", ".", ".."):
            raise BadTaskResult(
                f"The link's path {key!r} does not name a file below the task's directory; "
                "nothing was fetched"
            )
        if "\\" in component or any(unicodedata.category(c) in ("Cc", "Cs") for c in component):
            raise BadTaskResult(
                f"The link's path {key!r} has characters that no file name may have; "
                "nothing was fetched"
            )
        if len(component.encode()) > MAX_NAME_BYTES:
            raise BadTaskResult(
                f"A file name in the task's result has over {MAX_NAME_BYTES} bytes: "
                f"{component[:40]!r}…; nothing was fetched"
            )
    return key


def _places(identities: Sequence[tuple[str, str]]) -> list[str]:
    several = len({bucket for bucket, _ in identities}) > 1
    paths = [((bucket,) if several else ()) + tuple(key.split("/")) for bucket, key in identities]
    common = _common_length([path[:-1] for path in paths])
    names = ["/".join(path[common:]) for path in paths]
    _check_places(names)
    return names


def _common_length(paths: Sequence[Sequence[str]]) -> int:
    """Return how many leading components all paths share."""
    levels = zip(*paths, strict=False)
    return sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))


def _check_places(names: Sequence[str]) -> None:
    """Refuse two files in one place, ours included."""
    files = {*names, *RESERVED_NAMES}
    taken = files | {f"{name}{PART_SUFFIX}" for name in names}
    for name in names:
        parents = {name[:index] for index, character in enumerate(name) if character == "/"}
        if name in RESERVED_NAMES or f"{name}{PART_SUFFIX}" in files or parents & taken:
            raise BadTaskResult(
                f"The task's result has a file named {name!r}, whose place is needed for "
                "another file; nothing was fetched"
            )
