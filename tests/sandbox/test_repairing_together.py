"""Two repairs of one result that no lock keeps apart, as on network disks: no byte is mixed.

Each works in a directory of its own, and only what it has proved takes a file's place.
"""

import asyncio
import fcntl

import pytest
from fetch_helpers import NOTES, Heard

from downloader.recheck import recheck
from downloader.repairing import repair
from downloader.retry import without_waiting
from downloader.sandbox import Fault

pytest_plugins = ["fetch_helpers"]

PLAIN = NOTES * 500
KEY = "run/notes.txt"


@pytest.fixture
def _locks_lie(monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)


@pytest.fixture
async def place(rig):
    """Return a published result of which a file without blocks is damaged."""
    task_id = rig.add({KEY: PLAIN})
    await rig.fetch(task_id)
    (rig.final(task_id) / "notes.txt").write_bytes(b"X" + PLAIN[1:])
    return rig.final(task_id)


async def mending(rig, place):
    with without_waiting():
        return await repair(
            await recheck(place, level="off"),
            api=rig.api,
            session=rig.session,
            options=rig.transfer,
            reporter=Heard(),
        )


@pytest.mark.usefixtures("_locks_lie")
@pytest.mark.parametrize("after", [1, len(PLAIN) // 2, len(PLAIN) - 1])
async def test_a_second_repair_takes_nothing_of_the_first_away(rig, place, after):
    """The first is held up while the second does all of its work, and goes on after that."""
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, covering=0, after=after)
    first = asyncio.ensure_future(mending(rig, place))
    await held.happened.wait()
    (second,) = await mending(rig, place)
    assert second.error is None
    assert (place / "notes.txt").read_bytes() == PLAIN
    held.release()
    await first
    assert (place / "notes.txt").read_bytes() == PLAIN


@pytest.mark.usefixtures("_locks_lie")
async def test_a_copy_that_is_not_whole_never_takes_a_files_place(rig, place):
    """The first one ends while the second is half way: it must not publish the second's copy."""
    one = rig.sandbox.store.inject(Fault.STALL, key=KEY, covering=0, after=len(PLAIN) - 1)
    first = asyncio.ensure_future(mending(rig, place))
    await one.happened.wait()
    other = rig.sandbox.store.inject(Fault.STALL, key=KEY, covering=0, after=100)
    second = asyncio.ensure_future(mending(rig, place))
    await other.happened.wait()
    one.release()
    await first
    assert (place / "notes.txt").read_bytes() in (PLAIN, b"X" + PLAIN[1:])
    other.release()
    await second
    assert (place / "notes.txt").read_bytes() == PLAIN
