"""Small files that unpack to what no VCF and no index is: refused before they cost anything.

Memory is bounded from outside, and work by what was asked, never by the clock.
"""

import gzip
import itertools
import random
import struct

import pysam
import pytest

from downloader.errors import VerificationFailed
from downloader.sandbox import samples
from downloader.verify import Stopped, bgzf, check_path, pair, vcf, vcf_text
from downloader.verify.flaw import Flaw
from downloader.verify.tbi import IndexReader

MIB = 1 << 20
BLOCK = 65280  # bytes of text that bgzip puts into one block
HEAD = b"##fileformat=VCFv4.2\n##contig=<ID=1>\n"
COLUMNS = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
RECORD = b"1\t1\t.\tA\tC\t.\t.\tX="
TBI_FIELDS = (2, 1, 2, 0, ord("#"), 0)  # of a VCF

# The address space holds the interpreter and htslib, and no file that is unpacked whole.
CHECK = """
import resource, sys
from pathlib import Path
from downloader.errors import VerificationFailed
from downloader.verify import bgzf, check_path, pair, vcf
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
try:
    check_path(Path(sys.argv[1]), level=sys.argv[2])
except VerificationFailed as error:
    print(error)
"""


def blocks(data):
    return samples.bgzf(data)[: -len(bgzf.EOF_BLOCK)]


