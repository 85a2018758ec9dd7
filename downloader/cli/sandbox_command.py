"""`sandbox`: the stand-ins of platform and store, for trying the program without credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from downloader.cli.running import collect_from_now_on, told

__all__ = ["sandbox"]


def sandbox(
    *,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Serve the VCFs of this folder. [default: a sample]"),
    ] = None,
    host: Annotated[str, typer.Option(help="A loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The platform's port; 0 takes a free one.")
    ] = 0,
    store_port: Annotated[int, typer.Option(min=0, max=65535, help="The object store's port.")] = 0,
    rate: Annotated[
        str | None, typer.Option(metavar="RATE", help="Bytes/s of each connection (20M).")
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Do not log requests to stderr.")
    ] = False,
) -> None:
    """Play the platform and its object store on loopback until Ctrl-C.

    Prints the environment to export and the tasks that can be fetched: each VCF with its index is
    one, and one has everything. Every task goes PENDING, STARTED, SUCCESS, a state a poll.
    """
    with told():
        import asyncio

        from downloader.errors import InvalidArgument
        from downloader.sandbox.serve import serve
        from downloader.units import parse_rate

        try:
            bytes_per_second = None if rate is None else parse_rate(rate)
        except ValueError as error:
            raise InvalidArgument(f"--rate {rate!r}: {error}") from None
        collect_from_now_on()  # it runs for hours
        asyncio.run(
            serve(
                data,
                host=host,
                port=port,
                store_port=store_port,
                bytes_per_second=bytes_per_second,
                out=_say,
                log=None if quiet else lambda line: typer.echo(line, err=True),
            )
        )


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - whoever reads a pipe must not wait for more
