"""Where locks lie, as on NFS and Lustre, bytes are never mixed and no published result is lost.

Two states that know nothing of each other bring one task to one destination, and every lock is
granted to both. The objects have no checksum in the store: nothing but the design keeps them apart.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import random
from datetime import UTC, datetime, timedelta

import pytest
from fetch_helpers import NOTES, Heard, outcome_of
from test_security_paths import Moments, manifest_of

from downloader import holding
from downloader.claiming import locked
from downloader.errors import DestinationTaken, DownloaderError
from downloader.publish import ResultDirectory
from downloader.sandbox import Fault
from downloader.transfer.part_file import PartFile
from state import AsyncStore, Phase

pytest_plugins = ["fetch_helpers"]

ONE, OTHER = "1" * 16, "2" * 16  # the identities of two states
OLD = {"a": b"old bytes", "d/b": b"of one version"}
NEW = {"a": b"new bytes", "d/b": b"of another one"}
KEY = "run/data.bin"
SIZE = 3 * len(NOTES * 50)


@pytest.fixture
def honest():
    """Give the lock that the system has."""
    return fcntl.flock


@pytest.fixture(autouse=True)
def _locks_lie(monkeypatch, honest):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    for name in ("fsync", "fdatasync"):  # a power loss is not the question here
        monkeypatch.setattr(os, name, lambda descriptor: None)


def steps(place, content, identity):
    """Do to the disk what a fetch does, one step at a time."""
    place.check_writable()
    with place.held(identity):
        yield
        if place.published() is not None:
            return
        yield
        paths = place.part_paths(content)
        yield
        identities = {}
        for name, data in content.items():
            with contextlib.closing(PartFile.open(paths[name], anew=True)) as part:
                yield
                part.reserve(len(data))
                part.write(0, [data[:4]])
                yield
                part.write(4, [data[4:]])
                part.sync()
                identities[name] = part.confirm(len(data))
            yield
        place.publish(manifest_of(content), identity_of=identities.__getitem__)


def insist_on_a_whole_result(place, *contents):
    manifest = json.loads((place.final / "bge-manifest.json").read_text())
    names = [file["name"] for file in manifest["files"]]
    assert {name: (place.final / name).read_bytes() for name in names} in contents
    everything = {path.name for path in place.final.rglob("*") if path.is_file()}
    assert everything == {"bge-manifest.json", *(name.rpartition("/")[2] for name in names)}


@pytest.fixture
def moments(monkeypatch):
    return Moments(monkeypatch)


@pytest.mark.parametrize("other", [OLD, NEW], ids=["the same bytes", "another version"])
@pytest.mark.thorough
def test_a_fetch_that_is_overtaken_at_any_moment_spoils_nothing(moments, tmp_path, other):
    """The other one does all of its work between two things that this one asks of the disk."""
    place = ResultDirectory(tmp_path / "dry", "t-1")
    moments.begin()
    outcome_of(steps(place, OLD, ONE))
    lost = 0
    for moment in range(moments.count):
        dest, quick = tmp_path / str(moment), []
        slow_place, quick_place = (ResultDirectory(dest, "t-1") for _ in range(2))

        def overtake(place=quick_place, outcomes=quick):
            outcomes.append(outcome_of(steps(place, other, OTHER)))

        moments.begin(moment, overtake)
        slow = outcome_of(steps(slow_place, OLD, ONE))
        assert quick == [None], f"at moment {moment}"
        insist_on_a_whole_result(slow_place, OLD, other)
        if slow is not None:
            assert "appeared while the task was being fetched" in str(slow)
            lost += 1
    assert (lost == 0) == (other == OLD)  # who finds his own bytes published has nothing to say


@pytest.mark.parametrize("seed", range(60))
def test_two_fetches_whose_steps_alternate_at_random_spoil_nothing(tmp_path, seed):
    chance = random.Random(seed)
    places = [ResultDirectory(tmp_path / "results", "t-1") for _ in range(2)]
    contents = [OLD, chance.choice([OLD, NEW])]
    at_work = {
        number: steps(place, content, identity)
        for number, place, content, identity in zip(
            range(2), places, contents, (ONE, OTHER), strict=True
        )
    }
    errors = {}
    while at_work:
        number = chance.choice([*at_work])
        try:
            done = next(at_work[number], "end") == "end"
        except DownloaderError as error:
            errors[number], done = error, True
        if done:
            del at_work[number]
    assert len(errors) < 2, errors
    insist_on_a_whole_result(places[0], *contents)
    assert errors == {} or contents == [OLD, NEW]


def test_a_state_that_finds_anothers_directory_works_beside_it(tmp_path):
    one, other = (ResultDirectory(tmp_path / "results", "t-1") for _ in range(2))
    one.dest.mkdir()
    with one.held(ONE), other.held(OTHER):
        assert one.partial.name == "t-1.partial"
        assert other.partial.name == f"t-1~{OTHER}.partial"
        for place, data in ((one, b"one"), (other, b"other")):
            place.part_path("a").write_bytes(data)
        assert one.part_path("a").read_bytes() == b"one"


def test_a_state_always_finds_its_own_directory_again(tmp_path):
    place = ResultDirectory(tmp_path / "results", "t-1")
    place.dest.mkdir()
    for identity in (ONE, OTHER, ONE, OTHER):
        with place.held(identity):
            part = place.part_path("a")
            assert not part.exists() or part.read_text() == identity
            part.write_text(identity)
    # Also when the first one has gone meanwhile: a checkpoint speaks of one directory.
    (tmp_path / "results/t-1.partial/a.part").unlink()
    (tmp_path / "results/t-1.partial/bge-claim.part").unlink()
    (tmp_path / "results/t-1.partial").rmdir()
    with place.held(OTHER):
        assert place.part_path("a").read_text() == OTHER


@pytest.mark.parametrize("identity", [ONE, OTHER])
def test_a_publication_that_fails_at_its_end_loses_no_byte(tmp_path, identity):
    """Somebody has put a folder in the result's place; the next run goes on there."""
    place = ResultDirectory(tmp_path / "results", "t-1")
    place.dest.mkdir()
    with place.held(ONE):
        pass
    doing = steps(place, OLD, identity)
    while not (place.partial / "d/b.part").exists():
        next(doing)
    place.final.mkdir()
    assert "appeared while" in str(outcome_of(doing))
    place.final.rmdir()
    with place.held(identity):
        paths = place.part_paths(OLD)
        assert {name: path.read_bytes() for name, path in paths.items()} == OLD
        place.publish(manifest_of(OLD))
    insist_on_a_whole_result(place, OLD)


