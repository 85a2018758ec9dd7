"""The way to the database: made, looked over, brought up to date, and its owner's alone.

An SQLite file is looked at read-only first, so that what is not ours stays byte for byte.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from state import numbers
from state.errors import StateError
from state.faults import BUSY_SECONDS, cannot_open, damaged, fault, no_database, sqlite_code
from state.migrations import LATEST_VERSION, bring_up_to_date, found_version
from state.places import connected, place_of

__all__ = ["check_writable", "look_over", "open_engine"]

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
        raise no_database(location)
    for _ in _files_of(path):
        pass  # each is a file
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
        if sqlite_code(error) != sqlite3.SQLITE_READONLY:
            raise fault(error, location) from error
        return None
    return found


def _quick_check(connection: Connection, location: str) -> None:
    answer = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if answer != "ok":
        raise damaged(location)


def _tighten(path: Path) -> None:
    """Take the file and its companions from everyone but its owner; refuse what is not ours."""
    check_writable(path)
    for descriptor in _files_of(path):
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:
            # By its descriptor, as in `_make_private`; `fchmod` takes none that opens only a name.
            Path(f"/proc/self/fd/{descriptor}").chmod(0o600)


def _files_of(path: Path) -> Iterator[int]:
    """Give a descriptor of the file, and of each companion that is there, one after the other.

    OSError: one of them is a link, a pipe or the like, which SQLite would wait for, or the mode
    of something elsewhere would be changed.
    """
    place = path.resolve()  # a state may be a link; SQLite keeps what belongs to it where it leads
    for suffix in SQLITE_SUFFIXES:
        file = place.with_name(place.name + suffix)
        try:
            # Opening only the name waits for no pipe, and closing that drops no lock of SQLite's.
            descriptor = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # it comes and goes with the connections of others
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, f"{file} is not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)


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
            are_out = found == LATEST_VERSION and numbers.are_running_out(connection)
        if found < LATEST_VERSION:
            with engine.begin() as connection:
                bring_up_to_date(connection, location)
        if are_out:
            with engine.begin() as connection:
                numbers.renumber(connection)
    except (SQLAlchemyError, sqlite3.Error, ValueError) as error:
        # ValueError: a URL that no driver can send.
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
        except (DBAPIError, sqlite3.Error) as error:  # the latter of what is asked of it directly
            # SQLite does not wait for other beginners here, whatever its busy time-out.
            if sqlite_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
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
