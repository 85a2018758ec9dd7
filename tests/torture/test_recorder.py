"""The recorder sees everything: what it recorded, done again, gives the same files."""

import sys
from dataclasses import replace

import pytest

from torture.disk import Disk
from torture.recording import Kind, record
from torture.recovery import facts_below, files_below

EVERY_CALL = """
import ctypes, os, shutil, sqlite3, sys, threading

os.chdir(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs("a/b")
here = os.open("a", os.O_RDONLY)
open("a/first", "w").write("in the beginning")
with open("a/first", "ab") as file:
    file.write(b", and at the end")
    os.ftruncate(file.fileno(), 20)
open("a/emptied", "w").write("x" * 100)
open("a/emptied", "w").close()
one = os.open("b/one", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=here)
os.pwrite(one, b"at an offset", 5000)
os.pwritev(one, [b"in ", b"pieces"], 3)
os.writev(one, [b"A", b"B"])
os.write(os.dup(one), b"C")
os.posix_fallocate(one, 0, 9000)
assert libc.fallocate(one, 0, ctypes.c_long(0), ctypes.c_long(10000)) == 0
os.truncate("a/b/one", 9999)
os.fsync(one)
os.fdatasync(one)
os.fsync(here)
os.link("a/b/one", "a/b/other")
os.rename("a/first", "a/second")
os.replace("b/other", "b/third", src_dir_fd=here, dst_dir_fd=here)
open("a/target", "w").write("to be replaced")
os.rename("a/second", "a/target")
os.utime("a/target", ns=(1, 1))
copy = os.open("copy", os.O_WRONLY | os.O_CREAT, 0o644)
assert os.copy_file_range(one, copy, 7, 3, 1000) == 7
os.fchmod(copy, 0o640)
os.chmod("a/b/one", 0o640)
os.chmod("b/one", 0o641, dir_fd=here)
os.chmod(f"/proc/self/fd/{copy}", 0o600)
os.chown("a/target", os.getuid(), os.getgid())
os.fchown(copy, os.getuid(), -1)
os.utime(copy, ns=(5, 6))
os.mkdir("elsewhere", 0o700)
os.chmod("elsewhere", 0o750)
os.rename("copy", "elsewhere/copy")
nameless = os.open("a", os.O_TMPFILE | os.O_RDWR, 0o600)
os.write(nameless, b"nowhere")
os.mkdir("gone", dir_fd=here)
os.rmdir("gone", dir_fd=here)
os.makedirs("tree/of/some")
open("tree/of/some/file", "w").write("not for long")
shutil.rmtree("tree")
for _ in range(20):  # an inode is soon another file's
    open("brief", "w").write("a few words")
    os.unlink("brief")

def write(number):
    for turn in range(50):
        os.pwrite(one, bytes([number]) * 10, 10 * turn + 3 * number)

threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
for mode in ("delete", "wal"):
    database = sqlite3.connect(f"{mode}.db")
    database.execute(f"PRAGMA journal_mode={mode}")
    database.execute("CREATE TABLE numbers (number)")
    database.executemany("INSERT INTO numbers VALUES (?)", [(one,) for one in range(5000)])
    database.commit()
    database.execute("DELETE FROM numbers")
    database.commit()
    database.execute("VACUUM")
    database.close()
libc.recorder_mark(b"the end")
"""


async def recorded(recorder, root, code):
    before = Disk.of(root)
    command = [sys.executable, "-c", code, root]
    return before, await record(recorder, root, command, environment={})


async def test_whatever_is_done_to_files_is_recorded(recorder, root):
    (root / "before").write_text("it was there")
    disk, operations = await recorded(recorder, root, EVERY_CALL)
    for _ in disk.moments(operations):
        pass
    assert disk.live.files() == files_below(root)
    there = facts_below(root)
    for path, facts in disk.live.facts().items():
        assert facts in (there[path], replace(there[path], mtime=None))
    assert there["elsewhere/copy"].mode == 0o600
    assert {disk.live.facts()[path].mtime for path in ("a/target", "elsewhere/copy")} == {1, 6}
    assert {one.kind for one in operations} == {*Kind} - {Kind.UNKNOWN}
    assert operations[-1].path == "the end"
    assert len({one.thread for one in operations}) == 5


async def test_what_is_done_elsewhere_is_not(recorder, root):
    """A directory whose name only begins in the same way is elsewhere."""
    code = "import sys; open(sys.argv[1] + '-beside', 'w').write('x')"
    _, operations = await recorded(recorder, root, code)
    assert operations == []


@pytest.mark.parametrize(
    "code",
    [
        "os.symlink('nowhere', 'link')",
        "os.mkfifo('pipe')",
        "open('a', 'w').write('x'); os.sendfile(os.open('b', 65), os.open('a', 0), 0, 1)",
    ],
)
async def test_what_nobody_can_follow_ends_it(recorder, root, code):
    """A recording is followed to its end, or not at all."""
    disk, operations = await recorded(
        recorder, root, f"import os, sys; os.chdir(sys.argv[1]); {code}"
    )
    with pytest.raises(NotImplementedError, match="Nobody knows"):
        list(disk.moments(operations))
