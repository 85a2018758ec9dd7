"""Cutting the superpackets that the kernel hands over, so that single segments can be lost.

A superpacket is a `virtio_net_hdr`, which names the segment size, and one IPv4 packet whose TCP
payload is many segments (linux/virtio_net.h). The kernel leaves TCP's checksum to be finished by
the device, and nobody finishes it here: the other kernel sees by the same header that nothing on
the way could have harmed it.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

VIRTIO = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
GSO_NONE, GSO_TCPV4 = 0, 1
FIN_AND_PSH = 0x09
CWR = 0x80
TCP = 6
ON_THE_WIRE = 14 + 24  # Ethernet's header, and its preamble, checksum and gap


@dataclass(frozen=True, slots=True)
class Packet:
    """What one read from a TUN device gave."""

    raw: bytes
    segments: int
    header_bytes: int  # IP's and TCP's together; of anything else than a superpacket, all of it

    @classmethod
    def of(cls, raw: bytes) -> Packet:
        _, gso_type, _, gso_size, _, _ = VIRTIO.unpack_from(raw)
        start = VIRTIO.size
        if gso_type & 0x7F != GSO_TCPV4 or raw[start + 9] != TCP:
            return cls(raw, 1, len(raw) - start)
        ip_bytes = (raw[start] & 0x0F) * 4
        headers = ip_bytes + (raw[start + ip_bytes + 12] >> 4) * 4
        payload = len(raw) - start - headers
        return cls(raw, -(-payload // gso_size), headers)

    @property
    def wire_bytes(self) -> int:
        """Bytes that it takes on an Ethernet, cut into its segments."""
        repeated = (self.segments - 1) * self.header_bytes
        return len(self.raw) - VIRTIO.size + repeated + self.segments * ON_THE_WIRE

    def without(self, lost: Collection[int]) -> Iterator[Packet]:
        """Give what is left when the segments with these numbers are lost, in order."""
        runs = groupby(range(self.segments), key=lambda number: number in lost)
        for is_lost, numbers in runs:
            if not is_lost:
                whole = list(numbers)
                yield self if len(whole) == self.segments else self._cut(whole[0], whole[-1] + 1)

    def _cut(self, first: int, last: int) -> Packet:
        """Return the segments [first, last) as a packet of their own."""
        flags, _, header_length, gso_size, csum_start, csum_offset = VIRTIO.unpack_from(self.raw)
        start, headers = VIRTIO.size, self.header_bytes
        payload = self.raw[start + headers :][first * gso_size : last * gso_size]
        head = bytearray(self.raw[start : start + headers])
        ip_bytes = (head[0] & 0x0F) * 4
        _renew_ip(head, ip_bytes, number=first, payload=len(payload))
        _renew_tcp(head, ip_bytes, skipped=first * gso_size, payload=len(payload))
        if first:
            head[ip_bytes + 13] &= ~CWR & 0xFF
        if last < self.segments:
            head[ip_bytes + 13] &= ~FIN_AND_PSH & 0xFF
        count = last - first
        kind, size = (GSO_TCPV4, gso_size) if count > 1 else (GSO_NONE, 0)
        virtio = VIRTIO.pack(flags, kind, header_length, size, csum_start, csum_offset)
        return Packet(virtio + bytes(head) + payload, count, headers)


def _renew_ip(head: bytearray, ip_bytes: int, *, number: int, payload: int) -> None:
    (identification,) = struct.unpack_from("!H", head, 4)
    struct.pack_into("!H", head, 2, len(head) + payload)
    struct.pack_into("!H", head, 4, (identification + number) & 0xFFFF)
    struct.pack_into("!H", head, 10, 0)
    struct.pack_into("!H", head, 10, ~_folded(bytes(head[:ip_bytes])) & 0xFFFF)


def _renew_tcp(head: bytearray, ip_bytes: int, *, skipped: int, payload: int) -> None:
    (sequence,) = struct.unpack_from("!I", head, ip_bytes + 4)
    struct.pack_into("!I", head, ip_bytes + 4, (sequence + skipped) & 0xFFFFFFFF)
    # What is left to a device to finish begins with the sum over the pseudo header (RFC 9293
    # §3.1), in which the length is.
    pseudo = bytes(head[12:20]) + struct.pack("!HH", TCP, len(head) - ip_bytes + payload)
    struct.pack_into("!H", head, ip_bytes + 16, _folded(pseudo))


def _folded(data: bytes) -> int:
    """Return the ones' complement sum of 16-bit words (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
