"""The command line: parse, call, print, exit code.

What a command needs is imported when it runs, so that `--help` and `--version` answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from downloader._version import __version__
from downloader.cli.api_command import app as api
from downloader.cli.demo_command import demo
from downloader.cli.doctor_command import doctor
from downloader.cli.fetch_command import fetch
from downloader.cli.run_command import run_service
from downloader.cli.running import PROGRAM, hold_standard_streams
from downloader.cli.sandbox_command import sandbox
from downloader.cli.status_command import status
from downloader.cli.task_commands import add, cancel, remove, retry
from downloader.cli.verify_command import verify

__all__ = ["app", "main"]

app = typer.Typer(
    name=PROGRAM,
    help="Bring BGE private-platform task results home: whole or absent, proved on disk.",
    epilog="Exit codes: 0 all done, 1 failed, 2 usage or settings, 3 the platform says the task "
    "failed, 4 not ready by the deadline, 5 verification failed, 129 hung up, 130 interrupted, "
    "143 terminated.\n\nTry it without credentials: bge-downloader demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fetch", short_help="Bring the results of tasks to disk, proved.")(fetch)
app.command("run", short_help="The service: watch tasks, and fetch what is ready.")(run_service)
app.command("add", short_help="Let the service watch tasks.")(add)
app.command("status", short_help="Show what is known of tasks.")(status)
app.command("retry", short_help="Let the service begin tasks again.")(retry)
app.command("cancel", short_help="Let nobody work on tasks any more.")(cancel)
app.command("remove", short_help="Forget tasks; results stay.")(remove)
app.command("verify", short_help="Prove files on disk again, offline.")(verify)
app.add_typer(api, name="api", short_help="Call the platform, print its JSON.")
app.command("doctor", short_help="Find out what would make a fetch fail.")(doctor)
app.command("sandbox", short_help="Play platform and store on loopback.")(sandbox)
app.command("demo", short_help="Watch a whole run, killed and resumed.")(demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
    ),
]


@app.callback()
def root(*, version: Version = False) -> None:
    """Hold what belongs to no command."""


def main() -> None:
    """Run the program."""
    hold_standard_streams()
    app(prog_name=PROGRAM)
