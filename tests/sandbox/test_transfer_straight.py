"""The straight road: what its connections, threads, buffers and descriptors do, and what not."""

import asyncio
import contextlib
import errno
import fcntl
import mmap
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transfer_helpers import DATA, KEY, MIB, NO_TLS, PROBE, SMALL, around_writes, reply, rig_in
from yarl import URL

from downloader.errors import (
    BadStoreReply,
    DiskError,
    LinkRefused,
    ObjectChanged,
    ObjectMissing,
    StoreUnavailable,
)
from downloader.network import Proxy
from downloader.sandbox import Fault
from downloader.transfer import RateLimit, StraightRoad, straight, straight_body
from downloader.transfer.checksum import crc64_of
from downloader.transfer.line import Line
from downloader.transfer.part_file import PAGE_BYTES, PartFile
from downloader.transfer.ranged_get import Version
from downloader.transfer.segment_run import SegmentRun
from state.records import Segment

pytest_plugins = ["transfer_helpers"]

FOR_EVER = 10_000  # seconds: a test that waits for so long fails by its own time limit
SIZE = len(SMALL)
HALF = SIZE // 2


@pytest.fixture
async def rig(tmp_path):
    async with rig_in(tmp_path, "straight") as rig:
        yield rig


@pytest.fixture
def connects(monkeypatch):
    """Count the connections that are opened, by whichever way."""
    opened = []
    connect = straight.aiohappyeyeballs.start_connection

    async def counted(*args, **kwargs):
        opened.append(await connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(straight.aiohappyeyeballs, "start_connection", counted)
    return opened


class Bench:
    """A road and a part file, without an engine around them."""

    def __init__(self, directory, context=NO_TLS, **timeouts):
        timeouts = {"connect_timeout": FOR_EVER, "stall_timeout": FOR_EVER, **timeouts}
        self.road = StraightRoad(context=lambda: context, user_agent="test", **timeouts)
        self.part = PartFile.open(directory / "a.part")
        self.counted = 0
        self._counted_enough = (0, asyncio.Event())
        self.run = None
        self.rate_limit = RateLimit(None)

    def close(self):
        self.road.close()
        self.part.close()

    async def ask(self, url, start=0, stop=SIZE):
        version = Version(etag='"1"', size=SIZE, crc64=None)
        return await self.road.ask(urlsplit(url), start=start, stop=stop, version=version)

    async def bring(self, url, start=0, stop=SIZE):
        """Ask for a range and pour it; the run tells what came."""
        self.run = SegmentRun(Segment(start=start, stop=stop, watermark=0))
        body = await self.ask(url, start, stop)
        with contextlib.closing(body):
            await body.pour(
                self.run,
                self.part,
                rate_limit=self.rate_limit,
                is_behind=lambda _: False,
                count=self.count,
            )

    def count(self, came):
        self.counted += came
        least, event = self._counted_enough
        if self.counted >= least:
            event.set()

    async def has_counted(self, least):
        self._counted_enough = (least, asyncio.Event())
        self.count(0)
        await self._counted_enough[1].wait()

    def is_right(self):
        """Tell whether everything up to the run's position is on disk, and in its checksum."""
        right = SMALL[self.run.start : self.run.position]
        there = b"".join(self.part.chunks(self.run.start, self.run.position))
        return there == right and self.run.crc64 == crc64_of(right)


@pytest.fixture
async def bench(tmp_path):
    with contextlib.closing(Bench(tmp_path)) as bench:
        yield bench


@contextlib.asynccontextmanager
async def range_server(alter=lambda raw, _: raw, *, tls=None, hangs_up=False):
    """Serve ranges of SMALL over connections that stay open; lends where, and what came.

    `alter(raw, number)` changes the reply to the request of that number.
    """
    seen = SimpleNamespace(url=None, heads=[], writers=[])
    seen.was_asked, seen.was_left = asyncio.Semaphore(0), asyncio.Event()

    async def serve(reader, writer):
        seen.writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                start, last = map(int, re.search(r"bytes=(\d+)-(\d+)", head).groups())
                span = f"bytes {start}-{last}/{SIZE}"
                raw = reply(206, SMALL[start : last + 1], ETag='"1"', Content_Range=span)
                writer.write(alter(raw, len(seen.heads)))
                seen.heads.append(head)
                seen.was_asked.release()
                await writer.drain()
                if hangs_up:
                    break
        seen.was_left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    seen.url = f"http{'s' if tls else ''}://127.0.0.1:{port}/a"
    try:
        yield seen
    finally:
        server.close()
        for writer in seen.writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await server.wait_closed()


async def cancelled(running):
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


# Connections.


async def test_one_connection_is_enough_for_many_ranges(rig, connects):
    """A handshake for each 64 MiB would be felt."""
    rig.use(segments=1)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert len(rig.store.requests) == 5
    assert len(connects) == 1


async def test_a_connection_that_was_closed_while_idle_is_replaced(bench):
    async with range_server(hangs_up=True) as store:
        for start in range(0, SIZE, 30_000):
            await bench.bring(store.url, start, min(start + 30_000, SIZE))
            assert bench.run.is_complete
            assert bench.is_right()
    assert len(store.writers) == len(store.heads) == 4


async def test_a_connection_that_is_closed_as_it_is_used_is_replaced(bench, monkeypatch):
    """The end may come after the last look, and before the request has arrived."""
    monkeypatch.setattr(Line, "is_quiet", lambda _: True)
    async with range_server(hangs_up=True) as store:
        await bench.bring(store.url, 0, HALF)
        await store.writers[0].wait_closed()
        await bench.bring(store.url, HALF)
        assert bench.is_right()
    assert len(store.writers) == 2


async def test_a_connection_that_hangs_when_it_is_used_again_is_not_taken_for_a_closed_one(
    tmp_path,
):
    """Whoever asked once more at once would wait twice as long as he was told to."""
    with contextlib.closing(Bench(tmp_path, stall_timeout=0.1)) as bench:
        async with range_server(lambda raw, number: b"" if number else raw) as store:
            await bench.bring(store.url, 0, HALF)
            with pytest.raises(StoreUnavailable, match="sent nothing for too long"):
                await bench.ask(store.url, HALF)
        assert len(store.heads) == 2


FORGED = reply(206, b"!" * HALF, ETag='"1"', Content_Range=f"bytes {HALF}-99999/{SIZE}")


async def test_what_comes_behind_a_body_is_never_the_next_reply(bench):
    """A forged head that fits in every way: on the same connection it would be believed."""
    async with range_server(lambda raw, number: raw if number else raw + FORGED) as store:
        await bench.bring(store.url, 0, HALF)
        await bench.bring(store.url, HALF)
        assert bench.run.is_complete
        assert bench.is_right()
    assert len(store.writers) == 2


async def test_what_comes_while_a_connection_is_idle_is_never_the_next_reply(bench):
    async with range_server() as store:
        await bench.bring(store.url, 0, HALF)
        (line,) = bench.road._idle["http", "127.0.0.1", urlsplit(store.url).port]
        came, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(line.socket, came.set)
        store.writers[0].write(FORGED)
        await came.wait()
        loop.remove_reader(line.socket)
        await bench.bring(store.url, HALF)
        assert bench.is_right()
    assert len(store.writers) == 2


@pytest.mark.parametrize(
    ("old", "new"), [(b"\r\n", b"\r\nConnection: close\r\n"), (b"HTTP/1.1", b"HTTP/1.0")]
)
async def test_a_connection_that_the_store_will_close_is_not_kept(bench, old, new):
    async with range_server(lambda raw, _: raw.replace(old, new, 1)) as store:
        await bench.bring(store.url, 0, HALF)
        await bench.bring(store.url, HALF)
        assert bench.is_right()
    assert len(store.writers) == 2


async def test_an_idle_connection_is_closed_after_a_while(bench, monkeypatch):
    monkeypatch.setattr(straight, "IDLE_SECONDS", 0)
    async with range_server() as store:
        await bench.bring(store.url)
        await store.was_left.wait()


@pytest.mark.parametrize(
    ("environment", "url", "leads"),
    [
        ({}, "https://a.example/x", True),
        ({"https_proxy": "http://p:1"}, "https://a.example/x", False),
        ({"HTTPS_PROXY": "http://p:1"}, "https://a.example/x", False),
        ({"https_proxy": "http://p:1"}, "http://127.0.0.1/x", True),  # another scheme's
        ({"all_proxy": "http://p:1"}, "https://a.example/x", False),
        ({"https_proxy": "http://p:1", "no_proxy": "b.example"}, "https://a.example/x", False),
        ({"https_proxy": "http://p:1", "no_proxy": "a.example"}, "https://a.example/x", True),
        ({"https_proxy": "http://p:1", "no_proxy": ".example"}, "https://a.example/x", True),
        ({"https_proxy": "http://p:1", "no_proxy": "*"}, "https://a.example/x", True),
    ],
)
async def test_it_leads_to_no_store_that_a_proxy_leads_to(
    bench, monkeypatch, environment, url, leads
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bench.road.leads_to(urlsplit(url)) is leads


async def test_behind_a_proxy_every_byte_goes_the_plain_way(rig, monkeypatch):
    # None stands before this machine, where the store is: so only the straight road is told of it.
    proxy = Proxy(URL("http://127.0.0.1:1"))
    monkeypatch.setattr("downloader.transfer.straight.proxy_for", lambda _: proxy)
    monkeypatch.setattr(StraightRoad, "ask", lambda *_, **__: pytest.fail("asked"))
    await rig.transfer()
    assert rig.on_disk == DATA


# Replies out of the ordinary.

SPAN = f"bytes 0-{SIZE - 1}/{SIZE}"
STRANGE = {
    "the whole object": reply(200, SMALL, ETag='"1"'),
    "no length": reply(206, SMALL, ETag='"1"', Content_Range=SPAN, Content_Length=None),
    "two lengths": reply(206, SMALL, ETag='"1"', Content_Range=SPAN).replace(
        b"\r\n\r\n", b"\r\nContent-Length: 7\r\n\r\n", 1
    ),
    "an encoding and a length": reply(
        206, SMALL, ETag='"1"', Content_Range=SPAN, Transfer_Encoding="gzip, chunked"
    ),
    "chunks": reply(206, b"0\r\n\r\n", ETag='"1"', Content_Range=SPAN, Transfer_Encoding="chunked"),
    "a redirect": reply(302, b"", Location="/b"),
    "a refusal without a length": reply(403, b"<Error>", Content_Length=None),
    "a range that is none": reply(416, b"", Content_Range="bytes */0"),
}


@pytest.mark.parametrize("raw", STRANGE.values(), ids=STRANGE)
async def test_a_strange_reply_is_left_to_the_plain_way(bench, raw):
    """Nor is its connection used again: what is left of it is no reply."""
    async with range_server(lambda *_: raw) as store:
        for _ in range(2):
            assert await bench.ask(store.url) is None
    assert len(store.writers) == 2


UNFITTING = [
    (reply(206, b"abc", ETag='"1"', Content_Range="bytes 1-3/100000"), BadStoreReply, "asked for"),
    (reply(206, b"abc", ETag='"1"', Content_Range=SPAN), BadStoreReply, "announced 3 bytes"),
    (reply(206, SMALL, ETag='"2"', Content_Range=SPAN), ObjectChanged, 'is now "2"'),
]


@pytest.mark.parametrize(("raw", "error", "said"), UNFITTING)
async def test_a_reply_that_does_not_fit_is_told_at_once(bench, raw, error, said):
    """Whoever asks knows whether to ask again; the plain way would hear nothing else."""
    async with range_server(lambda *_: raw) as store:
        for _ in range(2):
            with pytest.raises(error, match=said):
                await bench.ask(store.url)
    assert len(store.writers) == 2


REFUSALS = [
    (reply(403, b"<Error><Code>AccessDenied</Code></Error>"), LinkRefused, "AccessDenied", None),
    (reply(503, b"", Retry_After="9"), StoreUnavailable, "HTTP 503", 9),
    (reply(404, b"<Error><Co")[:-3], ObjectMissing, "HTTP 404", None),  # it breaks off
]


@pytest.mark.parametrize(("raw", "error", "said", "pause"), REFUSALS)
async def test_a_refusal_is_told_at_once(bench, raw, error, said, pause):
    """By the words of the store; nor is its connection used again."""
    async with range_server(lambda *_: raw, hangs_up=True) as store:
        for _ in range(2):
            with pytest.raises(error, match=said) as caught:
                await bench.ask(store.url)
            assert getattr(caught.value, "retry_after", None) == pause
    assert len(store.writers) == 2


NO_REPLIES = [
    b"SSH-2.0-OpenSSH\r\n",
    b"SSH-2.0-OpenSSH\r\n\r\n",
    b"HTTP/1.1 2",
    b"HTTP/1.1 206 P\r\nContent-Length: 3\r\nConte",
    b"HTTP/1.1 206 P\r\nContent-Length: 3\r\n folded\r\n\r\n",
    b"HTTP/1.1 206 P\r\n" + b"X: 1\r\n" * 20_000,
    b"",
]


@pytest.mark.parametrize("raw", NO_REPLIES, ids=lambda raw: repr(raw[:40]))
async def test_no_reply_is_a_passing_fault(bench, raw):
    async with range_server(lambda *_: raw, hangs_up=True) as store:
        with pytest.raises(StoreUnavailable, match="The connection to the store was lost"):
            await bench.ask(store.url)


async def test_a_store_that_cannot_be_reached_is_left_to_the_plain_way(bench):
    async with range_server() as store:
        pass  # the port is closed now
    assert await bench.ask(store.url) is None


async def test_no_connection_in_time_is_told(tmp_path, monkeypatch):
    """Whoever left it to the plain way would wait for the same silence twice."""
    monkeypatch.setattr(
        straight.aiohappyeyeballs, "start_connection", lambda *_, **__: asyncio.Event().wait()
    )
    told = pytest.raises(StoreUnavailable, match=r"at 127\.0\.0\.1 cannot be reached")
    with contextlib.closing(Bench(tmp_path, connect_timeout=0)) as bench, told:
        await bench.ask("http://127.0.0.1:1/a")


@pytest.mark.parametrize("url", ["http://127.0.0.1/ü", "http://127.0.0.1/a b", "http://[::1]:x/a"])
async def test_a_link_that_cannot_be_sent_as_it_is_is_left_to_the_plain_way(bench, connects, url):
    assert await bench.ask(url) is None
    assert connects == []


async def test_a_good_range_shows_that_the_store_knows_ranges(rig):
    """Three that are ignored, with good ones in between, are not three in a row."""
    rig.use(segments=1)
    for at in range(3):  # each time by both ways
        rig.store.inject(Fault.IGNORE_RANGE, covering=PROBE + at * MIB, times=2)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.heard.notes == []


# The part file.


@pytest.fixture
def written(monkeypatch):
    """Note each `os.pwrite`: whether it passes the page cache by, from where, how much."""
    noted = []
    write = os.pwrite

    def noting(descriptor, data, offset):
        is_direct = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        noted.append((is_direct, offset, len(data)))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", noting)
    return noted


async def test_whole_pages_pass_the_page_cache_by(rig, written):
    _skip_without_direct_writes(rig.directory)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert sum(length for is_direct, _, length in written if is_direct) == 7 * MIB
    assert all(offset % PAGE_BYTES == length % PAGE_BYTES == 0 for _, offset, length in written)


def _skip_without_direct_writes(directory):
    path = directory / "trial"
    path.touch()
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"the temporary directory's file system has no O_DIRECT ({error})")


async def test_a_file_system_that_refuses_it_gets_ordinary_writes(rig, monkeypatch):
    """Some take the flag when the file is opened, and refuse the first write."""
    refused = []

    def refuse(descriptor, *_):
        refused.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        raise OSError(errno.EINVAL, "Invalid argument")

    _skip_without_direct_writes(rig.directory)
    monkeypatch.setattr(os, "pwrite", refuse)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert all(refused)
    assert 1 <= len(refused) <= 3  # one of each thread at the most, and then never again


async def test_a_file_that_cannot_be_opened_so_gets_ordinary_writes(rig, monkeypatch):
    open_file = os.open

    def refuse(path, flags, *mode, **more):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return open_file(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", refuse)
    await rig.transfer()
    assert rig.on_disk == DATA


async def test_memory_is_as_good_a_disk():
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        pytest.skip("no /dev/shm that can be written to")
    with tempfile.TemporaryDirectory(dir=memory) as name:
        async with rig_in(Path(name), "straight") as rig:
            await rig.transfer()
            assert rig.on_disk == DATA


EDGES = [0, 1, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1, MIB - 1, MIB, MIB + 1]
LONG = DATA[: 3 * MIB + 777]


@settings(max_examples=20, deadline=None)
@given(
    cut=st.integers(MIB + 2, len(LONG)),
    first=st.sampled_from(EDGES) | st.integers(0, MIB),
    second=st.sampled_from(EDGES) | st.integers(0, MIB),
    chunk=st.none() | st.integers(20_000, 200_000),
)
@example(cut=2 * MIB, first=0, second=0, chunk=None)
@example(cut=MIB + 2, first=MIB + 1, second=1, chunk=None)
@example(cut=len(LONG), first=1, second=0, chunk=50_001)
@pytest.mark.thorough
def test_it_goes_on_from_any_byte_to_any_byte(cut, first, second, chunk):
    """Segments meet in the middle of a page, and begin anywhere in one."""
    assert asyncio.run(_resumed(cut, first, min(second, len(LONG) - cut), chunk)) == LONG


async def _resumed(cut, first, second, chunk):
    with tempfile.TemporaryDirectory() as directory:
        async with rig_in(Path(directory), "straight") as rig:
            rig.store.put(KEY, LONG)
            if chunk:
                rig.store.inject(Fault.TRICKLE, times=None, chunk=chunk, interval=0)
            segments = [(0, 4, 0), (4, cut, min(first, cut - 4)), (cut, len(LONG), second)]
            rig.left_by_an_earlier_run(*[s for s in segments if s[0] < s[1]], data=LONG)
            await rig.transfer()
            assert rig.heard.notes == []  # or it would have been right at the second try only
            return rig.on_disk


async def test_on_a_slow_line_whole_pages_are_handed_on_early(bench, monkeypatch):
    """A power loss should not take a megabyte that took a minute."""
    monkeypatch.setattr(straight_body, "FLUSH_SECONDS", 0)
    edges = []
    around_writes(monkeypatch, lambda write, offset: edges.append(offset) or write())
    async with range_server() as store:
        bench.rate_limit = SimpleNamespace(portion=5000, hold=lambda *_: None)
        await bench.bring(store.url, 100)
        assert bench.run.is_complete
        assert bench.is_right()
    assert len(edges) > 10
    assert all(edge % PAGE_BYTES == 0 for edge in edges if edge >= PAGE_BYTES)


async def test_a_write_that_failed_is_not_tried_again(bench, monkeypatch):
    tries = []

    def refuse(_, offset):
        tries.append(offset)
        raise DiskError("no")

    around_writes(monkeypatch, refuse)
    async with range_server() as store:
        with pytest.raises(DiskError):
            await bench.bring(store.url)
    assert tries == [0]
    assert bench.run.position == 0


async def test_every_byte_is_counted_once(bench, monkeypatch):
    """However often the thread's count is looked at while it grows."""
    monkeypatch.setattr(straight_body, "TELL_SECONDS", 0)
    async with range_server() as store:
        bench.rate_limit = SimpleNamespace(portion=10, hold=lambda *_: None)
        await bench.bring(store.url)
    assert bench.counted == SIZE


async def test_no_more_buffers_are_made_than_pour_at_once(rig, monkeypatch):
    made = []
    really_make = mmap.mmap

    def make(*args):
        made.append(really_make(*args))
        return made[-1]

    monkeypatch.setattr(mmap, "mmap", make)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert 1 <= len(made) <= rig.options.segments


async def test_what_came_before_a_break_is_kept(bench):
    async with range_server(lambda raw, _: raw[:-7], hangs_up=True) as store:
        with pytest.raises(StoreUnavailable, match="ended in the middle of the body"):
            await bench.bring(store.url)
    assert bench.run.position == SIZE - 7 == bench.counted
    assert bench.is_right()


async def test_what_came_before_a_stall_is_kept(tmp_path):
    with contextlib.closing(Bench(tmp_path, stall_timeout=0.1)) as bench:
        async with range_server(lambda raw, _: raw[:-7]) as store:
            with pytest.raises(StoreUnavailable, match="sent nothing for too long"):
                await bench.bring(store.url)
        assert bench.run.position == SIZE - 7
        assert bench.is_right()


# Stopping.


async def test_a_connection_that_broke_does_not_stay_to_the_end(rig, monkeypatch):
    """Also that of a small file's first reply, whose rest comes by another one."""
    rig.stall_timeout = 0.15
    rig.store.put(KEY, SMALL)
    close, closed = Line.close, []

    def noted(line):
        closed.append(line)
        close(line)

    monkeypatch.setattr(Line, "close", noted)
    rig.store.inject(Fault.STALL, after=HALF)
    asked = rig.store.inject(Fault.HANG)
    running = asyncio.ensure_future(rig.transfer())
    await asked.happened.wait()
    assert closed
    asked.release()
    await running
    assert rig.on_disk == SMALL


async def test_a_cancelled_run_wakes_what_waits_and_keeps_what_came(rig):
    rig.stall_timeout = FOR_EVER
    rig.use(segments=1)
    rig.store.inject(Fault.STALL, covering=PROBE, after=400_001)
    running = asyncio.ensure_future(rig.transfer())
    await rig.heard.has_shown(PROBE + 400_001)
    await cancelled(running)
    assert rig.checkpoints.saved.safe_bytes == rig.heard.shown == PROBE + 400_001
    assert rig.on_disk[: PROBE + 400_001] == DATA[: PROBE + 400_001]


async def test_a_run_cancelled_while_it_waits_for_an_answer_ends_at_once(rig):
    rig.stall_timeout = FOR_EVER
    hanging = rig.store.inject(Fault.HANG, covering=PROBE)
    await rig.interrupted(hanging)
    await rig.transfer()
    assert rig.on_disk == DATA


async def test_a_connection_that_the_store_will_close_is_woken_too(bench, monkeypatch):
    monkeypatch.setattr(straight_body, "TELL_SECONDS", 0)
    closing = b"\r\nConnection: close\r\n"
    async with range_server(lambda raw, _: raw.replace(b"\r\n", closing, 1)[:-7]) as store:
        running = asyncio.ensure_future(bench.bring(store.url))
        await bench.has_counted(SIZE - 7)
        await cancelled(running)
    assert bench.run.position == SIZE - 7
    assert bench.is_right()


async def test_whoever_waits_for_checkpoints_is_woken_too(bench):
    waits = asyncio.Event()
    loop = asyncio.get_running_loop()

    def is_behind(_):
        loop.call_soon_threadsafe(waits.set)
        return True

    async with range_server() as store:
        body = await bench.ask(store.url)
        run = SegmentRun(Segment(start=0, stop=SIZE, watermark=0))
        limit = RateLimit(None)
        pouring = body.pour(
            run, bench.part, rate_limit=limit, is_behind=is_behind, count=lambda _: None
        )
        running = asyncio.ensure_future(pouring)
        await waits.wait()
        await cancelled(running)
    assert run.is_complete


async def test_whoever_waits_for_the_rate_limit_is_woken_too(bench):
    waits = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait(stopping, seconds):
        loop.call_soon_threadsafe(waits.set)
        stopping.wait(seconds)

    bench.rate_limit = RateLimit(1, wait=wait)
    async with range_server() as store:
        running = asyncio.ensure_future(bench.bring(store.url))
        await waits.wait()
        await cancelled(running)
    assert bench.run.position == 1
    assert bench.is_right()


async def test_nothing_is_left_when_it_is_closed(tmp_path):
    """Neither a thread nor a descriptor, whatever became of the ranges."""
    before, threads = _descriptors(), set(threading.enumerate())
    bench = Bench(tmp_path)
    async with range_server(lambda raw, number: raw if number != 1 else raw[:-9]) as store:
        await bench.bring(store.url, 0, HALF)
        running = asyncio.ensure_future(bench.bring(store.url, HALF))
        for _ in range(2):
            await store.was_asked.acquire()
        await cancelled(running)
        await bench.bring(store.url, HALF)
        (await bench.ask(store.url)).close()  # never poured
        kept = await bench.ask(store.url)
        started = set(threading.enumerate()) - threads
        bench.close()
        kept.close()  # what was under way has its own end
    for thread in started:
        if thread.name.startswith("straight"):
            thread.join()
    assert _descriptors() <= before


def _descriptors():
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            found.add(entry.readlink())
    return found


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Make a certificate that is its own authority."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on the PATH to make a certificate with")
    directory = tmp_path_factory.mktemp("authority")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", key, "-out", certificate]
    made = subprocess.run(
        [openssl, "req", "-x509", *kind, *names, *files], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"this openssl makes no certificate: {made.stderr.decode()}")
    return key, certificate


@pytest.fixture
def tls(certificate):
    key, chain = certificate
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, key)
    return server


