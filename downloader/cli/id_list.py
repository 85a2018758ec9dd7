"""Ids of tasks, as people and other programs name them: all are checked before anything is done."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence

from downloader.errors import InvalidArgument

__all__ = ["checked_ids", "wanted_ids"]

STDIN = "-"
MAX_LIST_BYTES = 64 * 1024 * 1024


def wanted_ids(task_ids: Sequence[str], file: str | None) -> list[str]:
    """Return the ids that were named, and those in the file, once each.

    Raises:
        UsageError: one of them is none, or there are none, or the file cannot be read.
    """
    listed = [] if file is None else _ids_in(file)
    if not task_ids and not listed:
        raise InvalidArgument(
            "Name the tasks to be watched, or give --file FILE with their ids"
            if file is None
            else f"No id of a task is in {_shown(file)}; expected one a line"
        )
    return checked_ids([*task_ids, *listed])


def _ids_in(file: str) -> list[str]:
    """Return the ids in a file, without blanks and comments."""
    try:
        text = _read(file).decode("utf-8-sig")
    except OSError as error:
        reason = error.strerror
    except ValueError:  # of a NUL in the file's name too
        reason = "it is not UTF-8 text"
    else:
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return [line for line in lines if line]
    raise InvalidArgument(f"The ids cannot be read from {_shown(file)}: {reason}")


def _read(file: str) -> bytes:
    # By number: sys.stdin is None where the caller has closed it.
    with open(0 if file == STDIN else file, "rb", closefd=file != STDIN) as opened:
        content = opened.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise OSError(errno.EFBIG, "it is too large for a list of ids")
    return content


def _shown(file: str) -> str:
    return "standard input" if file == STDIN else file


def checked_ids(task_ids: Iterable[str]) -> list[str]:
    """Return the ids, once each.

    Raises:
        InvalidTaskId: one of them is none.
    """
    from downloader.task_result import valid_task_id

    return list(dict.fromkeys(map(valid_task_id, task_ids)))
