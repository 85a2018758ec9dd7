"""The memory that bytes pass through on their way to the disk: lent, bounded, given back."""

from __future__ import annotations

import mmap
import threading

__all__ = ["DEFAULT_BYTES", "LARGE_BYTES", "SMALL_BYTES", "BufferPool"]

LARGE_BYTES = 1024 * 1024  # few system calls, and writes that the disk likes
SMALL_BYTES = 128 * 1024
DEFAULT_BYTES = 16 * 1024 * 1024


class BufferPool:
    """Page-aligned buffers. Any thread may ask.

    One half of the `total` bytes is lent in large buffers, to whoever comes first; the others get
    small ones, so that many connections, each of them slow, need no more memory than a few fast
    ones.
    """

    def __init__(self, total: int = DEFAULT_BYTES) -> None:
        self._most_large = max(1, total // 2 // LARGE_BYTES)
        self._most = self._most_large + max(1, total // 2 // SMALL_BYTES)
        self._large: list[mmap.mmap] = []
        self._small: list[mmap.mmap] = []
        self._large_lent = 0
        self._lock = threading.Lock()

    @property
    def most(self) -> int:
        """How many may be lent at once; that more are not asked for is up to the callers."""
        return self._most

    def lend(self) -> mmap.mmap:
        """Give a buffer that is nobody else's until it is given back."""
        with self._lock:
            if self._large_lent < self._most_large:
                self._large_lent += 1
                return self._large.pop() if self._large else mmap.mmap(-1, LARGE_BYTES)
            return self._small.pop() if self._small else mmap.mmap(-1, SMALL_BYTES)

    def give_back(self, buffer: mmap.mmap) -> None:
        """Take a buffer back."""
        with self._lock:
            if len(buffer) == LARGE_BYTES:
                self._large_lent -= 1
                self._large.append(buffer)
            else:
                self._small.append(buffer)

    def clear(self) -> None:
        """Free what is not lent."""
        with self._lock:
            self._large.clear()
            self._small.clear()
