"""Heads as they travel: what a request says, and what is taken for the head of a reply."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.transfer.ranged_get import Version
from downloader.transfer.wire import NoReply, RangeRequest, parse_head

LINK = urlsplit("https://bucket.oss.example:8443/a%20b?Signature=x%2By&Expires=1")
VERSION = Version(etag='"1"', size=10, crc64=None)


def test_a_request_names_the_range_and_the_version():
    head = RangeRequest(LINK, 5, 10, VERSION).head("me/1")
    assert head == (
        b"GET /a%20b?Signature=x%2By&Expires=1 HTTP/1.1\r\n"
        b"Host: bucket.oss.example:8443\r\n"
        b"User-Agent: me/1\r\n"
        b"Accept: */*\r\n"
        b"Accept-Encoding: identity\r\n"
        b"Range: bytes=5-9\r\n"
        b'If-Match: "1"\r\n\r\n'
    )


def test_the_first_request_names_no_version():
    assert b"If-Match" not in RangeRequest(LINK, 0, 10, None).head("me/1")


@pytest.mark.parametrize("path", ["/a b", "/ä", "/a\x7f"])
def test_what_cannot_be_sent_as_it_is_is_not_sent(path):
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        RangeRequest(LINK._replace(path=path), 0, 1, None).head("me/1")


def test_a_version_without_an_etag_cannot_be_asked_for():
    with pytest.raises(ValueError, match="no version"):
        RangeRequest(LINK, 0, 1, Version(etag=None, size=1, crc64=None)).head("me/1")


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://a.example/x", ("https", "a.example", 443)),
        ("http://127.0.0.1/x", ("http", "127.0.0.1", 80)),
        ("https://A.example:8443/x", ("https", "a.example", 8443)),
    ],
)
def test_connections_are_kept_by_where_they_lead(url, place):
    assert RangeRequest(urlsplit(url), 0, 1, None).place == place


def test_fields_are_found_in_any_case():
    head = parse_head(b'HTTP/1.1 206 Partial\r\nETag:  "1" \r\ncontent-length: 7\r\nX-A:')
    assert (head.status, head.get("etag", ""), head.content_length) == (206, '"1"', 7)
    assert head.get("X-a", "-") == ""
    assert head.get("x-b", "-") == "-"
    assert not head.will_close


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        (b"Content-Length: 7", 7),
        (b"Content-Length: 7\r\nContent-Length: 7", None),  # who knows what the second means
        (b"Content-Length: -7", None),
        (b"Content-Length: +7", None),
        (b"Content-Length: 7\r\nTransfer-Encoding: chunked", None),
        (b"Content-Length: " + b"0" * 19 + b"7", None),  # the part of it that is looked at is 0
        (b"X: 1", None),
    ],
)
def test_a_length_is_a_length_only_if_it_is_told_plainly(fields, length):
    assert parse_head(b"HTTP/1.1 200 OK\r\n" + fields).content_length == length


@pytest.mark.parametrize(
    ("raw", "will_close"),
    [
        (b"HTTP/1.1 200 OK", False),
        (b"HTTP/1.1 200", False),
        (b"HTTP/1.1 200 OK\r\nConnection: Close", True),
        (b"HTTP/1.0 200 OK", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive", False),
    ],
)
def test_what_comes_behind_the_body(raw, will_close):
    assert parse_head(raw).will_close is will_close


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/2 200",
        b"HTTP/1.1 20",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 200 OK\r\nno field",
        b"HTTP/1.1 200 OK\r\nX: 1\r\n folded",
        b"HTTP/1.1 200 OK\r\nX : 1",
        b"HTTP/1.1 200 OK\r\n: 1",
        b"HTTP/1.1 200 OK\nX: 1",
    ],
)
def test_what_is_no_head_is_refused(raw):
    with pytest.raises(NoReply):
        parse_head(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_head_or_none(raw):
    try:
        head = parse_head(b"HTTP/1.1 206 P\r\n" + raw)
    except NoReply:
        return
    assert head.status == 206


# Killed after seconds of the processor's time, not of the clock's.
READ_HEAD = """
import resource
resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
from downloader.transfer.wire import parse_head
head = parse_head(b"HTTP/1.1 206 Partial Content\\r\\nX: x" + b" " * 60_000 + b"x")
print(len(head.get("X", "")))
"""


def test_a_head_of_blanks_is_read_at_once(start_python):
    """64 KiB of them held the whole process up for half a minute: nothing else ran meanwhile."""
    assert start_python(READ_HEAD).communicate()[0] == "60002\n"


@pytest.mark.parametrize("blanks", ["", " ", "\t", " \t "])
def test_blanks_around_a_value_are_no_part_of_it(blanks):
    head = parse_head(f"HTTP/1.1 200 OK\r\nX:{blanks}a b{blanks}".encode())
    assert head.get("X", "") == "a b"
