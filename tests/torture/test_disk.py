"""What a disk must remember, and what it may forget."""

import random
from dataclasses import replace

import pytest

from torture.disk import SECTOR_BYTES, Disk, Kept, Named
from torture.losses import (
    ALL_LOSSES,
    bytes_only,
    in_order,
    killed,
    killed_within,
    names_only,
    nothing_kept,
    one_kept,
    one_lost,
    sizes_lost,
    torn_with_junk,
)
from torture.recording import FACTS, Facts, Kind, Operation

ROOT, FILE, FOLDER, INNER = 1, 2, 3, 4  # inodes
NEW = b"new " * 2048


class Script:
    """Writes a recording, and tells what the disk may be like at its end."""

    def __init__(self, root):
        self.operations = []
        self._root = root
        self._inodes = {ROOT: root.stat().st_ino}

    def do(self, kind, path="", inode=FILE, *, other="", offset=0, length=0, data=b"", began=None):
        number = len(self.operations)
        self.operations.append(
            Operation(
                number=number,
                kind=kind,
                path=path,
                other=other,
                inode=self._inodes.get(inode, -inode),
                thread=0,
                began=number if began is None else began,
                offset=offset,
                length=len(data) or length,
                data=data,
            )
        )
        return self

    def moments(self):
        return list(Disk.of(self._root).moments(self.operations))

    def end(self):
        return self.moments()[-1]

    def disks(self, loss, seeds=range(20)):
        """Return the different disks that a loss may leave."""
        moment, found = self.end(), []
        for seed in seeds:
            tree = loss(moment, random.Random(seed))
            if tree is not None and tree.files() not in found:
                found.append(tree.files())
        return found

    def least(self):
        return self.disks(nothing_kept)[0]


@pytest.fixture
def script(root):
    return Script(root)


@pytest.fixture
def written(script):
    """A new file, with bytes that are not synced."""
    return script.do(Kind.CREATE, "a").do(Kind.WRITE, "a", data=NEW)


def test_without_a_sync_nothing_needs_to_be_there(written):
    assert written.least() == {}
    assert written.disks(killed) == [{"a": NEW}]


def test_a_rename_to_another_directory_is_kept_by_that_ones_sync(script):
    script.do(Kind.MKDIR, "d", FOLDER).do(Kind.CREATE, "d/a", INNER).do(Kind.SYNC, "d", FOLDER)
    script.do(Kind.SYNC, "", ROOT).do(Kind.RENAME, "d/a", INNER, other="b")
    assert script.least() == {"d": None, "d/a": b""}
    assert script.do(Kind.SYNC, "d", FOLDER).least() == {"d": None, "d/a": b""}
    for loss in ALL_LOSSES:
        whole = [{"d": None, "d/a": b""}, {"d": None, "b": b""}]
        assert all(disk in whole for disk in script.disks(loss))
    assert script.do(Kind.SYNC, "", ROOT).least() == {"d": None, "b": b""}


def test_a_mode_and_times_are_kept_by_a_sync_that_is_no_datasync(script):
    """Those that were not synced may be as they were; a write makes the time another one."""
    made, meant = (FACTS.pack(mode, 7, 8, 0, 9) for mode in (0o644, 0o600))
    script.do(Kind.CREATE, "a", data=made).do(Kind.SYNC, "", ROOT)
    script.do(Kind.TOUCH, "a", data=meant)
    first = Facts(mode=0o644, uid=7, gid=8, mtime=None)
    for kind in (Kind.TOUCH, Kind.DATASYNC):
        script.do(kind, "a", data=meant if kind is Kind.TOUCH else b"")
        moment = script.end()
        assert nothing_kept(moment, None).facts()["a"] == first
        assert killed(moment, None).facts()["a"] == replace(first, mode=0o600, mtime=9)
    script.do(Kind.SYNC, "a")
    assert nothing_kept(script.end(), None).facts()["a"] == replace(first, mode=0o600, mtime=9)
    script.do(Kind.WRITE, "a", data=b"x").do(Kind.DATASYNC, "a")
    assert nothing_kept(script.end(), None).facts()["a"] == replace(first, mode=0o600)


@pytest.mark.parametrize("kind", [Kind.SYNC, Kind.DATASYNC])
def test_a_sync_of_a_file_keeps_its_bytes_and_not_its_name(written, kind):
    written.do(kind, "a")
    assert written.least() == {}
    assert written.do(kind, "", ROOT).least() == {"a": NEW}


def test_a_sync_of_a_directory_keeps_names_and_no_bytes(written):
    assert written.do(Kind.SYNC, "", ROOT).least() == {"a": b""}


