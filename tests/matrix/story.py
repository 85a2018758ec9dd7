"""One task from the platform to the disk, as often as a row of the matrix wants it fetched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp

from downloader.api import AsyncPrivateAPI
from downloader.errors import DownloaderError
from downloader.fetch import FetchOptions, fetch_task
from downloader.hosts import HostRules
from downloader.polling import PollOptions
from downloader.progress import Reporter
from downloader.retry import without_waiting
from downloader.sandbox import Fault, Sandbox, samples
from downloader.transfer import Connections, StraightRoad, TransferOptions
from matrix.faulty import Orders
from state import AsyncStore, StateError

__all__ = [
    "DATA",
    "FIRST_LENGTH",
    "HALF",
    "KEY",
    "OTHER",
    "TBI",
    "TBI_KEY",
    "VCF",
    "VCF_KEY",
    "Clock",
    "Outcome",
    "Story",
    "story_in",
]

KIB = 1024
FIRST_LENGTH = 64 * KIB  # so that 160 KiB have a probe and another segment
HALF = FIRST_LENGTH + 48 * KIB  # of the file are here when a run is interrupted
ENDLESS = 20.0  # seconds: longer than anything that a row waits for
FILES_OF_OURS = ("bge-manifest.json",)
SECRETS = (
    *("Signature=", "OSSAccessKeyId=", "SANDBOXACCESSKEYID", "Expires=", "security-token"),
    Sandbox.app_secret,
)


def _pair(records: int) -> tuple[bytes, bytes]:
    """Return a pair that is checked in no time."""
    with tempfile.TemporaryDirectory() as directory:
        paths = samples.write_pair(Path(directory), "a.vcf.gz", records=records)
        vcf, tbi = (path.read_bytes() for path in paths)
        return vcf, tbi


KEY, VCF_KEY, TBI_KEY = "run/data.bin", "run/a.vcf.gz", "run/a.vcf.gz.tbi"
DATA = random.Random(1).randbytes(160 * KIB)
OTHER = random.Random(2).randbytes(len(DATA))
NOTES_KEY, NOTES = "run/notes.txt", b"a few words\n" * 100
VCF, TBI = _pair(4000)  # of several blocks


class Clock:
    """The time of the other side, which a row may put forward or back."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


class Heard(Reporter):
    """What is told, and when the file has come so far that a run may be interrupted."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: set[str] = set()
        self.received_bytes = 0
        self.when_planned: Callable[[], object] = lambda: None
        self.when_done: Callable[[str], object] = lambda _: None
        self._awaited: list[tuple[Callable[[], bool], asyncio.Event]] = []

    def planned(self, files: object) -> None:
        self.when_planned()

    def file_done(self, name: str) -> None:
        self.done.add(name)
        self.when_done(name)
        self._look()

    def received(self, name: str, delta: int) -> None:
        self.received_bytes += delta if name == Path(KEY).name else 0
        self._look()

    def note(self, message: str) -> None:
        self.notes.append(message)

    async def has_received(self, least: int, *, beside: int = 0) -> None:
        """Return once so many bytes of the file are on their way, and other files are whole."""
        event = asyncio.Event()
        reached = lambda: self.received_bytes >= least and len(self.done) >= beside  # noqa: E731
        self._awaited.append((reached, event))
        self._look()
        await event.wait()

    def _look(self) -> None:
        for is_reached, event in self._awaited:
            if is_reached():
                event.set()


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, and the sentence if it has said one."""

    exit_code: int
    sentence: str = ""