@pytest.fixture
async def secure_bench(certificate, tmp_path):
    context = ssl.create_default_context(cafile=certificate[1])
    with contextlib.closing(Bench(tmp_path, context)) as bench:
        yield bench


async def test_bytes_come_by_tls_from_an_authority_of_ones_own(secure_bench, tls):
    async with range_server(tls=tls) as store:
        for start, stop in [(0, 1), (1, HALF), (HALF, SIZE)]:
            await secure_bench.bring(store.url, start, stop)
            assert secure_bench.run.is_complete
            assert secure_bench.is_right()
    assert len(store.writers) == 1


async def test_the_next_handshake_with_a_store_is_a_short_one(secure_bench, tls):
    async with range_server(tls=tls) as store:
        await secure_bench.bring(store.url, 0, HALF)
        place = ("https", "127.0.0.1", urlsplit(store.url).port)
        secure_bench.road._from_earlier(place).close()
        await secure_bench.bring(store.url, HALF)
        first, second = (writer.get_extra_info("ssl_object") for writer in store.writers)
        assert (first.session_reused, second.session_reused) == (False, True)
        assert secure_bench.is_right()


async def test_a_certificate_that_is_not_trusted_is_left_to_the_plain_way(bench, tls):
    """Which says what to do about it; not a byte of a request has been sent."""
    async with range_server(tls=tls) as store:
        assert await bench.ask(store.url) is None
    assert store.heads == []


