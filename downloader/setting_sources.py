"""Where settings come from: flags, environment variables, files; each one a layer of values."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downloader.errors import InvalidSettings, MissingCredentials
from downloader.ordinary import open_ordinary
from state.addresses import holds_password

__all__ = [
    "Layer",
    "default_layer",
    "env_name",
    "environment_layer",
    "file_layer",
    "flag_layer",
    "flag_name",
    "is_there",
    "nearest",
    "read_credential",
    "systemd_credential",
    "xdg_directory",
]

ENV_PREFIX = "BGE_"
MAX_LINE_LENGTH = 4096
# What only the service knows: it is set up by files, not by arguments.
SERVICE_ONLY = (
    "calls_per_second",
    "hook_timeout",
    "inbox",
    "keep_history",
    "limit_rate_times",
    "log_format",
    "on_complete",
    "on_failure",
    "parallel_tasks",
    "task_attempts",
    "webhook",
    "webhook_secret",
    "webhook_secret_file",
)
# Arguments are seen by every user of the machine, so the credentials are none. `--timeout` is the
# deadline of a task, which people want far more often than the time-out of a platform call.
FLAGS_BY_NAME: Mapping[str, str | None] = {
    "app_key": None,
    "app_secret": None,
    "app_secret_file": None,
    "timeout": None,
    "poll_deadline": "--timeout",
    **dict.fromkeys(SERVICE_ONLY),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """The values that one source gives.

    `origin` names the source of a value in a table; `spelled` begins a sentence about it.
    """

    values: Mapping[str, object]
    origin: Callable[[str], str]
    spelled: Callable[[str], str]


def env_name(name: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str | None:
    """Return the flag of a setting; None if it has none."""
    return FLAGS_BY_NAME.get(name, f"--{name.replace('_', '-')}")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant; None if none is near."""
    plain = name.lower().replace("-", "_")
    return next(iter(difflib.get_close_matches(plain, known, n=1)), None)


def flag_layer(flags: Mapping[str, object], known: Sequence[str]) -> Layer:
    """Return what the command line gives; None is a flag that was not given.

    Raises:
        InvalidSettings: a name is no setting's, it is the secret, or it is a state with a password.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if "app_secret" in given:
        raise InvalidSettings(
            "app_secret is never an argument, because every user of a machine can see those; "
            "set BGE_APP_SECRET, or BGE_APP_SECRET_FILE to a file that holds it"
        )
    if holds_password(str(given.get("state", ""))):
        raise InvalidSettings(
            "The password of a state is never an argument (--state), because every user of a "
            "machine can see those; set BGE_STATE to the URL, or leave the password to ~/.pgpass"
        )
    for name in given:
        _refuse_unknown(name, known, "The command line")
    return Layer(given, lambda _: "flag", lambda name: f"The flag {flag_name(name) or name}")


def environment_layer(known: Iterable[str]) -> Layer:
    """Return what the environment gives; an empty variable counts as not set."""
    texts = {name: os.environ.get(env_name(name)) for name in known}
    given = {name: text for name, text in texts.items() if text}
    return Layer(given, env_name, lambda name: f"The variable {env_name(name)}")


def file_layer(file: Path, known: Sequence[str]) -> Layer:
    """Return what a TOML file gives; a file that is not there gives nothing.

    Raises:
        InvalidSettings: it cannot be read, is not TOML, has a key that is no setting's, or is in
            the working directory and may be somebody else's.
    """
    values = _read_toml(file)
    for name in values:
        _refuse_unknown(name, known, f"The file {file}")
    return Layer(values, lambda _: str(file), lambda name: f"The key {name} in the file {file}")


def default_layer(values: Mapping[str, object]) -> Layer:
    """Return the defaults that a command prefers to the settings' own."""
    return Layer(values, lambda _: "service default", lambda name: f"The default of {name}")


def xdg_directory(variable: str, fallback: str) -> Path | None:
    """Return an XDG base directory; None where there is no home either."""
    configured = os.environ.get(variable, "")
    if Path(configured).is_absolute():  # the specification has relative ones ignored
        return Path(configured)
    try:
        return Path(fallback).expanduser()
    except RuntimeError:  # a user without an entry and without $HOME, as in some containers
        return None


def is_there(file: Path) -> bool:
    """Tell whether there is a file that may be looked at; Path.exists raises where it may not."""
    try:
        file.stat()
    except (OSError, ValueError):
        return False
    return True


def systemd_credential(name: str) -> Path | None:
    """Return the file in which systemd's LoadCredential= hands over a credential, if it does."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    file = Path(directory, name) if directory else None
    return file if file and is_there(file) else None


def read_credential(file: Path) -> str:
    """Return the first line of a file, without the blanks around it.

    Raises:
        MissingCredentials: the file cannot be read, or that line is empty or no text.
    """
    try:
        with file.open(encoding="utf-8-sig") as lines:
            line = lines.readline(MAX_LINE_LENGTH).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise MissingCredentials(f"No credential can be read from {file}: {reason}") from None
    if not line:
        raise MissingCredentials(f"The first line of {file} is empty; it must be the credential")
    return line


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        descriptor = open_ordinary(file, follows_links=True)
        with os.fdopen(descriptor, encoding="utf-8-sig") as opened:
            if not file.is_absolute():
                _refuse_planted(file, os.fstat(descriptor))
            return tomllib.loads(opened.read())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        # A place that we may not even look into (another's home, ProtectHome=) holds no file of
        # ours; a file that is there must be readable, or its settings would be lost in silence.
        if isinstance(error, PermissionError) and not is_there(file):
            return {}
        raise InvalidSettings(
            f"The file {file} cannot be read ({error.strerror}); make it readable or remove it"
        ) from error
    except UnicodeDecodeError:
        raise InvalidSettings(f"The file {file} is not UTF-8 text, which TOML must be") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettings(f"The file {file} is not valid TOML: {error}") from None
    except (ValueError, RecursionError):  # limits of Python's own, whose words are for programmers
        raise InvalidSettings(
            f"The file {file} has a number with too many digits, or brackets that are too deep"
        ) from None


def _refuse_planted(file: Path, found: os.stat_result) -> None:
    """Refuse a file in the working directory that somebody else may have put or changed there.

    Settings name commands to run. In a folder that everybody may write to, as /tmp, nobody but
    the owner of a file can replace it, if the sticky bit is set; a link there has its own owner.
    """
    is_trusted = {0, os.geteuid()}.__contains__
    folder = file.parent.stat()
    if not is_trusted(found.st_uid) or not is_trusted(file.lstat().st_uid):
        reason, mend = "belongs to another user", "make it yours (chown)"
    elif found.st_mode & stat.S_IWOTH:
        reason, mend = "may be written by everybody", f"take that from them (chmod o-w {file})"
    elif folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX:
        reason = "is in a folder in which everybody may replace it"
        mend = "take that from them (chmod o-w .)"
    else:
        return
    raise InvalidSettings(
        f"The file {file} in the working directory {reason}, and settings can name commands to "
        f"run; {mend}, move it to ~/.config/bge-downloader/config.toml, or work elsewhere"
    )


def _refuse_unknown(name: str, known: Sequence[str], place: str) -> None:
    if name in known:
        return
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"the settings are {', '.join(known)}"
    raise InvalidSettings(f"{place} has the unknown setting {name!r}; {hint}")
