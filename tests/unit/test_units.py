"""Sizes, rates and durations: what people write is what is meant, and what is shown is short."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.units import (
    MAX_BYTES,
    counted,
    format_bytes,
    format_rate,
    format_seconds,
    listed,
    parse_bytes,
    parse_rate,
    parse_seconds,
    plain_bytes,
    plain_seconds,
)

MIB = 1024**2
DAY = 86400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1048576", MIB),
        ("100B", 100),
        ("512k", 512 * 1024),
        ("64M", 64 * MIB),
        ("64MiB", 64 * MIB),
        (" 64 mib ", 64 * MIB),  # as `format_bytes` writes it, in any case
        ("1.5G", 1536 * MIB),
        ("0.3K", 307),  # rounded down to a whole byte
        ("2T", 2 * 1024**4),
        (str(MAX_BYTES), MAX_BYTES),
    ],
)
def test_a_size_is_what_its_1024_based_suffix_says(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "M",
        "-1",
        "1.5",  # half a byte
        "64MB",  # 1000² to some
        "64Mb",  # bits to others
        "1e6",
        "0x10",
        "1_000",
        "1,5M",
        "٤M",  # another script's digit
        "nan",
        "inf",
        "1G2M",
        str(MAX_BYTES + 1),
        "9" * 5000,
    ],
)
def test_what_is_no_size_is_refused(text):
    """An ambiguous size is as bad as a wrong one: it is asked again instead of guessed."""
    with pytest.raises(ValueError, match=r"size|whole|larger"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20M", 20 * MIB), ("20M/s", 20 * MIB), ("1.5K/S", 1536), ("1000", 1000), ("None", None)],
)
def test_a_rate_is_a_size_with_or_without_per_second(text, expected):
    assert parse_rate(text) == expected


@pytest.mark.parametrize("text", ["", "/s", "20Mbps", "20M/h", "-20M", "20M/s/s"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(ValueError, match="size"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16", 16),
        ("0.5", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("5min", 300),
        ("2H", 7200),
        ("1.5h", 5400),
        ("7d", 7 * DAY),
        ("1h30m", 5400),
        ("1d 2h 3m 4.5s", DAY + 7384.5),
        ("1 min 20 s", 80),  # as `format_seconds` writes it
    ],
)
def test_a_duration_is_the_sum_of_its_units(text, expected):
    assert parse_seconds(text) == expected


@pytest.mark.parametrize(
    "text", ["", "s", "h", "-5", "30m1h", "5m5m", "1w", "1e3", "nan", "inf", "∞", "٤s", "9" * 400]
)
def test_what_is_no_finite_duration_is_refused(text):
    with pytest.raises(ValueError, match="duration"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1023.7, "1.0 KiB"),  # a rate need not be whole
        (1024, "1.0 KiB"),
        (12.3 * MIB, "12.3 MiB"),
        (MIB - 1, "1.0 MiB"),  # never "1024.0 KiB"
        (-5 * MIB, "-5.0 MiB"),  # lost bytes are counted back
        (2**70, "1048576.0 PiB"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
    ],
)
def test_a_shown_size_has_one_decimal_place_and_the_unit_that_fits(count, expected):
    assert format_bytes(count) == expected
    assert format_rate(count) == f"{expected}/s"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (0.04, "0 s"),
        (0.44, "0.4 s"),
        (5, "5 s"),
        (9.96, "10 s"),
        (16.4, "16 s"),
        (59.6, "1 min"),  # never "60 s"
        (80, "1 min 20 s"),
        (3599.7, "1 h"),  # never "60 min"
        (7500, "2 h 5 min"),
        (DAY - 1, "1 d"),  # never "24 h"
        (7 * DAY, "7 d"),
        (-3, "0 s"),
        (math.inf, "unknown"),  # the time left of a transfer that stands still
        (math.nan, "unknown"),
    ],
)
def test_a_shown_duration_has_two_units_at_the_most(seconds, expected):
    assert format_seconds(seconds) == expected


@given(st.integers(0, MAX_BYTES))
def test_a_size_as_in_a_setting_is_read_back_exactly(count):
    assert parse_bytes(plain_bytes(count)) == count


@given(st.floats(0, 1e12))
def test_a_duration_as_in_a_setting_is_read_back_exactly(seconds):
    assert parse_seconds(plain_seconds(seconds)) == seconds


@given(st.integers(0, 2**60))
def test_a_shown_size_can_be_pasted_into_a_setting(count):
    """Half of the last digit shown is all that is lost, and a byte for being rounded down."""
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.051, abs=1)


@given(st.floats(0, 1e9))
def test_a_shown_duration_can_be_pasted_into_a_setting(seconds):
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=0.05, abs=0.051)


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_with_a_value_error(text):
    for parse in (parse_bytes, parse_rate, parse_seconds):
        try:
            parsed = parse(text)
        except ValueError:
            continue
        assert parsed is None or parsed >= 0


@pytest.mark.parametrize(
    ("count", "expected"), [(0, "0"), (64 * MIB, "64M"), (1536, "1536"), (1536 * MIB, "1536M")]
)
def test_a_size_as_in_a_setting_is_short_and_exact(count, expected):
    assert plain_bytes(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(16, "16s"), (5400, "1h30m"), (7 * DAY, "7d"), (0.5, "0.5s")]
)
def test_a_duration_as_in_a_setting_is_short_and_exact(seconds, expected):
    assert plain_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (20_000, "20,000 files")]
)
def test_numbers_go_with_their_nouns(number, text):
    assert counted(number, "file") == text


def test_many_names_are_counted():
    assert listed({"c", "a", "b"}) == "a, b, c"
    assert listed(["d", "c", "a", "b"]) == "a, b, c and 1 more"
