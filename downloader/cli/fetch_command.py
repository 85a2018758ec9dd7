"""`fetch`: bring the results of tasks home."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from downloader.cli import known, options
from downloader.cli.running import PROGRAM, complain, exit_code_of, interruption_is_told, run, told
from downloader.errors import DownloaderError
from state.errors import StateError

if TYPE_CHECKING:
    from downloader.app import App
    from downloader.config import Settings
    from downloader.fetch import FetchReport
    from downloader.screens import Screen
    from state import FileProgress

__all__ = ["fetch"]

TaskIds = Annotated[
    list[str],
    typer.Argument(metavar="TASK_ID", help="Ids of tasks, as the platform gave them."),
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Ask once; exit 4 if there is no result yet.")
]


def fetch(
    task_ids: TaskIds,
    *,
    dest: options.Dest = None,
    timeout: options.Deadline = None,
    no_wait: NoWait = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    verify: options.VerifyLevel = None,
    checksums: options.Checksums = None,
    limit_rate: options.LimitRate = None,
    connections: options.Connections = None,
    parallel_files: options.ParallelFiles = None,
    segments: options.Segments = None,
    segment_size: options.SegmentSize = None,
    buffer_memory: options.BufferMemory = None,
    min_free_space: options.MinFreeSpace = None,
    allowed_hosts: options.AllowedHosts = None,
    endpoint: options.Endpoint = None,
    state: options.State = None,
    max_retries: options.MaxRetries = None,
    poll_interval: options.PollInterval = None,
    poll_max_interval: options.PollMaxInterval = None,
    retry_max_delay: options.RetryMaxDelay = None,
    connect_timeout: options.ConnectTimeout = None,
    stall_timeout: options.StallTimeout = None,
) -> None:
    """Wait for tasks and bring their files to disk: verified, then published as DEST/TASK_ID.

    Interrupted at any point, the same command goes on where it stopped; a task that is published
    already moves no bytes. Credentials come from BGE_APP_KEY and BGE_APP_SECRET or a settings
    file. The path of each published result is printed on stdout.
    """
    flags = options.given(
        dest=dest,
        poll_deadline=timeout,
        verify=verify,
        checksums=checksums,
        limit_rate=limit_rate,
        connections=connections,
        parallel_files=parallel_files,
        segments=segments,
        segment_size=segment_size,
        buffer_memory=buffer_memory,
        min_free_space=min_free_space,
        allowed_hosts=allowed_hosts,
        endpoint=endpoint,
        state=state,
        max_retries=max_retries,
        poll_interval=poll_interval,
        poll_max_interval=poll_max_interval,
        retry_max_delay=retry_max_delay,
        connect_timeout=connect_timeout,
        stall_timeout=stall_timeout,
    )
    with told():
        settings = _prepared(task_ids, flags, verbose=verbose)
        exit_code = run(
            _fetch_all(
                list(dict.fromkeys(task_ids)),
                settings,
                wait=not no_wait,
                json=json,
                quiet=quiet,
                verbose=verbose,
            )
        )
        raise typer.Exit(exit_code)


def _prepared(task_ids: Sequence[str], flags: dict[str, object], *, verbose: bool) -> Settings:
    """Check all that can be checked before anything is made."""
    from downloader.config import load_settings
    from downloader.logs import set_up_logging
    from downloader.task_result import valid_task_id

    for task_id in task_ids:
        valid_task_id(task_id)
    set_up_logging(verbose=verbose)
    settings = load_settings(flags)
    known.absolute(settings.dest)
    settings.credentials()
    return settings


async def _fetch_all(
    task_ids: Sequence[str],
    settings: Settings,
    *,
    wait: bool,
    json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Fetch tasks side by side; return the exit code of the first that failed, in their order."""
    import asyncio

    from downloader.app import open_app
    from downloader.logs import set_up_logging
    from downloader.screens import choose_screen

    screen = choose_screen(quiet=quiet, json=json, stderr=sys.stderr, stdout=sys.stdout)
    if not quiet:
        set_up_logging(verbose=verbose, say=screen.say)
    with screen:
        async with open_app(settings, wait=wait) as app:
            teller = _Teller(screen, json=json, quiet=quiet, several=len(task_ids) > 1)
            jobs = [_fetch_one(app, task_id, screen, teller) for task_id in task_ids]
            try:
                exit_codes = await _side_by_side(jobs)
            except asyncio.CancelledError as interruption:
                screen.close()
                await teller.interrupted(app, task_ids, exit_code=exit_code_of(interruption))
                raise
    teller.has_told()
    return next((code for code in exit_codes if code), 0)


async def _side_by_side(jobs: Iterable[Coroutine[object, object, int]]) -> list[int]:
    """Return what the jobs return; once cancelled, wait until every one has saved its last bytes.

    `asyncio.gather` would return when the first of them has.
    """
    import asyncio

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(job) for job in jobs]
    return [one.result() for one in running]


async def _fetch_one(app: App, task_id: str, screen: Screen, teller: _Teller) -> int:
    try:
        report = await app.fetch(task_id, reporter=screen.reporter(task_id))
    except (DownloaderError, StateError) as error:
        teller.failed(task_id, error)
        return error.exit_code
    teller.published(report)
    return 0


