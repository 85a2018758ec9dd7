"""The kinds of setting: how each is read from text or TOML, what it expects, how it is shown.

Reading is strict, so that a mistake is named where it was made; a shown value is written as one
would write it in a setting, and shows no secret.
"""

from __future__ import annotations

import ipaddress
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from downloader.errors import InvalidSettings, redacted
from downloader.hook_rules import check_command, check_webhook
from downloader.timetable import Window, format_windows, parse_windows
from downloader.units import (
    MAX_BYTES,
    parse_bytes,
    parse_rate,
    parse_seconds,
    plain_bytes,
    plain_seconds,
)
from state.addresses import is_no_path

__all__ = [
    "Kind",
    "choice",
    "choices",
    "command",
    "decimal",
    "duration",
    "endpoint",
    "hosts",
    "path",
    "rate",
    "secret",
    "size",
    "state_location",
    "web_address",
    "whole_number",
    "windows",
]

# Ten years: beyond it a deadline would leave the calendar's range in some addition of dates.
MAX_SECONDS = 3650 * 86400.0
NOT_SET = "not set"
STATE_SCHEMES = ("sqlite:", "sqlite+", "postgresql:", "postgresql+")

_Number = TypeVar("_Number", int, float, int | None)
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of value; `parse` raises ValueError for what is not of it.

    `expected` completes the sentence "…, but … is expected". What is `sensitive` is never
    repeated in a message.
    """

    name: str
    expected: str
    parse: Callable[[object], object]
    show: Callable[[Any], str] = str
    sensitive: bool = False


def whole_number(minimum: int, maximum: int) -> Kind:
    """Return the kind of a whole number between two bounds, both included."""

    def parse(value: object) -> int:
        number = _number(value, _parse_digits)
        return _within(_whole(number), minimum, maximum)

    bounds = f"{minimum} to {maximum}"
    return Kind(f"whole number, {bounds}", f"a whole number from {bounds}", parse)


def decimal(minimum: float, maximum: float) -> Kind:
    """Return the kind of a number between two bounds, both included."""

    def parse(value: object) -> float:
        number = float(_number(value, _parse_decimal))
        if not minimum <= number <= maximum:  # written so that NaN fails too
            raise ValueError("out of bounds")
        return number

    bounds = f"{minimum:g} to {maximum:g}"
    return Kind(f"number, {bounds}", f"a number from {bounds}", parse, _plain_decimal)


def size(minimum: int = 0) -> Kind:
    """Return the kind of a number of bytes, at least `minimum`."""

    def parse(value: object) -> int:
        return _within(_whole(_number(value, parse_bytes)), minimum, MAX_BYTES)

    at_least = f", at least {plain_bytes(minimum)}," if minimum else ""
    return Kind(
        "bytes, as in 64M; 1024-based",
        f"a size such as 64M, 1.5G or 1048576{at_least}",
        parse,
        plain_bytes,
    )


def rate(minimum: int) -> Kind:
    """Return the kind of a number of bytes per second, at least `minimum`, or None: no limit."""

    def parse(value: object) -> int | None:
        number = _number(value, parse_rate)
        return None if number is None else _within(_whole(number), minimum, MAX_BYTES)

    def show(value: int | None) -> str:
        return "none" if value is None else f"{plain_bytes(value)}/s"

    expected = f"a rate such as 20M or 20M/s, at least {plain_bytes(minimum)}, or none"
    return Kind("bytes/s, as in 20M; 1024-based", expected, parse, show)


def duration() -> Kind:
    """Return the kind of a finite time span above 0, in seconds."""

    def parse(value: object) -> float:
        seconds = float(_number(value, parse_seconds))
        # Written so that NaN fails too.
        if not 0 < seconds <= MAX_SECONDS:
            raise ValueError("out of bounds")
        return seconds

    expected = "a duration such as 30s, 5m, 1h30m or 7d, above 0 and within ten years,"
    return Kind("seconds, or as in 1h30m", expected, parse, plain_seconds)


def choice(*names: str) -> Kind:
    """Return the kind of one word out of several."""

    def parse(value: object) -> str:
        return _one_of(names, _text(value))

    listed = _either(names)
    return Kind(listed, listed, parse)


def choices(*names: str) -> Kind:
    """Return the kind of any of several words, in order and once each; `none` is none of them."""

    def parse(value: object) -> tuple[str, ...]:
        words = _items(value)
        if [word.lower() for word in words] == ["none"]:
            return ()
        return tuple(dict.fromkeys(_one_of(names, word) for word in words))

    def show(value: tuple[str, ...]) -> str:
        return ",".join(value) or "none"

    return Kind(f"list of {_either(names)}", f"a list of {_either(names)}, or none,", parse, show)


def hosts() -> Kind:
    """Return the kind of one or more host patterns, as `downloader.hosts` matches them."""

    def parse(value: object) -> tuple[str, ...]:
        patterns = tuple(dict.fromkeys(_host(item) for item in _items(value)))
        if not patterns:
            raise ValueError("no host at all")
        return patterns

    expected = "a list of hosts such as data.example.org or *.example.org, without scheme or port,"
    return Kind("list of hosts", expected, parse, ",".join)


def command() -> Kind:
    """Return the kind of a program with its arguments: a list, or text as one types it."""

    def parse(value: object) -> tuple[str, ...]:
        words = shlex.split(value) if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not all(isinstance(one, str) for one in words):
            raise ValueError("not a list of texts")
        _insist(check_command, words)
        return tuple(words)

    def show(value: tuple[str, ...] | None) -> str:
        # Its arguments may hold anything, secrets too.
        return NOT_SET if value is None else shlex.quote(value[0]) + (" …" if value[1:] else "")

    expected = (
        "a program on the PATH, or the whole path of one, and its arguments, "
        'such as ["/usr/local/bin/load", "--now"],'
    )
    return Kind("list of texts, or as typed", expected, parse, show, sensitive=True)


def web_address() -> Kind:
    """Return the kind of an address that is posted to; it may hold secrets anywhere."""

    def parse(value: object) -> str:
        address = _text(value)
        _insist(check_webhook, address)
        return address

    def show(value: str | None) -> str:
        if value is None:
            return NOT_SET
        parts = urlsplit(value)
        return f"{parts.scheme}://{parts.netloc}/…"

    expected = (
        "an https address in ASCII (http on this machine only) without a user name and a fragment, "
        "such as https://lab.example.org/hook,"
    )
    return Kind("URL", expected, parse, show, sensitive=True)


def windows() -> Kind:
    """Return the kind of a timetable: windows of the week, each with its rate."""
    expected = (
        'a list of windows such as ["mon-fri 08:00-18:00 20M"], or the same as text joined by `;`,'
    )
    return Kind("list of windows", expected, _parse_windows, format_windows)


def path() -> Kind:
    """Return the kind of a file's or directory's place; `~` is expanded."""

    def parse(value: object) -> Path:
        return _expanded(value)

    def show(value: Path | None) -> str:
        return NOT_SET if value is None else str(value)

    return Kind("path", "a path in UTF-8 (and after ~ only a user who has a home)", parse, show)


def state_location() -> Kind:
    """Return the kind of the state's place: a path, or a URL that may hold a password."""

    def parse(value: object) -> str:
        if isinstance(value, str) and "://" in value:
            if not value.strip().startswith(STATE_SCHEMES):
                raise ValueError("the state can be kept in SQLite and PostgreSQL only")
            return value.strip()
        path = str(_expanded(value))
        if is_no_path(path):
            raise ValueError("it would be shown, with the password in it")
        return path

    expected = "a path, or a sqlite:///, or a postgresql+psycopg:// URL"
    return Kind("path or URL", expected, parse, _shown_url, sensitive=True)


