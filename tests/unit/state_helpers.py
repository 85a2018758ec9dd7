"""What the tests of the state share: a clock that stands still, and a state on each database.

A test module names this one in `pytest_plugins` and imports from it too: PYTEST_DONT_REWRITE.
"""

from datetime import UTC, datetime, timedelta

import pytest

from state import StateStore

START = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
# Signed, as no text in the state may be.
LINK = "https://b.oss-cn-x.aliyuncs.com/k?Expires=9&OSSAccessKeyId=AK&Signature=geheim"
DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.thorough)]


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=DATABASES)
def where(request, tmp_path):
    """The place of an empty state."""
    if request.param == "sqlite":
        return tmp_path / "state.db"
    return request.getfixturevalue("empty_postgresql_state")


@pytest.fixture
def store(where, clock):
    with StateStore.open(where, clock=clock) as opened:
        yield opened
