"""The whole matrix, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matrix import disk_rows, platform_rows, process_rows, state_disk_rows, state_rows, store_rows
from matrix.row import Row

__all__ = ["PARTS"]

PARTS: Mapping[str, Sequence[Row]] = {
    "The platform": platform_rows.ROWS,
    "The store": store_rows.ROWS,
    "The disk": disk_rows.ROWS,
    "The process": process_rows.ROWS,
    "The state": [*state_rows.ROWS, *state_disk_rows.ROWS],
}
