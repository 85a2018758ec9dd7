"""A VCF and its index on disk: what passes, what warns, what fails, and how it is said."""

import gzip
import os
import struct

import pysam
import pysam.bcftools
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downloader.errors import DiskError, VerificationFailed
from downloader.sandbox import samples
from downloader.verify import check_path, check_result
from downloader.verify.tbi import first_bin

VCF, TBI = samples.small_pair()
HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=1000000>\n##contig=<ID=chr2,length=9>\n"
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
)
COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\n"


def row(contig, position, rest="A\tC\t.\tPASS\t.\tGT\t0/1"):
    return f"{contig}\t{position}\t.\t{rest}\n"


@pytest.fixture
def put(tmp_path):
    """Write result files as the transfer leaves them: other suffixes, other folders."""

    def write(**files):
        paths = {}
        for key, data in files.items():
            name = {"vcf": "a/b.vcf.gz", "tbi": "a/b.vcf.gz.tbi", "csi": "a/b.vcf.gz.csi"}[key]
            paths[name] = tmp_path / f"{key}.part"
            paths[name].write_bytes(data)
        return paths

    return write


def write_text(tmp_path, text, *, csi=False, index=True):
    path = tmp_path / "t.vcf.gz"
    path.write_bytes(samples.bgzf(text.encode()))
    if index:
        pysam.tabix_index(str(path), preset="vcf", force=True, keep_original=True, csi=csi)
    return path


def repacked(tbi, change):
    """Decompress an index, change it, compress it again."""
    content = bytearray(samples.unbgzf(tbi))
    change(content)
    return samples.bgzf(bytes(content))


@pytest.mark.parametrize("level", ["full", "quick", "off"])
def test_a_whole_pair_passes_without_a_word(put, level):
    assert check_result(put(vcf=VCF, tbi=TBI), level=level) == []


def test_every_file_is_announced_once_in_order(put):
    heard = []
    check_result(put(tbi=TBI, vcf=VCF), level="full", on_file=heard.append)
    assert heard == ["a/b.vcf.gz", "a/b.vcf.gz.tbi"]


