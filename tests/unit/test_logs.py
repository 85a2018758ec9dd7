"""Logs: a sentence for people, and never a secret, whichever way it came in."""

import contextlib
import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import warnings
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.logs import (
    LIBRARY_LOGGERS,
    OWN_LOGGERS,
    facts,
    safe_lines,
    scrubbed,
    set_up_logging,
    set_up_service_logging,
)

LINK = "https://b.oss-cn-x.aliyuncs.com/k?Expires=9&OSSAccessKeyId=geheim1&Signature=geheim%2B2%3D"


@contextlib.contextmanager
def kept_loggers():
    """Give back the loggers as they were."""
    kept = [logging.getLogger(name) for name in (*OWN_LOGGERS, *LIBRARY_LOGGERS)]
    before = [(each.handlers, each.level, each.propagate) for each in kept]
    try:
        yield
    finally:
        for each, (handlers, level, propagate) in zip(kept, before, strict=True):
            each.handlers, each.propagate = handlers, propagate
            each.setLevel(level)
        logging.captureWarnings(False)


@pytest.fixture
def loggers():
    with kept_loggers():
        yield


@pytest.mark.parametrize(
    "text",
    [
        LINK,
        f"got <{LINK}>, '{LINK}'",
        "?security-token=geheim&x=1",
        "x-oss-signature=geheim",
        "x-oss-credential=geheim/20240229/cn/oss",
        "x-oss-security-token=geheim",
        "app_key=1&sign=geheim",
        "app_secret=geheim",
        "SIGNATURE=geheim",
        "{'Signature': 'geheim', 'x': 1}",
        '{"app_secret": "geheim"}',
        '{"url": "https://h/k?Signature=geheim"}',
        "https%3A%2F%2Fh%2Fk%3FSignature%3Dgeheim",
        "%3FExpires%3D9%26OSSAccessKeyId%3Dgeheim",
        "%253FSignature%253Dgeheim",
    ],
)
def test_a_secrets_value_is_taken_out(text):
    assert "geheim" not in scrubbed(text)
    assert "\u2026" in scrubbed(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The signature is wrong",
        "design=1 and assignature=2",
        "signature_nonce=3&timestamp=4",
        "https://h/k?Expires=9&x=1",
        "sign: none",
    ],
)
def test_what_is_no_secret_stays(text):
    assert scrubbed(text) == text


def test_what_stands_around_a_secret_stays():
    assert scrubbed("a?x=1&Signature=s&y=2 b") == "a?x=1&Signature=\u2026&y=2 b"


@given(text=st.text(max_size=60) | st.text(st.sampled_from("sign=%3d&?'\": "), max_size=60))
def test_scrubbing_twice_changes_nothing_more(text):
    assert scrubbed(scrubbed(text)) == scrubbed(text)


@pytest.mark.timeout(5)
def test_a_long_hostile_text_is_scrubbed_in_linear_time():
    text = "signature" * 50_000 + "%25" * 50_000 + "sign'" + " " * 50_000
    assert scrubbed(text) == text


def test_no_secret_is_logged_by_argument_or_traceback(loggers, capsys):
    set_up_logging(verbose=True)
    logger = logging.getLogger("downloader.transfer")
    logger.debug("got %s", LINK)
    try:
        int(LINK)
    except ValueError:
        logger.exception("failed at %s", {"Signature": "geheim"})
    told = capsys.readouterr()
    assert told.out == ""
    assert "geheim" not in told.err
    assert "ValueError: invalid literal" in told.err
    assert told.err.startswith("DEBUG downloader.transfer: got https://")


def test_what_a_server_says_cannot_steer_the_terminal(loggers, capsys):
    set_up_logging()
    logging.getLogger("downloader").warning("said: a\x1b]0;owned\x07\x9bb\rc\td\u53d8")
    told = capsys.readouterr().err
    assert told == "WARNING downloader: said: a?]0;owned??b\nc d\u53d8\n"


def test_people_hear_warnings_and_ask_for_more(loggers, capsys):
    set_up_logging()
    for name in ("downloader.x", "state.y"):
        logging.getLogger(name).info("detail")
        logging.getLogger(name).warning("trouble")
    assert capsys.readouterr().err == ("WARNING downloader.x: trouble\nWARNING state.y: trouble\n")


