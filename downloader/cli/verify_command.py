"""`verify`: prove again, offline, what is on disk; and mend it, if that is wanted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from downloader.cli import known, options
from downloader.cli.running import complain, run, told
from downloader.errors import (
    DownloaderError,
    Interrupted,
    InvalidArgument,
    VerificationFailed,
)

if TYPE_CHECKING:
    from downloader.config import Settings
    from downloader.progress import Reporter
    from downloader.recheck import Recheck
    from downloader.repairing import Repair

__all__ = ["verify"]

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH|TASK_ID", help="A published result, a folder or file, or a task's id."
    ),
]

RepairFlag = Annotated[
    bool,
    typer.Option(
        "--repair", help="Fetch again what is damaged, if the store still has the same version."
    ),
]


def verify(
    targets: Targets,
    *,
    repair: RepairFlag = False,
    verify: options.VerifyLevel = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dest: options.Dest = None,
    state: options.State = None,
) -> None:
    """Check files against their manifest and each VCF against its index.

    Nothing is changed, and nobody is asked, unless --repair is given and something is damaged.
    Interrupted at any point, the same repair goes on where it stopped. Exit code 5 if anything is
    not what it must be.
    """
    with told():
        from downloader.config import load_settings
        from downloader.recheck import results_in

        settings = load_settings(options.given(verify=verify, dest=dest, state=state))
        meant = [_path_of(target, settings) for target in targets]
        paths = [each for path in meant for each in results_in(path)]
        show = _Show(json=json, quiet=quiet, several=len(paths) > 1)
        looked_at = wrong = 0
        failures: list[DownloaderError] = []
        for path in paths:
            found = _found(path, settings, quiet=quiet, repair=repair)
            if repair and found.problems:
                repairs = _repaired(found, settings, quiet=quiet)
                failures += [one.error for one in repairs if one.error is not None]
                if show.repaired(repairs):
                    found = _found(path, settings, quiet=quiet, repair=repair)
            elif repair:
                _clear_up(found)
            show.verdicts(found)
            looked_at += len(found.findings)
            wrong += len(found.problems)
        for error in failures[1:]:
            complain(str(error))
        if failures:
            raise failures[0]
        if wrong:
            raise VerificationFailed(_count_of_wrong(wrong, looked_at))


def _found(path: Path, settings: Settings, *, quiet: bool, repair: bool) -> Recheck:
    from downloader.recheck import recheck

    on_file = None if quiet or not sys.stderr.isatty() else _show_current
    try:
        return run(recheck(path, level=settings.verify, on_file=on_file))
    except VerificationFailed as error:  # of the manifest itself
        if not repair:
            raise
        raise VerificationFailed(
            f"{error}, and without it nothing can be repaired; "
            "`fetch` of the task sets this result aside and brings it anew"
        ) from error
    finally:
        if on_file is not None:
            _clear_current()


def _repaired(found: Recheck, settings: Settings, *, quiet: bool) -> list[Repair]:
    """Mend what can be mended, on a screen like that of a fetch."""
    from downloader.logs import set_up_logging
    from downloader.repairing import Repair
    from downloader.screens import choose_screen

    screen = choose_screen(quiet=quiet, json=False, stderr=sys.stderr, stdout=sys.stdout)
    set_up_logging(verbose=False, say=None if quiet else screen.say)
    with screen:
        name = found.manifest.task_id if found.manifest else found.path.name
        try:
            return run(_repair(found, settings, screen.reporter(name)))
        except Interrupted as error:
            raise Interrupted(
                "Interrupted; what has come is kept, and the same command goes on",
                exit_code=error.exit_code,
            ) from error
        except DownloaderError as error:  # what was found is to be told all the same
            return [Repair(name=name, error=error)]


def _clear_up(found: Recheck) -> None:
    """Remove what interrupted repairs have left of what is whole."""
    from downloader.repair_directory import told_of_leftovers

    if told_of_leftovers(found.directory):
        from downloader.repairing import clear_leftovers  # with it comes everything that transfers

        clear_leftovers(found)


async def _repair(found: Recheck, settings: Settings, reporter: Reporter) -> list[Repair]:
    import contextlib

    from downloader import app
    from downloader.repairing import repair
    from downloader.transfer import BufferPool

    async with contextlib.AsyncExitStack() as stack:
        api = await stack.enter_async_context(app.open_api(settings))
        session = await stack.enter_async_context(app.store_session(settings))
        buffers = BufferPool(settings.buffer_memory)
        connections = app.shared_connections(settings, buffers)
        road = app.straight_road(settings, buffers, connections)
        stack.enter_context(contextlib.closing(road))
        options = app.fetch_options(settings, wait=False, connections=connections, road=road)
        return await repair(
            found, api=api, session=session, options=options.transfer, reporter=reporter
        )


def _count_of_wrong(wrong: int, looked_at: int) -> str:
    from downloader.units import counted

    verdict = "is not what it must be" if wrong == 1 else "are not what they must be"
    return f"{wrong:,} of {counted(looked_at, 'file')} {verdict}"


def _path_of(target: str, settings: Settings) -> Path:
    """Return the path that is meant: one that is there, or that of a task."""
    if not target:  # which would be the working directory, as after a variable without a value
        raise InvalidArgument("The path is empty; expected a path or a task's id")
    path = Path(target)
    if path.exists():
        return path
    if "/" not in target:
        published = settings.dest.expanduser() / target
        if published.exists():
            return published
        elsewhere = _published_elsewhere(target, settings.state)
        if elsewhere is not None:
            return elsewhere
    raise InvalidArgument(
        f"{target} is neither a path that exists nor a task whose result is published"
    )


def _published_elsewhere(task_id: str, state: str) -> Path | None:
    if not known.is_there(state):
        return None
    with known.opened(state) as store:
        places = [task.place for task in store.find_tasks(task_id)]
    return next((place for place in reversed(places) if place.exists()), None)


class _Show:
    """Shows each file's verdict on stdout; sentences for people go to stderr."""

    def __init__(self, *, json: bool, quiet: bool, several: bool) -> None:
        self._json = json
        self._quiet = quiet
        self._several = several

    def verdicts(self, found: Recheck) -> None:
        if self._json:
            from dataclasses import asdict

            for finding in found.findings:
                ok = finding.problem is None
                self._print_json({"event": "verified", "ok": ok, **asdict(finding)})
        elif not self._quiet:
            self._print_verdicts(found)
        for problem in found.problems:
            complain(problem)
        if not self._quiet:
            _complain_of_little(found)

    def repaired(self, repairs: Sequence[Repair]) -> bool:
        """Tell what was mended, if anything was."""
        mended = [one for one in repairs if one.error is None]
        for one in mended:
            if self._json:
                facts = {"name": one.name, "received_bytes": one.received_bytes}
                self._print_json({"event": "repaired", **facts})
            if not self._quiet:
                complain(f"{one.name}: repaired and proved; {one.received_bytes:,} bytes came")
        return bool(mended)

    def _print_verdicts(self, found: Recheck) -> None:
        from downloader.logs import printable

        if self._several:
            typer.echo(f"{found.path}:")
        for finding in found.findings:
            verdict = "OK    " if finding.problem is None else "FAILED"
            typer.echo(f"{verdict}  {printable(finding.name)}")

    def _print_json(self, facts: dict[str, object]) -> None:
        import json

        typer.echo(json.dumps(facts))


def _complain_of_little(found: Recheck) -> None:
    from downloader.repair_directory import told_of_leftovers

    for warning in [*found.warnings, *told_of_leftovers(found.directory)]:
        complain(f"warning: {warning}")
    if found.manifest is None and not found.problems:
        complain(
            f"there is no manifest beside {found.path}, so only the files' own structure was "
            "checked, not that they are the store's"
        )


def _show_current(name: str) -> None:
    from downloader.logs import printable

    print(f"\r\x1b[Kchecking {printable(name)[:60]}", end="", file=sys.stderr, flush=True)  # noqa: T201


def _clear_current() -> None:
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201
