"""The samples themselves: htslib agrees that the good ones are good."""

import pysam

from downloader.sandbox import samples


def test_a_pair_is_sorted_indexed_and_readable(tmp_path):
    vcf, index = samples.write_pair(tmp_path / "new", "a.vcf.gz", records=1234)
    with pysam.VariantFile(str(vcf)) as file:
        assert sum(1 for _ in file) == 1234
        assert list(file.header.samples) == list(samples.SAMPLES)
        assert file.fetch("chr7", 0, 100_000_000)
    assert index.name == "a.vcf.gz.tbi"
    assert index.stat().st_mtime_ns >= vcf.stat().st_mtime_ns


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    one, same, other = (
        samples.write_pair(tmp_path / str(n), "a.vcf.gz", records=50, seed=seed)[0].read_bytes()
        for n, seed in enumerate((5, 5, 6))
    )
    assert one == same != other
    assert samples.incompressible(99, 3) == samples.incompressible(99, 3)
    assert samples.incompressible(99, 3) != samples.incompressible(99, 4)


def test_a_pair_may_have_no_samples_and_no_records(tmp_path):
    vcf, _ = samples.write_pair(tmp_path, "s.vcf.gz", records=0, contigs={"1": 9}, samples=())
    with pysam.VariantFile(str(vcf)) as file:
        assert list(file) == []
        assert list(file.header.contigs) == ["1"]


def test_our_own_bgzf_is_what_htslib_reads(tmp_path):
    content = samples.incompressible(200_000)[:150_000] + b"text\n" * 9000
    path = tmp_path / "x.gz"
    path.write_bytes(samples.bgzf(content))
    with pysam.BGZFile(str(path)) as file:
        assert file.read() == content
    assert samples.unbgzf(samples.bgzf(content)) == content
