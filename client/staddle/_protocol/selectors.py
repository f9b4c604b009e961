"""Which backup: by id, by a moment, by an age.

A moment is one that the user writes: RFC 3339, or the same without a zone (then local time), or a date, or a time of day.
What is not written is the last of what it may be: a date is its last moment, 14:30:05 the last moment of that second, so
that a time copied from a list finds the backup that it was listed for. A time of minutes is at its first second.
A local time that comes twice, when clocks go back, is the last one, or the first as long as the last is to come; one that clocks skip is the moment at which they do.
"""

import calendar
import datetime
import re
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from google.protobuf import duration_pb2, timestamp_pb2

from staddle._base.figures import duration_s
from staddle._errors import BadRequestError
from staddle._types.options import At
from staddle.v1 import resources_pb2 as pb

LATEST: Final = "latest"
AGE_S_MAX: Final = 100 * 366 * 86_400.0

CLOCKS_DIFFER_NS: Final = 300 * 1_000_000_000
"""A moment at most this far ahead may already have passed on the server's clock."""

_NS: Final = 1_000_000_000
_US: Final = datetime.timedelta(microseconds=1)
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_DATE: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})", re.ASCII)
_MOMENT: Final = re.compile(
    r"(?:((\d{4})-(\d{2})-(\d{2}))[Tt ])?(\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?\s?([Zz]|[+-]\d{2}:?\d{2})?",
    re.ASCII,
)
_BEGINS_AS_AGE: Final = re.compile(r"\d+(?:\.\d+)? ?[A-Za-z]", re.ASCII)
_YEARS: Final = range(2, 9999)
"""A zone may move a time into the year before or after."""

HOW_TO_SAY_WHEN: Final = "a time such as 2026-05-01T14:30:05Z or '2026-05-01 14:30' (local), a date such as 2026-05-01, or an age such as 2h, 3d, 90m"


def selector_of(
    backup: str | None = None, at: At | None = None, *, future: bool = False
) -> pb.BackupSelector:
    """What the wire names a backup by; neither given: the newest. Raises BadRequestError, also for a moment to come unless `future`."""
    if backup is not None and at is not None:
        raise BadRequestError("backup and at exclude each other: one backup, or the newest at a time.")
    if at is not None:
        return selector_at(at, future=future)
    if backup is None:
        return pb.BackupSelector()
    if not backup.isascii() or not backup.isalnum():
        raise BadRequestError(
            f"invalid backup {backup!r}: use its id, the first digits of it, or {LATEST!r}",
            facts={"field": "backup"},
        )
    return pb.BackupSelector(backup=backup)


def selector_at(
    at: At, *, now: Callable[[], datetime.datetime] | None = None, future: bool = True
) -> pb.BackupSelector:
    """The selector for a moment or an age. A naive datetime is local time, and its fold says which one of two.

    Raises BadRequestError; unless `future`, also for a moment to come by this machine's clock.
    """
    now = now or _local_now
    if isinstance(at, str):
        at = at.strip()
        if (seconds := _age_s(at)) is not None:
            return _ago(datetime.timedelta(seconds=seconds))
        span = _span_of_text(at, now)
    elif isinstance(at, datetime.timedelta):
        return _ago(at)
    elif isinstance(at, datetime.datetime):
        # A datetime has microseconds, the server's clock nanoseconds: Backup.begin_time must find its own backup.
        time_ns = _ns_of(at)
        span = _Span(time_ns, time_ns + 999)
    else:
        span = _day(at)
    if not future and span.first_ns > _ns_of(now()) + CLOCKS_DIFFER_NS:
        raise BadRequestError(
            f"invalid time {str(at)!r}: it is in the future by this machine's clock; for the newest backup, give no time",
            facts={"field": "at"},
        )
    return _moment(span.last_ns)


