"""Fresh links for refused ones, from a platform that says exactly what a test lets it say."""

import asyncio
from dataclasses import replace

import pytest

from downloader.errors import BadTaskResult, HostNotAllowed, LinkRefused, PlatformUnavailable
from downloader.hosts import HostRules
from downloader.progress import Reporter
from downloader.renewal import LinkRenewal
from downloader.retry import without_waiting
from downloader.task_result import plan_objects

RULES = HostRules.of(["*.aliyuncs.com"])
BARE = "https://b.oss-cn-beijing.aliyuncs.com/run/{}"
A, B = plan_objects([BARE.format("a?Signature=old"), BARE.format("b?Signature=old")], rules=RULES)


class Platform:
    """Gives the answers that it holds, and counts the questions."""

    def __init__(self):
        self.status = "SUCCESS"
        self.links = [BARE.format("a?Signature=new"), BARE.format("b?Signature=new")]
        self.signed = lambda key, count: {"url": BARE.format(f"{key[4:]}?Signature=signed{count}")}
        self.asked = []

    async def task_result(self, task_id):
        self.asked.append(task_id)
        await asyncio.sleep(0)
        return {"status": self.status, "result": self.links}

    async def sign_url(self, object_name):
        self.asked.append(object_name)
        return self.signed(object_name, len(self.asked))


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def platform():
    return Platform()


@pytest.fixture
def renewal(platform):
    return LinkRenewal("t1", api=platform, rules=RULES, reporter=Notes())


async def test_the_tasks_result_is_asked_once_for_all_that_were_refused_together(platform, renewal):
    links = await asyncio.gather(renewal.renew(A, A.url), renewal.renew(B, B.url))
    assert links == platform.links
    assert platform.asked == ["t1"]
    assert renewal._reporter.notes == ["a: its link was refused or expires; renewed it"]


async def test_a_link_that_has_expired_again_is_asked_for_again(platform, renewal):
    first = await renewal.renew(A, A.url)
    platform.links = [BARE.format("a?Signature=newer"), BARE.format("b?Signature=newer")]
    assert await renewal.renew(A, first) == platform.links[0]
    assert await renewal.renew(B, B.url) == platform.links[1]
    assert platform.asked == ["t1", "t1"]


async def test_a_bare_link_is_signed_and_the_question_is_asked_once_for_all(platform, renewal):
    platform.links = [BARE.format("a"), BARE.format("b")]
    bare = [replace(one, link=(link,)) for one, link in zip((A, B), platform.links, strict=True)]
    for one in bare:
        assert "?Signature=signed" in await renewal.renew(one, one.url)
    assert platform.asked == ["t1", "run/a", "run/b"]


async def test_a_signed_link_that_expires_is_signed_again_and_never_bare_again(platform, renewal):
    """The bare link was refused once; to try it again would cost a refusal each time."""
    platform.links = [BARE.format("a"), BARE.format("b")]
    one = replace(A, link=(platform.links[0],))
    link = one.url
    for _ in range(3):
        fresh = await renewal.renew(one, link)
        assert "?Signature=signed" in fresh
        assert fresh != link
        link = fresh


async def test_a_refused_link_is_not_given_out_again(platform, renewal):
    platform.links = [A.url, B.url]
    platform.signed = lambda *_: {"url": A.url}
    with without_waiting(), pytest.raises(LinkRefused, match="the only link") as caught:
        await renewal.renew(A, A.url)
    assert "Signature" not in str(caught.value)


async def test_a_link_to_another_object_is_refused(platform, renewal):
    """Its bytes would be published under this object's name."""
    platform.links = [A.url, B.url]
    platform.signed = lambda *_: {"url": BARE.format("other?Signature=s3cr3t")}
    with pytest.raises(BadTaskResult, match="another object") as caught:
        await renewal.renew(A, A.url)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("answer", [{}, {"url": None}, {"url": ""}, {"url": ["x"]}])
async def test_no_link_is_told(platform, renewal, answer):
    platform.links = [A.url, B.url]
    platform.signed = lambda *_: answer
    with pytest.raises(BadTaskResult, match="gave none"):
        await renewal.renew(A, A.url)


async def test_a_link_to_a_host_that_is_not_allowed_is_refused(platform, renewal):
    platform.links = [A.url, B.url]
    platform.signed = lambda *_: {"url": "https://evil.example/run/a?Signature=s3cr3t"}
    with pytest.raises(HostNotAllowed, match=r"evil\.example"):
        await renewal.renew(A, A.url)


async def test_a_file_that_the_result_lists_no_more_is_told(platform, renewal):
    platform.links = [BARE.format("b?Signature=new")]
    with pytest.raises(LinkRefused, match="does not list this file any more"):
        await renewal.renew(A, A.url)


async def test_a_task_that_runs_again_gives_no_links(platform, renewal):
    """Its result is null by then, which is not the platform's fault."""
    platform.status, platform.links = "STARTED", None
    with pytest.raises(LinkRefused, match="is STARTED by now"):
        await renewal.renew(A, A.url)


async def test_a_platform_that_is_away_is_a_passing_fault(platform, renewal):
    async def away(_):
        raise PlatformUnavailable("away")

    ask, platform.task_result = platform.task_result, away
    with pytest.raises(PlatformUnavailable):
        await renewal.renew(A, A.url)
    platform.task_result = ask
    assert await renewal.renew(A, A.url) == platform.links[0]
