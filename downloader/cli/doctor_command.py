"""`doctor`: looks at everything a fetch will need, and says what is wrong and how to mend it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from downloader.cli import options
from downloader.cli.running import run, told

if TYPE_CHECKING:
    from downloader.checkup import Diagnosis

__all__ = ["doctor"]

MARKS = {"ok": "OK     ", "warning": "WARNING", "failed": "FAILED "}


def doctor(
    *,
    json: options.Json = False,
    dest: options.Dest = None,
    state: options.State = None,
    endpoint: options.Endpoint = None,
    allowed_hosts: options.AllowedHosts = None,
    min_free_space: options.MinFreeSpace = None,
) -> None:
    """Check settings, credentials, platform, clock, destination, disk space and state.

    Exit code 1 if anything would make a fetch fail. Nothing is changed.
    """
    with told():
        from downloader.checkup import examine
        from downloader.config import explain_settings, load_settings

        flags = options.given(
            dest=dest,
            state=state,
            endpoint=endpoint,
            allowed_hosts=allowed_hosts,
            min_free_space=min_free_space,
        )
        settings = load_settings(flags)
        if not json:
            _print_settings(explain_settings(flags))
        found = run(examine(settings))
        for diagnosis in found:
            _print(diagnosis, json=json)
        failed = sum(diagnosis.verdict == "failed" for diagnosis in found)
        if failed:
            raise typer.Exit(1)


def _print_settings(settings: list[tuple[str, str, str]]) -> None:
    """Show every setting whose value is not the default, and where it comes from."""
    from downloader.logs import printable

    own = [row for row in settings if row[2] != "default"]
    typer.echo("Settings that are not the defaults:" if own else "Every setting is the default.")
    for name, value, origin in own:
        typer.echo(f"  {name} = {printable(value)}  ({printable(origin)})")
    typer.echo("")


def _print(diagnosis: Diagnosis, *, json: bool) -> None:
    import json as json_text

    from downloader.logs import printable

    if json:
        facts = {
            "event": "checked",
            "what": diagnosis.what,
            "verdict": diagnosis.verdict,
            "found": diagnosis.found,
            "mend": diagnosis.mend,
        }
        typer.echo(json_text.dumps(facts))
        return
    typer.echo(f"{MARKS[diagnosis.verdict]}  {diagnosis.what}: {printable(diagnosis.found)}")
    if diagnosis.mend:
        typer.echo(f"         -> {printable(diagnosis.mend)}")
