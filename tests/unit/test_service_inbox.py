"""The inbox: what is written into it is taken whole and once, and nothing in it is ever lost."""

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from downloader.errors import DiskError
from downloader.service import inbox
from downloader.service.inbox import Inbox, _task_ids

FIRST = "69909614-9e77-4fbd-b437-4f5b284e3dcc"
SECOND = "0f9c6a52-1d1b-4c05-8b5e-d5d6b4a7a111"
NOW = 1_700_000_000.0


class Watched:
    """An inbox whose clock stands still until it is told to go on."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.now = NOW
        self.inbox = Inbox(folder, clock=lambda: self.now, **options)

    def put(self, name, content="", *, seconds_ago=10.0):
        """Write a file as one that was last changed some seconds ago."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        self.touch(path, seconds_ago=seconds_ago)
        return path

    def touch(self, path, *, seconds_ago):
        moment = int((self.now - seconds_ago) * 1e9)
        os.utime(path, ns=(moment, moment), follow_symlinks=False)

    def ids(self):
        return [task_id for order in self.inbox.scan() for task_id in order.task_ids]

    def order(self):
        (order,) = self.inbox.scan()
        return order

    def names(self):
        """Return what is in the inbox and below, but no folders."""
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_symlink() or not path.is_dir()
        )


@pytest.fixture
def watched(tmp_path):
    inbox = Watched(tmp_path / "in" / "box")
    inbox.inbox.prepare()
    return inbox


@pytest.mark.parametrize(
    ("name", "task_id"),
    [
        (FIRST, FIRST),
        (f"{FIRST}.txt", FIRST),
        (f"{FIRST}.task", FIRST),
        (FIRST.upper(), FIRST.upper()),
        ("sample-42.task", "sample-42"),
        ("a.b.task", "a.b"),
    ],
)
@pytest.mark.parametrize("content", ["", "\n", "# nothing but this\n", b"\xef\xbb\xbf"])
def test_a_file_that_lists_nothing_is_named_by_its_task(watched, name, task_id, content):
    watched.put(name, content)
    order = watched.order()
    assert (order.path, order.task_ids, order.problem) == (
        watched.folder / name,
        (task_id,),
        None,
    )


@pytest.mark.parametrize(
    ("content", "task_ids"),
    [
        (f"{FIRST}\n", (FIRST,)),
        (FIRST, (FIRST,)),
        (f"{FIRST}\r\n{SECOND}\r\n", (FIRST, SECOND)),
        (f"{FIRST}\r{SECOND}\r", (FIRST, SECOND)),
        (f"\ufeff{FIRST}\n", (FIRST,)),
        (f"# of today\n\n  {FIRST}\t# the first\n#{SECOND}\n", (FIRST,)),
        (f"{SECOND}\n{FIRST}\n{SECOND}\n", (SECOND, FIRST)),
        ("sample-42\n", ("sample-42",)),
    ],
)
@pytest.mark.parametrize("name", ["list.txt", "a name\u53d8 with blanks", f"{SECOND}.txt"])
def test_a_file_asks_for_the_tasks_it_lists(watched, name, content, task_ids):
    watched.put(name, content)
    order = watched.order()
    assert (order.task_ids, order.problem) == (task_ids, None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (f"{FIRST}\nno id\n", "Line 2 of 'list.txt': 'no id' is no task id; expected letters"),
        ("../../etc/passwd\n", "Line 1 of 'list.txt': '../../etc/passwd' is no task id"),
        ("x" * 200 + "\n", "has 200 characters; expected 128 at most"),
        (f"{FIRST}\n".encode("utf-16"), "is no text in UTF-8; expected task ids, one a line"),
        (b"\xff\n", "is no text in UTF-8"),
        (b"\0\n", "is no task id"),
        ("#\n" * 2**19 + "#\n", "has more than 1 MiB"),
        ("# nothing\n", "lists no task id; write one a line, or name the file by one"),
    ],
)
def test_a_file_with_anything_else_in_it_is_refused_as_a_whole(watched, content, sentence):
    watched.put("list.txt", content, seconds_ago=61)
    order = watched.order()
    assert order.task_ids == ()
    assert sentence in order.problem
    assert "\n" not in order.problem


def test_a_list_of_just_one_mebibyte_is_taken(watched):
    lines = f"{FIRST}\n" * 2
    watched.put("list.txt", lines + "#" * (2**20 - len(lines) - 1) + "\n")
    assert watched.ids() == [FIRST]


