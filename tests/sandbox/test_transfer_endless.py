"""A store that sends for ever what is no byte of the object: a transfer waits for bytes."""

import asyncio
import contextlib

import aiohttp
import pytest

from downloader.errors import StoreUnavailable
from downloader.hosts import HostRules
from downloader.transfer.ranged_get import ranged_get

STALL_SECONDS = 0.3
PATIENCE_SECONDS = 1.0
HEAD = (
    b'HTTP/1.1 206 Partial Content\r\nETag: "E"\r\nContent-Range: bytes 0-9/10\r\n'
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"
)
ENDLESS = {
    "trailers": (b"0\r\n", b"x: y\r\n"),
    "a trailer": (b"0\r\nx: ", b"y"),
    "an extension of a chunk": (b"1;x=", b"y"),
    "the length of a chunk": (b"0", b"0"),
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_a_body_to_which_no_byte_comes_has_stalled(kind):
    first, again = ENDLESS[kind]
    has_left = asyncio.Event()

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD + first)
            while True:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(STALL_SECONDS / 6)  # how slow it is, is what is tried
        writer.close()
        has_left.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"
    timeout = aiohttp.ClientTimeout(total=None, sock_read=STALL_SECONDS)
    rules = HostRules.of(["127.0.0.1"])
    async with server:
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
                asyncio.timeout(PATIENCE_SECONDS),
                ranged_get(session, url, start=0, stop=10, version=None, rules=rules) as body,
            ):
                assert await body.read(10) == b"abcde"
                with pytest.raises(StoreUnavailable):
                    await body.read(10)
        finally:
            await has_left.wait()
