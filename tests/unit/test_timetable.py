"""The rate by the clock: what is written is what is meant, on every day and on two odd ones."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.errors import InvalidSettings
from downloader.timetable import (
    Timetable,
    Window,
    format_windows,
    local_zone,
    parse_window,
    parse_windows,
)

MIB = 1024**2
BERLIN = ZoneInfo("Europe/Berlin")
HAVANA = ZoneInfo("America/Havana")  # where the skipped hour is the first of its day
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # where half an hour is skipped
FORWARD = datetime(2024, 3, 31, tzinfo=BERLIN)  # a Sunday; there is no 02:00 to 03:00
BACK = datetime(2024, 10, 27, tzinfo=BERLIN)  # a Sunday; 02:00 to 03:00 is there twice
MINUTE = timedelta(minutes=1)


def timetable(*windows, otherwise=None, zone=BERLIN):
    return Timetable(parse_windows(windows), otherwise, zone)


def at(text, day=29):
    """A moment of the first days of 2024's spring; the 29th of February is a Thursday."""
    return datetime.fromisoformat(f"2024-02-{day:02} {text}").replace(tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("text", "days", "start", "stop", "rate"),
    [
        ("mon-fri 08:00-18:00 20M", range(5), 480, 1080, 20 * MIB),
        ("sat,sun 10:00-16:00 50M/s", (5, 6), 600, 960, 50 * MIB),
        ("22:00-06:00 none", range(7), 1320, 1800, None),
        ("00:00-24:00 1K", range(7), 0, 1440, 1024),
        ("22:00-00:00 1K", range(7), 1320, 1440, 1024),
        ("fri-mon 8:00-9:30 1.5 MiB", (4, 5, 6, 0), 480, 570, 1.5 * MIB),
        ("MON, wed - thu,Mon  08:00 - 18:00  NONE", (0, 2, 3), 480, 1080, None),
        ("mon-mon 08:00-18:00 2000", (0,), 480, 1080, 2000),
    ],
)
def test_a_window_is_days_times_and_a_rate(text, days, start, stop, rate):
    assert parse_window(text) == Window(
        days=frozenset(days), start=start, stop=stop, bytes_per_second=rate
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no window; expected days, times and a rate, such as mon-fri 08:00-18:00 20M"),
        ("20M", "is no window"),
        ("08:00 20M", "is no window"),
        ("08:00-18:00", "is no window"),
        ("mon 08:00-18:00", "is no window"),
        ("mon tue 08:00-18:00 20M", "is no window"),
        ("mon,, 08:00-18:00 20M", "is no window"),
        ("08:00-18:00-20:00 20M", "is no window"),
        ("workdays 08:00-18:00 20M", "'workdays' is no day; expected mon, tue, wed"),
        ("mon-wed-fri 08:00-18:00 20M", "a range of three days' names; expected two"),
        ("8-18 20M", "8 is no time of day; expected 00:00 to 24:00"),
        ("08:00-25:00 20M", "25:00 is no time of day"),
        ("08:60-18:00 20M", "08:60 is no time of day"),
        ("08:00-24:01 20M", "24:01 is no time of day"),
        ("24:00-06:00 20M", "starts at 24:00; expected 00:00 of the day after"),
        ("08:00-08:00 20M", "ends as it starts; for a whole day write 00:00-24:00"),
        ("08:00-18:00 20MB", "'20MB' is no rate; expected at least 1K, or none"),
        ("08:00-18:00 0", "'0' is no rate"),
        ("08:00-18:00 20M fast", "'20M fast' is no rate"),
    ],
)
def test_what_is_no_window_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(ValueError, match=r"such as|24:00") as error:
        parse_window(text)
    assert sentence in str(error.value)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        ["mon-fri 08:00-18:00 20M", "22:00-06:00 none"],
        "mon-fri 08:00-18:00 20M; 22:00-06:00 none;",
        ["mon-fri 08:00-18:00 20M;22:00-06:00 none"],
    ],
)
def test_windows_are_a_list_or_text(value):
    assert format_windows(parse_windows(value)) == "mon-fri 08:00-18:00 20M; 22:00-06:00 none"


@pytest.mark.parametrize("value", ["", " ; ", "none", "None", [], ["none"]])
def test_no_windows_are_none(value):
    assert parse_windows(value) == ()
    assert format_windows(()) == "none"


windows = st.builds(
    lambda days, start, length, rate: Window(
        days=days, start=start, stop=start + length, bytes_per_second=rate
    ),
    st.frozensets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 1439),
    st.none() | st.integers(1024, 2**40),
)


