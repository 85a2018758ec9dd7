"""`run`: the service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from downloader.cli import known, options
from downloader.cli.running import interruption_is_told, run, told

if TYPE_CHECKING:
    from downloader.config import Settings

__all__ = ["run_service"]

MinFreeSpace = Annotated[
    str | None,
    typer.Option("--min-free-space", metavar="SIZE", help="Bytes that stay free on the disk. [1G]"),
]
JsonLog = Annotated[bool, typer.Option("--json", help="Log one JSON object a line.")]


def run_service(
    *,
    dest: options.Dest = None,
    state: options.State = None,
    endpoint: options.Endpoint = None,
    allowed_hosts: options.AllowedHosts = None,
    verify: options.VerifyLevel = None,
    checksums: options.Checksums = None,
    limit_rate: options.LimitRate = None,
    connections: options.Connections = None,
    parallel_files: options.ParallelFiles = None,
    min_free_space: MinFreeSpace = None,
    poll_interval: options.PollInterval = None,
    poll_max_interval: options.PollMaxInterval = None,
    json: JsonLog = False,
    verbose: options.Verbose = False,
) -> None:
    """Watch the tasks that were added, and bring each one's files as soon as it is ready.

    Runs until SIGTERM or Ctrl-C, and takes its settings anew at SIGHUP. `add`, `status`, `retry`,
    `cancel` and `remove` talk to it by the state. Under systemd, results and state are in the
    service's own directory.
    """
    given = options.given(
        dest=dest,
        state=state,
        endpoint=endpoint,
        allowed_hosts=allowed_hosts,
        verify=verify,
        checksums=checksums,
        limit_rate=limit_rate,
        connections=connections,
        parallel_files=parallel_files,
        min_free_space=min_free_space,
        poll_interval=poll_interval,
        poll_max_interval=poll_max_interval,
        log_format="json" if json else None,
    )
    with told():

        def load() -> Settings:
            return _checked_settings(given)

        _serve(load(), load, verbose=verbose)


def _checked_settings(given: Mapping[str, object]) -> Settings:
    """Return the settings as they are now, once all is checked that can be before anything is made.

    Raises:
        UsageError: something is missing or wrong.
    """
    from downloader.config import load_settings, service_defaults

    settings = load_settings(given, defaults=service_defaults())
    known.absolute(settings.dest)
    settings.credentials()
    settings.signing_secret()
    return settings


def _serve(settings: Settings, load: Callable[[], Settings], *, verbose: bool) -> None:
    import asyncio
    import logging

    from downloader.logs import set_up_service_logging
    from downloader.service.daemon import run_service
    from downloader.service.notify import Notifier

    level = logging.DEBUG if verbose else logging.INFO
    set_up_service_logging(settings.log_format, level=level)
    # That a round is still running when the next is due is no fault, and is not to be told.
    logging.getLogger("apscheduler.scheduler").setLevel(logging.ERROR)
    reload = asyncio.Event()
    interruption_is_told()
    service = run_service(settings, reload=reload, load=load, notifier=Notifier.from_environment())
    run(service, on_hangup=reload.set, say=logging.getLogger("downloader").error)
