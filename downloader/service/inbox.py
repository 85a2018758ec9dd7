"""The inbox: a watched folder for pipelines that can do no more than write a file.

A file lists task ids, one a line; blank lines, what follows a `#`, CRLF and a byte order mark are
no part of them. A file that lists none is named by one: a UUID, with `.txt`, `.task` or nothing
behind it, or any task id with `.task` behind it. Everything else is refused as a whole: a line
that is no task id, text that is not UTF-8, more than 1 MiB, a link, a pipe.

A file is left alone while it may still be written: if its name begins with a dot or ends with
`.tmp`, `.part`, `.partial` or `~`, and until it was the same at two looks or is a second old. One
that looks cut off (it is empty and not named by a task id, or its last line is neither ended nor a
UUID) is left alone for a minute. A program that pauses for longer writes under another name, and
renames.

Nothing is lost: `scan` only looks. When the tasks of an order are stored, `accept` moves its file
to `accepted/`; `reject` moves it to `rejected/`, beside a `.reason.txt`. After a crash in between
the order is found again. Folders in the inbox are nobody's business. Every call blocks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

from downloader.errors import DiskError, InvalidTaskId
from downloader.logs import scrubbed
from downloader.task_result import valid_task_id

__all__ = ["Inbox", "Order"]

ACCEPTED = "accepted"
REJECTED = "rejected"
REASON_SUFFIX = ".reason.txt"
UNFINISHED_SUFFIXES = (".tmp", ".part", ".partial", "~")
MAX_BYTES = 1024**2
MAX_ORDERS = 1000  # of one scan
MAX_IDS = 100_000  # after which a scan takes no further file: one has some 260,000 at most
MAX_NAME_BYTES = 200  # a file system's 255, less what is put behind a name
SETTLED_SECONDS = 1.0
CUT_OFF_SECONDS = 60.0
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
EXAMPLE = "69909614-9e77-4fbd-b437-4f5b284e3dcc"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Look:
    """What tells one state of a file from another."""

    mode: int
    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, facts: os.stat_result) -> _Look:
        kind = stat.S_IFMT(facts.st_mode)
        return cls(kind, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class _Sight:
    """A file as it was seen, since when, and whether more than once."""

    look: _Look
    since: float
    is_again: bool

    def quiet_seconds(self, now: float) -> float:
        """Return for how long, at least, the file has been as it is."""
        return now - min(self.since, self.look.modified_ns / 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A file in the inbox: the tasks that it asks for, or the problem with it in one sentence."""

    path: Path
    task_ids: tuple[str, ...]
    problem: str | None
    look: _Look = field(repr=False, compare=False)