def test_only_files_that_get_a_check_are_announced(tmp_path):
    """To say "checking data.bin" would be no truth."""
    contents = {
        "data.bin": b"x",
        "notes.txt.gz": gzip.compress(b"words"),
        "notes.txt.bgz": samples.bgzf(b"words"),
        "plain.vcf": gzip.decompress(VCF),
        "lone.vcf.gz.tbi": TBI,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    heard = []
    check_result({name: tmp_path / name for name in contents}, level="full", on_file=heard.append)
    assert heard == ["lone.vcf.gz.tbi", "notes.txt.bgz", "plain.vcf"]


@pytest.mark.parametrize("at_fault", ["a/b.vcf.gz", "a/b.vcf.gz.tbi"])
def test_an_error_knows_the_file_at_fault(put, at_fault):
    files = put(vcf=VCF, tbi=TBI)
    files[at_fault].write_bytes(files[at_fault].read_bytes()[:-30])
    with pytest.raises(VerificationFailed) as caught:
        check_result(files, level="full")
    assert caught.value.name == at_fault
    files[at_fault].unlink()
    with pytest.raises(DiskError) as caught:
        check_result(files, level="full")
    assert caught.value.name == at_fault


def test_off_reads_nothing(tmp_path):
    assert check_result({"x.vcf.gz": tmp_path / "missing"}, level="off") == []


@pytest.mark.parametrize("records", [0, 1, 300, 20_000])
@pytest.mark.parametrize("level", ["full", "quick"])
def test_pairs_of_any_size_pass(tmp_path, records, level):
    vcf, _ = samples.write_pair(tmp_path, "s.vcf.gz", records=records)
    assert check_path(vcf, level=level) == []


def test_sites_only_passes(tmp_path):
    vcf, _ = samples.write_pair(tmp_path, "s.vcf.gz", records=500, samples=())
    assert check_path(vcf, level="full") == []


@pytest.mark.parametrize("min_shift", [9, 14, 16])
def test_csi_indexes_of_any_grain_pass(tmp_path, min_shift):
    vcf, _ = samples.write_pair(tmp_path, "s.vcf.gz", records=3000)
    pysam.tabix_index(
        str(vcf), preset="vcf", force=True, keep_original=True, csi=True, min_shift=min_shift
    )
    files = {path.name: path for path in tmp_path.iterdir()}
    assert sorted(files) == ["s.vcf.gz", "s.vcf.gz.csi", "s.vcf.gz.tbi"]
    assert check_result(files, level="full") == []
    assert check_result(files, level="quick") == []


def test_an_index_of_bcftools_passes(tmp_path):
    """Its tables are written by other code of htslib than tabix's."""
    vcf, _ = samples.write_pair(tmp_path, "s.vcf.gz", records=3000)
    pysam.bcftools.index("--tbi", "--force", str(vcf), catch_stdout=False)
    pysam.bcftools.index("--csi", "--force", str(vcf), catch_stdout=False)
    files = {path.name: path for path in tmp_path.iterdir()}
    assert check_result(files, level="full") == []


def test_long_records_and_telomeres_are_reached(tmp_path):
    """A deletion of a megabase lies in a large bin, a record at POS 0 before the first one."""
    long = "A\t<DEL>\t.\tPASS\tEND=900000\tGT\t0/1"
    info = '##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n'
    rows = row("chr1", 0) + row("chr1", 7, long) + row("chr1", 50_000) + row("chr1", 990_000)
    vcf = write_text(tmp_path, HEADER + info + COLUMNS + rows)
    assert check_path(vcf, level="full") == []


@given(at=st.integers(0, len(VCF) - 1), mask=st.integers(1, 255))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_flipped_byte_of_a_vcf_is_found(put, at, mask):
    with pytest.raises(VerificationFailed):
        check_result(put(vcf=samples.flipped_byte(VCF, at, mask=mask), tbi=TBI), level="full")


@given(at=st.integers(0, len(TBI) - 1), mask=st.integers(1, 255))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_flipped_byte_of_an_index_is_found(put, at, mask):
    with pytest.raises(VerificationFailed):
        check_result(put(vcf=VCF, tbi=samples.flipped_byte(TBI, at, mask=mask)), level="full")


@given(length=st.integers(0, len(VCF) - 1))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_truncation_is_found_even_quickly(put, length):
    for level in ("full", "quick"):
        with pytest.raises(VerificationFailed):
            check_result(put(vcf=samples.truncated(VCF, length=length), tbi=TBI), level=level)


def test_the_sentence_names_the_file_and_the_fault(put):
    with pytest.raises(
        VerificationFailed,
        match=r"^a/b\.vcf\.gz ends without the BGZF end-of-file block: it is truncated\.$",
    ):
        check_result(put(vcf=samples.without_eof(VCF), tbi=TBI), level="quick")


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_a_neat_cut_is_found_because_the_index_knows_more(put, keep):
    """Every block is whole and the end marker is there: only the index tells."""
    cut, index = samples.index_beyond_end(VCF, keep_blocks=keep)
    with pytest.raises(VerificationFailed, match=r"a/b\.vcf\.gz"):
        check_result(put(vcf=cut, tbi=index), level="full")


def test_a_neat_cut_between_lines_is_the_indexs_word_against_the_vcf(put):
    lines = samples.unbgzf(VCF).splitlines(keepends=True)
    for kept in (lines[:-1], lines[:-900]):
        with pytest.raises(VerificationFailed, match=r"b\.vcf\.gz\.tbi does not fit its VCF"):
            check_result(put(vcf=samples.bgzf(b"".join(kept)), tbi=TBI), level="full")


def test_another_vcfs_index_is_found(put):
    with pytest.raises(VerificationFailed, match=r"b\.vcf\.gz\.tbi does not fit its VCF"):
        check_result(put(vcf=VCF, tbi=samples.wrong_index()), level="full")


def test_an_index_of_an_edited_vcf_is_found(put):
    """Same contigs, same counts, same positions: one value has become a digit longer."""
    edited = samples.unbgzf(VCF).replace(b"DP=99\t", b"DP=100\t", 1)
    with pytest.raises(VerificationFailed, match="does not fit its VCF"):
        check_result(put(vcf=samples.bgzf(edited), tbi=TBI), level="full")


def test_a_vcf_without_an_index_is_a_warning(put):
    (warning,) = check_result(put(vcf=VCF), level="full")
    assert warning == "a/b.vcf.gz: there is no index (.tbi or .csi) for it."


def test_an_index_without_its_vcf_is_a_warning(put):
    (warning,) = check_result(put(tbi=TBI), level="quick")
    assert warning == "a/b.vcf.gz.tbi: the file that it is an index of is not there."


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        (b"junk", "is not BGZF"),
        (b"", "is empty"),
        (samples.bgzf(b"JUNK" * 20), "begins neither with TBI"),
        (samples.bgzf(b"TBI\x01\x05"), "ends in the middle of its tables"),
        (samples.bgzf(samples.unbgzf(TBI)[:-20]), "ends in the middle of its tables"),
        (samples.bgzf(samples.unbgzf(TBI) + b"more"), "behind its tables"),
        (samples.without_eof(TBI), "it is truncated"),
        (samples.bgzf(b"CSI\x01" + struct.pack("<3i", 99, 5, 0)), "impossible size"),
        (samples.bgzf(b"TBI\x01" + struct.pack("<8i", 2**30, 2, 1, 2, 0, 35, 0, 0)), "names for"),
        (samples.bgzf(b"TBI\x01" + struct.pack("<8i", 0, 2, 1, 2, 0, 35, 0, 2**31 - 1)), "middle"),
    ],
)
def test_a_damaged_index_has_its_sentence(put, index, sentence):
    with pytest.raises(VerificationFailed, match=sentence) as failure:
        check_result(put(vcf=VCF, tbi=index), level="full")
    assert str(failure.value).startswith("a/b.vcf.gz.tbi ")


