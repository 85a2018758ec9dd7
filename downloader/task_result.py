"""Reads what a user or the platform hands in: task ids, and results as links and places on disk.

Pure: nothing is sent or written here, and nothing leaves it that was not checked.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import zip_longest
from urllib.parse import unquote

from downloader.errors import BadTaskResult, InvalidTaskId
from downloader.hosts import HostRules

__all__ = [
    "ASIDE",
    "MANIFEST_NAME",
    "PARTIAL_SUFFIX",
    "PlannedObject",
    "may_be_one_place",
    "plan_objects",
    "valid_task_id",
]

PARTIAL_SUFFIX = ".partial"
ASIDE = ".damaged-"  # and a time: of a result that was set aside
PART_SUFFIX = ".part"
MANIFEST_NAME = "bge-manifest.json"
CLAIM_NAME = f"bge-claim{PART_SUFFIX}"  # which state the partial directory belongs to
_IN_VAIN = "nothing was fetched: ask the platform's support, naming the task id"
RESERVED_NAMES = (MANIFEST_NAME, "SHA256SUMS", "MD5SUMS", CLAIM_NAME)
MAX_TASK_ID = 128
MAX_NAME_BYTES = 240  # a file system's 255, less our suffixes
MAX_KEY_BYTES = 1023  # OSS's own limit, far below what a path may have
MAX_FILES = 1_000_000
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PARAMETER = re.compile(r"[^&]+&?|&")
# A backslash, and Unicode's control characters and surrogates (Cc, Cs).
_UNUSABLE = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_OSS_HOST = re.compile(r"([a-z0-9-]+)\.oss-[a-z0-9-]+\.aliyuncs\.com")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedObject:
    """One object of a result: its identity in the store, its place on disk, its link."""

    name: str  # relative POSIX path inside the task's directory
    bucket: str
    key: str
    # In pieces, of which many objects share some; a secret is in it.
    link: tuple[str, ...] = field(repr=False)

    @property
    def url(self) -> str:
        """The link, with its secrets."""
        return "".join(self.link)


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
        # One text for all: a result has thousands of links into one bucket.
        bucket = sys.intern(match[1] if match else host)
        identities.setdefault((bucket, _key(parts.path)), link)
    places = _places(identities)
    planned: list[PlannedObject] = []
    pieces: tuple[str, ...] = ()
    for ((bucket, key), url), place in zip(identities.items(), places, strict=True):
        pieces = _pieces(url, key, pieces)
        planned.append(PlannedObject(name=place, bucket=bucket, key=key, link=pieces))
    return planned


def _pieces(url: str, key: str, before: tuple[str, ...]) -> tuple[str, ...]:
    """Cut a link into pieces, those that stand in the link `before` shared with it.

    Thousands of links into one bucket differ in their keys and signatures alone; a session's
    token is as long as all the rest.
    """
    head, mark, query = url.partition("?")
    if head.endswith(f"/{key}"):  # nothing in it is percent-encoded: the key's own text will do
        path = [head[: -len(key)], key]
    else:
        place, slash, name = head.rpartition("/")
        path = [place + slash, name]
    pieces = [*path, *_PARAMETER.findall(mark + query)]
    shared = zip_longest(before[: len(pieces)], pieces)
    return tuple(old if old == new else new for old, new in shared)


def _links(result: object) -> list[str]:
    if not isinstance(result, list) or not result:
        kind = "empty" if result == [] else f"{_kind(result)}"
        raise BadTaskResult(
            f"The task is finished, but its result is {kind}; expected a list of links. "
            "Ask the platform's support, naming the task id"
        )
    if len(result) > MAX_FILES:
        raise BadTaskResult(f"The task's result lists more than {MAX_FILES} links; {_IN_VAIN}")
    for number, link in enumerate(result, start=1):
        if not isinstance(link, str) or not link:
            raise BadTaskResult(
                f"Entry {number} of the task's result is {'empty' if link == '' else _kind(link)}, "
                f"where a link was expected; {_IN_VAIN}"
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
        raise BadTaskResult(f"A link's path is not UTF-8; {_IN_VAIN}") from None
    if len(key.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        raise BadTaskResult(
            f"A link in the task's result has a path of over {MAX_KEY_BYTES} bytes: "
            f"{key[:40]!r}…; {_IN_VAIN}"
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
                f"{_IN_VAIN}"
            )
        if _UNUSABLE.search(component):
            raise BadTaskResult(
                f"The link's path {key!r} has characters that no file name may have; {_IN_VAIN}"
            )
        if len(component.encode()) > MAX_NAME_BYTES:
            raise BadTaskResult(
                f"A file name in the task's result has over {MAX_NAME_BYTES} bytes: "
                f"{component[:40]!r}…; {_IN_VAIN}"
            )
    return key


def _places(identities: Collection[tuple[str, str]]) -> list[str]:
    several = len({bucket for bucket, _ in identities}) > 1
    paths = [f"{bucket}/{key}" if several else key for bucket, key in identities]
    shared = _common_length(paths)
    names = [path[shared:] for path in paths]
    _check_places(names)
    return names


def _common_length(paths: Sequence[str]) -> int:
    """Return how long the longest directory is that all paths share, with its last slash."""
    # What the first and the last in order have in common, all between them have.
    first, last = min(map(_directory, paths)), max(map(_directory, paths))
    return posixpath.commonprefix([first, last]).rfind("/") + 1


def _directory(path: str) -> str:
    return path[: path.rfind("/") + 1]


def _check_places(names: Sequence[str]) -> None:
    """Refuse two files in one place, ours included."""
    planned = set(names)
    for name in names:
        part = f"{name}{PART_SUFFIX}"
        is_taken = name in RESERVED_NAMES or part in RESERVED_NAMES or part in planned
        if is_taken or any(_is_file(parent, planned) for parent in _parents(name)):
            raise BadTaskResult(
                f"The task's result has a file named {name!r}, whose place is needed for "
                f"another file; {_IN_VAIN}"
            )


def may_be_one_place(names: Collection[str]) -> list[list[str]]:
    """Return the groups of names, ours included, that some file systems take for one.

    Those which do not tell upper from lower case, or one form of a letter from another (Unicode's
    normal forms), or a name from one with blanks or dots behind it.
    """
    everything = (*names, *RESERVED_NAMES)
    counts = Counter(map(_alike, everything))
    groups: defaultdict[str, list[str]] = defaultdict(list)
    if len(counts) < len(everything):
        for name in everything:
            if counts[_alike(name)] > 1:
                groups[_alike(name)].append(name)
    return list(groups.values())


def _alike(name: str) -> str:
    """Return what is the same of names that some file systems take for one."""
    text = name if name.isascii() else unicodedata.normalize("NFC", name)
    folded = text.casefold()
    if " " in folded or "." in folded:
        folded = "/".join(component.rstrip(" .") for component in folded.split("/"))
    return folded if folded.isascii() else unicodedata.normalize("NFC", folded)


def _parents(name: str) -> Iterator[str]:
    """Yield the directories above a file, as they are named inside the task's directory."""
    return (name[:index] for index, character in enumerate(name) if character == "/")


def _is_file(place: str, planned: Set[str]) -> bool:
    """Tell whether a file of the result or of ours, or a part file, is to stand there."""
    is_part = place.endswith(PART_SUFFIX) and place.removesuffix(PART_SUFFIX) in planned
    return place in planned or place in RESERVED_NAMES or is_part
