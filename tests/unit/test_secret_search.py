"""What looks for secrets after every test finds them where they are."""

import sqlite3

import pytest
from secret_search import leaks, leaks_below, leaks_in_sections

from downloader.sandbox import Sandbox


@pytest.fixture
def link():
    store = Sandbox().store
    return store.object_url("run/a", security_token="token-of-nobody")


@pytest.fixture
def place(tmp_path_factory):
    """A directory that is not looked through after the test."""
    return tmp_path_factory.mktemp("planted")


@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "bge-manifest.json", "SHA256SUMS"])
def test_a_secret_in_what_is_kept_is_found(place, name, link):
    (place / "deep").mkdir()
    (place / "deep" / name).write_text(f"before {link} and {Sandbox.app_secret} behind")
    assert len([*leaks_below(place)]) == 4


def test_a_secret_in_a_row_is_found(place):
    with sqlite3.connect(place / "state.db") as connection:
        connection.execute("CREATE TABLE t (message TEXT)")
        connection.execute("INSERT INTO t VALUES (?)", [f"it said {Sandbox.app_secret}"])
    connection.close()
    assert [*leaks_below(place)] == [f"{Sandbox.app_secret} in state.db"]


def test_a_secret_in_what_was_printed_or_logged_is_found(link):
    sections = [("Captured stderr call", "fine"), ("Captured log call", link)]
    assert len([*leaks_in_sections(sections)]) == 3


def test_what_a_test_has_written_itself_is_nobodys_leak(place, link):
    (place / "settings.toml").write_text(link)
    assert [*leaks_below(place)] == []


def test_a_link_without_its_query_is_no_secret(link):
    assert leaks(link.partition("?")[0]) == []