class Inbox:
    """The folder, and what was seen in it at the last look; to be used by one thread at a time."""

    def __init__(
        self, folder: Path, *, most: int = MAX_ORDERS, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self._most = most
        self._clock = clock
        self._seen: dict[str, _Sight] = {}
        self._told: str | None = None
        self._stuck: dict[str, str] = {}  # files that could not be moved, and what was told of them

    def prepare(self) -> None:
        """Make the folder, if it is not there; those in it are made when they are needed.

        Raises:
            DiskError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error, "made") from error

    def scan(self) -> list[Order]:
        """Return the orders that are ready, in the order of their names.

        To be called every few seconds. There may be more than are returned at once. An order that
        was neither accepted nor rejected is returned again.

        Raises:
            DiskError: the folder cannot be read; told again only after something has changed.
        """
        try:
            with _directory(self.folder) as folder:
                self._seen = self._sights(folder)
                found = self._orders(folder)
        except OSError as error:
            self._seen = {}
            problem = self._unusable(error, "read")
            if self._told == str(problem):
                return []
            self._told = str(problem)
            raise problem from error
        self._told = None
        self._stuck = {name: told for name, told in self._stuck.items() if name in self._seen}
        return found

    def accept(self, order: Order) -> Path | None:
        """Move the file of an order whose tasks are stored, and return where it is now.

        None if it was changed or taken away meanwhile, or cannot be moved, as was told before: the
        next scan sees what there is.

        Raises:
            DiskError: it cannot be moved; told again only after something has changed.
        """
        return self._move(order, ACCEPTED, None)

    def reject(self, order: Order) -> Path | None:
        """Move the file of an order that cannot be taken beside the reason; else as `accept`."""
        return self._move(order, REJECTED, order.problem or "The tasks in it could not be taken")

    def _sights(self, folder: int) -> dict[str, _Sight]:
        sights = {}
        for name in os.listdir(folder):
            look = None if _is_ignored(name) else _look_at(folder, name)
            if look is not None and not stat.S_ISDIR(look.mode):
                before = self._seen.get(name)
                is_again = before is not None and before.look == look
                since = before.since if before is not None and is_again else self._clock()
                sights[name] = _Sight(look, since, is_again)
        return sights

    def _orders(self, folder: int) -> list[Order]:
        """Return the orders that are ready, as many as the memory will bear at once."""
        found: list[Order] = []
        ids = 0
        for name in sorted(self._seen, key=lambda name: (name in self._stuck, name)):
            order = self._order(folder, name)
            if order is not None:
                found.append(order)
                ids += len(order.task_ids)
            if len(found) >= self._most or ids >= MAX_IDS:
                break
        return found

    def _order(self, folder: int, name: str) -> Order | None:
        """Return what a file asks for, or None if it is not ready."""
        sight = self._seen[name]
        quiet = sight.quiet_seconds(self._clock())
        if not sight.is_again and quiet < SETTLED_SECONDS:
            return None
        task_ids: tuple[str, ...] = ()
        problem = None
        try:
            content = _content(folder, name, sight.look)
            if content is None or (_is_cut_off(name, content) and quiet < CUT_OFF_SECONDS):
                return None
            task_ids = _task_ids(name, content)
        except ValueError as error:
            problem = scrubbed(str(error))
        return Order(path=self.folder / name, task_ids=task_ids, problem=problem, look=sight.look)

    def _move(self, order: Order, place: str, reason: str | None) -> Path | None:
        name = order.path.name
        try:
            with _directory(self.folder) as folder:
                if _look_at(folder, name) != order.look:
                    return None
                with _directory_within(folder, place) as target:
                    moved = self._move_into(target, folder, name, reason)
        except FileNotFoundError:
            return None
        except OSError as error:
            problem = f"{order.path} could not be moved to {place}/: {error.strerror}"
            if self._stuck.get(name) == problem:
                return None
            self._stuck[name] = problem
            raise DiskError(
                f"{problem}; make {self.folder} and {place}/ in it real folders of one disk, in "
                "which this user may rename"
            ) from error
        self._stuck.pop(name, None)
        return self.folder / place / moved

    def _move_into(self, target: int, folder: int, name: str, reason: str | None) -> str:
        free = _unused(target, name, self._clock())
        with contextlib.ExitStack() as undoing:
            if reason is not None:
                _write_new(target, f"{free}{REASON_SUFFIX}", f"{reason}\n")
                undoing.callback(os.unlink, f"{free}{REASON_SUFFIX}", dir_fd=target)
            os.rename(name, free, src_dir_fd=folder, dst_dir_fd=target)
            undoing.pop_all()
        return free

    def _unusable(self, error: OSError, deed: str) -> DiskError:
        return DiskError(
            f"The inbox {self.folder} could not be {deed}: {error.strerror}; make it a folder that "
            "this user can read and write, or change the setting inbox"
        )


@contextlib.contextmanager
def _directory(path: str | Path, flags: int = 0, within: int | None = None) -> Iterator[int]:
    flags |= os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(path, flags, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _directory_within(folder: int, name: str) -> Iterator[int]:
    """Open a folder in another, making it if need be.

    A link is refused: whoever may write into the inbox could choose where our files go.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=folder)
    with _directory(name, os.O_NOFOLLOW, folder) as descriptor:
        yield descriptor


def _is_ignored(name: str) -> bool:
    is_unfinished = name.startswith(".") or name.lower().endswith(UNFINISHED_SUFFIXES)
    return is_unfinished or name in (ACCEPTED, REJECTED)