async def test_what_comes_behind_a_body_by_tls_is_never_the_next_reply(secure_bench, tls):
    """It may have been decrypted already: then nothing can be seen of it at the socket."""
    edge = 9000  # more than is buffered with the head, and all of it in one record
    span = f"bytes {edge}-{edge + 99}/{SIZE}"
    forged = reply(206, b"!" * 100, ETag='"1"', Content_Range=span)
    async with range_server(lambda raw, n: raw if n else raw + forged, tls=tls) as store:
        await secure_bench.bring(store.url, 0, edge)
        await secure_bench.bring(store.url, edge, edge + 100)
        assert secure_bench.run.is_complete
        assert secure_bench.is_right()
    assert len(store.writers) == 2


async def test_a_tls_connection_that_is_cut_keeps_what_came(secure_bench, tls):
    async with range_server(lambda raw, _: raw[:-7], tls=tls, hangs_up=True) as store:
        with pytest.raises(StoreUnavailable, match="in the middle of the body"):
            await secure_bench.bring(store.url)
    assert secure_bench.run.position == SIZE - 7
    assert secure_bench.is_right()


@pytest.mark.parametrize("asked", [0, 1])
async def test_a_record_that_never_ends_is_a_stalled_connection(certificate, tls, tmp_path, asked):
    """Before the head of a reply, and in its body; a byte now and then is none of the object."""
    has_left = threading.Event()

    def serve(listener):
        raw, _ = listener.accept()
        with tls.wrap_socket(raw, server_side=True) as line:
            line.recv(65536)
            if asked:
                span = f"bytes 0-8999/{SIZE}"
                line.send(reply(206, b"!", ETag='"1"', Content_Range=span, Content_Length=9000))
            with contextlib.suppress(OSError):
                os.write(line.fileno(), b"\x17\x03\x03\x40\x00")  # 16 KiB are to follow
                while not has_left.wait(0.02):  # how slow it is, is what is tried
                    os.write(line.fileno(), b"?")

    context = ssl.create_default_context(cafile=certificate[1])
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        ThreadPoolExecutor(1) as executor,
        contextlib.closing(Bench(tmp_path, context, stall_timeout=0.3)) as bench,
    ):
        serving = executor.submit(serve, listener)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/a"
        try:
            with pytest.raises(StoreUnavailable):
                async with asyncio.timeout(5):
                    await bench.bring(url, 0, 9000)
        finally:
            has_left.set()
        serving.result()


