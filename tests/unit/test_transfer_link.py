"""When a link expires, and who asks for another."""

import asyncio
import time

import pytest

from downloader.errors import PlatformUnavailable
from downloader.transfer.link import Link, expires_at


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a/b", None),
        ("https://a/b?Expires=1700000000&Signature=x", 1700000000),
        ("https://a/b?expires=1700000000", 1700000000),
        ("https://a/b?x-oss-date=20231114T221320Z&x-oss-expires=600", 1700000600),
        ("https://a/b?x-oss-date=20231114T221320Z", None),
        ("https://a/b?x-oss-expires=600", None),
        ("https://a/b?x-oss-date=yesterday&x-oss-expires=600", None),
        ("https://a/b?Expires=", None),
        ("https://a/b?Expires=soon", None),
        ("https://[a/b?Expires=1700000000", None),  # no link at all: told when it is followed
    ],
)
def test_a_link_tells_when_it_expires(url, expected):
    """Both of Aliyun's forms; V4's date is UTC wherever this runs."""
    assert expires_at(url) == expected


def expiring(in_seconds, n=0):
    return f"https://a/b?Expires={int(time.time() + in_seconds)}&n={n}"


class Platform:
    """Gives links that last so long, and counts."""

    def __init__(self, *lifetimes):
        self.lifetimes = list(lifetimes)
        self.refused = []

    async def renew(self, refused):
        await asyncio.sleep(0)
        self.refused.append(refused)
        lifetime = self.lifetimes.pop(0)
        if lifetime is None:
            raise PlatformUnavailable("down")
        return expiring(lifetime, len(self.refused))


async def test_many_who_are_refused_the_same_link_renew_it_once():
    platform = Platform(600)
    old = expiring(600)
    link = Link(old, platform.renew)
    got = await asyncio.gather(*(link.renewed(old) for _ in range(8)))
    assert len(set(got)) == 1
    assert got[0] != old
    assert platform.refused == [old]


async def test_whoever_was_refused_an_older_link_gets_the_newer_one():
    platform = Platform(600)
    old = expiring(600)
    link = Link(old, platform.renew)
    new = await link.renewed(old)
    assert await link.renewed(old) == new == await link.current()
    assert len(platform.refused) == 1


async def test_a_link_about_to_expire_is_renewed_once_for_all():
    platform = Platform(600)
    link = Link(expiring(5), platform.renew)
    got = await asyncio.gather(*(link.current() for _ in range(8)))
    assert len(set(got)) == 1
    assert len(platform.refused) == 1


async def test_links_that_are_stale_at_birth_tell_of_the_clock_here():
    """They are used as they are from then on; the store's refusal still renews them."""
    platform = Platform(-3600, -3600)
    link = Link(expiring(-3600), platform.renew)
    first = await link.current()
    assert await link.current() == first
    assert len(platform.refused) == 1
    assert await link.renewed(first) != first


async def test_a_link_that_cannot_be_renewed_early_is_used_while_it_lasts():
    platform = Platform(None, 600)
    old = expiring(10)
    link = Link(old, platform.renew)
    assert await link.current() == old
    assert await link.current() != old


async def test_a_refused_link_that_cannot_be_renewed_is_told():
    link = Link(expiring(600), Platform(None, 600).renew)
    refused = await link.current()
    with pytest.raises(PlatformUnavailable):
        await link.renewed(refused)
    assert await link.renewed(refused) != refused  # the next one asks again
