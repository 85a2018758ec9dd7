"""VCF/TBI pairs for tests and the demo: valid ones, and each kind of damage once.

Everything is made from a seed, so the same call gives the same bytes wherever the same htslib is.
"""

from __future__ import annotations

import functools
import itertools
import random
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pysam

__all__ = [
    "CONTIGS",
    "EOF_BLOCK",
    "bgzf",
    "block_starts",
    "cut_between_blocks",
    "flipped_byte",
    "incompressible",
    "index_beyond_end",
    "not_a_vcf",
    "other_pair",
    "small_pair",
    "truncated",
    "unbgzf",
    "without_eof",
    "write_pair",
    "wrong_index",
]

EOF_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
CONTIGS: Mapping[str, int] = {  # a part of GRCh38
    "chr1": 248956422,
    "chr2": 242193529,
    "chr7": 159345973,
    "chr13": 114364328,
    "chr17": 83257441,
    "chr21": 46709983,
    "chr22": 50818468,
    "chrX": 156040895,
    "chrM": 16569,
}
SAMPLES = ("HG002", "HG003", "HG004")
BATCH = 10_000  # records that are written at once
SMALL_RECORDS = 2_500  # enough for several BGZF blocks
BLOCK_CONTENT = 0xFF00  # bytes that bgzip puts into a block
HEADER = """\
##fileformat=VCFv4.2
##FILTER=<ID=PASS,Description="All filters passed">
##FILTER=<ID=LowQual,Description="Low quality">
##source=bge-downloader sandbox
##INFO=<ID=AC,Number=A,Type=Integer,Description="Allele count in genotypes">
##INFO=<ID=AF,Number=A,Type=Float,Description="Allele frequency">
##INFO=<ID=AN,Number=1,Type=Integer,Description="Number of alleles in called genotypes">
##INFO=<ID=DP,Number=1,Type=Integer,Description="Approximate read depth">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
##FORMAT=<ID=AD,Number=R,Type=Integer,Description="Allelic depths">
##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Read depth">
##FORMAT=<ID=GQ,Number=1,Type=Integer,Description="Genotype quality">
"""
COLUMNS = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]


