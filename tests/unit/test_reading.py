"""The checksum of what is on disk, as the disk gives it back now."""

import random

import pytest
from fastcrc import crc64
from pipe_helpers import lonely_pipe

from downloader import reading
from downloader.errors import DiskError
from downloader.reading import crc64_of_file

DATA = random.Random(5).randbytes(100_000)


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0x995DC9BBDF1939FA),  # CRC-64/XZ's own check value
        (DATA, crc64.xz(DATA)),
    ],
)
async def test_the_checksum_is_crc64_xz_of_every_byte(tmp_path, data, crc):
    path = tmp_path / "a"
    path.write_bytes(data)
    assert await crc64_of_file(path) == crc


@pytest.mark.parametrize("length", [1 << 12, 33_333, len(DATA), 1 << 20])
async def test_pieces_of_any_length_give_the_same_checksum(tmp_path, monkeypatch, length):
    monkeypatch.setattr(reading, "READ_BYTES", length)
    path = tmp_path / "a"
    path.write_bytes(DATA)
    heard = []
    assert await crc64_of_file(path, on_read=heard.append) == crc64.xz(DATA)
    assert sum(heard) == len(DATA)
    assert max(heard) <= length


async def test_what_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(DiskError, match="could not be read") as caught:
            await crc64_of_file(path)
        assert str(path) in str(caught.value)
        assert isinstance(caught.value.__cause__, OSError)


async def test_a_file_that_its_owner_has_moved_and_linked_is_read(tmp_path):
    (tmp_path / "moved").write_bytes(DATA)
    (tmp_path / "a").symlink_to(tmp_path / "moved")
    assert await crc64_of_file(tmp_path / "a") == crc64.xz(DATA)


async def test_of_a_device_without_an_end_nothing_is_read(tmp_path):
    (tmp_path / "a").symlink_to("/dev/zero")
    with pytest.raises(DiskError, match="it is no ordinary file"):
        await crc64_of_file(tmp_path / "a", on_read=lambda _: pytest.fail("it was read"))


async def test_a_pipe_is_not_waited_for(tmp_path):
    with lonely_pipe(tmp_path / "a"), pytest.raises(DiskError, match="it is no ordinary file"):
        await crc64_of_file(tmp_path / "a")
