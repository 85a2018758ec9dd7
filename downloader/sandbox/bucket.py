"""The objects of one bucket, by key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from downloader.sandbox.objects import StoredObject, describe

__all__ = ["Bucket", "utc_now"]


def utc_now() -> datetime:
    """Return the time that it really is."""
    return datetime.now(UTC)


class Bucket:
    """Holds objects; what it says of one is always true of the bytes that it holds."""

    def __init__(self, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._objects: dict[str, StoredObject] = {}

    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        etag: str | None = None,
        crc: bool = True,
        content_type: str = "application/octet-stream",
        content_encoding: str | None = None,
    ) -> StoredObject:
        """Store an object, or a new version of it; a `Path` is served from where it lies.

        `etag` is as it travels, quotes included; without one it is the MD5, as the store makes
        it. Without `crc` the object is one of the old ones that have no checksum.
        """
        stored = describe(key, data, now=self._clock())
        self._objects[key] = stored = replace(
            stored,
            etag=etag or stored.etag,
            crc64=stored.crc64 if crc else None,
            content_type=content_type,
            content_encoding=content_encoding,
        )
        return stored

    def replace(self, key: str, data: bytes | Path) -> StoredObject:
        """Store a new version of an object that is there; whoever is reading keeps the old one."""
        if key not in self._objects:
            raise KeyError(key)
        return self.put(key, data)

    def delete(self, key: str) -> None:
        """Remove an object."""
        del self._objects[key]

    def archive(self, key: str) -> None:
        """Archive an object: it is there and cannot be read."""
        self._objects[key] = replace(self._objects[key], is_archived=True)

    def get(self, key: str) -> StoredObject | None:
        """Return an object's facts as they were when it was stored; None if it is not there."""
        return self._objects.get(key)

    def current(self, key: str) -> StoredObject | None:
        """Return an object's facts as they are now: a file may have been written to, or removed."""
        stored = self._objects.get(key)
        if stored is None or isinstance(stored.content, bytes):
            return stored
        try:
            if not stored.is_stale:
                return stored
            fresh = describe(key, stored.content, now=self._clock())
        except OSError:
            return None
        crc = fresh.crc64 if stored.crc64 is not None else None
        self._objects[key] = replace(
            stored,
            size=fresh.size,
            etag=fresh.etag,
            crc64=crc,
            modified_at=fresh.modified_at,
            stamp=fresh.stamp,
        )
        return self._objects[key]

    @property
    def keys(self) -> list[str]:
        """The keys of all objects."""
        return list(self._objects)
