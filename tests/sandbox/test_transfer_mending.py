"""A file whose checksum is wrong is mended: only what does not prove itself is fetched again."""

from dataclasses import replace

import pytest
from transfer_helpers import DATA, KEY, MIB, PROBE, Heard

from downloader.errors import DiskError, ObjectChanged, VerificationFailed
from downloader.sandbox import Fault, samples
from downloader.transfer import mending

pytest_plugins = ["transfer_helpers"]

BGZF = samples.bgzf(samples.incompressible(7 * MIB))
STARTS = [*samples.block_starts(BGZF), len(BGZF)]
OTHER_BGZF = samples.bgzf(samples.incompressible(7 * MIB, seed=2))


def block_at(offset):
    """Return the range of the block that a byte is in."""
    start = max(start for start in STARTS if start <= offset)
    return start, STARTS[STARTS.index(start) + 1]


def flip(path, *offsets):
    with path.open("r+b") as file:
        for offset in offsets:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0xFF]))


@pytest.fixture
def store(rig):
    rig.store.put(KEY, BGZF)
    return rig.store


@pytest.mark.parametrize("offset", [0, 16, PROBE // 2, PROBE + 77, STARTS[50] + 5, len(BGZF) - 1])
async def test_a_byte_that_was_flipped_on_the_way_costs_one_block(rig, store, offset):
    """Content, a block's length, and header fields that no checksum covers."""
    store.inject(Fault.FLIP_BYTE, covering=offset, offset=offset)
    done = await rig.transfer()
    start, stop = block_at(offset)
    assert rig.on_disk == BGZF
    assert store.bytes_served == len(BGZF) + stop - start == done.received_bytes
    assert store.requests[-1].asked == (start, stop)
    assert store.requests[-1].if_match == store.get(KEY).etag
    assert (done.resumed_bytes, done.crc64_confirmed) == (0, True)
    assert rig.heard.shown == len(BGZF)


async def test_what_is_mended_is_told_in_a_sentence(rig, store):
    store.inject(Fault.FLIP_BYTE, covering=STARTS[3], offset=STARTS[3] + 99)
    await rig.transfer()
    (note,) = rig.heard.notes
    assert note.startswith("a.vcf.gz: the CRC-64 of the bytes on disk is ")
    blocks, count = len(STARTS) - 2, STARTS[4] - STARTS[3]
    assert note.endswith(f"{blocks} of its blocks are intact, fetching {count:,} bytes again")


async def test_damage_in_several_places_costs_their_blocks(rig, store):
    offsets = [77, PROBE + 3000]
    for offset in offsets:
        store.inject(Fault.FLIP_BYTE, covering=offset, offset=offset)
    await rig.transfer()
    damaged = [block_at(offset) for offset in offsets]
    assert rig.on_disk == BGZF
    assert store.bytes_served == len(BGZF) + sum(stop - start for start, stop in damaged)


async def test_a_byte_that_the_disk_flips_while_a_fetch_is_interrupted_costs_one_block(rig, store):
    """It is read back with all that earlier runs have left, and found by the whole's checksum."""
    await rig.interrupted(store.inject(Fault.STALL, covering=PROBE + MIB, after=1000))
    safe = rig.checkpoints.saved.safe_bytes
    flip(rig.part_path, 1234)
    rig.heard = Heard()
    done = await rig.transfer()
    start, stop = block_at(1234)
    assert rig.on_disk == BGZF
    assert store.bytes_served == len(BGZF) - safe + stop - start == done.received_bytes
    assert done.resumed_bytes == safe
    assert rig.heard.shown == len(BGZF)


async def test_pages_that_never_reached_the_disk_are_fetched_again(rig, store):
    """A file system may give zeros after a power loss, whatever it has promised."""
    rig.left_by_an_earlier_run((0, len(BGZF), len(BGZF)), data=BGZF)
    with rig.part_path.open("r+b") as file:
        file.seek(STARTS[5] + 100)
        file.write(bytes(STARTS[9] - STARTS[5]))
    await rig.transfer()
    assert rig.on_disk == BGZF
    assert store.bytes_served == STARTS[10] - STARTS[5] + 1


async def test_an_interrupted_mending_goes_on_with_the_range_that_is_missing(rig, store):
    """What was right stays; the checkpoint knows which bytes are not."""
    rig.left_by_an_earlier_run((0, len(BGZF), len(BGZF)), data=BGZF)
    flip(rig.part_path, STARTS[7] + 50)
    await rig.interrupted(store.inject(Fault.STALL, covering=STARTS[7] + 1, after=1000))
    missing = len(BGZF) - rig.checkpoints.saved.safe_bytes
    assert 0 < missing <= STARTS[8] - STARTS[7]
    done = await rig.transfer()
    assert rig.on_disk == BGZF
    assert done.received_bytes == store.bytes_served == missing


async def test_blocks_that_come_damaged_again_are_given_up_for_all_again(rig, store):
    """The same damage is not mended twice: the block may be in order, and something else wrong."""
    wrong = store.inject(Fault.FLIP_BYTE, covering=STARTS[3] + 9, offset=STARTS[3] + 9, times=2)
    done = await rig.transfer()
    assert wrong.hits == 2
    assert rig.on_disk == BGZF
    assert done.received_bytes == 2 * len(BGZF) + STARTS[4] - STARTS[3]
    assert "starting this file again" in rig.heard.notes[-1]


async def test_a_line_that_always_damages_ends_it_and_leaves_nothing_to_believe(rig, store):
    store.inject(Fault.FLIP_BYTE, covering=STARTS[3] + 9, offset=STARTS[3] + 9, times=None)
    with pytest.raises(VerificationFailed, match=r"the store's is .* 2 times in a row"):
        await rig.transfer()
    assert store.bytes_served == 2 * len(BGZF) + STARTS[4] - STARTS[3]
    assert rig.checkpoints.saved is None
    assert not rig.part_path.exists()


async def test_a_line_that_damages_another_block_each_time_is_mended_so_often(
    rig, store, monkeypatch
):
    monkeypatch.setattr(mending, "MAX_MENDINGS", 2)
    store.inject(Fault.FLIP_BYTE, covering=0, offset=9000)
    store.inject(Fault.FLIP_BYTE, covering=9000, offset=9001)
    store.inject(Fault.FLIP_BYTE, covering=9000, offset=9002)
    await rig.transfer()
    assert rig.on_disk == BGZF
    assert store.bytes_served == 2 * len(BGZF) + 2 * STARTS[1]


async def test_a_checksum_that_the_store_tells_wrong_is_no_damage(rig, store):
    """Every block is intact, so nothing is mended, and two times the same bytes end it."""
    store.inject(Fault.WRONG_CRC, times=None)
    with pytest.raises(VerificationFailed, match="2 times in a row"):
        await rig.transfer()
    assert store.bytes_served == 2 * len(BGZF)


async def test_damage_in_many_places_is_mended_by_a_bounded_number_of_requests(
    rig, store, monkeypatch
):
    """What lies between those that are closest to each other comes with them."""
    monkeypatch.setattr(mending, "MAX_RANGES", 3)
    rig.left_by_an_earlier_run((0, len(BGZF), len(BGZF)), data=BGZF)
    flip(rig.part_path, *(STARTS[block] + 30 for block in (0, 2, 5, 7, 9, 40, 42)))
    await rig.transfer()
    assert rig.on_disk == BGZF
    joined = [(STARTS[0], STARTS[3]), (STARTS[5], STARTS[10]), (STARTS[40], STARTS[43])]
    assert sorted({request.asked for request in store.requests[1:]}) == joined
    assert store.bytes_served == sum(stop - start for start, stop in joined) + 1


async def test_an_object_that_is_replaced_before_its_mending_is_never_mixed(rig, store):
    rig.left_by_an_earlier_run((0, len(BGZF), len(BGZF)), data=BGZF)
    flip(rig.part_path, 5000)
    note = rig.heard.note

    def replaced(message):
        if "intact" in message:
            store.replace(KEY, OTHER_BGZF)
        note(message)

    rig.heard.note = replaced
    await rig.transfer()
    assert rig.on_disk == OTHER_BGZF
    assert rig.heard.shown == len(OTHER_BGZF)


async def test_a_small_object_that_came_in_one_go_is_mended_too(rig, store):
    small = samples.bgzf(samples.incompressible(200_000))
    store.put(KEY, small)
    store.inject(Fault.FLIP_BYTE, offset=100)
    done = await rig.transfer()
    first = list(samples.block_starts(small))[1]
    assert rig.on_disk == small
    assert done.received_bytes == store.bytes_served == len(small) + first


async def test_without_an_etag_nothing_is_mended(rig, store):
    """Two replies could be of two versions."""
    small = samples.bgzf(samples.incompressible(200_000))
    store.put(KEY, small, etag='W/"weak"')
    store.inject(Fault.FLIP_BYTE, offset=100)
    await rig.transfer()
    assert rig.on_disk == small
    assert store.bytes_served == 2 * len(small)


async def test_a_file_that_cannot_be_searched_is_told(rig, store, monkeypatch):
    def refuse(*_):
        raise OSError(5, "Input/output error")

    rig.find_damage = refuse
    store.inject(Fault.FLIP_BYTE, covering=0, offset=9000)
    with pytest.raises(DiskError, match="could not be read back: Input/output error"):
        await rig.transfer()
    assert rig.checkpoints.saved.safe_bytes == len(BGZF)


# The same version or none.


async def test_the_same_version_is_mended_or_none(rig, store):
    rig.left_by_an_earlier_run((0, len(BGZF), len(BGZF)), data=BGZF)
    flip(rig.part_path, 5000)
    before = rig.on_disk
    store.replace(KEY, OTHER_BGZF)
    with pytest.raises(ObjectChanged):
        await rig.transfer(same_version=True)
    assert rig.on_disk == before


async def test_the_same_version_is_fetched_whole_where_nothing_tells_the_damage(rig):
    rig.left_by_an_earlier_run((0, len(DATA), len(DATA)))
    flip(rig.part_path, 5000)
    tags = []
    rig.checkpoints.clear = lambda: tags.append("cleared")
    done = await rig.transfer(same_version=True)
    assert rig.on_disk == DATA
    assert tags == []
    assert done.received_bytes == len(DATA)
    assert {request.if_match for request in rig.store.requests} == {rig.store.get(KEY).etag}


# The checksum that the store has told first.


async def test_a_resumed_run_that_hears_no_checksum_proves_by_the_one_that_was_told_first(
    rig, store
):
    await rig.interrupted(store.inject(Fault.STALL, covering=PROBE + MIB, after=1000))
    assert rig.checkpoints.saved.crc64 == str(store.get(KEY).crc64)
    flip(rig.part_path, 1234)
    store.inject(Fault.NO_CRC, times=None)
    done = await rig.transfer()
    assert rig.on_disk == BGZF
    assert done.crc64_confirmed
    assert rig.checkpoints.saved.crc64 == str(store.get(KEY).crc64)


async def test_a_checksum_that_was_told_wrong_once_is_forgotten_for_the_one_that_is_told_now(
    rig, store
):
    rig.left_by_an_earlier_run((0, len(BGZF), 1000), data=BGZF)
    rig.checkpoints.saved = replace(rig.checkpoints.saved, crc64="12345")
    done = await rig.transfer()
    assert rig.on_disk == BGZF
    assert done.received_bytes == len(BGZF) - 1000


@pytest.mark.parametrize("damaged", ["", "abc", "9" * 21, "²", 12345])
async def test_a_checksum_that_is_none_is_not_believed(rig, store, damaged):
    rig.left_by_an_earlier_run((0, len(BGZF), 1000), data=BGZF)
    rig.checkpoints.saved = replace(rig.checkpoints.saved, crc64=damaged)
    store.inject(Fault.NO_CRC, times=None)
    done = await rig.transfer()
    assert rig.on_disk == BGZF
    assert not done.crc64_confirmed