def _look_at(folder: int, name: str) -> _Look | None:
    """Return how a file is now, or None if it is gone or, for the moment, unreadable."""
    try:
        return _Look.of(os.stat(name, dir_fd=folder, follow_symlinks=False))
    except PermissionError:  # the folder's: it may be listed, but not entered
        raise
    except OSError:
        return None


def _content(folder: int, name: str, look: _Look) -> bytes | None:
    """Return what is in a file, or None if it is not as it was looked at.

    Raises:
        ValueError: it is no file to be read.
    """
    if not stat.S_ISREG(look.mode):
        kind = "a link" if stat.S_ISLNK(look.mode) else "no ordinary file"
        raise ValueError(f"{name!r} is {kind}; expected a file of its own that lists task ids")
    if look.size > MAX_BYTES:
        raise ValueError(f"{name!r} has more than 1 MiB; expected task ids, one a line")
    # Nothing hangs if it has become a pipe since, nor leads elsewhere if it has become a link.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        with open(os.open(name, flags, dir_fd=folder), "rb") as file:  # noqa: PTH123 - a descriptor
            content = file.read(look.size + 1) if _is_still(file.fileno(), look) else b""
            return content if _is_still(file.fileno(), look) else None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # gone, or replaced
            return None
        raise ValueError(
            f"{name!r} could not be read: {error.strerror}; make it readable for this user, and "
            "put it into the inbox again"
        ) from error


def _is_still(descriptor: int, look: _Look) -> bool:
    return _Look.of(os.fstat(descriptor)) == look


def _is_cut_off(name: str, content: bytes) -> bool:
    """Tell whether whoever writes the file may not be done."""
    lines = content.removeprefix(BYTE_ORDER_MARK)
    if not lines.strip():
        return _named_task(name) is None
    last = lines.splitlines()[-1].decode(errors="replace").strip()
    return not lines.endswith((b"\n", b"\r")) and not _UUID.fullmatch(last)


def _task_ids(name: str, content: bytes) -> tuple[str, ...]:
    """Return the task ids that a file lists, once each, or the one that it is named by.

    Raises:
        ValueError: there are none, or something else is in it.
    """
    try:
        text = content.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{name!r} is no text in UTF-8; expected task ids, one a line") from None
    listed = tuple(dict.fromkeys(_listed_ids(name, text)))
    named = _named_task(name)
    if not listed and named is None:
        raise ValueError(
            f"{name!r} lists no task id; write one a line, or name the file by one, such as "
            f"{EXAMPLE}.txt, or with .task behind it"
        )
    return listed or ((named,) if named else ())


def _listed_ids(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        word = line.partition("#")[0].strip()
        try:
            if word:
                yield valid_task_id(word)
        except InvalidTaskId as error:
            raise ValueError(f"Line {number} of {name!r}: {error}") from None


def _named_task(name: str) -> str | None:
    """Return the task id that a file is named by, or None.

    Most words could be one, `list.txt` too: what is no UUID has to say `.task`.
    """
    plain = name.removesuffix(".txt").removesuffix(".task")
    if _UUID.fullmatch(plain):
        return plain
    with contextlib.suppress(InvalidTaskId):
        return valid_task_id(plain) if name == f"{plain}.task" else None
    return None


def _unused(folder: int, name: str, now: float) -> str:
    """Return the name, shortened if it is very long, with what makes it nobody's in the folder."""
    short = os.fsdecode(os.fsencode(name)[:MAX_NAME_BYTES])
    base, suffix = os.path.splitext(short)  # noqa: PTH122 - a name, not a path here
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    numbered = (f"{base}-{stamp}-{number}{suffix}" for number in count(2))
    names = chain([short, f"{base}-{stamp}{suffix}"], numbered)
    return next(
        each
        for each in names
        if not (_is_there(folder, each) or _is_there(folder, f"{each}{REASON_SUFFIX}"))
    )


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_new(folder: int, name: str, text: str) -> None:
    """Write a file that was not there; nothing is left of one that could not be written."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o666, dir_fd=folder)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
            file.write(text)
    except OSError:
        os.unlink(name, dir_fd=folder)
        raise