@pytest.mark.parametrize("claim", [b"", b"2222", b"\xff", ONE.encode() + b"\n"])
def test_half_a_claim_is_anothers(tmp_path, claim):
    place = ResultDirectory(tmp_path / "results", "t-1")
    place.partial.mkdir(parents=True)
    (place.partial / "bge-claim.part").write_bytes(claim)
    with place.held(ONE):
        assert place.partial.name == f"t-1~{ONE}.partial"


@pytest.mark.parametrize("claim", [b"", b"1"])
def test_where_locks_are_honest_half_a_claim_is_nobodys(tmp_path, monkeypatch, honest, claim):
    """Whoever began it was killed: its lock has gone with it."""
    monkeypatch.setattr(fcntl, "flock", honest)
    place = ResultDirectory(tmp_path / "results", "t-1")
    place.partial.mkdir(parents=True)
    (place.partial / "bge-claim.part").write_bytes(claim)
    with place.held(ONE):
        assert place.partial.name == "t-1.partial"
        assert (place.partial / "bge-claim.part").read_text() == ONE


@pytest.mark.parametrize("last", [ONE, OTHER])
def test_where_locks_are_honest_what_another_state_has_left_goes_with_the_publication(
    tmp_path, monkeypatch, honest, last
):
    """As after a state was lost: its bytes would lie there for ever. A stranger's file stays."""
    monkeypatch.setattr(fcntl, "flock", honest)
    place = ResultDirectory(tmp_path / "results", "t-1")
    place.dest.mkdir()
    for identity in (ONE, OTHER):
        with place.held(identity):
            place.part_path("d/x").write_text("left")
    assert outcome_of(steps(place, OLD, last)) is None
    assert [path.name for path in place.dest.iterdir()] == ["t-1"]
    insist_on_a_whole_result(place, OLD)


