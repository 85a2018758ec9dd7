"""A long way on one machine: two network namespaces, and a process that carries between them.

Many kernels have no netem, so the way is made of a pair of TUN devices. The process between them
delays each packet by half the round trip, lets the bits of the given rate pass and no more, has a
bounded queue as a router has, and loses packets by chance. The kernel hands it up to 64 KiB at a
time (`IFF_VNET_HDR`, `TUNSETOFFLOAD`), so there are some thousands of packets a second to move; but
what is queued, shaped and lost are the single segments that would travel on a wire.

`python -m tests.bench.wan` tries the way itself: round trip, rate, and a checksum with loss.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fastcrc import crc64

from tests.bench.measure import BenchError, measured
from tests.bench.objects import MIB, Objects, ObjectSet
from tests.bench.servers import PATIENCE_SECONDS, other_side, started

CLIENT, SERVER = "10.53.0.1", "10.53.0.2"
SERVICE = "127.0.0.2"
PROBES = 5
CONNECT = """\
import socket, sys, time
for _ in range(int(sys.argv[2])):
    with socket.socket() as one:
        began = time.monotonic()
        one.connect_ex((sys.argv[1], 9))
        print(time.monotonic() - began)
"""


@dataclass(frozen=True, slots=True)
class Wan:
    """A way: seconds there and back, bytes a second, bytes of its queue, chance of a loss."""

    round_trip: float = 0.030
    bytes_per_second: float = 125e6
    queue_bytes: int = 4 * MIB
    loss: float = 0.0


def what_is_missing() -> str | None:
    """Tell why there can be no such way here; None if there can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    absent = [name for name in ("ip", "nsenter") if not shutil.which(name)]
    return f"{' and '.join(absent)} is not installed" if absent else None


class Wire:
    """A way that is there from `with` to its end; `at_client` and `at_server` begin commands."""

    host = SERVICE

    def __init__(self, wan: Wan) -> None:
        self.wan = wan
        self.at_client: tuple[str, ...] = ()
        self.at_server: tuple[str, ...] = ()
        self._began = 0.0
        self._notes: list[str] = []

    def __enter__(self) -> Wire:
        self._carrier = started(
            [sys.executable, "-m", "tests.bench.carrier", json.dumps(asdict(self.wan))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._carrier.stdout
        line = self._carrier.stdout.readline()
        if not line:
            raise BenchError("The long way could not be made; the reason is above")
        where = json.loads(line)
        self.at_client = ("nsenter", f"--net={where['client']}")
        self.at_server = ("nsenter", f"--net={where['server']}")
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def probed(self) -> list[str]:
        """Measure the round trip, as a connection that is refused takes it."""
        asked = [sys.executable, "-I", "-S", "-c", CONNECT, SERVICE, str(PROBES)]
        command = [*self.at_client, *asked]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        middle = statistics.median(map(float, said.split()))
        way = (
            f"an emulated way (TUN devices) of {self.wan.round_trip * 1000:g} ms, "
            f"{self.wan.bytes_per_second * 8 / 1e9:g} Gbit/s, a queue of "
            f"{self.wan.queue_bytes / MIB:g} MiB, {self.wan.loss * 100:g} % loss in each direction"
        )
        return [
            way,
            f"a refused connection took {middle * 1000:.1f} ms; the platform is at the far end too",
        ]

    def told(self) -> list[str]:
        """End the way, and tell what it carried and what that cost."""
        self._end()
        return self._notes

    def _end(self) -> None:
        if self._carrier.returncode is not None:
            return
        seconds = time.monotonic() - self._began
        said, _ = self._carrier.communicate(timeout=PATIENCE_SECONDS)
        if not said:
            raise BenchError("The process that carried packets broke down; the reason is above")
        facts = json.loads(said)
        back = facts["back"]
        cost = f"the carrying process used {facts['cpu']:.1f} s of CPU in {seconds:.0f} s"
        carried = (
            f"towards the client it carried {back['segments']:,} segments in "
            f"{back['packets']:,} packets, lost {back['lost']:,} by chance and dropped "
            f"{back['dropped']:,} at a full queue"
        )
        self._notes = [cost, carried]
        self._carrier.wait(PATIENCE_SECONDS)


def main() -> None:
    """Bring one object by curl over a way without loss and over one with, and hold its CRC-64."""
    if missing := what_is_missing():
        raise SystemExit(f"There can be no long way here: {missing}")
    with tempfile.TemporaryDirectory(prefix="bge-bench-", dir="/var/tmp") as name:
        work = Path(name)
        objects = Objects(work / "objects")
        (one,) = objects.of(ObjectSet("tried", (256 * MIB,)))
        for loss in (0.0, 0.001, 0.01):
            with Wire(Wan(loss=loss)) as wire:
                notes = wire.probed()
                with other_side(
                    work / "other-side",
                    root=objects.root,
                    tasks={"tried": [one]},
                    way="http",
                    host=wire.host,
                    prefix=wire.at_server,
                ) as side:
                    url, path = f"{side.base('http')}/{one.key}", work / one.name
                    sample = measured(
                        [["curl", "-qsSf", "-o", str(path), url]],
                        cwd=work,
                        log=work / "log",
                        environment={"PATH": os.environ["PATH"]},
                        prefix=wire.at_client,
                    )
                notes += wire.told()
            is_right = crc64.xz(path.read_bytes()) == one.crc64
            rate = one.size * 8 / sample.wall / 1e9
            notes.append(f"curl: {rate:.2f} Gbit/s, CRC-64 {'right' if is_right else 'WRONG'}")
            sys.stdout.write("\n".join(notes) + "\n\n")


if __name__ == "__main__":
    main()
