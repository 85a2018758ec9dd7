"""Every error the program raises on purpose, sorted by what the caller can do about it.

    DownloaderError                    exit code  retryable
    ├── UsageError                         2
    │   ├── InvalidTaskId                  2
    │   ├── InvalidArgument                2
    │   ├── MissingCredentials             2
    │   └── InvalidSettings                2
    ├── PlatformError                      1
    │   ├── PlatformUnavailable            1         yes
    │   ├── BusinessError                  1
    │   ├── BadTaskResult                  1
    │   ├── TaskFailed                     3
    │   └── TaskNotReady                   4
    ├── TransferError                      1
    │   ├── StoreUnavailable               1         yes
    │   ├── BadStoreReply                  1         yes
    │   ├── LinkRefused                    1
    │   ├── ObjectChanged                  1
    │   ├── ObjectMissing                  1
    │   ├── ObjectArchived                 1
    │   └── HostNotAllowed                 1
    ├── VerificationFailed                 5
    ├── DiskError                          1
    │   └── DiskFull                       1
    ├── DestinationTaken                   1
    ├── TaskCancelled                      1
    └── Interrupted                      129, 130 or 143

A message is one clear sentence for a person: what happened, what was expected, what to do.
It never carries a secret: links are put through `redacted` before they enter one.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

__all__ = [
    "BadStoreReply",
    "BadTaskResult",
    "BusinessError",
    "DestinationTaken",
    "DiskError",
    "DiskFull",
    "DownloaderError",
    "HostNotAllowed",
    "Interrupted",
    "InvalidArgument",
    "InvalidSettings",
    "InvalidTaskId",
    "LinkRefused",
    "MissingCredentials",
    "ObjectArchived",
    "ObjectChanged",
    "ObjectMissing",
    "PlatformError",
    "PlatformUnavailable",
    "StoreUnavailable",
    "TaskCancelled",
    "TaskFailed",
    "TaskNotReady",
    "TransferError",
    "UsageError",
    "VerificationFailed",
    "as_disk_error",
    "disk_error",
    "redacted",
]


class DownloaderError(Exception):
    """Something went wrong that a person should be told about in one sentence."""

    retryable: bool = False
    exit_code: int = 1


class UsageError(DownloaderError):
    """The program was called or set up wrongly; nothing was asked of anyone yet."""

    exit_code = 2


class InvalidTaskId(UsageError):
    """The task id cannot be one of the platform's."""


class InvalidArgument(UsageError, ValueError):
    """An argument of a platform call is wrong; nothing was sent."""


class MissingCredentials(UsageError):
    """No app_key or no app_secret was given."""


class InvalidSettings(UsageError):
    """A setting is unknown or has a value that cannot be used."""


class PlatformError(DownloaderError):
    """The platform did not give what was asked of it."""


class PlatformUnavailable(PlatformError):
    """A passing fault: no connection, a time-out, 429, 5xx, an HTML page, broken JSON.

    `retry_after` is the pause in seconds that the platform asked for, if it did.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BusinessError(PlatformError):
    """The platform understood the call and refused it: `code` and `msg` are its own words."""

    def __init__(self, code: object, msg: str, data: object = None) -> None:
        super().__init__(f"The platform refused the call: {msg or 'no reason given'} (code {code})")
        self.code = code
        self.msg = msg
        self.data = data


class BadTaskResult(PlatformError):
    """A task is SUCCESS, but its result is not a list of links that may be downloaded."""


class TaskFailed(PlatformError):
    """The platform says that the task failed or was revoked."""

    exit_code = 3


class TaskNotReady(PlatformError):
    """The task had no result by the deadline."""

    exit_code = 4


class TransferError(DownloaderError):
    """An object could not be moved to disk."""


class StoreUnavailable(TransferError):
    """A passing fault of the store: no connection, a cut or stalled body, 5xx, throttling.

    `retry_after` is the pause in seconds that the store asked for, if it did.
    """

    retryable = True

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BadStoreReply(TransferError):
    """The store's answer does not fit the request, so not a byte of it is believed."""

    retryable = True


class LinkRefused(TransferError):
    """The store refused the link (403); a renewed link may be accepted."""


class ObjectChanged(TransferError):
    """The object is no longer the version that was being transferred; start again."""


class ObjectMissing(TransferError):
    """The store has no such object."""


class ObjectArchived(TransferError):
    """The object is archived and must be restored before it can be read."""


class HostNotAllowed(TransferError):
    """A link, or a redirect, leads to a host or scheme that is not allowed."""


class VerificationFailed(DownloaderError):
    """What is on disk is not what it must be; nothing was published.

    `name` is that of the file at fault, where it is known.
    """

    exit_code = 5

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class DiskError(DownloaderError):
    """The local disk refused to read or write; never retried on its own.

    `name` is that of the file of a result that it refused, where it is known.
    """

    def __init__(self, message: str, *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class DiskFull(DiskError):
    """There is not enough space (or quota) for what is to come."""


class DestinationTaken(DownloaderError):
    """The destination is there already and is not ours to replace, or another process holds it."""


class TaskCancelled(DownloaderError):
    """Somebody cancelled or removed the task while it was being fetched; what came is kept."""


class Interrupted(DownloaderError):
    """A signal ended the run; everything received so far is kept."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


_AGAIN = "run the same command again, it goes on where it stopped"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = {
    code: advice
    for codes, advice in (
        (_FULL, "free some space and"),
        ([errno.EIO], "see what the system's log says of the disk, and once it works,"),
        ([errno.ESTALE], "the network disk has changed meanwhile:"),
        ([errno.EROFS], "see why the disk is read-only, and once it can be written,"),
        ([errno.EFBIG], "raise the limit of a file's size (`ulimit -f`), or use another disk, and"),
        ([errno.EMFILE, errno.ENFILE], "raise the limit of open files (`ulimit -n`) and"),
        ([errno.EACCES, errno.EPERM], "see who may do that there, and once you may,"),
        (
            [errno.ENOENT, errno.ENOTDIR, errno.ELOOP],
            "see what was moved or replaced there, and then",
        ),
    )
    for code in codes
}


def disk_error(error: OSError, path: Path, deed: str) -> DiskError:
    """Say in one sentence what the disk refused, and what to do."""
    kind = DiskFull if error.errno in _FULL else DiskError
    advice = _ADVICE.get(error.errno or 0, "mend that and")
    return kind(f"{path} could not be {deed}: {error.strerror or error}; {advice} {_AGAIN}")


@contextlib.contextmanager
def as_disk_error(path: Path, deed: str) -> Iterator[None]:
    """Turn what the disk refuses in here into a DiskError, as `disk_error` says it."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path, deed) from error


# A broken link may hold its query where a path should be, encoded once more or without its `?`.
_OPENS = re.compile(
    r"(?:signature|security-token|ossaccesskeyid|x-oss-credential"
    r"|(?:(?<![a-z])|(?<=3f)|(?<=26))(?:sign|app_secret))(?:=|%(?:25)*3d)",
    re.IGNORECASE,
)


def redacted(url: str) -> str:
    """Return the URL without user-info, query and fragment, which may all be secrets."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "<unreadable URL>"
    if ":" in host:
        host = f"[{host}]"
    secret = _OPENS.search(parts.path)
    path = f"{parts.path[: secret.start()]}…" if secret else parts.path
    query = "?…" if parts.query else ""
    return f"{parts.scheme}://{host}{port}{path}{query}"
