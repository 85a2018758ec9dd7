"""Whatever the store or the line does: right bytes, or one clear error, and never a loop."""

import asyncio
from urllib.parse import urlsplit

import pytest
from transfer_helpers import (
    DATA,
    KEY,
    MIB,
    OTHER,
    PROBE,
    SMALL,
)

from downloader.errors import (
    BadStoreReply,
    LinkRefused,
    ObjectArchived,
    ObjectChanged,
    ObjectMissing,
    StoreUnavailable,
    TransferError,
    VerificationFailed,
)
from downloader.sandbox import Fault
from downloader.transfer import SlowDown

pytest_plugins = ["transfer_helpers"]

WHERE = [0, PROBE + 5]  # in the probe's body, in another segment's


@pytest.mark.parametrize("covering", WHERE)
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.RESET, Fault.TRUNCATE_CHUNKED])
async def test_a_body_that_breaks_off_is_gone_on_with(rig, fault, covering):
    """What came before the break is kept: no byte is written twice."""
    # What has no length is given up on the straight road, and asked for again by the plain way.
    is_again = rig.is_straight and fault is Fault.TRUNCATE_CHUNKED
    rig.store.inject(fault, covering=covering, after=400_000, times=2 if is_again else 1)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert done.received_bytes == len(DATA)
    # A reset takes from the kernel what was sent and not read. And on a busy machine a slow segment
    # is cut for another to help with it: what is on its way by then is sent twice.
    if fault is not Fault.RESET and not is_again:
        assert len(DATA) <= rig.store.bytes_served <= len(DATA) + 2 * MIB


@pytest.mark.parametrize("covering", WHERE)
async def test_a_stalled_body_is_asked_for_again(rig, covering):
    """The session's stall timeout is the watchdog; no byte that came is lost."""
    rig.stall_timeout = 0.15
    rig.store.inject(Fault.STALL, covering=covering, after=400_000)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert done.received_bytes == len(DATA)


async def test_an_answer_that_never_comes_is_asked_for_again(rig):
    rig.stall_timeout = 0.15
    rig.store.inject(Fault.HANG, covering=0)
    rig.store.inject(Fault.HANG, covering=PROBE)
    await rig.transfer()
    assert rig.on_disk == DATA


@pytest.mark.parametrize(
    ("fault", "details"),
    [
        (Fault.TRICKLE, {"chunk": 10_000, "interval": 0}),
        (Fault.CHUNKED, {}),
        (Fault.OVERLONG, {"extra": b"trailing garbage"}),
    ],
)
async def test_a_body_of_any_shape_is_read_to_its_end_and_no_further(rig, fault, details):
    rig.store.inject(fault, times=None, **details)
    await rig.transfer()
    assert rig.on_disk == DATA


@pytest.mark.parametrize(
    ("fault", "times"),
    [(Fault.SHORT_RANGE, 1), (Fault.SHORT_RANGE, None), (Fault.CUT, 1), (Fault.CUT, 12)],
)
async def test_less_than_was_asked_for_is_progress(rig, fault, times):
    """Patience is renewed by every byte: a poor line needs more tries than a dead one gets."""
    rig.use(max_attempts=2)
    rig.store.inject(fault, times=times)  # halves whatever is asked for
    rig.store.put(KEY, SMALL)
    await rig.transfer()
    assert rig.on_disk == SMALL
    assert rig.store.bytes_served == len(SMALL)
    assert len(rig.store.requests) > (1 if times == 1 else 12)


@pytest.mark.parametrize("covering", WHERE)
@pytest.mark.parametrize(
    ("fault", "details"),
    [
        (Fault.WRONG_CONTENT_RANGE, {"shift": 1}),
        (Fault.WRONG_CONTENT_RANGE, {"shift": -1}),
        (Fault.WRONG_CONTENT_RANGE, {"shift": MIB}),
        (Fault.WRONG_TOTAL, {"total": 1}),
        (Fault.HTML_200, {}),
        (Fault.STATUS, {"status": 500}),
        (Fault.STATUS, {"status": 416, "code": "InvalidRange"}),
        (Fault.STATUS, {"status": 412, "code": "PreconditionFailed"}),
    ],
)
async def test_one_answer_that_does_not_fit_costs_nothing_but_a_request(
    rig, fault, details, covering
):
    """Not a byte of it is believed, and not a byte that was there is thrown away."""
    wrong = rig.store.inject(fault, covering=covering, **details)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert wrong.hits == 1
    assert done.received_bytes == len(DATA)


