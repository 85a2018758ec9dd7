"""What a disk may make of operations that were not synced: everything, nothing, and in between."""

from __future__ import annotations

import random
from collections.abc import Callable

from torture.disk import SECTOR_BYTES, Effect, Kept, Moment, Named, Tree, Written
from torture.recording import Kind

__all__ = ["ALL_LOSSES", "Loss"]

PAGE_BYTES = 4096
Loss = Callable[[Moment, random.Random], Tree | None]  # None: it says nothing at that moment


def killed(moment: Moment, _: random.Random) -> Tree:
    """`kill -9`: the page cache has everything."""
    return moment.disk(lambda _: Kept())


def killed_within(moment: Moment, rng: random.Random) -> Tree | None:
    """`kill -9` in the middle of a large write, of which some pages are there."""
    operation = moment.operation
    if operation is None or operation.kind is not Kind.WRITE or operation.length <= PAGE_BYTES:
        return None
    last = moment.pending[-1]
    pages = range(operation.offset + PAGE_BYTES, operation.offset + operation.length, PAGE_BYTES)
    stop = rng.choice(pages) // PAGE_BYTES * PAGE_BYTES // SECTOR_BYTES
    return moment.disk(
        lambda effect: Kept(sectors=lambda number: number < stop) if effect is last else Kept()
    )


def nothing_kept(moment: Moment, _: random.Random) -> Tree:
    """Only what was synced."""
    return moment.disk(lambda _: None)


def names_only(moment: Moment, _: random.Random) -> Tree:
    """Names and sizes, and zeros for bytes: what delayed allocation leaves."""
    return moment.disk(lambda _: Kept(sectors=lambda _: False))


def bytes_only(moment: Moment, _: random.Random) -> Tree:
    """Bytes and sizes; every file has the name that it had."""
    return moment.disk(lambda effect: None if isinstance(effect, Named) else Kept())


def sizes_lost(moment: Moment, _: random.Random) -> Tree:
    """Names, and bytes as far as the files were long already."""
    return moment.disk(lambda _: Kept(size=False))


def one_lost(moment: Moment, rng: random.Random) -> Tree | None:
    """Everything but one operation."""
    if len(moment.pending) < 2:
        return None
    lost = rng.choice(moment.pending)
    return moment.disk(lambda effect: None if effect is lost else Kept())


def one_kept(moment: Moment, rng: random.Random) -> Tree | None:
    """One operation of many."""
    if len(moment.pending) < 2:
        return None
    found = rng.choice(moment.pending)
    return moment.disk(lambda effect: Kept() if effect is found else None)


def in_order(moment: Moment, rng: random.Random) -> Tree | None:
    """Everything up to some operation, as a journal keeps it."""
    if len(moment.pending) < 2:
        return None
    first = iter(moment.pending[: rng.randrange(1, len(moment.pending))])
    return moment.disk(lambda _: None if next(first, None) is None else Kept())


def torn(moment: Moment, rng: random.Random) -> Tree | None:
    """Some operations, in any order, and some sectors of some writes."""
    return None if not moment.pending else moment.disk(lambda effect: _any_of(effect, rng))


def torn_with_junk(moment: Moment, rng: random.Random) -> Tree | None:
    """The same, and new sectors hold what was on the disk before the file was."""
    if not moment.pending:
        return None
    return moment.disk(lambda effect: _any_of(effect, rng, junk=lambda _: rng.randbytes(512)))


def _any_of(
    effect: Effect,
    rng: random.Random,
    junk: Callable[[int], bytes | None] = lambda _: None,
) -> Kept | None:
    fate = rng.choice(["kept", "lost", "torn"])
    if fate == "lost" or (fate == "torn" and not isinstance(effect, Written)):
        return None
    if fate == "kept":
        return Kept()
    likely = rng.choice([0.1, 0.5, 0.9])
    return Kept(size=rng.random() < 0.7, sectors=lambda _: rng.random() < likely, junk=junk)


ALL_LOSSES: tuple[Loss, ...] = (
    killed,
    killed_within,
    nothing_kept,
    names_only,
    bytes_only,
    sizes_lost,
    one_lost,
    one_kept,
    in_order,
    torn,
    torn_with_junk,
)
