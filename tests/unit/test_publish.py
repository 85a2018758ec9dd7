"""A result directory is whole or absent, whatever stood there and whoever else is at work."""

import errno
import json
import os
import stat
import subprocess
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pipe_helpers import lonely_pipe

from downloader.errors import DestinationTaken, DiskError, VerificationFailed
from downloader.manifest import MAX_BYTES, MAX_CONTAINERS, MAX_VALUES
from downloader.publish import Manifest, ManifestFile, ResultDirectory, read_manifest

MIB = 1024 * 1024
CONTENT = {"a.vcf.gz": b"variants", "a.vcf.gz.tbi": b"index", "d/b.vcf.gz": b"more"}


def entry(name, size):
    return ManifestFile(
        name=name,
        size=size,
        crc64ecma="18446744073709551615",
        crc64_confirmed=True,
        etag='"E"',
        bucket="results",
        key=f"r/{name}",
    )


def manifest_of(content, task_id="t-1"):
    return Manifest(
        task_id=task_id,
        published_at="2024-02-29T12:00:00+00:00",
        files=tuple(entry(name, len(data)) for name, data in content.items()),
        warnings=("an old index",),
    )


MANIFEST = manifest_of(CONTENT)


@pytest.fixture
def place(tmp_path):
    return ResultDirectory(tmp_path / "results", "t-1")


def arrive(place, content=CONTENT):
    """Let the files arrive as a transfer does."""
    place.dest.mkdir(parents=True, exist_ok=True)
    place.partial.mkdir(exist_ok=True)
    for name, data in content.items():
        place.part_path(name).write_bytes(data)


def published_content(place):
    return {name: (place.final / name).read_bytes() for name in CONTENT}


