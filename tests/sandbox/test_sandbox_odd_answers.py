"""The odd answers of both stand-ins, byte for byte as they travel."""

import asyncio
import contextlib
import gzip
import json
from urllib.parse import urlsplit

import pytest

from downloader.api import AsyncPrivateAPI
from downloader.errors import PlatformError, PlatformUnavailable
from downloader.retry import without_waiting
from downloader.sandbox import Fault, PlatformFault, Sandbox

KEY = "run/a.bin"
DATA = bytes(range(256)) * 64


@pytest.fixture
async def sandbox():
    async with Sandbox() as sandbox:
        sandbox.store.put(KEY, DATA)
        yield sandbox


async def asked(url, *, start=0, stop=1000):
    """Return the head and all that comes behind it on a connection that stays open a moment."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    wanted = f"Host: x\r\nConnection: close\r\nRange: bytes={start}-{stop - 1}"
    writer.write(f"GET {parts.path}?{parts.query} HTTP/1.1\r\n{wanted}\r\n\r\n".encode())
    with contextlib.closing(writer):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return head.decode().lower(), body


async def test_longer_promises_more_than_its_range_and_keeps_that(sandbox):
    sandbox.store.inject(Fault.LONGER, extra=b"more")
    head, body = await asked(sandbox.store.object_url(KEY))
    assert "content-length: 1004" in head
    assert f"content-range: bytes 0-999/{len(DATA)}" in head
    assert body == DATA[:1000] + b"more"


async def test_a_tail_comes_behind_an_answer_that_is_right(sandbox):
    sandbox.store.inject(Fault.TAIL, extra=b"HTTP/1.1 200 OK\r\n\r\n")
    head, body = await asked(sandbox.store.object_url(KEY))
    assert "content-length: 1000" in head
    assert body == DATA[:1000] + b"HTTP/1.1 200 OK\r\n\r\n"


async def test_a_part_may_not_say_of_what_it_is_one(sandbox):
    sandbox.store.inject(Fault.NO_CONTENT_RANGE)
    head, body = await asked(sandbox.store.object_url(KEY))
    assert head.startswith("http/1.1 206")
    assert "content-range" not in head
    assert body == DATA[:1000]


async def test_what_is_compressed_says_so_and_has_the_length_of_what_travels(sandbox):
    sandbox.store.inject(Fault.COMPRESSED)
    head, body = await asked(sandbox.store.object_url(KEY), start=500, stop=5000)
    assert "content-encoding: gzip" in head
    assert f"content-length: {len(body)}" in head
    assert f"content-range: bytes 500-4999/{len(DATA)}" in head
    assert gzip.decompress(body) == DATA[500:5000]


async def test_garbage_is_no_answer_at_all(sandbox):
    injected = sandbox.store.inject(Fault.GARBAGE, extra=b"220 ftp.example\r\n")
    head, body = await asked(sandbox.store.object_url(KEY))
    assert (head, body) == ("220 ftp.example\r\n", b"")
    assert injected.happened.is_set()


# The platform


async def polled(sandbox, fault, **details):
    """Ask once, with no second attempt, while the platform goes wrong."""
    task_id = sandbox.add_task([KEY], states=("SUCCESS",))
    sandbox.platform.inject(fault, **details)
    given = (sandbox.app_key, sandbox.app_secret, sandbox.endpoint)
    with without_waiting():
        async with AsyncPrivateAPI(*given, max_retries=0) as api:
            return await api.task_result(task_id)


@pytest.mark.parametrize("fault", [PlatformFault.CUT, PlatformFault.GARBAGE])
async def test_half_an_answer_or_none_is_a_passing_fault(sandbox, fault):
    with pytest.raises(PlatformUnavailable, match=r"The connection to .* failed"):
        await polled(sandbox, fault)


async def test_a_trickle_is_the_right_answer(sandbox):
    answer = await polled(sandbox, PlatformFault.TRICKLE, interval=0, chunk=3)
    assert answer["status"] == "SUCCESS"
    assert len(answer["result"]) == 1


async def test_any_body_can_be_asked_for(sandbox):
    body = json.dumps({"code": 0, "data": {"status": "ODD"}}).encode()
    assert (await polled(sandbox, PlatformFault.BODY, body=body))["status"] == "ODD"


async def test_a_redirect_is_one_that_would_keep_method_and_body(sandbox):
    """307 would carry the signed form to another host."""
    told = r"redirects \(HTTP 307\) to https://evil\.example/"
    with pytest.raises(PlatformError, match=told):
        await polled(sandbox, PlatformFault.REDIRECT, location="https://evil.example/")
