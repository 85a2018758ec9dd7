"""Each fault of the object store, seen on the wire; `Wire` reads what a browser would hide."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
import pytest

from downloader.sandbox import FakeObjectStore, Fault
from downloader.sandbox.faults import FaultQueue

DATA = bytes(range(256)) * 1024
KEY = "a.vcf.gz"


@dataclass
class Answer:
    """What came over the socket: body bytes as sent, and how the connection ended."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: Exception | None = None


@pytest.fixture
async def store():
    async with FakeObjectStore() as store:
        store.put(KEY, DATA)
        yield store


@contextlib.asynccontextmanager
async def asked(url, *, method="GET", **headers):
    """Send a request that ends its connection, and lend the socket's stream."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    lines = [f"{method} {parts.path}?{parts.query} HTTP/1.1", "Host: x", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    try:
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def head_of(reader):
    """Read status line and headers; names are lower case."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    return Answer(int(lines[0].split()[1]), {name.lower(): headers[name] for name in headers})


async def get(url, *, method="GET", **headers):
    """Return all that came until the connection ended."""
    answer = Answer()
    async with asked(url, method=method, **headers) as reader:
        try:
            answer = await head_of(reader)
            while data := await reader.read(65536):
                answer.body += data
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            answer.error = error
    return answer


async def ranged(store, start=100, stop=300):
    return await get(store.object_url(KEY), Range=f"bytes={start}-{stop - 1}")


def unchunked(body):
    """Return the content of a chunked body, and whether its last chunk came."""
    content = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return content, True
        content, body = content + rest[:length], rest[length + 2 :]
    return content, False


async def test_cut_closes_before_the_promised_length(store):
    injection = store.inject(Fault.CUT, after=1000)
    answer = await get(store.object_url(KEY))
    assert answer.headers["content-length"] == str(len(DATA))
    assert (answer.body, answer.error) == (DATA[:1000], None)
    assert (injection.hits, injection.happened.is_set()) == (1, True)
    assert store.requests[-1].fault is Fault.CUT
    assert store.requests[-1].bytes_sent == 1000
    assert (await get(store.object_url(KEY))).body == DATA


async def test_cut_never_sends_everything(store):
    store.inject(Fault.CUT, after=10**9)
    assert len((await get(store.object_url(KEY))).body) == len(DATA) - 1


async def test_reset_is_a_tcp_reset(store):
    store.inject(Fault.RESET, after=500)
    answer = await get(store.object_url(KEY))
    assert answer.status == 200
    assert isinstance(answer.error, ConnectionResetError)
    assert DATA.startswith(answer.body)
    assert len(answer.body) <= 500


async def test_stall_sends_the_rest_once_released(store):
    injection = store.inject(Fault.STALL, after=1000)
    async with asked(store.object_url(KEY)) as reader:
        await head_of(reader)
        assert await reader.readexactly(1000) == DATA[:1000]
        await injection.happened.wait()
        assert store.requests[-1].bytes_sent == 1000
        injection.release()
        assert await reader.read() == DATA[1000:]


async def test_stall_ends_when_its_client_leaves(store):
    injection = store.inject(Fault.STALL, after=10)
    async with asked(store.object_url(KEY)):
        await injection.happened.wait()
        server = store._server._server
        (handler,) = server.connections
        task = handler._task_handler
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert store.connections_open == 0


async def test_trickle_gives_all_in_small_pieces(store):
    store.put("small", b"0123456789")
    store.inject(Fault.TRICKLE, chunk=2, interval=0.001)
    assert (await get(store.object_url("small"))).body == b"0123456789"


async def test_truncate_chunked_ends_cleanly_and_too_early(store):
    store.inject(Fault.TRUNCATE_CHUNKED, after=1000)
    answer = await get(store.object_url(KEY))
    assert "content-length" not in answer.headers
    assert unchunked(answer.body) == (DATA[:1000], True)


async def test_overlong_goes_on_behind_the_end(store):
    store.inject(Fault.OVERLONG, extra=b"more")
    assert unchunked((await get(store.object_url(KEY))).body) == (DATA + b"more", True)


async def test_chunked_has_no_length_and_is_right(store):
    store.inject(Fault.CHUNKED)
    answer = await ranged(store)
    assert (answer.status, answer.headers["transfer-encoding"]) == (206, "chunked")
    assert "content-length" not in answer.headers
    assert unchunked(answer.body) == (DATA[100:300], True)


