"""Where everybody may write, a directory is believed only if its owner is one whom we trust."""

import contextlib
import ctypes
import os

import pytest
from test_publish import CONTENT, MANIFEST, arrive, published_content

from downloader.errors import DestinationTaken
from downloader.publish import ResultDirectory

STRANGER = 65534
OWNER = 54321  # of a destination: a user of his own
EVERYBODYS = [0o1777, 0o777, 0o2777]
NOT_EVERYBODYS = [0o755, 0o775, 0o2775, 0o1775]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give a directory to another user"
)


@pytest.fixture
def place(open_directory):
    return ResultDirectory(open_directory, "t-1")


def given_to(uid, directory):
    """Let a directory, with all that is in it, be another user's."""
    for path in (directory, *directory.rglob("*")):
        os.lchown(path, uid, -1)


def plant_result(place, uid=STRANGER):
    place.final.mkdir()
    for name, data in CONTENT.items():
        (place.final / name).parent.mkdir(exist_ok=True)
        (place.final / name).write_bytes(data)
    (place.final / "bge-manifest.json").write_text(MANIFEST.dumps(), encoding="utf-8")
    given_to(uid, place.final)


def plant_partial(place, uid=STRANGER):
    place.partial.mkdir()
    place.partial.chmod(0o777)
    given_to(uid, place.partial)


@contextlib.contextmanager
def squashed():
    """Let what root does to files be done as nobody, as a server of NFS does; root stays root."""
    libc = ctypes.CDLL(None)
    libc.setfsuid(STRANGER)
    try:
        yield
    finally:
        libc.setfsuid(0)


# What is not believed


@pytest.mark.parametrize("mode", EVERYBODYS)
def test_a_result_that_a_stranger_has_planted_is_not_taken_for_a_published_one(place, mode):
    """`fetch` said "Already published" of four bytes, and did not ask the platform."""
    place.dest.chmod(mode)
    plant_result(place)
    with pytest.raises(DestinationTaken, match=r"another user \(uid 65534\), and everybody may"):
        place.published()


@pytest.mark.parametrize("mode", EVERYBODYS)
def test_nothing_is_fetched_into_a_directory_of_a_strangers(place, mode):
    """It was filled and published, and its owner could change every file in it afterwards."""
    place.dest.chmod(mode)
    plant_partial(place)
    with (
        pytest.raises(DestinationTaken, match="move it away or choose another --dest"),
        place.held(),
    ):
        pytest.fail("it is held")
    assert not [*place.partial.iterdir()]


def test_another_states_directory_that_a_stranger_has_planted_is_refused_too(place):
    own = place.dest / "t-1~me.partial"
    own.mkdir()
    given_to(STRANGER, own)
    with (
        pytest.raises(DestinationTaken, match=r"t-1~me\.partial is not believed"),
        place.held("me"),
    ):
        pytest.fail("it is held")


def test_a_link_of_a_strangers_is_not_followed_to_a_result_of_ours(place):
    """He could let it lead to another one at any moment."""
    plant_result(place, uid=0)
    place.final.rename(place.dest / "old")
    place.final.symlink_to("old")
    assert place.published() == MANIFEST
    os.lchown(place.final, STRANGER, -1)
    with pytest.raises(DestinationTaken, match="not believed"):
        place.published()


def test_a_link_of_ours_to_a_strangers_result_is_not_believed(place):
    plant_result(place)
    place.final.rename(place.dest / "old")
    place.final.symlink_to("old")
    with pytest.raises(DestinationTaken, match="not believed"):
        place.published()


def test_a_directory_that_a_stranger_swaps_for_his_own_is_not_published(place):
    """Without the sticky bit he can rename ours, while it is held."""
    with place.held():
        arrive(place)
        place.partial.rename(place.dest / "ours")
        plant_partial(place)
        for name, data in CONTENT.items():
            path = place.partial / f"{name}.part"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        with pytest.raises(DestinationTaken, match="not believed"):
            place.publish(MANIFEST)
        with pytest.raises(DestinationTaken, match="not believed"):
            place.part_path("a.vcf.gz")
    assert not place.final.exists()


def test_a_strangers_directory_is_not_deleted_with_what_was_received(place):
    """Nothing of ours can be in it; and a cancel does not wait for him who works there."""
    plant_partial(place)
    ours = place.dest / "t-1~me.partial"
    ours.mkdir()
    place.remove_partial()
    assert place.partial.exists()
    assert not ours.exists()


# What is believed as it always was


def believes(place):
    """Tell whether a result can be published there, and one that is there is known."""
    with place.held():
        arrive(place)
        place.publish(MANIFEST)
    return place.published() == MANIFEST and published_content(place) == CONTENT


@pytest.mark.parametrize("mode", NOT_EVERYBODYS)
def test_where_not_everybody_may_write_everybody_is_believed(place, mode):
    """A group shares its results; root fetches into a user's directory; a disk has one owner."""
    given_to(OWNER, place.dest)
    place.dest.chmod(mode)
    plant_result(place)
    assert place.published() == MANIFEST


@pytest.mark.parametrize("mode", NOT_EVERYBODYS)
def test_where_not_everybody_may_write_a_fetch_goes_on_in_anybodys_directory(place, mode):
    given_to(OWNER, place.dest)
    place.dest.chmod(mode)
    plant_partial(place)
    assert believes(place)


@pytest.mark.parametrize("mode", EVERYBODYS)
@pytest.mark.parametrize("uid", [0, OWNER])
def test_where_everybody_may_write_root_and_the_destinations_owner_are_believed(place, mode, uid):
    given_to(OWNER, place.dest)
    place.dest.chmod(mode)
    plant_partial(place, uid)
    assert believes(place)
    given_to(uid, place.final)
    assert place.published() == MANIFEST


@pytest.mark.parametrize("mode", EVERYBODYS)
def test_an_ordinary_user_believes_himself_where_everybody_may_write(place, mode, as_nobody):
    place.dest.chmod(mode)
    with as_nobody():
        assert believes(place)
        (place.dest / "t-2.partial").mkdir()
    given_to(0, place.final)
    os.chown(place.dest, OWNER, -1)
    place.dest.chmod(mode)
    with as_nobody():
        assert place.published() == MANIFEST  # root's
    others = ResultDirectory(place.dest, "t-2")
    given_to(OWNER + 1, others.partial)
    with as_nobody(), pytest.raises(DestinationTaken, match="uid 54322"), others.held():
        pytest.fail("it is held")


@pytest.mark.parametrize("mode", EVERYBODYS)
def test_a_server_that_makes_roots_files_nobodys_breaks_nothing(place, mode):
    place.dest.chmod(mode)
    with squashed():
        assert believes(place)
        assert place.final.stat().st_uid == STRANGER != os.geteuid()
        assert [path.name for path in place.dest.iterdir()] == ["t-1"]
        place.final.rename(place.dest / "t-2")
    given_to(OWNER, place.dest / "t-2")
    (place.dest / "t-2").rename(place.final)
    with squashed(), pytest.raises(DestinationTaken, match="uid 54321"):
        place.published()
