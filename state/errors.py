"""What can be wrong with the state itself; `exit_code` is the program's."""

from __future__ import annotations

__all__ = ["RecordMissing", "StateError", "StateTooNew", "StateUnreadable"]


class StateError(Exception):
    """The state cannot be used as it was meant to be; it is left exactly as it is."""

    exit_code = 1
    retryable = False


class StateUnreadable(StateError):
    """The file is no database, is damaged, or cannot be opened."""


class StateTooNew(StateError):
    """A newer version of the program wrote this state."""


class RecordMissing(StateError):
    """The task or file is no longer in the state: somebody removed it meanwhile."""