@given(st.lists(windows, max_size=4).map(tuple))
def test_what_is_shown_is_read_as_the_same(several):
    assert parse_windows(format_windows(several)) == several


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mon,tue,wed 08:00-09:00 1M", "mon-wed 08:00-09:00 1M"),
        ("mon-sun 08:00-09:00 1M", "08:00-09:00 1M"),
        ("fri-mon 22:00-00:00 1M", "mon,fri-sun 22:00-24:00 1M"),
        ("sun,sat 8:00-9:00 1024K", "sat,sun 08:00-09:00 1M"),
    ],
)
def test_a_window_is_shown_in_its_shortest_form(text, shown):
    assert str(parse_window(text)) == shown


@pytest.mark.parametrize(
    ("moment", "rate"),
    [
        (at("07:59:59.999"), None),
        (at("08:00"), 20 * MIB),
        (at("17:59:59.999"), 20 * MIB),
        (at("18:00"), None),
        (at("12:00", day=24), 50 * MIB),  # a Saturday
        (at("18:00", day=24), None),
        (at("07:00").astimezone(UTC), None),
        (datetime(2024, 2, 29, 7, tzinfo=UTC), 20 * MIB),  # it is 08:00 in Berlin
        (datetime(2024, 2, 29, 8), 20 * MIB),  # noqa: DTZ001 - the timetable's own zone
    ],
)
def test_the_rate_is_that_of_the_window_around_a_moment(moment, rate):
    both = timetable("mon-fri 08:00-18:00 20M", "sat,sun 10:00-16:00 50M")
    assert both.rate_at(moment) == rate


def test_outside_of_all_windows_the_setting_counts():
    day = timetable("08:00-18:00 none", otherwise=5 * MIB)
    assert day.rate_at(at("12:00")) is None
    assert day.rate_at(at("18:00")) == 5 * MIB
    assert timetable(otherwise=5 * MIB).rate_at(at("18:00")) == 5 * MIB


def test_of_two_windows_the_first_counts():
    lunch = timetable("12:00-13:00 none", "08:00-18:00 20M", "00:00-24:00 1M")
    rates = [lunch.rate_at(at(f"{hour:02}:30")) for hour in (7, 11, 12, 13, 18)]
    assert rates == [MIB, 20 * MIB, None, 20 * MIB, MIB]


