"""What the program remembers: tasks, their files and checkpoints, leases, and history.

`StateStore` answers questions about it and `AsyncStore` does so for asyncio. The state file
itself is data and is not kept in this folder.
"""

from __future__ import annotations

from state.errors import RecordMissing, StateError, StateTooNew, StateUnreadable
from state.lease import current_owner, describe_owner, is_dead
from state.records import (
    Checkpoint,
    Event,
    File,
    FileProgress,
    Lease,
    Phase,
    Segment,
    Task,
)
from state.store import PlannedObject, StateStore
from state.worker import AsyncStore

__all__ = [
    "AsyncStore",
    "Checkpoint",
    "Event",
    "File",
    "FileProgress",
    "Lease",
    "Phase",
    "PlannedObject",
    "RecordMissing",
    "Segment",
    "StateError",
    "StateStore",
    "StateTooNew",
    "StateUnreadable",
    "Task",
    "current_owner",
    "describe_owner",
    "is_dead",
]
