"""Sizes, rates and durations as people write and read them. K, M, G, T and P are 1024-based."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from decimal import Decimal

__all__ = [
    "counted",
    "format_bytes",
    "format_rate",
    "format_seconds",
    "listed",
    "parse_bytes",
    "parse_rate",
    "parse_seconds",
    "plain_bytes",
    "plain_seconds",
]

MAX_BYTES = 2**63 - 1  # no file offset is larger
BINARY_PREFIXES = "KMGTP"
SECONDS_PER_UNIT = {"d": 86400, "h": 3600, "m": 60, "s": 1}

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"  # not \d, which is every script's digits
# "MB" is left out: to some it is 1000², and as "Mb" it is bits to others.
_SIZE = re.compile(rf"({_NUMBER})\s*(?:([KMGTP])(?:iB)?|B)?", re.IGNORECASE)
_DURATION = re.compile(
    rf"(?:({_NUMBER})\s*d)?\s*(?:({_NUMBER})\s*h)?\s*(?:({_NUMBER})\s*m(?:in)?)?\s*(?:({_NUMBER})\s*s)?",
    re.IGNORECASE,
)


def parse_bytes(text: str) -> int:
    """Return the bytes in `64M`, `1.5G`, `512k`, `64 MiB`, `100B` or `1048576`, rounded down.

    Raises:
        ValueError: it is no size, or larger than any file.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write 64M, 1.5G, 512k or a number of bytes")
    number, prefix = match.groups()
    if prefix is None and "." in number:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    power = BINARY_PREFIXES.index(prefix.upper()) + 1 if prefix else 0
    size = int(Decimal(number) * 1024**power)
    if size > MAX_BYTES:
        raise ValueError(f"{text!r} is larger than any file")
    return size


def parse_rate(text: str) -> int | None:
    """Return the bytes per second in `20M` or `20M/s`; None for `none`, which is no limit.

    Raises:
        ValueError: it is no rate.
    """
    plain = text.strip()
    if plain.lower() == "none":
        return None
    return parse_bytes(plain[:-2] if plain.lower().endswith("/s") else plain)


def parse_seconds(text: str) -> float:
    """Return the seconds in `5m`, `30s`, `2h`, `7d`, `1h30m`, `1 min 20 s`, `0.5` or `90`.

    Raises:
        ValueError: it is no duration, or not a finite one.
    """
    plain = text.strip()
    if re.fullmatch(_NUMBER, plain):
        seconds = float(plain)
    else:
        match = _DURATION.fullmatch(plain)
        if not plain or match is None:
            raise ValueError(f"{text!r} is not a duration; write 30s, 5m, 1h30m, 7d or seconds")
        counts = zip(match.groups(), SECONDS_PER_UNIT.values(), strict=True)
        seconds = float(sum(Decimal(count) * unit for count, unit in counts if count))
    if not math.isfinite(seconds):
        raise ValueError(f"{text!r} is not a finite duration")
    return seconds


def format_bytes(count: float) -> str:
    """Return `12.3 MiB`: one decimal place, the largest unit that leaves at least 1."""
    if not math.isfinite(count):
        return "unknown"
    # Compared as it will be shown, so that 1023.96 KiB is 1.0 MiB and never 1024.0 KiB.
    if abs(round(count)) < 1024:  # noqa: PLR2004
        return f"{count:.0f} B"
    for prefix in BINARY_PREFIXES:
        count /= 1024
        if abs(round(count, 1)) < 1024 or prefix == BINARY_PREFIXES[-1]:  # noqa: PLR2004
            break
    return f"{count:.1f} {prefix}iB"


def format_rate(bytes_per_second: float) -> str:
    """Return `12.3 MiB/s`."""
    return f"{format_bytes(bytes_per_second)}/s"


def format_seconds(seconds: float) -> str:
    """Return `0.4 s`, `16 s`, `1 min 20 s`, `2 h 5 min` or `7 d`: two units at the most."""
    if not math.isfinite(seconds):
        return "unknown"
    tenths = round(max(0.0, seconds), 1)
    if tenths < 10:  # noqa: PLR2004 - below ten seconds a tenth is worth showing
        return f"{tenths:.1f}".removesuffix(".0") + " s"
    # Rounded before the units are chosen, so that 59.7 minutes is 1 h and never 60 min.
    if (whole := round(tenths)) < SECONDS_PER_UNIT["h"]:
        larger, smaller = ("min", 60), ("s", 1)
    elif (whole := round(tenths / 60) * 60) < SECONDS_PER_UNIT["d"]:
        larger, smaller = ("h", 3600), ("min", 60)
    else:
        whole = round(tenths / 3600) * 3600
        larger, smaller = ("d", 86400), ("h", 3600)
    counts = [(whole // larger[1], larger[0]), (whole % larger[1] // smaller[1], smaller[0])]
    return " ".join(f"{count} {unit}" for count, unit in counts if count)


def plain_bytes(count: int) -> str:
    """Return the size as in a setting, `64M`; `parse_bytes` returns the same."""
    power = 0
    while count and count % 1024 == 0 and power < len(BINARY_PREFIXES):
        count //= 1024
        power += 1
    return f"{count}{BINARY_PREFIXES[power - 1] if power else ''}"


def plain_seconds(seconds: float) -> str:
    """Return the duration as in a setting, `1h30m`; `parse_seconds` returns the same."""
    rest = int(seconds)
    if rest != seconds or rest == 0:
        return f"{Decimal(repr(float(seconds))):f}".removesuffix(".0") + "s"
    text = ""
    for unit, length in SECONDS_PER_UNIT.items():
        count, rest = divmod(rest, length)
        text += f"{count}{unit}" if count else ""
    return text


def counted(number: int, noun: str) -> str:
    """Return `1 file` or `2 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(names: Collection[str], *, shown: int = 3) -> str:
    """Name the first few in their order and count the others: there may be thousands."""
    others = len(names) - shown
    return ", ".join(sorted(names)[:shown]) + (f" and {others} more" if others > 0 else "")
