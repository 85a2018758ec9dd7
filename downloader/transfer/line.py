"""A connection to a store for blocking threads: asked again and again, woken from outside."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import time

from downloader.transfer.wire import HEAD_END, Head, NoReply, parse_head

__all__ = ["SLICE_SECONDS", "Line"]

SLICE_SECONDS = 0.05  # of waiting in the kernel, between two looks at what else there is to do
HEAD_BYTES = 16 * 1024  # read at once, while the head has not ended
MAX_HEAD_BYTES = 64 * 1024


class Line:
    """One connection. Threads read and write; it is closed on the event loop, between two of them.

    `stall_timeout` is in seconds: how long it may bring nothing.
    """

    def __init__(
        self, place: tuple[str, str, int], connected: socket.socket, *, stall_timeout: float
    ) -> None:
        self.place = place
        self.socket = connected
        self._stall_timeout = stall_timeout
        self._early = memoryview(b"")  # of the body, come with the head
        self._is_plain = False
        self._quiet_since: float | None = None

    def be_ready(self) -> None:
        """Let reads and writes block, and wake up now and then; after a handshake, if there is one.

        By the socket's own timeouts: Python's would cost another system call for each read.
        """
        self._is_plain = not isinstance(self.socket, ssl.SSLSocket)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._is_plain:
            self.socket.settimeout(self._stall_timeout)
            return
        self.socket.settimeout(None)
        for option, seconds in (
            (socket.SO_RCVTIMEO, SLICE_SECONDS),
            (socket.SO_SNDTIMEO, self._stall_timeout),
        ):
            whole, part = divmod(int(seconds * 1e6), 1_000_000)
            self.socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, part))

    def ask(self, head: bytes) -> Head:
        """Send a request and read the head of its reply; blocks.

        Raises:
            OSError: the connection was lost, nothing came for too long, or what came is no reply.
        """
        self._early = memoryview(b"")
        self.socket.sendall(head)
        raw = bytearray()
        while (end := raw.find(HEAD_END)) < 0:
            if len(raw) > MAX_HEAD_BYTES:
                raise NoReply("a head without an end")
            came = self._received_head()
            if not came:
                raise ConnectionResetError("it ended before the head did")
            raw += came
        self._early = memoryview(bytes(raw))[end + len(HEAD_END) :]
        return parse_head(bytes(raw[:end]))

    def _received_head(self) -> bytes:
        while True:
            try:
                came = self.socket.recv(HEAD_BYTES)
            except BlockingIOError:
                self._be_patient()
            else:
                self._quiet_since = None
                return came

    def read_into(self, view: memoryview) -> int:
        """Read into the buffer what comes in a while; 0 when nothing did; blocks.

        Raises:
            EOFError: nothing more will come.
            OSError: the connection was lost, or nothing came for too long.
        """
        if self._early:
            count = min(len(view), len(self._early))
            view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        # Of a plain socket, one call takes all that comes in the slice: for the fast lines that
        # is a whole buffer, for the slow ones a small part of it.
        flags = socket.MSG_WAITALL if self._is_plain else 0
        try:
            came = self.socket.recv_into(view, len(view), flags)
        except BlockingIOError:
            self._be_patient()
            return 0
        if not came:
            raise EOFError
        self._quiet_since = None
        return came

    def read_text(self, length: int) -> bytes:
        """Read so many bytes of a refusal, or what of them comes before it breaks off; blocks."""
        text = memoryview(bytearray(length))
        held = 0
        with contextlib.suppress(OSError, EOFError):
            while held < length:
                held += self.read_into(text[held:])
        return bytes(text[:held])

    def _be_patient(self) -> None:
        """Raise TimeoutError once nothing has come for too long."""
        now = time.monotonic()
        if self._quiet_since is None:
            self._quiet_since = now - SLICE_SECONDS
        if now - self._quiet_since >= self._stall_timeout:
            raise TimeoutError

    def wake(self) -> None:
        """End what a thread waits for, and every later wait."""
        with contextlib.suppress(OSError):
            # Not SSLSocket's own way: that would let the thread read on without decrypting.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def is_quiet(self) -> bool:
        """Tell whether nothing came while it was idle, neither its end nor bytes of any kind."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return not poll.poll(0)

    def has_more(self) -> bool:
        """Tell whether anything came behind the body: the next reply must not begin with it."""
        try:
            return bool(self._early) or not self._is_silent()
        except OSError:
            return True

    def _is_silent(self) -> bool:
        if self._is_plain:
            try:
                self.socket.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return True
            return False
        self.socket.settimeout(0)
        try:
            self.socket.recv(1)
        except ssl.SSLWantReadError:
            return True
        finally:
            self.socket.settimeout(self._stall_timeout)
        return False

    def close(self) -> None:
        """Close it, once or again."""
        self.socket.close()