async def test_ignore_range_answers_with_the_whole(store):
    store.inject(Fault.IGNORE_RANGE)
    answer = await ranged(store)
    assert (answer.status, answer.body) == (200, DATA)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize(
    ("fault", "details", "told", "sent"),
    [
        (Fault.WRONG_CONTENT_RANGE, {"shift": 50}, "150-349/262144", (100, 300)),
        (Fault.WRONG_PART, {"shift": 50}, "100-299/262144", (150, 350)),
        (Fault.SHORT_RANGE, {"length": 80}, "100-179/262144", (100, 180)),
        (Fault.WRONG_TOTAL, {"total": 262145}, "100-299/262145", (100, 300)),
    ],
)
async def test_a_partial_answer_lies_in_one_way_only(store, fault, details, told, sent):
    store.inject(fault, **details)
    answer = await ranged(store)
    assert (answer.status, answer.headers["content-range"]) == (206, f"bytes {told}")
    assert answer.body == DATA[slice(*sent)]
    assert answer.headers["content-length"] == str(len(answer.body))


async def test_a_wrong_part_wraps_around_at_the_end(store):
    store.inject(Fault.WRONG_PART, shift=10)
    answer = await ranged(store, 0, len(DATA))
    assert answer.body == DATA[10:] + DATA[:10]


async def test_status_is_any_error_with_any_headers(store):
    headers = {"Retry-After": "7", "x-oss-qos-delay-time": "3"}
    store.inject(Fault.STATUS, status=503, code="ServiceUnavailable", headers=headers)
    answer = await get(store.object_url(KEY))
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")
    assert answer.headers["x-oss-qos-delay-time"] == "3"
    assert b"<Code>ServiceUnavailable</Code>" in answer.body
    assert answer.headers["x-oss-request-id"].encode() in answer.body


async def test_expired_refuses_a_good_link(store):
    store.inject(Fault.EXPIRED)
    answer = await get(store.object_url(KEY))
    assert answer.status == 403
    assert b"<Message>Request has expired.</Message>" in answer.body


async def test_redirect_leads_to_itself_so_often_and_then_home(store):
    store.inject(Fault.REDIRECT, times=3)
    async with (
        aiohttp.ClientSession() as client,
        client.get(aiohttp.client.URL(store.object_url(KEY), encoded=True)) as reply,
    ):
        assert (await reply.read(), len(reply.history)) == (DATA, 3)


async def test_redirect_leads_to_another_port(store):
    async with FakeObjectStore() as other:
        other.put("b", b"elsewhere")
        store.inject(Fault.REDIRECT, location=lambda: other.object_url("b"), status=307)
        answer = await get(store.object_url(KEY))
        assert answer.status == 307
        assert (await get(answer.headers["location"])).body == b"elsewhere"


async def test_html_200_is_a_page_in_place_of_the_object(store):
    store.inject(Fault.HTML_200)
    answer = await ranged(store)
    assert (answer.status, answer.headers["content-type"][:9]) == (200, "text/html")
    assert answer.body.startswith(b"<!DOCTYPE html>")
    assert "etag" not in answer.headers


async def test_hang_answers_nothing_until_released(store):
    injection = store.inject(Fault.HANG)
    async with asked(store.object_url(KEY)) as reader:
        await injection.happened.wait()
        assert store.requests[-1].status == 0
        injection.release()
        assert (await head_of(reader)).status == 200
        assert await reader.read() == DATA


async def test_etag_changed_ignores_the_precondition(store):
    store.inject(Fault.ETAG_CHANGED)
    answer = await get(store.object_url(KEY), If_Match=store.get(KEY).etag)
    assert (answer.status, answer.body) == (200, DATA)
    assert answer.headers["etag"] == f'"{"0" * 32}"'


