"""Which backup: by id, by a moment, by an age.

A moment is one that the user writes: RFC 3339, or the same without a zone (then local time), or a date, or a time of day.
What is not written is the last of what it may be: a date is its last moment, 14:30:05 the last moment of that second, so
that a time copied from a list finds the backup that it was listed for. A time of minutes is at its first second.
"""

import datetime
import re
from collections.abc import Callable
from typing import Final

from google.protobuf import duration_pb2, timestamp_pb2

from staddle._errors import BadRequestError
from staddle._types import At
from staddle.v1 import resources_pb2 as resources

LATEST: Final = "latest"
AGE_S_MAX: Final = 100 * 366 * 24 * 3600

_NS: Final = 1_000_000_000
_AGE: Final = re.compile(r"(?:\d+(?:\.\d+)?[wdhms])+", re.ASCII)
_AGE_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([wdhms])", re.ASCII)
_AGE_UNITS_S: Final = {"w": 7 * 24 * 3600, "d": 24 * 3600, "h": 3600, "m": 60, "s": 1}
_DATE: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})", re.ASCII)
_MOMENT: Final = re.compile(
    r"(?:(\d{4}-\d{2}-\d{2})[Tt ])?(\d{2}):(\d{2})(?::(\d{2})(?:\.(\d{1,9}))?)?\s?([Zz]|[+-]\d{2}:?\d{2})?",
    re.ASCII,
)

HOW_TO_SAY_WHEN: Final = "a time such as 2026-05-01T14:30:05Z or '2026-05-01 14:30' (local), a date such as 2026-05-01, or an age such as 2h, 3d, 90m"


def selector_of(backup: str | None = None, at: At | None = None) -> resources.BackupSelector:
    """What the wire names a backup by; neither given: the newest. Raises BadRequestError."""
    if backup is not None and at is not None:
        raise BadRequestError("backup and at exclude each other: one backup, or the newest at a time.")
    if at is not None:
        return selector_at(at)
    if backup is None:
        return resources.BackupSelector()
    if not backup.isascii() or not backup.isalnum():
        raise BadRequestError(
            f"{backup!r} is no backup: give its id, the first digits of it, or {LATEST!r}.",
            facts={"field": "backup"},
        )
    return resources.BackupSelector(backup=backup)


def selector_at(at: At, *, now: Callable[[], datetime.datetime] | None = None) -> resources.BackupSelector:
    """The selector for a moment or an age. A naive datetime is local time. Raises BadRequestError."""
    if isinstance(at, str):
        return _selector_from_text(at.strip(), now or _local_now)
    if isinstance(at, datetime.timedelta):
        return _ago(at)
    if isinstance(at, datetime.datetime):
        # A datetime has microseconds, the server's clock nanoseconds: Backup.begin_time must find its own backup.
        return _moment(_ns_of(at) + 999)
    return _moment(_end_of_day_ns(at))


def _selector_from_text(text: str, now: Callable[[], datetime.datetime]) -> resources.BackupSelector:
    if _AGE.fullmatch(text):
        seconds = sum(float(count) * _AGE_UNITS_S[unit] for count, unit in _AGE_PART.findall(text))
        if seconds > AGE_S_MAX:
            raise BadRequestError(f"{text} is an age of more than a hundred years.", facts={"field": "at"})
        return _ago(datetime.timedelta(seconds=seconds))
    try:
        if (date := _DATE.fullmatch(text)) is not None:
            year, month, day = (int(part) for part in date.groups())
            return _moment(_end_of_day_ns(datetime.date(year, month, day)))
        if (moment := _MOMENT.fullmatch(text)) is not None:
            return _moment(_moment_ns(moment, now))
    except (ValueError, OverflowError) as error:
        raise BadRequestError(f"{text!r} is no time: {error}.", facts={"field": "at"}) from error
    raise BadRequestError(f"{text!r} is no time: write {HOW_TO_SAY_WHEN}.", facts={"field": "at"})


def _moment_ns(match: re.Match[str], now: Callable[[], datetime.datetime]) -> int:
    date_text, hour, minute, second, fraction, zone = match.groups()
    if date_text is None and zone is not None:
        raise ValueError("a time of day has no zone; write the date too")
    date = datetime.date.fromisoformat(date_text) if date_text else now().date()
    leap = second == "60"
    time = datetime.time(int(hour), int(minute), 59 if leap else int(second or 0))
    moment = datetime.datetime.combine(date, time, _zone(zone))
    time_ns = _ns_of(moment)
    if date_text is None and time_ns > _ns_of(now()):
        time_ns = _ns_of(moment - datetime.timedelta(days=1))
    if fraction is None:
        return time_ns + _NS - 1
    return time_ns + int(fraction.ljust(9, "9"))


def _zone(text: str | None) -> datetime.tzinfo | None:
    if text is None:
        return None
    if text in "Zz":
        return datetime.UTC
    sign = -1 if text[0] == "-" else 1
    hours, minutes = int(text[1:3]), int(text[-2:])
    if minutes > 59:
        raise ValueError("a zone has at most 59 minutes beside its hours")
    return datetime.timezone(sign * datetime.timedelta(hours=hours, minutes=minutes))


def _end_of_day_ns(day: datetime.date) -> int:
    next_midnight = datetime.datetime.combine(day + datetime.timedelta(days=1), datetime.time())
    return _ns_of(next_midnight) - 1


def _ns_of(moment: datetime.datetime) -> int:
    """Exact, where timestamp() would round. A naive one is local time."""
    try:
        since = moment.astimezone(datetime.UTC) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    except (OverflowError, OSError, ValueError) as error:
        raise BadRequestError(f"{moment} is out of the range of times.", facts={"field": "at"}) from error
    return (since.days * 86_400 + since.seconds) * _NS + since.microseconds * 1000


def _moment(time_ns: int) -> resources.BackupSelector:
    seconds, nanos = divmod(time_ns, _NS)
    return resources.BackupSelector(at=timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos))


def _ago(age: datetime.timedelta) -> resources.BackupSelector:
    if age < datetime.timedelta(0):
        raise BadRequestError("An age is not negative: what is to come is not known.", facts={"field": "at"})
    seconds = age.days * 86_400 + age.seconds
    return resources.BackupSelector(ago=duration_pb2.Duration(seconds=seconds, nanos=age.microseconds * 1000))


def _local_now() -> datetime.datetime:
    return datetime.datetime.now().astimezone()
