"""Mends published files: what is damaged is fetched again, into a copy that takes the file's place.

What takes its place has been proved whole before: by the checksum that the manifest tells. What has
come when a repair is interrupted is kept, and the next one goes on with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from downloader.concurrency import in_stoppable_thread, in_thread
from downloader.errors import (
    DiskError,
    DiskFull,
    DownloaderError,
    InvalidArgument,
    ObjectChanged,
    ObjectMissing,
    VerificationFailed,
)
from downloader.progress import PlannedFile, Reporter
from downloader.publish import Manifest, ManifestFile
from downloader.recheck import Recheck
from downloader.renewal import LinkRenewal, LinkSource
from downloader.repair_directory import Copy, RepairDirectory, held_for_repair
from downloader.replacing import PublishedFile
from downloader.task_result import MANIFEST_NAME, PlannedObject, plan_objects
from downloader.transfer import Link, TransferOptions, Transferred, transfer_file
from downloader.transfer.checkpointing import checkpoint_with, crc64_in
from downloader.transfer.part_file import PartFile
from downloader.transfer.plan import segments_without
from downloader.transfer.ranged_get import Version
from downloader.verify import bgzf
from state import Checkpoint

__all__ = ["Repair", "clear_leftovers", "repair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What came of mending one file; without an `error` it is whole again, and proved."""

    name: str
    received_bytes: int = 0
    error: DownloaderError | None = None


async def repair(
    found: Recheck,
    *,
    api: LinkSource,
    session: aiohttp.ClientSession,
    options: TransferOptions,
    reporter: Reporter | None = None,
) -> list[Repair]:
    """Mend every file that is not what the manifest says, each from the version that it names.

    All of them are tried. A file that cannot be mended is left as it is, and so is one whose bytes
    are those of the manifest, whatever else is wrong with it. What has come of a file when a repair
    of it ends early is kept in the result's directory, and the next one goes on from there.

    Raises:
        InvalidArgument: there is no manifest to mend by.
        VerificationFailed: the platform has no links for the task any more.
        DestinationTaken: another process mends the same result.
        PlatformError: the platform could not be asked.
    """
    if found.manifest is None:
        raise InvalidArgument(
            f"{found.path} has no {MANIFEST_NAME}, so nothing tells what to repair it by; "
            "fetch the task again"
        )
    damaged = _damaged(found, found.manifest)
    if not damaged:
        await in_thread(clear_leftovers, found)
        return []
    reporter = reporter or Reporter()
    reporter.planned([PlannedFile(file.name, file.size) for file in damaged])
    try:
        async with _repair_directory(found, found.manifest) as place:
            mend = _Mend(
                place,
                await _objects(found.manifest.task_id, api, options),
                renewal=LinkRenewal(
                    found.manifest.task_id, api=api, rules=options.rules, reporter=reporter
                ),
                session=session,
                options=options,
                reporter=reporter,
            )
            return [await mend.one(file) for file in damaged]
    finally:
        reporter.finished()


@contextlib.asynccontextmanager
async def _repair_directory(found: Recheck, manifest: Manifest) -> AsyncIterator[RepairDirectory]:
    result = _real(found.directory)
    with held_for_repair(result) as root:
        place = RepairDirectory(root, result, manifest)
        try:
            await in_thread(place.open, whole=_whole(found))
            yield place
        finally:
            await in_thread(place.close)


def clear_leftovers(found: Recheck) -> None:
    """Remove what interrupted repairs have left of files that are whole by now; blocks.

    Where somebody is at work, or the disk refuses, it stays: it is in nobody's way.
    """
    if found.manifest is None:
        return
    result = _real(found.directory)
    with contextlib.suppress(DownloaderError, OSError), held_for_repair(result) as root:
        place = RepairDirectory(root, result, found.manifest)
        try:
            place.take_over(whole=_whole(found))
        finally:
            place.close()


def _real(directory: Path) -> Path:
    """Return the path without links: one that comes into it later is an intruder's."""
    return Path(os.path.realpath(directory))


def _whole(found: Recheck) -> Set[str]:
    return {one.name for one in found.findings if one.crc64ecma is not None}


def _damaged(found: Recheck, manifest: Manifest) -> list[ManifestFile]:
    """Return the files whose bytes are not those of the manifest."""
    names = {one.name for one in found.findings if one.problem} - _whole(found)
    return [file for file in manifest.files if file.name in names]


async def _objects(
    task_id: str, api: LinkSource, options: TransferOptions
) -> Mapping[tuple[str, str], PlannedObject]:
    """Ask the platform for the task's links, by bucket and key."""
    answer = await api.task_result(task_id)
    status = str(answer.get("status")).upper()
    if status != "SUCCESS":
        raise VerificationFailed(
            f"Nothing can be repaired: the platform says that task {task_id} is {status[:40]} by "
            "now, and gives no links; everything was left as it is"
        )
    objects = plan_objects(answer.get("result"), rules=options.rules)
    return {(one.bucket, one.key): one for one in objects}


