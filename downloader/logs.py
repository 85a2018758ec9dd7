"""Logging set-up: sentences for people on stderr, with every secret taken out.

The one-shot commands say what is wrong; the service writes one line an event, with its facts as
`key=value` or as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from enum import Enum
from typing import Literal, TextIO

__all__ = [
    "facts",
    "one_line",
    "printable",
    "safe_lines",
    "scrubbed",
    "set_up_logging",
    "set_up_service_logging",
]

OWN_LOGGERS = ("downloader", "state")
LIBRARY_LOGGERS = ("aiohttp", "apscheduler", "asyncio", "concurrent", "py.warnings", "sqlalchemy")
HELD_BACK_SECONDS = 60.0  # what a library repeats is told once in so long
MAX_REMEMBERED = 1000  # messages of libraries
# The journal breaks a line of 48 KiB in two (journald.conf(5), LineMax=).
MAX_TEXT = 4000
MAX_TRACEBACK = 16_000
MAX_ITEMS = 20  # of a list
MAX_INTEGER = 2**63  # beyond it few readers of JSON go

# In a link as it is, in one that was percent-encoded once more, and in a printed dict or JSON.
_SECRET = re.compile(
    r"(?i)(?:\b|(?<=3f)|(?<=26))"
    r"(signature|security-token|ossaccesskeyid|sign|app_secret|x-oss-credential)"
    r"(=|%(?:25)*3d|['\"]\s*:\s*['\"])[^&\s'\"<>]+"
)

_LINE_END = re.compile(r"\r\n|\r|\n")


def scrubbed(text: str) -> str:
    """Return the text with the values of secret parameters taken out."""
    return _SECRET.sub(r"\1\2…", text)


def printable(text: str) -> str:
    """Return the text on one line, with `?` for every control or invisible character.

    What a server or a file name says must not move the cursor of the terminal it is shown on.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def safe_lines(text: str) -> list[str]:
    """Return the lines of a message, each printable and without secrets."""
    # No `splitlines`: what only Unicode takes for a line's end is made printable instead.
    lines = _LINE_END.split(scrubbed(text).rstrip("\r\n")) if text else []
    return [printable(line) for line in lines]


def one_line(text: str, limit: int) -> str:
    """Return somebody else's words, safe to print, with `…` for what is beyond the limit."""
    # Before anything else is done with it: it may be megabytes.
    words = " ".join(printable(text[: 4 * limit]).split())
    return words if len(words) <= limit else f"{words[:limit]}…"


class _Scrubbing(logging.Formatter):
    """The last line of defence: nothing is logged before it went through here."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(safe_lines(super().format(record)))


class _Saying(logging.Handler):
    """Hands each message to whoever draws on the terminal, so that none tears a bar."""

    def __init__(self, say: Callable[[str], object]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(self.format(record))


def set_up_logging(*, verbose: bool = False, say: Callable[[str], object] | None = None) -> None:
    """Send warnings, or with `verbose` everything, to `say`, which is for stderr by default.

    `say` is called in the thread in which something is logged.
    """
    handler = logging.StreamHandler(sys.stderr) if say is None else _Saying(say)
    handler.setFormatter(_Scrubbing("%(levelname)s %(name)s: %(message)s"))
    for name in OWN_LOGGERS:
        _send(name, handler, logging.DEBUG if verbose else logging.WARNING)


def set_up_service_logging(
    format: Literal["auto", "text", "json"] = "auto",  # noqa: A002 - the setting's own word
    *,
    level: int = logging.INFO,
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Write one line an event to the stream, which is stderr by default; libraries warn there too.

    The journal gets each line with its priority, and with `auto` without the time and the level,
    which it keeps itself. A traceback is written at level DEBUG only.
    """
    stream = sys.stderr if stream is None else stream
    is_journal = _leads_to_journal(stream, environ)
    # No queue: one write to a pipe or a socket that is read, as the journal does, takes
    # microseconds, and what was logged last before a crash has been written.
    handler = _EventHandler(stream, _Repeats(clock))
    handler.setFormatter(
        _EventFormatter(
            is_json=format == "json",
            has_priority=is_journal,
            has_stamp=not (is_journal and format == "auto"),
            has_traceback=level <= logging.DEBUG,
        )
    )
    for name in OWN_LOGGERS:
        _send(name, handler, level)
    for name in LIBRARY_LOGGERS:
        _send(name, handler, logging.WARNING)
    logging.captureWarnings(True)


