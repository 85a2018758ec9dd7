"""Where settings come from: flags, environment variables, files; each one a layer of values."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downloader.errors import InvalidSettings, MissingCredentials

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
        InvalidSettings: a name is no setting's, or it is the secret.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if "app_secret" in given:
        raise InvalidSettings(
            "app_secret is never an argument, because every user of a machine can see those; "
            "set BGE_APP_SECRET, or BGE_APP_SECRET_FILE to a file that holds it"
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
        InvalidSettings: it cannot be read, is not TOML, or has a key that is no setting's.
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
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
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


def _refuse_unknown(name: str, known: Sequence[str], place: str) -> None:
    if name in known:
        return
    near = nearest(name, known)
    hint = f"did you mean {near}?" if near else f"the settings are {', '.join(known)}"
    raise InvalidSettings(f"{place} has the unknown setting {name!r}; {hint}")