@dataclass
class Story:
    """Both stand-ins, a state, a destination; `fetch` is a run of the program from its start."""

    directory: Path
    road: str
    sandbox: Sandbox
    clock: Clock
    files: dict[str, bytes]
    task_id: str = ""
    state_name: str = "state.db"
    heard: Heard = field(default_factory=Heard)
    rules: HostRules = field(default_factory=lambda: HostRules.of(["127.0.0.1", "localhost"]))
    connect_timeout: float = ENDLESS
    stall_timeout: float = ENDLESS
    timeout: float = ENDLESS  # of a call of the platform
    poll: PollOptions = field(default_factory=PollOptions)
    endpoint: str | None = None  # None: the sandbox's
    trust: ssl.SSLContext | None = None  # None: nobody
    shared_state: AsyncStore | None = None  # None: a state of its own, opened by each run
    state_clock: Clock = field(default_factory=Clock)
    closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    has_stranger: bool = False  # in the result's place
    chance: int = 1  # at which the fault shall come, where a row has several
    versions: dict[str, list[bytes]] = field(default_factory=dict)
    orders: Orders | None = None  # what the program, as a process, is made to do

    # Where it is

    @property
    def dest(self) -> Path:
        return self.directory / "results"

    @property
    def state(self) -> Path:
        return self.directory / "state" / self.state_name

    @property
    def final(self) -> Path:
        return self.dest / self.task_id

    @property
    def partial(self) -> Path:
        return self.dest / f"{self.task_id}.partial"

    @property
    def part_path(self) -> Path:
        return self.partial / "data.bin.part"

    @property
    def store(self):
        return self.sandbox.store

    @property
    def platform(self):
        return self.sandbox.platform

    # What it is about

    @property
    def data(self) -> bytes:
        return self.files[KEY]

    @property
    def size(self) -> int:
        return sum(map(len, self.files.values()))

    def add_task(self, **details: object) -> None:
        """Add another task, with the same files."""
        self.task_id = self.sandbox.add_task(self.files, **{"states": ("SUCCESS",), **details})
        self.versions = {key: [data] for key, data in self.files.items()}

    def replace(self, key: str, data: bytes) -> None:
        """Let the store have another version of an object."""
        self.store.replace(key, data)
        self.files[key] = data
        self.versions[key].append(data)

    @property
    def served(self) -> int:
        """Bytes of objects that the store has sent; what it says in an error is no object's."""
        return sum(
            one.bytes_sent
            for one in self.store.requests
            if one.status in (200, 206) and one.fault is not Fault.HTML_200
        )

    # Runs

    async def fetch(self) -> Outcome:
        """Fetch as the program does, from the opening of the state to its closing."""
        try:
            async with self._opened() as (api, session, store, options):
                await fetch_task(
                    self.task_id,
                    self.dest,
                    api=api,
                    store=store,
                    session=session,
                    options=options,
                    reporter=self.heard,
                )
        except (DownloaderError, StateError) as error:
            return Outcome(error.exit_code, str(error))
        return Outcome(0)

    async def interrupted(self, when: Callable[[], Coroutine[object, object, object]]) -> None:
        """Fetch until `when` has come, then cancel, as a signal does."""
        running = asyncio.ensure_future(self.fetch())
        waiting = asyncio.ensure_future(when())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            outcome = await running
            raise AssertionError(f"it ended before it was interrupted: {outcome}")

    async def left_half(self) -> None:
        """Let an earlier run bring most of the file and all of the others, and be interrupted."""
        self.heard = Heard()
        self.store.inject(
            Fault.STALL, key=KEY, covering=len(self.data) - 1, after=HALF - FIRST_LENGTH
        )
        others = len(self.files) - 1
        await self.interrupted(lambda: self.heard.has_received(HALF, beside=others))
        self.store.clear_faults()

    @contextlib.asynccontextmanager
    async def beside(self, job: Coroutine[object, object, None]) -> AsyncIterator[None]:
        """Run the job beside the block; it must have come to its end with it."""
        running = asyncio.ensure_future(job)
        try:
            yield
            assert running.done()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[object, ...]]:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.connect_timeout, sock_read=self.stall_timeout
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(without_waiting())
            api = AsyncPrivateAPI(
                self.sandbox.app_key,
                self.sandbox.app_secret,
                self.endpoint or self.sandbox.endpoint,
                timeout=self.timeout,
                session=await self._trusting_session(stack),
            )
            await stack.enter_async_context(api)
            store = self.shared_state
            if store is None:
                store = await AsyncStore.open(self.state, clock=self.state_clock)
                await stack.enter_async_context(store)
            context = self.trust or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context),
                auto_decompress=False,
                timeout=timeout,
            )
            await stack.enter_async_context(session)
            road = StraightRoad(
                context=lambda: context,
                connect_timeout=self.connect_timeout,
                stall_timeout=self.stall_timeout,
                user_agent="matrix",
            )
            stack.enter_context(contextlib.closing(road))
            yield api, session, store, self._options(None if self.road == "plain" else road)

    async def _trusting_session(
        self, stack: contextlib.AsyncExitStack
    ) -> aiohttp.ClientSession | None:
        """Return a session that trusts whom the row trusts; None: nobody beside the usual ones."""
        if self.trust is None:
            return None
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.trust))
        return await stack.enter_async_context(session)

    def _options(self, road: StraightRoad | None) -> FetchOptions:
        transfer = TransferOptions(
            segments=2,
            first_length=FIRST_LENGTH,
            max_attempts=4,
            rules=self.rules,
            connections=Connections(most_files=4),
            straight_road=road,
        )
        return FetchOptions(poll=self.poll, transfer=transfer)

    # What must hold, always

    def check_promises(self, *, is_published: bool) -> None:
        """Whole or absent, one version of each file, and no secret in anything that was written."""
        if is_published or (self.final.exists() and not self.has_stranger):
            self._check_result()
        assert not (is_published and self.partial.exists())
        self.check_secrets()

    def check_secrets(self) -> None:
        told = "\n".join(self.heard.notes).encode()
        written = told + b"".join(self._written())
        assert not [secret for secret in SECRETS if secret.encode() in written]

    def _check_result(self) -> None:
        found = {
            path.relative_to(self.final).as_posix(): path.read_bytes()
            for path in self.final.rglob("*")
            if path.is_file()
        }
        names = {key.removeprefix("run/"): key for key in self.files}
        assert found.keys() == {*names, *FILES_OF_OURS}
        for name, key in names.items():
            assert found[name] in self.versions[key], f"{name} is no version of the object"
        assert json.loads(found["bge-manifest.json"])["task_id"] == self.task_id

    def _written(self) -> Iterator[bytes]:
        """Yield everything that is on disk but the bytes of the objects."""
        for path in self.directory.rglob("*"):
            is_object = path.suffix in (".part", ".bin", ".gz", ".tbi")
            if not is_object and path.is_file() and not path.is_symlink():
                yield path.read_bytes()


@contextlib.asynccontextmanager
async def story_in(
    directory: Path, road: str, *, state: AsyncStore | Path | None = None
) -> AsyncIterator[Story]:
    """Lend a story with a task in it that is ready.

    Its `state` is one that is open and stays so, or a copy of a file, or a new one.
    """
    clock = Clock()
    async with Sandbox(clock=clock) as sandbox:
        files = {KEY: DATA, NOTES_KEY: NOTES}
        story = Story(directory, road, sandbox, clock, files)
        if isinstance(state, Path):
            story.state.parent.mkdir()
            shutil.copy(state, story.state)
        story.shared_state = state if isinstance(state, AsyncStore) else None
        story.add_task()
        with story.closing:
            yield story