def facts(**values: object) -> Mapping[str, object]:
    """Return what `extra=` takes, so that the values become the facts of an event."""
    return {"facts": values}


def _send(name: str, handler: logging.Handler, level: int) -> None:
    logger = logging.getLogger(name)
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _leads_to_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Tell whether the stream is the one that systemd has connected with the journal."""
    named = environ.get("JOURNAL_STREAM")  # systemd.exec(5): device and inode of stderr
    if not named:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # no file, or closed
        return False
    return named == f"{status.st_dev}:{status.st_ino}"


class _EventHandler(logging.Handler):
    """Writes each line at once and whole; a stream that takes none is no reason to fail."""

    def __init__(self, stream: TextIO, repeats: _Repeats) -> None:
        super().__init__()
        self._stream = stream
        self._repeats = repeats
        self._is_torn = False

    def emit(self, record: logging.LogRecord) -> None:
        # Whatever went wrong: there is nobody left to tell.
        with contextlib.suppress(Exception):
            if _is_own(record) or self._repeats.lets_through(record):
                self._write(f"{self.format(record)}\n")

    def _write(self, line: str) -> None:
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # no file
            self._stream.write(line)
            self._stream.flush()
            return
        # Past the stream's buffer: what is stuck in it at the end makes the exit code 120.
        encoding = self._stream.encoding or "utf-8"
        self._write_bytes(descriptor, line.encode(encoding, "backslashreplace"))

    def _write_bytes(self, descriptor: int, data: bytes) -> None:
        rest = b"\n" + data if self._is_torn else data
        length = len(rest)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            self._is_torn = bool(rest) and (self._is_torn or len(rest) < length)


class _Repeats:
    """Lets a library say the same thing once a minute, then with the number of those held back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._told: dict[tuple[object, ...], tuple[float, int]] = {}  # when, and what came since

    def lets_through(self, record: logging.LogRecord) -> bool:
        """Tell whether the message is to be written."""
        key, now = _sameness(record), self._clock()
        at, held_back = self._told.pop(key, (-math.inf, 0))
        is_news = now - at >= HELD_BACK_SECONDS
        self._told[key] = (now, 0) if is_news else (at, held_back + 1)
        if is_news:
            record.held_back = held_back
        if len(self._told) > MAX_REMEMBERED:  # some hold an address, and never come again
            del self._told[next(iter(self._told))]
        return is_news


def _sameness(record: logging.LogRecord) -> tuple[object, ...]:
    """Return what two messages have in common that say the same of different things."""
    template = str(record.msg)
    error = record.exc_info[0] if record.exc_info else None
    says_all = template.strip() == "%s"
    return record.name, record.levelno, _message(record) if says_all else template, error


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in OWN_LOGGERS


