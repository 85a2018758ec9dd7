"""Who may be downloaded from: what two readers may read differently is refused."""

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloader.errors import HostNotAllowed
from downloader.hosts import HostRules, is_loopback

RULES = HostRules.of(["*.aliyuncs.com", "*.omgut.com", "127.0.0.1", "[::1]:8080", "lab:9000"])


@pytest.mark.parametrize(
    "url",
    [
        "https://results.oss-cn-beijing.aliyuncs.com/a/b.vcf.gz?Expires=1&Signature=x",
        "https://a.b.aliyuncs.com/x",  # any depth below the domain
        "HTTPS://A.ALIYUNCS.COM/x",
        "https://a.aliyuncs.com:8443/x",  # the port does not matter
        "https://a.aliyuncs.com:/x",
        "https://a.aliyuncs.com./x",  # the same host, written absolutely
        "https://xn--fsqu00a.aliyuncs.com/x",
        "https://lab/x",  # its pattern was written with a port
        "https://127.0.0.1/x",
        "http://127.0.0.1:8080/x",  # loopback that is listed needs no TLS
        "http://[::1]:9/x",
        "http://[0:0:0:0:0:0:0:1]/x",  # the same address
        "https://a.aliyuncs.com/\u53d8\u5f02.vcf.gz",
    ],
)
def test_a_link_to_a_listed_host_is_followed(url):
    assert RULES.check(url).path.startswith("/")


@pytest.mark.parametrize(
    "url",
    [
        "https://aliyuncs.com/x",  # the domain itself is not below itself
        "https://evilaliyuncs.com/x",
        "https://a.aliyuncs.com.evil.net/x",
        "https://evil.net/a.aliyuncs.com",
        "https://evil.net/?a.aliyuncs.com",
        "https://evil.net#.aliyuncs.com/x",
        "https://.aliyuncs.com/x",
        "https://a..aliyuncs.com/x",
        "https://a.aliyuncs.com../x",
        "https://a.aliyuncs.com@evil.net/x",
        "https://evil.net:443@a.aliyuncs.com/x",  # a user name, though the host is right
        "https://@a.aliyuncs.com/x",
        "https://:secret@a.aliyuncs.com/x",
        "https://evil.net\\.aliyuncs.com/x",  # a slash to some
        "https://evil.net\\@a.aliyuncs.com/x",
        "https://evil.net%2f.aliyuncs.com/x",
        "https://evil.net%00.aliyuncs.com/x",
        "https://evil.net&.aliyuncs.com/x",
        "https://evil.net;.aliyuncs.com/x",
        "https://evil.net|.aliyuncs.com/x",
        "https://evil.net'.aliyuncs.com/x",
        "https://evil.net\uff0f.aliyuncs.com/x",  # a full-width slash
        "https://evil.net\uff05.aliyuncs.com/x",  # a full-width percent sign
        "https://a\u3002aliyuncs.com/x",  # a full stop to IDNA
        "https://\u0430.aliyuncs.com/x",  # a Cyrillic letter: links use the ASCII form
        "https://[::1].aliyuncs.com/x",  # both an address and a name
        "https://[::1%25eth0]/x",
        "https://[v1.aliyuncs.com]/x",
        "https://a.aliyuncs.com:99999/x",
        "https://a.aliyuncs.com:\u0663/x",
        "https://a.aliyuncs.com:-1/x",
        "https://a.aliyuncs.com/x y",
        "https://a.aliyuncs.com/x\n",
        "\thttps://a.aliyuncs.com/x",
        "https://a.aliyuncs.com/\x00",
        "https://a.aliyuncs.com/x\x7f",
        "https://a.aliyuncs.com/x?\ud800",  # could not be sent
        "https:a.aliyuncs.com/x",
        "https:///a.aliyuncs.com/x",
        "//a.aliyuncs.com/x",
        "a.aliyuncs.com/x",
        "",
        "https://",
        "https://[",
        "http://a.aliyuncs.com/x",  # listed, but not https
        "http://lab/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "file://127.0.0.1/etc/passwd",
        "javascript:alert(1)",
        "https://2130706433/x",  # 127.0.0.1 as one number
        "https://0x7f000001/x",
        "https://0x7f.1/x",
        "https://127.1/x",
        "https://0177.0.0.1/x",
        "https://127.0.0.2/x",  # loopback, but not listed
        "http://[::ffff:127.0.0.1]/x",
        "http://localhost/x",
        "https://169.254.169.254/latest/meta-data",
    ],
)
def test_every_other_link_is_refused(url):
    with pytest.raises(HostNotAllowed):
        RULES.check(url)


