"""The store and the platform as processes of their own; nothing outlives the bench.

The store is nginx where it is installed. Where it is not, the sandbox's store takes its place,
which costs CPU that the contestants need: no figure of such a run says much.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from downloader.sandbox import Sandbox
from tests.bench.measure import BenchError
from tests.bench.objects import MIB, Object

LOCALHOST = "127.0.0.1"
THROTTLE_BYTES = 20 * MIB  # a second, for each connection
PR_SET_PDEATHSIG = 1  # prctl(2)
PATIENCE_SECONDS = 30
SCHEMES = {"http": "http", "tls": "https", "throttled": "http"}

NGINX = """\
{user}
daemon off;
worker_processes auto;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 60;
    keepalive_requests 1000;
    map_hash_max_size 65536;
    map_hash_bucket_size 128;
    map $uri $crc64 {{ include {directory}/crc64.map; }}
    add_header x-oss-hash-crc64ecma $crc64;
    root {root};
    server {{ listen {host}:{http}; }}
    server {{ listen {host}:{throttled}; limit_rate {throttle}; }}
    server {{
        listen {host}:{tls} ssl;
        ssl_certificate {directory}/server.pem;
        ssl_certificate_key {directory}/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache shared:SSL:1m;
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class OtherSide:
    """Where the contestants find the objects, and ours the platform."""

    host: str
    ports: dict[str, int]
    endpoint: str
    ca: Path | None  # the authority of the store's certificate

    def base(self, way: str) -> str:
        return f"{SCHEMES[way]}://{self.host}:{self.ports[way]}"

    def environment(self) -> dict[str, str]:
        """Return the settings with which ours finds both."""
        settings = {
            "BGE_ENDPOINT": self.endpoint,
            "BGE_APP_KEY": Sandbox.app_key,
            "BGE_APP_SECRET": Sandbox.app_secret,
            "BGE_ALLOWED_HOSTS": self.host,
        }
        return settings | ({"SSL_CERT_FILE": str(self.ca)} if self.ca else {})


def nginx_program() -> str | None:
    """Return nginx, which Debian keeps off an ordinary user's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def other_side(
    directory: Path,
    *,
    root: Path,
    tasks: dict[str, list[Object]],
    way: str,
    host: str = LOCALHOST,
    prefix: Sequence[str] = (),
) -> Iterator[OtherSide]:
    """Serve the objects below `root`, and the tasks that list them with links of that way."""
    ports = dict(zip(SCHEMES, _free_ports(len(SCHEMES)), strict=True))
    served = [one for objects in tasks.values() for one in objects]
    nginx = nginx_program()
    directory.mkdir()
    side = OtherSide(host, ports, "", _certificate(directory, host) if way == "tls" else None)
    links = {
        task_id: [f"{side.base(way)}/{one.key}" for one in objects]
        for task_id, objects in tasks.items()
    }
    stores = [] if nginx else _sandbox_stores(ports, way, root, served)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        if nginx:
            _configure(directory, root, served, side)
            stack.enter_context(_nginx(nginx, directory, prefix))
        order: dict[str, object] = {"host": host, "stores": stores, "tasks": links}
        endpoint = stack.enter_context(_sandbox(directory, order, prefix))
        yield OtherSide(host, ports, endpoint, side.ca)


def started(command: Sequence[str], **options: object) -> subprocess.Popen[str]:
    """Start a process that is told to end when this one does, however this one does."""
    libc = ctypes.CDLL(None)
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        command,
        text=True,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
        **options,
    )


def _configure(directory: Path, root: Path, served: Sequence[Object], side: OtherSide) -> None:
    _certificate(directory, side.host)  # its server is there in any case
    crcs = "".join(f"/{one.key} {one.crc64};\n" for one in served)
    (directory / "crc64.map").write_text(crcs)
    (directory / "nginx.conf").write_text(
        NGINX.format(
            # Otherwise its workers would be nobody, who cannot read what only we can.
            user="user root;" if os.geteuid() == 0 else "",
            directory=directory,
            root=root,
            host=side.host,
            throttle=THROTTLE_BYTES,
            **side.ports,
        )
    )


@contextlib.contextmanager
def _nginx(program: str, directory: Path, prefix: Sequence[str]) -> Iterator[None]:
    config = directory / "nginx.conf"
    log = directory / "error.log"
    with log.open("w") as said:
        command = [*prefix, program, "-p", str(directory), "-c", str(config), "-e", str(log)]
        process = started(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        # It writes its pid once it listens.
        _wait_for(directory / "nginx.pid", process, log)
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


@contextlib.contextmanager
def _sandbox(directory: Path, order: dict[str, object], prefix: Sequence[str]) -> Iterator[str]:
    order_path, log = directory / "order.json", directory / "sandbox.log"
    order_path.write_text(json.dumps(order))
    with log.open("w") as said:
        process = started(
            [*prefix, sys.executable, "-m", "tests.bench.other_side", str(order_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        )
    with process:
        assert process.stdout
        endpoint = process.stdout.readline().strip()
        if not endpoint:
            raise BenchError(f"The sandbox did not start:\n{log.read_text()}")
        yield endpoint
        process.communicate(timeout=PATIENCE_SECONDS)  # its standard input ends, and so does it


def _sandbox_stores(
    ports: dict[str, int], way: str, root: Path, served: Sequence[Object]
) -> list[dict[str, object]]:
    rate = THROTTLE_BYTES if way == "throttled" else None
    objects = {one.key: str(root / one.key) for one in served}
    return [{"port": ports[way], "bytes_per_second": rate, "objects": objects}]


def _wait_for(path: Path, process: subprocess.Popen[str], log: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > until:
            raise BenchError(f"{process.args!r} did not start:\n{log.read_text()}")
        time.sleep(0.01)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOCALHOST, 0))
        return [one.getsockname()[1] for one in sockets]


def _certificate(directory: Path, host: str) -> Path:
    """Return the authority; its certificate is the server's own."""
    certificate = directory / "server.pem"
    if not certificate.exists():
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-keyout", str(directory / "server.key"), "-out", str(certificate)),
                *("-subj", "/CN=bge-downloader bench", "-addext", f"subjectAltName=IP:{host}"),
            ],
            check=True,
            capture_output=True,
        )
    return certificate
