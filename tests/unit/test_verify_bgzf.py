"""BGZF blocks: what is proved, what is found, and where."""

import gzip
import zlib

import pytest

from downloader.sandbox import samples
from downloader.verify import bgzf
from downloader.verify.flaw import Flaw, Stopped

VCF = samples.small_pair()[0]
STARTS = list(samples.block_starts(VCF))


@pytest.fixture
def put(tmp_path):
    def write(data):
        path = tmp_path / "some.part"
        path.write_bytes(data)
        return path

    return write


def reheaded(data, *, mtime=0, xfl=0, system=255):
    """Give every block but the last the header fields of another writer."""
    changed = bytearray(data)
    for at in list(samples.block_starts(data))[:-1]:
        changed[at + 4 : at + 10] = mtime.to_bytes(4, "little") + bytes([xfl, system])
    return bytes(changed)


def test_the_blocks_of_htslib_are_walked_in_order(put):
    blocks = list(bgzf.iter_blocks(put(VCF)))
    assert [block.offset for block in blocks] == STARTS
    assert all(block.crc_ok for block in blocks)
    assert blocks[-1].stop == len(VCF)
    assert sum(block.uncompressed_length for block in blocks) == len(samples.unbgzf(VCF))


def test_the_block_map_knows_sizes_and_the_last_byte(put):
    found = bgzf.check_blocks(put(VCF))
    assert (found.size, found.length) == (len(VCF), len(gzip.decompress(VCF)))
    assert found.ends_in_newline
    assert not bgzf.check_blocks(put(samples.bgzf(b"no newline"))).ends_in_newline


def test_virtual_offsets_become_positions_only_where_a_block_begins(put):
    found = bgzf.check_blocks(put(VCF))
    second = STARTS[1]
    length = found.starts[1]
    assert found.position(0) == 0
    assert found.position(second << 16) == length
    assert found.position(length) == length  # the end of the first block is the second's begin
    assert found.position(length + 1) is None
    assert found.position((second + 1) << 16) is None
    assert found.position(STARTS[-1] << 16) == found.length
    assert found.position(len(VCF) << 16) == found.length
    assert found.position(len(VCF) << 16 | 1) is None
    assert found.position((len(VCF) + 9) << 16) is None


def test_empty_blocks_in_the_middle_are_fine(put):
    cut = STARTS[2]
    joined = VCF[:cut] + samples.EOF_BLOCK + VCF[cut:]
    assert bgzf.check_blocks(put(joined)).length == len(samples.unbgzf(VCF))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (samples.truncated(VCF), "ends without the BGZF end-of-file block: it is truncated"),
        (samples.without_eof(VCF), "ends without the BGZF end-of-file block: it is truncated"),
        (VCF + b"junk!", "has 5 bytes after the BGZF end-of-file block"),
        (b"##fileformat=VCFv4.2\n", "is not BGZF-compressed"),
        (gzip.compress(b"##fileformat=VCFv4.2\n", mtime=0), "is gzip but not BGZF"),
        (samples.flipped_byte(VCF, STARTS[1]), f"no intact BGZF block header at byte {STARTS[1]}"),
        (samples.flipped_byte(VCF, STARTS[1] + 99), f"damaged BGZF block at byte {STARTS[1]}"),
        (samples.flipped_byte(VCF, STARTS[1] + 9), f"block header at byte {STARTS[1]}"),
    ],
)
def test_each_damage_has_its_sentence(put, data, sentence):
    with pytest.raises(Flaw, match=sentence):
        bgzf.check_blocks(put(data))


@pytest.mark.parametrize("at", range(18))
def test_no_byte_of_a_header_may_change(put, at):
    with pytest.raises(Flaw):
        bgzf.check_blocks(put(samples.flipped_byte(VCF, STARTS[1] + at, mask=0x41)))


def test_bits_behind_the_end_of_a_deflate_stream_may_not_be_set(put):
    """Inflating ignores them, and no checksum covers them."""
    last = STARTS[2] - 9
    unseen = [
        flipped
        for flipped in (samples.flipped_byte(VCF, last, mask=1 << bit) for bit in range(8))
        if _inflates(flipped[STARTS[1] + 18 : last + 1])
    ]
    for flipped in unseen:
        with pytest.raises(Flaw):
            bgzf.check_blocks(put(flipped))


def _inflates(deflated):
    try:
        stream = zlib.decompressobj(-15)
        return bool(stream.decompress(deflated)) and stream.eof
    except zlib.error:
        return False


@pytest.mark.parametrize(
    "fields",
    [{"xfl": 2}, {"xfl": 4, "system": 3}, {"mtime": 1_700_000_000, "system": 3}],
)
def test_other_writers_headers_are_believed_when_all_blocks_agree(put, fields):
    data = reheaded(VCF, **fields)
    assert bgzf.check_blocks(put(data)).size == len(data)
    assert bgzf.find_damage(put(data)).ranges == []


