"""The way to the database: where it is, who may read it, and what its faults mean.

An SQLite file is looked at read-only first, so that what is not ours stays byte for byte.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from state.errors import StateError, StateUnreadable
from state.schema import LATEST_VERSION, bring_up_to_date, found_version

__all__ = [
    "cannot_open",
    "check_writable",
    "connected",
    "fault",
    "look_over",
    "open_engine",
    "place_of",
]

BUSY_SECONDS = 10
# A whole check reads the whole file; past this size it would be felt at every start.
QUICK_CHECK_BYTES = 64 * 1024 * 1024
SMALLEST_DATABASE = 512  # SQLite's smallest page: it takes a shorter file for an empty one
SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")


def open_engine(url_or_path: str | Path) -> tuple[Engine, str]:
    """Return an engine on an up-to-date state, and the state's name for people.

    StateUnreadable or StateTooNew: it cannot be used, and whatever was there is untouched.
    """
    place = place_of(url_or_path)
    if isinstance(place, Path):
        return _open_sqlite(place)
    engine, location = connected(place)
    return _migrated(engine, location), location


def place_of(url_or_path: str | Path) -> Path | URL:
    """Return the path of an SQLite file, or the URL of a server."""
    if not (isinstance(url_or_path, str) and "://" in url_or_path):
        return _absolute(Path(url_or_path))
    url = _parsed(url_or_path)
    return url if url.drivername.startswith("postgresql") else _absolute(_sqlite_path(url))


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # `~` and the name of nobody
        raise cannot_open(str(path), error) from error


def _parsed(text: str) -> URL:
    """Return the URL; its text may hold a password and is in no message."""
    expected = "expected a path, `sqlite:///PATH` or `postgresql+psycopg://HOST/DATABASE`"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StateUnreadable(f"The state's URL cannot be parsed; {expected}") from None
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise StateUnreadable(f"The state cannot be kept in {url.drivername}; {expected}")
    return url


def _sqlite_path(url: URL) -> Path:
    if not url.database or url.database == ":memory:":
        raise StateUnreadable(
            "The state's URL names no file, and a state in memory would forget everything; "
            "write `sqlite:///PATH`"
        )
    if url.host or url.username:
        raise StateUnreadable(
            "The state's URL names a host, but SQLite is a file: "
            "write `sqlite:///PATH`, with three slashes before the path"
        )
    return Path(url.database)


def connected(url: URL) -> tuple[Engine, str]:
    """Return an engine for a server, and its name without user, password and options."""
    location = f"postgresql://{url.host or 'localhost'}/{url.database or ''}"
    defaults = {"connect_timeout": str(BUSY_SECONDS), "options": f"-c lock_timeout={BUSY_SECONDS}s"}
    url = url.set(drivername="postgresql+psycopg").update_query_dict(
        {name: value for name, value in defaults.items() if name not in url.query}
    )
    try:
        engine = create_engine(url, hide_parameters=True, pool_pre_ping=True)
    except (ImportError, NoSuchModuleError) as error:
        raise StateUnreadable(
            f"The state {location} needs psycopg, which is not installed; "
            "install `bge-downloader[postgresql]`"
        ) from error
    return engine, location


def _open_sqlite(path: Path) -> tuple[Engine, str]:
    """Open a file, made 0600 if it is not there, in WAL mode."""
    location = str(path)
    try:
        _make_private_file(path)
        if path.stat().st_size:
            look_over(path, location)
        _tighten(path)
    except (OSError, ValueError) as error:  # ValueError: no file can have that name
        raise cannot_open(location, error) from error
    engine = create_engine(
        URL.create("sqlite", database=location),
        hide_parameters=True,
        connect_args={"timeout": BUSY_SECONDS},
    )
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    return _migrated(engine, location), location


def _make_private_file(path: Path) -> None:
    """Create the file 0600 before SQLite does, and missing directories 0700, whatever the umask."""
    for directory in reversed([parent for parent in path.parents if not parent.exists()]):
        directory.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            _make_private(directory, os.O_DIRECTORY | os.O_NOFOLLOW, mode=0o700)
        else:
            directory.chmod(0o700)  # before that, a umask may keep us from opening it
    if path.exists():
        if not path.is_file():
            raise OSError(errno.EISDIR, "it is not a regular file")
        return
    for directory in path.parents:  # once in its life: any of them may have been made just now
        _sync_names(directory)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        _make_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600)


def _sync_names(directory: Path) -> None:
    """Let the names in a directory survive a power loss, where the file system can.

    SQLite sees to those beside the database, and to none above them.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _make_private(path: Path, flags: int, *, mode: int) -> None:
    """Open what is made here, and give it its mode and its owner.

    By its descriptor: whoever may write the directory could put a link in its place meanwhile.
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        os.fchmod(descriptor, mode)
        _give_to_owner_of(path.parent, descriptor)
    finally:
        os.close(descriptor)


def _give_to_owner_of(directory: Path, descriptor: int) -> None:
    """Let what root makes in somebody's directory belong to them, as to a service's account.

    A service that starts later could not open a state of root's. SQLite itself gives what it
    makes beside a file to that file's owner.
    """
    there = directory.stat()
    is_everybodys = there.st_mode & stat.S_IWOTH  # as /tmp is: its owner says nothing
    if os.geteuid() != 0 or there.st_uid == 0 or is_everybodys:
        return
    with contextlib.suppress(PermissionError):  # root of a container may be refused it
        os.fchown(descriptor, there.st_uid, there.st_gid)


def look_over(
    path: Path,
    location: str,
    *,
    read: Callable[[Connection, str], int] = found_version,
    options: str = "",
) -> int | None:
    """Make sure that an existing file is a whole state of ours, without writing to it.

    Returns what was read, or None where only a writer could read it.

    Only SQLite itself may open the file: closing a descriptor of our own would drop the locks
    that other connections of this process hold on it (POSIX locks belong to the process).
    """
    if path.stat().st_size < SMALLEST_DATABASE:
        raise _no_database(location)
    address = f"file:{quote(os.fsencode(path))}?mode=ro{options}"
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS),
        poolclass=NullPool,
    )
    try:
        with engine.connect() as connection:
            found = read(connection, location)
            if path.stat().st_size <= QUICK_CHECK_BYTES:
                _quick_check(connection, location)
    except SQLAlchemyError as error:
        # Left by a crash at the very beginning, a rollback journal needs a writer to undo it.
        if _sqlite_code(error) != sqlite3.SQLITE_READONLY:
            raise fault(error, location) from error
        return None
    return found


def _quick_check(connection: Connection, location: str) -> None:
    answer = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if answer != "ok":
        raise _damaged(location)


def _tighten(path: Path) -> None:
    """Take the file and its companions from everyone but its owner; refuse what is not ours."""
    check_writable(path)
    for suffix in SQLITE_SUFFIXES:
        companion = path.with_name(path.name + suffix)
        try:
            if stat.S_IMODE(companion.stat().st_mode) & 0o077:
                companion.chmod(0o600)
        except FileNotFoundError:
            continue  # it comes and goes with the connections of others


def check_writable(path: Path) -> None:
    """Raise PermissionError where a state could only be read."""
    # SQLite opens what it may not write read-only, and would fail at the first write.
    for place in (path, path.parent):
        if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, f"{place} cannot be written")


def _prepare_connection(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    """Set what SQLite forgets with every connection; `_begin` begins the transactions."""
    connection.isolation_level = None
    # A damaged text is then a wrong text, which is dealt with, and no error of the driver.
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    cursor = connection.cursor()
    # After a power loss the last checkpoint must be there, not an older one.
    for pragma in ("synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_SECONDS * 1000}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """Take the write lock first: two processes that read, then write, would refuse each other."""
    reads = connection.get_execution_options().get("state_reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _migrated(engine: Engine, location: str) -> Engine:
    """Bring the state up to date; on failure nothing is left open."""
    try:
        if engine.dialect.name == "sqlite":
            _use_wal(engine)
        # Mostly there is nothing to do, and a look waits for nobody who writes.
        reader = engine.execution_options(state_reads_only=True)
        with reader.begin() as connection:
            found = found_version(connection, location)
        if found < LATEST_VERSION:
            with engine.begin() as connection:
                bring_up_to_date(connection, location)
    except (SQLAlchemyError, ValueError) as error:  # ValueError: a URL that no driver can send
        engine.dispose()
        raise fault(error, location) from error
    except StateError:
        engine.dispose()
        raise
    return engine


def _use_wal(engine: Engine) -> None:
    """Switch the file to WAL once; where that cannot be (some network disks), go on without."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            _switch_to_wal(engine)
        except DBAPIError as error:
            # SQLite does not wait for other beginners here, whatever its busy time-out.
            if _sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _switch_to_wal(engine: Engine) -> None:
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        if cursor.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            cursor.execute("PRAGMA journal_mode=WAL").fetchone()
        cursor.close()
    finally:
        raw.close()