def test_setting_up_twice_says_everything_once(loggers, capsys):
    set_up_logging()
    set_up_logging(verbose=True)
    logging.getLogger("downloader").info("once")
    assert len(re.findall("once", capsys.readouterr().err)) == 1


def test_the_loggers_of_others_are_left_alone(loggers):
    before = list(logging.getLogger().handlers)
    set_up_logging(verbose=True)
    assert logging.getLogger().handlers == before
    assert logging.getLogger("aiohttp").level == logging.NOTSET


class Status(Enum):
    READY = "SUCCESS"


class Mute:
    def __str__(self):
        raise RuntimeError("not telling")


class Log:
    """What the service writes on a stream that is no file."""

    def __init__(self, form="text", **options):
        self.stream = io.StringIO()
        self.now = 0.0
        options = {"stream": self.stream, "environ": {}, "clock": lambda: self.now} | options
        set_up_service_logging(form, **options)

    @property
    def lines(self):
        return self.stream.getvalue().splitlines()

    @property
    def last(self):
        """The last line without its time stamp."""
        return self.lines[-1].partition(" ")[2]

    @property
    def objects(self):
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def service(loggers):
    """Give what sets the service's logging up."""
    return Log


@pytest.fixture
def own(loggers):
    """Give one of the service's own loggers."""
    return logging.getLogger("downloader.service")


def test_an_event_is_a_time_a_level_a_sentence_and_its_facts(service, own):
    log = service()
    own.info("Published", extra=facts(task="t-1", bytes=12, to=Path("/data/t-1")))
    stamp, _, rest = log.lines[0].partition(" ")
    assert rest == "INFO Published task=t-1 bytes=12 to=/data/t-1"
    assert datetime.fromisoformat(stamp).utcoffset() is not None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (0, "0"),
        (10**30, "1" + "0" * 30),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "a"', r'"say \"a\""'),
        ("back\\slash", r'"back\\slash"'),
        ("two\nlines", r'"two\nlines"'),
        ("\u53d8", "\u53d8"),
        (b"raw\xff", r'"raw\\xff"'),
        (Path("/a b"), '"/a b"'),
        (Path("/\udcff"), "/?"),
        (Status.READY, "SUCCESS"),
        (datetime(2024, 2, 29, 12, tzinfo=UTC), "2024-02-29T12:00:00+00:00"),
        (date(2024, 2, 29), "2024-02-29"),
        (timedelta(minutes=1.5), "90s"),
        ([], '""'),
        (["a", 1, None], "a,1,none"),
        ({"b", "a"}, "a,b"),
        (tuple(range(22)), f'"{",".join(map(str, range(20)))},and 2 more"'),
        (ValueError("not\nso"), '"ValueError: not so"'),
        (KeyError(), "KeyError"),
        (Mute(), "<Mute>"),
    ],
)
def test_every_kind_of_fact_is_written_so_that_it_can_be_read_again(service, own, value, text):
    log = service()
    own.info("e", extra=facts(key=value))
    assert log.last == f"INFO e key={text}"


@given(value=st.text(max_size=30))
def test_no_value_reaches_over_into_another_fact(value):
    with kept_loggers():
        log = Log()
        logging.getLogger("downloader").info("e", extra=facts(key=value, after=1))
    first, _, after = log.lines[-1].partition(" key=")[2].rpartition(" ")
    assert after == "after=1"
    assert first.startswith('"') or not re.search(r'[\s="]', first)
    assert len(log.lines) == 1


def test_json_is_one_object_a_line_with_the_facts_beside_the_event(service, own):
    log = service("json")
    own.info("Published", extra=facts(task="t-1", bytes=12, rate=float("nan"), files=["a", 2]))
    event = log.objects[0]
    assert datetime.fromisoformat(event.pop("time")).utcoffset() is not None
    assert event == {
        "level": "INFO",
        "event": "Published",
        "logger": "downloader.service",
        "task": "t-1",
        "bytes": 12,
        "rate": "nan",
        "files": ["a", 2],
    }


def test_a_fact_never_replaces_what_every_event_has(service, own):
    log = service("json")
    own.info("e", extra=facts(level=1, event="x", logger=None, time_=3, time=4))
    event = log.objects[0]
    assert (event["level"], event["event"], event["logger"]) == ("INFO", "e", "downloader.service")
    assert (event["level_"], event["event_"], event["logger_"]) == (1, "x", None)
    assert (event["time_"], event["time__"]) == (3, 4)


