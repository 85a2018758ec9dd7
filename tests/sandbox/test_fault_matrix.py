"""Every row of the fault matrix, made to happen: what comes of it, and what is fetched again."""

import asyncio
import itertools
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import reliability
from matrix.program import close_launcher
from matrix.row import BOTH
from matrix.story import Story, story_in
from matrix.table import PARTS

from state import AsyncStore, StateStore

AT_EACH_SECONDS = 600  # for dozens of programs, one after the other


def _cases():
    for part, rows in PARTS.items():
        for row in rows:
            for road in row.roads:
                is_process = row.act is not Story.fetch
                is_again = road == "plain" and len(row.roads) > 1
                marks = [pytest.mark.thorough] if row.at_each or is_process or is_again else []
                if row.at_each:
                    marks.append(pytest.mark.timeout(AT_EACH_SECONDS))
                yield pytest.param(part, row, road, id=f"{part}: {row.fault} ({road})", marks=marks)


@pytest.fixture(scope="module")
def quick_place():
    """A directory in memory, where there is one: thousands of syncs are made here."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="bge-test-", dir=memory) as directory:
        yield Path(directory)


@pytest.fixture
def place(quick_place):
    """A directory for one row."""
    directory = Path(tempfile.mkdtemp(dir=quick_place))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def states(quick_place):
    """Tell the state of a row, by whether it wants one of its own.

    The others share one that stays open, and a new one is a copy: to make one takes longer than
    to fetch a task.
    """
    new = quick_place / "new.db"
    StateStore.open(new).close()
    shared = asyncio.run(AsyncStore.open(quick_place / "state.db"))
    yield {True: new, False: shared}
    asyncio.run(shared.aclose())


@pytest.fixture(scope="module", autouse=True)
def _no_launcher_is_left():
    yield
    close_launcher()


@pytest.mark.parametrize(("part", "row", "road"), [*_cases()])
async def test_what_the_matrix_says_comes_true(part, row, road, *, place, states, record_property):
    came = size = again = 0
    has_own_state = part == "The state" or row.act is not Story.fetch
    async with story_in(place, road, state=states[has_own_state]) as story:
        for story.chance in itertools.count(1):
            has_come = await _tell(row, story)
            came, size = came + has_come, size + story.size
            again += max(0, story.served - story.size)
            if not has_come or not row.at_each:
                break
            story.store.forget_requests()
            story.add_task()
        assert not row.at_each or story.chance > 1
    record_property("figures of faults", [part, 1, came, size, again])


async def _tell(row, story):
    """Let the fault come, then be over; return whether it has come."""
    async with row.cause(story) as given:
        outcome = await row.act(story)
        happened = getattr(given, "happened", True)
        expected = row.ends if happened else 0
        if happened and outcome.exit_code in _others(row):
            expected = outcome.exit_code
        assert outcome.exit_code == expected, outcome.sentence
        assert re.search(row.says if expected else "", outcome.sentence)
        assert "\n" not in outcome.sentence
        assert re.search(row.notes, "\n".join(story.heard.notes))
        story.check_promises(is_published=expected == 0)
    await _goes_on(row, story, is_published=expected == 0)
    return happened


def _others(row):
    return {row.or_ends, 0 if row.may_go_on else None} - {None}


async def _goes_on(row, story, *, is_published):
    """Once the fault is over the same command publishes, and the next one moves nothing."""
    # A byte of each file that is whole tells whether it is still the same.
    most = row.again.most(story) + len(story.files)
    if not is_published:
        most += story.size - len(story.data)  # small files that were on their way when it ended
        again = await story.fetch()
        assert again.exit_code == 0, again.sentence
    served = story.served
    assert served - story.size <= most
    if not is_published or (story.road == row.roads[0] and story.chance == 1):
        again = await story.fetch()
        assert again.exit_code == 0, again.sentence
        assert story.served == served
    story.check_promises(is_published=True)


def test_every_fault_has_one_row():
    names = [(part, row.fault) for part, rows in PARTS.items() for row in rows]
    assert len(names) == len(set(names))
    assert all(
        road in (*BOTH, "process") for rows in PARTS.values() for row in rows for road in row.roads
    )


def test_the_document_shows_this_very_table():
    """`python tests/reliability.py --write` writes it; this is what notices that nobody did."""
    text = reliability.DOCUMENT.read_text(encoding="utf-8")
    assert reliability.filled(text) == text