@pytest.mark.parametrize(
    ("fault", "details", "error", "sentence"),
    [
        (Fault.WRONG_CONTENT_RANGE, {"shift": 9}, BadStoreReply, "was asked for bytes 0-"),
        (Fault.WRONG_TOTAL, {"total": 1}, BadStoreReply, "was asked for bytes 0-"),
        (Fault.HTML_200, {}, BadStoreReply, "A web page came in place of the object"),
        (Fault.STATUS, {"status": 500}, StoreUnavailable, "answered InternalError: "),
        (Fault.STATUS, {"status": 429}, StoreUnavailable, "answered TooManyRequests: "),
        (Fault.CUT, {"after": 0}, StoreUnavailable, "ended in the middle of the body"),
        (Fault.RESET, {"after": 0}, StoreUnavailable, "The connection to the store"),
        (Fault.TRUNCATE_CHUNKED, {"after": 0}, StoreUnavailable, "ended the body early"),
    ],
)
async def test_patience_ends_after_so_many_attempts_without_a_byte(
    rig, fault, details, error, sentence
):
    rig.store.put(KEY, SMALL)
    rig.store.inject(fault, times=None, **details)
    with pytest.raises(error, match=f"{sentence}.*given up after 4 attempts in a row"):
        await rig.transfer()
    # The probe's own attempts are counted for themselves; what is strange is asked for both ways.
    assert 4 <= len(rig.store.requests) <= (7 if rig.is_straight else 5)


async def test_a_wrong_total_of_the_probe_is_found_out(rig):
    """The first answer is all that is known; the second contradicts it, twice."""
    rig.store.inject(Fault.WRONG_TOTAL, total=len(DATA) + 5)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert f"had {len(DATA) + 5} bytes and now has {len(DATA)}" in rig.heard.notes[0]


@pytest.mark.parametrize("covering", WHERE)
async def test_the_wrong_part_under_the_right_header_is_found_by_the_checksum(rig, covering):
    rig.store.inject(Fault.WRONG_PART, covering=covering, shift=1)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.store.bytes_served == 2 * len(DATA)


async def test_the_wrong_part_for_ever_is_never_called_right(rig):
    rig.store.put(KEY, SMALL)
    rig.store.inject(Fault.WRONG_PART, times=None, shift=1)
    with pytest.raises(VerificationFailed):
        await rig.transfer()
    assert not rig.part_path.exists()


# A store that ignores ranges.


async def test_a_whole_object_in_place_of_the_probe_is_taken(rig):
    rig.store.inject(Fault.IGNORE_RANGE)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.statuses == [200]
    assert rig.store.bytes_served == len(DATA)


async def test_a_whole_object_in_place_of_a_segment_is_asked_for_again(rig):
    rig.store.inject(Fault.IGNORE_RANGE, covering=PROBE)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert done.received_bytes == len(DATA)


async def test_a_store_that_always_ignores_ranges_is_read_in_one_stream(rig):
    """Others write more bytes than the object has, without an error."""
    rig.store.inject(Fault.CUT, after=PROBE + 5000)
    rig.store.inject(Fault.IGNORE_RANGE, times=None)
    rig.left_by_an_earlier_run((0, PROBE, 77), (PROBE, PROBE + 9, 9), (PROBE + 9, len(DATA), 0))
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert done.received_bytes == len(DATA) - 86
    assert any("ignores ranges" in note for note in rig.heard.notes)


