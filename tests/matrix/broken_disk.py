"""A disk that refuses: by real means where there are any, else at the lowest call of Python's."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from downloader.transfer import part_file
from matrix.causes import patched
from matrix.row import Cause
from matrix.story import Story

__all__ = [
    "WITHOUT_RESERVATION",
    "immutable",
    "mounted",
    "no_reservation",
    "refusing",
    "remounted",
]

KIB = 1024


class Refusing:
    """Lets calls below a directory fail with an error: one of them, the `chance`th, or all."""

    def __init__(self, below: Path, code: int, *, chance: int | None) -> None:
        self.happened = False
        self._below = f"{below}/"
        self._code = code
        self._chance = chance
        self._count = 0

    def instead_of(self, call: Callable[..., object]) -> Callable[..., object]:
        def refused(*args: object, **kwargs: object) -> object:
            folder = kwargs.get("dir_fd", kwargs.get("src_dir_fd"))
            if self._concerns(args[0] if folder is None else folder):
                self._count += 1
                if self._chance in (None, self._count):
                    self.happened = True
                    raise OSError(self._code, os.strerror(self._code))
            return call(*args, **kwargs)

        return refused

    def _concerns(self, place: object) -> bool:
        if isinstance(place, int):
            try:
                place = os.readlink(f"/proc/self/fd/{place}")  # noqa: PTH115 - `os` is what is replaced
            except OSError:
                return False
        return f"{os.fsdecode(os.fspath(place))}/".startswith(self._below)


def refusing(*calls: str, code: int, at_each: bool = False) -> Cause:
    """Let these functions of `os` fail below the destination: always, or at the story's chance."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[Refusing]:
        refusal = Refusing(story.dest, code, chance=story.chance if at_each else None)
        with contextlib.ExitStack() as stack:
            for name in calls:
                usual = getattr(os, name)
                stack.callback(setattr, os, name, usual)
                setattr(os, name, refusal.instead_of(usual))
            yield refusal

    return cause


# As on disks that reserve no blocks and do not tell their room, where a write finds out.
WITHOUT_RESERVATION = (
    patched(part_file, "_reserve_blocks", lambda *_: False),
    patched(part_file.PartFile, "_check_space", lambda *_: None),
)


def no_reservation(*, code: int) -> Cause:
    """Let the reservation of blocks fail."""

    def refuse(*_: object) -> bool:
        raise OSError(code, os.strerror(code))

    return patched(part_file, "_reserve_blocks", refuse)


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
