"""The service and the disk: without room it waits, with everything kept, and goes on by itself."""

import os
import subprocess
from itertools import pairwise

import pytest
from fetch_helpers import NOTES

from downloader.service.rooms import MORE_BYTES, Reopened, Rooms
from state import Phase

pytest_plugins = ["service_helpers"]

MIB = 1024 * 1024
GIB = 1024 * MIB


class Disk:
    """As much free space as a test says."""

    def __init__(self, free):
        self.free = free

    def __call__(self, dest):
        return self.free


@pytest.fixture
def disk(rig):
    disk = Disk(100 * GIB)
    rig.equipment.rooms._free = disk
    rig.equipment.rooms._clock = lambda: rig.clock().timestamp()
    return disk


@pytest.fixture
def small_disk(tmp_path):
    """A disk of a few MiB that really is full when it is full."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remount(place, how):
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)


async def phases(rig, tasks):
    return [(await rig.task(task_id)).phase for task_id in tasks]


@pytest.mark.parametrize("service_settings", [{"min_free_space": "1G"}])
class TestTheFloor:
    async def test_below_it_nothing_begins_and_everything_goes_on_when_space_returns(
        self, rig, disk, caplog
    ):
        disk.free = GIB - 1
        tasks = [await rig.add() for _ in range(3)]
        await rig.rest()
        assert await phases(rig, tasks) == [Phase.PAUSED] * 3
        assert "no room" in rig.service.condition
        assert "1.0 GiB are to stay so" in (await rig.task(tasks[0])).message
        assert sum(record.message == "Paused" for record in caplog.records) == 1
        assert rig.sandbox.store.requests == []
        await rig.live(120, step=30)
        assert await phases(rig, tasks) == [Phase.PAUSED] * 3
        disk.free = 2 * GIB
        await rig.live(10, step=5)
        assert await phases(rig, tasks) == [Phase.PUBLISHED] * 3
        assert rig.service.condition is None

    async def test_a_pause_is_no_attempt_and_history_tells_it_once(self, rig, disk):
        disk.free = 0
        task_id = await rig.add()
        await rig.live(3600, step=300)
        task = await rig.task(task_id)
        assert (task.phase, task.tries) == (Phase.PAUSED, 0)
        assert (await rig.kinds(task_id)).count("paused") == 1


class TestAFullDisk:
    async def test_what_came_is_kept_and_goes_on_once_there_is_room(self, rig, small_disk):
        filler = small_disk / "filler"
        filler.write_bytes(b"x" * (4 * MIB - 65536))
        data = os.urandom(MIB)
        task_id = await rig.add({"a/b.bin": data}, dest=small_disk)
        await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.tries) == (Phase.PAUSED, 0)
        assert "bytes free" in task.message
        assert not (small_disk / task_id).exists()
        filler.unlink()
        rig.equipment.rooms._clock = lambda: rig.clock().timestamp()
        await rig.live(700, step=60)
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED
        assert (small_disk / task_id / "b.bin").read_bytes() == data

    async def test_other_destinations_are_not_concerned(self, rig, small_disk):
        (small_disk / "filler").write_bytes(b"x" * (4 * MIB - 65536))
        stuck = await rig.add({"a/b.bin": os.urandom(MIB)}, dest=small_disk)
        free = await rig.add()
        await rig.rest()
        assert await phases(rig, [stuck, free]) == [Phase.PAUSED, Phase.PUBLISHED]

    async def test_a_disk_that_became_read_only_is_waited_for(self, rig, small_disk):
        remount(small_disk, "ro")
        task_id = await rig.add({"a/b.bin": NOTES}, dest=small_disk)
        await rig.rest()
        task = await rig.task(task_id)
        assert (task.phase, task.tries) == (Phase.PAUSED, 0)
        assert "Read-only" in task.message
        assert "no room" in rig.service.condition
        remount(small_disk, "rw")
        rig.equipment.rooms._clock = lambda: rig.clock().timestamp()
        await rig.live(60, step=5)
        assert (await rig.task(task_id)).phase is Phase.PUBLISHED
        assert rig.service.condition is None


class TestRooms:
    @pytest.fixture
    def clock(self):
        return Seconds()

    async def test_a_refusal_is_tried_by_one_task_at_a_time_and_ever_more_seldom(self, clock):
        """A quota is used up: statvfs tells of much space, and yet there is none."""
        rooms = Rooms(0, clock=clock, free=lambda _: 100 * GIB)
        await rooms.refused("/r", "quota", is_certain=True)
        probes = []
        for _ in range(600):
            clock.now += 2
            for reopened in await rooms.look():
                assert (reopened.dest, reopened.limit) == ("/r", 1)
                assert await rooms.why_not("/r") is None  # the one
                assert await rooms.why_not("/r") == "quota"  # and no other
                await rooms.refused("/r", "quota", is_certain=True)
                probes.append(clock.now)
        pauses = [later - earlier for earlier, later in pairwise(probes)]
        assert pauses == sorted(pauses)
        assert 290 <= pauses[-1] <= 302
        rooms.proved("/r")
        assert await rooms.look() == [Reopened(dest="/r", limit=None)]
        assert await rooms.why_not("/r") is None

    async def test_a_file_that_comes_to_the_disk_during_a_look_is_no_fault(self, clock):
        rooms = Rooms(0, clock=clock, free=lambda dest: rooms.proved("/b") or GIB)
        for dest in ("/a", "/b"):
            await rooms.refused(dest, "quota", is_certain=True)
        clock.now += 5
        await rooms.look()
        assert await rooms.why_not("/b") is None

    async def test_a_task_that_is_too_large_keeps_no_smaller_one_out(self, clock):
        disk = Disk(10 * GIB)
        rooms = Rooms(GIB, clock=clock, free=disk)
        await rooms.refused("/r", "100 GiB needed", is_certain=False)
        assert await rooms.why_not("/r") is None
        clock.now += 5
        assert await rooms.look() == []
        disk.free += MORE_BYTES
        clock.now += 5
        [reopened] = await rooms.look()
        assert (reopened.dest, reopened.limit) == ("/r", None)


class Seconds:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


async def test_a_transfer_that_runs_into_a_full_disk_pauses(rig, small_disk, monkeypatch):
    """The blocks were not reserved, as on some network disks."""
    monkeypatch.setattr("downloader.transfer.part_file._reserve_blocks", lambda *_: False)
    monkeypatch.setattr("downloader.transfer.part_file.PartFile._check_space", lambda *_: None)
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (3 * MIB))
    data = os.urandom(2 * MIB)
    task_id = await rig.add({"a/b.bin": data}, dest=small_disk)
    await rig.rest()
    task = await rig.task(task_id)
    assert (task.phase, task.tries) == (Phase.PAUSED, 0)
    filler.unlink()
    rig.equipment.rooms._clock = lambda: rig.clock().timestamp()
    await rig.live(60, step=5)
    assert (small_disk / task_id / "b.bin").read_bytes() == data
