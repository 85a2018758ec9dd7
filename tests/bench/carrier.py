"""The process that is the long way: it makes both namespaces, and carries packets between them.

`python -m tests.bench.carrier WAN` says on stdout where the namespaces are; they live as long as
it does. It ends with its standard input, and then says what it has carried.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import random
import resource
import select
import struct
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.packets import Packet
from tests.bench.wan import CLIENT, SERVER, SERVICE, Wan

CLONE_NEWNET = 0x40000000
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # linux/if_tun.h
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
BIGGEST = 65536 + 64
READS_A_TURN = 16  # then what is due is handed over first


@dataclass(slots=True)
class Direction:
    """One way of the two: from what one namespace sends to what the other receives."""

    source: int
    sink: int
    wan: Wan
    chance: random.Random
    due: deque[tuple[float, bytes]] = field(default_factory=deque)
    free_at: float = 0.0  # when the wire is free for the next packet
    packets: int = 0
    segments: int = 0
    lost: int = 0  # by chance
    dropped: int = 0  # because the queue was full

    def take(self) -> None:
        """Read what the kernel has sent, and decide when each packet arrives, if it does."""
        for _ in range(READS_A_TURN):
            try:
                raw = os.read(self.source, BIGGEST)
            except BlockingIOError:
                return
            self.packets += 1
            packet = Packet.of(raw)
            self.segments += packet.segments
            for left in packet.without(self._lost_of(packet)):
                self._send(left)

    def _lost_of(self, packet: Packet) -> set[int]:
        if not self.wan.loss:
            return set()
        numbers = range(packet.segments)
        lost = {number for number in numbers if self.chance.random() < self.wan.loss}
        self.lost += len(lost)
        return lost

    def _send(self, packet: Packet) -> None:
        now = time.monotonic()
        starts = max(now, self.free_at)
        room = self.wan.queue_bytes - (starts - now) * self.wan.bytes_per_second
        fitting = int(room * packet.segments / packet.wire_bytes)
        if fitting < packet.segments:
            self.dropped += packet.segments - max(fitting, 0)
            for left in packet.without(range(max(fitting, 0), packet.segments)):
                self._send_all_of(left, starts)
            return
        self._send_all_of(packet, starts)

    def _send_all_of(self, packet: Packet, starts: float) -> None:
        self.free_at = starts + packet.wire_bytes / self.wan.bytes_per_second
        self.due.append((self.free_at + self.wan.round_trip / 2, packet.raw))

    def deliver(self) -> None:
        """Hand over what has arrived by now."""
        while self.due and self.due[0][0] <= time.monotonic():
            os.write(self.sink, self.due.popleft()[1])

    def facts(self) -> dict[str, int]:
        return {
            "packets": self.packets,
            "segments": self.segments,
            "lost": self.lost,
            "dropped": self.dropped,
        }


def carry(directions: list[Direction]) -> None:
    """Carry until standard input ends."""
    sources = {one.source: one for one in directions}
    while True:
        nearest = min((one.due[0][0] for one in directions if one.due), default=None)
        pause = None if nearest is None else max(0.0, nearest - time.monotonic())
        readable, _, _ = select.select([*sources, 0], [], [], pause)
        if 0 in readable:
            return
        for source in readable:
            sources[source].take()
        for one in directions:
            one.deliver()


def new_namespace(own: str, other: str) -> tuple[int, int]:
    """Enter a network namespace of its own; return it, and the end of the way in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", b"way", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
    fcntl.ioctl(end, TUNSETIFF, request)
    fcntl.ioctl(end, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    _forbid_ipv6()
    for command in (
        "link set lo up",
        "link set way mtu 1500 txqueuelen 10000 up",
        f"addr add {own} peer {other} dev way",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    # Plain http is for loopback addresses only, ours has that from its rules. So the store has
    # one, and this kernel is told that it is elsewhere.
    for name in ("all", "way"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").write_text("1")
        Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
    return namespace, end


def lead_to_the_service() -> None:
    """Let this namespace's way to the service's loopback address be the long one."""
    for command in (
        "route del local 127.0.0.0/8 dev lo table local",
        f"route add {SERVICE} dev way src {CLIENT}",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def _forbid_ipv6() -> None:
    """Keep the kernel from talking to neighbours that nobody is."""
    setting = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    if setting.exists():
        setting.write_text("1")


def main(wan: Wan) -> None:
    client, client_end = new_namespace(CLIENT, SERVER)
    lead_to_the_service()
    server, server_end = new_namespace(SERVER, CLIENT)
    where = {
        "client": f"/proc/{os.getpid()}/fd/{client}",
        "server": f"/proc/{os.getpid()}/fd/{server}",
    }
    sys.stdout.write(json.dumps(where) + "\n")
    sys.stdout.flush()
    chance = random.Random()
    there = Direction(client_end, server_end, wan, chance)
    back = Direction(server_end, client_end, wan, chance)
    carry([there, back])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    facts = {"cpu": usage.ru_utime + usage.ru_stime, "there": there.facts(), "back": back.facts()}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(Wan(**json.loads(sys.argv[1])))
