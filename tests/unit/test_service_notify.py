"""systemd is told on a real socket; without one nothing happens; nothing waits, nothing raises."""

import os
import secrets
import socket
import time

import pytest

from downloader.service.notify import MAX_STATUS, Notifier

FAKE_SECRET = "fake-secret-of-a-test"


class Manager:
    """The other end: what systemd would hear."""

    def __init__(self, address):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(address)

    def heard(self):
        """Return the lines of every message that has come since the last look."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return messages

    def close(self):
        self._socket.close()


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Give a path for a socket that is short enough for one, wherever the tests are."""
    monkeypatch.chdir(tmp_path)
    return "notify"


@pytest.fixture
def manager(address):
    manager = Manager(address)
    yield manager
    manager.close()


@pytest.fixture
def notifier(address, manager):
    return Notifier(address)


def told_everything(notifier):
    notifier.ready("Started")
    notifier.status("Working")
    notifier.watchdog()
    notifier.reloading()
    notifier.stopping("Draining")


def test_each_method_is_one_message(notifier, manager):
    notifier.ready("3 tasks")
    notifier.status("1 of 3 tasks")
    notifier.watchdog()
    notifier.stopping("Draining")
    assert manager.heard() == [
        ["READY=1", "STATUS=3 tasks"],
        ["STATUS=1 of 3 tasks"],
        ["WATCHDOG=1"],
        ["STOPPING=1", "STATUS=Draining"],
    ]


def test_a_status_is_not_changed_by_a_stage_that_names_none(notifier, manager):
    notifier.ready()
    notifier.stopping()
    assert manager.heard() == [["READY=1"], ["STOPPING=1"]]


def test_reloading_tells_the_time_by_the_clock_that_systemd_reads(notifier, manager):
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    after = time.monotonic_ns() // 1000
    [[stage, clock]] = manager.heard()
    assert stage == "RELOADING=1"
    assert before <= int(clock.removeprefix("MONOTONIC_USEC=")) <= after


def test_an_abstract_socket_is_spelled_with_an_at_sign():
    name = f"bge-test-{secrets.token_hex(8)}"
    manager = Manager(f"\0{name}")
    Notifier.from_environment({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert manager.heard() == [["READY=1"]]
    manager.close()


def test_a_status_is_one_printable_line_without_secrets(notifier, manager):
    """Else a task's name could say READY=1 in our place, or move the cursor of a terminal."""
    notifier.status(f"a\nREADY=1\r\x1b[31m\u2028b https://x/?Signature={FAKE_SECRET}")
    [[line]] = manager.heard()
    assert line.startswith("STATUS=a READY=1 ?[31m b https://x/?Signature=")
    assert line.isprintable()
    assert FAKE_SECRET not in line


def test_a_status_is_cut_at_a_length_that_a_screen_can_show(notifier, manager):
    notifier.status("x" * 1_000_000)
    [[line]] = manager.heard()
    assert line == "STATUS=" + "x" * MAX_STATUS + "…"


def test_what_is_no_text_is_told_all_the_same(notifier, manager):
    """A file's name may hold bytes that are no UTF-8."""
    notifier.status("a\udcff")
    assert manager.heard() == [["STATUS=a?"]]


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}], ids=["absent", "empty"])
def test_outside_of_systemd_nobody_is_told(environ, caplog):
    notifier = Notifier.from_environment(environ)
    told_everything(notifier)
    assert notifier.watchdog_seconds is None
    assert caplog.messages == []


@pytest.mark.parametrize("place", ["vsock:2:1234", "relative/path"])
def test_what_is_no_local_socket_is_told_of_and_left_alone(place, caplog):
    told_everything(Notifier.from_environment({"NOTIFY_SOCKET": place}))
    assert caplog.messages == ["NOTIFY_SOCKET is no local socket; systemd is told nothing"]


def test_children_inherit_nothing_that_lets_them_speak_for_us(monkeypatch):
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "/1")
    Notifier.from_environment()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & {*os.environ}


@pytest.mark.parametrize(
    ("watched", "seconds"),
    [
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}, 120),
        ({"WATCHDOG_USEC": "500000"}, 0.5),  # no number: whoever reads it is meant
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, None),  # another is watched
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),  # Python refuses to read so many digits
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_only_if_its_number_is(watched, seconds):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "/nowhere", **watched})
    assert notifier.watchdog_seconds == seconds


@pytest.mark.parametrize("place", ["/nowhere/at/all", "/" + "x" * 200, "/a\0b"])
def test_a_socket_that_is_not_there_is_told_of_once_and_nothing_raises(place, caplog):
    notifier = Notifier(place)
    told_everything(notifier)
    told_everything(notifier)
    [message] = caplog.messages
    assert message.startswith("systemd cannot be told how the service is doing: ")


def test_what_could_not_be_told_is_told_with_the_next_message(address, caplog):
    """A socket that is away for a moment must not cost us READY=1, for which systemd waits."""
    notifier = Notifier(address)
    notifier.ready("Started")
    manager = Manager(address)
    notifier.watchdog()
    notifier.watchdog()
    assert manager.heard() == [["READY=1", "STATUS=Started", "WATCHDOG=1"], ["WATCHDOG=1"]]
    manager.close()


def test_a_stage_that_is_over_is_not_told_late(address):
    notifier = Notifier(address)
    notifier.reloading()
    notifier.ready()
    manager = Manager(address)
    notifier.watchdog()
    assert manager.heard() == [["READY=1", "WATCHDOG=1"]]
    manager.close()


def test_a_full_queue_holds_up_nothing_and_loses_no_stage(notifier, manager, caplog):
    for number in range(2000):  # the kernel holds some hundreds at the most
        notifier.status(str(number))
    notifier.stopping()
    assert len(manager.heard()) < 2000
    notifier.watchdog()
    assert manager.heard() == [["STATUS=1999", "STOPPING=1", "WATCHDOG=1"]]
    assert caplog.messages == []
