"""A connection by TLS, decrypted from memory.

An `ssl.SSLSocket` reads each record of 16 KiB by two system calls, and each of them tells the
other side that there is room for a little more. Here the socket is read as any other, in large
pieces, and OpenSSL decrypts from memory.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import cast

from downloader.transfer.line import SLICE_SECONDS, Line, Place

__all__ = ["SecureLine"]

SEALED_BYTES = 128 * 1024  # read from the socket at once


class SecureLine(Line):
    """A line whose bytes are encrypted; `shake_hands` comes first."""

    def __init__(
        self,
        place: Place,
        connected: socket.socket,
        *,
        stall_timeout: float,
        context: ssl.SSLContext,
        session: ssl.SSLSession | None,
    ) -> None:
        super().__init__(place, connected, stall_timeout=stall_timeout)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        _, host, _ = place
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=host, session=session
        )
        self._sealed = memoryview(bytearray(SEALED_BYTES))
        self._broke: Exception | None = None  # behind bytes that were still to be handed on

    @property
    def session(self) -> ssl.SSLSession | None:
        """What makes the next handshake with the same store a short one."""
        return self._tls.session

    def shake_hands(self, timeout: float) -> None:
        """Agree on keys, and hold the store's certificate against whom we trust; blocks.

        Raises:
            TimeoutError: it has taken longer than `timeout` seconds.
            OSError: the connection was lost, or the store is not trusted (ssl.SSLError).
        """
        give_up_at = time.monotonic() + timeout
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
            else:
                self._flush()
                return
            self._take_in()
            if time.monotonic() >= give_up_at:  # also of a store that sends a byte now and then
                raise TimeoutError

    def _send(self, head: bytes) -> None:
        self._tls.write(head)
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())

    def _take_in(self, flags: int = 0) -> bool:
        """Take what has come, still sealed; False when nothing came in a while."""
        try:
            came = self.socket.recv_into(self._sealed, SEALED_BYTES, flags)
        except BlockingIOError:
            return False
        if came:
            self._incoming.write(self._sealed[:came])
        else:
            self._incoming.write_eof()
        return True

    def _some(self, limit: int) -> bytes:
        buffer = memoryview(bytearray(limit))
        while not (came := self._opened(buffer, until=0.0)):
            self._be_patient()
        self._quiet_since = None
        return bytes(buffer[:came])

    def _receive(self, view: memoryview) -> int:
        return self._opened(view, until=time.monotonic() + SLICE_SECONDS)

    def _opened(self, view: memoryview, *, until: float) -> int:
        """Decrypt into the buffer what comes: what is there, and more until the time is up."""
        if self._broke is not None:
            raise self._broke
        held, has_waited = 0, False
        while held < len(view):
            try:
                came = cast("int", self._tls.read(len(view) - held, view[held:]))
            except ssl.SSLWantReadError:
                # Also of a store that never comes to the end of a record: the caller counts.
                is_over = has_waited and time.monotonic() >= until
                if is_over or not self._take_in():
                    break
                has_waited = True
                continue
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                came = 0
            except OSError as error:
                if not held:
                    raise
                self._broke = error  # what came before it is handed on first
                break
            if not came:
                if not held:
                    raise EOFError
                self._broke = EOFError()
                break
            held += came
        self._flush()  # as when the store wants other keys
        return held

    def _is_silent(self) -> bool:
        while True:
            try:
                self._tls.read(1)
            except ssl.SSLWantReadError:
                if not self._take_in(socket.MSG_DONTWAIT):
                    return True
            else:
                return False
