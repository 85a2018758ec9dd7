"""Bytes on the wire that no decent store sends: not one of them is believed, none is fatal."""

import pytest
from transfer_helpers import SMALL, reply, scripted_server

from downloader.errors import ObjectMissing, StoreUnavailable

pytest_plugins = ["transfer_helpers"]

GOOD = {"ETag": '"1"', "Content_Range": f"bytes 0-{len(SMALL) - 1}/{len(SMALL)}"}
RIGHT = reply(206, SMALL, **GOOD)
NONSENSE = {
    "a chunk size that is no number": reply(
        206, b"ZZZ\r\nabc", **GOOD, Content_Length=None, Transfer_Encoding="chunked"
    ),
    "a chunk that is longer than it says": reply(
        206, b"3\r\nabcdefgh\r\n", **GOOD, Content_Length=None, Transfer_Encoding="chunked"
    ),
    "a length that contradicts the range": reply(206, SMALL[:-1], **GOOD),
    "a range in other digits": reply(
        206, SMALL, **{**GOOD, "Content_Range": f"bytes \u0660-{len(SMALL) - 1}/{len(SMALL)}"}
    ),
    "several ranges": reply(206, b"--x--", Content_Type="multipart/byteranges; boundary=x"),
    "no length at all": reply(200, SMALL, Content_Length=None, ETag='"1"'),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "nothing": b"",
    "half a head": b"HTTP/1.1 206 Par",
    "a huge header": b"HTTP/1.1 206 P\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    "a redirect to no link": reply(302, b"", Location="http://[x/"),
    "a refusal that breaks off": reply(503, b"<Error>", Content_Length=1000),
}


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_is_a_passing_fault(rig, nonsense):
    async with scripted_server(nonsense, RIGHT) as (rig.url, _):
        await rig.transfer()
    assert rig.on_disk == SMALL


async def test_a_refusal_that_breaks_off_is_still_a_refusal(rig):
    async with scripted_server(reply(404, b"<Error>", Content_Length=1000)) as (rig.url, heads):
        with pytest.raises(ObjectMissing):
            await rig.transfer()
    assert len(heads) == 1


async def test_garbage_behind_the_length_is_no_part_of_the_object(rig):
    """Nor is it the next reply, even if it looks like one."""
    forged = reply(206, b"!" * 10, Content_Range="bytes 0-9/10", ETag='"1"')
    async with scripted_server(RIGHT + forged) as (rig.url, _):
        await rig.transfer()
    assert rig.on_disk == SMALL


async def test_an_etag_that_cannot_be_sent_back_is_none(rig):
    """The object comes in one reply, as from a store without ETags."""
    async with scripted_server(RIGHT.replace(b'"1"', b'"\xff"')) as (rig.url, _):
        done = await rig.transfer()
    assert (done.etag, rig.on_disk) == (None, SMALL)


async def test_a_checksum_that_is_no_number_is_none(rig):
    answer = reply(206, SMALL, **GOOD, x_oss_hash_crc64ecma="+12_3")
    async with scripted_server(answer) as (rig.url, _):
        done = await rig.transfer()
    assert not done.crc64_confirmed


async def test_a_store_that_cannot_be_reached_is_told(rig):
    async with scripted_server(b"") as (rig.url, _):
        pass  # the port is closed now
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1 cannot be reached: .*given up"):
        await rig.transfer()
