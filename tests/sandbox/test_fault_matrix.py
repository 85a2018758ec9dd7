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
from matrix.story import story_in
from matrix.table import PARTS

from state import AsyncStore, StateStore


def _cases():
    for part, rows in PARTS.items():
        for row in rows:
            for road in row.roads:
                has_own_state = part in ("The process", "The state")
                marks = [pytest.mark.xfail(reason=row.not_yet)] if row.not_yet else []
                is_slow = row.at_each or part == "The process"
                if is_slow or (road == "plain" and len(row.roads) > 1):
                    marks.append(pytest.mark.thorough)
                yield pytest.param(
                    row, road, has_own_state, id=f"{part}: {row.fault} ({road})", marks=marks
                )


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


@pytest.mark.parametrize(("row", "road", "has_own_state"), [*_cases()])
async def test_what_the_matrix_says_comes_true(row, road, has_own_state, place, states):
    async with story_in(place, road, state=states[has_own_state]) as story:
        for story.chance in itertools.count(1):
            if not await _tell(row, story) or not row.at_each:
                break
            story.store.forget_requests()
            story.add_task()
        assert not row.at_each or story.chance > 1


async def _tell(row, story):
    """Let the fault come, then be over; return whether it has come."""
    async with row.cause(story) as given:
        outcome = await row.act(story)
        happened = getattr(given, "happened", True)
        goes_on = row.may_go_on and outcome.exit_code == 0
        expected = row.ends if happened and not goes_on else 0
        assert outcome.exit_code == expected, outcome.sentence
        assert re.search(row.says if expected else "", outcome.sentence)
        assert "\n" not in outcome.sentence
        assert re.search(row.notes, "\n".join(story.heard.notes))
        story.check_promises(is_published=expected == 0)
    await _goes_on(row, story, is_published=expected == 0)
    return happened


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
