"""Where a state is kept: an SQLite file, or a database on a server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from state.addresses import is_no_path
from state.errors import StateUnreadable
from state.faults import BUSY_SECONDS, cannot_open

__all__ = ["connected", "place_of"]

EXPECTED = "expected a path, `sqlite:///PATH` or `postgresql+psycopg://HOST/DATABASE`"
MAY_BE_TOLD = {"host", "port", "dbname", "user"}


def place_of(url_or_path: str | Path) -> Path | URL:
    """Return the path of an SQLite file, or the URL of a server."""
    if not (isinstance(url_or_path, str) and "://" in url_or_path):
        if isinstance(url_or_path, str) and is_no_path(url_or_path):
            raise StateUnreadable(
                f"The state's address is no URL, and like no path; {EXPECTED} "
                "(a path like that must begin with `/`)"
            )
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
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StateUnreadable(f"The state's URL cannot be parsed; {EXPECTED}") from None
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise StateUnreadable(f"The state cannot be kept in {url.drivername}; {EXPECTED}")
    is_server = url.get_backend_name() == "postgresql"
    if is_server and (text.count("@") > 1 or "@" in f"{url.host}{url.database}"):
        # What follows it would be taken for the host or the database, shown, and looked up.
        raise StateUnreadable(
            "The state's URL has an `@` that does not end the user and the password; "
            "write `%40` in its place"
        )
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
        event.listen(engine, "do_connect", _connect)
    except (ImportError, NoSuchModuleError) as error:
        raise StateUnreadable(
            f"The state {location} needs psycopg, which is not installed; "
            "install `bge-downloader[postgresql]`"
        ) from error
    return engine, location


def _connect(
    dialect: Dialect, _: object, arguments: tuple[Any, ...], options: dict[str, Any]
) -> DBAPIConnection:
    """Connect; an error does not repeat the URL's options, as the driver does.

    Behind a raw `?` or `&`, the rest of a password is taken for one.
    """
    driver = dialect.loaded_dbapi
    try:
        return dialect.connect(*arguments, **options)
    except driver.Error as error:
        told = str(error)
        for name in options.keys() - MAY_BE_TOLD:
            told = re.sub(rf"""(["']){re.escape(str(options[name]))}\1""", r"\1…\1", told)
            told = told.replace(f'invalid connection option "{name}"', "invalid connection option")
        raise type(error)(told) from None
