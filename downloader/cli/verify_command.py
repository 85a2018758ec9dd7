"""`verify`: prove again, offline, what is on disk."""

from __future__ import annotations

import json as json_text
import sys
from dataclasses import asdict
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

Target = Annotated[
    str,
    typer.Argument(
        metavar="PATH|TASK_ID", help="A published result, a folder or file, or a task's id."
    ),
]


def verify(
    target: Target,
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
        path = _path_of(target, settings)
        on_file = None if quiet or not sys.stderr.isatty() else _show_current
        found = run(recheck(path, level=settings.verify, on_file=on_file))
        if on_file is not None:
            _clear_current()
        _print(found, json=json, quiet=quiet)
        if found.problems:
            raise VerificationFailed(
                f"{len(found.problems)} of {len(found.findings)} files in {path} are not what "
                "they must be"
            )


def _path_of(target: str, settings: Settings) -> Path:
    """Return the path that is meant: one that is there, or that of a task."""
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


def _print(found: Recheck, *, json: bool, quiet: bool) -> None:
    if json:
        for finding in found.findings:
            facts = {"event": "verified", "ok": finding.problem is None, **asdict(finding)}
            typer.echo(json_text.dumps(facts, ensure_ascii=False))
    elif not quiet:
        for finding in found.findings:
            if finding.problem is None:
                typer.echo(f"OK      {_printable(finding.name)}")
            else:
                typer.echo(f"FAILED  {_printable(finding.name)}")
    for problem in found.problems:
        complain(problem)
    if not quiet:
        for warning in found.warnings:
            complain(f"warning: {warning}")
        if found.manifest is None and not found.problems:
            complain(
                "there is no manifest here, so only the files' own structure was checked, not "
                "that they are the store's"
            )


def _show_current(name: str) -> None:
    print(f"\r\x1b[Kchecking {_printable(name)[:60]}", end="", file=sys.stderr, flush=True)  # noqa: T201


def _clear_current() -> None:
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # noqa: T201


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
