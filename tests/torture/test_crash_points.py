"""A fetch that is crashed after any operation goes on to the right bytes, and loses nothing safe.

Every operation on files, names and the state's database is recorded. For a crash after each of
them the disk is made anew, as a power loss or `kill -9` may leave it, and a fresh fetch must end
well from there: with the store's bytes, with nothing published in between that is not whole, and
without fetching again what the program had been told is safe.

Here some of the disks are tried; `make torture` tries all of them, in test_every_crash_point.py.
"""

import pytest

from torture.losses import ALL_LOSSES, nothing_kept, torn
from torture.recording import Kind
from torture.scenes import half_way


def some_losses(every):
    """Choose each loss in turn at every so-many-th point; and more of them around renames."""

    def choose(number, operation):
        if operation is not None and operation.kind is Kind.RENAME:
            return [nothing_kept, torn, ALL_LOSSES[number % len(ALL_LOSSES)]]
        return [ALL_LOSSES[number // every % len(ALL_LOSSES)]] if number % every == 0 else []

    return choose


async def test_a_first_fetch_survives_crashes(torture):
    tally = await torture.crash(await torture.record(), some_losses(30))
    torture.tell("a first fetch, here and there", tally)
    assert tally.operations > 200, "less was recorded than a fetch must do"
    assert tally.failures == []


@pytest.mark.thorough
async def test_a_resumed_fetch_survives_crashes(torture):
    """A second power loss, while the first is being mended."""
    await torture.crashed(half_way, nothing_kept)
    tally = await torture.crash(await torture.record(), some_losses(40))
    torture.tell("a resumed fetch, here and there", tally)
    assert tally.failures == []


@pytest.mark.thorough
async def test_a_repair_survives_crashes(torture):
    """Each published file is what it was, or whole, and no copy stays in the way."""
    damaged = await torture.damage()
    recorded = await torture.record(deed="repair")
    tally = await torture.crash_repair(recorded, some_losses(30), damaged)
    torture.tell("a repair, here and there", tally)
    assert tally.operations > 100, "less was recorded than a repair must do"
    assert tally.failures == []
