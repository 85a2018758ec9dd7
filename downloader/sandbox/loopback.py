"""A small HTTP server on loopback that counts its connections and can break them."""

from __future__ import annotations

import asyncio
import email.utils
import ipaddress
import socket
import struct
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from urllib.parse import unquote

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from downloader.errors import InvalidSettings

__all__ = [
    "NO_HTTP",
    "LoopbackServer",
    "close_connection",
    "http_date",
    "reset_connection",
    "say_instead",
    "split_target",
]

NO_HTTP = b"SSH-2.0-OpenSSH_9.2p1\r\n"  # as from a port that serves something else

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# Whoever still holds a connection when the server closes is not waited for.
SHUTDOWN_SECONDS = 0.05


class _CountingServer(web.Server):
    def __init__(self, handler: Handler) -> None:
        # Cancellation lets a stalled answer end as soon as its client has left.
        super().__init__(handler, handler_cancellation=True, access_log=None)
        self.open = 0
        self.peak = 0

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.open += 1
        self.peak = max(self.peak, self.open)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        self.open -= 1
        super().connection_lost(handler, exc)


class LoopbackServer:
    """Serves one handler on a port of a loopback address, from `start` to `close`."""

    def __init__(self, handler: Handler, *, host: str = "127.0.0.1", port: int = 0) -> None:
        if not _is_loopback(host):
            raise InvalidSettings(
                f"The sandbox cannot listen on {host!r}: it speaks plain HTTP and serves the "
                "machine it runs on only; give a loopback address such as 127.0.0.1."
            )
        self._handler = handler
        self._host = host
        self._port = port
        self._server: _CountingServer | None = None
        self._runner: web.ServerRunner | None = None

    async def start(self) -> None:
        """Listen; a port of 0 takes any that is free."""
        self._server = _CountingServer(self._handler)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=SHUTDOWN_SECONDS)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self.close()
            raise InvalidSettings(
                f"The sandbox cannot listen on {self._host} port {self._port} ({error.strerror}); "
                "give another port, or 0 for any that is free."
            ) from error
        self._port = int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """The server's address without a path."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def connections_open(self) -> int:
        """Connections that are open now."""
        return self._server.open if self._server else 0

    @property
    def connections_peak(self) -> int:
        """The most connections that were ever open at once."""
        return self._server.peak if self._server else 0


def close_connection(request: web.BaseRequest) -> None:
    """Close the connection after what was written to it (FIN)."""
    if request.transport is not None:
        request.transport.close()


def reset_connection(request: web.BaseRequest) -> None:
    """Break the connection (RST)."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def say_instead(request: web.BaseRequest, data: bytes) -> None:
    """Write these bytes in place of an answer, and close the connection after them."""
    if request.transport is not None:
        request.transport.write(data)
        request.transport.close()


def split_target(request: web.BaseRequest) -> tuple[str, str]:
    """Return the path without its first slash, percent-decoded once, and the raw query."""
    path, _, query = request.raw_path.partition("?")
    return unquote(path.removeprefix("/")), query


def http_date(at: datetime) -> str:
    """Write a time as HTTP headers do."""
    return email.utils.format_datetime(at.astimezone(UTC), usegmt=True)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
