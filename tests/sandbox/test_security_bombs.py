"""What a hostile server sends is bounded in memory and in time, and ends in one sentence."""

import asyncio
import contextlib
import gzip
import itertools
import json
import tracemalloc
from urllib.parse import urlsplit

import aiohttp
import pytest

from downloader.api import AsyncPrivateAPI
from downloader.api.envelope import MAX_CONTAINERS, MAX_VALUES, Reply, parse_reply
from downloader.errors import (
    BusinessError,
    PlatformError,
    PlatformUnavailable,
    StoreUnavailable,
    TransferError,
)
from downloader.hosts import HostRules
from downloader.retry import without_waiting
from downloader.transfer import StraightRoad, line, ranged_get

MIB = 1024 * 1024
DEEP = 5000


@pytest.fixture
async def server():
    """A server that answers every request with the pieces that `pieces` yields, as they come."""

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in serving.pieces():
                writer.write(piece)
                await writer.drain()
                serving.sent += len(piece)
                await asyncio.sleep(0)
        writer.close()

    serving = await asyncio.start_server(serve, "127.0.0.1", 0)
    serving.sent = 0
    serving.url = f"http://127.0.0.1:{serving.sockets[0].getsockname()[1]}"
    async with serving:
        yield serving


def head(status="200 OK", **fields):
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).replace("_", "-").encode()


def trickle(*first, piece=b"x"):
    """Yield the pieces, and then one small piece after the other for ever."""
    return lambda: itertools.chain(first, itertools.repeat(piece))


# The platform


def reply(body):
    return Reply(url="https://platform.example/x", status=200, body=body)


BOMBS = {
    "lists": b'{"code":0,"data":[' + b"[]," * (MAX_CONTAINERS + 1) + b"[]]}",
    "objects": b'{"code":0,"data":[' + b"{}," * (MAX_CONTAINERS + 1) + b"{}]}",
    "numbers": b'{"code":0,"data":[' + b"0," * (MAX_VALUES + 1) + b"0]}",
    "keys": b'{"code":0,"data":{' + b'"":0,' * (MAX_VALUES + 1) + b'"":0}}',
    "utf-16": ('{"code":0,"data":[' + "[]," * (MAX_CONTAINERS + 1) + "[]]}").encode("utf-16"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_short_text_that_would_fill_the_memory_is_not_read(kind):
    """16 MiB of empty lists, which are no answer, would become more than 1 GiB of them."""
    tracemalloc.start()
    try:
        with pytest.raises(PlatformError, match=r"over 200,000 objects .* fewer items at a time"):
            parse_reply(reply(BOMBS[kind]))
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":0,"data":' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"code":0,"data":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        b'{"code":0,"data":' + b"9" * MIB + b"}",
        b"\xff\xfe\x00",
        b'{"code":0,"data":"' + b"\\ud800" * 10,
    ],
)
def test_what_cannot_be_read_is_no_answer(body):
    with pytest.raises(PlatformUnavailable, match="where a JSON object was expected"):
        parse_reply(reply(body))


def test_a_large_answer_is_an_answer():
    links = [f"https://a.example/{number}?Signature={'x' * 200}" for number in range(50_000)]
    data = parse_reply(reply(json.dumps({"code": 0, "data": links}).encode()))
    assert data["result"] == links


@pytest.mark.parametrize("code", ["\x1b[2J" * 10_000, ["x" * 10_000], {"a": 1}, None, 10**200])
def test_a_code_that_is_none_cannot_fill_or_move_a_terminal(code):
    with pytest.raises(BusinessError) as caught:
        parse_reply(reply(json.dumps({"code": code, "msg": "no"}).encode()))
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


async def ask(server, **options):
    async with AsyncPrivateAPI("key", "secret-of-nobody", server.url, 0, **options) as api:
        with without_waiting():
            return await api.question_size("u")


async def test_a_small_reply_that_unpacks_to_gigabytes_is_not_unpacked(server):
    packed = gzip.compress(bytes(64 * MIB))
    server.pieces = lambda: [
        head(Content_Encoding="gzip", Content_Length=len(packed), Content_Type="application/json"),
        packed,
    ]
    tracemalloc.start()
    try:
        with pytest.raises(PlatformError, match="larger than 16 MiB"):
            await ask(server, timeout=20)
        assert tracemalloc.get_traced_memory()[1] < 48 * MIB
    finally:
        tracemalloc.stop()


ENDLESS = {
    "body": trickle(head(Content_Type="application/json"), piece=b" " * 65536),
    "slow body": trickle(head(Content_Type="application/json")),
    "chunks": trickle(head(Transfer_Encoding="chunked"), piece=b"1\r\nx\r\n"),
    "head": trickle(b"HTTP/1.1 200 OK\r\n", piece=b"x: y\r\n"),
    "field": trickle(b"HTTP/1.1 200 OK\r\nx: "),
    "interim replies": trickle(piece=b"HTTP/1.1 102 Processing\r\n\r\n"),
    "status line": trickle(b"HTTP/1.1 200 "),
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.thorough
async def test_a_reply_of_the_platform_without_an_end_is_given_up(server, kind):
    server.pieces = ENDLESS[kind]
    with pytest.raises(PlatformError) as caught:
        await ask(server, timeout=0.3)
    assert "\n" not in str(caught.value)
    assert server.sent < 64 * MIB


# The store


@pytest.fixture
def _hasty(monkeypatch):
    """Let patience last a moment; what is looked at is that it ends."""
    for module in (ranged_get, line):
        monkeypatch.setattr(module, "MAX_ERROR_SECONDS", 0.2)
        monkeypatch.setattr(module, "MAX_HEAD_SECONDS", 0.2)


async def ask_plainly(url):
    timeout = aiohttp.ClientTimeout(total=None, sock_read=5)
    async with (
        aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
        ranged_get.ranged_get(
            session, url, start=0, stop=10, version=None, rules=HostRules.of(["127.0.0.1"])
        ),
    ):
        pass


async def ask_straight(url):
    road = StraightRoad(context=None, connect_timeout=5, stall_timeout=5, user_agent="test")
    with contextlib.closing(road):
        body = await road.ask(urlsplit(url), start=0, stop=10, version=None)
        assert body is None, "it came"
    raise TransferError("left to the plain way, which gives it up")


ROADS = pytest.mark.parametrize("ask", [ask_plainly, ask_straight], ids=["plain", "straight"])


@pytest.mark.usefixtures("_hasty")
@ROADS
@pytest.mark.parametrize("kind", ["head", "field", "interim replies", "status line"])
async def test_the_head_of_a_stores_reply_without_an_end_is_given_up(server, ask, kind):
    server.pieces = ENDLESS[kind]
    with pytest.raises(TransferError):
        await ask(f"{server.url}/a?Signature=geheim")
    assert server.sent < 16 * MIB


@pytest.mark.usefixtures("_hasty")
@ROADS
@pytest.mark.parametrize("piece", [b"x", b"x" * 65536], ids=["slow", "fast"])
async def test_a_refusal_without_an_end_is_a_refusal(server, ask, piece):
    """Its status says enough, and its first words."""
    server.pieces = trickle(
        head("503 Slow Down", Content_Length=10**15), b"<Code>SlowDown</Code>", piece=piece
    )
    with pytest.raises(StoreUnavailable, match="SlowDown"):
        await ask(f"{server.url}/a?Signature=geheim")
    assert server.sent < 16 * MIB
