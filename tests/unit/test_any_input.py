"""What comes from outside may be anything: it is understood or refused, and nothing else."""

import json
import re
from itertools import pairwise
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from downloader.api.envelope import Reply, parse_reply
from downloader.api.signing import PREFIX, string_to_sign
from downloader.errors import BadStoreReply, ObjectChanged, PlatformError, redacted
from downloader.transfer.checkpointing import remembered_crc64
from downloader.transfer.checksum import EMPTY_CRC64, combine_crc64, crc64_of
from downloader.transfer.link import expires_at
from downloader.transfer.plan import plan_segments, segments_without, usable
from downloader.transfer.ranged_get import Version, partial_span
from state.records import Checkpoint, Segment

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ENVELOPES = st.fixed_dictionaries(
    {}, optional={"code": JSON, "msg": JSON, "data": JSON, "pagination": JSON}
)


def answered(body, status=200, **facts):
    """Return the answer, or the error that it is."""
    try:
        return parse_reply(Reply(url="https://h/api", status=status, body=body, **facts))
    except PlatformError as error:
        return error


def is_one_line(error):
    return "\n" not in str(error) and str(error).isprintable()


# The platform's answers


@given(body=st.binary(max_size=60), status=st.integers(200, 599), location=TEXT | st.none())
@example(body=b"{" * 5000, status=200, location=None)
@example(body=b"[" * 100_000, status=200, location=None)
@example(body=b'{"code":' + b"9" * 5000 + b"}", status=200, location=None)
def test_any_bytes_are_an_answer_or_a_fault_of_the_platform(body, status, location):
    answer = answered(body, status, location=location)
    assert isinstance(answer, dict) or "\n" not in str(answer)


@given(envelope=ENVELOPES | JSON)
def test_any_json_is_an_answer_or_a_sentence_about_it(envelope):
    answer = answered(json.dumps(envelope).encode())
    if isinstance(answer, dict):
        assert envelope.get("code", 0) in (0, "0")
    else:
        assert is_one_line(answer)


# Signing


@given(params=st.dictionaries(TEXT.filter(lambda name: name != "sign"), TEXT, max_size=5))
def test_what_is_signed_is_all_that_was_given_and_nothing_else(params):
    """Each name and each value comes back, so no two calls can have one signature."""
    signed = unquote(string_to_sign(params).removeprefix(PREFIX))
    pairs = [pair.split("=") for pair in signed.split("&")] if signed else []
    assert {unquote(name): unquote(value) for name, value in pairs} == params
    assert [unquote(name) for name, _ in pairs] == sorted(params)


@given(params=st.dictionaries(TEXT, TEXT, min_size=1, max_size=3))
def test_what_is_signed_is_plain_ascii(params):
    assert re.fullmatch(r"[A-Za-z0-9&%._~-]*", string_to_sign(params))


# Links


@given(url=TEXT | st.builds("https://h/a?{}={}&x-oss-date={}".format, TEXT, TEXT, TEXT))
@example(url="https://h/a?Expires=1e999")
@example(url="https://h/a?x-oss-date=00010101T000000Z&x-oss-expires=-1e300")
@example(url="https://[::1/a?Expires=1")
def test_any_text_has_an_end_or_none(url):
    at = expires_at(url)
    assert at is None or isinstance(at, float)


@given(path=TEXT, query=TEXT)
def test_no_query_is_ever_shown(path, query):
    assert "geheim" not in redacted(f"https://me:geheim@h/{path}?geheim{query}")
    assert "geheim" not in redacted(f"https://h/{path}?{query}geheim")


# The store's answers

NUMBERS = st.integers(0, 12)
ASKED = st.tuples(NUMBERS, st.integers(1, 8)).map(lambda asked: (asked[0], sum(asked)))


@given(asked=ASKED, span=st.tuples(NUMBERS, NUMBERS), total=NUMBERS, told=NUMBERS)
def test_a_part_is_taken_if_it_begins_where_it_must_and_is_as_long_as_it_says(
    asked, span, total, told
):
    (start, stop), (first, last) = asked, span
    reply = SimpleNamespace(
        headers={"Content-Range": f"bytes {first}-{last}/{total}", "ETag": '"1"'},
        content_length=told,
    )
    if first == start <= last < min(stop, total) and told == last + 1 - first:
        assert partial_span(reply, start, stop, None)[1:] == (first, last + 1)
    else:
        with pytest.raises(BadStoreReply):
            partial_span(reply, start, stop, None)


