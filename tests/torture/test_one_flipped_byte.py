"""One flipped byte in a large file costs the block that it is in: in a fetch, and in a repair."""

import itertools
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from e2e_helpers import Program

from downloader.sandbox import Fault, Sandbox, samples

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]

MIB = 1024 * 1024
SIZE = 1024 * MIB  # at least
PERIOD = samples.bgzf(samples.incompressible(7 * MIB)).removesuffix(samples.EOF_BLOCK)
KEY = "run/reads.bam"  # BGZF, and no VCF: nothing but the blocks is looked at
AT = 700 * MIB + 12_345
# Several help each other, flipped byte or not: of an answer that is cut off to be shared, the
# sockets hold some MiB that nobody reads.
ONE_CONNECTION = {"BGE_SEGMENTS": "1"}


def write_bgzf(path):
    """Write a file of as many blocks as it takes; it is made quickly, from a few."""
    with path.open("wb") as file:
        while file.tell() < SIZE:
            file.write(PERIOD)
        file.write(samples.EOF_BLOCK)


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


def block_at(offset):
    """Return the length of the block that a byte is in."""
    starts = [*samples.block_starts(PERIOD), len(PERIOD)]
    within = offset % len(PERIOD)
    pairs = itertools.pairwise(starts)
    return next(stop - start for start, stop in pairs if start <= within < stop)


async def test_one_flipped_byte_in_1_gib_costs_less_than_1_mib(record_property):
    with tempfile.TemporaryDirectory(prefix="bge-torture-") as name:
        directory = Path(name)
        source = directory / "reads.bam"
        write_bgzf(source)
        size = source.stat().st_size
        async with Sandbox() as sandbox:
            store = sandbox.store
            store.put(KEY, source)
            sandbox.add_task([KEY], task_id="big", states=["SUCCESS"])
            program = Program(directory, sandbox.environment())

            flipped = store.inject(Fault.FLIP_BYTE, key=KEY, offset=AT)
            ended = await program.run("fetch", "big", environment=ONE_CONNECTION)
            assert ended.exit_code == 0, ended.stderr
            assert flipped.hits == 1
            again = store.bytes_served - size
            record_property("figures of repairs", ["a byte that the line flips", size, again])
            assert again == block_at(AT) < MIB

            store.forget_requests()
            published = program.dest / "big" / "reads.bam"
            flip(published, AT)
            ended = await program.run("verify", "big", "--repair")
            assert ended.exit_code == 0, ended.stderr
            again = store.bytes_served
            record_property("figures of repairs", ["a byte that the disk flips", size, again])
            assert again == block_at(AT) + 1 < MIB  # and one, to see which version is there
            same = await program.run("verify", "big")
            assert same.exit_code == 0, same.stderr
