"""What is made of a check that fails, though every byte on disk is the store's."""

import pytest
from fetch_helpers import PAIR

from downloader import proving
from downloader.errors import VerificationFailed

pytest_plugins = ["fetch_helpers"]


@pytest.fixture
def failing(monkeypatch):
    """Let the first checks fail, as where htslib cannot read: it tells no reason."""
    check, left = proving.check_result, []

    def fails(*arguments, **options):
        if left:
            left.pop()
            raise VerificationFailed("a.vcf.gz has a header that htslib cannot read as VCF.")
        return check(*arguments, **options)

    monkeypatch.setattr(proving, "check_result", fails)
    return lambda times: left.extend(range(times))


async def test_a_disk_that_could_not_be_read_for_a_moment_is_no_fault_of_the_store(rig, failing):
    task_id = rig.sandbox.add_task(PAIR, states=("SUCCESS",))
    failing(1)
    report = await rig.fetch(task_id)
    assert report.path.is_dir()
    fetched = sum(map(len, PAIR.values()))
    # A byte of each tells that it is still the same in the store.
    assert rig.sandbox.store.bytes_served <= fetched + len(PAIR)


async def test_what_fails_twice_is_wrong_in_the_store(rig, failing):
    task_id = rig.sandbox.add_task(PAIR, states=("SUCCESS",))
    failing(2)
    error = await rig.fails(task_id, VerificationFailed)
    assert "Its bytes on disk are those of the store, so it is wrong there" in str(error)