def test_an_index_for_other_columns_is_refused(put):
    def as_gff(content):
        struct.pack_into("<3i", content, 8, 1, 1, 4)

    with pytest.raises(VerificationFailed, match="not made for a VCF"):
        check_result(put(vcf=VCF, tbi=repacked(TBI, as_gff)), level="full")


def test_a_contig_that_the_index_lacks_is_named(put):
    """An index made before the last contig's records were added."""
    text = samples.unbgzf(VCF)
    more = (
        text + row("chrY", 5, "A\tC\t50\tPASS\tDP=9\tGT:AD:DP:GQ\t" + "\t".join(["."] * 3)).encode()
    )
    with pytest.raises(VerificationFailed, match="does not"):
        check_result(put(vcf=samples.bgzf(more), tbi=TBI), level="full")


def test_a_contig_that_the_vcf_lacks_is_named(put):
    def rename(content):
        at = content.index(b"chr21\0")
        content[at : at + 5] = b"chr99"

    paths = put(vcf=VCF, tbi=repacked(TBI, rename))
    with pytest.raises(VerificationFailed, match="of contig chr99, and the VCF has 0"):
        check_result(paths, level="full")
    (warning,) = check_result(paths, level="quick")
    assert warning == "a/b.vcf.gz.tbi: it knows contig chr99, which its VCF's header lacks."


def test_a_linear_index_that_skips_records_is_found(put):
    """The bins are right, but a query would start reading too late."""

    def shift(content):
        content[-16:-8] = content[-8:] if content[-8:] != bytes(8) else struct.pack("<Q", 1 << 40)

    with pytest.raises(VerificationFailed, match="does not fit its VCF"):
        check_result(put(vcf=VCF, tbi=repacked(TBI, shift)), level="full")


def test_chunks_that_leave_records_out_are_found(put):
    """Counts, names and offsets are right; one chunk just stops early."""

    def shorten(content):
        _, bin_number, chunks = _first_bin(content)
        stop = chunks[1]
        at = bytes(content).index(struct.pack("<2Q", *chunks))
        struct.pack_into("<2Q", content, at, chunks[0], chunks[0])
        assert stop > chunks[0]
        assert bin_number < first_bin(6)

    with pytest.raises(VerificationFailed, match="misses records of contig chr1"):
        check_result(put(vcf=VCF, tbi=repacked(TBI, shorten)), level="full")


def _first_bin(content):
    names_length = struct.unpack_from("<i", content, 32)[0]
    at = 36 + names_length
    bins, number, chunks = struct.unpack_from("<iIi", content, at)
    assert chunks >= 1
    return bins, number, struct.unpack_from("<2Q", content, at + 12)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a VCF|is empty"),
        ("chrom\tstart\n", "is not a VCF: it does not begin with ##fileformat=VCF"),
        (HEADER, "has no #CHROM line"),
        (HEADER + row("chr1", 5), "has no #CHROM line"),
        (HEADER + "#CHROM\tPOS\n", "htslib cannot read"),
        (
            HEADER + COLUMNS + row("chr1", 5) + "chr1\tx\t.\tA\tC\t.\t.\t.\tGT\t0/1\n",
            "record 2 can",
        ),
        (HEADER + COLUMNS + "chr1\t5\t.\tA\n", "record 1 cannot be read"),
        (HEADER + COLUMNS + "chr1\t5\t.\tA\tC\t.\tPASS\t.\tGT\n", "invalid number of columns"),
    ],
)
@pytest.mark.parametrize("level", ["full", "quick"])
def test_what_is_no_vcf_has_its_sentence(tmp_path, capfd, text, sentence, level):
    path = write_text(tmp_path, text, index=False)
    with pytest.raises(VerificationFailed, match=sentence):
        check_path(path, level=level)
    assert capfd.readouterr() == ("", "")


