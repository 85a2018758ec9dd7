"""What the program remembers: tasks, their files and checkpoints, leases, and history.

`StateStore` answers questions about it and `AsyncStore` does so for asyncio. The state file
itself is data and is not kept in this folder.

All but the errors is loaded when it is first used: SQLAlchemy takes longer to import than `--help`
to answer, and who needs only a record or an error shall not wait for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from state.errors import RecordMissing, StateError, StateTooNew, StateUnreadable

if TYPE_CHECKING:
    from state.lease import current_owner, describe_owner, is_dead, is_held
    from state.look import look_at
    from state.records import (
        Checkpoint,
        Event,
        File,
        FileProgress,
        Lease,
        Notice,
        Phase,
        PlannedObject,
        Polled,
        Segment,
        ServiceRecord,
        Task,
        Wanted,
    )
    from state.services import is_alive
    from state.store import StateStore
    from state.wishes import AT_ONCE
    from state.worker import AsyncStore

__all__ = [
    "AT_ONCE",
    "AsyncStore",
    "Checkpoint",
    "Event",
    "File",
    "FileProgress",
    "Lease",
    "Notice",
    "Phase",
    "PlannedObject",
    "Polled",
    "RecordMissing",
    "Segment",
    "ServiceRecord",
    "StateError",
    "StateStore",
    "StateTooNew",
    "StateUnreadable",
    "Task",
    "Wanted",
    "current_owner",
    "describe_owner",
    "is_alive",
    "is_dead",
    "is_held",
    "look_at",
]

_HOMES = {
    "AT_ONCE": "state.wishes",
    "AsyncStore": "state.worker",
    "Checkpoint": "state.records",
    "Event": "state.records",
    "File": "state.records",
    "FileProgress": "state.records",
    "Lease": "state.records",
    "Notice": "state.records",
    "Phase": "state.records",
    "PlannedObject": "state.records",
    "Polled": "state.records",
    "Segment": "state.records",
    "ServiceRecord": "state.records",
    "StateStore": "state.store",
    "Task": "state.records",
    "Wanted": "state.records",
    "current_owner": "state.lease",
    "describe_owner": "state.lease",
    "is_alive": "state.services",
    "is_dead": "state.lease",
    "is_held": "state.lease",
    "look_at": "state.look",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
