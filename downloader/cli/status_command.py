"""`status`: what is known of tasks, and one task's history."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from downloader.cli import known, options, status_views
from downloader.cli.running import told
from downloader.cli.status_screens import Page, Screen, choose_screen

if TYPE_CHECKING:
    from state import Phase, StateStore, Task

__all__ = ["status"]

TaskIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK_ID", help="Show these with their history."),
]
All = Annotated[bool, typer.Option("--all", help="Every task, however many there are.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show it anew every 2 s, until Ctrl-C.")]

SHOWN = 50  # tasks, if nobody wants all
SHOWN_ENDED = 20  # of them, that have ended
WATCH_SECONDS = 2.0
INTERRUPTED = 130


def status(
    task_ids: TaskIds = None,
    *,
    all: All = False,  # noqa: A002 - the flag's name
    watch: Watch = False,
    json: options.Json = False,
    state: options.State = None,
) -> None:
    """Show the tasks that this state knows; with TASK_ID, that task's files and history.

    Without --all, of many tasks those that are at work or will be next, and the last that ended;
    with --json, always all.
    """
    with told(), contextlib.ExitStack() as stack:
        from downloader.config import load_settings

        wanted = task_ids or []
        location = load_settings(options.given(state=state)).state
        screen = choose_screen(is_redrawn=watch and not json)
        if watch:
            stack.enter_context(_ending_quietly(screen))
        store = None
        while True:
            if store is None and (wanted or known.is_there(location)):
                store = stack.enter_context(known.opened_if_there(location, wanted))
            _show(store, wanted, screen, all_tasks=all, json=json)
            if not watch:
                return
            time.sleep(WATCH_SECONDS)


@contextlib.contextmanager
def _ending_quietly(screen: Screen) -> Iterator[None]:
    """Let Ctrl-C be the end that was announced, and no error."""
    try:
        yield
    except KeyboardInterrupt:
        screen.close()
        raise typer.Exit(INTERRUPTED) from None


def _show(
    store: StateStore | None,
    task_ids: Sequence[str],
    screen: Screen,
    *,
    all_tasks: bool,
    json: bool,
) -> None:
    if store is None:
        screen.show(Page(notes=["No task is known yet."]))
    elif json:
        _print_json(store, task_ids)
    elif task_ids:
        screen.show(_histories(store, task_ids))
    else:
        screen.show(_table(store, all_tasks=all_tasks, width=screen.width))


def _table(store: StateStore, *, all_tasks: bool, width: int | None) -> Page:
    from downloader.logs import printable
    from state.store import utc_now

    now = utc_now()
    head = [*status_views.service_lines(store.services.list(), now=now)]
    tasks = store.find_tasks() if all_tasks else [*_those_that_matter(store)]
    if not tasks:
        return Page(head=head, notes=["No task is known yet."])
    reasons = [printable(f"{task.task_id}: {task.message}") for task in tasks if task.message]
    summary = status_views.summary(store.agenda.counts(), shown=len(tasks))
    return Page(
        head=head,
        body=status_views.table(store, tasks, now=now, width=width),
        notes=[*reasons, summary],
    )


def _those_that_matter(store: StateStore) -> Iterator[Task]:
    """Yield what is at work, what will be next, and what ended last."""
    left = SHOWN - SHOWN_ENDED
    for phase in _phases(is_final=False):
        tasks = store.find_tasks(phase=phase, limit=left)
        left -= len(tasks)
        yield from tasks
    ended = [
        task
        for phase in _phases(is_final=True)
        for task in store.find_tasks(phase=phase, limit=left + SHOWN_ENDED, newest=True)
    ]
    newest = sorted(ended, key=lambda task: task.updated_at, reverse=True)
    yield from reversed(newest[: left + SHOWN_ENDED])


def _phases(*, is_final: bool) -> list[Phase]:
    from state import Phase

    at_work_first = (
        *(Phase.TRANSFERRING, Phase.VERIFYING, Phase.RETRYING, Phase.PAUSED, Phase.WAITING),
        *(Phase.FAILED, Phase.CANCELLED, Phase.PUBLISHED),
    )
    return [phase for phase in at_work_first if phase.is_final is is_final]


def _histories(store: StateStore, task_ids: Sequence[str]) -> Page:
    from state.store import utc_now

    now, tasks = utc_now(), known.known_tasks(store, task_ids)
    return Page(
        body=[line for task in tasks for line in status_views.history(store, task, now=now)]
    )


def _print_json(store: StateStore, task_ids: Sequence[str]) -> None:
    import json as json_text

    tasks = known.known_tasks(store, task_ids) if task_ids else store.find_tasks()
    for facts in status_views.json_facts(store, tasks):
        typer.echo(json_text.dumps(facts))
