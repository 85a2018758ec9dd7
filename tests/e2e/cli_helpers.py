"""What the tests of the service's commands share: the commands, the service, the state between.

Commands that only talk to the state run in the test's own process, which is quick; the service and
whoever transfers are processes. PYTEST_DONT_REWRITE, as in e2e_helpers.
"""

import pytest
from e2e_helpers import MIB, Ended
from typer.testing import CliRunner

from downloader.cli import app
from downloader.sandbox import Fault, samples
from state import StateStore

BIG = samples.incompressible(6 * MIB, seed=5)
COMES = 3 * MIB  # of it, while the rest is held back
# The program itself, but for how often it looks: the service once a second, a fetch that follows
# another process too, and whoever holds a lease every 15 s.
IMPATIENT = """
import sys
if sys.argv[1] == "run":
    from downloader.service import daemon
    daemon.ROUND_SECONDS, daemon.HEARTBEAT_SECONDS = 0.05, 0.5
else:
    from downloader import holding
    holding.HEARTBEAT_SECONDS = holding.LOOK_SECONDS = 0.05
from downloader.__main__ import main
sys.argv = ["bge-downloader", *sys.argv[1:]]
main()
"""


@pytest.fixture
def typed(program, monkeypatch):
    """Give a function that runs a command of the state in this process."""
    monkeypatch.chdir(program.cwd)

    def typed(*arguments, without=(), **environment):
        merged = {**program.environment, **environment, **dict.fromkeys(without)}
        result = CliRunner().invoke(app, [*map(str, arguments)], env=merged)
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return Ended(result.exit_code, result.stdout, result.stderr)

    return typed


@pytest.fixture
def store(program):
    """Give the state that the program works with."""
    with StateStore.open(program.state) as store:
        yield store


async def impatient(program, *arguments, **options):
    """Start the program; it looks more often than it does otherwise."""
    return await program.start_python("-c", IMPATIENT, *arguments, **options)


async def service(program, *arguments, **environment):
    """Start the service; return it once it is ready."""
    environment = {"BGE_MIN_FREE_SPACE": "0", **environment}
    running = await impatient(program, "run", *arguments, environment=environment)
    await running.says("Ready")
    return running


def hold_back(sandbox, task_id="task"):
    """Add a task of whose file the second half does not come before the faults are cleared."""
    key = f"{task_id}/data.bin"
    sandbox.add_task({key: BIG}, task_id=task_id, states=("SUCCESS",))
    return sandbox.store.inject(Fault.STALL, key=key, covering=len(BIG) - 1, after=COMES)


def has_come(program, task_id="task"):
    """Tell whether all is in the part file that comes."""
    part = program.dest / f"{task_id}.partial" / "data.bin.part"
    return part.exists() and part.read_bytes()[:COMES] == BIG[:COMES]


def phases(store):
    """Return the phase of every task that is known."""
    return {task.task_id: task.phase.value for task in store.find_tasks()}
