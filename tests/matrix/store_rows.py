"""What the store, or the line to it, may do wrong."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta

from downloader.sandbox import Fault, PlatformFault
from matrix.causes import and_then, deed, of_store, when_half_is_here
from matrix.row import (
    NOTHING,
    ONE_BLOCK,
    STRAIGHT,
    THE_FILE,
    THE_VCF,
    Again,
    Cause,
    Row,
    times_the_file,
    unread,
    what_came,
)
from matrix.secure_front import (
    NO_TLS,
    NOT_TRUSTED,
    OLD_TLS,
    STORE,
    outdated,
    secured,
    silent,
    slamming,
    without_tls,
)
from matrix.story import DATA, FIRST_LENGTH, HALF, KEY, OTHER, TBI, TBI_KEY, VCF, VCF_KEY, Story

__all__ = ["ROWS"]

LATER = 100 * 1024  # in the second segment
HALF_OF_IT = 20_000
CLOSED_PORT = "http://127.0.0.1:1"
IS_ASKED_AGAIN = "not a byte of it is believed; it is asked for again"
IS_GIVEN_UP = "after some attempts without a new byte it ends; what came is kept"
GIVEN_UP = r".*given up after 4 attempts in a row without a new byte"


def _put_back(story: Story) -> None:
    story.store.put(KEY, story.data)


def _links(*, change: Callable[[str], str]) -> Cause:
    """Let the task's result have links that are changed, and then the right ones again."""

    def do(story: Story) -> None:
        links = [change(story.store.object_url(key)) for key in story.files]
        story.platform.add_task(story.task_id, states=("SUCCESS",), result=links)

    return deed(do, _right_links)


def _right_links(story: Story) -> None:
    story.platform.add_task(story.task_id, files=list(story.files), states=("SUCCESS",))


def _elsewhere(story: Story) -> str:
    story.store.put("elsewhere/data.bin", story.data)
    return story.store.object_url("elsewhere/data.bin")


@contextlib.asynccontextmanager
async def _redirected(story: Story) -> AsyncIterator[None]:
    story.store.inject(Fault.REDIRECT, key=KEY, times=None, location=lambda: _elsewhere(story))
    yield
    story.store.clear_faults()


def _meanwhile(do: Callable[[Story], object], undo: Callable[[Story], object]) -> Cause:
    """Do something to the other side while the second segment is waited for."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        held = story.store.inject(Fault.HANG, key=KEY, covering=LATER)

        async def act() -> None:
            await held.happened.wait()
            do(story)
            held.release()

        async with story.beside(act()):
            yield
        story.store.clear_faults()
        undo(story)

    return cause


def _replace(story: Story) -> None:
    story.replace(KEY, OTHER)


def _replace_and_ignore_preconditions(story: Story) -> None:
    """Let the store send what is new, whatever is asked for."""
    story.replace(KEY, OTHER)
    etag = story.store.get(KEY).etag
    story.store.inject(Fault.ETAG_CHANGED, key=KEY, times=None, etag=etag)


def _delete(story: Story) -> None:
    story.store.delete(KEY)


def _let_links_expire(story: Story) -> None:
    story.clock.ahead = timedelta(hours=2)


def _nothing(_: Story) -> None:
    pass


@contextlib.asynccontextmanager
async def _cut_without_etag(story: Story) -> AsyncIterator[None]:
    story.store.put(KEY, DATA, etag='W/"weak"')
    story.store.inject(Fault.CUT, key=KEY, after=FIRST_LENGTH, covering=LATER)
    yield
    story.store.clear_faults()


@contextlib.asynccontextmanager
async def _expired_at_once(story: Story) -> AsyncIterator[None]:
    """Let the links' time be over when the first of them is used."""
    story.heard.when_planned = lambda: setattr(story.clock, "ahead", timedelta(hours=2))
    yield