def write_pair(
    directory: Path,
    name: str,
    *,
    records: int,
    contigs: Mapping[str, int] = CONTIGS,
    samples: Sequence[str] = SAMPLES,
    seed: int = 0,
) -> tuple[Path, Path]:
    """Write a sorted, BGZF-compressed VCF and its TBI; return their paths, in that order.

    Args:
        directory: where to write; it is made if it is not there.
        name: of the VCF, ending in `.vcf.gz`; the index adds `.tbi`.
        records: how many, spread over the contigs in proportion to their lengths.
        contigs: names and lengths, in the order of the file.
        samples: their names; none makes a sites-only VCF.
        seed: another seed makes another VCF.

    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    rng = random.Random(f"{seed} {name}")  # noqa: S311 - reproducible, and no secret
    with pysam.BGZFile(str(path), "w", index=None) as file:
        file.write(_header(contigs, samples).encode())
        for contig, count in _shares(contigs, records).items():
            for batch in _record_batches(rng, contig, contigs[contig], count, len(samples)):
                file.write(batch.encode())
    pysam.tabix_index(str(path), preset="vcf", force=True, keep_original=True)
    return path, directory / f"{name}.tbi"


@functools.cache
def small_pair() -> tuple[bytes, bytes]:
    """Return the bytes of a small VCF, several BGZF blocks long, and of its TBI."""
    return _pair_bytes(SMALL_RECORDS, seed=1)


@functools.cache
def other_pair() -> tuple[bytes, bytes]:
    """Return another small pair: same header, same contigs, other records."""
    return _pair_bytes(SMALL_RECORDS, seed=2)


def wrong_index() -> bytes:
    """Return an index that does not belong to `small_pair`, though it is whole."""
    return other_pair()[1]


def index_beyond_end(vcf: bytes, *, keep_blocks: int = 1) -> tuple[bytes, bytes]:
    """Return a VCF whose tail is gone, neatly, and the index that still knows of the tail.

    The VCF alone is flawless: it is cut where a block begins, and the end-of-file block follows.
    """
    cut = cut_between_blocks(vcf, keep_blocks=keep_blocks)
    return cut, _index_of(vcf)


def cut_between_blocks(data: bytes, *, keep_blocks: int) -> bytes:
    """Return the first blocks of a BGZF file and an end-of-file block: nothing else tells."""
    return data[: list(block_starts(data))[keep_blocks]] + EOF_BLOCK


def truncated(data: bytes, *, length: int | None = None) -> bytes:
    """Return the first `length` bytes; half of them where nothing is said."""
    return data[: len(data) // 2 if length is None else length]


def without_eof(data: bytes) -> bytes:
    """Return a BGZF file without the empty block that ends it."""
    return data.removesuffix(EOF_BLOCK)


def flipped_byte(data: bytes, at: int, *, mask: int = 0xFF) -> bytes:
    """Return the data with the byte at `at` changed in the bits of `mask`."""
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def not_a_vcf() -> bytes:
    """Return a flawless BGZF file that holds a text other than a VCF."""
    return bgzf(b"chrom\tstart\tstop\nchr1\t1000\t2000\n")


def incompressible(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes without any pattern, the same ones for the same seed."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - reproducible, and no secret


def bgzf(content: bytes) -> bytes:
    """Compress to BGZF without htslib, so that the two can be compared."""
    blocks = range(0, len(content), BLOCK_CONTENT)
    return b"".join(_block(content[at : at + BLOCK_CONTENT]) for at in blocks) + EOF_BLOCK


def unbgzf(data: bytes) -> bytes:
    """Return the content of an intact BGZF file."""
    starts = [*block_starts(data), len(data)]
    return b"".join(
        zlib.decompress(data[start + 18 : stop - 8], -zlib.MAX_WBITS)
        for start, stop in itertools.pairwise(starts)
    )


def block_starts(data: bytes) -> Iterator[int]:
    """Yield the offset of every block of an intact BGZF file as htslib writes it."""
    at = 0
    while at < len(data):
        yield at
        at += int.from_bytes(data[at + 16 : at + 18], "little") + 1


def _block(content: bytes) -> bytes:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    deflated = compressor.compress(content) + compressor.flush()
    size = (len(deflated) + 25).to_bytes(2, "little")
    trailer = zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    return EOF_BLOCK[:16] + size + deflated + trailer


def _pair_bytes(records: int, *, seed: int) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        paths = write_pair(Path(directory), "small.vcf.gz", records=records, seed=seed)
        return paths[0].read_bytes(), paths[1].read_bytes()


def _index_of(vcf: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.vcf.gz"
        path.write_bytes(vcf)
        pysam.tabix_index(str(path), preset="vcf", force=True, keep_original=True)
        return Path(f"{path}.tbi").read_bytes()


def _header(contigs: Mapping[str, int], samples: Sequence[str]) -> str:
    lines = [f"##contig=<ID={name},length={length}>\n" for name, length in contigs.items()]
    columns = [*COLUMNS, "FORMAT", *samples] if samples else COLUMNS
    return HEADER + "".join(lines) + "\t".join(columns) + "\n"


def _shares(contigs: Mapping[str, int], records: int) -> dict[str, int]:
    """Divide the records among the contigs by length; the shares add up exactly."""
    total, passed, given = sum(contigs.values()), 0, 0
    shares = {}
    for name, length in contigs.items():
        passed += length
        shares[name] = records * passed // total - given
        given += shares[name]
    return shares


def _record_batches(
    rng: random.Random, contig: str, length: int, count: int, samples: int
) -> Iterator[str]:
    """Yield the lines of one contig, many at a time, which is faster."""
    step = max(1.0, 2 * length / (count + 1))
    position, done = 1, 0
    while done < count:
        size = min(BATCH, count - done)
        genotypes = [rng.choices(_genotypes(), k=size) for _ in range(samples)]
        calls = zip(*genotypes, strict=True) if samples else iter([()] * size)
        start = "GT:AD:DP:GQ\t" if samples else ""
        lines = []
        for alleles, info, call in zip(
            rng.choices(_alleles(), k=size), rng.choices(_infos(), k=size), calls, strict=True
        ):
            position = min(length, position + int(rng.random() * step))
            tail = f"\t{start}" + "\t".join(call) if call else ""
            lines.append(f"{contig}\t{position}\t.\t{alleles}\t{info}{tail}\n")
        done += size
        yield "".join(lines)


@functools.cache
def _alleles() -> list[str]:
    single = [f"{ref}\t{alt}" for ref in "ACGT" for alt in "ACGT" if ref != alt]
    return [*single * 4, "AT\tA", "GCCT\tG", "C\tCTTA", "G\tGA"]


@functools.cache
def _infos() -> list[str]:
    return [
        f"{31 + depth * 7 % 900}.{depth % 100:02}\t{'LowQual' if depth < 30 else 'PASS'}"  # noqa: PLR2004
        f"\tAC={count};AF={count / 6:.3f};AN=6;DP={depth}"
        for count in range(1, 7)
        for depth in range(20, 260)
    ]


@functools.cache
def _genotypes() -> list[str]:
    return [
        f"{genotype}:{ref},{alt}:{ref + alt}:{quality}"
        for genotype in ("0/0", "0/1", "1/1", "./.")
        for ref in range(0, 60, 3)
        for alt in range(0, 60, 4)
        for quality in (12, 37, 81, 99)
    ]