@pytest.mark.parametrize(
    ("fault", "name", "change"),
    [
        (Fault.NO_ETAG, "etag", lambda _: None),
        (Fault.WEAK_ETAG, "etag", lambda right: f"W/{right}"),
        (Fault.NO_CRC, "x-oss-hash-crc64ecma", lambda _: None),
        (Fault.WRONG_CRC, "x-oss-hash-crc64ecma", lambda right: str(int(right) ^ 1)),
        (Fault.CONTENT_ENCODING, "content-encoding", lambda _: "gzip"),
    ],
)
async def test_one_header_is_wrong_and_the_body_is_right(store, fault, name, change):
    right = (await get(store.object_url(KEY))).headers.get(name)
    store.inject(fault)
    answer = await get(store.object_url(KEY))
    assert answer.headers.get(name) == change(right)
    assert answer.body == DATA


async def test_flip_byte_waits_for_the_range_that_has_the_byte(store):
    store.inject(Fault.FLIP_BYTE, offset=250)
    assert (await ranged(store, 0, 250)).body == DATA[:250]
    wrong = (await ranged(store)).body
    assert [at for at in range(200) if wrong[at] != DATA[100 + at]] == [150]
    assert (await ranged(store)).body == DATA[100:300]


async def test_flip_byte_finds_its_byte_in_a_file_and_across_pieces(store, tmp_path):
    (tmp_path / "f").write_bytes(DATA * 3)
    store.put("f", tmp_path / "f")
    store.inject(Fault.FLIP_BYTE, key="f", offset=2 * len(DATA) + 5)
    body = (await get(store.object_url("f"))).body
    assert body[2 * len(DATA) + 5] == DATA[5] ^ 0xFF
    assert len(body) == 3 * len(DATA)


async def test_faults_choose_their_request_by_key_method_and_offset(store):
    store.put("b", b"bbb")
    store.inject(Fault.STATUS, key="b", status=500)
    store.inject(Fault.STATUS, method="HEAD", status=501)
    store.inject(Fault.STATUS, covering=150, status=502)
    assert (await ranged(store, 0, 100)).status == 206
    assert (await ranged(store)).status == 502
    assert (await get(store.object_url("b"))).status == 500
    assert (await get(store.object_url(KEY), method="HEAD")).status == 501
    assert (await ranged(store)).status == 206


async def test_faults_come_in_the_order_in_which_they_were_asked_for(store):
    store.inject(Fault.CUT, after=1)
    store.inject(Fault.STATUS, status=500, times=2)
    store.inject(Fault.NO_CRC, times=None)
    answers = [await get(store.object_url(KEY)) for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 500, 500, 200, 200]
    assert len(answers[0].body) == 1
    assert "x-oss-hash-crc64ecma" not in answers[4].headers
    store.clear_faults()
    assert "x-oss-hash-crc64ecma" in (await get(store.object_url(KEY))).headers


async def test_a_fault_of_the_body_waits_for_an_answer_that_has_one(store):
    injection = store.inject(Fault.CUT, after=1)
    assert (await get(store.object_url(KEY), If_Match='"X"')).status == 412
    assert (await get(store.object_url("missing"))).status == 404
    assert injection.hits == 0
    assert len((await get(store.object_url(KEY))).body) == 1


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.STALL])
async def test_closing_waits_for_nobody(fault):
    async with contextlib.AsyncExitStack() as stack:
        async with FakeObjectStore() as store:
            store.put(KEY, DATA)
            injection = store.inject(fault)
            reader = await stack.enter_async_context(asked(store.object_url(KEY)))
            await injection.happened.wait()
        assert store.connections_open == 0
        await reader.read()


async def test_what_is_held_goes_on_when_faults_are_cleared(store):
    injection = store.inject(Fault.HANG)
    async with asked(store.object_url(KEY)) as reader:
        await injection.happened.wait()
        store.clear_faults()
        assert (await head_of(reader)).status == 200


async def test_a_client_that_leaves_in_mid_body_costs_only_what_was_sent(store, tmp_path):
    """The kernel's buffers are full at a few MB; the rest of the file is not counted as served."""
    size = 64 * 1024 * 1024
    with (tmp_path / "big").open("wb") as file:
        file.truncate(size)
    store.put("big", tmp_path / "big")
    async with asked(store.object_url("big")) as reader:
        await head_of(reader)
        (handler,) = store._server._server.connections
        task = handler._task_handler
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert 0 < store.bytes_served < size


def test_a_detail_that_no_fault_has_is_an_error():
    with pytest.raises(TypeError, match="aftr"):
        FaultQueue().inject(Fault.CUT, aftr=1)
