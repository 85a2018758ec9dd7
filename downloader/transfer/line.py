"""A connection to a store for blocking threads: asked again and again, woken from outside."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time

from downloader.transfer.ranged_get import MAX_ERROR_SECONDS, MAX_HEAD_SECONDS
from downloader.transfer.wire import HEAD_END, Head, NoReply, parse_head

__all__ = ["SLICE_SECONDS", "Line", "Place"]

SLICE_SECONDS = 0.05  # of waiting in the kernel, between two looks at what else there is to do
HEAD_BYTES = 16 * 1024  # read at once, while the head has not ended
MAX_HEAD_BYTES = 64 * 1024

Place = tuple[str, str, int]  # scheme, host, port


class Line:
    """One connection. Threads read and write; it is closed on the event loop, between two of them.

    `stall_timeout` is in seconds: how long it may bring nothing.
    """

    def __init__(self, place: Place, connected: socket.socket, *, stall_timeout: float) -> None:
        self.place = place
        self.socket = connected
        self._stall_timeout = stall_timeout
        self._early = memoryview(b"")  # of the body, come with the head
        self._quiet_since: float | None = None
        # By the socket's own timeouts: Python's would cost a system call for each read.
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, seconds in (
            (socket.SO_RCVTIMEO, SLICE_SECONDS),
            (socket.SO_SNDTIMEO, stall_timeout),
        ):
            whole, part = divmod(max(1, int(seconds * 1e6)), 1_000_000)  # 0 would be for ever
            connected.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, part))

    def ask(self, head: bytes) -> Head:
        """Send a request and read the head of its reply; blocks.

        Raises:
            OSError: the connection was lost, nothing came for too long, or what came is no reply.
        """
        self._early = memoryview(b"")
        self._send(head)
        raw = bytearray()
        give_up_at = time.monotonic() + MAX_HEAD_SECONDS
        while (end := raw.find(HEAD_END)) < 0:
            if len(raw) > MAX_HEAD_BYTES:
                raise NoReply("its answer has a head without an end")
            if time.monotonic() >= give_up_at:
                raise TimeoutError
            try:
                raw += self._some(HEAD_BYTES)
            except EOFError:
                raise NoReply("it was closed before an answer came") from None
        self._early = memoryview(bytes(raw))[end + len(HEAD_END) :]
        return parse_head(bytes(raw[:end]))

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
        came = self._receive(view)
        if came:
            self._quiet_since = None
        else:
            self._be_patient()
        return came

    def read_text(self, length: int) -> bytes:
        """Read so many bytes of a refusal, or what of them comes before it breaks off; blocks."""
        text = memoryview(bytearray(length))
        held = 0
        give_up_at = time.monotonic() + MAX_ERROR_SECONDS
        with contextlib.suppress(OSError, EOFError):
            while held < length and time.monotonic() < give_up_at:
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
            self.socket.shutdown(socket.SHUT_RDWR)

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

    def close(self) -> None:
        """Close it, once or again."""
        self.socket.close()

    # What is another matter over TLS.

    def _send(self, head: bytes) -> None:
        self.socket.sendall(head)

    def _some(self, limit: int) -> bytes:
        """Return the next bytes, as many as have come; blocks until there are some."""
        while True:
            with contextlib.suppress(BlockingIOError):
                if not (came := self.socket.recv(limit)):
                    raise EOFError
                self._quiet_since = None
                return came
            self._be_patient()

    def _receive(self, view: memoryview) -> int:
        """Take all that comes in a slice by one call: of a fast line, that is a whole buffer."""
        try:
            came = self.socket.recv_into(view, len(view), socket.MSG_WAITALL)
        except BlockingIOError:
            return 0
        if not came:
            raise EOFError
        return came

    def _is_silent(self) -> bool:
        try:
            self.socket.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        return False
