"""Selecting a backup by time, age or id."""

import contextlib
import datetime
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from staddle import BadRequestError
from staddle._protocol.selectors import selector_at, selector_of
from staddle_server.base.clock import NS

UTC = datetime.UTC


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"])
def local_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def ns_of(selector) -> int:
    assert selector.WhichOneof("by") == "at"
    return selector.at.seconds * 1_000_000_000 + selector.at.nanos


def utc(*parts: int) -> int:
    return int(datetime.datetime(*parts, tzinfo=UTC).timestamp()) * 1_000_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-01T14:30:05Z", utc(2026, 5, 1, 14, 30, 5) + 999_999_999),
        ("2026-05-01t14:30:05z", utc(2026, 5, 1, 14, 30, 5) + 999_999_999),
        ("2026-05-01 14:30:05+02:00", utc(2026, 5, 1, 12, 30, 5) + 999_999_999),
        ("2026-05-01T14:30:05-0330", utc(2026, 5, 1, 18, 0, 5) + 999_999_999),
        ("2026-05-01T14:30Z", utc(2026, 5, 1, 14, 30) + 999_999_999),
        ("2026-05-01T14:30:05.5Z", utc(2026, 5, 1, 14, 30, 5) + 599_999_999),
        ("2026-05-01T14:30:05.123456789Z", utc(2026, 5, 1, 14, 30, 5) + 123_456_789),
        ("2016-12-31T23:59:60Z", utc(2016, 12, 31, 23, 59, 59) + 999_999_999),
        ("1969-12-31T23:59:59.25Z", -750_000_000 + 9_999_999),
    ],
)
def test_an_rfc_3339_time_is_read_to_its_last_digit(text: str, expected: int) -> None:
    assert ns_of(selector_at(text)) == expected


def test_a_time_without_a_zone_is_local(local_zone: str) -> None:
    local = datetime.datetime(2026, 7, 1, 14, 30, 5)
    expected = int(local.timestamp()) * 1_000_000_000
    assert ns_of(selector_at("2026-07-01 14:30:05")) == expected + 999_999_999
    assert ns_of(selector_at("2026-07-01T14:30:05")) == expected + 999_999_999
    assert ns_of(selector_at(local)) == expected + 999


@pytest.mark.parametrize("day", ["2026-07-01", "2026-03-29", "2026-10-25", "2026-11-01", "2026-12-31"])
def test_a_date_means_its_last_moment_even_when_clocks_change(local_zone: str, day: str) -> None:
    date = datetime.date.fromisoformat(day)
    midnight = datetime.datetime.combine(date + datetime.timedelta(days=1), datetime.time())
    expected = int(midnight.timestamp()) * 1_000_000_000 - 1
    assert ns_of(selector_at(day)) == expected
    assert ns_of(selector_at(date)) == expected


