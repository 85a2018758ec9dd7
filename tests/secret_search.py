"""Looks through what the tests have made for secrets: what was said, logged, kept and published."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from downloader.sandbox import Sandbox

__all__ = ["SECRETS", "leaks", "leaks_below", "leaks_in_sections"]

# What the sandbox's other side must not see again, and would not know by its form.
SECRETS = (Sandbox.app_secret, "sandbox-access-key-not-real")
# What makes a link valid is one, whatever its value is.
MARKS = ("signature", "security-token", "ossaccesskeyid")
SIGNED = re.compile(rf"(?i)(?:{'|'.join(MARKS)})(?:=|%3D)[\w%]+")
# What the program writes; whatever else is there, a test has written.
KEPT = re.compile(r"bge-.*\.(json|part)|(SHA256|MD5)SUMS|.*\.db(-wal|-shm|-journal)?")


def leaks(text: str, secrets: Iterable[str] = SECRETS) -> list[str]:
    """Return the secrets in the text."""
    folded = text.lower()  # to look for words in that is a hundred times quicker
    signed = SIGNED.findall(text) if any(mark in folded for mark in MARKS) else []
    return [*(secret for secret in secrets if secret in text), *signed]


def leaks_below(directory: Path) -> Iterator[str]:
    """Tell which of the files that the program keeps below a directory have secrets in them."""
    for place, _, names in os.walk(directory):
        for path in (Path(place, name) for name in names if KEPT.fullmatch(name)):
            if stat.S_ISREG(path.lstat().st_mode):  # a pipe would be waited for
                for secret in leaks(path.read_bytes().decode("latin-1")):
                    yield f"{secret} in {path.name}"


def leaks_in_sections(sections: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Tell what was printed or logged and has secrets in it; each has a title and a text."""
    for title, text in sections:
        for secret in leaks(text):
            yield f"{secret} in {title}"
