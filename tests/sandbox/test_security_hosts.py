"""No name and no redirect leads into the network that we are in, by either road to a store."""

import asyncio
import contextlib
import socket
import ssl
from urllib.parse import urlsplit

import aiohappyeyeballs
import aiohttp
import pytest

from downloader.app import store_session
from downloader.config import load_settings
from downloader.errors import HostNotAllowed, StoreUnavailable, TransferError
from downloader.hosts import HostRules
from downloader.transfer import BufferPool, Link, StraightRoad
from downloader.transfer.object_source import ObjectSource
from downloader.transfer.throttle import SlowDown

PUBLIC = "8.8.8.8"  # never connected to here
WILD, LISTED = "a.wild.example", "lab.wild.example"
HOSTS = ["*.wild.example", LISTED, "127.0.0.1"]


class Names:
    """Stands in for the resolver of this machine: what each name leads to, lookup by lookup."""

    def __init__(self, monkeypatch):
        self.lookups = []
        self.answered = []
        self._answers = {}
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def lead(self, name, *answers):
        """Let a name lead to the addresses of each answer in turn, the last one for ever."""
        self._answers[name] = [one if isinstance(one, list) else [one] for one in answers]

    def _look_up(self, host, port, *arguments, **options):
        if host not in self._answers:
            return self._real(host, port, *arguments, **options)
        self.lookups.append(host)
        answers = self._answers[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        self.answered += addresses
        return [self._place(address, port) for address in addresses]

    @staticmethod
    def _place(address, port):
        if ":" in address:
            scope = int(address.partition("%")[2] or 0)
            place = (address.partition("%")[0], port, 0, scope)
            return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", place)
        return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))


@pytest.fixture
def names(monkeypatch):
    return Names(monkeypatch)


@pytest.fixture
def tried(monkeypatch):
    """Give the addresses that somebody tried to connect to; nobody gets there."""
    addresses = []

    async def note(addr_infos, **_):
        addresses.extend(one[4][0] for one in addr_infos)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(aiohappyeyeballs, "start_connection", note)
    return addresses


@pytest.fixture
async def inside():
    """A server of the inner network, which counts who comes."""
    came = []

    async def serve(reader, writer):
        came.append(await reader.read(1))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.came = came
    server.port = server.sockets[0].getsockname()[1]
    async with server:
        yield server


class Asking:
    """Asks for the first bytes of a link by one of the two roads, as a transfer does."""

    def __init__(self, session, road, rules):
        self._session, self._road, self._rules = session, road, rules

    async def get(self, url):
        link = Link(url, None)
        source = ObjectSource(link, self._session, rules=self._rules, slow_down=SlowDown())
        async with source.get(0, 10, None, road=self._road):
            pass


@pytest.fixture(params=["straight", "plain"])
async def asking(request):
    settings = load_settings({"allowed_hosts": HOSTS, "connect_timeout": "5s"})
    rules = HostRules.of(settings.allowed_hosts)
    road = StraightRoad(
        context=ssl.create_default_context,
        connect_timeout=5,
        stall_timeout=5,
        user_agent="test",
        rules=rules,
        buffers=BufferPool(),
    )
    async with store_session(settings) as session:
        with contextlib.closing(road):
            yield Asking(session, road if request.param == "straight" else None, rules)


INNER = ["127.0.0.1", "10.0.0.8", "100.118.28.50", "fd12:3456::1", "169.254.169.254"]


@pytest.mark.parametrize("address", INNER)
async def test_a_name_below_an_allowed_domain_leads_to_no_inner_address(
    names, tried, asking, address
):
    names.lead(WILD, address)
    with pytest.raises(HostNotAllowed, match=f"host {WILD} leads to {address}"):
        await asking.get(f"https://{WILD}/a?Signature=geheim")
    assert tried == []


async def test_nobody_inside_hears_of_such_a_link(names, asking, inside):
    names.lead(WILD, "127.0.0.1")
    with pytest.raises(HostNotAllowed, match=rf"add {WILD} itself to allowed_hosts") as caught:
        await asking.get(f"https://{WILD}:{inside.port}/a?Signature=geheim")
    assert inside.came == []
    assert "geheim" not in str(caught.value)


async def test_a_name_that_is_listed_by_itself_may_lead_inside(names, asking, inside):
    """As OSS's internal endpoints do, inside Aliyun."""
    names.lead(LISTED, "127.0.0.1")
    with pytest.raises(StoreUnavailable):  # it speaks no TLS
        await asking.get(f"https://{LISTED}:{inside.port}/a")
    assert inside.came
    assert set(inside.came) == {b"\x16"}  # the first byte of a handshake