@given(header=TEXT, etag=TEXT, crc=TEXT)
def test_any_headers_are_a_part_or_a_sentence(header, etag, crc):
    headers = {"Content-Range": header, "ETag": etag, "x-oss-hash-crc64ecma": crc}
    version = Version(etag='"1"', size=10, crc64=5)
    with pytest.raises((BadStoreReply, ObjectChanged)) as caught:
        partial_span(SimpleNamespace(headers=headers, content_length=None), 0, 10, version)
    assert isinstance(caught.value, BadStoreReply)


# What is remembered

ANYTHING = st.none() | st.integers() | st.floats() | TEXT | st.binary(max_size=5)


@given(crc=ANYTHING)
def test_any_remembered_checksum_is_a_number_or_none(crc):
    found = remembered_crc64(SimpleNamespace(crc64=crc))
    assert found is None or (isinstance(found, int) and found >= 0)


@st.composite
def sound_checkpoints(draw):
    """Any checkpoint that the state lets pass: in order and apart, with gaps."""
    size = draw(st.integers(0, 40))
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=6)))
    segments = [
        Segment(start=start, stop=stop, watermark=draw(st.integers(0, stop - start)))
        for start, stop in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    return Checkpoint(etag='"1"', size=size, segments=tuple(segments))


@given(checkpoint=sound_checkpoints(), part_size=st.integers(0, 60))
def test_what_is_believed_leaves_no_byte_to_nobody(checkpoint, part_size):
    """A byte that is in no segment would never be fetched, and its file never be whole."""
    found = usable(checkpoint, part_size)
    if found is None:
        return
    missing = {at for one in found.segments for at in range(one.position, one.stop)}
    here = {at for one in found.segments for at in range(one.start, one.position)}
    assert missing | here == {*range(found.size)}
    assert not missing & here
    assert all(at < part_size for at in here)


@given(
    size=st.integers(0, 3000),
    cuts=st.lists(st.integers(0, 3000), max_size=6),
    segment_size=st.integers(1, 700),
)
def test_what_is_taken_back_is_missing_and_everything_else_is_here(size, cuts, segment_size):
    edges = sorted({min(cut, size) for cut in cuts})
    ranges = list(zip(edges[::2], edges[1::2], strict=False))
    segments = segments_without(ranges, size=size, segment_size=segment_size)
    checkpoint = Checkpoint(etag='"1"', size=size, segments=segments)
    assert usable(checkpoint, size) == checkpoint
    missing = {at for one in segments for at in range(one.position, one.stop)}
    assert missing == {at for start, stop in ranges for at in range(start, stop)}
    assert all(one.length <= segment_size for one in segments if not one.is_complete)


# Checksums


@given(
    data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=5), seed=st.randoms()
)
def test_segments_may_come_in_any_order(data, cuts, seed):
    """Each is summed by itself, whenever it comes; they are joined in the file's order."""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    spans = [*pairwise(edges)]
    arrival = [*spans]
    seed.shuffle(arrival)
    sums = {span: crc64_of(data[span[0] : span[1]]) for span in arrival}
    whole = EMPTY_CRC64
    for start, stop in spans:
        whole = combine_crc64(whole, sums[start, stop], stop - start)
    assert whole == crc64_of(data)


@given(data=st.binary(min_size=1, max_size=300), at=st.integers(0, 299), bit=st.integers(0, 7))
def test_no_flipped_bit_passes(data, at, bit):
    other = bytearray(data)
    other[at % len(data)] ^= 1 << bit
    assert crc64_of(bytes(other)) != crc64_of(data)


@given(size=st.integers(0, 10**15), connections=st.integers(1, 64), probed=st.integers(0, 2**23))
def test_a_file_of_any_size_is_planned_in_no_time(size, connections, probed):
    """Of a petabyte, too, there are no more segments than a state can keep."""
    length = max(64 * 2**20, size // 10_000)
    segments = plan_segments(size, segment_size=length, connections=connections, probed=probed)
    assert len(segments) <= 10_002
    assert sum(one.length for one in segments) == size
