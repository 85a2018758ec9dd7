"""Nothing is written, renamed or deleted outside of a task's directory, whatever is planted there.

Somebody else who may write to the destination plants a link, in turn between every two things that
a run asks of the disk.
"""

import asyncio
import contextlib
import os
import stat
import zlib
from pathlib import Path

import pytest
from fetch_helpers import NOTES

from downloader.errors import DestinationTaken, DiskError, DownloaderError
from downloader.publish import Manifest, ManifestFile, ResultDirectory
from downloader.sandbox import Fault
from downloader.task_result import PART_SUFFIX
from downloader.transfer.part_file import PartFile

pytest_plugins = ["fetch_helpers"]

CONTENT = {"a.vcf.gz": b"variants", "a.vcf.gz.tbi": b"index", "d/e/b.vcf.gz": b"more"}
STATE = "0123456789abcdef"
DEEDS = (
    *("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "fdatasync", "stat"),
    *("lstat", "scandir", "utime", "listdir", "ftruncate", "pwritev", "readlink"),
)


class Moments:
    """Counts what is asked of the disk by this thread, and lets something happen at one moment."""

    def __init__(self, monkeypatch):
        self.count = 0
        self._at, self._happen, self._is_busy = None, None, False
        for name in DEEDS:
            deed = _unsynced if name in ("fsync", "fdatasync") else getattr(os, name)
            monkeypatch.setattr(os, name, self._counted(deed))
        # What chooses its way by what the system can do must find it unchanged.
        for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            known.update(getattr(os, name) for name in DEEDS)

    def _counted(self, deed):
        def do(*arguments, **options):
            if not self._is_busy:
                if self.count == self._at:
                    self._is_busy = True
                    self._happen()
                    self._is_busy = False
                self.count += 1
            return deed(*arguments, **options)

        return do

    def begin(self, at=None, happen=None):
        self.count, self._at, self._happen = 0, at, happen


def _unsynced(descriptor):
    """Take no time: what a power loss would leave is not the question here."""


@pytest.fixture
def moments(monkeypatch):
    return Moments(monkeypatch)


def manifest_of(content, task_id="t-1"):
    return Manifest(
        task_id=task_id,
        published_at="2024-02-29T12:00:00+00:00",
        files=tuple(
            ManifestFile(
                name=name,
                size=len(data),
                crc64ecma=str(zlib.crc32(data)),  # any sum will do here
                crc64_confirmed=True,
                etag='"E"',
                bucket="results",
                key=f"r/{name}",
            )
            for name, data in content.items()
        ),
    )


def bring(place, content=CONTENT, identity=None):
    """Do to the disk all that a fetch does, in its order."""
    place.check_writable()
    with place.held(identity):
        if place.published() is not None:
            return
        paths = place.part_paths(content)
        identities = {}
        for name, data in content.items():
            with contextlib.closing(PartFile.open(paths[name], anew=True)) as part:
                part.reserve(len(data))
                part.write(0, [data])
                part.sync()
                identities[name] = part.confirm(len(data))
        place.part_paths(content)
        place.publish(
            manifest_of(content), checksums=["sha256"], identity_of=identities.__getitem__
        )


def look_around(directory):
    """Return everything about every file and folder: names, modes, times, bytes."""
    return {
        path.relative_to(directory).as_posix(): (
            facts.st_mode,
            facts.st_mtime_ns,
            path.read_bytes() if stat.S_ISREG(facts.st_mode) else None,
        )
        for path in [directory, *sorted(directory.rglob("*"))]
        for facts in [path.lstat()]
    }


@pytest.fixture
def outside(tmp_path):
    """Somebody else's folder, with all the names that a run looks for in its own."""
    victim = tmp_path / "outside"
    for name in [*CONTENT, *(f"{name}.part" for name in CONTENT), "d/old.part", "old.part"]:
        (victim / name).parent.mkdir(parents=True, exist_ok=True)
        (victim / name).write_text("precious")
    for name in ("bge-manifest.json", "SHA256SUMS", "bge-claim.part", "precious"):
        (victim / name).write_text("precious")
    return victim


PLACES = {
    "the partial directory": ("t-1.partial", ""),
    "a folder in it": ("t-1.partial/d", "d"),
    "a folder in a folder": ("t-1.partial/d/e", "d/e"),
    "a part file": ("t-1.partial/a.vcf.gz.part", "precious"),
    "a part file in a folder": ("t-1.partial/d/e/b.vcf.gz.part", "precious"),
    "a file": ("t-1.partial/a.vcf.gz", "precious"),
    "an index": ("t-1.partial/a.vcf.gz.tbi", "precious"),
    "the manifest": ("t-1.partial/bge-manifest.json", "precious"),
    "the sums": ("t-1.partial/SHA256SUMS", "new"),
    "the claim": ("t-1.partial/bge-claim.part", "new"),
    "the result": ("t-1", ""),
    "a leftover": ("t-1.partial/old.part", "precious"),
    "a leftover folder": ("t-1.partial/old", ""),
}


def planted(dest, stash, place, target):
    """Return what puts a link in the place, and what was there out of the way."""

    def plant():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (dest / place).rename(stash / "taken")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (dest / place).symlink_to(target)

    return plant


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.thorough
def test_a_link_that_is_planted_at_any_moment_leads_nobody_out(moments, outside, tmp_path, place):
    where, target = PLACES[place]
    before = look_around(outside)
    published = 0
    moments.begin()
    bring(ResultDirectory(tmp_path / "dry", "t-1"), identity=STATE)
    for moment in range(moments.count):
        dest, stash = tmp_path / f"results{moment}", tmp_path / f"stash{moment}"
        dest.mkdir()
        stash.mkdir()
        directory = ResultDirectory(dest, "t-1")
        moments.begin(moment, planted(dest, stash, where, outside / target))
        with contextlib.suppress(DownloaderError):
            bring(directory, identity=STATE)
            published += 1
        assert look_around(outside) == before, f"at moment {moment}"
    assert published  # some of them come too late


def test_such_an_error_is_one_sentence(moments, outside, tmp_path):
    where, target = PLACES["a folder in it"]
    dest = tmp_path / "results"
    (dest / "t-1.partial").mkdir(parents=True)
    (dest / where).symlink_to(outside / target)
    with pytest.raises(DiskError, match=r"d/e/b\.vcf\.gz cannot be made: something in its path"):
        bring(ResultDirectory(dest, "t-1"))


def test_links_above_the_destination_are_the_users_own(tmp_path):
    """A results folder is often a link to a larger disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "results").symlink_to("disk")
    place = ResultDirectory(tmp_path / "results", "t-1")
    bring(place)
    assert (tmp_path / "disk/t-1/a.vcf.gz").read_bytes() == b"variants"
    assert place.final == tmp_path / "results/t-1"


def test_what_was_received_is_deleted_and_nothing_behind_a_link(outside, tmp_path):
    place = ResultDirectory(tmp_path / "results", "t-1")
    (place.partial / "d").mkdir(parents=True)
    (place.partial / "d/link").symlink_to(outside)
    (place.partial / "file.part").symlink_to(outside / "precious")
    before = look_around(outside)
    place.remove_partial()
    assert not place.partial.exists()
    place.partial.symlink_to(outside)
    with pytest.raises(DiskError):
        place.remove_partial()
    assert look_around(outside) == before


def test_a_part_file_is_neither_made_nor_removed_behind_a_link(outside, tmp_path):
    (tmp_path / "d").symlink_to(outside)
    before = look_around(outside)
    for anew in (True, False):
        with pytest.raises(DiskError):
            PartFile.open(tmp_path / "d" / "a.vcf.gz.part", anew=anew)
    with pytest.raises(DiskError):
        PartFile.remove(tmp_path / "d" / "a.vcf.gz.part")
    with pytest.raises(DiskError):
        PartFile.remove(tmp_path / "d/d/e" / "b.vcf.gz.part")
    assert look_around(outside) == before


# Through a whole fetch


@pytest.mark.parametrize("place", ["a folder in it", "a part file in a folder", "the result"])
async def test_a_link_that_is_planted_during_a_fetch_leads_nobody_out(rig, outside, place):
    key = "run/d/e/b.vcf.gz"
    rig.dest.mkdir()
    task_id = rig.add({key: NOTES * 50, "run/a.txt": NOTES}, task_id="t-1")
    where, target = PLACES[place]
    before = look_around(outside)
    held = rig.sandbox.store.inject(Fault.STALL, key=key, after=1000)
    running = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    planted(rig.dest, rig.directory, where, outside / target)()
    held.release()
    with pytest.raises(DownloaderError):
        await running
    with contextlib.suppress(DownloaderError):
        await rig.fetch(task_id)
    assert look_around(outside) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
@pytest.mark.parametrize("planted_name", ["t-1", "t-1.partial"])
async def test_what_a_stranger_has_planted_where_everybody_may_write_ends_a_fetch(
    rig, planted_name
):
    """It was told to be published already, or filled and published, and was his afterwards."""
    task_id = rig.add({"run/a.txt": NOTES}, task_id="t-1")
    rig.dest.mkdir()
    rig.dest.chmod(0o1777)
    (rig.dest / planted_name).mkdir()
    (rig.dest / planted_name / "bge-manifest.json").write_text(manifest_of({"a.txt": b""}).dumps())
    os.chown(rig.dest / planted_name, 65534, -1)
    with pytest.raises(DestinationTaken, match="another user"):
        await rig.fetch(task_id)
    (rig.dest / planted_name).rename(rig.dest / "moved-away")
    await rig.fetch(task_id)
    assert (rig.dest / task_id / "a.txt").read_bytes() == NOTES
    assert (rig.dest / task_id).stat().st_uid == os.geteuid()


# Names


def test_the_deepest_folders_that_a_key_can_have_are_made_and_removed(tmp_path):
    deep = "/".join(["d"] * 509)
    content = {f"{deep}/a": b"a", f"{deep}/b": b"b", "c": b"c"}
    place = ResultDirectory(tmp_path / "results", "t-1")
    bring(place, content)
    assert (place.final / deep / "b").read_bytes() == b"b"
    place.final.rename(place.partial)
    place.remove_partial()
    assert list(place.dest.iterdir()) == []


def test_a_path_that_is_too_long_for_the_disk_is_one_sentence(tmp_path):
    dest = tmp_path
    while len(str(dest)) < 3800:
        dest /= "x" * 200
    place = ResultDirectory(dest, "t-1")
    with pytest.raises(DiskError, match="File name too long"):
        bring(place, {f"{'y' * 200}/{'z' * 200}": b"a", "c": b"c"})


@pytest.mark.parametrize("names", [("A", "a"), ("\u00e9", "e\u0301"), ("d./x", "d/x")])
def test_names_that_are_merely_alike_are_two_files_here(tmp_path, names):
    content = {name: name.encode() for name in names}
    place = ResultDirectory(tmp_path / "results", "t-1")
    bring(place, content)
    assert {name: (place.final / name).read_bytes() for name in names} == content


@pytest.mark.parametrize("names", [("A", "a"), ("d/\u00e9", "d/e\u0301")])
def test_names_that_are_one_file_on_this_disk_are_told(tmp_path, names):
    """As on the disk of a Mac, or a Windows share: here a second name of the file does it."""
    place = ResultDirectory(tmp_path / "results", "t-1")
    paths = [place.partial / f"{name}{PART_SUFFIX}" for name in names]
    paths[0].parent.mkdir(parents=True)
    paths[0].touch()
    paths[1].hardlink_to(paths[0])
    with pytest.raises(DiskError, match="one on the file system of this destination"):
        place.part_paths(names)


def test_a_probe_for_such_names_leaves_nothing_behind(tmp_path):
    place = ResultDirectory(tmp_path / "results", "t-1")
    place.partial.mkdir(parents=True)
    place.part_paths(["A", "a", "Sha256sums"])
    assert list(place.partial.iterdir()) == []


# Who may read what is made


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o000, 0o644)])
def test_files_are_made_by_the_umask_and_never_writable_for_others(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        place = ResultDirectory(tmp_path / "results", "t-1")
        bring(place, identity=STATE)
    finally:
        os.umask(before)
    files = [path for path in Path(place.final).rglob("*") if path.is_file()]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == dict.fromkeys(
        [path.name for path in files], mode
    )
