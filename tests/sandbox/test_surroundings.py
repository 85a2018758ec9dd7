"""What stands around the program: a password file, proxies, an authority that nobody knows."""

import asyncio
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from downloader.api import AsyncPrivateAPI
from downloader.app import store_session
from downloader.config import load_settings
from downloader.errors import PlatformError, TransferError
from downloader.hosts import HostRules
from downloader.transfer.ranged_get import ranged_get

KEY, SECRET = "key", "very-hush-secret"


@pytest.fixture
async def listener():
    """A server that notes the heads of requests and answers each with what `answer` holds."""
    heads = []

    async def serve(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(listening.answer)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    listening.answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    listening.heads = heads
    listening.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield listening


async def asked(url, *, hosts=("127.0.0.1", "localhost", "store.example")):
    settings = load_settings({"connect_timeout": "5s", "stall_timeout": "5s"})
    async with (
        store_session(settings) as session,
        ranged_get(session, url, start=0, stop=10, version=None, rules=HostRules.of(hosts)) as body,
    ):
        return body


@pytest.fixture
def netrc(monkeypatch, tmp_path):
    path = tmp_path / "netrc"
    path.write_text(f"default login bob password {SECRET}\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    (Path.home() / ".netrc").write_text(path.read_text())


async def test_no_password_out_of_netrc_is_sent_to_the_store(listener, netrc):
    """It is somebody else's, and a store refuses a signed link that comes with a password."""
    with pytest.raises(TransferError):
        await asked(f"http://127.0.0.1:{listener.port}/a.vcf.gz")
    assert len(listener.heads) == 1
    assert "authorization" not in listener.heads[0].lower()


async def test_no_password_out_of_netrc_is_sent_to_the_platform(listener, netrc):
    async with AsyncPrivateAPI(KEY, SECRET, f"http://127.0.0.1:{listener.port}") as api:
        with pytest.raises(PlatformError):
            await api.question_size("u")
    assert "authorization" not in listener.heads[0].lower()


async def test_a_proxy_that_refuses_the_store_is_named_at_once(listener, monkeypatch):
    listener.answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    monkeypatch.setenv("https_proxy", f"http://bob:{SECRET}@127.0.0.1:{listener.port}")
    with pytest.raises(TransferError, match=r"proxy refused .* \(HTTP 407\)") as caught:
        await asked("https://store.example/a.vcf.gz")
    assert not caught.value.retryable
    assert SECRET not in str(caught.value)
    assert listener.heads[0].startswith("CONNECT store.example:443 ")
    assert "Proxy-Authorization: Basic " in listener.heads[0]


async def test_a_proxy_that_is_not_there_is_not_taken_for_the_store(monkeypatch, unused_tcp_port):
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{unused_tcp_port}")
    with pytest.raises(TransferError, match=f"The proxy at 127.0.0.1:{unused_tcp_port}") as caught:
        await asked("https://store.example/a.vcf.gz")
    assert caught.value.retryable


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for localhost that is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    directory = tmp_path_factory.mktemp("tls")
    paths = directory / "cert.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext"
    subprocess.run(
        [*command.split(), "subjectAltName=DNS:localhost", "-out", paths[0], "-keyout", paths[1]],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.fixture
async def encrypted(certificate):
    """A server behind that certificate; it knows no object and no call."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}"


async def test_a_store_that_nobody_vouches_for_is_told_with_the_mend(encrypted):
    """More attempts do not help, and the link is not to blame."""
    with pytest.raises(TransferError, match=r"not trusted \(.*\); .* set SSL_CERT_FILE") as caught:
        await asked(f"{encrypted}/a.vcf.gz")
    assert not caught.value.retryable


async def test_a_platform_that_nobody_vouches_for_is_told_with_the_mend(encrypted):
    async with AsyncPrivateAPI(KEY, SECRET, encrypted) as api:
        with pytest.raises(PlatformError, match="set SSL_CERT_FILE") as caught:
            await api.question_size("u")
    assert not caught.value.retryable


async def test_an_authority_file_that_is_not_there_is_named(encrypted, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nowhere.pem"))
    with pytest.raises(TransferError, match=r"SSL_CERT_FILE names .*nowhere\.pem"):
        await asked(f"{encrypted}/a.vcf.gz")
