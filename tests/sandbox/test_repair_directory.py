"""Repairs that no lock keeps apart, and links that are planted in their way: nothing is mixed.

Each works in a directory that bears its name, takes over what nobody can be at work on, and lets a
file be replaced by nothing but what it has proved.
"""

import contextlib
import fcntl
import os
import random
import stat

import pytest
from fetch_helpers import outcome_of
from test_security_paths import Moments, look_around, manifest_of

from downloader import repair_directory
from downloader.errors import DestinationTaken, DiskError
from downloader.placing import identity_in
from downloader.repair_directory import RepairDirectory, held_for_repair, told_of_leftovers
from downloader.replacing import PublishedFile
from downloader.transfer.part_file import PartFile
from state import Checkpoint, Segment, current_owner

WHOLE = {"a.txt": b"whole, and proved", "d/e/b.txt": b"this one, too"}
DAMAGED = {name: data.upper() for name, data in WHOLE.items()}
MANIFEST = manifest_of(WHOLE)
HALF = 5


@pytest.fixture
def _locks_lie(monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, operation: None)
    for name in ("fsync", "fdatasync"):  # a power loss is not the question here
        monkeypatch.setattr(os, name, lambda descriptor: None)


@pytest.fixture
def moments(monkeypatch):
    return Moments(monkeypatch)


def damaged_result(path):
    for name, data in DAMAGED.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def result(tmp_path):
    return damaged_result(tmp_path / "result")


def noted(file, come):
    segments = (Segment(start=0, stop=file.size, watermark=come),)
    return Checkpoint(etag=file.etag, size=file.size, segments=segments)


def steps(result, resumed=None):
    """Do to the disk what a repair does, one step at a time; hear of what an earlier one has left.

    Whoever ends it early interrupts it.
    """
    with held_for_repair(result) as root:
        place = RepairDirectory(root, result, MANIFEST)
        try:
            place.open()
            yield
            for file in MANIFEST.files:
                copy, data = place.copy_of(file), WHOLE[file.name]
                kept = copy.remembered()
                if kept is None:
                    with open(copy.make(), "wb") as target:  # noqa: PTH123 - it is open already
                        yield
                        published = PublishedFile(root, result, file.name)
                        published.copy_readable(target.fileno(), bool)
                elif resumed is not None:
                    resumed.append((file.name, kept.safe_bytes))
                yield
                with contextlib.closing(PartFile.open(copy.path)) as part:
                    part.reserve(file.size)
                    part.write(0, [data[:HALF]])
                    part.sync()
                    copy.remember(noted(file, HALF))
                    yield
                    part.write(HALF, [data[HALF:]])
                    part.sync()
                    identity = part.confirm(file.size)
                yield
                PublishedFile(root, result, file.name).replace_by(
                    copy.name, within=copy.folder, identity=identity, size=file.size
                )
                yield
                copy.remove()
        finally:
            place.close()


def files_in(result):
    return {
        path.relative_to(result).as_posix(): path.read_bytes()
        for path in result.rglob("*")
        if path.is_file()
    }


def repair_directories(result):
    return [path for path in result.iterdir() if path.name.startswith("bge-repair~")]


def insist_on_old_or_new(result):
    for name, data in WHOLE.items():
        assert (result / name).read_bytes() in (data, DAMAGED[name])


# Two at a time


@pytest.mark.usefixtures("_locks_lie")
@pytest.mark.thorough
def test_a_repair_that_is_overtaken_at_any_moment_spoils_nothing(moments, tmp_path):
    """The other one does all of its work between two things that this one asks of the disk."""
    moments.begin()
    outcome_of(steps(damaged_result(tmp_path / "dry")))
    assert moments.count > 50
    for moment in range(moments.count):
        place, quick = damaged_result(tmp_path / str(moment)), []

        def overtake(place=place, quick=quick):
            quick.append(outcome_of(steps(place)))

        moments.begin(moment, overtake)
        assert {outcome_of(steps(place)), *quick} == {None}, f"at moment {moment}"
        assert files_in(place) == WHOLE
        assert repair_directories(place) == []


@pytest.mark.usefixtures("_locks_lie")
@pytest.mark.parametrize("seed", range(40))
def test_repairs_whose_steps_alternate_at_random_spoil_nothing(result, seed):
    """Each is interrupted now and then, and another one goes on with what it has left."""
    chance = random.Random(seed)
    at_work = {number: steps(result) for number in range(3)}
    while at_work:
        number = chance.choice([*at_work])
        if chance.random() < 0.1:
            at_work[number].close()
            at_work[number] = steps(result)
        elif next(at_work[number], "end") == "end":
            del at_work[number]
        insist_on_old_or_new(result)
    assert outcome_of(steps(result)) is None
    assert files_in(result) == WHOLE
    assert repair_directories(result) == []


