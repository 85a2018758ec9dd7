"""Which proxy stands before a host, as the environment says it."""

import pytest

from downloader.errors import InvalidSettings
from downloader.network import proxy_for

LINK = "https://results.oss-cn-shenzhen.aliyuncs.com/a.vcf.gz"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("https_proxy", "http://proxy.example:3128"),
        ("HTTPS_PROXY", "http://proxy.example:3128/"),
        ("HTTPS_PROXY", "proxy.example:3128"),  # as curl takes it
        ("all_proxy", "http://proxy.example:3128"),
    ],
)
def test_the_environment_names_the_proxy(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    proxy = proxy_for(LINK)
    assert (proxy.url.host, proxy.url.port, proxy.headers) == ("proxy.example", 3128, {})


def test_its_password_is_in_no_url_and_in_no_repr(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://bob:hush@proxy.example:3128")
    proxy = proxy_for(LINK)
    assert proxy.headers == {"Proxy-Authorization": "Basic Ym9iOmh1c2g="}
    assert "hush" not in repr(proxy)
    assert "Ym9i" not in repr(proxy)


def test_none_stands_before_this_machine_or_what_is_excepted(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", ".aliyuncs.com")
    for url in (LINK, "http://127.0.0.1:8080/a", "https://localhost/a", "http://[::1]/a"):
        assert proxy_for(url).url is None


@pytest.mark.parametrize("value", ["socks5://proxy:1080", "https://proxy:443", "http://[bad", "//"])
def test_a_proxy_that_cannot_be_used_is_named_by_its_variable(monkeypatch, value):
    """The link would be blamed for it otherwise."""
    monkeypatch.setenv("https_proxy", value)
    with pytest.raises(InvalidSettings, match="HTTPS_PROXY is no proxy that can be used"):
        proxy_for(LINK)
