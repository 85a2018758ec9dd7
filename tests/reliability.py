"""Writes the table of docs/reliability.md from the rows that the tests make happen.

`python tests/reliability.py --write` writes it, and a test compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from matrix.row import Row
from matrix.table import PARTS

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
HEAD = ("fault", "what happens", "exit code", "fetched again at most")
GENERATED = re.compile(r"(<!-- matrix: generated[^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)


def table(rows: Sequence[Row]) -> Iterator[str]:
    yield _line(HEAD)
    yield _line(["---"] * len(HEAD))
    for row in rows:
        yield _line([row.fault, row.happens, _exit_code(row), row.again.words])


def _exit_code(row: Row) -> str:
    codes = str(row.ends) if row.or_ends is None else f"{row.ends} or {row.or_ends}"
    return f"{codes}, or 0 {row.may_go_on}" if row.may_go_on else codes


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def matrix() -> str:
    parts = (["", f"### {part}", "", *table(rows)] for part, rows in PARTS.items())
    return "\n".join(line for part in parts for line in part)


def filled(text: str) -> str:
    """Return the document with the table as it must be."""
    text, count = GENERATED.subn(lambda match: f"{match[1]}{matrix()}\n\n{match[2]}", text)
    if count != 1:
        sys.exit(f"{DOCUMENT.name} has no place for the matrix")
    return text


if __name__ == "__main__":
    text = filled(DOCUMENT.read_text(encoding="utf-8"))
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(text, encoding="utf-8")
    else:
        print(text)  # noqa: T201 - that is what it is for
