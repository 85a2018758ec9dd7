"""The line of one bar, drawn by tqdm: label, percentage, bar, bytes, rate, time left."""

from __future__ import annotations

from tqdm import tqdm

from downloader.screens.tally import Progress
from downloader.screens.text import fitted, time_left
from downloader.units import format_bytes, format_rate

__all__ = ["meter_line"]

WIDE, MEDIUM, NARROW = 88, 58, 36  # columns, from which on more is told
MIN_LABEL, MAX_LABEL = 14, 40
BYTES_CELLS, RATE_CELLS, TIME_CELLS = 10, 12, 10  # `1023.9 MiB`, `1023.9 MiB/s`, `9 min 59 s`


def meter_line(label: str, progress: Progress, width: int, *, ascii_only: bool) -> str:
    """Return the line in at most `width` cells; its columns depend on nothing but `width`."""
    percent = f"{int(progress.fraction * 100):3d}%"  # rounded down: 100% is all of it
    return tqdm.format_meter(
        progress.fraction,
        1,
        0,
        ncols=max(1, width),
        prefix=f"{fitted(label, _label_cells(width))} {percent}",
        bar_format="{desc} |{bar}|" + _stats(progress, width) if width >= NARROW else "{desc}",
        ascii=ascii_only,
    )


def _label_cells(width: int) -> int:
    if width < NARROW:
        return max(1, width - len(" 100%"))
    return min(MAX_LABEL, MIN_LABEL + (width - NARROW) // 6)


def _stats(progress: Progress, width: int) -> str:
    rate = left = ""
    if progress.rate is not None and progress.fraction < 1:
        rate = format_rate(progress.rate) if progress.rate >= 1 else "stalled"
    if progress.seconds_left is not None and progress.fraction < 1:
        left = time_left(progress.seconds_left)
    if width < MEDIUM:
        return f" {left:<{TIME_CELLS}}"
    if width < WIDE:
        return f" {rate:>{RATE_CELLS}}  {left:<{TIME_CELLS}}"
    done = format_bytes(progress.done)
    total = "" if progress.total is None else f" of {format_bytes(progress.total)}"
    left = f"{left} left" if left else ""
    return (
        f" {done:>{BYTES_CELLS}}{total:<{BYTES_CELLS + len(' of ')}}"
        f" {rate:>{RATE_CELLS}}  {left:<{TIME_CELLS + len(' left')}}"
    )
