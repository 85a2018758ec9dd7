"""A disk that really is full, read-only or forbidden; see `faulty` for what fails at a call."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from downloader.transfer import part_file
from matrix.causes import patched

__all__ = [
    "WITHOUT_RESERVATION",
    "immutable",
    "mounted",
    "remounted",
]

# As on disks that reserve no blocks and do not tell their room, where a write finds out.
WITHOUT_RESERVATION = (
    patched(part_file, "_reserve_blocks", lambda *_: False),
    patched(part_file.PartFile, "_check_space", lambda *_: None),
)


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"this machine cannot do that: {done.stderr.strip()}")


def _insist_on_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may do that")


@contextlib.contextmanager
def mounted(place: Path, *, size: int) -> Iterator[None]:
    """Mount a small disk there, which really is full when it is full."""
    _insist_on_root()
    place.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@contextlib.contextmanager
def remounted(place: Path) -> Iterator[None]:
    """Let a mounted disk be read-only."""
    _run("mount", "-o", "remount,ro", place)
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", place)


@contextlib.contextmanager
def immutable(place: Path) -> Iterator[None]:
    """Let nobody, not even root, change a file or what is in a directory."""
    _insist_on_root()
    if shutil.which("chattr") is None:
        pytest.skip("there is no chattr")
    _run("chattr", "+i", place)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(place)], check=True)