def test_the_sentence_names_the_host_and_the_mend():
    with pytest.raises(HostNotAllowed, match=r"the host evil\.net, .*add it to allowed_hosts"):
        RULES.check("https://evil.net/x?Signature=geheim")


@pytest.mark.parametrize(
    "url",
    [
        "OSSAccessKeyId=geheim&Signature=geheim",
        "https:/k?Signature=geheim",
        "https:///k%3FSignature%3Dgeheim",
        "https://user:geheim@a.aliyuncs.com/x",
        "https://h:x/Signature=geheim",
    ],
)
def test_a_refusal_tells_no_secret(url):
    with pytest.raises(HostNotAllowed) as caught:
        RULES.check(url)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("pattern", ["*", "*.", "*.*", "", " ", ".aliyuncs.com", "aliyuncs.com/x"])
def test_a_pattern_that_is_none_allows_nothing(pattern):
    with pytest.raises(HostNotAllowed):
        HostRules.of([pattern]).check("https://a.aliyuncs.com/x")


def test_without_patterns_nothing_is_allowed():
    with pytest.raises(HostNotAllowed, match=r"allowed hosts \(none\)"):
        HostRules.of([]).check("https://a.aliyuncs.com/x")


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (" Lab.Example. ", "https://lab.example/x"),
        ("*.\u4f8b\u5b50.cn", "https://a.xn--fsqu00a.cn/x"),  # people write it, links do not
        ("::1", "http://[::1]/x"),
        ("0::1", "http://[::1]/x"),
        ("localhost", "http://LOCALHOST:1/x"),
        ("[2001:DB8::1]", "https://[2001:db8:0::1]/x"),
        ("lab_1", "https://lab_1/x"),  # no name of the DNS, but of many a compose file
    ],
)
def test_a_pattern_means_what_a_person_meant(pattern, url):
    assert HostRules.of([pattern]).check(url)


@settings(max_examples=200)
@given(url=st.text(st.sampled_from("htps:/@.[]a\\%2f#?1;\u3002\uff0e&"), max_size=24))
def test_whatever_is_allowed_names_one_host_and_nothing_around_it(url):
    """No spelling leads a browser, a resolver or a proxy to another host than was compared."""
    try:
        parts = HostRules.of(["*.aliyuncs.com"]).check(f"https://{url}.aliyuncs.com/x")
    except HostNotAllowed:
        return
    host, _, port = parts.netloc.partition(":")
    assert host.removesuffix(".").endswith(".aliyuncs.com")
    assert set(host) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
    assert port == ""


@given(address=st.ip_addresses())
def test_loopback_is_what_the_address_says(address):
    assert is_loopback(str(address)) == ipaddress.ip_address(address).is_loopback


@pytest.mark.parametrize("host", ["localhost.evil.net", "127.1", "0", "", "::1.evil.net"])
def test_what_only_looks_like_loopback_is_none(host):
    assert not is_loopback(host)


# Where a name may lead