def test_an_untidy_header_warns_and_passes_quietly(tmp_path, capfd):
    """Htslib would write each of these to stderr, where the bars are."""
    header = HEADER + '##INFO=<ID=1000G_AF,Number=A,Type=Float,Description="x">\n' + COLUMNS
    many = row("chrUn", 9, "A\tC\t.\tq10\tFOO=1;1000G_AF=1\tGT:XX:YY\t0/1:1:2")
    vcf = write_text(tmp_path, header + row("chr1", 3) + many)
    capfd.readouterr()
    warnings = check_path(vcf, level="full")
    assert warnings == [
        "t.vcf.gz: its header does not declare FILTER q10, which its records use.",
        "t.vcf.gz: its header does not declare INFO FOO, which its records use.",
        "t.vcf.gz: its header does not declare FORMAT XX, YY, which its records use.",
        "t.vcf.gz: its header does not declare contig chrUn, which its records use.",
        "t.vcf.gz: its header declares 1000G_AF, which is no valid VCF tag name.",
    ]
    assert "it knows contig chrUn" in check_path(vcf, level="quick")[-1]
    assert capfd.readouterr() == ("", "")


def test_htslibs_own_verbosity_is_given_back(tmp_path):
    before = pysam.get_verbosity()
    check_path(write_text(tmp_path, HEADER + COLUMNS), level="full")
    assert pysam.get_verbosity() == before


def test_chinese_names_and_broken_text_do_no_harm(tmp_path):
    text = (HEADER + "##来源=低深度全基因组\n##bad=").encode() + b"\xff\xfe\n"
    text += (COLUMNS.replace("S1", "样本") + row("chr1", 4)).encode()
    path = tmp_path / "t.vcf.gz"
    path.write_bytes(samples.bgzf(text))
    pysam.tabix_index(str(path), preset="vcf", force=True, keep_original=True)
    assert check_path(path, level="full") == []


def test_an_unsorted_vcf_warns_alone_and_fails_with_an_index(tmp_path):
    good = write_text(tmp_path, HEADER + COLUMNS + row("chr1", 3) + row("chr1", 9))
    index = (tmp_path / "t.vcf.gz.tbi").read_bytes()
    good.write_bytes(samples.bgzf((HEADER + COLUMNS + row("chr1", 9) + row("chr1", 3)).encode()))
    with pytest.raises(VerificationFailed, match="is not sorted: position 3 of chr1 follows 9"):
        check_path(good, level="full")
    (tmp_path / "t.vcf.gz.tbi").unlink()
    assert "it is not sorted" in check_path(good, level="full")[0]
    assert index


def test_scattered_contigs_are_disorder(tmp_path):
    rows = row("chr1", 3) + row("chr2", 3) + row("chr1", 9)
    path = write_text(tmp_path, HEADER + COLUMNS + rows, index=False)
    assert "the records of chr1 are in several places" in check_path(path, level="full")[0]


def test_a_last_line_without_newline_warns(tmp_path):
    path = write_text(tmp_path, HEADER + COLUMNS + row("chr1", 3).rstrip("\n"))
    assert check_path(path, level="full") == [
        "t.vcf.gz: its last line does not end in a newline and may be cut short."
    ]


def test_an_index_older_than_its_vcf_warns(tmp_path):
    vcf, index = samples.write_pair(tmp_path, "s.vcf.gz", records=5)
    os.utime(index, (1, 1))
    (warning,) = check_path(vcf, level="quick")
    assert warning.startswith("s.vcf.gz.tbi: it is older than s.vcf.gz")
    assert check_path(index, level="quick") == [warning]


def test_a_missing_file_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError, match=r"gone\.vcf\.gz could not be read: No such file"):
        check_path(tmp_path / "gone.vcf.gz", level="full")


def test_other_kinds_pass_and_compressed_ones_are_walked(tmp_path):
    contents = {
        "x.bed": b"anything",
        "x.json": b"{",
        "plain.txt.gz": gzip.compress(b"not BGZF, so not looked at")[:-3],
        "good.bed.gz": samples.bgzf(b"chr1\t1\t2\n"),
        "p.vcf": (HEADER + COLUMNS).encode(),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    files = {name: tmp_path / name for name in contents}
    assert check_result(files, level="full") == []
    files["good.bed.gz"].write_bytes(samples.without_eof(contents["good.bed.gz"]))
    with pytest.raises(VerificationFailed, match=r"^good\.bed\.gz ends without"):
        check_result(files, level="full")


def test_a_plain_vcf_needs_a_header(tmp_path):
    path = tmp_path / "p.vcf"
    path.write_bytes(b"chr1\t5\n")
    with pytest.raises(VerificationFailed, match=r"^p\.vcf is not a VCF: it does not begin"):
        check_path(path, level="full")


def test_an_index_of_a_bed_is_checked_for_itself(tmp_path):
    path = tmp_path / "x.bed.gz"
    path.write_bytes(samples.bgzf(b"chr1\t1\t2\nchr1\t5\t9\n"))
    pysam.tabix_index(str(path), preset="bed", force=True, keep_original=True)
    assert check_path(path, level="full") == []
    (tmp_path / "x.bed.gz.tbi").write_bytes(b"junk")
    with pytest.raises(VerificationFailed, match=r"^x\.bed\.gz\.tbi is not BGZF"):
        check_path(path, level="full")
