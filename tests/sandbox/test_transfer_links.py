"""Links that expire, that are refused, that lead elsewhere."""

import re
from types import SimpleNamespace

import pytest
from aiohttp import ClientTimeout
from transfer_helpers import DATA, KEY, MIB, PROBE, SMALL, reply, scripted_server

from downloader.errors import (
    BusinessError,
    HostNotAllowed,
    LinkRefused,
    PlatformUnavailable,
    TransferError,
)
from downloader.hosts import HostRules
from downloader.sandbox import FakeObjectStore, Fault
from downloader.transfer import Link, SlowDown
from downloader.transfer.ranged_get import ranged_get

pytest_plugins = ["transfer_helpers"]


async def test_an_expired_link_is_renewed_once_for_all_segments(rig):
    """Others start from zero when the signature in the link changes."""

    def let_it_expire():
        rig.clock.ahead = type(rig.clock.ahead)(seconds=700)

    rig.url = rig.store.object_url(KEY, lifetime=600)
    rig.heard.when_sized = let_it_expire
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.renewed == [rig.url]
    served = sum(request.bytes_sent for request in rig.store.requests if request.status == 206)
    assert served == len(DATA)


async def test_a_link_about_to_expire_is_renewed_beforehand(rig):
    rig.url = rig.store.object_url(KEY, lifetime=10)
    await rig.transfer()
    assert rig.renewed == [rig.url]
    assert set(rig.statuses) == {206}


async def test_a_link_that_is_good_for_a_while_is_left_alone(rig):
    rig.url = rig.store.object_url(KEY, lifetime=60)
    await rig.transfer()
    assert rig.renewed == []


async def test_a_wrong_clock_here_does_not_ask_for_a_link_with_every_request(rig):
    """Links that look stale at birth are taken as they are, as long as the store takes them."""

    async def renew(refused):
        rig.renewed.append(refused)
        return rig.store.object_url(KEY, lifetime=5 + len(rig.renewed))

    await rig.transfer(link=Link(rig.store.object_url(KEY, lifetime=5), renew))
    assert rig.on_disk == DATA
    assert len(rig.renewed) == 1


async def test_a_link_that_still_works_is_used_while_the_platform_does_not(rig):
    async def renew(_):
        raise PlatformUnavailable("The platform is down")

    await rig.transfer(link=Link(rig.store.object_url(KEY, lifetime=10), renew))
    assert rig.on_disk == DATA


async def test_a_platform_that_is_down_for_a_moment_is_asked_again(rig, monkeypatch):
    """The pause that it wants is its own: other transfers go on."""
    calls = []

    async def renew(refused):
        calls.append(refused)
        if len(calls) < 3:
            raise PlatformUnavailable("The platform is down", retry_after=100)
        return rig.store.object_url(KEY)

    rig.store.put(KEY, SMALL)
    monkeypatch.setattr(SlowDown, "ask", lambda *_: pytest.fail("the store asked for no pause"))
    await rig.transfer(link=Link(rig.store.object_url(KEY, lifetime=-60), renew))
    assert rig.on_disk == SMALL


async def test_what_the_platform_refuses_is_told_in_its_own_words(rig):
    async def renew(_):
        raise BusinessError(1001, "签名错误")

    with pytest.raises(BusinessError, match="签名错误"):
        await rig.transfer(link=Link(rig.store.object_url(KEY, lifetime=-60), renew))


async def test_a_link_that_is_refused_for_ever_ends_it(rig):
    """Two renewals, and then the store's own words."""
    rig.store.inject(Fault.EXPIRED, times=None)
    with pytest.raises(LinkRefused, match=r"AccessDenied: Request has expired\. \(request id"):
        await rig.transfer()
    assert len(rig.renewed) == 2
    assert rig.statuses == [403] * 3


async def test_a_link_refused_in_the_middle_keeps_what_is_here(rig):
    rig.store.inject(Fault.EXPIRED, times=None, covering=PROBE)
    with pytest.raises(LinkRefused):
        await rig.transfer()
    assert rig.checkpoints.saved.safe_bytes == rig.heard.shown
    rig.store.clear_faults()
    rig.store.forget_requests()
    kept = rig.checkpoints.saved.safe_bytes
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.store.bytes_served == len(DATA) - kept


