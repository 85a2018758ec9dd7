"""The platform's tasks: which state each poll finds, by count of polls or by clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

__all__ = ["FakeTask"]

FINISHED = {"SUCCESS", "FAILURE", "REVOKED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeTask:
    """A task that goes through `states` and stays in the last; `result` is made for each answer.

    Each state lasts for so many polls, or, where `seconds_per_state` is given, for so many
    seconds from `added_at` on.
    """

    task_id: str
    states: Sequence[str]
    result: Callable[[str], object]  # from the state to what the answer's `result` is
    polls_per_state: int = 1
    seconds_per_state: float | None = None
    added_at: datetime

    def state(self, *, polls: int, now: datetime) -> str:
        """Return the state that a poll finds, when `polls` polls were made before it."""
        if self.seconds_per_state is None:
            passed = polls // self.polls_per_state
        else:
            passed = int((now - self.added_at).total_seconds() / self.seconds_per_state)
        return self.states[min(max(passed, 0), len(self.states) - 1)]

    def answer(self, *, polls: int, now: datetime) -> dict[str, object]:
        """Return the data of the answer, in the order of the platform's document."""
        state = self.state(polls=polls, now=now)
        return {"status": state, "result": self.result(state) if state in FINISHED else None}