class _EventFormatter(logging.Formatter):
    """Makes one line of an event and its facts, in which every secret is taken out."""

    def __init__(
        self, *, is_json: bool, has_priority: bool, has_stamp: bool, has_traceback: bool
    ) -> None:
        super().__init__()
        self._is_json = is_json
        self._has_priority = has_priority
        self._has_stamp = has_stamp
        self._has_traceback = has_traceback

    def format(self, record: logging.LogRecord) -> str:
        # sd-daemon(3): the journal takes the prefix off the line, so JSON stays JSON.
        prefix = f"<{_priority(record.levelno)}>" if self._has_priority else ""
        line = self._json(record) if self._is_json else self._text(record)
        return prefix + line

    def _text(self, record: logging.LogRecord) -> str:
        head = [_stamp(record), record.levelname] if self._has_stamp else []
        origin = {} if _is_own(record) else {"logger": record.name}
        values = self._facts(record, origin)
        pairs = [f"{_key(name)}={_quoted(_as_text(value))}" for name, value in values.items()]
        return " ".join([*head, _event(record), *pairs])

    def _json(self, record: logging.LogRecord) -> str:
        named = {
            "time": _stamp(record),
            "level": record.levelname,
            "event": _event(record),
            "logger": record.name,
        }
        # In ASCII, which every stream takes; a stream's own escapes would be no JSON.
        return json.dumps(self._facts(record, named), allow_nan=False)

    def _facts(self, record: logging.LogRecord, named: Mapping[str, object]) -> dict[str, object]:
        """Return the named values and the event's facts; none of them replaces another."""
        result = dict(named)
        given = getattr(record, "facts", None)
        for name, value in given.items() if isinstance(given, Mapping) else ():
            free = str(name)
            while free in result:
                free += "_"
            result[free] = "\u2026" if _SECRET.match(f"{name}=x") else _plain(value)
        if held_back := getattr(record, "held_back", 0):
            result.setdefault("held_back", held_back)
        if record.exc_info and (error := record.exc_info[1]):
            result.setdefault("error", _plain(error))
            if self._has_traceback:
                result.setdefault("traceback", _traceback(error))
        return result


def _priority(level: int) -> int:
    """Return the syslog priority of a level: 3 is an error, 7 is for debugging."""
    bounds = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO + 1, 5), (logging.INFO, 6))
    return next((priority for bound, priority in bounds if level >= bound), 7)


def _stamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC).astimezone()
    return moment.isoformat(timespec="milliseconds")


def _event(record: logging.LogRecord) -> str:
    return " ".join(_clean(_message(record)).split("\n"))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a slip in a call must not lose what it meant to say
        return f"{record.msg} {record.args!r}"


def _plain(value: object) -> object:
    """Return the value as JSON has it: text, a number, true, false, null, or a list of those."""
    if isinstance(value, list | tuple):
        shown = [_scalar(item) for item in value[:MAX_ITEMS]]
        others = len(value) - MAX_ITEMS
        return [*shown, f"and {others} more"] if others > 0 else shown
    if isinstance(value, set | frozenset):
        return _plain(sorted((_scalar(item) for item in value), key=str))
    return _scalar(value)


def _scalar(value: object) -> object:
    if isinstance(value, Enum):
        return _scalar(value.value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < MAX_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    try:
        return _clean(_words(value))
    except Exception:  # noqa: BLE001 - an object that cannot say what it is must not stop the log
        return f"<{type(value).__name__}>"


def _words(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, date | time_of_day):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g}s"
    if isinstance(value, BaseException):
        return _error(value)
    return str(value)


def _error(error: BaseException) -> str:
    """Return the kind and the words of an error on one line; of a group, those in it."""
    words = " ".join(str(error).split())
    if isinstance(error, BaseExceptionGroup):
        words = "; ".join(_error(each) for each in error.exceptions[:3])
    name = type(error).__name__
    return f"{name}: {words}" if words else name


def _traceback(error: BaseException) -> str:
    lines = safe_lines("".join(traceback.format_exception(error)))
    return "\n".join(lines)[-MAX_TRACEBACK:]  # the innermost call stands last


def _clean(text: str) -> str:
    """Return the text without secrets, each of its lines printable, and not too long."""
    shown = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\u2026"
    return "\n".join(safe_lines(shown))


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(_as_text(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _key(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name) or "_"


def _quoted(text: str) -> str:
    """Return the value as logfmt has it: in quotes if anything in it could be misread."""
    if text and not re.search(r'[\s"=\\]', text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