async def test_a_renewed_link_to_a_host_that_is_not_allowed_is_not_followed(rig):
    async def renew(_):
        return "https://evil.example/a.vcf.gz?Signature=secret"

    with pytest.raises(HostNotAllowed, match=r"the host evil\.example") as error:
        await rig.transfer(link=Link(rig.store.object_url(KEY, lifetime=-60), renew))
    assert "secret" not in str(error.value)


# Redirects.


async def test_a_redirect_to_an_allowed_host_is_followed_with_range_and_precondition(rig):
    async with FakeObjectStore() as other:
        other.put("b", DATA)
        rig.store.inject(Fault.REDIRECT, times=None, location=lambda: other.object_url("b"))
        await rig.transfer()
        assert rig.on_disk == DATA
        assert other.bytes_served == len(DATA)
        assert {request.if_match for request in other.requests[1:]} == {other.get("b").etag}


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("https://evil.example/a?Signature=secret", "the host evil.example, which is not one"),
        ("http://localhost:1/a", "the host localhost, which is not one"),
        ("//evil.example/a", "the host evil.example"),
        ("ftp://127.0.0.1/a", "is ftp:, but only https is followed"),
        ("file:///etc/passwd", "is not a link to a host"),
        ("https://me:secret@127.0.0.1/a", "carries a user name"),
        ("https://127.0.0.1\\@evil.example/", "A link with blanks, quotes or control"),
    ],
)
async def test_a_redirect_that_may_not_be_followed_is_told(rig, location, sentence):
    rig.store.inject(Fault.REDIRECT, times=None, location=location)
    with pytest.raises(HostNotAllowed, match=re.escape(sentence)) as error:
        await rig.transfer()
    assert len(rig.store.requests) == (2 if rig.is_straight else 1)  # it is left to the plain way
    assert "secret" not in str(error.value)


async def test_a_redirect_from_https_to_http_is_not_followed():
    """Not even to a loopback that may be asked by http: the bytes would travel in the clear."""

    class SecureSession:  # the stand-in speaks plain http only
        timeout = ClientTimeout()

        async def get(self, url, **_):
            assert url.scheme == "https"
            location = {"Location": "http://127.0.0.1/a?Signature=secret"}
            return SimpleNamespace(status=302, headers=location, release=lambda: None)

    link = "https://127.0.0.1/a?Signature=secret"
    rules = HostRules.of(["127.0.0.1"])
    get = ranged_get(SecureSession(), link, start=0, stop=1, version=None, rules=rules)
    with pytest.raises(HostNotAllowed, match="redirects from https to http://127") as error:
        await get.__aenter__()
    assert "secret" not in str(error.value)


async def test_a_redirect_in_the_middle_of_a_transfer_is_checked_too(rig):
    # Twice: the straight road follows no redirect, and leaves it to the plain way.
    evil = "https://evil.example/a"
    rig.store.inject(Fault.REDIRECT, covering=PROBE + MIB, location=evil, times=2)
    with pytest.raises(HostNotAllowed):
        await rig.transfer()


async def test_redirects_end(rig):
    """A link that leads to itself is told, not followed for ever."""
    rig.store.inject(Fault.REDIRECT, times=None)
    with pytest.raises(TransferError, match="redirects more than 5 times"):
        await rig.transfer()
    assert rig.statuses == [302] * (7 if rig.is_straight else 6)


async def test_a_few_redirects_are_all_right(rig):
    rig.store.inject(Fault.REDIRECT, times=5, status=307)
    await rig.transfer()
    assert rig.on_disk == DATA


async def test_a_redirect_without_a_target_is_told(rig):
    async with scripted_server(reply(302, b"")) as (rig.url, _):
        with pytest.raises(TransferError, match="The store answered HTTP 302"):
            await rig.transfer()