@pytest.mark.parametrize(
    ("moment", "is_in"),
    [
        (at("05:00", day=23), False),  # a Friday: its window starts in the evening
        (at("22:00", day=23), True),
        (at("05:59", day=24), True),
        (at("06:00", day=24), False),
        (at("23:00", day=24), False),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_it_starts_on(moment, is_in):
    assert timetable("fri 22:00-06:00 1M").rate_at(moment) == (MIB if is_in else None)


def test_the_night_of_sunday_ends_on_monday():
    night = timetable("sun 22:00-06:00 1M")
    assert night.rate_at(at("05:00", day=26)) == MIB
    assert night.next_change(at("23:00", day=25)) == at("06:00", day=26)


@pytest.mark.parametrize(
    ("after", "change"),
    [
        (at("07:00"), at("08:00")),
        (at("08:00"), at("18:00")),
        (at("17:59:59.999"), at("18:00")),
        (at("18:00", day=23), at("08:00", day=26)),  # from Friday to Monday
    ],
)
def test_the_next_change_is_the_next_moment_with_another_rate(after, change):
    found = timetable("mon-fri 08:00-18:00 20M").next_change(after)
    assert found == change
    assert found.tzinfo is BERLIN


def test_neighbouring_windows_of_one_rate_are_no_change():
    joined = timetable("08:00-12:00 20M", "12:00-18:00 20M", otherwise=MIB)
    assert joined.next_change(at("09:00")) == at("18:00")


@pytest.mark.parametrize(
    "windows", [[], ["00:00-24:00 1M"], ["12:00-06:00 1M", "06:00-12:00 1M"], ["08:00-09:00 none"]]
)
def test_where_the_rate_is_always_the_same_there_is_no_next_change(windows):
    assert timetable(*windows).next_change(at("07:00")) is None


def test_a_window_that_lies_in_the_skipped_hour_comes_a_week_later():
    early = timetable("sun 02:10-02:50 1M")
    assert early.next_change(FORWARD - 20 * 60 * MINUTE) == FORWARD + timedelta(days=7, minutes=130)


def test_when_clocks_are_put_forward_a_window_starts_as_soon_as_there_is_a_time_in_it():
    """02:30 is skipped: at 03:00, the minute after 01:59, the window is open."""
    change = timetable("02:30-05:00 1M").next_change(FORWARD)
    assert change.astimezone(UTC) == datetime(2024, 3, 31, 1, tzinfo=UTC)
    assert (change.hour, change.minute) == (3, 0)


def test_when_clocks_are_put_back_a_window_is_there_twice():
    night, moment, found = timetable("02:30-05:00 1M"), BACK, []
    for _ in range(4):
        moment = night.next_change(moment)
        found.append(moment.astimezone(UTC).strftime("%H:%M"))
    # 02:30 summer time, 03:00 which is 02:00 again, 02:30 winter time, 05:00
    assert found == ["00:30", "01:00", "01:30", "04:00"]


def firings(triggers, start, stop):
    """Return, in UTC, when the triggers fire, as a scheduler asks them."""
    found = set()
    for trigger in triggers:
        previous, now = None, start
        while (fires := trigger.get_next_fire_time(previous, now)).astimezone(UTC) < stop:
            previous, now = fires, fires.astimezone(UTC).astimezone(start.tzinfo)
            found.add(fires.astimezone(UTC))
    return found


ODD_DAYS = [
    FORWARD,
    BACK,
    datetime(2024, 3, 10, tzinfo=HAVANA),
    datetime(2024, 11, 3, tzinfo=HAVANA),
    datetime(2024, 4, 7, tzinfo=LORD_HOWE),
    datetime(2024, 10, 6, tzinfo=LORD_HOWE),
    at("00:00"),
]


@pytest.mark.parametrize("day", ODD_DAYS, ids=lambda day: f"{day.tzinfo.key} {day:%b %d}")
@pytest.mark.parametrize(
    "windows",
    [
        ["02:30-05:00 1M"],
        ["01:45-02:15 1M", "sun 00:10-00:20 none"],
        ["22:00-02:20 1M", "sat,sun 22:00-00:40 2M"],
        ["00:00-24:00 1M"],
    ],
    ids=";".join,
)
def test_who_follows_the_triggers_or_the_changes_always_has_the_rate_of_the_minute(day, windows):
    table = timetable(*windows, zone=day.tzinfo)
    start = (day - timedelta(days=1)).astimezone(UTC)
    stop = start + timedelta(days=3)
    fired = firings(table.triggers(), start.astimezone(day.tzinfo), stop)
    rate = by_changes = table.rate_at(start)
    change = table.next_change(start)
    for minute in range((stop - start) // MINUTE):
        moment = start + minute * MINUTE
        if moment in fired:
            rate = table.rate_at(moment)
        if change is not None and moment == change.astimezone(UTC):
            by_changes, change = table.rate_at(moment), table.next_change(moment)
        assert rate == by_changes == table.rate_at(moment)


def test_there_is_a_trigger_for_each_start_and_end():
    triggers = timetable("mon-fri 08:00-18:00 20M", "fri 22:00-24:00 none").triggers()
    days = "mon,tue,wed,thu,fri"
    assert [str(trigger) for trigger in triggers] == [
        f"cron[day_of_week='{days}', hour='8', minute='0', second='0']",
        f"cron[day_of_week='{days}', hour='18', minute='0', second='0']",
        "cron[day_of_week='fri', hour='22', minute='0', second='0']",
        "cron[day_of_week='sat', hour='0', minute='0', second='0']",
        "cron[minute='0,30', second='0']",
    ]
    assert all(trigger.timezone is BERLIN for trigger in triggers)


def test_without_windows_there_is_nothing_to_wait_for():
    assert timetable(otherwise=MIB).triggers() == []


@pytest.fixture
def fresh_zone(monkeypatch):
    """Let the local zone be asked for anew."""
    monkeypatch.setattr("tzlocal.unix._cache_tz", None)
    return monkeypatch


def test_without_a_zone_the_clock_on_the_wall_of_this_machine_counts(fresh_zone):
    fresh_zone.setenv("TZ", "Asia/Shanghai")
    day = timetable("08:00-18:00 1M", zone=None)
    assert day.rate_at(datetime(2024, 2, 29, 0, tzinfo=UTC)) == MIB
    assert day.next_change(datetime(2024, 2, 29, 0, tzinfo=UTC)).hour == 18
    assert {str(trigger.timezone) for trigger in day.triggers()} == {"Asia/Shanghai"}


@pytest.mark.parametrize("name", ["Europe/Atlantis", "CET-1CEST,M3.5.0,M10.5.0/3"])
def test_a_zone_that_is_unknown_is_one_sentence(fresh_zone, name):
    fresh_zone.setenv("TZ", name)
    with pytest.raises(InvalidSettings, match="expected a name such as Europe/Berlin: set TZ"):
        local_zone()
