"""What the tests of crash points share: objects, a disk to be crashed, and what is expected."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from downloader.sandbox import Sandbox, samples
from torture.crashes import (
    Choice,
    Crash,
    FetchTrial,
    Recorded,
    Tally,
    crashes,
    recorded_run,
    result_of,
    try_crashes,
)
from torture.disk import Disk
from torture.losses import Loss
from torture.recording import Kind
from torture.recovery import facts_below, files_below, recovering, write_out
from torture.repairs import OLD, RESULT, Damaged, RepairTrial

__all__ = [
    "FILES",
    "OTHERS",
    "Torture",
    "half_mended",
    "half_way",
    "while_publishing",
    "while_replacing",
]

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
WITHOUT_BLOCKS = ("data.bin", "more/notes.txt")


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
        """Let the program fetch or repair, from the disk as it is."""
        self.sandbox.store.total_bytes_per_second = RATE
        recorded = await recorded_run(
            self.recorder, self.root, self.sandbox, before=before, marks=self.marks, **how
        )
        self.sandbox.store.total_bytes_per_second = None
        return recorded

    async def crashed(self, when: Callable[[Crash], bool], loss: Loss, **how: str) -> None:
        """Leave the disk as the first such crash of a fetch or a repair does."""
        recorded = await self.record(**how)
        for crash in crashes(recorded, lambda *_: [loss]):
            if crash is not None and when(crash):
                self.leave(crash)
                return
        raise AssertionError("there was no such crash")

    def leave(self, crash: Crash) -> None:
        """Make the disk what the crash has left."""
        self.marks = list(crash.marks)
        write_out(self.root, crash.tree.files(), crash.tree.facts())

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
            before = result_of(recorded.before.live.files())
            trial = FetchTrial(recovery, wanted, recorded_as, before)
            return await try_crashes(recorded, trial, choice)

    async def damage(self, *, is_vcf_gone: bool = False) -> Damaged:
        """Leave a published result that is damaged in each way that there is.

        In one of them the VCF is gone, and will be newer than its index.
        """
        async with recovering(self.root, self.sandbox) as recovery:
            await recovery.fetched_again(wanted=FILES)
        whole = {f"{RESULT}/{path}": data for path, data in files_below(self.root / RESULT).items()}
        place = self.root / RESULT
        blocks = [*samples.block_starts(FILES["a.vcf.gz"]), len(FILES["a.vcf.gz"])]
        for name in ("a.vcf.gz", "data.bin"):
            (place / name).write_bytes(samples.flipped_byte(FILES[name], 40))
            (place / name).chmod(0o600)
            os.utime(place / name, ns=(OLD, OLD))
        os.utime(place / "a.vcf.gz.tbi", ns=(OLD, OLD))
        shutil.rmtree(place / "more")
        costs = {"a.vcf.gz": blocks[1], **{name: len(FILES[name]) for name in WITHOUT_BLOCKS}}
        if is_vcf_gone:
            (place / "a.vcf.gz").unlink()
            costs["a.vcf.gz"] = blocks[-1]
        return Damaged(
            before=files_below(self.root),
            facts=facts_below(self.root),
            whole=whole,
            costs={f"{RESULT}/{name}": cost for name, cost in costs.items()},
        )

    async def crash_repair(self, recorded: Recorded, choice: Choice, damaged: Damaged) -> Tally:
        """Repair from every disk that is chosen."""
        async with recovering(self.root, self.sandbox) as recovery:
            return await try_crashes(recorded, RepairTrial(recovery, damaged), choice)

    def tell(self, called: str, tally: Tally) -> None:
        """Let the end of the run tell what came of crashes under that name."""
        self.record_property("figures of crashes", [called, *tally.figures])


def half_mended(crash: Crash) -> bool:
    """Tell whether half of the bytes of the file that takes longest are safe again."""
    marks = [mark for mark in crash.marks if mark.startswith("safe data.bin ")]
    return any(len(FILES["data.bin"]) < 2 * int(mark.split()[2]) for mark in marks)


def half_way(crash: Crash) -> bool:
    """Tell whether half of the bytes are safe."""
    return sum(map(len, FILES.values())) < 2 * crash.safe_bytes


def while_publishing(crash: Crash) -> bool:
    """Tell whether some of the files have got their names, and others have not."""
    operation = crash.moment.operation
    return operation is not None and operation.kind is Kind.RENAME


def while_replacing(crash: Crash) -> bool:
    """Tell whether the file that takes longest has just been replaced by its mended copy."""
    operation = crash.moment.operation
    is_rename = operation is not None and operation.kind is Kind.RENAME
    return is_rename and operation.other.endswith("/data.bin")