def period_of(text: str) -> tuple[datetime.datetime, datetime.datetime]:
    """From the first moment that a text may mean to the one after its last: of a date, the whole day.

    An age is counted back by this machine's clock. Raises BadRequestError.
    """
    text = text.strip()
    if (seconds := _age_s(text)) is not None:
        try:
            then = _local_now() - datetime.timedelta(seconds=seconds)
        except OverflowError as error:
            raise _refusal(text, "it is before the year 1") from error
        return then, then
    span = _span_of_text(text, _local_now)
    first, behind = (_EPOCH + ns // 1000 * _US for ns in (span.first_ns, span.last_ns + 999))
    return first, max(first + _US, behind)


class _Span(NamedTuple):
    """What a moment may be that is not written to the last digit."""

    first_ns: int
    last_ns: int


def _age_s(text: str) -> float | None:
    """The seconds of an age; None for what is a time, if anything."""
    if text.isdecimal():
        return None
    try:
        return duration_s(text, most_s=AGE_S_MAX)
    except ValueError as error:
        if _BEGINS_AS_AGE.match(text):
            raise _refusal(text, str(error)) from error
        return None


def _refusal(text: str, why: str) -> BadRequestError:
    return BadRequestError(f"invalid time {text!r}: {why}", facts={"field": "at"})


def _span_of_text(text: str, now: Callable[[], datetime.datetime]) -> _Span:
    try:
        if (date := _DATE.fullmatch(text)) is not None:
            return _day(_date(*date.groups()))
        if (moment := _MOMENT.fullmatch(text)) is not None:
            return _span_of_moment(moment, now)
    except ValueError as error:
        raise _refusal(text, str(error)) from error
    raise _refusal(text, f"use {HOW_TO_SAY_WHEN}")


def _span_of_moment(match: re.Match[str], now: Callable[[], datetime.datetime]) -> _Span:
    date, hour, minute, second, fraction, zone = match.group(1, 5, 6, 7, 8, 9)
    if date is None and zone is not None:
        raise ValueError("a time of day has no zone; add the date")
    leap = second == "60"
    clock = datetime.time(
        _within("the hour", hour, 0, 23),
        _within("the minute", minute, 0, 59),
        59 if leap else _within("the second", second or "0", 0, 59),
    )
    day = _date(*match.group(2, 3, 4)) if date else now().date()
    moment = datetime.datetime.combine(day, clock, _zone(zone))
    now_ns = _ns_of(now())
    time_ns = _last_ns_of(moment, now_ns)
    if date is None and time_ns > now_ns:
        time_ns = _last_ns_of(moment - datetime.timedelta(days=1), now_ns)
    return _Span(time_ns, time_ns + (_NS - 1 if fraction is None else int(fraction.ljust(9, "9"))))


def _within(what: str, digits: str, least: int, most: int) -> int:
    """A part of a time. Raises ValueError, which names it."""
    if not least <= int(digits) <= most:
        raise ValueError(f"{what} {digits} is not {least:02} to {most:02}")
    return int(digits)


def _date(year: str, month: str, day: str) -> datetime.date:
    """A date in the range that local times can be reckoned in. Raises ValueError."""
    if not _YEARS.start <= int(year) < _YEARS.stop:
        raise ValueError(f"the year {year} is not {_YEARS.start} to {_YEARS.stop - 1}")
    number = _within("the month", month, 1, 12)
    _within("the day", day, 1, calendar.monthrange(int(year), number)[1])
    return datetime.date(int(year), number, int(day))


def _last_ns_of(moment: datetime.datetime, now_ns: int) -> int:
    """The last moment with this local time; while the first has been and the last is to come, the first."""
    first_ns, last_ns = _ns_of(moment.replace(fold=0)), _ns_of(moment.replace(fold=1))
    return first_ns if first_ns <= now_ns < last_ns else last_ns


def _zone(text: str | None) -> datetime.tzinfo | None:
    if text is None:
        return None
    if text in "Zz":
        return datetime.UTC
    sign = -1 if text[0] == "-" else 1
    hours = _within(f"in the zone {text}, the hour", text[1:3], 0, 23)
    minutes = _within(f"in the zone {text}, the minute", text[-2:], 0, 59)
    return datetime.timezone(sign * datetime.timedelta(hours=hours, minutes=minutes))


def _day(day: datetime.date) -> _Span:
    midnight = datetime.datetime.combine(day, datetime.time())
    return _Span(_ns_of(midnight), _ns_of(midnight + datetime.timedelta(days=1)) - 1)


def _ns_of(moment: datetime.datetime) -> int:
    """Exact, where timestamp() would round. A naive one is local time; one that clocks skip is the moment at which they do."""
    try:
        since_us = (moment.astimezone(datetime.UTC) - _EPOCH) // _US
        if moment.tzinfo is None:
            other_us = (moment.replace(fold=1 - moment.fold).astimezone(datetime.UTC) - _EPOCH) // _US
            first_us, last_us = sorted((since_us, other_us))
            if first_us != last_us and _local_of(first_us) != moment.replace(fold=0):
                since_us = _jump_s(first_us // 1_000_000, last_us // 1_000_000) * 1_000_000
    except (OverflowError, OSError, ValueError) as error:
        raise BadRequestError(
            f"invalid time {str(moment)!r}: it is out of the range of times", facts={"field": "at"}
        ) from error
    return since_us * 1000


def _local_of(time_us: int) -> datetime.datetime:
    return (_EPOCH + time_us * _US).astimezone().replace(tzinfo=None, fold=0)


def _jump_s(before_s: int, after_s: int) -> int:
    """The first second at which local time has the offset from UTC that it has at `after_s`."""
    offset = time.localtime(after_s).tm_gmtoff
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if time.localtime(middle_s).tm_gmtoff == offset:
            after_s = middle_s
        else:
            before_s = middle_s
    return after_s


def _moment(time_ns: int) -> pb.BackupSelector:
    seconds, nanos = divmod(time_ns, _NS)
    return pb.BackupSelector(at=timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos))


def _ago(age: datetime.timedelta) -> pb.BackupSelector:
    if age < datetime.timedelta(0):
        raise BadRequestError(
            "invalid age: it is negative, and the future has no backups", facts={"field": "at"}
        )
    seconds = age.days * 86_400 + age.seconds
    return pb.BackupSelector(ago=duration_pb2.Duration(seconds=seconds, nanos=age.microseconds * 1000))


def _local_now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()
