"""What the commands look up in the state: the tasks that were named, and where results go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from downloader.cli.id_list import checked_ids
from downloader.errors import DownloaderError, InvalidSettings, InvalidTaskId

if TYPE_CHECKING:
    from state import ServiceRecord, StateStore, Task

__all__ = [
    "absolute",
    "alive",
    "is_id",
    "is_there",
    "known_tasks",
    "opened",
    "opened_if_there",
]


@contextmanager
def opened(location: str) -> Iterator[StateStore]:
    """Give the state, made if it is not there; what damage has put out of sight is in sight again.

    Raises:
        StateError: it cannot be used.
    """
    from state import StateError, StateStore

    with StateStore.open(location) as store:
        # Where nothing can be written, much can be shown all the same.
        with contextlib.suppress(StateError):
            store.put_right()
        yield store


@contextmanager
def opened_if_there(location: str, task_ids: Sequence[str] = ()) -> Iterator[StateStore]:
    """Give a state that is there; asking for tasks makes no file.

    Raises:
        DownloaderError: there is none.
        StateError: it cannot be used.
    """
    if not is_there(location):
        checked_ids(task_ids)
        who = f"{task_ids[0]} is not" if task_ids else "No task is"
        raise DownloaderError(f"{who} known: there is no state at {location} yet")
    with opened(location) as store:
        yield store


def is_there(location: str) -> bool:
    """Tell whether there is a state at all, as far as that can be told without opening it."""
    return "://" in location or Path(location).expanduser().exists()


def known_tasks(store: StateStore, task_ids: Iterable[str], dest: str | None = None) -> list[Task]:
    """Return the tasks with these ids, all of which must be known, in any or in one destination.

    An id that damage has made none is as good as any other, as `status` shows it.

    Raises:
        InvalidTaskId: one of them is none.
        DownloaderError: one of them is not known.
    """
    found: list[Task] = []
    for task_id in dict.fromkeys(task_ids):
        tasks = store.find_tasks(task_id, dest) or _shown_as(task_id, store, dest)
        if not tasks:
            where = "" if dest is None else f" with the destination {dest}"
            raise DownloaderError(
                f"{task_id} is not known to the state {store.location}{where}; "
                "`bge-downloader status` lists what is"
            )
        found += tasks
    return found


def _shown_as(task_id: str, store: StateStore, dest: str | None) -> list[Task]:
    """Return the tasks whose id is none, and is shown so; an id that is one is just not there."""
    from downloader.logs import printable

    if is_id(task_id):
        return []
    shown = [task for task in store.find_tasks(dest=dest) if printable(task.task_id) == task_id]
    if not shown:
        checked_ids([task_id])
    return shown


def is_id(text: str) -> bool:
    """Tell whether a task can have that id; damage can have put another one into the state."""
    try:
        checked_ids([text])
    except InvalidTaskId:
        return False
    return True


def absolute(dest: Path) -> str:
    """Return a destination as the state keeps it.

    Raises:
        InvalidSettings: it is below a working directory that no state can keep.
    """
    place = str(dest.expanduser().absolute())
    try:
        place.encode()
    except UnicodeEncodeError:
        raise InvalidSettings(
            f"The destination {place} is no UTF-8; choose another --dest"
        ) from None
    return place


def alive(services: Iterable[ServiceRecord]) -> list[ServiceRecord]:
    """Return those that are at work now, as far as can be told from here."""
    from state import is_alive
    from state.store import utc_now

    now = utc_now()
    return [service for service in services if is_alive(service, now=now)]
