"""The stand-in's HTTP rules, against the RFC: ranges and preconditions."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.sandbox.preconditions import Verdict, evaluate, range_applies
from downloader.sandbox.ranges import (
    ByteRange,
    UnsatisfiableRangeError,
    content_range,
    resolve_range,
)

MODIFIED = datetime(2026, 11, 24, 8, 0, 0, tzinfo=UTC)
DATE = "Tue, 24 Nov 2026 08:00:00 GMT"
EARLIER = "Tue, 24 Nov 2026 07:59:59 GMT"
TAG = '"ABC"'


def selected(header, size):
    """Return the positions selected, or the status where there are none to select."""
    try:
        part = resolve_range(header, size)
    except UnsatisfiableRangeError:
        return 416
    return 200 if part is None else range(part.start, part.stop)


@given(
    first=st.integers(0, 60), last=st.one_of(st.none(), st.integers(0, 60)), size=st.integers(0, 50)
)
def test_an_int_range_selects_the_positions_between_its_ends(first, last, size):
    header = f"bytes={first}-{'' if last is None else last}"
    if last is not None and last < first:
        assert selected(header, size) == 200
        return
    positions = [at for at in range(size) if at >= first and (last is None or at <= last)]
    found = selected(header, size)
    assert (list(found) if isinstance(found, range) else found) == (positions or 416)


@given(length=st.integers(0, 60), size=st.integers(0, 50))
def test_a_suffix_range_selects_the_last_positions(length, size):
    positions = [at for at in range(size) if at >= size - length]
    found = selected(f"bytes=-{length}", size)
    empty = 416 if length == 0 else 200
    assert (list(found) if isinstance(found, range) else found) == (positions or empty)


@given(header=st.text(max_size=30), size=st.integers(0, 50))
def test_no_header_selects_bytes_outside_the_object(header, size):
    found = selected(f"bytes={header}", size)
    assert found in (200, 416) or (0 <= found.start < found.stop <= size)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, 200),
        ("", 200),
        ("bytes=0-0", range(1)),
        ("BYTES=0-0", range(1)),  # unit names are case-insensitive
        ("bytes=,0-3,", range(4)),  # empty list elements are ignored
        ("bytes= 0-3", range(4)),
        ("bytes=0-1,3-4", 200),  # several ranges: the whole, as OSS does
        ("bytes=99-,100-", 200),
        ("bytes =0-3", 200),
        ("items=0-3", 200),
        ("bytes=3-1", 200),
        ("bytes=-", 200),
        ("bytes=+1-2", 200),
        ("bytes=\uff11-2", 200),  # a digit, but not HTTP's
        ("bytes=0-1-2", 200),
        ("bytes=10-", 416),
        ("bytes=-0", 416),
        ("bytes=0-" + "9" * 5000, range(10)),
        ("bytes=" + "9" * 5000 + "-", 416),
    ],
)
def test_a_range_header_is_read_as_the_rfc_says(header, expected):
    assert selected(header, 10) == expected


def test_content_range_is_written_inclusively():
    assert content_range(ByteRange(5, 10), 100) == "bytes 5-9/100"


@pytest.mark.parametrize(
    ("headers", "etag", "verdict"),
    [
        ({}, TAG, Verdict.PROCEED),
        ({"If-Match": TAG}, TAG, Verdict.PROCEED),
        ({"If-Match": '"X", "ABC"'}, TAG, Verdict.PROCEED),
        ({"If-Match": "*"}, TAG, Verdict.PROCEED),
        ({"If-Match": '"X"'}, TAG, Verdict.FAILED),
        ({"If-Match": "ABC"}, TAG, Verdict.FAILED),  # unquoted is no entity tag
        ({"If-Match": 'W/"ABC"'}, TAG, Verdict.FAILED),  # weak never matches strongly
        ({"If-Match": 'W/"ABC"'}, 'W/"ABC"', Verdict.FAILED),
        ({"If-Match": TAG}, 'W/"ABC"', Verdict.FAILED),
        ({"If-Match": TAG, "If-Unmodified-Since": EARLIER}, TAG, Verdict.PROCEED),
        ({"If-Unmodified-Since": EARLIER}, TAG, Verdict.FAILED),
        ({"If-Unmodified-Since": DATE}, TAG, Verdict.PROCEED),
        ({"If-Unmodified-Since": "yesterday"}, TAG, Verdict.PROCEED),
        ({"If-None-Match": 'W/"ABC"'}, TAG, Verdict.NOT_MODIFIED),  # weak comparison
        ({"If-None-Match": '"X"', "If-Modified-Since": DATE}, TAG, Verdict.PROCEED),
        ({"If-Modified-Since": DATE}, TAG, Verdict.NOT_MODIFIED),
        ({"If-Modified-Since": EARLIER}, TAG, Verdict.PROCEED),
        ({"If-Match": "*"}, None, Verdict.FAILED),
    ],
)
def test_preconditions_are_evaluated_in_the_order_of_the_rfc(headers, etag, verdict):
    assert evaluate(headers, etag=etag, modified_at=MODIFIED) is verdict


@pytest.mark.parametrize(
    ("if_range", "applies"),
    [(None, True), (TAG, True), ('"X"', False), ('W/"ABC"', False), (DATE, True), (EARLIER, False)],
)
def test_a_range_counts_only_for_the_version_that_if_range_names(if_range, applies):
    assert range_applies(if_range, etag=TAG, modified_at=MODIFIED) is applies


def test_a_date_without_a_zone_is_universal_time():
    naive = MODIFIED.strftime("%a, %d %b %Y %H:%M:%S -0000")
    later = MODIFIED + timedelta(seconds=1)
    assert evaluate({"If-Unmodified-Since": naive}, etag=TAG, modified_at=later) is Verdict.FAILED
