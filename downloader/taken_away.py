"""Tasks that are published as far as the state knows, and whose result somebody has taken away."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from state import Task, Wanted

__all__ = ["taken_away"]


def taken_away(outcomes: Iterable[tuple[Task, Wanted]]) -> list[Task]:
    """Return those of the wanted tasks whose published result is gone, and may be begun again.

    Where not even the destination is there, as on another host, that cannot be told.
    """
    published = (task for task, wanted in outcomes if wanted is Wanted.PUBLISHED)
    gone = (task for task in published if not os.path.lexists(task.place))
    return [task for task in gone if Path(task.dest).is_dir()]
