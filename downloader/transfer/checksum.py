"""CRC-64/XZ, the store's `x-oss-hash-crc64ecma`: running, and of pieces joined in order.

Pieces are joined by arithmetic over GF(2): appending n bytes multiplies the earlier checksum by
x^(8n) modulo the polynomial (Mark Adler's method for zlib's `crc32_combine`, here for 64 bits).
"""

from __future__ import annotations

from functools import lru_cache

from fastcrc import crc64

__all__ = ["EMPTY_CRC64", "combine_crc64", "crc64_of"]

EMPTY_CRC64 = 0
_POLYNOMIAL = 0xC96C5795D7870F42  # ECMA-182, bit-reversed as CRC-64/XZ uses it
_ONE = 1 << 63  # the polynomial 1, bit-reversed


def crc64_of(data: bytes | bytearray | memoryview, previous: int = EMPTY_CRC64) -> int:
    """Return the CRC-64 of `data` appended to what `previous` is the CRC-64 of."""
    return crc64.xz(data, previous)


def combine_crc64(first: int, second: int, second_length: int) -> int:
    """Return the CRC-64 of two neighbouring pieces from theirs and the second's length in bytes."""
    if not first:  # as of nothing: whatever zero is multiplied by, it stays zero
        return second
    return _multiply(_power_of_x(8 * second_length), first) ^ second


def _multiply(left: int, right: int) -> int:
    product = 0
    while left:
        if left & _ONE:
            product ^= right
        left = (left << 1) & (2 * _ONE - 1)
        right = (right >> 1) ^ (_POLYNOMIAL if right & 1 else 0)
    return product


@lru_cache(maxsize=64)
def _square_power(exponent: int) -> int:
    """Return x^(2^exponent) modulo the polynomial."""
    if exponent == 0:
        return _ONE >> 1
    half = _square_power(exponent - 1)
    return _multiply(half, half)


def _power_of_x(exponent: int) -> int:
    power, bit = _ONE, 0
    while exponent >> bit:
        if (exponent >> bit) & 1:
            power = _multiply(_square_power(bit), power)
        bit += 1
    return power