def test_where_locks_are_honest_the_second_one_keeps_its_hands_off(result):
    first = steps(result)
    next(first)
    before = look_around(result)
    error = outcome_of(steps(result))
    assert isinstance(error, DestinationTaken)
    assert "is repairing" in str(error)
    assert look_around(result) == before
    assert outcome_of(first) is None


def test_a_copy_that_was_changed_since_it_was_proved_replaces_nothing(result):
    """By whatever: another file has its name, or it is shorter."""
    file = MANIFEST.files[0]
    for is_other in (True, False):
        with held_for_repair(result) as root:
            place = RepairDirectory(root, result, MANIFEST)
            place.open()
            copy = place.copy_of(file)
            os.close(copy.make())
            copy.path.write_bytes(WHOLE[file.name])
            identity = identity_in(copy.path.stat())
            if is_other:
                copy.path.rename(copy.path.with_name("aside"))
                copy.path.write_bytes(WHOLE[file.name])
            else:
                os.truncate(copy.path, HALF)
            with pytest.raises(DestinationTaken, match="was changed by another process"):
                PublishedFile(root, result, file.name).replace_by(
                    copy.name, within=copy.folder, identity=identity, size=file.size
                )
            (copy.path.with_name("aside")).unlink(missing_ok=True)
            place.close()
        assert files_in(result) == DAMAGED


# What was left


def interrupted_at(result, step):
    doing = steps(result)
    for _ in range(step):
        next(doing)
    doing.close()


HALF_WAY = 4  # steps; by then half of the first file was noted


def killed(result, owner):
    """Leave what a process of that name leaves that is killed half way."""
    before = repair_directories(result)
    interrupted_at(result, HALF_WAY)
    (left,) = set(repair_directories(result)) - set(before)
    name = f"bge-repair~{owner.replace('/', '~')}.partial"
    return left.rename(left.with_name(name))


def test_what_an_interrupted_repair_has_left_is_gone_on_with(result):
    interrupted_at(result, HALF_WAY)
    assert files_in(result).keys() > DAMAGED.keys()
    (left,) = told_of_leftovers(result)
    assert "`verify --repair` goes on there" in left
    resumed = []
    assert outcome_of(steps(result, resumed)) is None
    assert resumed == [("a.txt", HALF)]
    assert files_in(result) == WHOLE
    assert repair_directories(result) == []


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_copy_of_which_nothing_has_come_is_not_left(result, step):
    interrupted_at(result, step)
    assert files_in(result) == DAMAGED
    assert repair_directories(result) == []


def test_what_the_dead_have_left_is_gone_on_with(result, start_python):
    dead = start_python("from state import current_owner; print(current_owner())")
    owner = dead.communicate()[0].strip()
    killed(result, owner)
    (left,) = told_of_leftovers(result)
    assert "goes on there" in left
    resumed = []
    assert outcome_of(steps(result, resumed)) is None
    assert resumed == [("a.txt", HALF)]
    assert repair_directories(result) == []


@pytest.mark.parametrize("owner", ["myself", "another/host///1//x", "what nobody knows"])
def test_where_somebody_may_be_at_work_nothing_is_touched_and_that_is_told(result, owner):
    left = killed(result, current_owner() if owner == "myself" else owner)
    before = look_around(left)
    resumed = []
    assert outcome_of(steps(result, resumed)) is None
    assert resumed == []
    assert look_around(left) == before
    (told,) = told_of_leftovers(result)
    assert "may be repairing the result; if it is not, remove this directory" in told


def test_what_others_could_have_written_to_is_removed_and_not_believed(result):
    """They may hold a file open there, and write to it once it is published."""
    interrupted_at(result, HALF_WAY)
    (left,) = repair_directories(result)
    left.chmod(0o770)
    (left / "of a stranger").touch()
    resumed = []
    assert outcome_of(steps(result, resumed)) is None
    assert resumed == []
    (left,) = repair_directories(result)
    assert [path.name for path in left.iterdir()] == ["of a stranger"]


def test_of_several_one_is_gone_on_with(result):
    for _ in range(2):
        killed(result, current_owner())
    for number, left in enumerate(repair_directories(result)):
        left.rename(left.with_name(f"bge-repair~{number:08x}.partial"))
    resumed = []
    assert outcome_of(steps(result, resumed)) is None
    assert resumed == [("a.txt", HALF)]
    assert repair_directories(result) == []


def test_what_was_left_of_files_that_are_whole_by_now_goes(result):
    interrupted_at(result, HALF_WAY)
    with held_for_repair(result) as root:
        place = RepairDirectory(root, result, MANIFEST)
        place.take_over(whole={"a.txt"})
        place.close()
    assert repair_directories(result) == []


