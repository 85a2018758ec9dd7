"""The objects that are served: random bytes, made once a run, with their CRC-64."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastcrc import crc64

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
BLOCK_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True)
class Object:
    """One object of a set: its place below the served directory, its size and its checksum."""

    key: str
    size: int
    crc64: int

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class ObjectSet:
    """The objects of one task, all in one directory."""

    name: str
    sizes: tuple[int, ...]

    @property
    def task_id(self) -> str:
        return f"bench-{self.name}"

    @property
    def total(self) -> int:
        return sum(self.sizes)


class Objects:
    """Makes sets below `root`; one that is there already is not made again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[str, list[Object]] = {}

    def of(self, wanted: ObjectSet) -> list[Object]:
        if wanted.name not in self._made:
            (self.root / wanted.name).mkdir(parents=True)
            self._made[wanted.name] = [
                self._make(f"{wanted.name}/blob-{number:05}.bin", size)
                for number, size in enumerate(wanted.sizes, start=1)
            ]
        return self._made[wanted.name]

    def forget(self, wanted: ObjectSet) -> None:
        """Remove a set that no later case needs."""
        for one in self._made.pop(wanted.name, []):
            (self.root / one.key).unlink()
        (self.root / wanted.name).rmdir()

    def _make(self, key: str, size: int) -> Object:
        found = 0
        with (self.root / key).open("wb") as file:
            for piece in _random_pieces(size):
                file.write(piece)
                found = crc64.xz(piece, found)
        return Object(key, size, found)


def _random_pieces(size: int) -> Iterator[bytes]:
    for start in range(0, size, BLOCK_BYTES):
        yield os.urandom(min(BLOCK_BYTES, size - start))
