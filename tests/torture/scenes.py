"""What the tests of crash points share: objects, a disk to be crashed, and what is expected."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from downloader.sandbox import Sandbox, samples
from torture.crashes import Choice, Crash, Recorded, Tally, crashes, recorded_fetch, try_crashes
from torture.disk import Disk
from torture.losses import Loss
from torture.recording import Kind
from torture.recovery import recovering, write_out

__all__ = ["FILES", "OTHERS", "Torture", "half_way", "while_publishing"]

KIB = 1024
RATE = 1024 * KIB  # bytes a second: time for some checkpoints


def _objects(seed: int) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        pair = samples.write_pair(Path(directory), "a.vcf.gz", records=20, seed=seed)
        vcf, index = (path.read_bytes() for path in pair)
    return {
        "data.bin": samples.incompressible(300 * KIB, seed=seed),
        "a.vcf.gz": vcf,
        "a.vcf.gz.tbi": index,
        "more/notes.txt": b"in a directory of their own\n" * (10 + seed),
    }


FILES, OTHERS = _objects(1), _objects(2)


@dataclass
class Torture:
    """A store, a recorder, and a directory that is a disk."""

    recorder: Path
    root: Path
    sandbox: Sandbox
    record_property: Callable[[str, object], None]
    marks: list[str] = field(default_factory=list)  # what earlier runs were told is safe

    def serve(self, files: Mapping[str, bytes]) -> None:
        """Put the files into the store, in the place of those of the same names."""
        for name, data in files.items():
            self.sandbox.store.put(f"run/{name}", data)

    async def record(self, *, before: Disk | None = None, **how: str) -> Recorded:
        """Let the program fetch, from the disk as it is."""
        self.sandbox.store.total_bytes_per_second = RATE
        recorded = await recorded_fetch(
            self.recorder, self.root, self.sandbox, before=before, marks=self.marks, **how
        )
        self.sandbox.store.total_bytes_per_second = None
        return recorded

    async def crashed(self, when: Callable[[Crash], bool], loss: Loss) -> None:
        """Leave the disk as the first such crash of a fetch does."""
        recorded = await self.record()
        for crash in crashes(recorded, lambda *_: [loss]):
            if crash is not None and when(crash):
                self.leave(crash)
                return
        raise AssertionError("there was no such crash")

    def leave(self, crash: Crash) -> None:
        """Make the disk what the crash has left."""
        self.marks = list(crash.marks)
        write_out(self.root, crash.tree.files())

    async def crash(
        self,
        recorded: Recorded,
        choice: Choice,
        *,
        wanted: Mapping[str, bytes] = FILES,
        recorded_as: Mapping[str, bytes] | None = None,
    ) -> Tally:
        """Fetch from every disk that is chosen."""
        async with recovering(self.root, self.sandbox) as recovery:
            return await try_crashes(
                recorded, recovery, choice, wanted=wanted, recorded_as=recorded_as
            )

    def tell(self, called: str, tally: Tally) -> None:
        """Let the end of the run tell what came of crashes under that name."""
        self.record_property(f"crashes of {called}", str(tally))


def half_way(crash: Crash) -> bool:
    """Tell whether half of the bytes are safe."""
    return sum(map(len, FILES.values())) < 2 * crash.safe_bytes


def while_publishing(crash: Crash) -> bool:
    """Tell whether some of the files have got their names, and others have not."""
    operation = crash.moment.operation
    return operation is not None and operation.kind is Kind.RENAME
