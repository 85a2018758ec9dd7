"""What stands in a published result beside its files: each one's place, identity and checksum."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from downloader._version import __version__
from downloader.errors import DestinationTaken, VerificationFailed, disk_error
from downloader.ordinary import open_ordinary
from downloader.task_result import MANIFEST_NAME

__all__ = ["Manifest", "ManifestFile", "manifest_bytes", "read_manifest"]

FORMAT = 1  # of the manifest; a higher one is a newer program's
# The platform's replies end at 16 MiB, and the manifest of all that one can list is smaller than
# this. Of 60 MiB of `{},` Python makes 1.6 GiB: so what stands in it is counted first.
MAX_BYTES = 64 * 1024 * 1024
MAX_CONTAINERS = 500_000  # one for each file
MAX_VALUES = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    """One published file: its place, its identity in the store, and what was proved of it."""

    name: str
    size: int  # bytes
    crc64ecma: str  # decimal, as the store writes it
    crc64_confirmed: bool  # the store told the same; False if it told none
    etag: str | None
    bucket: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What stands in a result directory beside the files."""

    task_id: str
    published_at: str
    files: tuple[ManifestFile, ...]
    warnings: tuple[str, ...] = ()
    verified: str = "full"  # how far the VCF checks went
    program: str = field(default=f"bge-downloader {__version__}")
    format: int = FORMAT

    def dumps(self) -> str:
        """Return the manifest as JSON text."""
        return "".join(self.pieces())

    def pieces(self) -> Iterator[str]:
        """Yield the JSON text in pieces: that of many files is never in memory as a whole."""
        encoder = json.JSONEncoder(
            ensure_ascii=False, indent=2, check_circular=False, default=_facts
        )
        yield from encoder.iterencode(_facts(self))
        yield "\n"


def _facts(record: Manifest | ManifestFile) -> dict[str, object]:
    return {each.name: getattr(record, each.name) for each in fields(record)}


def read_manifest(directory: Path, *, folder: int | None = None) -> Manifest | None:
    """Return the manifest of a published result; None if there is none.

    `folder` is the directory itself, where it is open already.

    Raises:
        VerificationFailed: there is one, but it is damaged.
        DestinationTaken: a newer program wrote it, or it is larger than any of ours.
        DiskError: it cannot be read, or something else than a file is in its place.
    """
    path = directory / MANIFEST_NAME
    try:
        text = manifest_bytes(path, most=MAX_BYTES, folder=folder).decode()
        raw = json.loads(text, object_hook=_entry)
        if type(raw["format"]) is int and raw["format"] > FORMAT:
            raise DestinationTaken(
                f"{path} was written by a newer bge-downloader; use that one, or choose another "
                "--dest"
            )
        files = tuple(_checked(entry) for entry in raw.pop("files"))
        return Manifest(files=files, warnings=tuple(raw.pop("warnings", ())), **raw)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise disk_error(error, path, "read") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise VerificationFailed(f"{path} is damaged: it is no manifest of ours") from error


def manifest_bytes(path: Path, *, most: int, folder: int | None = None) -> bytes:
    """Return what is in a manifest, to be read as JSON without filling the memory.

    `folder` is its directory, where that is open already.

    Raises:
        DestinationTaken: it has more than `most` bytes, or more in it than any of ours.
        OSError: it cannot be read, or something else than a file is in its place.
    """
    descriptor = open_ordinary(path if folder is None else path.name, folder=folder)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        size = os.fstat(descriptor).st_size
        content = file.read(size + 1) if size <= most else b""
    containers = content.count(b"{") + content.count(b"[")
    is_within = containers <= MAX_CONTAINERS and content.count(b",") <= MAX_VALUES
    if size > most or len(content) > most or not is_within:
        raise DestinationTaken(
            f"{path} is larger than any manifest of ours; move it away or choose another --dest"
        )
    return content


def _entry(raw: dict[str, Any]) -> ManifestFile | dict[str, Any]:
    """Return a file's entry as the record while the text is read: 20,000 dictionaries are large."""
    if "crc64ecma" not in raw:
        return raw
    try:
        return ManifestFile(**raw | {"bucket": sys.intern(raw["bucket"])})
    except (TypeError, KeyError):
        return raw  # a newer program's, or damaged


def _checked(file: object) -> ManifestFile:
    """Return the file; ValueError if its place is not inside the directory, or its size no size."""
    if not isinstance(file, ManifestFile):
        raise TypeError("no entry of ours")
    if "\0" in file.name or {"", ".", ".."} & set(file.name.split("/")):
        raise ValueError("no place inside the directory")
    if type(file.size) is not int or file.size < 0:
        raise ValueError("no size")
    return file
