"""The name of a new directory is in the one above it, and survives a power loss with that one.

That nothing is lost in the end is what the crash points show, see tests/torture.
"""

import os
from pathlib import Path

import pytest

from downloader.syncing import make_directories, make_directory, sync_directory, sync_names
from state import StateStore


@pytest.fixture
def synced(monkeypatch):
    """Give the directories that were synced, each with what was in it at that time."""
    told, fsync = [], os.fsync

    def listen(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            told.append((path, sorted(entry.name for entry in path.iterdir())))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", listen)
    return told


def test_each_directory_that_is_made_is_named_before_there_is_anything_in_it(synced, tmp_path):
    make_directories(tmp_path / "a" / "b" / "c")
    assert synced[-3:] == [
        (tmp_path, ["a"]),
        (tmp_path / "a", ["b"]),
        (tmp_path / "a" / "b", ["c"]),
    ]
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_what_is_there_is_named_too(synced, tmp_path):
    """Whoever made it may have been killed before he came to that."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    make_directories(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a", ["b"]) in synced
    synced.clear()
    make_directories(tmp_path / "a" / "b" / "c")
    make_directory(tmp_path / "a" / "b" / "c")
    assert synced[-2:] == [(tmp_path / "a" / "b", ["c"])] * 2


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_what_is_no_directory_is_an_error(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        make_directories(tmp_path / place)


def _fsync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_a_file_system_that_can_sync_no_directory_is_no_error():
    with pytest.raises(OSError, match="Invalid argument"):
        _fsync("/proc")  # which is one of them
    sync_names(["/proc"])
    sync_directory("/proc")


def test_a_directory_that_we_may_not_open_is_no_error(open_directory, as_nobody):
    """Not everybody may read what is above his own directory."""
    open_directory.chmod(0o311)
    with as_nobody():
        sync_names([open_directory])
    open_directory.chmod(0o777)


def test_a_directory_that_has_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync_names([tmp_path, tmp_path / "nowhere"])


def test_the_name_of_the_states_directory_survives_with_it(synced, tmp_path):
    """What SQLite syncs are the names in that directory."""
    StateStore.open(tmp_path / "home" / "state" / "state.db").close()
    assert (tmp_path / "home", ["state"]) in synced
    assert (tmp_path, ["home"]) in synced


def test_a_state_that_is_there_was_named_when_it_was_made(synced, tmp_path):
    StateStore.open(tmp_path / "state.db").close()
    synced.clear()
    StateStore.open(tmp_path / "state.db").close()
    assert synced == []
