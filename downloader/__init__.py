"""Brings BGE private-platform task results home: whole or absent, proved on disk.

The public names are loaded when they are first used, so that importing the package, and with it
every command's `--help`, stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from downloader._version import __version__
from downloader.errors import DownloaderError

if TYPE_CHECKING:
    from downloader.api import AsyncPrivateAPI, Model, PrivateAPI
    from downloader.fetch import fetch_task

__all__ = [
    "AsyncPrivateAPI",
    "DownloaderError",
    "Model",
    "PrivateAPI",
    "__version__",
    "fetch_task",
]

_HOMES = {
    "AsyncPrivateAPI": "downloader.api",
    "Model": "downloader.api",
    "PrivateAPI": "downloader.api",
    "fetch_task": "downloader.fetch",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
