"""The part file: an ordinary file of its own, and every refusal of the disk one sentence."""

import errno
import os
import resource
import socket
import subprocess
from pathlib import Path

import pytest
from fastcrc import crc64
from hypothesis import given, settings
from hypothesis import strategies as st

from downloader.errors import DiskError, DiskFull
from downloader.transfer import part_file
from downloader.transfer.part_file import PartFile
from downloader.transfer.segment_run import SegmentRun
from state.records import Segment

MIB = 1024 * 1024


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.vcf.gz.part"


@pytest.fixture
def part(path):
    part = PartFile.open(path)
    yield part
    part.close()


def open_descriptors():
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def fail_with(code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    return refuse


# What it may be.


def test_it_is_made_where_there_is_none(path):
    PartFile.open(path).close()
    assert path.read_bytes() == b""


def test_what_is_there_is_left_as_it_is(path):
    path.write_bytes(b"earlier")
    PartFile.open(path).close()
    assert path.read_bytes() == b"earlier"


def symbolic_link(path, other):
    path.symlink_to(other)


def dangling_link(path, other):
    path.symlink_to(other.with_name("nowhere"))


def hard_link(path, other):
    path.hardlink_to(other)


def fifo(path, _):
    os.mkfifo(path)


def directory(path, _):
    path.mkdir()


def unix_socket(path, _):
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.close()


@pytest.mark.parametrize(
    "make", [symbolic_link, dangling_link, hard_link, fifo, directory, unix_socket]
)
def test_what_is_no_ordinary_file_of_its_own_is_refused(path, tmp_path, make):
    """Writing there would write somewhere else, or wait for ever."""
    other = tmp_path / "precious"
    other.write_bytes(b"precious")
    make(path, other)
    before = open_descriptors()
    with pytest.raises(DiskError, match=r"part is no ordinary file of its own; move it away"):
        PartFile.open(path)
    assert open_descriptors() == before
    assert other.read_bytes() == b"precious"
    assert not other.with_name("nowhere").exists()


def test_a_directory_that_is_missing_is_told(tmp_path):
    with pytest.raises(DiskError, match="could not be opened: No such file or directory"):
        PartFile.open(tmp_path / "missing" / "a.part")


def test_its_size_is_that_of_an_ordinary_file_only(path, tmp_path):
    assert PartFile.size_on_disk(path) is None
    path.write_bytes(b"12345")
    assert PartFile.size_on_disk(path) == 5
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "other").hardlink_to(path)
    for other in (tmp_path / "link", tmp_path / "other", tmp_path):
        with pytest.raises(DiskError, match="no ordinary file of its own; move it away"):
            PartFile.size_on_disk(other)


def test_a_size_that_cannot_be_looked_at_is_told(path):
    path.write_bytes(b"")
    with pytest.raises(DiskError, match="could not be looked at: Not a directory"):
        PartFile.size_on_disk(path / "below")


# Reserving.


def test_reserving_gives_the_size_and_keeps_the_bytes(part, path):
    part.write(0, [b"abc"])
    part.reserve(10_000)
    assert path.read_bytes() == b"abc" + bytes(9997)


def test_reserving_less_cuts(part, path):
    part.write(0, [b"abcdef"])
    part.reserve(3)
    assert path.read_bytes() == b"abc"
    part.reserve(0)
    assert path.read_bytes() == b""


def test_reserving_takes_the_blocks_at_once(part, path):
    """A disk that is full later is found out now."""
    part.reserve(8 * MIB)
    assert path.stat().st_blocks * 512 >= 8 * MIB


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_where_blocks_cannot_be_reserved_the_size_is_given_all_the_same(
    part, path, monkeypatch, code
):
    """NFS before 4.2, and others; not by writing zeros, which takes minutes there."""
    monkeypatch.setattr(part_file.ctypes, "get_errno", lambda: code)
    monkeypatch.setattr(part_file, "_fallocate", lambda: lambda *_: -1)
    part.reserve(5000)
    assert path.stat().st_size == 5000


def test_a_reservation_that_the_disk_refuses_is_told(part, monkeypatch):
    monkeypatch.setattr(part_file.ctypes, "get_errno", lambda: errno.EDQUOT)
    monkeypatch.setattr(part_file, "_fallocate", lambda: lambda *_: -1)
    with pytest.raises(DiskFull, match="could not be given 5000 bytes: Disk quota exceeded; free"):
        part.reserve(5000)


def test_what_cannot_fit_is_refused_before_anything_is_taken(part, path):
    with pytest.raises(DiskFull, match="bytes free, but 1152921504606846976 more are needed; free"):
        part.reserve(2**60)
    assert path.stat().st_size == 0


def test_what_is_to_stay_free_stays_free(part):
    with pytest.raises(DiskFull, match=f"and {2**60} are to stay free"):
        part.reserve(1, keep_free=2**60)


def test_what_is_there_already_needs_no_more_space(part):
    """A resumed file is not refused for bytes that it holds itself."""
    part.reserve(MIB)
    part.reserve(MIB, keep_free=2**60)


def test_a_disk_that_does_not_tell_its_size_is_tried(part, monkeypatch):
    """Some network file systems report zeros."""
    unknown = os.statvfs_result((4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _: unknown)
    part.reserve(1000)


# Writing.


@settings(max_examples=50)
@given(
    buffers=st.lists(st.binary(max_size=20), max_size=30),
    offset=st.integers(0, 100),
    at_once=st.integers(1, 40),
)
def test_short_writes_are_finished(tmp_path_factory, buffers, offset, at_once):
    """POSIX allows a write to take less than it was given."""
    path = tmp_path_factory.mktemp("short") / "a.part"
    part = PartFile.open(path)
    with pytest.MonkeyPatch.context() as patch:
        write = os.pwrite

        def short_writev(descriptor, some, at):
            data = b"".join(some)[:at_once]
            return write(descriptor, data, at)

        patch.setattr(os, "pwritev", short_writev)
        patch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:at_once], at))
        written = part.write(offset, [memoryview(buffer) for buffer in buffers])
    part.close()
    data = b"".join(buffers)
    assert written == len(data)
    assert path.read_bytes() == (bytes(offset) + data if data else b"")


