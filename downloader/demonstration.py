"""What `demo` does: makes a pair, plays the other side, and runs the real program against it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pysam

from downloader.concurrency import in_thread
from downloader.errors import DiskError, DownloaderError
from downloader.reading import crc64_of_file
from downloader.sandbox import Sandbox, samples
from downloader.units import format_bytes, format_seconds

__all__ = ["demonstrate"]

VCF_NAME = "sample.vcf.gz"
SECONDS_ON_THE_LINE = 5.0  # long enough to watch, and to be killed in the middle
KILLED_AT = 0.5  # of the bytes
LOOK_SECONDS = 0.02

Say = Callable[[str], None]


class DemoFailed(DownloaderError):
    """The demo did not end as it must: this is a defect of the program."""


async def demonstrate(dest: Path, *, records: int, say: Say) -> int:
    """Run the whole story and return the exit code; raises DemoFailed if a promise is broken."""
    began = time.monotonic()
    try:
        await in_thread(dest.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{dest} cannot be made or used ({error.strerror})"
        raise DiskError(f"{reason}; choose another --dest") from error
    with tempfile.TemporaryDirectory(prefix="bge-demo-") as directory:
        say(f"1. Making a VCF of {records:,} variants in 3 samples, with its index ...")
        pair = await in_thread(
            samples.write_pair, Path(directory), VCF_NAME, records=records, seed=os.getpid()
        )
        size = sum(path.stat().st_size for path in pair)
        say(f"   {pair[0].name} and {pair[1].name}, {format_bytes(size)} together.")
        rate = size / SECONDS_ON_THE_LINE
        async with Sandbox(total_bytes_per_second=rate) as sandbox:
            story = _Story(sandbox, dest, pair, size=size, say=say)
            await story.tell()
    say("")
    say(f"The demo took {format_seconds(time.monotonic() - began)}.")
    return 0


@dataclass(frozen=True, slots=True)
class _Ended:
    exit_code: int
    output: str


class _Story:
    def __init__(
        self, sandbox: Sandbox, dest: Path, pair: Sequence[Path], *, size: int, say: Say
    ) -> None:
        self._sandbox = sandbox
        self._pair = pair
        self._size = size
        self._say = say
        self._task_id = sandbox.add_task({f"demo/{path.name}": path for path in pair})
        self._path = dest / self._task_id
        self._environment = {
            **os.environ,
            **sandbox.environment(),
            "BGE_DEST": str(dest),
            "BGE_STATE": str(dest / "state.db"),
            "BGE_POLL_INTERVAL": "0.5",
        }

    async def tell(self) -> None:
        say, command = self._say, f"bge-downloader fetch {self._task_id}"
        say(f"2. The platform and its object store are played at {self._sandbox.endpoint}.")
        say("")
        say(f"3. $ {command}")
        say(f"   (killed with SIGKILL once {KILLED_AT:.0%} of the bytes are on their way)")
        await self._fetch_and_kill()
        before = self._sandbox.store.bytes_served
        say("")
        say("4. Killed. The same command goes on where it stopped:")
        say(f"   $ {command}")
        self._expect(await self._run("fetch", self._task_id), str(self._path))
        served = self._sandbox.store.bytes_served
        say("")
        say("5. Once more: it is published, so not a byte moves.")
        say(f"   $ {command}")
        self._expect(await self._run("fetch", self._task_id), str(self._path))
        moved = self._sandbox.store.bytes_served - served
        say("")
        say(f"6. $ bge-downloader verify {self._task_id}")
        self._expect(await self._run("verify", self._task_id), "OK")
        await self._prove(before=before, served=served, moved=moved)

    async def _fetch_and_kill(self) -> None:
        async with self._started("fetch", self._task_id) as process:
            while self._sandbox.store.bytes_served < KILLED_AT * self._size:
                if process.returncode is not None:
                    raise DemoFailed("The fetch ended before it could be killed")
                await asyncio.sleep(LOOK_SECONDS)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            if sys.stderr.isatty():  # whoever is killed leaves its bars behind
                print("\r\x1b[J", end="", file=sys.stderr, flush=True)  # noqa: T201

    async def _run(self, *arguments: str) -> _Ended:
        async with self._started(*arguments) as process:
            output, _ = await process.communicate()
            return _Ended(process.returncode or 0, output.decode())

    @contextlib.asynccontextmanager
    async def _started(self, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """Start the program; its stderr, with its bars, is ours, its stdout is read."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "downloader",
            *arguments,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    def _expect(self, ended: _Ended, text: str) -> None:
        for line in ended.output.splitlines():
            self._say(f"   {line}")
        if ended.exit_code != 0 or text not in ended.output:
            raise DemoFailed(f"The program ended with exit code {ended.exit_code}")

    async def _prove(self, *, before: int, served: int, moved: int) -> None:
        """Hold what was published against what the store has, by means of our own."""
        polls = self._sandbox.platform.polls[self._task_id]
        for path in self._pair:
            theirs = await crc64_of_file(path)
            if await crc64_of_file(self._path / path.name) != theirs:
                raise DemoFailed(f"{path.name} is not what the store has")
        region, found = await in_thread(_read_a_region, self._path / VCF_NAME)
        if moved:
            raise DemoFailed(f"A published task moved {moved} bytes")
        if (self._path.parent / f"{self._path.name}.partial").exists():
            raise DemoFailed("A partial directory was left behind")
        again = served - self._size
        say = self._say
        say("")
        say("What was proved")
        say("  - The task went PENDING, STARTED, SUCCESS" + f" (asked {polls} times in two runs).")
        say(
            f"  - Killed after {format_bytes(before)} of {format_bytes(self._size)}; nothing was "
            "published then, and the next run went on:"
        )
        say(
            f"    the store served {format_bytes(served)} in all, {served / self._size:.2f} times "
            f"the size ({format_bytes(max(0, again))} twice)."
        )
        say("  - The CRC-64 of each published file, read from disk, is that of the object.")
        say("  - Every BGZF block, every record and the index were checked before the one rename.")
        say(f"  - A query by the index, {region}, gives {found:,} records without a warning.")
        say("  - Fetching a published task moves no byte.")
        say("The files")
        for path in sorted(self._path.iterdir()):
            say(f"  {path}  {format_bytes(path.stat().st_size)}")


def _read_a_region(path: Path) -> tuple[str, int]:
    with pysam.VariantFile(str(path)) as file:
        records = sum(1 for _ in file.fetch("chr7", 1_000_000, 50_000_000))
    return "chr7:1000001-50000000", records