async def test_a_resumed_run_skips_what_it_has_in_the_one_stream(rig):
    rig.left_by_an_earlier_run((0, PROBE, 77), (PROBE, PROBE + 9, 9), (PROBE + 9, len(DATA), 4000))
    rig.store.inject(Fault.IGNORE_RANGE, times=None)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert (done.resumed_bytes, done.received_bytes) == (77 + 9 + 4000, len(DATA) - 4086)
    assert rig.heard.shown == len(DATA)


async def test_one_whole_object_on_resume_is_not_read_from_its_start(rig):
    """Half a terabyte that is here already must not travel again because of one reply."""
    rig.left_by_an_earlier_run((0, PROBE, PROBE), (PROBE, len(DATA), 0))
    rig.store.inject(Fault.IGNORE_RANGE)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert rig.statuses == [200, 206]


async def test_a_body_that_is_not_wanted_does_not_keep_its_connection(rig):
    """Else the store would wait, and one more connection be open, until all the rest is here."""
    rig.left_by_an_earlier_run((0, PROBE, PROBE), (PROBE, len(DATA), 0))
    rig.store.inject(Fault.IGNORE_RANGE)
    held = rig.store.inject(Fault.STALL, after=1000)
    running = asyncio.ensure_future(rig.transfer())
    await held.happened.wait()
    assert rig.store.connections_open == 1
    rig.store.clear_faults()
    await running
    assert rig.on_disk == DATA


# Other versions.


@pytest.mark.parametrize("fault", [Fault.ETAG_CHANGED, Fault.NO_ETAG, Fault.WEAK_ETAG])
async def test_one_strange_etag_throws_nothing_away(rig, fault):
    """The store is asked a second time before a hundred gigabytes are given up."""
    rig.store.inject(fault, covering=PROBE)
    done = await rig.transfer()
    assert rig.on_disk == DATA
    assert done.received_bytes == len(DATA)
    assert rig.heard.notes == []


async def test_another_etag_is_another_version_even_if_the_precondition_was_ignored(rig):
    """The other bytes come with status 206, and none of them may be joined to the first."""
    old = rig.store.get(KEY).etag

    def replace():
        rig.heard.when_sized = lambda: None
        new = rig.store.replace(KEY, OTHER).etag
        rig.store.inject(Fault.ETAG_CHANGED, times=None, etag=new)  # whatever was asked for

    rig.heard.when_sized = replace
    await rig.transfer()
    assert rig.on_disk == OTHER
    assert f"was {old} and is now {rig.store.get(KEY).etag}" in rig.heard.notes[0]


async def test_another_etag_for_ever_ends_it(rig):
    rig.store.inject(Fault.ETAG_CHANGED, times=None, covering=PROBE)
    with pytest.raises(ObjectChanged, match="4 times in a row"):
        await rig.transfer()
    assert rig.checkpoints.saved is None


async def test_a_cut_without_an_etag_begins_again(rig):
    rig.store.put(KEY, SMALL, etag='W/"weak"')
    rig.store.inject(Fault.CUT, after=60_000, times=2 if rig.is_straight else 1)  # by both ways
    done = await rig.transfer()
    assert rig.on_disk == SMALL
    assert done.received_bytes == 60_000 + len(SMALL)
    assert rig.heard.shown == len(SMALL)
    assert "no ETag to go on by" in rig.heard.notes[0]


async def test_a_poor_line_without_an_etag_is_tried_as_long_as_it_comes_further(rig):
    """Ten cuts, each a little later than the one before, are not three strikes."""
    rig.store.put(KEY, SMALL, etag='W/"weak"')
    for after in range(10_000, 100_000, 9_000):
        rig.store.inject(Fault.CUT, after=after)
    await rig.transfer()
    assert rig.on_disk == SMALL


async def test_a_dead_line_without_an_etag_is_given_up(rig):
    rig.store.put(KEY, SMALL, etag='W/"weak"')
    rig.store.inject(Fault.CUT, after=60_000, times=None)
    with pytest.raises(StoreUnavailable, match="no ETag to go on by; given up after 4 attempts"):
        await rig.transfer()
    assert len(rig.store.requests) <= (8 if rig.is_straight else 5)


