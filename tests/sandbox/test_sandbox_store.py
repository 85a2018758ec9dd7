"""The object store's stand-in, over real sockets, when nothing goes wrong."""

import hashlib
import os
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import aiohttp
import pytest
from fastcrc import crc64

from downloader.errors import InvalidSettings
from downloader.sandbox import FakeObjectStore

DATA = bytes(range(256)) * 40
KEY = "results/a b/中文.vcf.gz"
KIB = 1024


class Clock:
    """A clock that tests turn."""

    def __init__(self):
        self.now = datetime(2026, 11, 24, 8, 0, 0, tzinfo=UTC)

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def store(clock):
    async with FakeObjectStore(clock=clock) as store:
        store.put(KEY, DATA)
        yield store


@pytest.fixture
async def client():
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


async def get(client, url, *, method="GET", **headers):
    """Return status, headers and body."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    options = {"headers": named, "allow_redirects": False}
    # The signature covers the path as it is written, so the client must not rewrite it.
    async with client.request(method, aiohttp.client.URL(url, encoded=True), **options) as reply:
        return reply.status, reply.headers, await reply.read()


def xml(body):
    return {member.tag: member.text for member in ElementTree.fromstring(body)}


async def test_a_whole_object_comes_with_all_its_facts(store, client):
    status, headers, body = await get(client, store.object_url(KEY))
    assert (status, body) == (200, DATA)
    assert headers["Content-Length"] == str(len(DATA))
    assert headers["ETag"] == f'"{hashlib.md5(DATA).hexdigest().upper()}"'
    assert headers["x-oss-hash-crc64ecma"] == str(crc64.xz(DATA))
    assert headers["Last-Modified"] == "Tue, 24 Nov 2026 08:00:00 GMT"
    assert headers["Accept-Ranges"] == "bytes"
    assert len(headers["x-oss-request-id"]) == 24
    assert headers["Date"] == "Tue, 24 Nov 2026 08:00:00 GMT"


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=100-", 100, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        ("bytes=10200-999999", 10200, len(DATA)),
    ],
)
async def test_a_range_is_answered_with_that_part_and_the_whole_checksum(
    store, client, header, start, stop
):
    status, headers, body = await get(client, store.object_url(KEY), Range=header)
    assert (status, body) == (206, DATA[start:stop])
    assert headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert headers["Content-Length"] == str(stop - start)
    assert headers["x-oss-hash-crc64ecma"] == str(crc64.xz(DATA))


@pytest.mark.parametrize("header", ["bytes=0-1,4-5", "bytes=x-y", "bytes=9-3"])
async def test_a_range_that_cannot_be_read_is_answered_with_the_whole(store, client, header):
    status, headers, body = await get(client, store.object_url(KEY), Range=header)
    assert (status, body) == (200, DATA)
    assert "Content-Range" not in headers


async def test_an_unsatisfiable_range_tells_the_size(store, client):
    status, headers, body = await get(client, store.object_url(KEY), Range=f"bytes={len(DATA)}-")
    assert status == 416
    assert headers["Content-Range"] == f"bytes */{len(DATA)}"
    assert xml(body)["Code"] == "InvalidRange"


async def test_a_replaced_object_fails_the_precondition_of_the_old_version(store, client):
    old = store.get(KEY).etag
    assert (await get(client, store.object_url(KEY), If_Match=old))[0] == 200
    store.replace(KEY, b"new" * 100)
    status, headers, body = await get(client, store.object_url(KEY), If_Match=old)
    error = xml(body)
    assert (status, error["Code"], error["Condition"]) == (412, "PreconditionFailed", "If-Match")
    assert error["RequestId"] == headers["x-oss-request-id"]
    assert error["HostId"].startswith("sandbox-bucket.")
    assert store.requests[-1].if_match == old


async def test_a_version_that_is_known_is_not_sent_again(store, client):
    etag = store.get(KEY).etag
    status, headers, body = await get(client, store.object_url(KEY), If_None_Match=etag)
    assert (status, body, headers["ETag"]) == (304, b"", etag)


async def test_a_signed_link_is_for_get_only(store, client):
    status, _, _ = await get(client, store.object_url(KEY), method="HEAD")
    assert status == 403
    assert store.requests[-1].status == 403


async def test_a_link_expires(store, client, clock):
    url = store.object_url(KEY, lifetime=60)
    clock.now += timedelta(seconds=60)
    assert (await get(client, url))[0] == 200
    clock.now += timedelta(seconds=1)
    status, _, body = await get(client, url)
    error = xml(body)
    assert (status, error["Code"]) == (403, "AccessDenied")
    assert error["Message"] == "Request has expired."
    assert error["Expires"] == "2026-11-24T08:01:00.000Z"


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        ("Signature=", "Signature=A", "403 SignatureDoesNotMatch"),
        ("Expires=1", "Expires=2", "403 SignatureDoesNotMatch"),
        ("Expires=", "Expires=x", "403 AccessDenied"),
        ("results/", "other/", "403 SignatureDoesNotMatch"),
        ("OSSAccessKeyId=", "OSSAccessKeyId=X", "403 InvalidAccessKeyId"),
        ("OSSAccessKeyId=", "X=", "400 InvalidArgument"),
        ("Expires=1", "Expires=1&Expires=1", "400 InvalidArgument"),
        ("&security-token=t", "", "403 SignatureDoesNotMatch"),
        ("security-token=t", "security-token=u", "403 SignatureDoesNotMatch"),
    ],
)
async def test_a_link_that_was_changed_is_refused(store, client, old, new, refusal):
    url = store.object_url(KEY, security_token="t")
    assert (await get(client, url))[0] == 200
    assert old in url
    got, _, body = await get(client, url.replace(old, new, 1))
    assert f"{got} {xml(body)['Code']}" == refusal


async def test_a_link_without_all_its_members_is_refused(store, client):
    url = store.object_url(KEY)
    status, _, body = await get(client, url[: url.index("&Signature=")])
    assert (status, xml(body)["Code"]) == (403, "AccessDenied")


async def test_a_bare_url_is_refused_unless_the_bucket_is_public(store, client):
    bare = store.object_url(KEY, signed=False)
    status, _, body = await get(client, bare)
    assert (status, xml(body)["Code"]) == (403, "AccessDenied")
    store.public = True
    assert (await get(client, bare))[2] == DATA
    status, headers, body = await get(client, bare, method="HEAD", Range="bytes=0-1")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(DATA)))


async def test_the_path_of_a_url_is_the_key(store):
    path = urlsplit(store.object_url(KEY)).path
    assert path == "/results/a%20b/%E4%B8%AD%E6%96%87.vcf.gz"
    assert set(parse_qs(urlsplit(store.object_url(KEY)).query)) == {
        "Expires",
        "OSSAccessKeyId",
        "Signature",
    }


async def test_objects_that_are_missing_archived_or_old_say_so(store, client):
    store.put("old", b"x", crc=False)
    assert "x-oss-hash-crc64ecma" not in (await get(client, store.object_url("old")))[1]
    store.archive(KEY)
    status, _, body = await get(client, store.object_url(KEY))
    assert (status, xml(body)["Code"]) == (403, "InvalidObjectState")
    store.delete(KEY)
    status, _, body = await get(client, store.object_url(KEY))
    assert (status, xml(body)["Code"], xml(body)["Key"]) == (404, "NoSuchKey", KEY)


async def test_other_methods_are_not_allowed(store, client):
    status, headers, _ = await get(client, store.object_url(KEY), method="DELETE")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


async def test_an_object_may_carry_its_own_etag_type_and_encoding(store, client):
    store.put("m", b"x", etag='"F00-3"', content_type="text/x", content_encoding="gzip")
    _, headers, body = await get(client, store.object_url("m"))
    assert (headers["ETag"], headers["Content-Type"]) == ('"F00-3"', "text/x")
    assert (headers["Content-Encoding"], body) == ("gzip", b"x")


async def test_an_empty_object_is_an_object(store, client):
    store.put("empty", b"")
    assert (await get(client, store.object_url("empty")))[::2] == (200, b"")
    assert (await get(client, store.object_url("empty"), Range="bytes=0-"))[0] == 416


async def test_a_file_is_served_from_where_it_lies_whole_and_in_parts(store, client, tmp_path):
    data = os.urandom(3 * KIB * KIB + 17)
    (tmp_path / "f").write_bytes(data)
    stored = store.put("f", tmp_path / "f")
    assert stored.crc64 == crc64.xz(data)
    assert (await get(client, store.object_url("f")))[2] == data
    part = await get(client, store.object_url("f"), Range="bytes=1000000-2999999")
    assert part[2] == data[1000000:3000000]
    assert store.bytes_served_by_key["f"] == len(data) + 2_000_000


async def test_a_file_that_was_written_to_is_another_version(store, client, tmp_path):
    (tmp_path / "f").write_bytes(b"one")
    etag = store.put("f", tmp_path / "f").etag
    (tmp_path / "f").write_bytes(b"three")
    status, headers, body = await get(client, store.object_url("f"))
    assert (status, body, headers["x-oss-hash-crc64ecma"]) == (
        200,
        b"three",
        str(crc64.xz(b"three")),
    )
    assert (await get(client, store.object_url("f"), If_Match=etag))[0] == 412
    (tmp_path / "f").unlink()
    assert (await get(client, store.object_url("f")))[0] == 404


async def test_a_large_file_has_the_etag_of_a_multipart_upload(store, client, tmp_path):
    """Its MD5 would be a lie about the real store, and slow."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(65 * KIB * KIB)
    stored = store.put("big", tmp_path / "big")
    assert stored.etag.endswith('-2"')
    _, headers, body = await get(client, store.object_url("big"), Range="bytes=-1")
    assert (headers["x-oss-object-type"], body) == ("Multipart", b"\0")


