"""`python -m torture.recorded DEED TASK_ID ROAD WITHOUT`: the program, with everything made small.

So a few hundred KiB come in several segments, with many checkpoints. The settings are those of the
environment, as for the program itself. What has been acknowledged is marked in the recording. DEED
is `fetch`, or `repair` of the published result; ROAD is `straight` or `plain`; WITHOUT is empty, or
names what it is to go without.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from downloader import app
from downloader.cli import verify_command
from downloader.config import load_settings
from downloader.progress import Reporter
from downloader.publish import ResultDirectory
from downloader.recheck import recheck
from downloader.repair_directory import Copy, RepairDirectory
from downloader.replacing import PublishedFile
from downloader.syncing import write_synced
from downloader.transfer import TransferOptions
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
    """Fetch one task, or repair its result."""
    for module, values in SMALL.items():
        for name, value in values.items():
            assert hasattr(import_module(module), name), f"{module} has no {name} any more"
            setattr(import_module(module), name, value)
    deed, task_id, road, without = sys.argv[1:]
    if without:
        {**SABOTAGE, **SABOTAGE_OF_REPAIRS}[without]()
    mark = _marker()
    _Promises(mark).watch()
    asyncio.run({"fetch": _fetch, "repair": _repair}[deed](task_id, road, mark))


async def _fetch(task_id: str, road: str, mark: Callable[[str], None]) -> None:
    async with app.open_app(load_settings({})) as opened:
        transfer = _made_small(opened.options.transfer, road)
        small = replace(opened, options=replace(opened.options, transfer=transfer))
        await small.fetch(task_id)
        mark("published")  # also if an earlier run has done so


async def _repair(task_id: str, road: str, mark: Callable[[str], None]) -> None:
    fetch_options = app.fetch_options

    def small_options(settings, **details):
        options = fetch_options(settings, **details)
        return replace(options, transfer=_made_small(options.transfer, road))

    app.fetch_options = small_options
    settings = load_settings({})
    found = await recheck(settings.dest / task_id, level="full")
    for one in await verify_command._repair(found, settings, Reporter()):
        if one.error is not None:
            raise one.error
        mark(f"whole {one.name}")


def _made_small(transfer: TransferOptions, road: str) -> TransferOptions:
    small = replace(transfer, **TRANSFER)
    return replace(small, straight_road=None) if road == "plain" else small


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


def _replace_by_unsynced() -> None:
    fsync, really_replace = os.fsync, PublishedFile.replace_by

    def fsync_of_directories(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fsync(descriptor)

    def replace_by(*arguments, **options):
        os.fsync = fsync_of_directories
        try:
            really_replace(*arguments, **options)
        finally:
            os.fsync = fsync

    PublishedFile.replace_by = replace_by


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
# And a repair.
SABOTAGE_OF_REPAIRS: dict[str, Callable[[], None]] = {
    "synced bytes of copies": SABOTAGE["synced bytes"],
    "synced notes": _replacing("downloader.repair_directory", "write_synced", _write_unsynced),
    "synced names of notes": _replacing("downloader.repair_directory", "sync_directory", _nothing),
    "a synced name of its directory": _replacing(
        "downloader.repair_directory", "sync_names", _nothing
    ),
    "a synced mode": _replace_by_unsynced,
    "synced names of files": _replacing("downloader.replacing", "sync_directory", _nothing),
    "synced names of folders": _replacing("downloader.replacing", "sync_names", _nothing),
}


def _marker() -> Callable[[str], None]:
    recorder_mark = ctypes.CDLL(None).recorder_mark
    return lambda text: recorder_mark(text.encode())


class _Promises:
    """What callers have been told is safe, and what is taken back, marked in the recording."""

    def __init__(self, mark: Callable[[str], None]) -> None:
        self._mark = mark
        self._safe: dict[int | str, int] = {}

    def watch(self) -> None:
        """Put this in front of everything that makes such a promise."""
        self._around_saves(StateStore.save_checkpoint, StateStore.save_checkpoints)
        self._around_clear(StateStore.clear_checkpoints)
        self._around_publish(ResultDirectory.publish)
        self._around_copies(RepairDirectory.copy_of, Copy.remember, Copy.forget)
        self._around_replacing(PublishedFile.replace_by)

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

    def _around_copies(self, really_copy_of, really_remember, really_forget) -> None:
        names: dict[Path, str] = {}

        def copy_of(place, file):
            copy = really_copy_of(place, file)
            names[copy.path] = file.name
            return copy

        def remember(copy, checkpoint):
            counts = {names[copy.path]: checkpoint.safe_bytes}
            self._take_back(counts)
            really_remember(copy, checkpoint)
            self._promise(counts)

        def forget(copy):
            self._promise({names[copy.path]: 0})
            really_forget(copy)

        RepairDirectory.copy_of = copy_of
        Copy.remember, Copy.forget = remember, forget

    def _around_replacing(self, really_replace) -> None:
        def replace_by(published, copy, **options):
            really_replace(published, copy, **options)
            self._mark(f"whole {published.name}")

        PublishedFile.replace_by = replace_by

    def _take_back(self, counts: Mapping[int | str, int]) -> None:
        """Promise less, where less is about to be saved: either may be found afterwards."""
        self._promise(
            {one: count for one, count in counts.items() if count < self._safe.get(one, 0)}
        )

    def _promise(self, counts: Mapping[int | str, int]) -> None:
        for file_id, count in counts.items():
            self._safe[file_id] = count
            self._mark(f"safe {file_id} {count}")


if __name__ == "__main__":
    main()