@given(value=st.text() | st.binary() | st.floats() | st.lists(st.text(max_size=5), max_size=30))
def test_a_line_of_json_is_always_json_and_ascii(value):
    with kept_loggers():
        log = Log("json")
        logging.getLogger("state").info("%s", value, extra=facts(key=value))
    assert "key" in log.objects[0]
    assert log.lines[0].isascii()


@pytest.fixture
def journal():
    """Give both ends of a stream that stands in for the journal's, and its environment."""
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("w", encoding="utf-8") as stream:
        status = os.fstat(ours.fileno())
        yield stream, theirs, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.CRITICAL, 3),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (25, 5),
        (logging.INFO, 6),
        (logging.DEBUG, 7),
    ],
)
def test_the_journal_gets_the_priority_and_no_time(service, own, journal, level, priority):
    stream, reader, environ = journal
    service("auto", stream=stream, environ=environ, level=logging.DEBUG)
    own.log(level, "Published", extra=facts(task="t-1"))
    assert reader.recv(4096).decode() == f"<{priority}>Published task=t-1\n"


def test_in_the_journal_a_message_of_many_lines_is_one_record(service, own, journal):
    stream, reader, environ = journal
    service("auto", stream=stream, environ=environ)
    own.warning("one\n<0>two\r\nthree\u2028four")
    assert reader.recv(4096).decode() == "<4>one <0>two three four\n"


def test_json_for_the_journal_has_the_prefix_that_the_journal_takes_off(service, own, journal):
    stream, reader, environ = journal
    service("json", stream=stream, environ=environ)
    own.info("Published")
    line = reader.recv(4096).decode()
    assert line.startswith("<6>{")
    assert json.loads(line[3:])["event"] == "Published"


@pytest.mark.parametrize("named", ["", "1:2", "nonsense"])
def test_another_ones_journal_is_not_ours(service, own, journal, named):
    """A program whose stderr was led elsewhere still has the variable."""
    stream, reader, _ = journal
    service("auto", stream=stream, environ={"JOURNAL_STREAM": named})
    own.info("Published")
    assert re.match(rb"\d{4}-.* INFO Published", reader.recv(4096))


def test_an_error_is_one_line_and_its_traceback_is_for_debugging(service, own):
    for level in (logging.INFO, logging.DEBUG):
        log = service(level=level)
        try:
            raise ValueError("two\nlines")  # noqa: TRY301 - raised to be caught
        except ValueError:
            own.exception("Failed", extra=facts(task="t"))
        assert len(log.lines) == 1
        assert log.last.startswith('ERROR Failed task=t error="ValueError: two lines"')
        assert ("traceback=" in log.last) == (level == logging.DEBUG)
    assert r'traceback="Traceback (most recent call last):\n  File' in log.last


def test_of_a_group_of_errors_each_is_named(service, own):
    log = service("json")
    own.error("Failed", exc_info=ExceptionGroup("two", [ValueError("a"), OSError("b")]))
    assert log.objects[0]["error"] == "ExceptionGroup: ValueError: a; OSError: b"


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_in_an_event_or_a_fact_or_a_traceback(service, own, form):
    log = service(form, level=logging.DEBUG)
    try:
        int(LINK)
    except ValueError:
        own.exception(
            f"failed at {LINK}",
            extra=facts(link=LINK, links=[LINK], raw=LINK.encode(), app_secret="geheim und mehr"),
        )
    own.info("%s", LINK, extra=facts(sign="geheim", shown={"Signature": "geheim"}))
    assert "geheim" not in log.stream.getvalue()
    assert "mehr" not in log.stream.getvalue()
    assert "ValueError" in log.stream.getvalue()


def test_what_others_say_in_a_fact_cannot_steer_the_terminal(service, own):
    log = service()
    own.info("a\x1b[2Jb", extra=facts(name="x\x07\x9by"))
    assert log.last == "INFO a?[2Jb name=x??y"


def test_a_message_that_does_not_fit_its_arguments_is_told_nevertheless(service, own):
    log = service()
    own.info("%d of %d", 1)
    own.info("e", extra={"facts": 7})
    assert log.lines[0].endswith("INFO %d of %d (1,)")
    assert log.last == "INFO e"


def test_a_long_text_is_cut_before_the_journal_cuts_it(service, own):
    log = service()
    own.info("x" * 100_000, extra=facts(key="y" * 100_000))
    assert len(log.last) < 9000


