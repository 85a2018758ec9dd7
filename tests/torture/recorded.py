"""`python -m torture.recorded TASK_ID ROAD WITHOUT`: a fetch, with everything in it made small.

So a few hundred KiB come in several segments, with many checkpoints. The settings are those of the
environment, as for the program itself. What has been acknowledged is marked in the recording.
ROAD is `straight` or `plain`; WITHOUT is empty, or names what the fetch is to go without.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module

from downloader.app import open_app
from downloader.config import load_settings
from downloader.publish import ResultDirectory
from downloader.syncing import write_synced
from downloader.transfer.part_file import PartFile
from state import StateStore, engine

KIB = 1024
SMALL = {
    "downloader.transfer.plan": {"ALIGNMENT": 16 * KIB, "MIN_SHARE": 64 * KIB},
    "downloader.transfer.segment_run": {"ALIGNMENT": 16 * KIB},
    "downloader.transfer.filling": {"ALIGNMENT": 16 * KIB, "BUFFER_SECONDS": 0.01},
    "downloader.transfer.straight_body": {"SMALL_BYTES": 8 * KIB, "FLUSH_SECONDS": 0.01},
    "downloader.transfer.first_step": {"MAX_SECONDS": 0.02},
    "downloader.transfer.checkpointing": {"MIN_SAVE_SECONDS": 0.01, "MAX_SAVE_SECONDS": 0.02},
}
TRANSFER = {"first_length": 64 * KIB, "segment_size": 64 * KIB, "segments": 3}


def main() -> None:
    """Fetch one task."""
    for module, values in SMALL.items():
        for name, value in values.items():
            assert hasattr(import_module(module), name), f"{module} has no {name} any more"
            setattr(import_module(module), name, value)
    task_id, road, without = sys.argv[1:]
    if without:
        SABOTAGE[without]()
    mark = _marker()
    _Promises(mark).watch()
    asyncio.run(_fetch(task_id, road, mark))


async def _fetch(task_id: str, road: str, mark: Callable[[str], None]) -> None:
    async with open_app(load_settings({})) as app:
        transfer = replace(app.options.transfer, **TRANSFER)
        if road == "plain":
            transfer = replace(transfer, straight_road=None)
        small = replace(app, options=replace(app.options, transfer=transfer))
        await small.fetch(task_id)
        mark("published")  # also if an earlier run has done so


def _replacing(module: str, name: str, by: Callable[..., object]) -> Callable[[], None]:
    return lambda: setattr(import_module(module), name, by)


def _nothing(*_: object, **__: object) -> None:
    pass


def _write_unsynced(*arguments, **options) -> None:
    fsync, os.fsync = os.fsync, _nothing
    try:
        write_synced(*arguments, **options)
    finally:
        os.fsync = fsync


def _nameless_part_files() -> None:
    for module in ("part_file", "sync_batch"):
        _replacing(f"downloader.transfer.{module}", "sync_names", _nothing)()


def _hasty_state() -> None:
    prepare = engine._prepare_connection

    def prepare_hastily(connection, entry):
        prepare(connection, entry)
        connection.execute("PRAGMA synchronous=NORMAL")

    engine._prepare_connection = prepare_hastily


# What a fetch cannot do without; a test of the tests.
SABOTAGE: dict[str, Callable[[], None]] = {
    "synced bytes": lambda: setattr(PartFile, "sync", _nothing),
    "a synced manifest": _replacing("downloader.publish", "write_synced", _write_unsynced),
    "synced directories": _replacing("downloader.publish", "sync_directory", _nothing),
    "synced names of directories": _replacing("downloader.syncing", "sync_names", _nothing),
    "synced names of part files": _nameless_part_files,
    "a synced name of the state's directory": _replacing("state.engine", "_sync_names", _nothing),
    "a synced state": _hasty_state,
}


def _marker() -> Callable[[str], None]:
    recorder_mark = ctypes.CDLL(None).recorder_mark
    return lambda text: recorder_mark(text.encode())


class _Promises:
    """What callers have been told is safe, and what is taken back, marked in the recording."""

    def __init__(self, mark: Callable[[str], None]) -> None:
        self._mark = mark
        self._safe: dict[int, int] = {}

    def watch(self) -> None:
        """Put this in front of everything that makes such a promise."""
        self._around_saves(StateStore.save_checkpoint, StateStore.save_checkpoints)
        self._around_clear(StateStore.clear_checkpoints)
        self._around_publish(ResultDirectory.publish)

    def _around_saves(self, save_one, save_many) -> None:
        def save(store, file_id, checkpoint, **options):
            self._take_back({file_id: checkpoint.safe_bytes})
            save_one(store, file_id, checkpoint, **options)
            self._promise({file_id: checkpoint.safe_bytes})

        def save_all(store, saved):
            counts = {file_id: one.safe_bytes for file_id, one in saved.items()}
            self._take_back(counts)
            save_many(store, saved)
            self._promise(counts)

        StateStore.save_checkpoint, StateStore.save_checkpoints = save, save_all

    def _around_clear(self, clear_many) -> None:
        def clear(store, file_ids):
            file_ids = list(file_ids)
            self._promise(dict.fromkeys(file_ids, 0))
            clear_many(store, file_ids)

        StateStore.clear_checkpoints = clear

    def _around_publish(self, really_publish) -> None:
        def publish(*arguments, **options):
            really_publish(*arguments, **options)
            self._mark("published")

        ResultDirectory.publish = publish

    def _take_back(self, counts: Mapping[int, int]) -> None:
        """Promise less, where less is about to be saved: either may be found afterwards."""
        self._promise(
            {one: count for one, count in counts.items() if count < self._safe.get(one, 0)}
        )

    def _promise(self, counts: Mapping[int, int]) -> None:
        for file_id, count in counts.items():
            self._safe[file_id] = count
            self._mark(f"safe {file_id} {count}")


if __name__ == "__main__":
    main()
