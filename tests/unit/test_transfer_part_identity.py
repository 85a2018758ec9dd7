"""By what a part file is known: the same whatever becomes of it, and never another file's."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from downloader.transfer import part_identity
from downloader.transfer.part_file import PartFile
from downloader.transfer.part_identity import identity_at


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.part"
    path.write_bytes(b"abc")
    if identity_at(path) is None:
        pytest.skip("the file system of this directory tells no birth time")
    return path


def test_it_is_the_inode_and_the_time_of_birth_as_stat_tells_them(path):
    words = ["stat", "--format=%i:%.9W", path]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert identity_at(path) == told.strip()


def test_a_file_stays_the_same_whatever_is_written_to_it(path):
    before = identity_at(path)
    part = PartFile.open(path)
    part.write(0, [b"other"])
    part.reserve(10_000)
    part.close()
    path.rename(path.with_name("b.part"))
    os.utime(path.with_name("b.part"), (1, 1))
    assert part.part_id == before == identity_at(path.with_name("b.part"))


def test_a_copy_is_another_file(path):
    copy = path.with_name("copy.part")
    shutil.copy2(path, copy)
    assert identity_at(copy) not in (None, identity_at(path))


def test_a_file_that_is_begun_anew_is_another_one(path):
    before = identity_at(path)
    part = PartFile.open(path, anew=True)
    part.close()
    assert part.part_id not in (None, before)


def test_a_link_is_not_the_file_that_it_leads_to(path):
    link = path.with_name("link.part")
    link.symlink_to(path)
    assert identity_at(link) != identity_at(path)


@pytest.mark.parametrize("what", ["/proc/self/stat", "/nowhere/a.part"])
def test_where_nothing_is_told_nothing_is_known(what):
    """A file of a file system without birth times, and one that is not there."""
    assert identity_at(Path(what)) is None


def test_a_c_library_without_the_call_tells_nothing(path, monkeypatch):
    monkeypatch.setattr(part_identity, "_statx", lambda: None)
    assert identity_at(path) is None
    part = PartFile.open(path)
    part.close()
    assert part.part_id is None
