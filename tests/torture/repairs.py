"""A repair of a published result, from a disk as a crash has left it, and what must come of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from downloader.recheck import recheck
from downloader.repair_directory import told_of_leftovers
from downloader.repairing import Repair, repair
from downloader.retry import without_waiting
from torture.crashes import Crash, Files
from torture.recording import Facts
from torture.recovery import DEST, TASK, Recovery, files_below, insist, write_out

__all__ = ["OLD", "RESULT", "Damaged", "RepairTrial"]

RESULT = f"{DEST}/{TASK}"
OLD = 10**18  # ns: when what is damaged was written, and the index


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """A disk with a result that is damaged."""

    before: Files
    facts: Mapping[str, Facts]
    whole: Files  # what must be there in the end
    costs: Mapping[str, int]  # bytes of each damaged file that come where nothing is kept


@dataclass(frozen=True, slots=True)
class RepairTrial:
    """`verify --repair` after a crash of one: each file is what it was, or whole, at any time."""

    recovery: Recovery
    damaged: Damaged

    def known_by(self, crash: Crash) -> object:
        """Return what had been said by then, and what there is besides bytes."""
        return sorted(crash.marks), sorted(crash.tree.facts().items())

    async def fetched_again(self, crash: Crash, files: Files) -> tuple[int, int]:
        """Return how many bytes were fetched, and how many more than had to be."""
        self._check_published(crash, files)
        write_out(self.recovery.root, files, crash.tree.facts())
        self.recovery.sandbox.store.forget_requests()
        failed = [one.error for one in await self._repaired() if one.error is not None]
        insist(not failed, f"it cannot be mended any more: {failed}")
        again = self.recovery.moved
        self._check_end()
        insist(not await self._repaired(), "a second repair found something to do")
        insist(self.recovery.moved == again, "a second repair moved bytes")
        whole, costs = self.damaged.whole, self.damaged.costs
        wrong = [path for path in costs if files.get(path) != whole[path]]
        beyond = again - self._not_safe(crash, wrong)
        # One byte of each file tells whether the version is the same.
        insist(beyond <= len(wrong), f"{again} bytes came again, {beyond} of them were safe")
        return again, beyond

    def _check_published(self, crash: Crash, files: Files) -> None:
        facts, before = crash.tree.facts(), self.damaged.before
        for path, whole in self.damaged.whole.items():
            name, there = path.removeprefix(f"{RESULT}/"), files.get(path)
            insist(path in files or path not in before, f"{name} is not there")
            if path in files and there != before.get(path, b""):
                insist(there == whole, f"{name} is neither what it was nor whole")
                meant = self.damaged.facts.get(path, facts[path])
                insist(facts[path] == meant, f"{name} is {facts[path]} and was {meant}")
            insist(f"whole {name}" not in crash.marks or there == whole, f"{name} was said whole")
        vcf, index = (facts.get(f"{RESULT}/{name}") for name in ("a.vcf.gz", "a.vcf.gz.tbi"))
        is_older = vcf and index and vcf.mtime is None and index.mtime == OLD
        insist(not is_older, "the index is older than the VCF, which is new")

    def _not_safe(self, crash: Crash, damaged: Sequence[str]) -> int:
        """Return how many bytes nobody could expect to be there."""
        told = [mark.split()[1:] for mark in crash.marks if mark.startswith("safe ")]
        safe = {name: int(count) for name, count in told}
        costs = []
        for path in damaged:
            size = len(self.damaged.whole[path] or b"")
            kept = safe.get(path.removeprefix(f"{RESULT}/"), 0)
            costs.append(size - kept if kept else self.damaged.costs[path])
        return sum(costs)

    async def _repaired(self) -> list[Repair]:
        """Verify and repair, as the program does; return what was mended, or could not be."""
        found = await recheck(self.recovery.dest / TASK, level="full")
        with without_waiting():
            return await repair(
                found,
                api=self.recovery.api,
                session=self.recovery.session,
                options=self.recovery.transfer,
            )

    def _check_end(self) -> None:
        place = self.recovery.dest / TASK
        insist(not told_of_leftovers(place), f"{told_of_leftovers(place)}")
        there = {f"{RESULT}/{path}": data for path, data in files_below(place).items()}
        insist(there == self.damaged.whole, f"in the end there is {sorted(there)}, or wrong bytes")
