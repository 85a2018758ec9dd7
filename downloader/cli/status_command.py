"""`status`: what is known of tasks, and one task's history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from downloader.cli import options
from downloader.cli.running import told
from downloader.errors import DownloaderError

if TYPE_CHECKING:
    from state import Event, FileProgress, StateStore, Task

__all__ = ["status"]

TaskIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="TASK_ID", help="Show these with their history; all if none."),
]
COLUMNS = ("TASK", "PHASE", "PLATFORM", "FILES", "ON DISK", "UPDATED (UTC)", "PLACE")


def status(
    task_ids: TaskIds = None,
    *,
    json: options.Json = False,
    state: options.State = None,
) -> None:
    """Show the tasks that this state knows; with TASK_ID, that task's files and history."""
    with told():
        from downloader.config import load_settings
        from state import StateStore

        location = load_settings(options.given(state=state)).state
        if "://" not in location and not Path(location).expanduser().exists():
            _show_nothing(location, task_ids or [])
            return
        with StateStore.open(location) as store:
            found = _found(store, task_ids or [])
            if json:
                _print_json(store, found)
            elif task_ids:
                for task in found:
                    _print_history(store, task)
            else:
                _print_table(store, found)


def _show_nothing(location: str, task_ids: Sequence[str]) -> None:
    """Say that nothing is known yet; asking makes no state file."""
    if task_ids:
        raise DownloaderError(f"{task_ids[0]} is not known: there is no state at {location} yet")
    typer.echo("No task is known yet.", err=True)


def _found(store: StateStore, task_ids: Sequence[str]) -> list[Task]:
    if not task_ids:
        return store.find_tasks()
    found = []
    for task_id in task_ids:
        tasks = store.find_tasks(task_id)
        if not tasks:
            raise DownloaderError(
                f"{task_id} is not known to the state {store.location}; "
                "`bge-downloader status` lists what is"
            )
        found += tasks
    return found


def _print_table(store: StateStore, tasks: Sequence[Task]) -> None:
    from downloader.logs import printable

    if not tasks:
        typer.echo("No task is known yet.", err=True)
        return
    rows = [COLUMNS]
    for task in tasks:
        files = store.progress(task.id)
        updated = f"{task.updated_at:%Y-%m-%d %H:%M:%S}"
        place = printable(str(Path(task.dest) / task.task_id))
        rows.append(
            (
                task.task_id,
                _phase(task),
                task.status or "-",
                str(len(files) or "-"),
                _on_disk(task, files),
                updated,
                place,
            )
        )
    for line in _aligned(rows):
        typer.echo(line)
    for task in tasks:
        if task.message:
            typer.echo(f"{task.task_id}: {printable(task.message)}", err=True)


def _print_history(store: StateStore, task: Task) -> None:
    from downloader.logs import printable

    files = store.progress(task.id)
    typer.echo(f"Task      {task.task_id}")
    reason = f": {printable(task.message)}" if task.message else ""
    typer.echo(f"Phase     {_phase(task)}{reason}")
    asked = "once" if task.polls == 1 else f"{task.polls} times"
    typer.echo(f"Platform  {task.status} (asked {asked})" if task.status else "Platform  not asked")
    typer.echo(f"Place     {printable(str(Path(task.dest) / task.task_id))}")
    typer.echo(f"On disk   {_on_disk(task, files)}")
    for file in files:
        typer.echo(f"  {_share(file):>22}  {printable(file.name)}")
    typer.echo("History (UTC)")
    for event in store.list_events(task.id):
        typer.echo(f"  {event.at:%Y-%m-%d %H:%M:%S}  {event.kind:<12} {printable(event.message)}")


def _print_json(store: StateStore, tasks: Iterable[Task]) -> None:
    import json as json_text

    for task in tasks:
        facts = {
            "task_id": task.task_id,
            "phase": task.phase.value,
            "status": task.status,
            "polls": task.polls,
            "path": str(Path(task.dest) / task.task_id),
            "created_at": task.created_at.isoformat(),
            "updated_at": task.updated_at.isoformat(),
            "published_at": task.published_at.isoformat() if task.published_at else None,
            "message": task.message,
            "exit_code": task.exit_code,
            "files": [
                {"name": file.name, "size": file.size, "safe_bytes": file.safe_bytes}
                for file in store.progress(task.id)
            ],
            "events": [_event(event) for event in store.list_events(task.id)],
        }
        typer.echo(json_text.dumps(facts, ensure_ascii=False))


def _event(event: Event) -> dict[str, object]:
    return {
        "at": event.at.isoformat(),
        "kind": event.kind,
        "message": event.message,
        "facts": event.facts,
    }


def _phase(task: Task) -> str:
    """Return the phase; work that nobody alive holds is at rest until the next fetch."""
    from state import Phase, is_held

    is_unfinished = task.phase in (Phase.TRANSFERRING, Phase.VERIFYING)
    return "interrupted" if is_unfinished and not is_held(task) else task.phase.value


def _on_disk(task: Task, files: Sequence[FileProgress]) -> str:
    from downloader.units import format_bytes

    if not files:
        return "-"
    safe = sum(file.safe_bytes for file in files)
    sizes = [file.size for file in files if file.size is not None]
    if len(sizes) < len(files) or task.published_at:
        return format_bytes(safe)
    return f"{format_bytes(safe)} of {format_bytes(sum(sizes))}"


def _share(file: FileProgress) -> str:
    from downloader.units import format_bytes

    if file.size is None:
        return "-"
    if file.safe_bytes == file.size:
        return format_bytes(file.size)
    return f"{format_bytes(file.safe_bytes)} of {format_bytes(file.size)}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
