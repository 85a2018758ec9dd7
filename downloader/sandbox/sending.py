"""Puts a decided reply on the wire: paced, counted, and with the ending that it asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from aiohttp import web

from downloader.sandbox.faults import Fault, Injection
from downloader.sandbox.ledger import Exchange
from downloader.sandbox.loopback import close_connection, reset_connection
from downloader.sandbox.objects import Source, open_source
from downloader.sandbox.reply import Ending, Reply

__all__ = ["Delivery", "Pacer"]

CHUNK_BYTES = 256 * 1024
SENDFILE_BYTES = 1024 * 1024


class Pacer:
    """Lets bytes pass at a rate: `take` returns when so many more may go."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._due = 0.0

    async def take(self, count: int) -> None:
        """Wait for the turn of `count` bytes, behind those who asked before."""
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now) + count / self.bytes_per_second
        await asyncio.sleep(self._due - now)


@dataclass(slots=True, kw_only=True)
class Delivery:
    """The sending of one reply over one connection."""

    request: web.BaseRequest
    reply: Reply
    exchange: Exchange
    pacers: Sequence[Pacer] = ()
    injection: Injection[Fault] | None = None

    async def run(self) -> web.StreamResponse:
        """Send everything; a client that leaves ends it quietly."""
        reply = self.reply
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        if reply.chunked:
            response.enable_chunked_encoding()
        elif reply.status != 304:  # noqa: PLR2004 - not modified, which has no content
            response.content_length = reply.length
        self.exchange.status = reply.status
        try:
            await response.prepare(self.request)
            if self.request.method != "HEAD":
                await self._send_content(response)
        except ConnectionError:
            close_connection(self.request)
        return response

    async def _send_content(self, response: web.StreamResponse) -> None:
        reply = self.reply
        stop = reply.stop if reply.after is None else reply.start + reply.after
        with open_source(reply.content, reply.size) as source:
            await self._send(response, source, reply.start, stop)
            if self.injection is not None:
                self.injection.happened.set()
            if reply.ending is Ending.STALL and self.injection is not None:
                await self.injection.released.wait()
                await self._send(response, source, stop, reply.stop)
        if reply.extra:
            await self._write(response, reply.extra)
        if reply.tail and self.request.transport is not None:
            self.request.transport.write(reply.tail)
        if reply.ending is Ending.CUT:
            close_connection(self.request)
        elif reply.ending is Ending.RESET:
            reset_connection(self.request)

    async def _send(
        self, response: web.StreamResponse, source: Source, start: int, stop: int
    ) -> None:
        if source.file is not None and self.reply.is_plain and not self.pacers:
            await self._sendfile(source, start, stop)
            return
        position = start
        while position < stop:
            data = source.read(position, min(self._chunk_bytes(), stop - position))
            if not data:
                raise ConnectionResetError("the file became shorter while it was served")
            await self._write(response, self._flipped(data, position))
            position += len(data)

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        for pacer in self.pacers:
            await pacer.take(len(data))
        # Counted before it goes, so that a client that has it all finds it in the books.
        self.exchange.sent(len(data))
        try:
            await response.write(data)
        except ConnectionError:
            self.exchange.sent(-len(data))
            raise
        if self.reply.trickle is not None:
            await asyncio.sleep(self.reply.trickle[1])

    async def _sendfile(self, source: Source, start: int, stop: int) -> None:
        loop = asyncio.get_running_loop()
        for position in range(start, stop, SENDFILE_BYTES):
            transport = self.request.transport
            if transport is None or transport.is_closing() or source.file is None:
                raise ConnectionResetError("the client has left")
            count = min(SENDFILE_BYTES, stop - position)
            self.exchange.sent(count)
            source.file.seek(position)
            try:
                sent = await loop.sendfile(transport, source.file, position, count)
            finally:  # the file's own position tells how much went, after an error too
                self.exchange.sent(source.file.tell() - position - count)
            if sent < count:
                raise ConnectionResetError("the file became shorter while it was served")

    def _chunk_bytes(self) -> int:
        if self.reply.trickle is not None:
            return self.reply.trickle[0]
        rates = [pacer.bytes_per_second for pacer in self.pacers]
        # Twenty pieces a second look like a stream, and not like a clock.
        return max(1024, min(CHUNK_BYTES, int(min(rates) / 20))) if rates else CHUNK_BYTES

    def _flipped(self, data: bytes, position: int) -> bytes:
        at = self.reply.flip_at
        if at is None or not position <= at < position + len(data):
            return data
        index = at - position
        return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]