def test_what_a_stranger_or_somebody_at_work_has_there_stays(tmp_path, monkeypatch, honest):
    monkeypatch.setattr(fcntl, "flock", honest)
    one, other, third = (ResultDirectory(tmp_path / "results", "t-1") for _ in range(3))
    one.dest.mkdir()
    with one.held(ONE):
        (one.partial / "notes.txt").write_text("mine")
        one.part_path("a").write_text("left")
    with other.held(OTHER):
        pass
    with locked(other.partial):
        other.part_path("a").write_text("at work")
        assert outcome_of(steps(third, OLD, "3" * 16)) is None
        assert other.part_path("a").read_text() == "at work"
    assert [path.name for path in one.partial.iterdir()] == ["notes.txt"]


def test_what_every_state_has_received_is_deleted_when_that_is_wanted(tmp_path):
    place = ResultDirectory(tmp_path / "results", "t-1")
    place.dest.mkdir()
    (place.dest / "t-10.partial").mkdir()
    for identity in (ONE, OTHER):
        with place.held(identity):
            place.part_path("d/a").write_text("x")
    place.remove_partial()
    assert [path.name for path in place.dest.iterdir()] == ["t-10.partial"]


def test_whoever_begins_while_another_publishes_keeps_what_it_has(tmp_path, honest, monkeypatch):
    """The publisher's own directory has another name by then; the old one is free to be taken."""
    monkeypatch.setattr(fcntl, "flock", honest)
    one, other = (ResultDirectory(tmp_path / "results", "t-1") for _ in range(2))
    with contextlib.ExitStack() as stack:
        rename = one._rename

        def renamed_behind_another(name, new):
            if new == "t-1":
                stack.enter_context(other.held(OTHER))
                other.part_path("a").write_text("at work")
            rename(name, new)

        one._rename = renamed_behind_another
        assert outcome_of(steps(one, OLD, ONE)) is None
        assert other.part_path("a").read_text() == "at work"


def test_where_the_destination_is_gone_nothing_is_there_to_be_deleted(tmp_path):
    ResultDirectory(tmp_path / "gone", "t-1").remove_partial()


def test_an_empty_directory_goes_with_its_claim(tmp_path):
    place = ResultDirectory(tmp_path / "results", "t-1")
    place.dest.mkdir()
    for identity in (ONE, OTHER):
        with place.held(identity):
            place.remove_if_empty()
    assert list(place.dest.iterdir()) == []


def test_a_result_that_another_has_just_renewed_is_not_set_aside(tmp_path):
    """Both found it damaged; the slower one would take the new one away."""
    slow, quick = (ResultDirectory(tmp_path / "results", "t-1") for _ in range(2))
    outcome_of(steps(quick, OLD, ONE))
    (quick.final / "a").write_bytes(b"short")
    assert slow.missing_or_short(slow.published()) == ["a"]
    assert quick.missing_or_short(quick.published()) == ["a"]
    quick.set_aside()
    assert outcome_of(steps(quick, OLD, ONE)) is None
    with pytest.raises(DestinationTaken, match="has just put a new result"):
        slow.set_aside()
    insist_on_a_whole_result(slow, OLD)


# Through whole fetches


@pytest.fixture
async def stranger(rig):
    async with await AsyncStore.open(rig.directory / "other.db") as store:
        yield store