async def test_of_several_addresses_only_the_ones_outside_are_tried(names, tried, asking):
    names.lead(WILD, ["10.0.0.8", PUBLIC, "::1"])
    with pytest.raises(StoreUnavailable):
        await asking.get(f"https://{WILD}/a")
    assert {*tried} == {PUBLIC}


async def test_what_was_checked_is_what_is_connected_to(names, tried, asking):
    """A name that changes its mind is looked up once for each connection, and checked then."""
    names.lead(WILD, PUBLIC, PUBLIC, "127.0.0.1")
    asked = 0
    while "127.0.0.1" not in names.answered and asked < 4:
        with contextlib.suppress(TransferError):  # each by a port of its own: aiohttp remembers
            await asking.get(f"https://{WILD}:{8443 + asked}/a")
        asked += 1
    assert "127.0.0.1" in names.answered
    assert {*tried} == {PUBLIC}


async def test_a_redirect_leads_no_further_than_a_link(names, asking, inside):
    names.lead(WILD, "127.0.0.1")
    target = f"https://{WILD}:{inside.port}/a"

    async def redirect(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\n".encode())
        writer.write(b"Content-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    store = await asyncio.start_server(redirect, "127.0.0.1", 0)
    async with store:
        with pytest.raises(HostNotAllowed, match="one of an inner network"):
            await asking.get(f"http://127.0.0.1:{store.sockets[0].getsockname()[1]}/a")
    assert inside.came == []


@pytest.mark.parametrize(
    "target",
    [
        "http://2130706433:{port}/a",
        "http://0x7f.1:{port}/a",
        "http://127.1:{port}/a",
        "http://0177.0.0.1:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://localhost:{port}/a",
        "http://0:{port}/a",
        "https://user@127.0.0.1:{port}/a",
        "https://169.254.169.254/latest",
        "//2130706433:{port}/a",
    ],
)
async def test_no_spelling_of_this_machine_is_followed(asking, inside, target):
    """Listed is 127.0.0.1, written like that; a redirect may try all the others."""

    async def redirect(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        location = target.format(port=inside.port)
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n".encode())
        writer.write(b"Content-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    store = await asyncio.start_server(redirect, "127.0.0.1", 0)
    async with store:
        with pytest.raises(HostNotAllowed):
            await asking.get(f"http://127.0.0.1:{store.sockets[0].getsockname()[1]}/a")
    assert inside.came == []


async def test_an_inner_proxy_is_the_users_own_choice_and_looks_names_up_itself(
    names, inside, monkeypatch
):
    """Its name may lead inside, whatever it is; the store's name never reaches our resolver."""
    proxy = "proxy.wild.example"
    names.lead(proxy, "127.0.0.1")
    names.lead(WILD, "127.0.0.1")
    monkeypatch.setenv("https_proxy", f"http://{proxy}:{inside.port}")
    settings = load_settings({"allowed_hosts": HOSTS, "connect_timeout": "5s"})
    async with store_session(settings) as session:
        asking = Asking(session, None, HostRules.of(HOSTS))
        with pytest.raises(StoreUnavailable):
            await asking.get(f"https://{WILD}/a")
    assert {*inside.came} == {b"C"}  # of CONNECT
    assert {*names.lookups} == {proxy}


async def test_a_store_that_needs_no_proxy_is_none(names, inside, monkeypatch):
    """NO_PROXY names hosts that are asked directly: their addresses are looked at as any others."""
    names.lead(WILD, "127.0.0.1")
    monkeypatch.setenv("no_proxy", f"{WILD}:{inside.port}")
    async with store_session(load_settings({"allowed_hosts": HOSTS})) as session:
        asking = Asking(session, None, HostRules.of(HOSTS))
        with pytest.raises(HostNotAllowed):
            await asking.get(f"https://{WILD}:{inside.port}/a")
    assert inside.came == []


async def test_the_way_of_a_proxy_is_not_the_straight_one(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    road = StraightRoad(context=None, connect_timeout=1, stall_timeout=1, user_agent="test")
    with contextlib.closing(road):
        assert not road.leads_to(urlsplit(f"https://{WILD}/a"))


async def test_a_road_without_rules_follows_no_name_inside(names, tried):
    names.lead(LISTED, "127.0.0.1")
    road = StraightRoad(context=None, connect_timeout=1, stall_timeout=1, user_agent="test")
    with contextlib.closing(road), pytest.raises(HostNotAllowed):
        await road.ask(urlsplit(f"https://{LISTED}/a"), start=0, stop=1, version=None)
    assert tried == []


async def test_a_session_is_closed_with_its_resolver():
    session = store_session(load_settings({}))
    assert isinstance(session, aiohttp.ClientSession)
    await session.close()