def tree(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


# Publishing


def test_a_published_result_holds_its_files_and_its_manifest_and_nothing_else(place):
    arrive(place)
    place.publish(MANIFEST)
    assert published_content(place) == CONTENT
    assert tree(place.final) == sorted([*CONTENT, "bge-manifest.json", "d"])
    assert place.published() == MANIFEST
    assert not place.partial.exists()


def test_everything_is_synced_before_the_one_rename_and_the_destination_after_it(
    place, monkeypatch
):
    """After a power loss a name that is there without its bytes would be a silent loss."""
    arrive(place)
    happened = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor):
        happened.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        real_fsync(descriptor)

    def rename(source, target, **options):
        happened.append(("rename", str(target)))
        real_rename(source, target, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    place.publish(MANIFEST, checksums=["sha256"])

    the_rename = happened.index(("rename", str(place.final)))
    before, after = happened[:the_rename], happened[the_rename + 1 :]
    wanted = [*CONTENT, "bge-manifest.json", "SHA256SUMS", "d"]
    for path in [place.partial, *(place.partial / name for name in wanted)]:
        assert ("sync", str(path)) in before
    last_file_rename = max(i for i, (deed, _) in enumerate(before) if deed == "rename")
    assert before.index(("sync", str(place.partial / "d"))) > last_file_rename
    assert before.index(("sync", str(place.partial))) > last_file_rename
    assert after == [("sync", str(place.dest))]


def many(count):
    return {f"d{number % 3}/{number}.vcf.gz": b"x" * number for number in range(count)}


def test_of_many_files_every_one_is_synced(place, monkeypatch):
    """They are synced by several threads, which must not leave one out."""
    content = many(70)
    arrive(place, content)
    synced = []
    real_fsync = os.fsync

    def fsync(descriptor):
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    place.publish(manifest_of(content))
    assert {str(place.partial / name) for name in content} <= {*synced}
    assert place.missing_or_short(manifest_of(content)) == []


@pytest.mark.parametrize("count", [3, 70])
def test_a_file_that_cannot_be_synced_is_not_published(place, monkeypatch, count):
    """The kernel tells once of bytes that it could not write: that must not be missed."""
    content = many(count)
    arrive(place, content)
    real_fsync = os.fsync

    def fsync(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "2.vcf.gz":
            raise OSError(errno.EIO, "Input/output error")
        real_fsync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(DiskError, match=r"could not be published: Input/output error"):
            place.publish(manifest_of(content))
    assert not place.final.exists()
    place.part_paths(content)
    place.publish(manifest_of(content))
    assert place.published() is not None


@pytest.mark.parametrize("suffix", [".tbi", ".csi"])
@pytest.mark.parametrize("index_is_first", [True, False])
def test_an_index_is_never_older_than_its_vcf(place, suffix, index_is_first):
    """Tools warn of, or refuse, an index that is older than what it indexes."""
    names = ["d/a.vcf.gz", f"d/a.vcf.gz{suffix}"]
    content = dict.fromkeys(reversed(names) if index_is_first else names, b"x")
    arrive(place, content)
    os.utime(place.part_path(names[0]), ns=(10**18 + 7, 10**18 + 7))
    os.utime(place.part_path(names[1]), ns=(10**17, 10**17))
    place.publish(manifest_of(content))
    vcf, index = ((place.final / name).stat().st_mtime_ns for name in names)
    assert (vcf, index) == (10**18 + 7, 10**18 + 7)


def test_an_index_that_is_newer_already_keeps_its_time(place):
    arrive(place)
    os.utime(place.part_path("a.vcf.gz"), ns=(10**18, 10**18))
    os.utime(place.part_path("a.vcf.gz.tbi"), ns=(10**18 + 5, 10**18 + 5))
    place.publish(MANIFEST)
    assert (place.final / "a.vcf.gz.tbi").stat().st_mtime_ns == 10**18 + 5


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_the_written_sums_are_what_the_usual_tools_check(place, algorithm):
    content = {**CONTENT, "\u53d8\u5f02 *x.vcf.gz": b"blank and star", "-rf": b"a switch to some"}
    arrive(place, content)
    place.publish(manifest_of(content), checksums=[algorithm])
    checked = subprocess.run(
        [f"{algorithm}sum", "--check", "--strict", f"{algorithm.upper()}SUMS"],
        cwd=place.final,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout.count(": OK")) == (0, len(content))


def test_a_file_that_did_not_arrive_publishes_nothing(place):
    arrive(place, {"a.vcf.gz": b"variants"})
    with pytest.raises(DiskError, match="could not be published"):
        place.publish(MANIFEST)
    assert not place.final.exists()
    arrive(place)
    place.publish(MANIFEST)
    assert published_content(place) == CONTENT


def test_a_place_that_was_taken_meanwhile_is_not_written_over(place):
    arrive(place)
    place.final.mkdir()
    with pytest.raises(DestinationTaken, match="appeared while"):
        place.publish(MANIFEST)
    assert list(place.final.iterdir()) == []

    place.final.rmdir()  # the user moves it away and runs the command again
    assert [place.part_path(name).read_bytes() for name in CONTENT] == [*CONTENT.values()]
    place.publish(MANIFEST)
    assert published_content(place) == CONTENT


def test_a_destination_that_cannot_be_written_keeps_the_part_files(
    open_directory, as_nobody, monkeypatch
):
    """The disk refuses the last rename; the next run still finds every byte."""
    place = ResultDirectory(open_directory, "t-1")
    with as_nobody():
        arrive(place)
    open_directory.chmod(0o555)
    with as_nobody(), pytest.raises(DiskError, match="Permission denied"):
        place.publish(MANIFEST)
    open_directory.chmod(0o777)
    assert not place.final.exists()
    with as_nobody():
        assert [place.part_path(name).read_bytes() for name in CONTENT] == [*CONTENT.values()]


# What a crash or an earlier plan has left


@pytest.mark.parametrize("renamed", [1, 2, 3])
def test_a_crash_between_the_renames_loses_no_byte(place, renamed):
    arrive(place)
    for name in [*CONTENT][:renamed]:
        (place.partial / f"{name}.part").rename(place.partial / name)

    parts = [place.part_path(name) for name in CONTENT]

    assert [part.read_bytes() for part in parts] == [*CONTENT.values()]
    place.publish(MANIFEST)
    assert published_content(place) == CONTENT


def test_a_part_file_is_not_replaced_by_what_stands_in_its_files_place(place):
    arrive(place)
    (place.partial / "a.vcf.gz").write_bytes(b"older")
    assert place.part_path("a.vcf.gz").read_bytes() == b"variants"
    place.publish(MANIFEST)
    assert published_content(place) == CONTENT


def test_a_directory_of_an_older_plan_is_not_taken_for_the_file(place):
    arrive(place, {"a.vcf.gz/x": b"older plan"})
    arrive(place)
    place.publish(MANIFEST)
    assert published_content(place) == CONTENT


def test_sums_of_a_crashed_publication_are_not_published_with_other_bytes(place):
    """The object was replaced between the two runs, and the second writes no sums."""
    arrive(place)
    for name in ("SHA256SUMS", "MD5SUMS", "bge-manifest.json"):
        (place.partial / name).write_text("of other bytes")
    place.publish(MANIFEST, checksums=["md5"])
    assert "SHA256SUMS" not in tree(place.final)
    assert "of other bytes" not in (place.final / "MD5SUMS").read_text()
    assert place.published() == MANIFEST


def test_part_files_of_an_older_plan_are_not_published(place):
    arrive(place, {"old.vcf.gz": b"x", "old/c.vcf.gz": b"y"})
    arrive(place)
    place.publish(MANIFEST)
    assert tree(place.final) == sorted([*CONTENT, "bge-manifest.json", "d"])


def test_a_strangers_file_is_neither_published_nor_removed(place):
    arrive(place)
    (place.partial / "notes.txt").write_text("mine")
    with pytest.raises(DestinationTaken, match=r"notes\.txt is not of this task's result"):
        place.publish(MANIFEST)
    assert (place.partial / "notes.txt").read_text() == "mine"
    (place.partial / "notes.txt").unlink()
    arrive(place)
    place.publish(MANIFEST)
    assert published_content(place) == CONTENT


# Links


@pytest.fixture
def elsewhere(tmp_path):
    victim = tmp_path / "elsewhere"
    victim.mkdir()
    (victim / "precious").write_text("precious")
    return victim


def test_a_partial_directory_that_is_a_link_is_refused(place, elsewhere):
    place.dest.mkdir()
    place.partial.symlink_to(elsewhere)
    with pytest.raises(DiskError, match=r"t-1\.partial could not be opened"), place.held():
        pass
    assert tree(elsewhere) == ["precious"]


@pytest.mark.parametrize("target", ["elsewhere", "nowhere", "elsewhere/precious"])
def test_a_folder_that_is_a_link_is_refused(place, elsewhere, target):
    arrive(place, {})
    (place.partial / "d").symlink_to(elsewhere.parent / target)
    with pytest.raises(DiskError):
        place.part_path("d/e/b.vcf.gz")
    assert tree(elsewhere) == ["precious"]
    assert not (elsewhere.parent / "nowhere").exists()


def test_a_link_in_a_files_place_is_not_followed(place, elsewhere):
    arrive(place)
    (place.partial / "a.vcf.gz").symlink_to(elsewhere / "precious")
    place.part_path("a.vcf.gz")
    place.publish(MANIFEST)
    assert (elsewhere / "precious").read_text() == "precious"
    assert published_content(place) == CONTENT
    assert not (place.final / "a.vcf.gz").is_symlink()


def test_a_link_in_a_part_files_place_is_not_published(place, elsewhere):
    arrive(place)
    place.part_path("a.vcf.gz").unlink()
    place.part_path("a.vcf.gz").symlink_to(elsewhere / "precious")
    with pytest.raises(DiskError):
        place.publish(MANIFEST)
    assert not place.final.exists()


@pytest.mark.parametrize("name", ["bge-manifest.json", "SHA256SUMS"])
@pytest.mark.parametrize("target", ["elsewhere/precious", "elsewhere/new"])
def test_a_link_in_the_place_of_our_own_files_is_not_written_through(
    place, elsewhere, name, target
):
    arrive(place)
    (place.partial / name).symlink_to(elsewhere.parent / target)
    place.publish(MANIFEST, checksums=["sha256"])
    assert tree(elsewhere) == ["precious"]
    assert (elsewhere / "precious").read_text() == "precious"
    assert not (place.final / name).is_symlink()


# Where the bytes of many files arrive


def test_the_places_of_many_files_are_those_of_each(place):
    place.partial.mkdir(parents=True)
    names = [*CONTENT, "d/e/f.vcf.gz", "d/e.vcf.gz"]
    paths = place.part_paths(iter(names))
    assert dict(paths) == {name: place.part_path(name) for name in names}
    assert (list(paths), len(paths)) == (names, len(names))
    assert tree(place.partial) == ["d", "d/e"]
    with pytest.raises(KeyError):
        paths["unknown"]


def test_a_folder_of_many_files_is_made_once(place, monkeypatch):
    place.partial.mkdir(parents=True)
    made, real_mkdir = [], os.mkdir

    def mkdir(path, *arguments, **options):
        made.append(str(path))
        real_mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    place.part_paths(many(30))
    assert sorted(made) == ["d0", "d1", "d2"]


def test_of_many_files_those_that_had_arrived_are_part_files_again(place):
    place.partial.mkdir(parents=True)
    (place.partial / "d").mkdir()
    (place.partial / "d/b.vcf.gz").write_bytes(b"more")
    (place.partial / "a.vcf.gz").symlink_to("nowhere")
    paths = place.part_paths(CONTENT)
    assert paths["d/b.vcf.gz"].read_bytes() == b"more"
    assert tree(place.partial) == ["a.vcf.gz", "d", "d/b.vcf.gz.part"]


def test_a_link_among_the_folders_of_many_files_is_refused(place, tmp_path):
    place.partial.mkdir(parents=True)
    (place.partial / "d").symlink_to(tmp_path)
    with pytest.raises(DiskError, match="its path is a link; move it away"):
        place.part_paths(CONTENT)


# Who is in the way


def test_a_result_that_was_never_published_is_none(place):
    assert place.published() is None


@pytest.mark.parametrize(
    "put",
    [
        lambda path: path.mkdir(),  # an empty directory
        lambda path: path.write_text("a file"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: (path.mkdir(), (path / "mine.vcf.gz").write_text("x")),
    ],
)
def test_what_is_not_ours_in_the_results_place_is_named(place, put):
    place.dest.mkdir()
    put(place.final)
    with pytest.raises(DestinationTaken, match="is no published result of this task"):
        place.published()


def test_the_result_of_another_task_is_not_taken_for_this_ones(place):
    other = ResultDirectory(place.dest, "t-2")
    arrive(other)
    other.publish(manifest_of(CONTENT, task_id="t-2"))
    other.final.rename(place.final)
    with pytest.raises(DestinationTaken):
        place.published()


HOLDER = """
import sys
from pathlib import Path
from downloader.publish import ResultDirectory
with ResultDirectory(Path(sys.argv[1]), "t-1").held():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_processes_never_work_in_one_partial_directory(place, start_python):
    """The lock goes with its process, however that ends."""
    place.dest.mkdir()
    holder = start_python(HOLDER, place.dest)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DestinationTaken, match="Another process is working"), place.held():
        pass
    holder.kill()
    holder.wait()
    with place.held():
        assert place.partial.is_dir()


def test_two_users_of_one_process_are_kept_apart_too(place):
    place.dest.mkdir()
    with place.held(), pytest.raises(DestinationTaken), place.held():
        pass
    with place.held():
        pass


def test_a_directory_that_is_renamed_while_it_is_being_locked_is_not_held(place, monkeypatch):
    """Its holder published it: a lock on the published directory would protect nothing."""
    place.dest.mkdir()
    real_open, opened = os.open, []

    def publish_behind_the_back(path, *arguments, **options):
        descriptor = real_open(path, *arguments, **options)
        if path == place.partial and not opened:
            opened.append(path)
            place.partial.rename(place.final)
        return descriptor

    monkeypatch.setattr(os, "open", publish_behind_the_back)
    with place.held():
        place.part_path("a.vcf.gz").write_bytes(b"x")
        with pytest.raises(DestinationTaken), place.held():
            pass
    assert tree(place.final) == []
    assert tree(place.partial) == ["a.vcf.gz.part"]


# The destination


def test_a_missing_destination_is_made_and_left_empty(place):
    place.check_writable()
    assert list(place.dest.iterdir()) == []


def test_a_destination_that_is_a_file_is_refused(place):
    place.dest.write_text("x")
    with pytest.raises(DiskError, match="could not be used as the destination"):
        place.check_writable()


@pytest.mark.parametrize("below", [".", "new/deep"])
def test_a_destination_that_cannot_be_written_is_told_before_anything_is_fetched(
    open_directory, as_nobody, below
):
    open_directory.chmod(0o555)
    place = ResultDirectory(open_directory / below, "t-1")
    with as_nobody(), pytest.raises(DiskError, match="Permission denied"):
        place.check_writable()
    assert list(open_directory.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.EISDIR])
def test_a_disk_without_nameless_files_is_asked_for_its_permissions(
    open_directory, as_nobody, monkeypatch, code
):
    """NFS and some others know no O_TMPFILE, and are destinations all the same."""

    def refuse(path, *_):
        raise OSError(code, os.strerror(code), str(path))

    place = ResultDirectory(open_directory, "t-1")
    with as_nobody(), monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        place.check_writable()
    assert list(open_directory.iterdir()) == []
    open_directory.chmod(0o555)
    with as_nobody(), monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(DiskError, match="cannot be written; choose another"):
            place.check_writable()


def test_an_empty_partial_directory_goes_and_one_with_bytes_stays(place):
    arrive(place, {})
    place.remove_if_empty()
    place.remove_if_empty()
    assert not place.partial.exists()
    arrive(place)
    place.remove_if_empty()
    assert place.partial.is_dir()


# A published result that is not whole any more


def test_files_that_are_gone_or_have_another_size_are_named(place):
    arrive(place)
    place.publish(MANIFEST)
    assert place.missing_or_short(MANIFEST) == []
    (place.final / "a.vcf.gz").write_bytes(b"short")
    (place.final / "a.vcf.gz.tbi").write_bytes(b"far too long")
    (place.final / "d/b.vcf.gz").unlink()
    assert place.missing_or_short(MANIFEST) == [*CONTENT]


def test_a_directory_in_a_files_place_is_missing(place):
    content = {"a": b""}
    arrive(place, content)
    place.publish(manifest_of(content))
    (place.final / "a").unlink()
    (place.final / "a").mkdir()
    assert place.missing_or_short(manifest_of(content)) == ["a"]


def test_a_damaged_result_is_set_aside_with_everything_in_it(place):
    """Twice within a second, too: the first one is not written over."""
    asides = []
    for _ in range(3):
        arrive(place)
        place.publish(MANIFEST)
        asides.append(place.set_aside())
        assert place.published() is None
    assert len(set(asides)) == 3
    for aside in asides:
        assert aside.name.startswith("t-1.damaged-")
        assert read_manifest(aside) == MANIFEST


def test_a_result_that_cannot_be_set_aside_is_told_in_a_sentence(place):
    place.dest.mkdir()
    with pytest.raises(DiskError, match="could not be set aside"):
        place.set_aside()


def test_a_fault_of_the_disk_does_not_make_a_result_damaged(place, monkeypatch):
    """A network disk that is away for a moment is no reason to fetch everything again."""
    arrive(place)
    place.publish(MANIFEST)

    def refuse(path, **_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", refuse)
        with pytest.raises(DiskError, match=r"a\.vcf\.gz.* could not be looked at"):
            place.missing_or_short(MANIFEST)
    assert place.missing_or_short(MANIFEST) == []


# The manifest


def test_a_newer_programs_manifest_is_no_damage(place):
    """It would be set aside and fetched again, by the older of two programs in turn."""
    arrive(place)
    place.publish(replace(MANIFEST, format=MANIFEST.format + 1))
    with pytest.raises(DestinationTaken, match="written by a newer bge-downloader"):
        place.published()


def test_a_manifest_comes_back_as_it_was_written(tmp_path):
    content = {"\u53d8\u5f02.vcf.gz": b"x", 'quote"and\\': b""}
    manifest = manifest_of(content)
    (tmp_path / "bge-manifest.json").write_text(manifest.dumps(), encoding="utf-8")
    assert read_manifest(tmp_path) == manifest
    assert "\u53d8\u5f02" in manifest.dumps()


def test_where_no_manifest_is_there_is_none(tmp_path):
    (tmp_path / "file").write_text("x")
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "file") is None
    assert read_manifest(tmp_path / "nowhere") is None


def test_the_manifest_of_a_newer_program_may_tell_more_of_a_file(place):
    raw = json.loads(MANIFEST.dumps())
    raw["format"] += 1
    raw["files"][0]["sha256"] = "00"
    place.final.mkdir(parents=True)
    (place.final / "bge-manifest.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(DestinationTaken, match="written by a newer bge-downloader"):
        place.published()


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(place):
    """Who may write to a destination held a fetch, and 32 of them the service, up for ever."""
    place.final.mkdir(parents=True)
    with (
        lonely_pipe(place.final / "bge-manifest.json"),
        pytest.raises(DiskError, match="it is no ordinary file; move it away"),
    ):
        place.published()


def test_a_link_in_the_place_of_a_manifest_is_not_followed(place, tmp_path):
    """It may lead to a device without an end, or to what is nobody's business."""
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(MANIFEST.dumps(), encoding="utf-8")
    place.final.mkdir(parents=True)
    (place.final / "bge-manifest.json").symlink_to(elsewhere)
    with pytest.raises(DiskError, match="it is a link; move it away"):
        place.published()


def test_a_result_that_its_owner_has_moved_and_linked_is_still_published(place, tmp_path):
    arrive(place)
    place.publish(MANIFEST)
    place.final.rename(tmp_path / "larger-disk")
    place.final.symlink_to(tmp_path / "larger-disk")
    assert place.published() == MANIFEST


def unread(directory):
    """Return the most memory, in bytes, that it takes to refuse a manifest."""
    tracemalloc.start()
    try:
        with pytest.raises(DestinationTaken, match="larger than any manifest of ours"):
            read_manifest(directory)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_manifest_without_an_end_does_not_fill_the_memory(tmp_path):
    with (tmp_path / "bge-manifest.json").open("wb") as file:
        file.truncate(300 * MIB)
    assert unread(tmp_path) < MIB


@pytest.mark.parametrize("piece", [b"{},", b"[],", b"0,0,0,0,0,0,0,0,0,"])
def test_a_manifest_that_would_unpack_to_much_more_is_not_unpacked(tmp_path, piece):
    """60 MiB of `{},` took 1.6 GiB."""
    (tmp_path / "bge-manifest.json").write_bytes(b'{"files": [' + piece * 500_001)
    assert unread(tmp_path) < 16 * MIB


def test_no_manifest_of_ours_has_more_in_it_than_its_size_allows():
    """What was published must be readable again, however short its names are."""
    shortest = replace(entry("a", 0), crc64ecma="0", etag=None, bucket="b", key="a")
    two, one = (replace(MANIFEST, files=(shortest,) * count).dumps() for count in (2, 1))
    files = MAX_BYTES // (len(two) - len(one))
    assert files + 3 < MAX_CONTAINERS
    assert files * (two.count(",") - one.count(",")) + 10 < MAX_VALUES


@pytest.mark.parametrize("content", [{}, {"a": b""}, CONTENT])
def test_a_manifest_is_json_that_people_can_read(content):
    manifest = manifest_of(content)
    whole = json.dumps(asdict(manifest), ensure_ascii=False, indent=2) + "\n"
    assert manifest.dumps() == whole


def without(key):
    raw = json.loads(MANIFEST.dumps())
    del raw[key]
    return json.dumps(raw).encode()


def with_file(**values):
    raw = json.loads(MANIFEST.dumps())
    raw["files"][0].update(values)
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\0" * 4096,  # what a power loss leaves of a file that was never synced
        b"\xff\xfe",
        MANIFEST.dumps().encode()[:-20],
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"{}",
        b"[" * 100_000,
        b'{"files": {"a": 1}}',
        b'{"files": [null]}',
        without("files"),
        without("task_id"),
        with_file(size="8"),
        with_file(size=-1),
        with_file(size=1.5),
        with_file(size=None),
        with_file(size=True),
        with_file(name=None),
        with_file(name=5),
        with_file(name=["a"]),
        with_file(name=""),
        with_file(name="/etc/passwd"),
        with_file(name="../x"),
        with_file(name="a/../../x"),
        with_file(name="a\0b"),
        with_file(unknown=1),
        with_file(bucket=None),
    ],
)
def test_a_damaged_manifest_is_told_and_never_believed(place, damage):
    place.final.mkdir(parents=True)
    (place.final / "bge-manifest.json").write_bytes(damage)
    with pytest.raises(VerificationFailed, match=r"bge-manifest\.json is damaged"):
        place.published()


def test_a_manifest_that_cannot_be_read_is_an_error_of_the_disk(place):
    (place.final / "bge-manifest.json").mkdir(parents=True)
    with pytest.raises(DiskError, match="could not be read"):
        place.published()


def test_the_published_directory_is_as_open_as_the_users_umask_says(place):
    before = os.umask(0o027)
    try:
        arrive(place)
        place.publish(MANIFEST)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((place.final / name).stat().st_mode) for name in CONTENT}
    assert (modes, stat.S_IMODE(place.final.stat().st_mode)) == ({0o640}, 0o750)


def identities_in(directory):
    facts = {name: (directory / name).stat() for name in CONTENT}
    return {name: (fact.st_dev, fact.st_ino) for name, fact in facts.items()}


def proved(place):
    """Return what is known of the files that have arrived."""
    facts = {name: place.part_path(name).stat() for name in CONTENT}
    return {name: (fact.st_dev, fact.st_ino) for name, fact in facts.items()}


def test_files_that_were_proved_are_published(place):
    arrive(place)
    identities = proved(place)
    place.publish(MANIFEST, identity_of=identities.__getitem__)
    assert identities_in(place.final) == identities


def test_a_file_that_another_process_has_replaced_since_is_never_published(place):
    """Its bytes may be right, but nobody has proved them."""
    arrive(place)
    identities = proved(place)
    other = place.partial / "other"
    other.write_bytes(CONTENT["a.vcf.gz"])
    other.replace(place.part_path("a.vcf.gz"))
    with pytest.raises(DestinationTaken, match=r"a\.vcf\.gz was replaced by another process"):
        place.publish(MANIFEST, identity_of=identities.__getitem__)
    assert not place.final.exists()
