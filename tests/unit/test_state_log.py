"""What SQLite says when it is asked for its log directly, and not by way of SQLAlchemy."""

import contextlib
import sqlite3
import threading

import pytest

from state import StateStore, StateUnreadable, engine


@pytest.fixture
def beginner(tmp_path):
    """Give the path of a state without a log, and a connection that is writing to it."""
    path = tmp_path / "state.db"
    StateStore.open(path).close()
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    with contextlib.closing(connection):
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
        connection.execute("BEGIN IMMEDIATE")
        yield path, connection


def test_another_process_that_makes_the_state_is_waited_for(beginner):
    path, connection = beginner
    timer = threading.Timer(0.1, connection.execute, ["COMMIT"])
    timer.start()
    StateStore.open(path).close()
    timer.join()


def test_one_that_never_ends_is_told_in_a_sentence(beginner, monkeypatch):
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0.05)
    with pytest.raises(StateUnreadable, match="was locked by another process"):
        StateStore.open(beginner[0])
