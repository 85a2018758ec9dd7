"""Logs: a sentence for people, and never a secret, whichever way it came in."""

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.logs import scrubbed, set_up_logging

LINK = "https://b.oss-cn-x.aliyuncs.com/k?Expires=9&OSSAccessKeyId=geheim1&Signature=geheim%2B2%3D"


@pytest.fixture
def loggers():
    """Give back the loggers as they were."""
    kept = [logging.getLogger(name) for name in ("downloader", "state")]
    before = [(each.handlers, each.level, each.propagate) for each in kept]
    yield
    for each, (handlers, level, propagate) in zip(kept, before, strict=True):
        each.handlers, each.propagate = handlers, propagate
        each.setLevel(level)


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
