"""A disk and a recorder for the tests of crash points, and what they tell at the end of a run."""

import os
import tempfile
from pathlib import Path

import preloading
import pytest

from downloader.sandbox import Sandbox
from torture.recording import SOURCE
from torture.recovery import TASK
from torture.scenes import FILES, Torture

MEMORY = Path("/dev/shm")

# It takes some minutes; `make torture` sets this.
LONG = ["test_every_crash_point.py", "test_soak.py"]
collect_ignore = [] if os.environ.get("BGE_TEST_TORTURE") else LONG


@pytest.fixture(scope="session")
def recorder(tmp_path_factory):
    library = preloading.build(SOURCE, tmp_path_factory.mktemp("recorder"))
    if library is None:
        pytest.skip("no recorder: there is no C compiler (cc, gcc or clang) or no 64-bit Linux")
    return library


@pytest.fixture
def root():
    """Give an empty directory, in memory where that can be.

    What is lost in a crash is not for the real disk to say, and thousands of disks are made.
    """
    is_usable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK | os.X_OK)
    where = MEMORY if is_usable else None
    with tempfile.TemporaryDirectory(prefix="bge-torture-", dir=where) as name:
        root = Path(name).resolve() / "root"
        root.mkdir()
        yield root


@pytest.fixture
async def torture(recorder, root, record_property):
    async with Sandbox() as sandbox:
        torture = Torture(recorder, root, sandbox, record_property)
        torture.serve(FILES)
        sandbox.add_task([f"run/{name}" for name in FILES], task_id=TASK, states=["SUCCESS"])
        yield torture