def test_more_buffers_than_one_call_takes(part, path):
    buffers = [bytes([n % 256]) for n in range(3000)]
    assert part.write(7, buffers) == 3000
    assert path.read_bytes() == bytes(7) + b"".join(buffers)


def test_a_disk_that_takes_nothing_and_says_nothing_ends_it(part, monkeypatch):
    """Or it would be asked for ever."""
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(DiskError, match="takes no more bytes"):
        part.write(0, [b"abc"])


def test_a_limit_on_the_files_size_is_told(part):
    """RLIMIT_FSIZE: the kernel's own refusal, EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(DiskError, match="could not be written: File too large"):
            part.write(0, [bytes(6000), bytes(6000)])
        with pytest.raises(DiskError, match="could not be given 20000 bytes: File too large"):
            part.reserve(20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of one mebibyte, where this process may mount one."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full_is_told(tiny_disk):
    part = PartFile.open(tiny_disk / "a.part")
    with pytest.raises(DiskFull, match="could not be written: No space left on device; free some"):
        part.write(0, [bytes(MIB), bytes(MIB)])
    with pytest.raises(DiskFull, match="more are needed"):
        part.reserve(3 * MIB)
    part.close()


def test_a_full_disk_takes_nothing_back_from_what_was_written(tiny_disk):
    """The segment stays where it was, and its checksum with it: the rest is fetched later."""
    part = PartFile.open(tiny_disk / "a.part")
    run = SegmentRun(Segment(start=0, stop=4 * MIB))
    run.write(part, [memoryview(b"a" * 1000)])
    before = (run.position, run.crc64)
    with pytest.raises(DiskFull):
        run.write(part, [memoryview(bytes(2 * MIB))])
    assert (run.position, run.crc64) == before
    part.close()


# Reading back, syncing, closing.


def test_chunks_are_the_bytes_and_no_more(part):
    part.write(0, [b"0123456789"])
    assert list(part.chunks(2, 9, 3)) == [b"234", b"567", b"8"]
    assert list(part.chunks(5, 5)) == []


def test_a_file_that_became_shorter_is_told(part, path):
    part.write(0, [b"0123456789"])
    os.truncate(path, 4)
    with pytest.raises(DiskError, match="became shorter while it was in use"):
        list(part.chunks(0, 10))


def test_a_failed_sync_stays_failed(part, monkeypatch):
    """The kernel tells it once and takes the lost pages for clean: the next success is a lie."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail_with(errno.EIO))
        with pytest.raises(DiskError, match="could not be synced: Input/output error"):
            part.sync()
    with pytest.raises(DiskError, match="could not be synced: Input/output error"):
        part.sync()


def test_a_disk_that_turns_out_full_when_synced_is_full(part, monkeypatch):
    """As on NFS, where writes are only promised."""
    monkeypatch.setattr(os, "fdatasync", fail_with(errno.ENOSPC))
    with pytest.raises(DiskFull, match="could not be synced"):
        part.sync()


def test_it_is_confirmed_as_long_as_its_path_leads_to_it(part, path, tmp_path):
    part.write(0, [b"abc"])
    part.confirm(3)
    with pytest.raises(DiskError, match=r"(replaced|cut) by another program"):
        part.confirm(4)
    other = tmp_path / "other"
    other.write_bytes(b"xyz")
    other.replace(path)
    with pytest.raises(DiskError, match=r"(replaced|cut) by another program"):
        part.confirm(3)
    path.unlink()
    with pytest.raises(DiskError, match="could not be looked at: No such file"):
        part.confirm(3)


def test_beginning_anew_takes_no_byte_from_another_writer(part, path):
    """Where no lock keeps two apart, the first one must find out, and not publish a hole."""
    part.write(0, [b"abc"])
    other = PartFile.open(path, anew=True)
    assert path.read_bytes() == b""
    assert list(part.chunks(0, 3)) == [b"abc"]
    with pytest.raises(DiskError, match="was replaced by another program"):
        part.confirm(3)
    other.close()


def test_closing_never_hides_another_error(part, monkeypatch):
    """What was synced is safe; of what was not no checkpoint tells."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", fail_with(errno.EIO))
        part.close()


# A segment while it is filled.


@given(data=st.binary(min_size=1, max_size=200), choice=st.data())
def test_a_segments_checksum_is_that_of_its_bytes(tmp_path_factory, data, choice):
    """Bytes of earlier runs from the disk, bytes of this run as they were handed over."""
    start = choice.draw(st.integers(0, 50))
    watermark = choice.draw(st.integers(0, len(data)))
    part = PartFile.open(tmp_path_factory.mktemp("run") / "a.part")
    part.write(start, [data[:watermark]])
    run = SegmentRun(Segment(start=start, stop=start + len(data), watermark=watermark))
    rest = data[watermark:]
    cut = choice.draw(st.integers(0, len(rest)))
    run.write(part, [memoryview(rest[:cut])])
    while run.read_back(part, choice.draw(st.integers(1, 100))):
        pass
    run.write(part, [memoryview(rest[cut:])])
    assert run.is_complete
    assert run.crc64 == crc64.xz(data)
    assert b"".join(part.chunks(start, start + len(data))) == data
    part.close()