@pytest.mark.parametrize("name", ["apscheduler.scheduler", "aiohttp.server", "asyncio"])
def test_libraries_are_heard_from_warnings_up(service, name):
    log = service(level=logging.DEBUG)
    logging.getLogger(name).info("detail")
    logging.getLogger(name).warning("trouble")
    assert [line.partition(" ")[2] for line in log.lines] == [f"WARNING trouble logger={name}"]


def test_a_python_warning_is_one_line(service):
    log = service()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old\nway", stacklevel=1)
    assert len(log.lines) == 1
    assert "UserWarning: old way" in log.last
    assert "logger=py.warnings" in log.last


def test_what_a_library_repeats_is_told_once_a_minute_and_counted(service):
    log = service()
    logger = logging.getLogger("apscheduler.scheduler")
    for second in (0, 2, 30, 59.9, 60, 61, 120):
        log.now = second
        logger.warning("Execution of job %s skipped", second)
    assert [line.partition(" ")[2] for line in log.lines] == [
        "WARNING Execution of job 0 skipped logger=apscheduler.scheduler",
        "WARNING Execution of job 60 skipped logger=apscheduler.scheduler held_back=3",
        "WARNING Execution of job 120 skipped logger=apscheduler.scheduler held_back=1",
    ]


def test_only_the_same_is_held_back(service):
    log = service()
    for name, level, text in [
        ("apscheduler", logging.WARNING, "a"),
        ("apscheduler", logging.ERROR, "a"),
        ("apscheduler", logging.WARNING, "b"),
        ("asyncio", logging.WARNING, "a"),
    ]:
        logging.getLogger(name).log(level, text)
        logging.getLogger(name).log(level, text)
    for text in ("a", "b"):
        logging.getLogger("aiohttp").warning("%s", text)
    assert len(log.lines) == 6


def test_our_own_events_are_never_held_back(service, own):
    log = service()
    for number in range(3):
        own.info("Published", extra=facts(number=number))
    assert len(log.lines) == 3


def test_thousands_of_different_messages_do_not_fill_the_memory(service):
    service()
    logger = logging.getLogger("asyncio")
    for number in range(1500):
        logger.warning(f"at {number}")
    assert len(logger.handlers[0]._repeats._told) == 1000


def test_setting_up_the_service_twice_says_everything_once(service, own):
    service()
    log = service()
    own.info("once")
    assert len(log.lines) == 1


@pytest.mark.parametrize("target", ["/dev/full", "closed pipe"])
def test_a_broken_stderr_neither_raises_nor_changes_the_exit_code(target):
    code = (
        "import logging, sys; from downloader.logs import set_up_service_logging\n"
        "set_up_service_logging(); logger = logging.getLogger('downloader')\n"
        "sys.stdin.read()\n"
        "for _ in range(3): logger.error('lost')\n"
        "print('still here')"
    )
    read, write = os.pipe() if target == "closed pipe" else (None, os.open(target, os.O_WRONLY))
    if read is not None:
        os.close(read)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=write,
        check=False,
    )
    os.close(write)
    assert (ended.returncode, ended.stdout) == (0, b"still here\n")


def test_a_closed_stream_is_no_error(service, own, tmp_path):
    stream = (tmp_path / "log").open("w")
    service(stream=stream)
    stream.close()
    own.error("lost")


def test_a_pipe_that_nobody_reads_does_not_stop_the_service(service, own):
    """And a line that was cut off by it does not swallow the next one."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    os.set_blocking(read, False)
    with open(read, "rb") as reader, open(write, "w") as stream:  # noqa: PTH123 - descriptors
        service(stream=stream)
        for _ in range(100):
            own.info("x" * 3000, extra=facts(key="y" * 3000))  # more than a pipe takes whole
        told = reader.read()
        own.info("z")
        assert told.endswith(b"y")
        assert re.fullmatch(rb"\n\S+ INFO z\n", reader.read())


def test_a_character_that_the_stream_does_not_have_is_spelled_out(service, own, tmp_path):
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        service(stream=stream)
        own.info("caf\u00e9")
    assert (tmp_path / "log").read_text().endswith("INFO caf\\xe9\n")


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_a_name_cannot_begin_a_line(end):
    assert len(safe_lines(f"Warning: a{end}bge-downloader: all is well")) == 1