def test_a_link_in_a_list_does_not_show_its_secret(watched):
    watched.put("list.txt", "https://h/k?Signature=geheim\n")
    assert "geheim" not in watched.order().problem


@given(st.binary(max_size=60) | st.text(st.sampled_from("ab-.#\r\n \ufeff\0"), max_size=60))
@settings(max_examples=200)
def test_whatever_is_in_a_file_it_is_ids_or_a_problem(content):
    raw = content if isinstance(content, bytes) else content.encode()
    try:
        task_ids, problem = _task_ids("list.txt", raw), ""
    except ValueError as error:
        task_ids, problem = (), str(error)
    assert bool(task_ids) != ("'list.txt'" in problem)
    assert all(task_id.encode() in raw for task_id in task_ids)


@pytest.mark.parametrize(
    "name", [".hidden", ".list.txt.swp", "list.tmp", "list.txt.PART", "x.partial", "list.txt~"]
)
def test_a_file_that_is_being_written_is_left_alone(watched, name):
    watched.put(name, f"{FIRST}\n", seconds_ago=1000)
    assert watched.inbox.scan() == watched.inbox.scan() == []


def test_a_young_file_is_taken_at_the_second_look_if_it_has_not_changed(watched):
    path = watched.put("list.txt", f"{FIRST}\n", seconds_ago=0.5)
    assert watched.ids() == []
    watched.put("list.txt", f"{FIRST}\n{SECOND}\n", seconds_ago=0.1)
    assert watched.ids() == []
    watched.touch(path, seconds_ago=0.0)
    assert watched.ids() == []
    assert watched.ids() == [FIRST, SECOND]


def test_a_file_from_the_future_is_taken_at_the_second_look(watched):
    """The clock of a file server is not ours."""
    watched.put("list.txt", f"{FIRST}\n", seconds_ago=-500)
    assert watched.ids() == []
    assert watched.ids() == [FIRST]


def test_another_file_of_the_same_name_is_looked_at_anew(watched):
    path = watched.put("list.txt", f"{FIRST}\n", seconds_ago=0.5)
    watched.inbox.scan()
    path.rename(watched.folder / ".kept")
    watched.put("list.txt", f"{FIRST}\n", seconds_ago=0.5)
    assert watched.ids() == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", ""),  # `slow-command > list.txt` has only begun
        ("list", ""),
        ("list.txt", f"{FIRST}\n{SECOND[:20]}"),  # cut within an id, which is one too
        ("list.txt", "sample-42"),
        (FIRST, "sample-4"),
    ],
)
def test_what_looks_cut_off_is_left_alone_for_a_minute(watched, name, content):
    watched.put(name, content, seconds_ago=0)
    for _ in range(3):
        watched.now += 19.9
        assert watched.inbox.scan() == []
    watched.now += 1
    assert len(watched.inbox.scan()) == 1


def test_a_minute_begins_anew_with_every_change(watched):
    watched.put("list.txt", "sample-4", seconds_ago=0)
    watched.inbox.scan()
    watched.now += 59
    watched.put("list.txt", "sample-42", seconds_ago=0)
    watched.now += 59
    assert watched.ids() == []
    watched.now += 1
    assert watched.ids() == ["sample-42"]


def test_an_order_stays_until_it_is_accepted(watched):
    watched.put("list.txt", f"{FIRST}\n")
    assert watched.ids() == [FIRST]
    assert Watched(watched.folder).ids() == [FIRST]  # as after a crash
    order = watched.order()
    assert watched.inbox.accept(order) == watched.folder / "accepted" / "list.txt"
    assert watched.names() == ["accepted/list.txt"]
    assert watched.inbox.scan() == []


def test_what_is_rejected_lies_beside_the_reason(watched):
    watched.put("list.txt", "no id\n")
    order = watched.order()
    assert watched.inbox.reject(order) == watched.folder / "rejected" / "list.txt"
    assert watched.names() == ["rejected/list.txt", "rejected/list.txt.reason.txt"]
    reason = watched.folder / "rejected" / "list.txt.reason.txt"
    assert reason.read_text(encoding="utf-8") == f"{order.problem}\n"


