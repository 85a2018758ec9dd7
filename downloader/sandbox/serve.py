"""`bge-downloader sandbox`: the stand-ins as a program, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from downloader.logs import printable
from downloader.sandbox import Sandbox, samples
from downloader.units import counted

__all__ = ["serve"]

SAMPLE_NAME = "sample.vcf.gz"
SAMPLE_RECORDS = 2_000


async def serve(
    data: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    store_port: int = 0,
    bytes_per_second: float | None = None,
    out: Callable[[str], object] = print,
    log: Callable[[str], object] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve a folder's VCFs, or a small sample, until SIGINT, SIGTERM or `stop`.

    `out` gets the lines for standard output: what to export, the tasks, what to type. `log`, if
    given, gets a line for each request. Ports of 0 are any that are free.
    """
    stop = stop or asyncio.Event()
    sandbox = Sandbox(
        host=host,
        port=port,
        store_port=store_port,
        bytes_per_second=bytes_per_second,
        on_request=log,
    )
    with _signals_set(stop), _data_directory(data) as directory:
        async with _serving(sandbox, directory) as tasks:
            for line in introduction(sandbox.environment(), tasks):
                out(line)
            await stop.wait()


def introduction(
    environment: Mapping[str, str], tasks: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Say what to export, which tasks there are and what to type; the rest is comments."""
    for name, value in environment.items():
        yield f"export {name}={shlex.quote(value)}"
    for task_id, keys in tasks.items():
        yield ""
        yield f"# {counted(len(keys), 'file')}:"
        for key in keys:
            yield f"#   {printable(key)}"
        yield f"bge-downloader fetch {task_id}"
    yield ""
    yield "# The sandbox is running; Ctrl-C ends it."


@contextlib.asynccontextmanager
async def _serving(sandbox: Sandbox, directory: Path) -> AsyncIterator[dict[str, list[str]]]:
    async with sandbox:
        # In a thread, for it reads every byte to learn the checksums.
        yield await asyncio.to_thread(sandbox.serve_directory, directory)


@contextlib.contextmanager
def _data_directory(data: Path | None) -> Iterator[Path]:
    if data is not None:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="bge-sandbox-") as name:
        samples.write_pair(Path(name), SAMPLE_NAME, records=SAMPLE_RECORDS)
        yield Path(name)


@contextlib.contextmanager
def _signals_set(stop: asyncio.Event) -> Iterator[None]:
    """Let SIGINT and SIGTERM set the event, where this loop may handle signals."""
    loop = asyncio.get_running_loop()
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Outside the main thread there are no signals; `stop` ends it then.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, stop.set)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