def endpoint() -> Kind:
    """Return the kind of the platform's address; whether it may be used, its client checks."""
    return Kind("URL", "a URL such as https://host.example.org", _text, _shown_url, sensitive=True)


def secret(result: Callable[[str], str | SecretStr]) -> Kind:
    """Return the kind of a credential, of which is only shown whether it is set."""

    def parse(value: object) -> str | SecretStr:
        return result(_text(value.get_secret_value() if isinstance(value, SecretStr) else value))

    def show(value: object) -> str:
        return NOT_SET if value is None else "set"

    return Kind("text", "text that is not empty (in quotes, if in a file)", parse, show, True)


def _parse_windows(value: object) -> tuple[Window, ...]:
    if isinstance(value, list | tuple) and all(isinstance(one, Window) for one in value):
        return tuple(value)
    texts = value if isinstance(value, str) else list(value) if isinstance(value, list) else None
    if texts is None or not all(isinstance(one, str) for one in texts):
        raise ValueError("no text, and no list of texts")
    return parse_windows(texts)


def _number(value: object, parse_text: Callable[[str], _Number]) -> _Number | float:
    if isinstance(value, str):
        return parse_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError("not a number")


def _parse_digits(text: str) -> int:
    # int() alone would take "4_0", and every script's digits.
    if not re.fullmatch(r"[0-9]+", text.strip()):
        raise ValueError("not a whole number")
    return int(text)


def _parse_decimal(text: str) -> float:
    # Nor would float(): it would take "nan" and "1e3" too.
    if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text.strip()):
        raise ValueError("not a number")
    return float(text)


def _plain_decimal(value: float) -> str:
    return str(value).removesuffix(".0")


def _insist(check: Callable[[Any], None], value: object) -> None:
    try:
        check(value)
    except InvalidSettings as error:
        raise ValueError("against the rules of hooks") from error


def _whole(number: float) -> int:
    if not math.isfinite(number) or number != int(number):
        raise ValueError("not a whole number")
    return int(number)


def _within(number: int, minimum: int, maximum: int) -> int:
    if not minimum <= number <= maximum:
        raise ValueError("out of bounds")
    return number


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("not text, or blank")
    return value.strip()


def _items(value: object) -> list[str]:
    """Return the items of comma-separated text, or of a list whose items may be such text too."""
    items = value if isinstance(value, list | tuple) else [value]
    texts = [item for item in items if isinstance(item, str)]
    if len(texts) < len(items):
        raise ValueError("not a list of texts")
    return [item.strip() for item in ",".join(texts).split(",") if item.strip()]


def _one_of(names: tuple[str, ...], word: str) -> str:
    if word.lower() not in names:
        raise ValueError("not one of the words")
    return word.lower()


def _host(text: str) -> str:
    plain = text.lower().removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(plain):
        ipaddress.ip_address(plain)  # raises ValueError; an IPv6 address has colons
    return plain


def _expanded(value: object) -> Path:
    plain = value if isinstance(value, Path) else Path(_text(value))
    if "\0" in str(plain):
        raise ValueError("no path holds a NUL")
    str(plain).encode()  # what is no UTF-8, no state can hold: a UnicodeError is a ValueError
    try:
        return plain.expanduser()
    except RuntimeError as error:
        raise ValueError("no such user") from error


def _shown_url(value: str) -> str:
    """Return a URL without its secrets, and a path as it is."""
    if "://" not in value:
        return value
    try:
        in_netloc = urlsplit(value).netloc.count("@")
    except ValueError:
        in_netloc = 0
    # A password with a raw `/`, `?` or `#` moves the host to where `redacted` keeps it.
    if value.count("@") != in_netloc:
        return value.partition("://")[0] + "://…"
    return redacted(value)


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
