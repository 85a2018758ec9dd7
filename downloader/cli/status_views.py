"""What `status` shows: a table of tasks, one task's history, or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from state import Event, FileProgress, Phase, ServiceRecord, StateStore, Task

__all__ = ["history", "json_facts", "service_lines", "summary", "table"]

COLUMNS = ("TASK", "PHASE", "PLATFORM", "FILES", "ON DISK", "UPDATED (UTC)", "NEXT", "PLACE")
# Where there is no room for all of them: the place is DEST/TASK in most rows.
LEFT_OUT_FIRST = ("UPDATED (UTC)", "PLACE", "FILES", "PLATFORM", "NEXT", "ON DISK")
GAP = "  "
ASKED_TOGETHER = 500  # tasks
MIN_PLACE = 24  # cells in which a path still tells something; the middle of a long one is left out


def table(
    store: StateStore, tasks: Sequence[Task], *, now: datetime, width: int | None = None
) -> list[str]:
    """Return the lines of a table with a row for each task, as wide as is wished."""
    files = store.progress_of([task.id for task in tasks])
    rows = [COLUMNS, *(_row(task, files[task.id], now) for task in tasks)]
    return _aligned(rows if width is None else _narrowed(rows, width))


def _row(task: Task, files: Sequence[FileProgress], now: datetime) -> tuple[str, ...]:
    from downloader.logs import printable

    return (
        printable(task.task_id),
        _phase(task),
        printable(task.status or "-"),
        str(len(files) or "-"),
        _on_disk(task, files),
        f"{task.updated_at:%Y-%m-%d %H:%M:%S}",
        _next(task, now),
        printable(str(task.place)),
    )


def summary(counts: Mapping[Phase, int], *, shown: int) -> str:
    """Return how many tasks there are of each phase, in a line."""
    from downloader.units import counted

    total = sum(counts.values())
    parts = [f"{count:,} {phase.value}" for phase, count in sorted(counts.items())]
    hidden = f" ({total - shown:,} not shown; --all shows them)" if total > shown else ""
    return f"{counted(total, 'task')}: {', '.join(parts)}{hidden}"


def service_lines(services: Sequence[ServiceRecord], *, now: datetime) -> Iterator[str]:
    """Yield who is at work with this state, and what keeps them from working."""
    from downloader.logs import printable
    from state import describe_owner, is_alive

    alive = [service for service in services if is_alive(service, now=now)]
    for service in alive:
        since = f"{service.started_at:%Y-%m-%d %H:%M:%S}"
        yield f"Service: {describe_owner(service.owner)}, since {since} UTC"
        if service.condition:
            yield f"  {printable(service.condition)}"
    if services and not alive:
        seen = f"{services[0].seen_at:%Y-%m-%d %H:%M:%S}"
        yield f"Service: none is at work; the last one was seen at {seen} UTC"


def history(store: StateStore, task: Task, *, now: datetime) -> Iterator[str]:
    """Yield what there is to tell of one task."""
    from downloader.logs import printable

    files = store.progress(task.id)
    yield f"Task      {printable(task.task_id)}"
    reason = f": {printable(task.message)}" if task.message else ""
    yield f"Phase     {_phase(task)}{reason}"
    asked = "once" if task.polls == 1 else f"{task.polls} times"
    told = f"{printable(task.status)} (asked {asked})" if task.status else "not asked"
    yield f"Platform  {told}"
    if task.is_watched:
        yield f"Next      {_next(task, now)}{_tries(task)}"
    yield f"Place     {printable(str(task.place))}"
    yield f"On disk   {_on_disk(task, files)}"
    for file in files:
        yield f"  {_share(file):>22}  {printable(file.name)}"
    yield "History (UTC)"
    for event in store.list_events(task.id):
        line = printable(f"{event.kind:<12} {event.message}")
        yield f"  {event.at:%Y-%m-%d %H:%M:%S}  {line}"


def json_facts(store: StateStore, tasks: Sequence[Task]) -> Iterator[dict[str, object]]:
    """Yield everything that is known of tasks, as JSON values; they may be many."""
    for first in range(0, len(tasks), ASKED_TOGETHER):
        some = tasks[first : first + ASKED_TOGETHER]
        numbers = [task.id for task in some]
        files, events = store.progress_of(numbers), store.histories_of(numbers)
        for task in some:
            yield _json_facts(task, files[task.id], events[task.id])


def _json_facts(
    task: Task, files: Sequence[FileProgress], events: Sequence[Event]
) -> dict[str, object]:
    return {
        "task_id": task.task_id,
        "phase": task.phase.value,
        "status": task.status,
        "polls": task.polls,
        "path": str(task.place),
        "created_at": task.created_at.isoformat(),
        "updated_at": task.updated_at.isoformat(),
        "published_at": _iso(task.published_at),
        "watched_since": _iso(task.watched_since),
        "due_at": _iso(task.due_at),
        "tries": task.tries,
        "message": task.message,
        "exit_code": task.exit_code,
        "files": [
            {"name": file.name, "size": file.size, "safe_bytes": file.safe_bytes} for file in files
        ],
        "events": [_event(event) for event in events],
    }


def _event(event: Event) -> dict[str, object]:
    return {
        "at": event.at.isoformat(),
        "kind": event.kind,
        "message": event.message,
        "facts": event.facts,
    }


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _phase(task: Task) -> str:
    """Return the phase; work that nobody alive holds is at rest until the next fetch."""
    from state import Phase, is_held

    is_unfinished = task.phase in (Phase.TRANSFERRING, Phase.VERIFYING)
    return "interrupted" if is_unfinished and not is_held(task) else task.phase.value


def _next(task: Task, now: datetime) -> str:
    """Return when the service looks at the task next."""
    from downloader.screens.text import time_left
    from state import is_held

    if task.due_at is None:
        return "-"
    if is_held(task):
        return "now"
    seconds = (task.due_at - now).total_seconds()
    return "at once" if seconds <= 0 else f"in {time_left(max(1, seconds))}"


def _tries(task: Task) -> str:
    from downloader.units import counted

    return f", after {counted(task.tries, 'failure')} in a row" if task.tries else ""


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
    from downloader.screens.text import cells

    widths = _widths(rows)
    return [
        GAP.join(
            cell + " " * (width - cells(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _narrowed(rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Return the rows without the columns for which there is no room."""
    from downloader.screens.text import shortened

    kept, place, widths = [*COLUMNS], COLUMNS[-1], dict(zip(COLUMNS, _widths(rows), strict=True))
    widest, widths[place] = widths[place], min(widths[place], MIN_PLACE)
    for name in LEFT_OUT_FIRST:
        if _width_of(kept, widths) <= width:
            break
        kept.remove(name)
    widths[place] = min(widest, widths[place] + max(0, width - _width_of(kept, widths)))
    # Of an id, both ends tell it from its neighbours'; a line that wraps would tear the table.
    widths[kept[0]] -= max(0, _width_of(kept, widths) - width)
    return [
        [
            shortened(cell, max(1, widths[name]))
            for name, cell in zip(COLUMNS, row, strict=True)
            if name in kept
        ]
        for row in rows
    ]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    from downloader.screens.text import cells

    return [max(map(cells, column)) for column in zip(*rows, strict=True)]


def _width_of(columns: Sequence[str], widths: Mapping[str, int]) -> int:
    return sum(widths[name] for name in columns) + len(GAP) * (len(columns) - 1)