def test_an_order_without_a_problem_can_be_rejected_too(watched):
    watched.put(FIRST)
    watched.inbox.reject(watched.order())
    reason = watched.folder / "rejected" / f"{FIRST}.reason.txt"
    assert reason.read_text() == "The tasks in it could not be taken\n"


def test_files_of_one_name_do_not_replace_each_other(watched):
    for number in range(4):
        watched.put("list.txt", f"{FIRST}\n#{number}\n")
        watched.inbox.accept(watched.order())
    names = ["list", "list-20231114T221320Z", "list-20231114T221320Z-2", "list-20231114T221320Z-3"]
    assert watched.names() == sorted(f"accepted/{name}.txt" for name in names)
    texts = [(watched.folder / name).read_text() for name in watched.names()]
    assert len(set(texts)) == 4


def test_a_reason_replaces_no_file_of_that_name(watched):
    watched.put("list.txt.reason.txt", "no id\n")
    watched.inbox.reject(watched.order())
    watched.put("list.txt", "no id\n")
    watched.inbox.reject(watched.order())
    assert len(watched.names()) == 4
    assert (watched.folder / "rejected" / "list.txt.reason.txt").read_text() == "no id\n"


@pytest.mark.parametrize("name", ["\u53d8" * 84, "x" * 255, os.fsdecode(b"\xff" * 250)])
def test_the_longest_names_can_be_moved(watched, name):
    for content in (f"{FIRST}\n", "no id\n", "no id\n"):
        watched.put(name, content)
        order = watched.order()
        move = watched.inbox.reject if order.problem else watched.inbox.accept
        assert move(order).is_file()
    assert len(watched.names()) == 5


def test_a_file_that_was_changed_meanwhile_is_not_moved(watched):
    watched.put("list.txt", f"{FIRST}\n")
    order = watched.order()
    watched.put("list.txt", f"{FIRST}\n{SECOND}\n")
    assert watched.inbox.accept(order) is None
    assert watched.inbox.reject(order) is None
    assert watched.ids() == [FIRST, SECOND]


def test_a_file_that_was_taken_away_meanwhile_is_no_error(watched):
    path = watched.put("list.txt", f"{FIRST}\n")
    order = watched.order()
    path.unlink()
    assert watched.inbox.accept(order) is None
    assert watched.inbox.scan() == []


def test_folders_are_left_alone(watched):
    (watched.folder / "below").mkdir()
    (watched.folder / FIRST).mkdir()
    (watched.folder / "below" / SECOND).touch()
    assert watched.inbox.scan() == watched.inbox.scan() == []


def test_a_link_is_not_followed(watched, tmp_path):
    (tmp_path / "elsewhere").write_text(f"{FIRST}\n")
    link = watched.folder / "link"
    link.symlink_to(tmp_path / "elsewhere")
    watched.touch(link, seconds_ago=10)
    order = watched.order()
    assert order.problem == "'link' is a link; expected a file of its own that lists task ids"
    watched.inbox.reject(order)
    assert (watched.folder / "rejected" / "link").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == f"{FIRST}\n"


@pytest.mark.timeout(5)
def test_a_pipe_or_a_socket_does_not_stop_anything(watched):
    os.mkfifo(watched.folder / "pipe")
    watched.touch(watched.folder / "pipe", seconds_ago=10)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(watched.folder / "socket"))
        watched.touch(watched.folder / "socket", seconds_ago=10)
        problems = [order.problem for order in watched.inbox.scan()]
    assert [problem.split(";")[0] for problem in problems] == [
        "'pipe' is no ordinary file",
        "'socket' is no ordinary file",
    ]


def test_orders_come_in_the_order_of_their_names_and_not_too_many_at_once(tmp_path):
    watched = Watched(tmp_path, most=3)
    for name in "edcba":
        watched.put(f"{name}.task")
    assert watched.ids() == ["a", "b", "c"]
    for order in watched.inbox.scan():
        watched.inbox.accept(order)
    assert watched.ids() == ["d", "e"]


def test_a_scan_ends_by_the_number_of_task_ids_too(tmp_path, monkeypatch):
    """A thousand files of 1 MiB would list more of them than the memory bears."""
    monkeypatch.setattr(inbox, "MAX_IDS", 3)
    watched = Watched(tmp_path)
    watched.put("1.txt", "a\nb\n")
    watched.put("2.txt", "c\nd\ne\nf\n")
    watched.put("3.txt", "g\n")
    for listed in (["a", "b", "c", "d", "e", "f"], ["g"], []):
        orders = watched.inbox.scan()
        assert [task_id for order in orders for task_id in order.task_ids] == listed
        for order in orders:
            watched.inbox.accept(order)