async def test_whoever_is_reading_keeps_the_version_that_was_begun(store, client):
    store.put("big", b"a" * 8 * KIB * KIB)
    async with client.get(store.object_url("big")) as reply:
        first = await reply.content.readany()
        store.replace("big", b"b" * 8 * KIB * KIB)
        assert set(first + await reply.content.read()) == {ord("a")}


async def test_every_request_is_in_the_books_before_its_last_byte_arrives(store, client):
    await get(client, store.object_url(KEY), Range="bytes=5-9")
    record = store.requests[-1]
    assert (record.key, record.asked, record.status) == (KEY, (5, 10), 206)
    assert (record.bytes_sent, record.range_header) == (5, "bytes=5-9")
    assert store.bytes_served == 5
    store.forget_requests()
    assert (store.requests, store.bytes_served) == ([], 0)


async def test_connections_are_counted(store):
    async with aiohttp.ClientSession() as first, aiohttp.ClientSession() as second:
        await get(first, store.object_url(KEY))
        await get(second, store.object_url(KEY))
        assert (store.connections_open, store.connections_peak) == (2, 2)


async def test_a_rate_is_kept_for_each_connection_and_for_all(store, client, tmp_path):
    """20 ms at 1 MB/s, be it from memory or from a file; 40 ms where the total is halved."""
    (tmp_path / "f").write_bytes(b"x" * 20_000)
    store.put("f", tmp_path / "f")
    store.latency = 0.001
    store.bytes_per_second = 1_000_000
    assert await seconds(get(client, store.object_url("f"))) >= 0.02
    store.total_bytes_per_second = 500_000
    assert await seconds(get(client, store.object_url("f"))) >= 0.04


async def seconds(awaitable):
    """Return how long it takes."""
    begun = datetime.now(UTC)
    await awaitable
    return (datetime.now(UTC) - begun).total_seconds()


async def test_the_request_log_has_no_signature(clock, client):
    lines = []
    async with FakeObjectStore(clock=clock, on_request=lines.append) as store:
        store.put(KEY, DATA)
        await get(client, store.object_url(KEY), Range="bytes=0-0")
        await get(client, store.object_url("no"))
    assert lines[0].startswith("08:00:00 store GET /results/a%20b/")
    assert lines[0].endswith("bytes=0-0 -> 206, 1 bytes")
    assert "Signature" not in "".join(lines)
    assert "not-real" not in repr(store._links)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "example.org"])
def test_only_loopback_is_served(host):
    with pytest.raises(InvalidSettings, match="loopback"):
        FakeObjectStore(host=host)


async def test_a_port_that_is_taken_is_a_clear_error(store):
    port = urlsplit(store.url).port
    with pytest.raises(InvalidSettings, match=f"port {port}"):
        async with FakeObjectStore(port=port):
            pass


async def test_a_new_version_needs_an_old_one(store):
    with pytest.raises(KeyError):
        store.replace("no", b"")
    assert store.keys == [KEY]