def test_a_copy_of_another_version_does_not_count(result):
    interrupted_at(result, HALF_WAY)
    with held_for_repair(result) as root:
        place = RepairDirectory(root, result, manifest_of({**WHOLE, "a.txt": b"another version"}))
        place.open()
        place.close()
    assert repair_directories(result) == []


NO_NOTES = [
    *(b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, b'{"etag": "E"}'),
    b'{"etag": 1, "size": 2, "segments": []}',
    b'{"etag": "E", "size": 2, "segments": [[0, 1]]}',
    b'{"etag": "E", "size": 2, "segments": [[0, 2, -1]]}',
]


@pytest.mark.parametrize("note", NO_NOTES, ids=range(len(NO_NOTES)))
def test_a_note_that_makes_no_sense_is_none(result, note):
    interrupted_at(result, HALF_WAY)
    (left,) = repair_directories(result)
    next(left.glob("*.json")).write_bytes(note)
    resumed = []
    assert outcome_of(steps(result, resumed)) is None
    assert resumed == []
    assert files_in(result) == WHOLE


def test_a_folder_of_the_result_is_no_leftover_whatever_its_name_is(tmp_path):
    content = {"bge-repair~0123abcd.partial/a.txt": b"of the result"}
    result, manifest = tmp_path / "result", manifest_of(content)
    (result / "bge-repair~0123abcd.partial").mkdir(parents=True)
    (result / next(iter(content))).write_bytes(b"of the result")
    with held_for_repair(result) as root:
        place = RepairDirectory(root, result, manifest)
        place.open()
        place.close()
    assert files_in(result) == content


def test_nobody_else_can_read_a_copy(result):
    """The file may be for its owner alone, and so is what it becomes."""
    (result / "a.txt").chmod(0o600)
    doing = steps(result)
    next(doing)
    (place,) = repair_directories(result)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    outcome_of(doing)
    assert stat.S_IMODE((result / "a.txt").stat().st_mode) == 0o600


def test_no_bit_that_lends_rights_is_taken_over(result):
    (result / "a.txt").chmod(0o6755)
    outcome_of(steps(result))
    assert stat.S_IMODE((result / "a.txt").stat().st_mode) == 0o755


# Links


PLACES = {
    "the result": ("", ""),
    "a folder": ("d", "d"),
    "a folder in a folder": ("d/e", "d/e"),
    "a file": ("a.txt", "precious"),
    "a file in a folder": ("d/e/b.txt", "precious"),
    "the repair's directory": ("bge-repair~*", ""),
    "a copy": ("bge-repair~*/*.part", "precious"),
    "a note": ("bge-repair~*/*.json", "precious"),
    "a new note": ("bge-repair~*/*.new", "precious"),
}


@pytest.fixture
def outside(tmp_path):
    victim = tmp_path / "outside"
    keys = [repair_directory._key(file) for file in MANIFEST.files]
    copies = [f"{key}{suffix}" for key in keys for suffix in (".part", ".json", ".new")]
    for name in [*WHOLE, *copies, "precious"]:
        (victim / name).parent.mkdir(parents=True, exist_ok=True)
        (victim / name).write_text("precious")
    return victim


def planted(result, stash, pattern, target):
    """Return what puts a link in the place, and what was there out of the way."""

    def plant():
        found = sorted(result.glob(pattern)) if pattern else [result]
        if found:
            found[0].rename(stash / "taken")
            found[0].symlink_to(target)

    return plant


@pytest.mark.usefixtures("_locks_lie")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.thorough
def test_a_link_that_is_planted_at_any_moment_leads_no_repair_out(
    moments, outside, tmp_path, place
):
    pattern, target = PLACES[place]
    before = look_around(outside)
    mended = 0
    moments.begin()
    outcome_of(steps(damaged_result(tmp_path / "dry")))
    for moment in range(moments.count):
        stash = tmp_path / f"stash{moment}"
        stash.mkdir()
        result = damaged_result(tmp_path / f"result{moment}")
        moments.begin(moment, planted(result, stash, pattern, outside / target))
        mended += outcome_of(steps(result)) is None
        moments.begin()
        outcome_of(steps(result))
        assert look_around(outside) == before, f"at moment {moment}"
    assert mended  # some of them come too late


@pytest.mark.parametrize("place", ["a folder", "a file"])
def test_a_link_that_was_there_is_told_and_not_followed(result, outside, place):
    where, target = PLACES[place]
    (result / where).rename(result.with_name("taken"))
    (result / where).symlink_to(outside / target)
    before = look_around(outside)
    error = outcome_of(steps(result))
    assert isinstance(error, DiskError)
    assert "is no ordinary file, or a link is in its path; move that away" in str(error)
    assert look_around(outside) == before


def test_links_above_the_result_are_refused_when_they_come_later(result, tmp_path):
    (tmp_path / "link").symlink_to(result)
    with pytest.raises(DiskError), held_for_repair(tmp_path / "link"):
        pass