def test_a_time_of_day_means_its_latest_occurrence(local_zone: str) -> None:
    now = datetime.datetime(2026, 7, 1, 12, 0).astimezone()
    morning = int(datetime.datetime(2026, 7, 1, 9, 15).timestamp()) * 1_000_000_000
    last_evening = int(datetime.datetime(2026, 6, 30, 20, 15).timestamp()) * 1_000_000_000
    assert ns_of(selector_at("09:15", now=lambda: now)) == morning + 999_999_999
    assert ns_of(selector_at("20:15", now=lambda: now)) == last_evening + 999_999_999


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("3d", 259_200),
        ("90m", 5400),
        ("0s", 0),
        ("1w", 604_800),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2 hours", 7200),
        ("1y", 31_536_000),
    ],
)
def test_an_age_counts_by_the_servers_clock(text: str, seconds: int) -> None:
    selector = selector_at(text)
    assert selector.WhichOneof("by") == "ago"
    assert (selector.ago.seconds, selector.ago.nanos) == (seconds, 0)
    assert selector_at(datetime.timedelta(seconds=seconds)) == selector


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2026-13-01",
        "2026-02-30",
        "2026-05-01T25:00",
        "2026-05-01T14:30:05+99:00",
        "2026-05-01T14:30:05+01:99",
        "2026-05-01T14",
        "12:00Z",
        "2",
        "-2h",
        "1.5",
        "200000w",
        "9999-12-31",
        "٢h",
        "2026-05-01T14:30:05.1234567890Z",
    ],
)
def test_an_invalid_time_is_refused_with_valid_forms(text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        selector_at(text)
    assert caught.value.facts == {"field": "at"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-01-01T00:00+25:00", "in the zone +25:00, the hour 25 is not 00 to 23"),
        ("2026-01-01T00:00-24:00", "in the zone -24:00, the hour 24 is not 00 to 23"),
        ("2026-01-01T00:00+0160", "in the zone +0160, the minute 60 is not 00 to 59"),
        ("0000-01-01", "the year 0000 is not 2 to 9998"),
        ("9999-12-31T23:59:59Z", "the year 9999 is not 2 to 9998"),
        ("2026-13-01", "the month 13 is not 01 to 12"),
        ("2026-02-30", "the day 30 is not 01 to 28"),
        ("2026-01-00 12:00", "the day 00 is not 01 to 31"),
        ("2026-01-01 24:00", "the hour 24 is not 00 to 23"),
        ("12:60", "the minute 60 is not 00 to 59"),
        ("2026-01-01T00:00:61Z", "the second 61 is not 00 to 59"),
        ("12:00Z", "a time of day has no zone; add the date"),
        ("200y", "it is too long, use at most 36600d"),
        ("3 fortnights", "use a number with s, m, h, d, w or y"),
        ("tomorrow", "use a time such as 2026-05-01T14:30:05Z"),
    ],
)
def test_an_impossible_time_is_refused_with_the_wrong_part(text: str, why: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        selector_at(text)
    assert caught.value.message.startswith(f"invalid time {text!r}: {why}")


@given(
    st.datetimes(
        min_value=datetime.datetime(1900, 1, 1),
        max_value=datetime.datetime(9998, 12, 31),
        timezones=st.just(UTC),
    )
)
def test_a_datetime_is_never_rounded_to_before_itself(moment: datetime.datetime) -> None:
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=UTC)
    exact = (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000
    assert ns_of(selector_at(moment)) == exact + 999
    assert ns_of(selector_at(moment.isoformat(timespec="microseconds"))) == exact + 999


@given(st.text(max_size=30))
def test_any_text_is_read_as_a_time_or_refused(text: str) -> None:
    with contextlib.suppress(BadRequestError):
        assert selector_at(text).WhichOneof("by") in {"at", "ago"}


def test_a_negative_age_is_refused() -> None:
    with pytest.raises(BadRequestError):
        selector_at(datetime.timedelta(seconds=-1))


def test_an_id_a_prefix_or_latest_name_a_backup() -> None:
    assert selector_of().WhichOneof("by") is None
    assert selector_of("latest").backup == "latest"
    assert selector_of("ab12").backup == "ab12"
    for wrong in ("", "a b", "../x", "é"):
        with pytest.raises(BadRequestError):
            selector_of(wrong)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at_ns(text: str, now: int) -> int:
    """The first moment that a local time stands for, seen from another moment."""
    seen = datetime.datetime.fromtimestamp(now / NS, UTC).astimezone()
    return ns_of(selector_at(text, now=lambda: seen)) // NS * NS


def test_a_skipped_local_time_means_the_moment_of_the_skip(berlin: None) -> None:
    now = utc(2026, 3, 29, 12)
    times = ["01:59:59", "02:00", "02:00:01", "02:30", "02:59:59", "03:00", "03:00:01"]
    found = [at_ns(f"2026-03-29 {text}", now) for text in times]
    assert found == sorted(found)
    assert found[1:6] == [utc(2026, 3, 29, 1)] * 5
    assert [at_ns(text, now) for text in times] == found
    assert at_ns("02:30", utc(2026, 3, 30, 12)) == utc(2026, 3, 30, 0, 30)
    assert ns_of(selector_at(datetime.datetime(2026, 3, 29, 2, 30))) == utc(2026, 3, 29, 1) + 999


@pytest.mark.parametrize("date", ["2026-10-25 ", ""])
def test_a_repeated_local_time_means_its_last_past_occurrence(berlin: None, date: str) -> None:
    first, last = utc(2026, 10, 25, 0, 30), utc(2026, 10, 25, 1, 30)
    assert at_ns(date + "02:30", utc(2026, 10, 25, 12)) == last
    assert at_ns(date + "02:30", last) == last
    assert at_ns(date + "02:30", last - NS) == first
    assert at_ns(date + "02:30", first) == first


def test_the_fold_of_a_datetime_selects_one_of_two(berlin: None) -> None:
    moment = datetime.datetime(2026, 10, 25, 2, 30)
    assert ns_of(selector_at(moment)) == utc(2026, 10, 25, 0, 30) + 999
    assert ns_of(selector_at(moment.replace(fold=1))) == utc(2026, 10, 25, 1, 30) + 999


def test_a_date_ends_at_the_skip_if_clocks_skip_its_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX2YYY1,M3.2.0/0,M10.2.0/0")
    time.tzset()
    try:
        assert ns_of(selector_at("2026-03-07")) == utc(2026, 3, 8, 2) - 1
        assert ns_of(selector_at("2026-10-10")) == utc(2026, 10, 11, 2) - 1
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("at", "refused"),
    [
        ("2026-07-01", False),
        ("2026-07-02", True),
        (datetime.date(2026, 7, 1), False),
        (datetime.date(2026, 7, 2), True),
        ("2026-07-01 12:04", False),
        ("2026-07-01 12:06Z", True),
        ("2062-05-01T14:30:05Z", True),
        (datetime.datetime(2026, 7, 1, 12, 4, tzinfo=UTC), False),
        (datetime.datetime(2026, 7, 1, 13, tzinfo=UTC), True),
        ("23:00", False),
        ("2h", False),
    ],
)
def test_a_time_in_the_future_is_refused(at: object, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        now = datetime.datetime(2026, 7, 1, 12, tzinfo=UTC)
        selector_at(at, now=lambda: now)
        if refused:
            with pytest.raises(BadRequestError, match="future"):
                selector_at(at, now=lambda: now, future=False)
        else:
            selector_at(at, now=lambda: now, future=False)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_selector_refuses_a_time_in_the_future() -> None:
    with pytest.raises(BadRequestError, match="future"):
        selector_of(None, datetime.datetime.now(UTC) + datetime.timedelta(hours=1))
