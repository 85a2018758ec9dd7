"""What the disk may refuse, and what may happen to a part file while nobody looks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence

from downloader.sandbox import Fault
from matrix.broken_disk import WITHOUT_RESERVATION, immutable, mounted, remounted
from matrix.causes import and_then, calls_fail, deed, when_half_is_here
from matrix.faulty import Call
from matrix.program import as_a_process
from matrix.row import (
    BOTH,
    EVERYTHING,
    NOTHING,
    ONE_BLOCK,
    STRAIGHT,
    THE_FILE,
    Again,
    Cause,
    Row,
    unread,
    what_came,
)
from matrix.story import DATA, HALF, KEY, TBI, TBI_KEY, VCF, VCF_KEY, Story

__all__ = ["ROWS"]

KIB = 1024
CUT = 30 * KIB
WHOLE_KIB = 168  # what the result takes on a disk, with its directories
IS_KEPT = "it ends with one sentence that names the file; what came is kept"
FREE_SOME = "free some space and run the same command again"
WITHOUT = "where it can do without"
EIO = "Input/output error"
NEEDS_ROOM = (Call.WRITE, Call.RESERVE, Call.RESIZE, Call.MKDIR)
ON_ITS_WAY = unread(first=1, later=1)  # when another file makes it end
CHANGES = (*NEEDS_ROOM, Call.RENAME, Call.UNLINK)


class Full:
    """A disk on which a result has no room: so much of it, that there is none at all."""

    def __init__(self, story: Story, free: int) -> None:
        self.happened = free < WHOLE_KIB * KIB
        filler = story.dest / "filler.bin"
        disk = os.statvfs(story.dest)
        filler.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - free)))
        self._filler = filler

    def is_over(self) -> None:
        self._filler.unlink()


@contextlib.asynccontextmanager
async def _small_disk(story: Story) -> AsyncIterator[None]:
    """Let the results go to a disk of 4 MiB, which stays for the rest of the story."""
    if not story.dest.is_mount():
        story.closing.enter_context(mounted(story.dest, size=4096 * KIB))
    yield


@contextlib.asynccontextmanager
async def _full(story: Story) -> AsyncIterator[Full]:
    full = Full(story, 64 * KIB)
    yield full
    full.is_over()


@contextlib.asynccontextmanager
async def _full_at_each_write(story: Story) -> AsyncIterator[Full]:
    """Leave more room at each chance, from none on."""
    full = Full(story, (story.chance - 1) * 40 * KIB)
    yield full
    full.is_over()


def _lasting(place: Callable[[Story], object], state: Callable[..., object]) -> Cause:
    """Let a place be in a state that a context manager makes."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        with state(place(story)):
            yield

    return cause


# While away


def _cut_short(story: Story) -> None:
    os.truncate(story.part_path, CUT)


def _made_longer(story: Story) -> None:
    with story.part_path.open("ab") as file:
        file.write(b"more")


def _altered(story: Story) -> None:
    with story.part_path.open("r+b") as file:
        file.seek(20 * KIB)
        file.write(b"other bytes")


def _zeroed(story: Story) -> None:
    with story.part_path.open("r+b") as file:
        file.seek(16 * KIB)
        file.write(bytes(4 * KIB))


def _moved_aside(story: Story):
    return story.part_path.rename(story.directory / "mine.bin")


def _symlink(story: Story) -> None:
    story.part_path.symlink_to(_moved_aside(story))


def _hard_link(story: Story) -> None:
    os.link(_moved_aside(story), story.part_path)


def _pipe(story: Story) -> None:
    _moved_aside(story)
    os.mkfifo(story.part_path)


def _folder(story: Story) -> None:
    _moved_aside(story)
    story.part_path.mkdir()


def _move_it_away(story: Story) -> None:
    """Do what the sentence says; what was somebody else's must be as it was."""
    story.part_path.rename(story.directory / "moved")
    assert (story.directory / "mine.bin").read_bytes()[: 64 * KIB] == DATA[: 64 * KIB]


def _put_back(story: Story) -> None:
    """And put back what was there."""
    _move_it_away(story)
    (story.directory / "mine.bin").rename(story.part_path)
    (story.directory / "moved").rename(story.directory / "moved.txt")


def _stranger(story: Story) -> None:
    _moved_aside(story)
    story.part_path.write_bytes(os.urandom(len(DATA)))


def _partial_is_a_link(story: Story) -> None:
    story.partial.rename(story.directory / "elsewhere")
    story.partial.symlink_to(story.directory / "elsewhere")


def _partial_is_itself(story: Story) -> None:
    story.partial.unlink()
    (story.directory / "elsewhere").rename(story.partial)