async def test_whoever_is_cancelled_never_takes_what_is_still_encrypted_for_the_object(
    secure_bench, tls
):
    """Between the look at the flag and the read, the connection is ended under the thread."""
    loop, entered, released = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    class Limit(RateLimit):
        looks = 0

        @property
        def portion(self):
            self.looks += 1
            if self.looks == 2:
                loop.call_soon_threadsafe(entered.set)
                assert released.wait(30)
            return 20_000

    secure_bench.rate_limit = Limit(None)
    async with range_server(tls=tls) as store:
        running = asyncio.ensure_future(secure_bench.bring(store.url))
        await entered.wait()
        running.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        released.set()
        await cancelled(running)
    assert 0 < secure_bench.run.position < SIZE
    assert secure_bench.is_right()


async def test_whoever_is_cancelled_in_a_handshake_ends_at_once(secure_bench):
    """The store has taken the connection and says nothing."""
    begun = asyncio.Event()

    async def say_nothing(reader, writer):
        await reader.read(1)
        begun.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    running = asyncio.ensure_future(secure_bench.ask(f"https://127.0.0.1:{port}/a"))
    await begun.wait()
    await cancelled(running)
    server.close()
    await server.wait_closed()


@contextlib.asynccontextmanager
async def _greeter(greeting):
    """Say something to whoever comes, and no more; lends a URL."""
    writers = []

    def greet(_, writer):
        writers.append(writer)
        writer.write(greeting)

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await server.wait_closed()


async def test_a_handshake_that_never_ends_is_a_passing_fault(certificate, tmp_path):
    context = ssl.create_default_context(cafile=certificate[1])
    with contextlib.closing(Bench(tmp_path, context, connect_timeout=0.1)) as bench:
        async with _greeter(b"") as url:
            with pytest.raises(StoreUnavailable, match="cannot be reached: no connection in time"):
                await bench.ask(url)


async def test_a_handshake_that_comes_a_byte_at_a_time_ends_too(certificate, tmp_path, monkeypatch):
    """As much time as a connection may take is for all of it, not for each byte."""
    monkeypatch.setattr(straight.SecureLine, "_take_in", lambda *_: True)
    context = ssl.create_default_context(cafile=certificate[1])
    with contextlib.closing(Bench(tmp_path, context, connect_timeout=0.1)) as bench:
        async with _greeter(b"") as url:
            with pytest.raises(StoreUnavailable, match="cannot be reached: no connection in time"):
                await bench.ask(url)


async def test_a_port_that_speaks_no_tls_is_left_to_the_plain_way(secure_bench):
    async with _greeter(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        assert await secure_bench.ask(url) is None
