"""`verify`: prove again, offline, what is on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from downloader.cli import options
from downloader.cli.running import complain, run, told
from downloader.errors import InvalidArgument, VerificationFailed

if TYPE_CHECKING:
    from downloader.config import Settings
    from downloader.recheck import Recheck

__all__ = ["verify"]

Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH|TASK_ID", help="A published result, a folder or file, or a task's id."
    ),
]


def verify(
    targets: Targets,
    *,
    verify: options.VerifyLevel = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    dest: options.Dest = None,
    state: options.State = None,
) -> None:
    """Check files against their manifest and each VCF against its index; changes nothing.

    Exit code 5 if anything is not what it must be.
    """
    with told():
        from downloader.config import load_settings
        from downloader.recheck import recheck

        settings = load_settings(options.given(verify=verify, dest=dest, state=state))
        paths = [_path_of(target, settings) for target in targets]
        on_file = None if quiet or not sys.stderr.isatty() else _show_current
        looked_at = wrong = 0
        for path in paths:
            found = run(recheck(path, level=settings.verify, on_file=on_file))
            if on_file is not None:
                _clear_current()
            _print(found, json=json, quiet=quiet, several=len(paths) > 1)
            looked_at += len(found.findings)
            wrong += len(found.problems)
        if wrong:
            raise VerificationFailed(_count_of_wrong(wrong, looked_at))


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
        known = _published_elsewhere(target, settings.state)
        if known is not None:
            return known
    raise InvalidArgument(
        f"{target} is neither a path that exists nor a task whose result is published"
    )


def _published_elsewhere(task_id: str, state: str) -> Path | None:
    from state import StateStore

    if "://" not in state and not Path(state).expanduser().exists():
        return None
    with StateStore.open(state) as store:
        places = [Path(task.dest) / task.task_id for task in store.find_tasks(task_id)]
    return next((place for place in reversed(places) if place.exists()), None)


def _print(found: Recheck, *, json: bool, quiet: bool, several: bool) -> None:
    """Show each file's verdict on stdout; sentences for people go to stderr."""
    if json:
        import json as json_text
        from dataclasses import asdict

        for finding in found.findings:
            facts = {"event": "verified", "ok": finding.problem is None, **asdict(finding)}
            typer.echo(json_text.dumps(facts, ensure_ascii=False))
    elif not quiet:
        _print_verdicts(found, several=several)
    for problem in found.problems:
        complain(problem)
    if quiet:
        return
    for warning in found.warnings:
        complain(f"warning: {warning}")
    if found.manifest is None and not found.problems:
        complain(
            f"there is no manifest beside {found.path}, so only the files' own structure was "
            "checked, not that they are the store's"
        )


def _print_verdicts(found: Recheck, *, several: bool) -> None:
    from downloader.logs import printable

    if several:
        typer.echo(f"{found.path}:")
    for finding in found.findings:
        verdict = "OK    " if finding.problem is None else "FAILED"
        typer.echo(f"{verdict}  {printable(finding.name)}")


def _show_current(name: str) -> None:
    from downloader.logs import printable

    print(f"\r\x1b[Kchecking {printable(name)[:60]}", end="", file=sys.stderr, flush=True)  # noqa: T201


def _clear_current() -> None:
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201