def test_a_missing_folder_is_told_once_and_again_after_it_was_there(tmp_path):
    watched = Watched(tmp_path / "box")
    for _ in range(2):
        with pytest.raises(DiskError, match="box could not be read: No such file"):
            watched.inbox.scan()
        assert watched.inbox.scan() == []
        watched.folder.mkdir()
        assert watched.inbox.scan() == []
        watched.folder.rmdir()


def test_another_trouble_with_the_folder_is_told_as_well(tmp_path):
    watched = Watched(tmp_path / "box")
    with pytest.raises(DiskError, match="No such file"):
        watched.inbox.scan()
    watched.folder.touch()
    with pytest.raises(DiskError, match="Not a directory; make it a folder that this user can"):
        watched.inbox.scan()
    with pytest.raises(DiskError, match="could not be made: File exists"):
        watched.inbox.prepare()


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_a_folder_that_may_not_be_read_is_told(as_nobody, open_directory, mode):
    watched = Watched(open_directory)
    watched.put(FIRST)
    with as_nobody():
        assert watched.ids() == [FIRST]
    open_directory.chmod(mode)
    with as_nobody(), pytest.raises(DiskError, match="Permission denied"):
        watched.inbox.scan()
    open_directory.chmod(0o777)
    assert watched.ids() == [FIRST]


def test_a_file_that_may_not_be_read_is_an_order_with_a_problem(as_nobody, open_directory):
    watched = Watched(open_directory)
    watched.put("list.txt", f"{FIRST}\n").chmod(0)
    with as_nobody():
        order = watched.order()
        assert "could not be read: Permission denied; make it readable" in order.problem
        assert watched.inbox.reject(order) is not None


def test_a_folder_that_may_not_be_written_is_told_once_and_stops_no_other_order(
    as_nobody, open_directory
):
    """The order is found again and again, and moved when that has become possible."""
    watched = Watched(open_directory, most=1)
    watched.put(FIRST)
    watched.put(SECOND)
    open_directory.chmod(0o555)
    with as_nobody():
        order = watched.order()
        with pytest.raises(DiskError, match=r"could not be moved to accepted/: Permission denied;"):
            watched.inbox.accept(order)
        assert watched.inbox.accept(order) is None
        assert watched.ids() != list(order.task_ids)
    open_directory.chmod(0o777)
    with as_nobody():
        assert watched.inbox.accept(order) is not None
        assert len(watched.inbox.scan()) == 1


@pytest.mark.parametrize("place", ["accepted", "rejected"])
def test_no_file_is_moved_through_a_link(watched, tmp_path, place):
    """Whoever may write into the inbox could otherwise choose where our files go."""
    (tmp_path / "elsewhere").mkdir()
    (watched.folder / place).symlink_to(tmp_path / "elsewhere")
    watched.put("list.txt", f"{FIRST}\n")
    order = watched.order()
    move = watched.inbox.accept if place == "accepted" else watched.inbox.reject
    with pytest.raises(DiskError, match=f"{place}/: Not a directory"):
        move(order)
    assert [*(tmp_path / "elsewhere").iterdir()] == []


def test_no_reason_stays_of_a_file_that_could_not_be_moved(as_nobody, open_directory):
    """A folder that everybody may write, but rename only what is theirs, as /tmp."""
    watched = Watched(open_directory)
    watched.put("list.txt", "no id\n")
    if os.geteuid() != 0:
        pytest.skip("only root can put somebody else's file there")
    (open_directory / "rejected").mkdir()
    (open_directory / "rejected").chmod(0o777)
    open_directory.chmod(0o1777)
    with as_nobody():
        order = watched.order()
        with pytest.raises(DiskError, match="Operation not permitted"):
            watched.inbox.reject(order)
    assert watched.names() == ["list.txt"]


def test_without_a_clock_of_its_own_an_inbox_takes_what_is_there(tmp_path):
    inbox = Inbox(tmp_path / "box")
    inbox.prepare()
    inbox.prepare()
    Path(tmp_path / "box" / FIRST).touch()
    orders = [*inbox.scan(), *inbox.scan()]
    assert orders[-1].task_ids == (FIRST,)
