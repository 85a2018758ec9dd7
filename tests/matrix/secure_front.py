"""TLS before the platform or the store: doors, each wrong in one way that TLS can be wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import struct
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from matrix.row import Cause
from matrix.story import ENDLESS, Story

__all__ = [
    "NOT_TRUSTED",
    "NO_TLS",
    "OLD_TLS",
    "PLATFORM",
    "STORE",
    "secured",
    "silent",
    "slamming",
    "without_tls",
]

NEW_KEY = "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
SIGN = "openssl ca -batch -notext -config made.conf -extfile names.conf"
# `openssl req` cannot make what has expired; `openssl ca` can, and wants to be told its ways.
WAYS = """
[ca]
default_ca = here
[here]
database = index.txt
new_certs_dir = .
default_md = sha256
policy = any
unique_subject = no
rand_serial = yes
[any]
commonName = supplied
"""
# What is not to be trusted, how that is made, and what is said of it.
NOT_TRUSTED = (
    (
        "a certificate of an authority that nobody knows",
        {"is_trusted": False, "has_authority": True},
        r"\(unable to get local issuer certificate\); .* set SSL_CERT_FILE",
    ),
    (
        "a certificate that it has signed itself",
        {"is_trusted": False},
        r"\(self-signed certificate\); .* set SSL_CERT_FILE",
    ),
    (
        "a certificate that has expired",
        {"days": (-9, -1)},
        r"\(certificate has expired\); see whether this machine's clock is right",
    ),
    (
        "a certificate that is not valid yet",
        {"days": (1, 9)},
        r"\(certificate is not yet valid\); see whether this machine's clock is right",
    ),
    (
        "a certificate for another name",
        {"name": "other.example"},
        r"\(Hostname mismatch, .*\); somebody else answers there: check the address",
    ),
)
NO_TLS = "what answers there speaks no TLS"
OLD_TLS = r"it offers no version of TLS that is taken here \(1\.2 or newer\)"
Door = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Side:
    """One of the two that a door may be before: where it is, and what leads there instead."""

    url: Callable[[Story], str]
    led_to: Callable[[Story, str], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def _endpoint(story: Story, front: str) -> Iterator[None]:
    story.endpoint = front
    yield
    story.endpoint = None


@contextlib.contextmanager
def _links(story: Story, front: str) -> Iterator[None]:
    links = [story.store.object_url(key) for key in story.files]
    there = [link.replace(story.store.url, front) for link in links]
    story.platform.add_task(story.task_id, states=("SUCCESS",), result=there)
    yield
    story.platform.add_task(story.task_id, files=list(story.files), states=("SUCCESS",))


PLATFORM = Side(lambda story: story.sandbox.endpoint, _endpoint)
STORE = Side(lambda story: story.store.url, _links)


@dataclass(frozen=True)
class _Identity:
    """What a server shows, and whom its clients must trust for that."""

    certificate: str
    key: str
    authority: str


@functools.cache
def _identity(name: str, *, since: int, until: int, has_authority: bool) -> _Identity:
    """Make a certificate, valid from one day to another, signed by an authority or by itself."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.joinpath("made.conf").write_text(WAYS)
        place.joinpath("names.conf").write_text(f"subjectAltName = DNS:{name}\n")
        place.joinpath("index.txt").touch()
        days = f"-startdate {_day(since)} -enddate {_day(until)}"
        signed_by = "-selfsign -keyfile its.key"
        if has_authority:
            _run(place, f"{NEW_KEY} -x509 -subj /CN=authority -keyout the.key -out the.pem")
            signed_by = "-cert the.pem -keyfile the.key"
        _run(place, f"{NEW_KEY} -subj /CN={name} -keyout its.key -out its.csr")
        _run(place, f"{SIGN} {signed_by} {days} -in its.csr -out its.pem")
        certificate, key = (place.joinpath(file).read_text() for file in ("its.pem", "its.key"))
        authority = place.joinpath("the.pem").read_text() if has_authority else certificate
        return _Identity(certificate, key, authority)


def _day(days: int) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%y%m%d%H%M%SZ")


def _run(place: Path, command: str) -> None:
    try:
        subprocess.run(command.split(), cwd=place, check=True, capture_output=True)
    except OSError:
        pytest.skip("there is no openssl to make a certificate with")


def secured(
    side: Side,
    *,
    name: str = "localhost",
    is_trusted: bool = True,
    has_authority: bool = False,
    days: tuple[int, int] = (-1, 1),
    cut_after: int | None = None,
) -> Cause:
    """Serve one side by TLS, with a certificate for this name.

    Args:
        side: which of the two.
        name: whom the certificate is for.
        is_trusted: we trust who has signed it.
        has_authority: somebody else has signed it, and not itself.
        days: from which day on it is valid, and to which, as seen from now.
        cut_after: so many bytes, and each of the first connections ends without a word of TLS.
    """

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        since, until = days
        shown = _identity(name, since=since, until=until, has_authority=has_authority)
        story.trust = ssl.create_default_context(cadata=shown.authority if is_trusted else None)
        cuts = [] if cut_after is None else [cut_after] * 2

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, _, port = side.url(story).removeprefix("http://").partition(":")
            inner_reader, inner_writer = await asyncio.open_connection(host, int(port))
            with contextlib.closing(inner_writer), contextlib.closing(writer):
                left = cuts.pop() if cuts else None
                await _first_of(_pump(reader, inner_writer), _pump(inner_reader, writer, left))
                if left is not None:
                    writer.transport.abort()

        context = _server_context(shown, story.directory)
        async with _open_door(story, side, relay, ssl=context):
            yield
        story.trust = None

    return cause


def _server_context(shown: _Identity, place: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    path = place / "shown.pem"
    path.write_text(shown.certificate + shown.key)
    context.load_cert_chain(path)
    return context


def outdated(side: Side) -> Cause:
    """Let a door speak no version of TLS but those that are not safe any more."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        shown = _identity("localhost", since=-1, until=1, has_authority=False)
        story.trust = ssl.create_default_context(cadata=shown.authority)
        context = _server_context(shown, story.directory)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # By hand: asyncio's own servers hang up without the alert that tells why.
            heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
            heard.write(await reader.read(65536))
            with contextlib.suppress(ssl.SSLError), contextlib.closing(writer):
                try:
                    context.wrap_bio(heard, said, server_side=True).do_handshake()
                finally:
                    writer.write(said.read())
                    await writer.drain()

        async with _open_door(story, side, refuse):
            yield
        story.trust = None

    return cause


def without_tls(side: Side) -> Cause:
    """Let what leads to one side by https end at a port that speaks plain HTTP."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        with side.led_to(story, side.url(story).replace("http://", "https://")):
            yield

    return cause


def silent(side: Side) -> Cause:
    """Let a door take connections and say nothing."""

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        story.connect_timeout = 0.05
        story.timeout = 0.05 if side is PLATFORM else ENDLESS
        async with _open_door(story, side, wait):
            yield
        story.connect_timeout = story.timeout = ENDLESS

    return cause


def slamming(side: Side) -> Cause:
    """Let a door reset each connection as soon as something is said."""

    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return lambda story: _open_door(story, side, reset)


@contextlib.asynccontextmanager
async def _open_door(
    story: Story, side: Side, door: Door, **options: object
) -> AsyncIterator[None]:
    """Let what leads to one side lead to the door by https, as long as it is open."""
    server = await asyncio.start_server(door, "127.0.0.1", 0, **options)
    with contextlib.closing(server):
        front = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        with side.led_to(story, front):
            yield


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