async def test_parts_only_and_no_etag_is_given_up(rig):
    rig.store.put(KEY, SMALL, etag='W/"weak"')
    rig.store.inject(Fault.SHORT_RANGE, times=None, length=100)
    with pytest.raises(BadStoreReply, match="no ETag, and parts only"):
        await rig.transfer()


# Refusals.


@pytest.mark.parametrize(
    ("status", "code", "error", "sentence"),
    [
        (404, "NoSuchKey", ObjectMissing, "The store has no such object: NoSuchKey: "),
        (403, "InvalidObjectState", ObjectArchived, "must be restored in the store first"),
        (400, "InvalidArgument", TransferError, "The store answered InvalidArgument: "),
    ],
)
async def test_a_refusal_is_told_at_once(rig, status, code, error, sentence):
    rig.store.inject(Fault.STATUS, status=status, code=code, times=None)
    with pytest.raises(error, match=sentence):
        await rig.transfer()
    assert len(rig.store.requests) == 1


async def test_an_archived_object_keeps_what_was_fetched_of_it(rig):
    rig.left_by_an_earlier_run((0, PROBE, 100), (PROBE, len(DATA), 50))
    rig.store.archive(KEY)
    with pytest.raises(ObjectArchived, match="request id"):
        await rig.transfer()
    assert rig.checkpoints.saved.safe_bytes == 150


async def test_an_error_never_quotes_the_link(rig):
    """The XML of a refused signature repeats it, and the string that was signed."""
    rig.url = rig.store.object_url(KEY).replace("Signature=", "Signature=AAAA")
    link_of_no_use = rig.url

    async def renew(_):
        return link_of_no_use

    rig.renew = renew
    with pytest.raises(LinkRefused) as error:
        await rig.transfer()
    told = str(error.value)
    assert "SignatureDoesNotMatch" in told
    for secret in ("Signature=", "AAAA", "Expires=", "SANDBOXACCESSKEYID"):
        assert secret not in told


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "37"}, 37),
        ({"x-oss-qos-delay-time": "41000"}, 41),
        ({"Retry-After": "9" * 300}, 3600),
    ],
)
async def test_a_store_that_asks_for_a_pause_slows_every_transfer_down(
    rig, monkeypatch, headers, seconds
):
    """One pause for all, obeyed up to an hour, before anybody asks that store again."""
    asked = []
    ask = SlowDown.ask

    def noted(self, store, seconds):
        asked.append((self, store, seconds))
        ask(self, store, seconds)

    monkeypatch.setattr(SlowDown, "ask", noted)
    rig.store.inject(Fault.STATUS, status=503, headers=headers)
    await rig.transfer()
    assert rig.on_disk == DATA
    assert asked == [(rig.options.slow_down, _store_of(rig), seconds)]


async def test_a_store_that_throttles_without_a_word_of_how_long_slows_all_down_too(
    rig, monkeypatch
):
    asked = []
    monkeypatch.setattr(SlowDown, "ask", lambda _, store, seconds: asked.append(seconds))
    rig.store.inject(Fault.STATUS, status=503)
    rig.store.inject(Fault.STATUS, status=500, covering=PROBE)
    await rig.transfer()
    (seconds,) = asked
    assert 0.25 <= seconds <= 0.5


def _store_of(rig):
    return urlsplit(rig.store.object_url(KEY)).netloc


async def test_nobody_asks_while_the_store_wants_to_be_left_alone(rig, monkeypatch):
    slow_down = rig.options.slow_down
    slow_down.ask(_store_of(rig), 30)
    waiting, over = asyncio.Event(), asyncio.Event()

    async def pause(seconds):
        assert 29 < seconds <= 30
        waiting.set()
        await over.wait()

    monkeypatch.setattr("downloader.transfer.throttle.pause", pause)
    running = asyncio.ensure_future(rig.transfer())
    await waiting.wait()
    assert rig.store.requests == []
    over.set()
    await running
    assert rig.on_disk == DATA
