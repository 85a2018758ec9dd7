"""Writes the README's generated tables; `make readme` runs it, and a test compares."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from downloader import errors
from downloader.config import describe_settings

README = Path(__file__).parents[1] / "README.md"
EXIT_CODES = {
    0: "all done",
    1: "failed",
    2: "usage or settings: nothing was asked of anyone yet",
    3: "the platform says that the task failed",
    4: "not ready by the deadline",
    5: "verification failed: nothing was published",
    129: "the terminal was closed (SIGHUP)",
    130: "interrupted (Ctrl-C)",
    143: "terminated (SIGTERM)",
}


def settings_table():
    rows = ["| name | flag | variable | value | default | meaning |", "| " + "--- | " * 6]
    rows[1] = rows[1].strip()
    for doc in describe_settings():
        flag = f"`{doc.flag}`" if doc.flag else "-"
        cells = [f"`{doc.name}`", flag, f"`{doc.env}`", doc.type, f"`{doc.default}`", doc.meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def exit_codes_table():
    return "\n".join(
        ["| code | meaning |", "| --- | --- |"]
        + [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    )


def exit_codes_of_the_errors():
    """Return every code that an error of ours ends with; 129, 130 and 143 are those of signals."""
    kinds = [getattr(errors, name) for name in errors.__all__]
    return {kind.exit_code for kind in kinds if isinstance(kind, type)}


def filled(text):
    tables = {"exit codes": exit_codes_table(), "settings": settings_table()}
    for name, table in tables.items():
        pattern = rf"(<!-- {name}: generated[^\n]*-->\n).*?(<!-- end -->)"
        whole = re.compile(pattern, re.DOTALL)
        text, count = whole.subn(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
        if count != 1:
            sys.exit(f"{README.name} has no place for the table of {name}")
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
