"""CRC-64/XZ as the store computes it, of wholes and of pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.transfer.checksum import EMPTY_CRC64, combine_crc64, crc64_of


def test_the_check_value_is_the_stores():
    """Given with every description of CRC-64/XZ, and in the vendor's documentation."""
    assert crc64_of(b"123456789") == 0x995DC9BBDF1939FA


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken(kind):
    assert crc64_of(kind(b"123456789")) == 0x995DC9BBDF1939FA


def test_nothing_has_the_empty_checksum():
    assert crc64_of(b"") == EMPTY_CRC64 == 0


@given(st.binary(), st.binary())
def test_a_checksum_can_be_continued(first, second):
    assert crc64_of(second, crc64_of(first)) == crc64_of(first + second)


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_neighbours_combine_to_the_whole(first, second):
    combined = combine_crc64(crc64_of(first), crc64_of(second), len(second))
    assert combined == crc64_of(first + second)


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_any_cut_gives_the_same_checksum(pieces):
    """Segments end anywhere, are empty, are many."""
    crc64 = EMPTY_CRC64
    for piece in pieces:
        crc64 = combine_crc64(crc64, crc64_of(piece), len(piece))
    assert crc64 == crc64_of(b"".join(pieces))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**62), st.integers(0, 2**62))
def test_appending_twice_is_appending_once(crc64, first, second):
    """Lengths far beyond what can be computed byte by byte: an object of petabytes."""
    twice = combine_crc64(combine_crc64(crc64, 0, first), 0, second)
    assert twice == combine_crc64(crc64, 0, first + second)


def test_zeros_are_not_nothing():
    """A hole in the file, read as zeros, must change the checksum of what came before it."""
    head = crc64_of(b"BGZF")
    assert combine_crc64(head, crc64_of(bytes(5)), 5) == crc64_of(b"BGZF" + bytes(5)) != head