class _Teller:
    """Says how each task ended: the result on stdout, a sentence for people on stderr."""

    def __init__(self, screen: Screen, *, json: bool, quiet: bool, several: bool) -> None:
        self._screen = screen
        self._json = json
        self._quiet = quiet
        self._several = several
        self._ended: set[str] = set()
        self._unwritten: OSError | None = None

    def published(self, report: FetchReport) -> None:
        self._ended.add(report.task_id)
        if not self._quiet:
            prefix = f"{report.task_id}: " if self._several else ""
            self._screen.say(prefix + _summary(report))
        if self._json:
            self._print_json({"event": "published", **report.facts()})
        else:
            self._print(str(report.path))

    def failed(self, task_id: str, error: DownloaderError | StateError) -> None:
        self._ended.add(task_id)
        if self._json:
            facts = {
                "event": "failed",
                "task_id": task_id,
                "error": type(error).__name__,
                "message": str(error),
                "exit_code": error.exit_code,
            }
            self._print_json(facts)
        prefix = f"{task_id}: " if self._several else ""
        with self._screen.aside():
            complain(f"{prefix}{error}")

    async def interrupted(self, app: App, task_ids: Sequence[str], *, exit_code: int) -> None:
        """Say what is safely on disk, and what to type to go on."""
        interruption_is_told()
        if self._quiet and not self._json:
            return
        files = {task_id: await _files_of(app, task_id) for task_id in task_ids}
        for task_id in task_ids:
            if self._json and task_id not in self._ended:
                facts = {"task_id": task_id, **_how_far(files[task_id]), "exit_code": exit_code}
                self._print_json({"event": "interrupted", **facts})
        if not self._quiet:
            complain(_interruption([file for each in files.values() for file in each]))

    def has_told(self) -> None:
        """Raise what kept results from being told on stdout, if anything did."""
        if self._unwritten is not None:
            raise self._unwritten

    def _print_json(self, facts: dict[str, object]) -> None:
        import json

        self._print(json.dumps(facts))

    def _print(self, line: str) -> None:
        """Write a line to stdout; one that cannot be written to stops no other task."""
        if self._unwritten is not None:
            return
        try:
            with self._screen.aside():
                print(line, flush=True)  # noqa: T201 - results are for stdout
        except OSError as error:
            self._unwritten = error


def _summary(report: FetchReport) -> str:
    from downloader.units import counted, format_bytes, format_rate, format_seconds

    what = f"{counted(len(report.files), 'file')}, {format_bytes(report.size)}"
    if report.already_published:
        return f"Already published: {what}; no byte was moved."
    received, seconds = report.received_bytes, report.transfer_seconds
    took = format_seconds(seconds) if seconds >= 1 else "less than 1 s"
    rate = f" ({format_rate(received / seconds)})" if received and seconds else ""
    resumed = (
        f"; {format_bytes(report.resumed_bytes)} were here already" if report.resumed_bytes else ""
    )
    return (
        f"Published {what}; {_proof(report)}.\n"
        f"Received {format_bytes(received)} in {took}{rate}{resumed}."
    )


def _proof(report: FetchReport) -> str:
    unconfirmed = sum(not file.crc64_confirmed for file in report.files)
    if unconfirmed:
        return f"the store told no CRC-64 for {unconfirmed} of them"
    return "every CRC-64 is the store's"


async def _files_of(app: App, task_id: str) -> list[FileProgress]:
    """Return how far the task's files are; none if the state does not tell."""
    from state import StateStore

    files: list[FileProgress] = []
    with contextlib.suppress(StateError):  # that it was interrupted is what is to be told
        for task in await app.store.call(StateStore.find_tasks, task_id, str(app.dest.absolute())):
            files += await app.store.call(StateStore.progress, task.id)
    return files


def _how_far(files: Sequence[FileProgress]) -> dict[str, int | None]:
    """Return the bytes that are safely on disk, and the size as soon as that of each is known."""
    sizes = [file.size for file in files if file.size is not None]
    is_known = bool(files) and len(sizes) == len(files)
    return {
        "safe_bytes": sum(file.safe_bytes for file in files),
        "size": sum(sizes) if is_known else None,
    }


def _interruption(files: Sequence[FileProgress]) -> str:
    import shlex

    from downloader.units import counted, format_bytes

    again = shlex.join([PROGRAM, *sys.argv[1:]])
    safe, size = sum(file.safe_bytes for file in files), _how_far(files)["size"]
    if not safe:
        return f"Interrupted before any byte was safe on disk. To go on: {again}"
    if size is None:  # the store has not told of all files yet
        whole = sum(file.safe_bytes == file.size for file in files)
        share = f"{whole} of {counted(len(files), 'file')} and {format_bytes(safe)} in all"
    else:
        share = f"{format_bytes(safe)} of {format_bytes(size)} ({100 * safe // size} %)"
    return f"Interrupted; {share} are safe on disk. To go on: {again}"