def repeated(piece, length):
    """Compress `length` bytes of one piece over and over, the same block many times."""
    assert BLOCK % len(piece) == 0
    return blocks(piece * (BLOCK // len(piece))) * (length // BLOCK)


def put(path, *parts):
    path.write_bytes(b"".join(parts) + bgzf.EOF_BLOCK)
    return path


def tbi(names, *, contigs=1, windows=0, chunks=0):
    """Begin an index up to where its names, its windows or the chunks of its first bin stand."""
    head = b"TBI\x01" + struct.pack("<8i", contigs, *TBI_FIELDS, names)
    if not chunks and not windows:
        return head
    bins = struct.pack("<iIi", 1, 4681, chunks) if chunks else struct.pack("<i", 0)
    return head + b"1\0" + bins + (struct.pack("<i", windows) if windows else b"")


def refusal(start_python, path, level):
    return start_python(CHECK, path, level).communicate()[0]


@pytest.mark.parametrize("level", ["full", pytest.param("quick", marks=pytest.mark.thorough)])
def test_a_line_without_an_end_does_not_fill_the_memory(start_python, tmp_path, level):
    """1 MB of it took 1.6 GB: htslib holds a line several times over."""
    endless = repeated(b"a", 600 * MIB)
    path = put(tmp_path / "a.vcf.gz", blocks(HEAD + COLUMNS + RECORD), endless, blocks(b"\n"))
    assert path.stat().st_size < 2 * MIB
    told = refusal(start_python, path, level)
    assert told.startswith("a.vcf.gz has a line of more than 128.0 MiB that takes only ")


@pytest.mark.thorough
def test_a_quick_check_asks_for_no_line_without_an_end(start_python, tmp_path):
    """It reads the first records, and then the first of the last contig, wherever that is."""
    first = b"".join(b"1\t%d\t.\tA\tC\t.\t.\t.\n" % (at + 1) for at in range(2000))
    start = blocks(HEAD + COLUMNS + first)
    parts = [start, blocks(b"2" + RECORD[1:]), repeated(b"a", 600 * MIB), blocks(b"\n")]
    path = put(tmp_path / "a.vcf.gz", *parts)
    begin, stop = len(start) << 16, sum(map(len, parts)) << 16
    one = struct.pack("<iIi2Qi", 1, 4681, 1, 0, begin, 1) + struct.pack("<Q", 0)
    two = struct.pack("<iIi2Qi", 1, 4681, 1, begin, stop, 1) + struct.pack("<Q", begin)
    put(tmp_path / "a.vcf.gz.tbi", blocks(tbi(4, contigs=2) + b"1\x002\0" + one + two))
    told = refusal(start_python, path, "quick")
    assert told.startswith("a.vcf.gz.tbi leads for contig 2 to where its VCF has a line of more ")
    assert f"from byte {len(start)} on" in told


INDEXES = {
    "chunks": (tbi(2, chunks=40_000_000), "claims 40,000,000 chunks for contig 1, and has "),
    "windows": (tbi(2, windows=80_000_000), "claims 80,000,000 windows for contig 1, and a TBI"),
    "names": (tbi(600 * MIB, contigs=200 * MIB), "unpacks to more than "),
}


@pytest.mark.parametrize(
    "kind", ["chunks", "windows", pytest.param("names", marks=pytest.mark.thorough)]
)
def test_an_index_that_claims_too_much_does_not_fill_the_memory(start_python, tmp_path, kind):
    """172 KB of it took 1.1 GB, 675 KB took 3.4 GB."""
    head, sentence = INDEXES[kind]
    path = put(tmp_path / "a.vcf.gz.tbi", blocks(head), repeated(b"ab\0", 640 * MIB))
    assert path.stat().st_size < 2 * MIB
    assert sentence in refusal(start_python, path, "quick")


def test_a_name_that_comes_again_ends_the_list_of_names(tmp_path):
    """Names are held one by one, so a list of the same one is not held at all."""
    path = put(
        tmp_path / "a.tbi", blocks(tbi(6 * BLOCK, contigs=2 * BLOCK)), repeated(b"ab\0", MIB)
    )
    with pytest.raises(Flaw, match="names contig ab twice"):
        IndexReader(path)


def counted(limit=None):
    """Give what counts how often it is asked, and stops at `limit`."""
    asked = itertools.count(1)

    def stopped():
        stopped.times = next(asked)
        return stopped.times == limit

    return stopped


@pytest.mark.parametrize("piece", [b"##x=yyyyyyyyyy\n", b"a"])
def test_a_header_without_an_end_is_refused_in_proportion_to_its_file(tmp_path, piece):
    """218 KB were unpacked to 128 MiB, and searched from the beginning for each block: 74 s."""
    path = put(tmp_path / "a.vcf.gz", blocks(HEAD), repeated(piece, 96 * MIB))
    most = 16 * MIB + 128 * path.stat().st_size
    stopped = counted()
    with pytest.raises(VerificationFailed, match="has a header without an end: no #CHROM line in"):
        check_path(path, level="quick", stopped=stopped)
    assert stopped.times <= most // BLOCK + 3


def test_each_byte_of_a_header_is_looked_at_once(tmp_path, monkeypatch):
    """However small its blocks are: a search from the beginning is the square of them."""
    text = HEAD + b"".join(b"##contig=<ID=c%d>\n" % number for number in range(2000))
    cut = b"".join(blocks(text[at : at + 50]) for at in range(0, len(text), 50))
    path = put(tmp_path / "a.vcf.gz", cut, blocks(COLUMNS))
    looked_at = []
    real = vcf_text.CONTIG_LINE

    class Counting:
        def findall(self, text):
            looked_at.append(len(text))
            return real.findall(text)

    monkeypatch.setattr(vcf_text, "CONTIG_LINE", Counting())
    header = vcf_text.read_header(path)
    assert header.contigs == {"1", *(f"c{number}" for number in range(2000))}
    assert header.lines == 2003
    assert sum(looked_at) == len(text)


def test_a_plain_gzip_called_vcf_is_bounded_too(tmp_path):
    path = tmp_path / "a.vcf"
    path.write_bytes(gzip.compress(HEAD + bytes(40 * MIB), 6))
    with pytest.raises(VerificationFailed, match=r"^a\.vcf has a header without an end"):
        check_path(path, level="quick")


def test_every_part_of_a_check_ends_when_nobody_waits_for_it(tmp_path):
    data, index = samples.write_pair(tmp_path, "a.vcf.gz", records=300)
    found = {"blocks": bgzf.check_blocks(data), "records": vcf.read_records(data)}
    for part in (
        lambda stopped: vcf_text.read_header(data, stopped=stopped),
        lambda stopped: vcf.read_records(data, limit=10, stopped=stopped),
        lambda stopped: vcf.check_header(data, stopped=stopped),
        lambda stopped: pair.check_tables(index, stopped=stopped),
        lambda stopped: pair.index_shift(index, stopped=stopped),
        lambda stopped: pair.check_index(index, data, **found, stopped=stopped),
        lambda stopped: pair.check_index_quickly(index, data, stopped=stopped),
    ):
        with pytest.raises(Stopped):
            part(counted(limit=1))


def test_one_bin_of_very_many_chunks_ends_when_nobody_waits_for_it(tmp_path):
    """Chunks that all differ are as many as their index's bytes on disk allow."""
    many = 100_000
    offsets = struct.pack(f"<{2 * many}Q", *(at << 16 for at in range(2 * many)))
    tables = tbi(2, chunks=many) + offsets + struct.pack("<i", 0)
    path = put(tmp_path / "a.vcf.gz.tbi", blocks(tables))
    asked = counted()
    pair.check_tables(path, stopped=asked)
    with pytest.raises(Stopped):
        pair.check_tables(path, stopped=counted(limit=asked.times))
    blocks_read = len(tables) // BLOCK + 2
    assert asked.times == blocks_read + 2 * many // 65536 + 1


def test_an_unsorted_vcf_costs_no_memory_for_each_record(tmp_path):
    """Where its records are is asked for an index alone, which it cannot have."""
    rows = b"1\t9\t.\tA\tC\t.\t.\t.\n1\t90000\t.\tA\tC\t.\t.\t.\n"
    path = put(tmp_path / "a.vcf.gz", blocks(HEAD + COLUMNS + rows * 1000))
    records = vcf.read_records(path)
    assert records.count == 2000
    assert len(records.contigs["1"].windows) == 2


def test_a_cohorts_header_and_records_pass(tmp_path):
    """100,000 samples without a call are 400 times as large as their file, and real."""
    names = "\t".join(f"sample_{number:06}" for number in range(100_000)).encode()
    form = b'##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n'
    head = HEAD + form + COLUMNS[:-1] + b"\tFORMAT\t" + names + b"\n"
    rows = b"".join(
        b"1\t%d\t.\tA\tC\t.\t.\t.\tGT" % (at + 1) + b"\t./." * 100_000 + b"\n" for at in range(3)
    )
    path = tmp_path / "a.vcf.gz"
    path.write_bytes(samples.bgzf(head + rows))
    pysam.tabix_index(str(path), preset="vcf", keep_original=True)
    for level in ("full", "quick"):
        assert check_path(path, level=level) == []


@pytest.mark.thorough
def test_three_million_contigs_pass(tmp_path):
    lines = (b"##contig=<ID=scaffold_%d,length=%d>\n" % (n, n % 4999) for n in range(3_000_000))
    path = tmp_path / "a.vcf.gz"
    path.write_bytes(samples.bgzf(b"".join([HEAD, *lines, COLUMNS])))
    assert len(vcf_text.read_header(path).contigs) == 3_000_001


@pytest.mark.thorough
@pytest.mark.parametrize("csi", [False, True])
def test_many_contigs_and_wide_gaps_have_indexes_that_pass(tmp_path, csi):
    """Entries of a linear index that say the same over a gap unpack to 400 times their size."""
    chance = random.Random(7)
    text = HEAD + b"".join(
        b"##contig=<ID=c%d>\n##contig=<ID=w%d>\n" % (n, n) for n in range(60_000)
    )
    gaps = b"".join(b"w%d\t536870000\t.\tA\tC\t.\t.\t.\n" % number for number in range(200))
    many = b"".join(
        b"c%d\t%d\t.\tA\tC\t.\t.\t.\n" % (number, chance.randint(1, 3000))
        for number in range(60_000)
    )
    path = tmp_path / "a.vcf.gz"
    path.write_bytes(samples.bgzf(text + COLUMNS + many + gaps))
    pysam.tabix_index(str(path), preset="vcf", keep_original=True, csi=csi)
    index = tmp_path / ("a.vcf.gz.csi" if csi else "a.vcf.gz.tbi")
    assert csi or len(gzip.decompress(index.read_bytes())) > 40 * index.stat().st_size
    for level in ("full", "quick"):
        assert check_path(path, level=level) == []