def _sqlite_code(error: BaseException) -> int | None:
    """Return SQLite's primary result code, if the error is SQLite's."""
    cause = getattr(error, "orig", error)
    code = getattr(cause, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def fault(error: Exception, location: str) -> StateUnreadable:
    """Return the sentence for what a database or its driver raised."""
    sentences: dict[int | None, Callable[[], StateUnreadable]] = {
        sqlite3.SQLITE_BUSY: lambda: StateUnreadable(
            f"The state {location} was locked by another process for more than {BUSY_SECONDS} s; "
            "see what holds it (`fuser` names it), then try again"
        ),
        sqlite3.SQLITE_FULL: lambda: StateUnreadable(
            f"There is no space left to write the state {location}; free some and try again"
        ),
        sqlite3.SQLITE_NOTADB: lambda: _no_database(location),
        sqlite3.SQLITE_CORRUPT: lambda: _damaged(location),
    }
    known = sentences.get(_sqlite_code(error))
    return known() if known else cannot_open(location, error)


def cannot_open(location: str, error: Exception) -> StateUnreadable:
    """Return the sentence with the first line of the reason, which names no value and no SQL."""
    cause = getattr(error, "orig", None) or error
    reason = cause.strerror if isinstance(cause, OSError) else str(cause).partition("\n")[0]
    return StateUnreadable(
        f"The state {location} cannot be used: {reason or type(cause).__name__}; "
        "mend that, or name another place with the setting `state`"
    )


def _no_database(location: str) -> StateUnreadable:
    return StateUnreadable(
        f"The state file {location} is not a database; it was left as it is: "
        "move it away, or name another place with the setting `state`"
    )


def _damaged(location: str) -> StateUnreadable:
    return StateUnreadable(
        f"The state file {location} is damaged and was left as it is: restore it, or move it "
        "away and begin with a new one; results that are published already stay as they are"
    )