def body(number):
    """Return bytes that tell at every place which version they are of."""
    return (f"version {number:03}\n" * (SIZE // 12))[:SIZE].encode()


async def test_a_checkpoint_never_speaks_of_another_states_file(rig, stranger):
    """No checksum would tell: the segment that was here is a hole in the other state's file."""
    rig.sandbox.store.put(KEY, body(1), crc=False)
    task_id = rig.sandbox.add_task(
        result=[rig.sandbox.store.object_url(KEY)], states=("SUCCESS",), task_id="t-1"
    )
    for store, after in ((rig.store, 100_000), (stranger, 50_000)):
        rig.sandbox.store.inject(Fault.STALL, key=KEY, after=after)
        heard = Heard()
        running = asyncio.ensure_future(rig.fetch(task_id, store=store, reporter=heard))
        while sum(count for _, count in heard.of("received")) < after:
            await heard.hears("received")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        rig.sandbox.store.clear_faults()
    report = await rig.fetch(task_id)
    assert rig.published(task_id) == {"data.bin": body(1)}
    assert report.resumed_bytes > 0


@pytest.mark.parametrize("seed", range(8))
async def test_two_states_at_once_publish_one_whole_version(rig, stranger, monkeypatch, seed):
    """Each is held up now and then, and cancelled and begun again; the object is replaced twice."""
    chance = random.Random(seed)
    rig.sandbox.store.put(KEY, body(0), crc=False)
    task_id = rig.sandbox.add_task(
        result=[rig.sandbox.store.object_url(KEY)], states=("SUCCESS",), task_id="t-1"
    )

    async def keep_trying(store):
        outcomes = []
        for is_last in (False, False, True):
            after = chance.randrange(1, SIZE)
            held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=after)
            running = asyncio.ensure_future(rig.fetch(task_id, store=store, reporter=Heard()))
            happened = asyncio.ensure_future(held.happened.wait())
            await asyncio.wait([running, happened], return_when=asyncio.FIRST_COMPLETED)
            happened.cancel()
            if chance.random() < 0.5:
                rig.sandbox.store.replace(KEY, body(chance.randrange(2)))
            held.release()
            if not is_last and chance.random() < 0.5:
                running.cancel()
            outcomes += await asyncio.gather(running, return_exceptions=True)
        return outcomes

    outcomes = await asyncio.gather(keep_trying(rig.store), keep_trying(stranger))
    rig.sandbox.store.clear_faults()
    for last in (mine[-1] for mine in outcomes):
        assert not isinstance(last, BaseException) or "appeared while" in str(last)
    assert rig.published(task_id)["data.bin"] in (body(0), body(1))
    assert (await rig.fetch(task_id)).already_published
    assert (await rig.fetch(task_id, store=stranger)).already_published


# One state, two hosts whose clocks differ


def clock_that_is_off(minutes):
    return lambda: datetime.now(UTC) + timedelta(minutes=minutes)


@pytest.mark.parametrize("minutes", [5, -5])
@pytest.mark.thorough
async def test_hosts_whose_clocks_differ_may_take_a_task_over_and_mix_nothing(
    rig, monkeypatch, minutes
):
    """A lease ends by the clock. Who finds that his is another's stops, and says so."""
    monkeypatch.setattr(holding, "HEARTBEAT_SECONDS", 0.01)
    rig.sandbox.store.put(KEY, body(0), crc=False)
    task_id = rig.sandbox.add_task(
        result=[rig.sandbox.store.object_url(KEY)], states=("SUCCESS",), task_id="t-1"
    )
    held = rig.sandbox.store.inject(Fault.STALL, key=KEY, after=50_000)
    first = asyncio.ensure_future(rig.fetch(task_id))
    await held.happened.wait()
    clock = clock_that_is_off(minutes)
    async with await AsyncStore.open(rig.state_path, clock=clock) as elsewhere:
        heard = Heard()
        waits = rig.sandbox.store.inject(Fault.HANG, key=KEY)
        second = asyncio.ensure_future(rig.fetch(task_id, store=elsewhere, reporter=heard))
        if minutes > 0:  # the lease has ended, as that host sees it
            with pytest.raises(DestinationTaken, match="has taken over task"):
                await first
            waits.release()
            assert not (await second).already_published
        else:
            await heard.hears("note")
            held.release()
            assert not (await first).already_published
            assert (await second).already_published
    assert rig.published(task_id) == {"data.bin": body(0)}
    assert (await rig.task(task_id)).phase is Phase.PUBLISHED