OUTSIDE = ["47.95.85.22", "8.8.8.8", "2408:4009:500::1", "64:ff9b::8.8.8.8", "2002:0808:0808::1"]
INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "::1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",  # of carriers, and of OSS's internal endpoints
    "100.118.28.50",
    "198.18.0.7",  # of test benches, and of some VPN programs
    "192.0.2.1",
    "fd00::1",
    "fc00::1",
    "fec0::1",
    "::ffff:10.1.2.3",
    "::ffff:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "2002:7f00:1::1",
    "2001:db8::1",
    "2001::1",  # Teredo
]
NO_STORE = [
    "169.254.169.254",  # clouds hand out credentials there
    "169.254.0.23",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "::ffff:100.100.100.200",
    "64:ff9b::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "fe80::1",
    "fe80::1%2",
    "224.0.0.1",
    "239.1.2.3",
    "ff02::1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "::127.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
]
LOOSE = HostRules.of(["*.aliyuncs.com", "lab.aliyuncs.com", "localhost", "10.9.9.9", "127.0.0.1"])


@pytest.mark.parametrize("address", OUTSIDE)
@pytest.mark.parametrize("host", ["a.aliyuncs.com", "LAB.aliyuncs.com."])
def test_every_allowed_name_may_lead_to_an_address_of_the_internet(host, address):
    assert LOOSE.reachable(host, [address]) == {address}


@pytest.mark.parametrize("address", INSIDE)
def test_only_a_name_that_is_listed_by_itself_may_lead_inside(address):
    with pytest.raises(HostNotAllowed, match=r"leads to .* add a\.aliyuncs\.com itself"):
        LOOSE.reachable("a.aliyuncs.com", [address])
    assert LOOSE.reachable("lab.aliyuncs.com", [address]) == {address}
    assert LOOSE.reachable("Lab.aliyuncs.com.", [address]) == {address}


@pytest.mark.parametrize("address", NO_STORE)
@pytest.mark.parametrize("host", ["a.aliyuncs.com", "lab.aliyuncs.com", "localhost"])
def test_no_name_leads_to_where_no_store_can_be(host, address):
    with pytest.raises(HostNotAllowed, match="where no store can be"):
        LOOSE.reachable(host, [address])


def test_an_address_that_is_listed_is_for_links_to_it_and_for_no_name():
    """With 127.0.0.1 allowed, as for the sandbox, no name of somebody else's leads there."""
    assert LOOSE.reachable("10.9.9.9", ["10.9.9.9"]) == {"10.9.9.9"}
    assert LOOSE.reachable("0:0::1", ["::1"]) == {"::1"}
    for address in ("10.9.9.9", "127.0.0.1"):
        with pytest.raises(HostNotAllowed):
            LOOSE.reachable("a.aliyuncs.com", [address])


def test_of_several_addresses_those_are_left_that_may_be_connected_to():
    found = ["10.0.0.1", "8.8.8.8", "::1", "2408:4009:500::1"]
    assert LOOSE.reachable("a.aliyuncs.com", iter(found)) == {"8.8.8.8", "2408:4009:500::1"}


def test_localhost_which_needs_no_tls_is_this_machine_alone():
    assert LOOSE.reachable("localhost", ["127.0.0.1", "::1"]) == {"127.0.0.1", "::1"}
    with pytest.raises(HostNotAllowed):
        LOOSE.reachable("localhost", ["8.8.8.8"])


def test_a_name_that_leads_nowhere_is_not_a_matter_of_rules():
    assert LOOSE.reachable("a.aliyuncs.com", []) == set()


@pytest.mark.parametrize(
    ("pattern", "host"),
    [("*.0.0.1", "127.0.0.1"), ("*.1", "127.1"), ("*.0x1", "127.0x1"), ("*.0.1", "0x7f.0.1")],
)
def test_a_pattern_is_for_names_and_not_for_addresses(pattern, host):
    with pytest.raises(HostNotAllowed):
        HostRules.of([pattern]).check(f"https://{host}/x")


@given(address=st.ip_addresses())
def test_only_what_the_internet_routes_is_reached_by_a_pattern(address):
    try:
        HostRules.of(["*.a"]).reachable("b.a", [str(address)])
    except HostNotAllowed:
        return
    assert address.is_global
    assert not address.is_multicast
