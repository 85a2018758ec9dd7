"""`add`, `retry`, `cancel` and `remove`: tasks into the service's hands, and out of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from downloader.cli import known, options
from downloader.cli.id_list import wanted_ids
from downloader.cli.running import told
from downloader.errors import DestinationTaken, InvalidArgument

if TYPE_CHECKING:
    from state import StateStore, Task, Wanted

__all__ = ["add", "cancel", "remove", "retry"]

# In one transaction: whoever else writes to the state waits for its end, but not for long.
CHANGED_AT_ONCE = 5000
STOPPING_SECONDS = 20.0  # that whoever works on a task may take to hear that it was cancelled
LOOK_SECONDS = 0.2

AddedIds = Annotated[
    list[str] | None, typer.Argument(metavar="TASK_ID", help="Ids of tasks to be watched.")
]
TaskIds = Annotated[list[str], typer.Argument(metavar="TASK_ID", help="Ids of tasks.")]
SomeIds = Annotated[list[str] | None, typer.Argument(metavar="TASK_ID", help="Ids of tasks.")]
IdsFile = Annotated[
    str | None,
    typer.Option(
        "--file", metavar="FILE", help="Also the ids in this file, a line each; - is stdin."
    ),
]
NewDest = Annotated[
    str | None,
    typer.Option(
        "--dest", metavar="DIR", help="Where results go: DIR/TASK_ID. [default: the service's]"
    ),
]
OldDest = Annotated[
    str | None, typer.Option("--dest", metavar="DIR", help="Only tasks whose results go to DIR.")
]
EveryFailed = Annotated[bool, typer.Option("--failed", help="All tasks that have failed.")]
WithFiles = Annotated[
    bool, typer.Option("--files", help="Also delete what was received of unfinished tasks.")
]

Outcome = tuple["Task", "Wanted"]
T = TypeVar("T")


def add(
    task_ids: AddedIds = None,
    *,
    file: IdsFile = None,
    dest: NewDest = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    state: options.State = None,
) -> None:
    """Let the service watch tasks: it fetches each as soon as it is ready.

    Results go where the service puts its own, unless the settings say otherwise. A task that has
    failed or was cancelled is begun again, and so is one whose published result is gone; one that
    is published or watched already is left alone.
    """
    with told():
        from downloader.config import load_settings

        wanted = wanted_ids(task_ids or [], file)
        flags = options.given(dest=dest, state=state)
        with known.opened(load_settings(flags).state) as store:
            place = _destination(store, flags)
            outcomes = [*_watched(store, wanted, place)]
            _tell_outcomes(outcomes, json=json, quiet=quiet)
            _hint_if_alone(store, outcomes, quiet=quiet)


def retry(
    task_ids: SomeIds = None,
    *,
    failed: EveryFailed = False,
    dest: OldDest = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    state: options.State = None,
) -> None:
    """Let the service begin tasks again at once, however they ended; what was received is kept."""
    with told():
        if not task_ids and not failed:
            raise InvalidArgument("Name the tasks to try again, or say --failed")
        with _named(task_ids or [], dest=dest, state=state) as (store, tasks, place):
            wanted = [*tasks, *(_failed(store, place) if failed else ())]
            outcomes = [*_tried_again(store, _once(wanted))]
            _tell_outcomes(outcomes, json=json, quiet=quiet)
            if not outcomes and not quiet:
                typer.echo("No task has failed.", err=True)
            _hint_if_alone(store, outcomes, quiet=quiet)


def cancel(
    task_ids: TaskIds,
    *,
    dest: OldDest = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    state: options.State = None,
) -> None:
    """Let nobody work on tasks any more; what was received is kept, and `retry` goes on there.

    Whoever works on one now stops within seconds.
    """
    with told(), _named(task_ids, dest=dest, state=state) as (store, tasks, _):
        outcomes = [(task, store.agenda.cancel(task.id)) for task in tasks]
        _tell_outcomes(outcomes, json=json, quiet=quiet)


def remove(
    task_ids: TaskIds,
    *,
    files: WithFiles = False,
    dest: OldDest = None,
    quiet: options.Quiet = False,
    state: options.State = None,
) -> None:
    """Forget tasks and their histories; published results always stay where they are.

    What was received of an unfinished task stays on disk too, unless --files is given; fetching
    the task again begins anew either way.
    """
    with told(), _named(task_ids, dest=dest, state=state) as (store, tasks, _):
        for task in tasks:
            store.agenda.cancel(task.id)
            if files and known.is_id(task.task_id):  # else it may lead anywhere
                _delete_partial(task, quiet=quiet)
            store.forget_task(task.id)
            if not quiet:
                _say(task, f"removed{_what_stays(task)}")


# Which tasks, and where.


@contextmanager
def _named(
    task_ids: Sequence[str], *, dest: str | None, state: str | None
) -> Iterator[tuple[StateStore, list[Task], str | None]]:
    """Give the state, the tasks that were named, and the one destination that is meant, if any.

    All tasks must be known before anything is done.
    """
    from downloader.config import load_settings

    settings = load_settings(options.given(dest=dest, state=state))
    place = None if dest is None else known.absolute(settings.dest)
    with known.opened_if_there(settings.state, task_ids) as store:
        yield store, known.known_tasks(store, task_ids, place), place


def _failed(store: StateStore, dest: str | None) -> list[Task]:
    from state import Phase

    return store.find_tasks(dest=dest, phase=Phase.FAILED)


def _once(tasks: Iterable[Task]) -> list[Task]:
    return list({task.id: task for task in tasks}.values())


def _destination(store: StateStore, flags: Mapping[str, object]) -> str:
    """Return where results go: where it was said, or where the service of this state puts them."""
    from downloader.config import load_settings

    services = store.services.list()
    told = [service.dest for service in [*known.alive(services), *services]]
    preferred = {"dest": told[0]} if told else {}
    return known.absolute(load_settings(flags, defaults=preferred).dest)


# What is done.


def _watched(store: StateStore, task_ids: Sequence[str], dest: str) -> Iterator[Outcome]:
    for some in _some_at_a_time(task_ids):
        yield from _begun_if_gone(store, store.agenda.watch(some, dest))


def _tried_again(store: StateStore, tasks: Sequence[Task]) -> Iterator[Outcome]:
    for some in _some_at_a_time(tasks):
        yield from zip(some, store.agenda.retry_all([task.id for task in some]), strict=True)


def _some_at_a_time(every: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(every), CHANGED_AT_ONCE):
        yield every[first : first + CHANGED_AT_ONCE]


def _begun_if_gone(store: StateStore, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Begin published tasks again whose results were taken away."""
    from downloader.taken_away import taken_away

    if not (gone := [task.id for task in taken_away(outcomes)]):
        return [*outcomes]
    begun = dict(zip(gone, store.agenda.retry_all(gone), strict=True))
    return [(task, begun.get(task.id, wanted)) for task, wanted in outcomes]


