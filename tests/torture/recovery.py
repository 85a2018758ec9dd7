"""A fresh fetch from a disk as a crash has left it, and what must come of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from downloader.api import AsyncPrivateAPI
from downloader.fetch import FetchOptions, fetch_task
from downloader.hosts import HostRules
from downloader.retry import without_waiting
from downloader.sandbox import Sandbox
from downloader.transfer import Connections, StraightRoad, TransferOptions
from state import AsyncStore, Phase, StateStore
from torture.recording import Facts

__all__ = [
    "DEST",
    "STATE",
    "TASK",
    "Lost",
    "Recovery",
    "check_whole",
    "facts_below",
    "files_below",
    "insist",
    "recovering",
    "write_out",
]

TASK = "task"
DEST = "data/results"  # none of its directories is there at first
STATE = "home/state/state.db"
KIB = 1024
OTHERS = ("bge-manifest.json", "SHA256SUMS")


class Lost(AssertionError):
    """A crash had a consequence that it must not have."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a fetch after a crash needs, below `root`."""

    root: Path
    sandbox: Sandbox
    api: AsyncPrivateAPI
    session: aiohttp.ClientSession
    road: StraightRoad

    @property
    def dest(self) -> Path:
        return self.root / DEST

    @property
    def moved(self) -> int:
        """Bytes of objects that the store has sent; what it says in an error is no object's."""
        requests = self.sandbox.store.requests
        return sum(one.bytes_sent for one in requests if one.status in (200, 206))

    async def fetched_again(self, *, wanted: Mapping[str, bytes]) -> int:
        """Fetch, and once more; return how many bytes came."""
        self.sandbox.store.forget_requests()
        already = await self._fetch()
        again = self.moved
        insist(already is False or again == 0, f"{again} bytes were moved of a whole result")
        self._check_result(wanted)
        insist(await self._fetch(), "the second fetch did not find the result of the first")
        insist(self.moved == again, "the second fetch moved bytes")
        return again

    async def _fetch(self) -> bool:
        """Return whether it was published already."""
        async with await AsyncStore.open(self.root / STATE) as store:
            with without_waiting():
                report = await fetch_task(
                    TASK,
                    self.dest,
                    api=self.api,
                    store=store,
                    session=self.session,
                    options=FetchOptions(transfer=self.transfer, checksums=("sha256",)),
                )
            (task,) = await store.call(StateStore.find_tasks, TASK)
            insist(task.phase is Phase.PUBLISHED, f"the state calls the task {task.phase}")
            return report.already_published

    @property
    def transfer(self) -> TransferOptions:
        """What transfers are told: to be small."""
        return TransferOptions(
            segments=2,
            first_length=64 * KIB,
            segment_size=64 * KIB,
            rules=HostRules.of(["127.0.0.1"]),
            connections=Connections(most_files=4),
            straight_road=self.road,
        )

    def _check_result(self, wanted: Mapping[str, bytes]) -> None:
        beside = sorted(path.name for path in self.dest.iterdir())
        insist(TASK in beside, f"nothing was published: {beside}")
        insist(f"{TASK}.partial" not in beside, "the partial directory was left")
        check_whole(files_below(self.dest / TASK), wanted)


def files_below(directory: Path) -> dict[str, bytes | None]:
    """Return the files' bytes by their relative paths; None for a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def facts_below(directory: Path) -> dict[str, Facts]:
    """Return what else there is to know of files and directories, by their relative paths."""
    return {path.relative_to(directory).as_posix(): Facts.of(path) for path in directory.rglob("*")}


def check_whole(found: Mapping[str, bytes | None], wanted: Mapping[str, bytes]) -> None:
    """Raise Lost unless what was found is a whole result."""
    names = {name for name, data in found.items() if data is not None}
    insist(names == {*wanted, *OTHERS}, f"what is published has {sorted(names)}")
    wrong = [name for name in wanted if found[name] != wanted[name]]
    insist(not wrong, f"wrong bytes are published in {wrong}")
    manifest = json.loads(found["bge-manifest.json"] or b"")
    insist(len(manifest["files"]) == len(wanted), "the manifest names other files")


def _road() -> StraightRoad:
    return StraightRoad(
        context=ssl.create_default_context,
        connect_timeout=10,
        stall_timeout=10,
        user_agent="torture",
    )


def insist(holds: bool, sentence: str) -> None:
    """Raise Lost with that sentence unless it holds."""
    if not holds:
        raise Lost(sentence)


def write_out(
    root: Path, files: Mapping[str, bytes | None], facts: Mapping[str, Facts] | None = None
) -> None:
    """Make these the files below the directory, and no others; with their facts, where told."""
    for entry in root.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for path, content in files.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
    for path, known in (facts or {}).items():
        os.chown(root / path, known.uid, known.gid)
        (root / path).chmod(known.mode)
        if known.mtime is not None:
            os.utime(root / path, ns=(known.mtime, known.mtime))


@contextlib.asynccontextmanager
async def recovering(root: Path, sandbox: Sandbox) -> AsyncIterator[Recovery]:
    """Lend what all fetches after crashes can share."""
    async with contextlib.AsyncExitStack() as stack:
        api = AsyncPrivateAPI(sandbox.app_key, sandbox.app_secret, sandbox.endpoint)
        await stack.enter_async_context(api)
        session = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        road = stack.enter_context(contextlib.closing(_road()))
        yield Recovery(root, sandbox, api, session, road)