class _Mend:
    """Mends the files of one published result, one after the other."""

    def __init__(
        self,
        place: RepairDirectory,
        objects: Mapping[tuple[str, str], PlannedObject],
        *,
        renewal: LinkRenewal,
        session: aiohttp.ClientSession,
        options: TransferOptions,
        reporter: Reporter,
    ) -> None:
        self._place = place
        self._objects = objects
        self._renewal = renewal
        self._session = session
        self._options = options
        self._reporter = reporter

    async def one(self, file: ManifestFile) -> Repair:
        """Mend one file, or tell why it is left as it is."""
        try:
            done = await self._mended(file)
        except (ObjectChanged, ObjectMissing) as error:
            return Repair(name=file.name, error=_not_to_be_had(file, str(error)))
        except DownloaderError as error:
            return Repair(name=file.name, error=error)
        self._reporter.file_done(file.name)
        return Repair(name=file.name, received_bytes=done.received_bytes)

    async def _mended(self, file: ManifestFile) -> Transferred:
        wanted = self._objects.get((file.bucket, file.key))
        if wanted is None:
            raise _not_to_be_had(file, "the task's result does not list it any more")
        copy = self._place.copy_of(file)
        kept = await self._kept(file, copy)
        try:
            checkpoint = kept or await self._begun(file, copy)
            done = await self._transferred(file, wanted, copy, checkpoint)
            _insist_on(file, done)
            await in_thread(
                self._published(file.name).replace_by,
                copy.name,
                within=copy.folder,
                identity=done.identity,
                size=done.size,
            )
        except DownloaderError as error:
            if _is_in_vain(error, is_resumed=kept is not None):
                await in_thread(copy.remove)
            raise
        await in_thread(copy.remove)
        return done

    async def _kept(self, file: ManifestFile, copy: Copy) -> Checkpoint | None:
        """Return what an interrupted repair has noted down of the copy, if it has."""
        kept = await in_thread(copy.remembered)
        if kept is None or (kept.etag, kept.size) != (file.etag, file.size):
            return None
        return replace(kept, crc64=file.crc64ecma)

    async def _begun(self, file: ManifestFile, copy: Copy) -> Checkpoint:
        """Copy the file, and return a checkpoint that lacks what could not be read."""
        lost = await in_stoppable_thread(
            lambda stopped: self._copied(file, copy, self._reporter.asked(stopped))
        )
        version = Version(etag=file.etag, size=file.size, crc64=crc64_in(file.crc64ecma))
        length = self._options.segment_size
        segments = segments_without(lost, size=file.size, segment_size=length)
        return checkpoint_with(version, segments, part_id=None)  # the manifest tells the checksum

    def _copied(
        self, file: ManifestFile, copy: Copy, stopped: Callable[[], bool]
    ) -> Sequence[tuple[int, int]]:
        """Copy the file; return the ranges that could not be read."""
        target = copy.make()
        try:
            return self._published(file.name).copy_readable(target, stopped)
        finally:
            os.close(target)

    def _published(self, name: str) -> PublishedFile:
        return PublishedFile(self._place.root, self._place.result, name)

    async def _transferred(
        self, file: ManifestFile, wanted: PlannedObject, copy: Copy, checkpoint: Checkpoint
    ) -> Transferred:
        return await transfer_file(
            file.name,
            part_path=copy.path,
            link=Link(wanted.url, lambda refused: self._renewal.renew(wanted, refused)),
            session=self._session,
            checkpoints=_Kept(copy, checkpoint),
            reporter=self._reporter,
            options=self._options,
            find_damage=bgzf.find_damage,
            same_version=True,
        )


class _Kept:
    """The checkpoint of a copy, noted down beside it; what it begins with is not."""

    def __init__(self, copy: Copy, checkpoint: Checkpoint | None) -> None:
        self._copy = copy
        self._checkpoint = checkpoint

    async def load(self) -> Checkpoint | None:
        return self._checkpoint

    async def save(self, checkpoint: Checkpoint, *, previous: Checkpoint | None = None) -> None:
        await in_thread(self._copy.remember, checkpoint)
        self._checkpoint = checkpoint

    async def finish(self, part: PartFile, checkpoint: Checkpoint) -> None:
        await in_thread(part.sync)
        await self.save(checkpoint)

    async def clear(self) -> None:
        self._checkpoint = None
        await in_thread(self._copy.forget)


def _is_in_vain(error: DownloaderError, *, is_resumed: bool) -> bool:
    """Tell whether going on with the copy would end in the same way.

    What the disk refuses may pass; but a copy that it has refused before is not kept for ever.
    """
    if isinstance(error, DiskError):
        return is_resumed and not isinstance(error, DiskFull)
    return isinstance(error, VerificationFailed | ObjectChanged | ObjectMissing)


def _insist_on(file: ManifestFile, done: Transferred) -> None:
    """Raise VerificationFailed unless what came is what was published."""
    if (done.size, str(done.crc64)) == (file.size, file.crc64ecma):
        return
    is_same_version = file.etag is not None and done.etag == file.etag
    if is_same_version and done.crc64_confirmed:
        raise VerificationFailed(
            f"{file.name} cannot be repaired by its manifest, which is damaged itself: the store "
            f"has the version {file.etag} with the CRC-64 {done.crc64}, and the manifest says "
            f"{file.crc64ecma}; the file was left as it is. Move the result away and fetch the "
            "task again",
            name=file.name,
        )
    raise _not_to_be_had(file, f"it has {done.size} bytes with the CRC-64 {done.crc64}")


def _not_to_be_had(file: ManifestFile, reason: str) -> VerificationFailed:
    return VerificationFailed(
        f"{file.name} cannot be repaired: the store does not have the version that was published "
        f"any more ({reason}); everything was left as it is. To have what is there now, move the "
        "result away and fetch the task again",
        name=file.name,
    )