def test_the_only_block_of_a_small_file_may_be_another_writers(put):
    data = samples.bgzf(b"a\tb\n")
    assert bgzf.check_blocks(put(reheaded(data, xfl=2, system=3))).length == 4
    with pytest.raises(Flaw, match="block header at byte 0"):
        bgzf.check_blocks(put(reheaded(data, mtime=1)))


def test_other_subfields_beside_the_block_size_are_fine(put):
    data = samples.bgzf(b"hello\n")
    size = int.from_bytes(data[16:18], "little") + 6
    extra = b"XY\x02\x00??BC\x02\x00" + size.to_bytes(2, "little")
    wide = data[:10] + len(extra).to_bytes(2, "little") + extra + data[18:]
    assert bgzf.check_blocks(put(wide)).length == 6


def test_a_block_that_inflates_to_more_than_it_says_is_damaged(put):
    """A block of a hostile file is not inflated beyond the 64 KiB that a block may hold."""
    huge = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = huge.compress(bytes(30_000_000)) + huge.flush()
    size = (len(deflated) + 25).to_bytes(2, "little")
    block = samples.EOF_BLOCK[:16] + size + deflated + bytes(8)
    (found, _) = bgzf.iter_blocks(put(block + samples.EOF_BLOCK))
    assert not found.crc_ok


def test_the_quick_look_sees_both_ends(put):
    bgzf.check_ends(put(VCF))
    bgzf.check_ends(put(samples.EOF_BLOCK))
    for data in (
        samples.without_eof(VCF),
        samples.flipped_byte(VCF, 100),
        samples.flipped_byte(VCF, STARTS[-1] - 100),
    ):
        with pytest.raises(Flaw):
            bgzf.check_ends(put(data))


def test_the_blocks_that_are_intact_are_counted(put):
    assert bgzf.find_damage(put(VCF)).intact_blocks == len(STARTS)
    damaged = samples.flipped_byte(samples.flipped_byte(VCF, 20), STARTS[3] + 16)
    assert bgzf.find_damage(put(damaged)).intact_blocks == len(STARTS) - 2
    strange = samples.flipped_byte(VCF, STARTS[2] + 5)  # a header field that no checksum covers
    assert bgzf.find_damage(put(strange)).intact_blocks == len(STARTS) - 1


@pytest.mark.parametrize("data", [VCF, samples.incompressible(3 << 20)], ids=["bgzf", "other"])
def test_the_search_for_damage_ends_when_nobody_waits_for_it(put, data):
    with pytest.raises(Stopped):
        bgzf.find_damage(put(data), lambda: True)


def test_an_intact_file_has_no_damaged_blocks(put):
    assert bgzf.find_damage(put(VCF)).ranges == []
    assert bgzf.find_damage(put(b"")).ranges == []


@pytest.mark.parametrize("at", [0, 3, 5, 9, 12, 16, 17, 18, 500, 10_000])
def test_one_flipped_byte_costs_one_block(put, at):
    """Header, length, content: the walk finds its way again at the next block."""
    damaged = samples.flipped_byte(VCF, STARTS[1] + at)
    assert bgzf.find_damage(put(damaged)).ranges == [(STARTS[1], STARTS[2])]


def test_lost_pages_across_blocks_are_one_range(put):
    damaged = VCF[: STARTS[1] + 50] + bytes(STARTS[3] - STARTS[1]) + VCF[STARTS[3] + 50 :]
    assert bgzf.find_damage(put(damaged)).ranges == [(STARTS[1], STARTS[4])]


def test_damage_in_two_places_is_two_ranges(put):
    damaged = samples.flipped_byte(samples.flipped_byte(VCF, 20), STARTS[3] + 16)
    assert bgzf.find_damage(put(damaged)).ranges == [(0, STARTS[1]), (STARTS[3], STARTS[4])]


def test_a_tail_that_never_reached_the_disk_is_a_range_up_to_the_end(put):
    """A preallocated file has the right size whatever is missing."""
    damaged = VCF[: STARTS[3]] + bytes(len(VCF) - STARTS[3])
    assert bgzf.find_damage(put(damaged)).ranges == [(STARTS[3], len(VCF))]


def test_a_file_that_is_no_bgzf_is_one_range(put):
    data = samples.incompressible(3 << 20)
    assert bgzf.find_damage(put(data)).ranges == [(0, len(data))]


def test_the_magic_word_is_found_across_the_reading_window(put):
    start = bgzf.READ_BUFFER - 1
    data = bytes(start) + samples.bgzf(b"x")
    assert bgzf.find_damage(put(data)).ranges == [(0, start)]