def _while_away(fault: str, do: Callable[[Story], object], happens: str, again: Again) -> Row:
    return Row(fault=fault, cause=when_half_is_here(deed(do)), happens=happens, again=again)


def _refused(
    fault: str,
    do: Callable[[Story], object],
    undo: Callable[[Story], object] = _put_back,
    happens: str = "it is not followed or written to; once the file is put back, it goes on",
    again: Again = NOTHING,
) -> Row:
    return Row(
        fault=f"the part file {fault}",
        cause=when_half_is_here(deed(do, undo)),
        happens=happens,
        ends=1,
        again=again,
        says=r"data\.bin\.part is no ordinary file of its own; move it away, put back what was",
        roads=STRAIGHT,
    )


# In mid-transfer


def _while_half_is_here(deed_: Callable[[Story], object]) -> Cause:
    """Do something to the disk while the second segment is waited for."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        held = story.store.inject(Fault.STALL, key=KEY, covering=len(DATA) - 1, after=8 * KIB)
        async with story.beside(_deed_when(held, story, deed_)):
            yield

    return cause


async def _deed_when(held, story: Story, deed_: Callable[[Story], object]) -> None:
    await held.happened.wait()
    await story.heard.has_received(64 * KIB)
    deed_(story)
    held.release()


def _replace_part(story: Story) -> None:
    story.part_path.unlink()
    story.part_path.write_bytes(b"mine")


def _remove_partial(story: Story) -> None:
    shutil.rmtree(story.partial)


def _with_a_pair(story: Story) -> None:
    """Let the task have a VCF of several blocks, and its index, beside the other files."""
    story.files |= {VCF_KEY: VCF, TBI_KEY: TBI}
    story.add_task()


@contextlib.asynccontextmanager
async def _rots_before_the_check(story: Story) -> AsyncIterator[None]:
    """Let a byte of the VCF change between its transfer and the checks."""
    _with_a_pair(story)
    changed = []

    def rot(name: str) -> None:
        if name == "a.vcf.gz" and not changed:
            changed.append(name)
            with (story.partial / "a.vcf.gz.part").open("r+b") as file:
                file.seek(len(VCF) // 2)
                file.write(b"\0\0\0\0")

    story.heard.when_done = rot
    yield
    assert changed


@contextlib.asynccontextmanager
async def _damaged_vcf(story: Story) -> AsyncIterator[None]:
    """Let a block of a VCF that has come whole be damaged, before anything is published."""
    _with_a_pair(story)
    await story.left_half()
    with (story.partial / "a.vcf.gz.part").open("r+b") as file:
        file.seek(len(VCF) // 2)
        file.write(b"\0\0\0\0")
    yield


# When it is published


async def _published(story: Story) -> None:
    outcome = await story.fetch()
    assert outcome.exit_code == 0


def _after_publishing(do: Callable[[Story], object]) -> Cause:
    return and_then(deed(_published), deed(do))


def _short_result(story: Story) -> None:
    os.truncate(story.final / "data.bin", 7)


def _no_manifest(story: Story) -> None:
    (story.final / "bge-manifest.json").write_bytes(b"\0" * 100)


def _somebody_elses(story: Story) -> None:
    story.has_stranger = True
    story.final.mkdir(parents=True)
    (story.final / "mine.txt").write_text("mine")


def _nobodys(story: Story) -> None:
    assert (story.final / "mine.txt").read_text() == "mine"
    story.has_stranger = False
    shutil.rmtree(story.final)


def _each(
    fault: str,
    *calls: Call,
    code: int,
    lasts: bool = False,
    before: Sequence[Cause] = (),
    **facts: object,
) -> Row:
    """Return the row of a call that fails in the program itself, whoever in it makes the call."""
    return Row(
        fault=f"{fault}, {'from one of the calls on' if lasts else 'at each of the calls'}",
        cause=and_then(*before, calls_fail(*calls, code=code, lasts=lasts)),
        act=as_a_process,
        at_each=True,
        **{"happens": IS_KEPT, "ends": 1, "roads": STRAIGHT, **facts},
    )


NO_ROOM = [
    Row(
        fault="ENOSPC: too little room, on a disk that reserves blocks",
        cause=and_then(_small_disk, _full),
        happens="it ends before the file is begun",
        ends=1,
        says=rf"has \d+ bytes free, but \d+ more are needed; {FREE_SOME}",
        again=unread(first=1),
    ),
    Row(
        fault="ENOSPC at each write, on a disk that reserves none",
        cause=and_then(_small_disk, *WITHOUT_RESERVATION, _full_at_each_write),
        happens=IS_KEPT,
        ends=1,
        says=FREE_SOME,
        at_each=True,
        again=EVERYTHING,
    ),
    _each(
        "ENOSPC on write, on reserving blocks or on making a file",
        *NEEDS_ROOM,
        code=errno.ENOSPC,
        lasts=True,
        says=f"could not be .*: No space left on device; {FREE_SOME}",
        again=EVERYTHING,
        roads=BOTH,
    ),
    _each(
        "EDQUOT on write or on reserving blocks",
        Call.WRITE,
        Call.RESERVE,
        code=errno.EDQUOT,
        lasts=True,
        says=f"could not be .*: Disk quota exceeded; {FREE_SOME}",
        again=EVERYTHING,
        roads=BOTH,
    ),
]

ERRORS = [
    _each(
        "EIO on write",
        Call.WRITE,
        code=errno.EIO,
        says=f"could not be .*: {EIO}",
        again=EVERYTHING,
        roads=BOTH,
    ),
    _each(
        "EIO on reserving blocks or on truncating",
        Call.RESERVE,
        Call.RESIZE,
        code=errno.EIO,
        says=rf"\.part could not be given \d+ bytes: {EIO}",
        again=unread(first=1),
    ),
    _each(
        "EIO on fdatasync",
        Call.DATASYNC,
        code=errno.EIO,
        says=rf"\.part could not be synced: {EIO}",
        again=EVERYTHING,
        roads=BOTH,
    ),
    _each("EIO on fsync of a file", Call.SYNC, code=errno.EIO, says=f"could not be .*: {EIO}"),
    _each(
        "EIO on fsync of a directory",
        Call.SYNC_NAMES,
        code=errno.EIO,
        says=f"could not be .*: {EIO}",
        again=ON_ITS_WAY,
    ),
    Row(
        fault="EINVAL on fsync of a directory, as where none can be synced",
        cause=calls_fail(Call.SYNC_NAMES, code=errno.EINVAL, lasts=True),
        act=as_a_process,
        happens="nothing is to be done about that",
        roads=STRAIGHT,
    ),
    _each(
        "EIO on read back",
        Call.READ,
        code=errno.EIO,
        before=[deed(Story.left_half)],
        says=f"could not be .*: {EIO}",
        again=ON_ITS_WAY,
        roads=BOTH,
    ),
    _each(
        "EIO on read, while a pair is checked",
        Call.READ,
        code=errno.EIO,
        before=[deed(_with_a_pair)],
        says=f"could not be .*: {EIO}",
        may_go_on="where it is checked once more",
    ),
    _each(
        "EIO on reading, looking at, opening or syncing what is published",
        *(Call.READ, Call.LOOK, Call.OPEN, Call.SYNC_NAMES),
        code=errno.EIO,
        before=[deed(_published)],
        says=f"could not be .*: {EIO}",
        may_go_on=WITHOUT,
    ),
    _each("EIO on rename", Call.RENAME, code=errno.EIO, says=f"could not be .*: {EIO}"),
    _each("EIO on unlink", Call.UNLINK, code=errno.EIO, says=f"could not be .*: {EIO}"),
    _each(
        "EIO on listing",
        Call.LIST,
        code=errno.EIO,
        says=f"could not be .*: {EIO}",
        may_go_on=WITHOUT,
    ),
    _each(
        "EIO on closing what was written",
        Call.CLOSE,
        code=errno.EIO,
        says=f"could not be .*: {EIO}",
        may_go_on="where it was synced before",
    ),
    _each(
        "EIO on a lock",
        Call.LOCK,
        code=errno.EIO,
        happens="it goes on as where there are no locks",
        ends=0,
    ),
    _each(
        "ESTALE on a look",
        Call.LOOK,
        code=errno.ESTALE,
        says="could not be .*: Stale file handle; the network disk has changed",
        may_go_on=WITHOUT,
        again=ON_ITS_WAY,
    ),
    _each(
        "EACCES on mkdir",
        Call.MKDIR,
        code=errno.EACCES,
        says="could not be .*: Permission denied; see who may",
        may_go_on=WITHOUT,
    ),
    _each(
        "EMFILE on open",
        Call.OPEN,
        code=errno.EMFILE,
        says="could not be .*: Too many open files; raise the limit",
        again=ON_ITS_WAY,
    ),
    _each(
        "EROFS on any change",
        *CHANGES,
        code=errno.EROFS,
        lasts=True,
        says="could not be .*: Read-only file system; see why the disk is read-only",
        again=EVERYTHING,
    ),
    Row(
        fault="EROFS: a disk that is read-only",
        cause=and_then(_small_disk, _lasting(lambda story: story.dest, remounted)),
        happens="it ends before anybody is asked",
        ends=1,
        says="could not be used as the destination: Read-only file system",
        roads=STRAIGHT,
    ),
    Row(
        fault="a destination that nobody may change",
        cause=and_then(
            deed(lambda story: story.dest.mkdir()),
            _lasting(lambda story: story.dest, immutable),
        ),
        happens="it ends before anybody is asked",
        ends=1,
        says="used as the destination: Operation not permitted|cannot be written",
        roads=STRAIGHT,
    ),
    Row(
        fault="a partial directory that nobody may change",
        cause=when_half_is_here(_lasting(lambda story: story.partial, immutable)),
        happens=IS_KEPT,
        ends=1,
        says="could not be .*: Operation not permitted",
        roads=STRAIGHT,
    ),
]

IN_BETWEEN = [
    _while_away(
        "the part file is lost", lambda s: s.part_path.unlink(), "begun anew", what_came(HALF)
    ),
    _while_away(
        "the part file is cut short",
        _cut_short,
        "it counts as far as it goes",
        what_came(HALF - CUT),
    ),
    _while_away("the part file is longer", _made_longer, "it is cut to its size", NOTHING),
    _while_away(
        "the part file is altered",
        _altered,
        "what is on disk is read back; the checksum finds it out, and it is begun anew",
        THE_FILE,
    ),
    _while_away(
        "a page of the part file is zeros",
        _zeroed,
        "what is on disk is read back; the checksum finds it out, and it is begun anew",
        THE_FILE,
    ),
    _while_away(
        "the part file is another file",
        _stranger,
        "what is on disk is read back; the checksum finds it out, and it is begun anew",
        THE_FILE,
    ),
    Row(
        fault="a block of a VCF's part file is damaged",
        cause=_damaged_vcf,
        happens="the blocks tell where, and only that is fetched again",
        again=ONE_BLOCK,
    ),
    _refused("is replaced by a link", _symlink),
    _refused(
        "is replaced by a link, and lost",
        _symlink,
        _move_it_away,
        happens="it is not followed or written to; once it is moved away, the file is begun anew",
        again=what_came(HALF),
    ),
    _refused(
        "has a second name",
        _hard_link,
        lambda story: (story.directory / "mine.bin").unlink(),
        happens="it is not written to; once the other name is gone, it goes on",
    ),
    _refused("is replaced by a pipe", _pipe),
    _refused("is replaced by a directory", _folder),
    Row(
        fault="the partial directory is replaced by a link",
        cause=when_half_is_here(deed(_partial_is_a_link, _partial_is_itself)),
        happens="it is not followed; it ends, and what came is kept",
        ends=1,
        says="partial could not be opened",
        roads=STRAIGHT,
    ),
    Row(
        fault="the part file is replaced in mid-transfer",
        cause=_while_half_is_here(_replace_part),
        happens="it is not called done; it ends",
        ends=1,
        says="was replaced by another program",
        again=THE_FILE,
    ),
    Row(
        fault="the partial directory is removed in mid-transfer",
        cause=_while_half_is_here(_remove_partial),
        happens="it ends; what is gone is fetched again",
        ends=1,
        says="could not be .*: No such file or directory; see what was moved",
        again=EVERYTHING,
    ),
    Row(
        fault="a byte rots between transfer and check",
        cause=_rots_before_the_check,
        happens="the check finds it out; what is on disk is read back and mended",
        notes="Fetching again: a.vcf.gz",
        again=ONE_BLOCK,
    ),
]

PUBLISHED = [
    Row(
        fault="a published file is cut short",
        cause=_after_publishing(_short_result),
        happens="the result is set aside, and fetched again",
        notes="the result was renamed to",
        again=EVERYTHING,
        roads=STRAIGHT,
    ),
    Row(
        fault="a published manifest is garbage",
        cause=_after_publishing(_no_manifest),
        happens="the result is set aside, and fetched again",
        notes="the result was renamed to",
        again=EVERYTHING,
        roads=STRAIGHT,
    ),
    Row(
        fault="a published result is moved away",
        cause=_after_publishing(lambda story: story.final.rename(story.directory / "away")),
        happens="it is fetched again",
        again=EVERYTHING,
        roads=STRAIGHT,
    ),
    Row(
        fault="something else stands in the result's place",
        cause=deed(_somebody_elses, _nobodys),
        happens="it is not touched, and it ends before anybody is asked",
        ends=1,
        says="exists and is no published result of this task",
        roads=STRAIGHT,
    ),
]

ROWS = [*NO_ROOM, *ERRORS, *IN_BETWEEN, *PUBLISHED]
