"""TLS before the store: doors of its own, each wrong in one way that TLS can be wrong."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from matrix.row import Cause
from matrix.story import ENDLESS, Story

__all__ = ["secured", "silent", "slamming"]

COMMAND = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
Door = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _certificate(place: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate that is its own authority, and return its path and its key's."""
    paths = place / f"{name}.pem", place / f"{name}.key"
    subject = f"-subj /CN={name} -addext subjectAltName=DNS:{name}"
    command = [*COMMAND.split(), *subject.split(), "-out", paths[0], "-keyout", paths[1]]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except OSError:
        pytest.skip("there is no openssl to make a certificate with")
    return paths


def secured(
    *, name: str = "localhost", is_trusted: bool = True, cut_after: int | None = None
) -> Cause:
    """Serve the objects by TLS, with a certificate for this name.

    Each of the first connections is cut after so many bytes, without a word of TLS about it.
    """

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        paths = _certificate(story.directory, name)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*paths)
        story.trust = ssl.create_default_context(cafile=str(paths[0]) if is_trusted else None)
        cuts = [] if cut_after is None else [cut_after] * 2

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, _, port = story.store.url.removeprefix("http://").partition(":")
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
            with contextlib.closing(inner_writer), contextlib.closing(writer):
                left = cuts.pop() if cuts else None
                await _first_of(_pump(reader, inner_writer), _pump(inner_reader, writer, left))
                if left is not None:
                    writer.transport.abort()

        async with _open_door(story, relay, ssl=context):
            yield
        story.trust = None

    return cause


def silent() -> Cause:
    """Let a door take connections and say nothing."""

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        story.connect_timeout = 0.05
        async with _open_door(story, wait):
            yield
        story.connect_timeout = ENDLESS

    return cause


def slamming() -> Cause:
    """Let a door reset each connection as soon as something is said."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return lambda story: _open_door(story, reset)


@contextlib.asynccontextmanager
async def _open_door(story: Story, door: Door, **options: object) -> AsyncIterator[None]:
    """Let the task's links lead to the door by https, as long as it is open."""
    async with contextlib.AsyncExitStack() as stack:
        server = await asyncio.start_server(door, "127.0.0.1", 0, **options)
        stack.callback(server.close)
        front = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        links = [story.store.object_url(key) for key in story.files]
        there = [link.replace(story.store.url, front) for link in links]
        story.platform.add_task(story.task_id, states=("SUCCESS",), result=there)
        yield
        story.platform.add_task(story.task_id, files=list(story.files), states=("SUCCESS",))


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None = None
) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536 if left is None else min(65536, left)):
            writer.write(data)
            await writer.drain()
            if left is not None and (left := left - len(data)) <= 0:
                return


async def _first_of(*jobs: Awaitable[None]) -> None:
    """Run the jobs until one of them has ended."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
