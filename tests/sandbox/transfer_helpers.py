"""What the tests of the transfer engine share: a store, a place on disk, and who listens.

A test module names this one in `pytest_plugins` and imports from it too, which pytest takes
amiss unless it may leave the asserts as they are: PYTEST_DONT_REWRITE.
"""

import asyncio
import contextlib
import random
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest

from downloader.hosts import HostRules
from downloader.progress import Reporter
from downloader.retry import without_waiting
from downloader.sandbox import FakeObjectStore
from downloader.transfer import Link, StraightRoad, TransferOptions, transfer_file
from downloader.transfer.part_file import PartFile
from downloader.transfer.part_identity import identity_at
from downloader.verify import bgzf
from state.records import Checkpoint, Segment

MIB = 1024 * 1024
KEY = "run/a.vcf.gz"
PROBE = 4 * MIB  # what the first request asks for
DATA = random.Random(1).randbytes(7 * MIB + 123)  # a probe, three whole segments and a short one
OTHER = random.Random(2).randbytes(len(DATA))
SMALL = DATA[:100_000]
WAYS = ["plain", "straight"]  # every byte by aiohttp, or by the road
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody; the stand-in speaks plain http


class MemoryCheckpoints:
    """Checkpoints that live as long as the test, as a database would keep them between runs."""

    def __init__(self):
        self.saved = None
        self.history = []

    async def load(self):
        return self.saved

    async def save(self, checkpoint, *, previous=None):
        self.saved = checkpoint
        self.history.append(checkpoint)

    async def finish(self, part, checkpoint):
        await asyncio.to_thread(part.sync)
        await self.save(checkpoint)

    async def clear(self):
        self.saved = None


class Heard(Reporter):
    """Adds up what a progress bar would show."""

    def __init__(self):
        self.notes = []
        self.sizes = []
        self.shown = 0
        self.when_sized = lambda: None
        self._waiting = []

    def file_sized(self, name, size, *, resumed):
        self.sizes.append(size)
        self.shown += resumed
        self.when_sized()

    def received(self, name, delta):
        self.shown += delta
        for least, event in self._waiting:
            if self.shown >= least:
                event.set()

    async def has_shown(self, least):
        """Return once so many bytes are on their way to the disk."""
        event = asyncio.Event()
        self._waiting.append((least, event))
        self.received("", 0)
        await event.wait()

    def note(self, message):
        self.notes.append(message)


class StoreClock:
    """The store's time, which a test may put forward."""

    def __init__(self):
        self.ahead = timedelta()

    def __call__(self):
        return datetime.now(UTC) + self.ahead


@dataclass
class Rig:
    """One object, its store, its part file; what happens in between is the engine's."""

    store: FakeObjectStore
    clock: StoreClock
    directory: Path
    checkpoints: MemoryCheckpoints = field(default_factory=MemoryCheckpoints)
    heard: Heard = field(default_factory=Heard)
    renewed: list = field(default_factory=list)
    stall_timeout: float = 20
    url: str | None = None
    options: TransferOptions = field(
        default_factory=lambda: TransferOptions(
            segments=3,
            segment_size=MIB,
            first_length=PROBE,
            max_attempts=4,
            rules=HostRules.of(["127.0.0.1"]),
        )
    )
    is_straight: bool = False
    find_damage: Callable = bgzf.find_damage

    @property
    def part_path(self):
        return self.directory / "a.vcf.gz.part"

    @property
    def on_disk(self):
        return self.part_path.read_bytes()

    @property
    def statuses(self):
        return [request.status for request in self.store.requests]

    @property
    def asked(self):
        """The ranges that were asked for, in order of their offsets."""
        return sorted(request.asked for request in self.store.requests if request.asked)

    def use(self, **options):
        self.options = replace(self.options, **options)

    async def renew(self, refused):
        self.renewed.append(refused)
        return self.store.object_url(KEY, lifetime=600 + len(self.renewed))

    async def transfer(self, *, link=None, same_version=False):
        """Run the engine once; its pauses between attempts last no time."""
        link = link or Link(self.url or self.store.object_url(KEY), self.renew)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=self.stall_timeout)
        async with contextlib.AsyncExitStack() as stack:
            options = self.options
            if self.is_straight:
                road = stack.enter_context(contextlib.closing(self.road()))
                options = replace(options, straight_road=road)
            stack.enter_context(without_waiting())
            async with aiohttp.ClientSession(auto_decompress=False, timeout=timeout) as session:
                return await transfer_file(
                    "a.vcf.gz",
                    part_path=self.part_path,
                    link=link,
                    session=session,
                    checkpoints=self.checkpoints,
                    reporter=self.heard,
                    options=options,
                    find_damage=self.find_damage,
                    same_version=same_version,
                )

    def road(self):
        return StraightRoad(
            context=lambda: NO_TLS,
            connect_timeout=5,
            stall_timeout=self.stall_timeout,
            user_agent="test",
            meter=self.options.connections.meter,
        )

    def left_by_an_earlier_run(self, *segments, data=DATA, etag=None):
        """Put a part file and a checkpoint there; each segment is (start, stop, watermark)."""
        content = bytearray(len(data))
        for start, _, watermark in segments:
            content[start : start + watermark] = data[start : start + watermark]
        self.part_path.write_bytes(content)
        self.checkpoints.saved = Checkpoint(
            etag=etag or self.store.get(KEY).etag,
            size=len(data),
            segments=tuple(
                Segment(start=start, stop=stop, watermark=watermark)
                for start, stop, watermark in segments
            ),
            part_id=identity_at(self.part_path),
        )

    async def interrupted(self, injection):
        """Run until the fault has happened and then cancel, as a signal does."""
        running = asyncio.ensure_future(self.transfer())
        await injection.happened.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        self.store.clear_faults()
        self.store.forget_requests()


@contextlib.asynccontextmanager
async def rig_in(directory, way="plain"):
    """Lend a store with the object in it, and everything that a transfer needs."""
    clock = StoreClock()
    async with FakeObjectStore(clock=clock) as store:
        store.put(KEY, DATA)
        yield Rig(store, clock, directory, is_straight=way == "straight")


@pytest.fixture(params=[pytest.param("plain", marks=pytest.mark.thorough), "straight"])
async def rig(tmp_path, request):
    async with rig_in(tmp_path, request.param) as rig:
        yield rig


def around_writes(monkeypatch, around):
    """Call `around(write, offset)` in place of each write to a part file, whichever way it goes."""
    within = threading.local()

    def replace_by_name(name):
        method = getattr(PartFile, name)

        def replaced(self, offset, buffers):
            if getattr(within, "is_so", False):  # a part of what is called a write already
                return method(self, offset, buffers)
            within.is_so = True
            try:
                return around(lambda: method(self, offset, buffers), offset)
            finally:
                within.is_so = False

        monkeypatch.setattr(PartFile, name, replaced)

    replace_by_name("write")
    replace_by_name("write_aligned")


@contextlib.asynccontextmanager
async def scripted_server(*replies):
    """Answer each connection's first request with the next reply, byte for byte, and hang up.

    The last reply is repeated; the heads of the requests are lent.
    """
    heads, left = [], list(replies)

    async def answer(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(left.pop(0) if len(left) > 1 else left[0])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/a", heads
    finally:
        server.close()
        await server.wait_closed()


def reply(status, body, **headers):
    """Write a reply as it travels; names in `headers` have underscores."""
    lines = [f"HTTP/1.1 {status} Because"]
    headers = {"Content_Length": len(body), **headers}
    lines += [f"{n.replace('_', '-')}: {v}" for n, v in headers.items() if v is not None]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
