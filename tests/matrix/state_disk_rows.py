"""What the disk may do below SQLite, which calls the system itself: at each of its calls."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable

from matrix.causes import and_then, calls_fail, deed
from matrix.faulty import Call
from matrix.program import as_a_process
from matrix.row import EVERYTHING, NOTHING, STRAIGHT, Row
from matrix.story import Story

__all__ = ["ROWS"]

IS_TOLD = "it ends with a sentence that names the state, which stays whole; what came is kept"
GROWS = (Call.WRITE, Call.RESIZE)
SYNCS = (Call.SYNC, Call.DATASYNC, Call.SYNC_NAMES)
ITS_NAME = r"[Tt]he state .*state\.db"


def _at_each(
    fault: str,
    *calls: Call,
    code: int,
    lasts: bool = False,
    before: Callable[[Story], object] = lambda _: None,
    **facts: object,
) -> Row:
    return Row(
        fault=f"{fault}, {'from one of the calls on' if lasts else 'at each of the calls'}",
        cause=and_then(
            deed(before),
            calls_fail(*calls, code=code, below=lambda story: story.state.parent, lasts=lasts),
        ),
        act=as_a_process,
        at_each=True,
        **{
            "happens": IS_TOLD,
            "ends": 1,
            "may_go_on": "where SQLite can do without",
            "says": ITS_NAME,
            "again": EVERYTHING,
            "roads": STRAIGHT,
            **facts,
        },
    )


def _is_new(story: Story) -> None:
    shutil.rmtree(story.state.parent)


ROWS = [
    _at_each("ENOSPC on write or on truncating", *GROWS, code=errno.ENOSPC, lasts=True),
    _at_each("EIO on write", Call.WRITE, code=errno.EIO),
    _at_each("EIO on read", Call.READ, code=errno.EIO),
    _at_each("EIO on fsync", *SYNCS, code=errno.EIO),
    _at_each("EIO on truncating", Call.RESIZE, code=errno.EIO),
    _at_each(
        "EIO on unlink",
        Call.UNLINK,
        code=errno.EIO,
        happens="what was to be removed stays, and does no harm",
        ends=0,
        may_go_on="",
        again=NOTHING,
    ),
    _at_each("EIO on mapping into memory", Call.MAP, code=errno.EIO),
    _at_each("EIO on a look", Call.LOOK, code=errno.EIO),
    _at_each("EIO on a lock", Call.LOCK, code=errno.EIO),
    _at_each("EMFILE on open", Call.OPEN, code=errno.EMFILE),
    _at_each("EROFS on any change", *GROWS, Call.UNLINK, code=errno.EROFS, lasts=True),
    _at_each(
        "a new one: ENOSPC on any change",
        *(Call.MKDIR, *GROWS),
        code=errno.ENOSPC,
        lasts=True,
        before=_is_new,
    ),
    _at_each(
        "a new one: EIO on write, on fsync or on truncating",
        *(*GROWS, *SYNCS),
        code=errno.EIO,
        before=_is_new,
    ),
    _at_each("a new one: EMFILE on open", Call.OPEN, code=errno.EMFILE, before=_is_new),
]