def _renewed_by(files: Callable[[Story], list[str]], **details: object) -> Cause:
    """Let the links' time be over at once, and the task's result be another one from then on."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        def be_over() -> None:
            story.clock.ahead = timedelta(hours=2)
            story.platform.add_task(
                story.task_id, files=files(story), states=("SUCCESS",), **details
            )

        story.heard.when_planned = be_over
        yield
        story.heard.when_planned = lambda: None
        _right_links(story)

    return cause


def _from_the_plan_on(fault: PlatformFault, times: int | None = None) -> Cause:
    """Let the platform go wrong once it has told the links."""

    @contextlib.asynccontextmanager
    async def cause(story: Story) -> AsyncIterator[None]:
        first = story.heard.when_planned
        injected = []

        def go_wrong() -> None:
            first()
            injected.append(story.platform.inject(fault, times=times))

        story.heard.when_planned = go_wrong
        yield
        story.platform.clear_faults()
        story.heard.when_planned = lambda: None
        assert injected

    return cause


def _with_a_pair(story: Story) -> None:
    """Let the task have a VCF of several blocks, and its index, beside the other files."""
    story.files |= {VCF_KEY: VCF, TBI_KEY: TBI}
    story.add_task()


def _damaged_in_the_store(story: Story) -> None:
    _with_a_pair(story)
    story.store.put(VCF_KEY, VCF[:-28])


def _mended_in_the_store(story: Story) -> None:
    story.store.put(VCF_KEY, VCF)


def _once(fault: Fault, again: Again = NOTHING, happens: str = IS_ASKED_AGAIN, **details) -> dict:
    return {"cause": of_store(fault, **details), "happens": happens, "again": again}


def _ever(fault: Fault, says: str, again: Again = NOTHING, **details) -> dict:
    cause = of_store(fault, times=None, **details)
    return {
        "cause": cause,
        "happens": IS_GIVEN_UP,
        "ends": 1,
        "says": says + GIVEN_UP,
        "again": again,
    }


KEPT = "what came is kept, the rest is asked for again"

THE_LINE = [
    Row(
        fault="nobody listens at its address",
        cause=_links(change=lambda url: CLOSED_PORT + url[url.index("/run/") :]),
        happens=IS_GIVEN_UP,
        ends=1,
        says=f"The store at 127.0.0.1 cannot be reached: .*{GIVEN_UP}",
    ),
    Row(fault="cut in mid-body", **_once(Fault.CUT, happens=KEPT, after=HALF_OF_IT)),
    Row(
        fault="cut again and again, each time after half",
        **_once(Fault.CUT, happens="every new byte renews the patience", times=12),
    ),
    Row(
        fault="cut before the first byte, always",
        **_ever(Fault.CUT, "ended in the middle of the body", after=0),
    ),
    Row(
        fault="reset in mid-body",
        **_once(Fault.RESET, unread(first=1), happens=KEPT, after=HALF_OF_IT),
    ),
    Row(
        fault="reset before the first byte, always",
        **_ever(Fault.RESET, "The connection to the store", after=0),
    ),
    Row(
        fault="stalled in mid-body",
        **_once(
            Fault.STALL,
            happens="after `stall_timeout` the rest is asked for again",
            after=HALF_OF_IT,
            stall=0.15,
        ),
    ),
    Row(
        fault="hung: no answer",
        **_once(Fault.HANG, happens="after `stall_timeout` it is asked for again", stall=0.15),
    ),
    Row(
        fault="hung, always",
        **_ever(Fault.HANG, "The store sent nothing for too long", stall=0.05),
    ),
    Row(
        fault="trickling",
        **_once(
            Fault.TRICKLE,
            happens="slow is no fault, as long as something comes",
            chunk=4096,
            interval=0,
            times=None,
        ),
    ),
    Row(
        fault="truncated: no length, and a clean end too early",
        **_once(Fault.TRUNCATE_CHUNKED, unread(first=1), happens=KEPT, after=HALF_OF_IT),
    ),
    Row(
        fault="truncated to nothing, always",
        **_ever(Fault.TRUNCATE_CHUNKED, "ended the body early", after=0),
    ),
    Row(
        fault="chunked, always",
        **_once(
            Fault.CHUNKED, unread(first=1, later=1), happens="it is read to its end", times=None
        ),
    ),
    Row(
        fault="over-long: chunked, with bytes behind the end, always",
        **_once(
            Fault.OVERLONG,
            unread(first=1, later=1),
            happens="it is read to its end only",
            times=None,
        ),
    ),
    Row(fault="over-long: with a length that says so", **_once(Fault.LONGER, unread(first=1))),
    Row(
        fault="over-long: with a length that says so, always",
        **_ever(Fault.LONGER, r"The store announced \d+ bytes for", unread(first=4)),
    ),
    Row(
        fault="bytes behind the end of the answer, always",
        **_once(
            Fault.TAIL,
            happens="they are not taken for the next answer; a new connection is made",
            times=None,
        ),
    ),
    *(
        Row(
            fault=f"TLS: {fault}",
            cause=secured(STORE, **how),
            happens="it ends at once; nothing was fetched",
            ends=1,
            says=f"The certificate of localhost is not trusted {says}",
        )
        for fault, how, says in NOT_TRUSTED
    ),
    Row(
        fault="TLS: no version but those that are not safe",
        cause=outdated(STORE),
        happens=IS_GIVEN_UP,
        ends=1,
        says=f"The store at localhost cannot be reached: {OLD_TLS}{GIVEN_UP}",
    ),
    Row(
        fault="TLS: the port speaks plain HTTP",
        cause=without_tls(STORE),
        happens=IS_GIVEN_UP,
        ends=1,
        says=f"The store at 127.0.0.1 cannot be reached: {NO_TLS}{GIVEN_UP}",
    ),
    Row(
        fault="TLS: the handshake is reset",
        cause=slamming(STORE),
        happens=IS_GIVEN_UP,
        ends=1,
        says=f"The store at localhost cannot be reached: Connection reset by peer{GIVEN_UP}",
    ),
    Row(
        fault="TLS: the handshake is never answered",
        cause=silent(STORE),
        happens="after `connect_timeout` it is tried again, and then " + IS_GIVEN_UP,
        ends=1,
        says=f"cannot be reached: no connection in time{GIVEN_UP}",
    ),
    Row(
        fault="TLS: cut in mid-body, without a word of TLS",
        cause=secured(STORE, cut_after=30_000),
        happens=KEPT,
        again=unread(first=1, later=1),
    ),
    Row(fault="no HTTP", **_once(Fault.GARBAGE)),
    Row(fault="no HTTP, always", **_ever(Fault.GARBAGE, "The connection to the store was lost")),
]

THE_ANSWER = [
    Row(
        fault="a Content-Range that was not asked for",
        **_once(Fault.WRONG_CONTENT_RANGE, unread(first=1), shift=1),
    ),
    Row(
        fault="a Content-Range that was not asked for, always",
        **_ever(Fault.WRONG_CONTENT_RANGE, "was asked for bytes 0-", unread(first=4), shift=9),
    ),
    Row(fault="a 206 without Content-Range", **_once(Fault.NO_CONTENT_RANGE, unread(first=1))),
    Row(
        fault="a 206 without Content-Range, always",
        **_ever(
            Fault.NO_CONTENT_RANGE, "206 with no Content-Range, where bytes 0-", unread(first=4)
        ),
    ),
    Row(
        fault="another total in Content-Range, later on",
        **_once(Fault.WRONG_TOTAL, unread(later=1), covering=LATER, total=len(DATA) + 5),
    ),
    Row(
        fault="another total in Content-Range of the first answer",
        **_once(
            Fault.WRONG_TOTAL,
            unread(later=2, besides=what_came()),
            happens="the next answer contradicts it, and the file is begun anew",
            total=len(DATA) + 5,
        ),
    ),
    Row(
        fault="200 for the first range",
        **_once(Fault.IGNORE_RANGE, happens="the whole object is taken as it comes"),
    ),
    Row(
        fault="200 for a later range",
        **_once(Fault.IGNORE_RANGE, unread(whole=1), covering=LATER),
    ),
    Row(
        fault="200 for every range, with half of the file here",
        cause=when_half_is_here(of_store(Fault.IGNORE_RANGE, times=None)),
        happens="one stream is read, and what is here already is skipped in it",
        again=unread(whole=4, besides=what_came(HALF)),
    ),
    Row(
        fault="a 206 of another part, under the right headers",
        **_once(
            Fault.WRONG_PART,
            THE_FILE,
            happens="the checksum finds it out, and the file is fetched again",
            shift=1,
        ),
    ),
    Row(
        fault="a 206 of another part, always",
        cause=of_store(Fault.WRONG_PART, times=None, shift=1),
        happens="the same wrong checksum twice ends it; nothing of it is believed later",
        ends=5,
        says="the CRC-64 of the bytes on disk is .* 2 times in a row",
        again=times_the_file(2),
    ),
    Row(
        fault="a 206 of less than was asked for, always",
        **_once(Fault.SHORT_RANGE, happens="it is progress", times=None),
    ),
    Row(fault="416", **_once(Fault.STATUS, status=416, code="InvalidRange")),
    Row(
        fault="416, always",
        cause=of_store(Fault.STATUS, times=None, status=416, code="InvalidRange"),
        happens=IS_GIVEN_UP,
        ends=1,
        says=f"The store has nothing at offset 0{GIVEN_UP}",
    ),
    Row(
        fault="412 for a later range",
        **_once(
            Fault.STATUS,
            happens="it is asked a second time before anything is given up",
            covering=LATER,
            status=412,
            code="PreconditionFailed",
        ),
    ),
    Row(
        fault="412 for every later range",
        cause=of_store(
            Fault.STATUS, covering=LATER, status=412, code="PreconditionFailed", times=None
        ),
        happens="the file is begun anew three times, then it ends",
        ends=1,
        says="replaced in the store .* 4 times in a row",
        again=what_came(times=4),
    ),
    Row(fault="a web page with status 200", **_once(Fault.HTML_200)),
    Row(
        fault="a web page with status 200, always",
        **_ever(Fault.HTML_200, "A web page came in place of the object"),
    ),
    Row(
        fault="Content-Encoding on bytes that are not encoded, always",
        **_once(
            Fault.CONTENT_ENCODING, happens="bytes are taken as they are, never decoded", times=None
        ),
    ),
    Row(fault="a body that is compressed", **_once(Fault.COMPRESSED, unread(first=1))),
    Row(
        fault="a body that is compressed, always",
        **_ever(Fault.COMPRESSED, r"The store announced \d+ bytes for", unread(first=4)),
    ),
]

THE_VERSION = [
    Row(
        fault="the object is replaced in mid-transfer; If-Match is honoured",
        cause=_meanwhile(_replace, _nothing),
        happens="the file is begun anew; no byte of the old version is in it",
        notes="starting this file again",
        again=what_came(),
    ),
    Row(
        fault="the object is replaced in mid-transfer; If-Match is ignored",
        cause=_meanwhile(_replace_and_ignore_preconditions, _nothing),
        happens="the ETag tells; no byte of the old version is in it",
        notes="starting this file again",
        again=unread(later=1, besides=what_came()),
    ),
    Row(
        fault="the object is replaced between two runs",
        cause=when_half_is_here(deed(lambda story: story.replace(KEY, OTHER))),
        happens="the file is begun anew; no byte of the old version is in it",
        notes="starting this file again",
        again=what_came(HALF),
    ),
    Row(
        fault="another ETag, once",
        **_once(
            Fault.ETAG_CHANGED,
            unread(later=1),
            happens="it is asked a second time before anything is given up",
            covering=LATER,
        ),
    ),
    Row(
        fault="another ETag for every later range",
        cause=of_store(Fault.ETAG_CHANGED, covering=LATER, times=None),
        happens="the file is begun anew three times, then it ends",
        ends=1,
        says="The object was .* and is now .* 4 times in a row",
        again=unread(later=8, besides=what_came(times=4)),
    ),
    Row(
        fault="no ETag, always",
        **_once(
            Fault.NO_ETAG,
            unread(first=2),
            happens="no two answers can be joined, so one brings everything",
            times=None,
        ),
    ),
    Row(
        fault="a weak ETag, always",
        **_once(Fault.WEAK_ETAG, unread(first=2), happens="as without an ETag", times=None),
    ),
    Row(
        fault="no ETag, and cut in mid-body",
        cause=_cut_without_etag,
        happens="there is nothing to go on by, so the file is begun anew",
        notes="no ETag to go on by",
        again=unread(first=4, besides=what_came()),
    ),
    Row(
        fault="another checksum header, once",
        **_once(
            Fault.WRONG_CRC,
            unread(later=1),
            happens="it is asked a second time before anything is given up",
            covering=LATER,
        ),
    ),
    Row(
        fault="a wrong checksum header with the first answer",
        **_once(
            Fault.WRONG_CRC,
            unread(later=2, besides=what_came()),
            happens="the next answer contradicts it, and the file is begun anew",
        ),
    ),
    Row(
        fault="a wrong checksum header, always",
        cause=of_store(Fault.WRONG_CRC, times=None),
        happens="the same wrong checksum twice ends it; nothing of it is believed later",
        ends=5,
        says="the CRC-64 of the bytes on disk is .* 2 times in a row",
        again=times_the_file(2),
    ),
    Row(
        fault="no checksum header, always",
        **_once(Fault.NO_CRC, happens="the manifest says that the store told none", times=None),
    ),
    Row(
        fault="a flipped byte",
        **_once(
            Fault.FLIP_BYTE,
            THE_FILE,
            happens="the checksum finds it out, and the file is fetched again",
            offset=LATER,
        ),
    ),
    Row(
        fault="a flipped byte in a VCF",
        cause=and_then(
            deed(_with_a_pair),
            of_store(Fault.FLIP_BYTE, key=VCF_KEY, offset=len(VCF) // 2),
        ),
        happens="the blocks tell where, and only that is fetched again",
        notes="of its blocks are intact",
        again=ONE_BLOCK,
    ),
    Row(
        fault="a flipped byte, always",
        cause=of_store(Fault.FLIP_BYTE, offset=LATER, times=None),
        happens="the same wrong checksum twice ends it; nothing of it is believed later",
        ends=5,
        says="the CRC-64 of the bytes on disk is .* 2 times in a row",
        again=times_the_file(2),
    ),
    Row(
        fault="a VCF that is not whole in the store",
        cause=deed(_damaged_in_the_store, _mended_in_the_store),
        happens="it is as in the store, so nobody fetches it again; nothing is published",
        ends=5,
        says="it is wrong there: tell the platform's support",
        again=THE_VCF,
    ),
]


THE_LINK = [
    Row(
        fault="a redirect to an allowed host, always",
        cause=_redirected,
        happens="it is followed, with range and precondition",
    ),
    Row(
        fault="a redirect to a forbidden host",
        cause=of_store(Fault.REDIRECT, times=None, location="https://evil.example/a?Signature=x"),
        happens="it is not followed",
        ends=1,
        says="the host evil.example, which is not one of the allowed hosts",
    ),
    Row(
        fault="a redirect in a loop",
        cause=of_store(Fault.REDIRECT, times=None),
        happens="after 5 redirects it ends",
        ends=1,
        says="redirects more than 5 times",
    ),
    Row(
        fault="links that expire before they are used",
        cause=_expired_at_once,
        happens="the platform is asked for others, once for all",
        notes="renewed it",
    ),
    Row(
        fault="links that expire in mid-transfer",
        cause=_meanwhile(_let_links_expire, _nothing),
        happens="the platform is asked for others, once for all",
        notes="renewed it",
    ),
    Row(
        fault="a refused link, always",
        cause=of_store(Fault.EXPIRED, times=None),
        happens="after two other links it ends; what came is kept",
        ends=1,
        says="The store refused the link: AccessDenied: Request has expired",
    ),
    Row(
        fault="expired links, and the platform refuses others",
        cause=and_then(_expired_at_once, _from_the_plan_on(PlatformFault.BUSINESS_ERROR)),
        happens="it ends with the platform's own words; what came is kept",
        ends=1,
        says="The platform refused the call: .*business error",
    ),
    Row(
        fault="expired links, and the platform is away for a while",
        cause=and_then(_expired_at_once, _from_the_plan_on(PlatformFault.STATUS, times=6)),
        happens="the platform is asked again",
        notes="renewed it",
    ),
    Row(
        fault="expired links, and the platform names this file no more",
        cause=_renewed_by(lambda story: [key for key in story.files if key != KEY]),
        happens="it ends at once; the same command begins with the new result",
        ends=1,
        says="the task's result does not list this file any more; run the same command again",
    ),
    Row(
        fault="expired links, and the platform tells links to a forbidden host",
        cause=_renewed_by(lambda _: [], result=["https://evil.example/run/data.bin"]),
        happens="it is not followed",
        ends=1,
        says="the host evil.example, which is not one of the allowed hosts",
    ),
    Row(
        fault="a wrong signature",
        cause=_links(change=lambda url: url.replace("Signature=", "Signature=AAAA")),
        happens="a link that the platform tells again is signed by `sign_url`",
    ),
    Row(
        fault="a bare link that is refused",
        cause=deed(
            lambda story: story.platform.add_task(
                story.task_id, files=list(story.files), states=("SUCCESS",), signed=False
            )
        ),
        happens="it is signed by `sign_url`",
    ),
    Row(
        fault="an archived object",
        cause=deed(lambda story: story.store.archive(KEY), _put_back),
        happens="it ends at once; what came is kept",
        ends=1,
        says="archived and must be restored in the store first",
    ),
    Row(
        fault="404",
        cause=deed(lambda story: story.store.delete(KEY), _put_back),
        happens="it ends at once; what came is kept",
        ends=1,
        says="The store has no such object: NoSuchKey",
    ),
    Row(
        fault="the object is deleted in mid-transfer",
        cause=_meanwhile(_delete, _put_back),
        happens="it ends at once; what came is kept, and counts when the object is back",
        ends=1,
        says="The store has no such object: NoSuchKey",
    ),
    Row(
        fault="400",
        cause=of_store(Fault.STATUS, status=400, code="InvalidArgument", times=None),
        happens="it ends at once; what came is kept",
        ends=1,
        says="The store answered InvalidArgument",
    ),
    Row(fault="500", **_once(Fault.STATUS, status=500)),
    Row(fault="500, always", **_ever(Fault.STATUS, "InternalError", status=500)),
    Row(fault="429", **_once(Fault.STATUS, status=429)),
    Row(
        fault="503, not saying for how long",
        **_once(Fault.STATUS, happens="every transfer pauses", status=503),
    ),
    Row(
        fault="503 with Retry-After",
        **_once(
            Fault.STATUS,
            happens="every transfer pauses for so long, up to an hour",
            status=503,
            headers={"Retry-After": "30"},
        ),
    ),
    Row(
        fault="503 with x-oss-qos-delay-time",
        **_once(
            Fault.STATUS,
            happens="every transfer pauses for so long, up to an hour",
            status=503,
            headers={"x-oss-qos-delay-time": "30000"},
        ),
    ),
    Row(fault="503, always", **_ever(Fault.STATUS, "SlowDown", status=503)),
]

# Refusals have no bytes that could go by one road or the other.
THE_REFUSALS = [replace(row, roads=STRAIGHT) for row in THE_LINK]

ROWS = [*THE_LINE, *THE_ANSWER, *THE_VERSION, *THE_REFUSALS]
