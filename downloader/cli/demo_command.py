"""`demo`: a whole run of the real program against the sandbox, killed in the middle of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from downloader.cli.running import run, told

__all__ = ["demo"]


def demo(
    *,
    dest: Annotated[
        Path, typer.Option(metavar="DIR", help="Where results and the demo's state go.")
    ] = Path("demo-results"),
    records: Annotated[
        int, typer.Option(min=1000, max=10_000_000, help="Variants in the VCF that is made.")
    ] = 300_000,
) -> None:
    """Watch a task go from PENDING to a verified VCF/TBI pair, killed and resumed on the way.

    Needs no credentials and no network: platform and object store are played on loopback.
    """
    with told():
        from downloader.demonstration import demonstrate

        raise typer.Exit(run(demonstrate(dest.absolute(), records=records, say=_say)))


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the demo is what it prints