def test_a_directory_is_named_in_the_one_above_it(script):
    script.do(Kind.MKDIR, "d", FOLDER).do(Kind.CREATE, "d/a", INNER)
    script.do(Kind.WRITE, "d/a", INNER, data=NEW)
    script.do(Kind.SYNC, "d/a", INNER).do(Kind.SYNC, "d", FOLDER)
    assert script.least() == {}
    assert script.do(Kind.SYNC, "", ROOT).least() == {"d": None, "d/a": NEW}


def test_a_sync_keeps_what_was_written_before_it_began(written):
    """What came while it ran may have come too late."""
    written.do(Kind.SYNC, "", ROOT).do(Kind.WRITE, "a", offset=len(NEW), data=b"late")
    written.do(Kind.SYNC, "a", began=3)
    assert written.least() == {"a": NEW}


def test_a_rename_is_done_or_not_done(written):
    written.do(Kind.SYNC, "a").do(Kind.SYNC, "", ROOT).do(Kind.RENAME, "a", other="b")
    for loss in ALL_LOSSES:
        assert all(disk in ({"a": NEW}, {"b": NEW}) for disk in written.disks(loss))
    assert written.least() == {"a": NEW}


def test_a_rename_may_be_kept_without_the_bytes(written):
    written.do(Kind.RENAME, "a", other="b")
    assert written.disks(names_only) == [{"b": bytes(len(NEW))}]
    assert written.disks(sizes_lost) == [{"b": b""}]
    assert written.disks(bytes_only) == [{}]


def test_a_name_that_was_taken_away_may_come_back(written):
    written.do(Kind.SYNC, "a").do(Kind.SYNC, "", ROOT).do(Kind.UNLINK, "a")
    assert written.least() == {"a": NEW}
    assert written.disks(killed) == [{}]
    assert written.do(Kind.SYNC, "", ROOT).least() == {}


def test_an_inode_may_be_another_files_later(written):
    written.do(Kind.UNLINK, "a").do(Kind.CREATE, "b").do(Kind.WRITE, "b", data=b"other")
    assert written.disks(killed) == [{"b": b"other"}]


def test_sizes_are_kept_by_a_sync_of_the_file(written):
    written.do(Kind.RESERVE, "a", length=20_000).do(Kind.SYNC, "", ROOT)
    assert written.least() == {"a": b""}
    assert written.do(Kind.DATASYNC, "a").least() == {"a": NEW.ljust(20_000, b"\0")}
    written.do(Kind.RESIZE, "a", length=3)
    assert written.least() == {"a": NEW.ljust(20_000, b"\0")}
    assert written.disks(killed) == [{"a": b"new"}]


def test_blocks_that_are_reserved_take_nothing_from_a_longer_file(written):
    assert written.do(Kind.RESERVE, "a", length=5).disks(killed) == [{"a": NEW}]


def test_of_two_writes_either_may_be_lost(written):
    written.do(Kind.SYNC, "a").do(Kind.SYNC, "", ROOT)
    written.do(Kind.WRITE, "a", data=b"1").do(Kind.WRITE, "a", offset=1, data=b"2")
    both = [{"a": b"1ew " + NEW[4:]}, {"a": b"n2w " + NEW[4:]}]
    for loss in (one_lost, one_kept):
        assert sorted(written.disks(loss), key=str) == both
    assert written.disks(in_order) == both[:1]


def test_of_a_large_write_some_sectors_may_be_lost(written):
    """Zeros are there instead, or what was on the disk before."""
    disks = written.do(Kind.SYNC, "", ROOT).disks(torn_with_junk)
    assert {"a": NEW} in disks
    assert {"a": b""} in disks
    torn = next(disk["a"] for disk in disks if disk["a"] not in (NEW, b""))
    sectors = {torn[at : at + SECTOR_BYTES] for at in range(0, len(torn), SECTOR_BYTES)}
    assert NEW[:SECTOR_BYTES] in sectors
    assert len(sectors) > 2


def test_a_process_may_be_killed_within_a_large_write(written):
    assert written.disks(killed_within) == [{"a": NEW[:4096].ljust(len(NEW), b"\0")}]
    assert written.do(Kind.WRITE, "a", data=b"small").disks(killed_within) == []


def test_marks_are_no_operations(written):
    before, *others = written.do(Kind.MARK, "safe").moments()
    assert before.operation is None
    assert [moment.operation for moment in others] == written.operations[:2]


def test_a_lost_name_says_nothing_of_the_next_one(script):
    """Names of one directory are kept or lost one by one."""
    moment = script.do(Kind.CREATE, "a", 5).do(Kind.CREATE, "b", 6).end()
    tree = moment.disk(
        lambda effect: Kept() if isinstance(effect, Named) and effect.names[0][0] == "b" else None
    )
    assert tree.files() == {"b": b""}
