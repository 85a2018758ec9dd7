"""Which services work with a state, as others see it."""

import subprocess
import sys

import pytest
from state_helpers import LINK, START

from state import StateUnreadable, current_owner, is_alive
from state.services import SILENT_SECONDS

pytest_plugins = ["state_helpers"]


@pytest.fixture
def services(store):
    return store.services


def alive(services, clock):
    return [one.owner for one in services.list() if is_alive(one, now=clock())]


def test_a_service_that_has_started_is_known_and_alive(services, clock):
    owner = current_owner()
    assert services.list() == []
    services.started(owner, "/data")
    [known] = services.list()
    assert (known.owner, known.dest, known.started_at) == (owner, "/data", START)
    assert (known.seen_at, known.stopped_at, known.condition) == (START, None, None)
    assert alive(services, clock) == [owner]


def test_a_heartbeat_tells_where_results_go_and_what_is_in_the_way(services, clock):
    owner = current_owner()
    services.started(owner, "/data")
    clock.advance(15)
    services.seen(owner, dest="/other", condition="no room")
    [known] = services.list()
    assert (known.dest, known.condition, known.seen_at) == ("/other", "no room", clock())
    assert known.started_at == START
    services.seen(owner, dest="/other", condition=None)
    assert services.list()[0].condition is None


def test_a_service_that_is_silent_for_long_is_not_there_until_it_is_heard_again(services, clock):
    owner = current_owner()
    services.started(owner, "/data")
    clock.advance(SILENT_SECONDS - 0.001)
    assert alive(services, clock) == [owner]
    clock.advance(0.001)
    assert alive(services, clock) == []
    services.seen(owner, dest="/data", condition=None)
    assert alive(services, clock) == [owner]


def test_a_service_that_has_stopped_is_not_there_and_its_place_stays_known(services, clock):
    owner = current_owner()
    services.started(owner, "/data")
    services.seen(owner, dest="/data", condition="no room")
    services.stopped(owner)
    assert alive(services, clock) == []
    [known] = services.list()
    assert (known.dest, known.condition, known.stopped_at) == ("/data", None, START)
    services.seen(owner, dest="/data", condition=None)  # a heartbeat that was on its way
    assert alive(services, clock) == []


def test_a_service_that_has_died_is_not_there(services, clock):
    code = "from state import current_owner; print(current_owner())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    services.started(said.stdout.strip(), "/data")
    assert alive(services, clock) == []


def test_whoever_starts_forgets_those_who_are_gone_and_nobody_else(services, clock):
    gone, stopped, living, new = (current_owner() for _ in range(4))
    services.started(gone, "/gone")
    clock.advance(SILENT_SECONDS)
    services.started(living, "/living")
    services.started(stopped, "/stopped")
    services.stopped(stopped)
    clock.advance(1)
    services.started(new, "/new")
    assert [known.owner for known in services.list()] == [new, living]


def test_a_service_that_was_forgotten_while_it_was_silent_is_known_again(services, clock):
    """Its machine was suspended, and another service has started meanwhile."""
    silent, other = current_owner(), current_owner()
    services.started(silent, "/data")
    clock.advance(SILENT_SECONDS)
    services.started(other, "/data")
    assert alive(services, clock) == [other]
    services.seen(silent, dest="/data", condition="no room")
    assert set(alive(services, clock)) == {silent, other}
    assert {known.condition for known in services.list()} == {"no room", None}


def test_a_service_may_start_twice(services, clock):
    owner = current_owner()
    services.started(owner, "/one")
    services.started(owner, "/two")
    assert [known.dest for known in services.list()] == ["/two"]
    assert alive(services, clock) == [owner]


def test_no_secret_and_nothing_that_cannot_be_kept_is_in_a_condition(services):
    owner = current_owner()
    services.started(owner, "/data")
    services.seen(owner, dest="/data", condition=f"{LINK} \0 \ud800")
    assert services.list()[0].condition == "https://b.oss-cn-x.aliyuncs.com/k?… \\0 \\ud800"


@pytest.mark.parametrize("dest", ["/样本/ö", '/it\'s "%41" {x}?', "/a\\b\n;--", "/:name"])
def test_a_place_comes_back_exactly_as_it_was_given(services, dest):
    services.started(current_owner(), dest)
    assert services.list()[0].dest == dest


def test_a_place_that_is_no_unicode_is_refused_in_a_sentence(services):
    with pytest.raises(StateUnreadable, match="cannot keep"):
        services.started(current_owner(), "/data/\udcff")
    assert services.list() == []
