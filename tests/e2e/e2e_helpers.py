"""What the end-to-end tests share: the program as processes, and the other side that they talk to.

The sandbox runs in the test's own event loop, so a test sees every request as it happens. A test
module names this one in `pytest_plugins` and imports from it too, which pytest takes amiss unless
it may leave the asserts as they are: PYTEST_DONT_REWRITE.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from secret_search import leaks_in_sections

from downloader.sandbox import Sandbox, samples

MIB = 1024 * 1024
LOOK_SECONDS = 0.01
PATIENCE_SECONDS = 30  # far beyond anything that is waited for; a test that gets there has failed
VCF, TBI = samples.small_pair()
PAIR = {"run/a.vcf.gz": VCF, "run/a.vcf.gz.tbi": TBI}


@dataclass(frozen=True)
class Ended:
    """A process that has ended: what it said, and how."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def events(self):
        """The JSON objects on stdout; every line must be one."""
        events = [json.loads(line) for line in self.stdout.splitlines()]
        assert all(isinstance(event, dict) for event in events)
        return events

    @property
    def complaints(self):
        """The sentences that the program said in its own name."""
        prefix = "bge-downloader: "
        lines = self.stderr.splitlines()
        return [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]

    @property
    def sentence(self):
        """The one line on stderr, which is all that a person gets to see of an error."""
        assert self.stderr.count("\n") == 1, self.stderr
        assert len(self.complaints) == 1, self.stderr
        return self.complaints[0]


class Running:
    """A process that runs, and everything that it has said by now."""

    def __init__(self, process):
        self._process = process
        self._said = {"stdout": bytearray(), "stderr": bytearray()}
        self._heard = asyncio.Condition()
        self._listeners = [
            asyncio.ensure_future(self._listen(stream, said))
            for stream, said in zip(
                (process.stdout, process.stderr), self._said.values(), strict=True
            )
            if stream is not None
        ]

    @property
    def pid(self):
        return self._process.pid

    @property
    def has_ended(self):
        return self._process.returncode is not None

    def text(self, stream):
        return self._said[stream].decode()

    def signal(self, number):
        self._process.send_signal(number)

    async def says(self, text, *, stream="stderr"):
        """Return once the text has been said."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._heard:
            await self._heard.wait_for(
                lambda: text in self.text(stream) or all(one.done() for one in self._listeners)
            )
        assert text in self.text(stream), f"it ended without it: {self._said}"

    async def ends(self):
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(self._process.wait(), *self._listeners)
        return Ended(self._process.returncode, self.text("stdout"), self.text("stderr"))

    async def end_for_certain(self):
        """Kill it with everything that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # it leads a group of its own
        for listener in self._listeners:
            listener.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)
        await self._process.wait()

    async def _listen(self, stream, said):
        while data := await stream.read(65536):
            async with self._heard:
                said += data
                self._heard.notify_all()
        async with self._heard:
            self._heard.notify_all()


class Program:
    """Runs the program in a place and with an environment that are nobody's but this test's."""

    def __init__(self, directory, settings):
        self.cwd = directory / "cwd"
        self.home = directory / "home"
        self.dest = directory / "results"
        self.state = directory / "state" / "state.db"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
            "BGE_DEST": str(self.dest),
            "BGE_STATE": str(self.state),
            "BGE_POLL_INTERVAL": "0.01",
            "BGE_POLL_MAX_INTERVAL": "0.05",
            "BGE_POLL_DEADLINE": "60",  # whoever outlives a killed test run does not for long
            "BGE_RETRY_MAX_DELAY": "0.05",
            **settings,
        }
        self.cwd.mkdir()
        self.home.mkdir()
        self._started = {}  # with the arguments of each

    async def run(self, *arguments, **options):
        """Run the program to its end; `options` are those of `start`."""
        return await (await self.start(*arguments, **options)).ends()

    async def start(self, *arguments, **options):
        """Start `bge-downloader ARGUMENTS`."""
        return await self.start_python("-m", "downloader", *arguments, **options)

    async def start_python(self, *arguments, environment=None, without=(), **pipes):
        """Start Python in the same way.

        `environment` is added to the usual one, of which the names in `without` are left out;
        a stream that is given in `pipes` is not listened to.
        """
        merged = {**self.environment, **(environment or {})}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *map(str, arguments),
            cwd=self.cwd,
            env={name: value for name, value in merged.items() if name not in without},
            start_new_session=True,
            **{
                "stdin": asyncio.subprocess.DEVNULL,
                "stdout": asyncio.subprocess.PIPE,
                "stderr": asyncio.subprocess.PIPE,
                **pipes,
            },
        )
        running = Running(process)
        self._started[running] = arguments
        return running

    async def end_all(self):
        for running in self._started:
            await running.end_for_certain()
        told = [
            (f"{stream} of {' '.join(map(str, arguments))}", running.text(stream))
            for running, arguments in self._started.items()
            for stream in ("stdout", "stderr")
            if not {"sandbox", "sign-url"} & {*arguments}  # which are there to tell them
        ]
        assert [*leaks_in_sections(told)] == []


@pytest.fixture
async def sandbox():
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
async def program(tmp_path, sandbox):
    """Give the program, set up for the sandbox; no process of it outlives its test."""
    program = Program(tmp_path, sandbox.environment())
    try:
        yield program
    finally:
        await program.end_all()


async def until(condition):
    """Return once the condition holds; for what gives no event of its own."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - what is on disk sets no event
            await asyncio.sleep(LOOK_SECONDS)


def tree(directory: Path):
    """Return every path below the directory, with the bytes of the files."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def published(directory: Path):
    """Return the files of a published result by name, without the manifest."""
    files = tree(directory)
    del files["bge-manifest.json"]
    return files
