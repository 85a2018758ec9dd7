"""Tells systemd how the service is doing (sd_notify(3)); outside of systemd, tells nobody.

What cannot be sent at once is sent with the next message: systemd's queue, if full, holds up
nothing and loses nothing that counts.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Mapping, MutableMapping

from downloader.logs import one_line, scrubbed

__all__ = ["Notifier"]

MAX_STATUS = 200  # characters; `systemctl status` shows one line
SOCKET = "NOTIFY_SOCKET"
WATCHDOG_USEC = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"
# Of these systemd heeds the last one only.
STAGES = ("READY", "RELOADING", "STOPPING")

logger = logging.getLogger(__name__)


class Notifier:
    """One direction of talk: nothing here raises, and nothing waits."""

    def __init__(
        self, address: str | None = None, *, watchdog_seconds: float | None = None
    ) -> None:
        """Talk to the socket at an address as in NOTIFY_SOCKET, or to nobody."""
        self._address = address
        self._watchdog_seconds = watchdog_seconds
        self._unsent: dict[str, str] = {}
        self._has_complained = False

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Notifier:
        """Return the one that systemd asks for, and take its variables out of the environment.

        A child that inherited them could speak in our name.
        """
        address = environ.pop(SOCKET, None) or None
        watchdog_seconds = _watchdog_seconds(environ)
        for name in (WATCHDOG_USEC, WATCHDOG_PID):
            environ.pop(name, None)
        if address is None:
            return cls()
        if address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET is no local socket; systemd is told nothing")
            return cls()
        return cls(address, watchdog_seconds=watchdog_seconds)

    @property
    def watchdog_seconds(self) -> float | None:
        """The longest that systemd will wait for `watchdog`; None if it does not watch us."""
        return self._watchdog_seconds

    @property
    def is_heard(self) -> bool:
        """Tell whether anybody is told."""
        return self._address is not None

    def ready(self, status: str | None = None) -> None:
        """Say that everything is started, or that the settings have been read anew."""
        self._enter("READY", status)

    def reloading(self) -> None:
        """Say that the settings are being read anew; `ready` must follow."""
        self._enter("RELOADING", None, MONOTONIC_USEC=str(time.monotonic_ns() // 1000))

    def stopping(self, status: str | None = None) -> None:
        """Say that nothing new is begun."""
        self._enter("STOPPING", status)

    def status(self, text: str) -> None:
        """Say in one line what is being done."""
        self._send({"STATUS": _shown(text)})

    def watchdog(self) -> None:
        """Say that the event loop turns."""
        self._send({"WATCHDOG": "1"})

    def _enter(self, stage: str, status: str | None, **others: str) -> None:
        """Say which stage begins; one that could not be told before is told no more."""
        for name in (*STAGES, "MONOTONIC_USEC"):
            self._unsent.pop(name, None)
        said = {} if status is None else {"STATUS": _shown(status)}
        self._send({stage: "1", **others, **said})

    def _send(self, fields: dict[str, str]) -> None:
        if self._address is None:
            return
        self._unsent |= fields
        try:
            _send_datagram(self._address, self._unsent)
        except (BlockingIOError, InterruptedError):
            pass  # the queue is full
        except (OSError, ValueError) as error:
            self._complain(error)
        else:
            self._unsent.clear()

    def _complain(self, error: OSError | ValueError) -> None:
        """Log the first failure; the next message is tried all the same, for it may have passed."""
        if not self._has_complained:
            reason = getattr(error, "strerror", None) or "NOTIFY_SOCKET names no socket"
            logger.warning("systemd cannot be told how the service is doing: %s", reason)
        self._has_complained = True


def _send_datagram(address: str, fields: Mapping[str, str]) -> None:
    message = "\n".join(f"{name}={value}" for name, value in fields.items())
    place = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as channel:
        channel.sendto(message.encode(errors="replace"), place)


def _shown(status: str) -> str:
    """Return a status as one line without secrets, whoever's words are in it."""
    return one_line(scrubbed(status[: 4 * MAX_STATUS]), MAX_STATUS)


def _watchdog_seconds(environ: MutableMapping[str, str]) -> float | None:
    """Return what WATCHDOG_USEC says, if it is meant for this process (sd_watchdog_enabled(3))."""
    if environ.get(WATCHDOG_PID, str(os.getpid())) != str(os.getpid()):
        return None
    # Eighteen digits are 30,000 years; Python refuses to read thousands of them.
    microseconds = re.fullmatch("[0-9]{1,18}", environ.get(WATCHDOG_USEC, ""))
    return int(microseconds[0]) / 1_000_000 or None if microseconds else None