def _delete_partial(task: Task, *, quiet: bool) -> None:
    """Delete what was received, once whoever worked there has stopped."""
    from downloader.publish import ResultDirectory

    place = ResultDirectory(Path(task.dest), task.task_id)
    give_up_at = time.monotonic() + STOPPING_SECONDS
    for look in count():
        try:
            place.remove_partial()
        except DestinationTaken:
            if time.monotonic() > give_up_at:
                raise DestinationTaken(
                    f"{task.task_id} is cancelled, but whoever works in {place.partial} has not "
                    "stopped, so nothing was deleted; run the same command again"
                ) from None
        else:
            return
        if look == 0 and not quiet:
            _say(task, "waiting until nobody works on it")
        time.sleep(LOOK_SECONDS)


# What is told.


def _tell_outcomes(outcomes: Iterable[Outcome], *, json: bool, quiet: bool) -> None:
    import json as json_text

    for task, outcome in outcomes:
        if json:
            facts = {"task_id": task.task_id, "outcome": outcome.value, "path": str(task.place)}
            typer.echo(json_text.dumps(facts))
        elif not quiet:
            _say(task, _sentence(task, outcome))


def _say(task: Task, sentence: str) -> None:
    from downloader.logs import printable

    typer.echo(printable(f"{task.task_id}: {sentence}"), err=True)


def _sentence(task: Task, outcome: Wanted) -> str:
    from state import Wanted

    return {
        Wanted.ADDED: f"will be fetched into {task.place}",
        Wanted.WATCHED: "is watched already",
        Wanted.PUBLISHED: f"is published already, in {task.place}",
        Wanted.AT_WORK: "is being worked on right now",
        Wanted.CANCELLED: "cancelled; what was received is kept",
        Wanted.ENDED: f"had ended already ({task.phase.value})",
    }[outcome]


def _hint_if_alone(store: StateStore, outcomes: Sequence[Outcome], *, quiet: bool) -> None:
    """Say that nobody will begin what is watched now, if so."""
    from state import Wanted

    is_any_watched = any(one in (Wanted.ADDED, Wanted.WATCHED) for _, one in outcomes)
    if not quiet and is_any_watched and not known.alive(store.services.list()):
        typer.echo(
            f"No service is at work with the state {store.location}; "
            "`bge-downloader run`, or systemd, starts one.",
            err=True,
        )


def _what_stays(task: Task) -> str:
    from downloader.publish import ResultDirectory

    partial = ResultDirectory(Path(task.dest), task.task_id).partial
    return f"; what was received stays in {partial}" if partial.is_dir() else ""
