"""Every crash point, with everything that may be lost there; see test_crash_points.py.

For `make torture` alone: it takes some minutes.
"""

import pytest

from torture.crashes import Tally, crashes
from torture.losses import ALL_LOSSES, killed, nothing_kept, torn
from torture.recorded import SABOTAGE, SABOTAGE_OF_REPAIRS
from torture.recording import Kind
from torture.recovery import DEST, TASK, write_out
from torture.scenes import (
    FILES,
    OTHERS,
    half_mended,
    half_way,
    while_publishing,
    while_replacing,
)

RESULT = f"{DEST}/{TASK}"

pytestmark = pytest.mark.timeout(3600)


def every_loss(*_):
    return ALL_LOSSES


async def all_end_well(torture, called, *, road="straight", replaced_by=None, **details):
    recorded = await torture.record(road=road)
    if replaced_by:
        torture.serve(replaced_by)
        details.update(wanted=replaced_by, recorded_as=FILES)
    tally = await torture.crash(recorded, every_loss, **details)
    torture.tell(called, tally)
    assert tally.failures == []


@pytest.mark.parametrize("road", ["straight", "plain"])
async def test_a_first_fetch(torture, road):
    await all_end_well(torture, f"a first fetch, the {road} way", road=road)


async def test_a_resumed_fetch(torture):
    """A second power loss, while the first is being mended."""
    await torture.crashed(half_way, nothing_kept)
    await all_end_well(torture, "a resumed fetch")


async def test_a_fetch_resumed_from_torn_writes(torture):
    await torture.crashed(half_way, torn)
    await all_end_well(torture, "a fetch resumed from torn writes")


async def test_a_fetch_that_was_killed_while_publishing(torture):
    await torture.crashed(while_publishing, killed)
    await all_end_well(torture, "a fetch that was killed while publishing")


async def test_a_fetch_of_replaced_objects(torture):
    """Two versions never meet: not even in the zeros and the old bytes that a power loss leaves."""
    await torture.crashed(half_way, killed)
    torture.marks = []  # what was safe is of no use any more
    torture.serve(OTHERS)
    await all_end_well(torture, "a fetch of replaced objects", wanted=OTHERS)


async def test_objects_that_are_replaced_while_the_power_is_off(torture):
    await all_end_well(torture, "a fetch before objects are replaced", replaced_by=OTHERS)


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_fetch_over_a_damaged_result(torture, is_there):
    """A file of it was cut, or removed."""
    files = dict((await torture.record()).after)
    whole = files.pop(f"{RESULT}/data.bin")
    cut = {f"{RESULT}/data.bin": whole[:1000]} if is_there else {}
    write_out(torture.root, {**files, **cut})
    await all_end_well(
        torture, f"a fetch over a result with a file {'cut' if is_there else 'removed'}"
    )


async def test_a_fetch_of_a_published_result(torture):
    """It writes to the state alone."""
    await torture.record()
    torture.marks = ["published"]
    await all_end_well(torture, "a fetch of a published result")


async def test_a_power_loss_after_a_kill(torture):
    """What was not synced by a process that was killed is not safe because the next one finds it.

    Of the kills, those are tried that come after a change of names.
    """
    first, total = await torture.record(), Tally()
    for killing in crashes(first, lambda _, last: [killed] if changes_names(last) else []):
        if killing is not None:
            torture.leave(killing)
            second = await torture.record(before=first.before.found_by_another(torture.root))
            tally = await torture.crash(second, lambda *_: [nothing_kept])
            tally.failures = [f"{killing}; {failure}" for failure in tally.failures]
            total.add(tally)
    torture.tell("fetches after every kill that came after a change of names", total)
    assert not total.failures, "\n".join(total.failures)


def changes_names(operation):
    kinds = (Kind.CREATE, Kind.MKDIR, Kind.RENAME, Kind.UNLINK)
    return operation is None or operation.kind in kinds


@pytest.mark.parametrize("without", SABOTAGE)
async def test_a_fetch_that_goes_without_a_sync_is_found_out(torture, without):
    """A test of the tests: each of the syncs is needed, and each is missed."""
    recorded = await torture.record(without=without)
    tally = await torture.crash(recorded, lambda *_: [nothing_kept])
    torture.tell(f"a fetch without {without}", tally)
    assert tally.failures


# Repairs


async def all_are_mended(torture, called, damaged, *, road="straight"):
    recorded = await torture.record(deed="repair", road=road)
    tally = await torture.crash_repair(recorded, every_loss, damaged)
    torture.tell(called, tally)
    assert tally.failures == []


@pytest.mark.parametrize("road", ["straight", "plain"])
async def test_a_repair(torture, road):
    await all_are_mended(torture, f"a repair, the {road} way", await torture.damage(), road=road)


async def test_a_repair_of_a_vcf_that_is_gone(torture):
    """It is new, and its index never older, whatever of the index's time is lost."""
    await all_are_mended(
        torture, "a repair of a VCF that is gone", await torture.damage(is_vcf_gone=True)
    )


@pytest.mark.parametrize("loss", [nothing_kept, torn, killed])
async def test_a_resumed_repair(torture, loss):
    """A second power loss, while the first is being mended."""
    damaged = await torture.damage()
    await torture.crashed(half_mended, loss, deed="repair")
    await all_are_mended(torture, "a resumed repair", damaged)


@pytest.mark.parametrize("loss", [nothing_kept, killed])
async def test_a_repair_that_was_stopped_while_a_file_was_replaced(torture, loss):
    damaged = await torture.damage()
    await torture.crashed(while_replacing, loss, deed="repair")
    await all_are_mended(torture, "a repair that was stopped while it replaced a file", damaged)


async def test_a_power_loss_after_a_repair_was_killed(torture):
    damaged, total = await torture.damage(), Tally()
    first = await torture.record(deed="repair")
    for killing in crashes(first, lambda _, last: [killed] if changes_names(last) else []):
        if killing is not None:
            torture.leave(killing)
            before = first.before.found_by_another(torture.root)
            second = await torture.record(deed="repair", before=before)
            tally = await torture.crash_repair(second, lambda *_: [nothing_kept], damaged)
            tally.failures = [f"{killing}; {failure}" for failure in tally.failures]
            total.add(tally)
    torture.tell("repairs after every kill that came after a change of names", total)
    assert not total.failures, "\n".join(total.failures)


@pytest.mark.parametrize("without", SABOTAGE_OF_REPAIRS)
async def test_a_repair_that_goes_without_a_sync_is_found_out(torture, without):
    damaged = await torture.damage()
    recorded = await torture.record(deed="repair", without=without)
    tally = await torture.crash_repair(recorded, lambda *_: [nothing_kept], damaged)
    torture.tell(f"a repair without {without}", tally)
    assert tally.failures
