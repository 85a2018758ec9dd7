"""What thorough tests have counted: told at the end of a run, and written into a document.

A test calls `record_property("figures of PART", cells)`; `make torture` puts them all into
docs/reliability.md, if nothing failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["found_in", "told", "write"]

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
WRITTEN = re.compile(r"(<!-- figures: [^\n]*-->\n).*?(<!-- end of figures -->)", re.DOTALL)
PREFIX = "figures of "

Cell = int | str
Figures = Mapping[str, Sequence[Sequence[Cell]]]

# The heads of each part's table, in the order in which they are told. What can be summed is.
HEADS: Mapping[str, Sequence[str]] = {
    "crashes": (
        "crashes of",
        "operations",
        "crash points",
        "disks",
        "of them different",
        "bytes fetched again, median",
        "most",
        "of them safe, most",
    ),
    "faults": ("faults of", "cases", "faults that came", "bytes of all files", "fetched again"),
    "repairs": ("repair of", "bytes of the file", "fetched again"),
    "the soak": ("tasks", "time", "trouble", "bytes", "what the service holds"),
}
SUMMED = {"crashes": range(1, 5), "faults": range(1, 5)}


def found_in(reports: Iterable[object]) -> Figures:
    """Return the figures of a run by part, those of one name summed up."""
    found: dict[str, list[Sequence[Cell]]] = {}
    for report in reports:
        for name, cells in getattr(report, "user_properties", ()):
            if name.startswith(PREFIX):
                found.setdefault(name.removeprefix(PREFIX), []).append(cells)
    return {part: _sums_by_name(part, found[part]) for part in HEADS if part in found}


def _sums_by_name(part: str, rows: Sequence[Sequence[Cell]]) -> Sequence[Sequence[Cell]]:
    by_name: dict[Cell, list[Sequence[Cell]]] = {}
    for row in rows:
        by_name.setdefault(row[0], []).append(row)
    return [
        same[0] if len(same) == 1 else [name, *_sums(part, same)]
        for name, same in sorted(by_name.items(), key=lambda item: str(item[0]))
    ]


def _sums(part: str, rows: Sequence[Sequence[Cell]]) -> list[Cell]:
    return [
        sum(int(row[column]) for row in rows) if column in SUMMED.get(part, ()) else ""
        for column in range(1, len(HEADS[part]))
    ]


def told(figures: Figures) -> Iterator[str]:
    """Yield the lines of the tables."""
    for part, rows in figures.items():
        yield from ("", f"### {part[0].upper()}{part[1:]}", "")
        yield _line(HEADS[part])
        yield _line(["---"] * len(HEADS[part]))
        yield from map(_line, rows)
        if part in SUMMED:
            yield _line(["**all**", *_sums(part, rows)])


def _line(cells: Sequence[Cell]) -> str:
    return f"| {' | '.join(f'{one:,}' if isinstance(one, int) else one for one in cells)} |"


def write(figures: Figures) -> None:
    """Put the tables into the document; ValueError if a part is missing."""
    missing = [part for part in HEADS if part not in figures]
    if missing:
        raise ValueError(f"nothing was told of {', '.join(missing)}")
    text = DOCUMENT.read_text(encoding="utf-8")
    tables = "\n".join(told(figures))
    written, count = WRITTEN.subn(lambda match: f"{match[1]}{tables}\n\n{match[2]}", text)
    if count != 1:
        raise ValueError(f"{DOCUMENT.name} has no place for the figures")
    DOCUMENT.write_text(written, encoding="utf-8")
