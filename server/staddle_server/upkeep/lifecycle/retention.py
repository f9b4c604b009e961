"""Which backups of a dataset a policy keeps, and why. Pure: uses no clock, catalog or store."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from staddle_server.base.clock import NS
from staddle_server.base.errors import BadRequest, Unavailable
from staddle_server.base.limits import (
    POLICY_BYTES_MAX,
    RETENTION_COUNT_MAX,
    RETENTION_DELETIONS_MAX,
    RETENTION_S_MAX,
    RETENTION_TAGS_MAX,
    TAG_KEY_BYTES_MAX,
    TAG_VALUE_BYTES_MAX,
)

UTC: Final = "UTC"
_EPOCH: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_ZONE_CHARS_MAX: Final = 64

Count = Annotated[int, msgspec.Meta(ge=0, le=RETENTION_COUNT_MAX)]
Seconds = Annotated[int, msgspec.Meta(ge=0, le=RETENTION_S_MAX)]


class Tag(msgspec.Struct, frozen=True, array_like=True):
    """A tag that keeps a backup; `value` None matches any value."""

    key: Annotated[str, msgspec.Meta(min_length=1, max_length=TAG_KEY_BYTES_MAX)]
    value: Annotated[str, msgspec.Meta(max_length=TAG_VALUE_BYTES_MAX)] | None = None

    def __str__(self) -> str:
        return self.key if self.value is None else f"{self.key}={self.value}"

    def is_in(self, tags: Mapping[str, str]) -> bool:
        """Return whether a backup with these tags matches."""
        return self.key in tags and self.value in {None, tags[self.key]}


# Ignoring an unknown rule would delete backups that it keeps: such a policy is refused as a whole.
class Policy(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The rules of protos/staddle/v1 RetentionPolicy, as the catalog and the records store them (JSON)."""

    keep_last: Count = 0
    keep_within_s: Seconds = 0
    keep_hourly: Count = 0
    keep_daily: Count = 0
    keep_weekly: Count = 0
    keep_monthly: Count = 0
    keep_yearly: Count = 0
    keep_tags: Annotated[tuple[Tag, ...], msgspec.Meta(max_length=RETENTION_TAGS_MAX)] = ()
    time_zone: Annotated[str, msgspec.Meta(min_length=1, max_length=_ZONE_CHARS_MAX)] = UTC

    @property
    def has_rule(self) -> bool:
        """Whether it has a rule that keeps anything."""
        return self != Policy(time_zone=self.time_zone)

    def zone(self) -> datetime.tzinfo:
        """Return the zone in which its hours and days begin.

        Raises:
            LookupError: The zone does not exist on this machine.

        """
        if self.time_zone == UTC:
            return datetime.UTC
        try:
            return ZoneInfo(self.time_zone)
        except (LookupError, ValueError, OSError) as e:
            raise LookupError(self.time_zone) from e


_DECODER: Final = msgspec.json.Decoder(Policy)


def encode_policy(policy: Policy) -> str:
    """Return the policy as stored; "" for one without a rule.

    Raises:
        BadRequest: BAD_FIELD, a value is out of its range, or this machine does not know the time zone.

    """
    if not policy.has_rule:
        return ""
    body = msgspec.json.encode(policy)
    try:
        _DECODER.decode(body)
        policy.zone()
    except msgspec.ValidationError as e:
        raise _bad(str(e)) from e
    except LookupError as e:
        raise _bad(f"unknown time zone {policy.time_zone!r} on this server") from e
    if len(body) > POLICY_BYTES_MAX:
        raise _bad(f"the policy is longer than {POLICY_BYTES_MAX} bytes: name fewer tags")
    return body.decode()


def decode_policy(text: str) -> Policy:
    """Return the policy that `encode_policy` encoded.

    Raises:
        Unavailable: Its form is unknown to this version, so it may not delete anything.

    """
    if not text:
        return Policy()
    try:
        return _DECODER.decode(text)
    except msgspec.MsgspecError as e:
        raise Unavailable(
            "STORE_UNAVAILABLE",
            f"this version does not know the form of the retention policy ({e}), so nothing is deleted by it: run the version "
            "that set it, or set it again",
        ) from e


class Candidate(NamedTuple):
    """The relevant facts of an undeleted backup.

    `protection` says why it may not be deleted; empty if it may.
    """

    id: bytes
    number: int
    begin_ns: int
    tags: Mapping[str, str]
    damaged: bool = False
    protection: str = ""


class Planned(NamedTuple):
    """The decision about a backup, with all reasons in words."""

    id: bytes
    goes: bool
    reasons: tuple[str, ...]
    damaged: bool


def plan(policy: Policy, backups: Iterable[Candidate], now_ns: int) -> list[Planned]:
    """Decide about each backup under a policy, the newest first: that with the highest number, which was
    committed last.

    Whatever the rules say, these stay: protected backups; the newest backup, and the newest intact one; those
    that begin after `now_ns`, which also count for no rule; and everything while none is intact. Damaged
    backups take no other's place, so that damage only ever keeps more. At most RETENTION_DELETIONS_MAX go,
    the oldest ones.

    Raises:
        Unavailable: This machine does not know the policy's time zone.

    """
    # The order that defines `latest`. Times would do too, if clocks were never set back.
    ordered = sorted(backups, key=lambda each: each.number, reverse=True)
    reasons: dict[bytes, list[str]] = {each.id: [] for each in ordered}
    for each, why in _reasons(policy, ordered, now_ns):
        if why not in reasons[each.id]:
            reasons[each.id].append(why)
    going = [each for each in ordered if not reasons[each.id]]
    for each in going[: max(0, len(going) - RETENTION_DELETIONS_MAX)]:
        reasons[each.id].append(
            f"goes later: one plan deletes at most {RETENTION_DELETIONS_MAX:,}, the oldest first"
        )
    gone = {each.id for each in going[-RETENTION_DELETIONS_MAX:]}
    return [
        Planned(each.id, each.id in gone, tuple(reasons[each.id]) or ("no rule keeps it",), each.damaged)
        for each in ordered
    ]


def _reasons(policy: Policy, ordered: Sequence[Candidate], now_ns: int) -> Iterator[tuple[Candidate, str]]:
    """Yield every reason for which a backup stays."""
    counted = [each for each in ordered if each.begin_ns <= now_ns]
    whole = [each for each in counted if not each.damaged]
    for each in ordered:
        if each.protection:
            yield each, each.protection
        if each.begin_ns > now_ns:
            yield (
                each,
                "it begins after the server's present time, so the server's clock was wrong then or is now",
            )
        if not policy.has_rule:
            yield each, "the dataset has no policy"
        elif all(other.damaged for other in ordered):
            yield each, "no backup is known to be intact"
    if not policy.has_rule:
        return
    newest_ns = min((some[0].begin_ns for some in (counted, whole) if some), default=0)
    yield from _kept(policy, whole, newest_ns)
    if len(whole) < len(counted):
        # What would stay if nothing were damaged; besides the intact ones, these are only damaged ones.
        yield from (found for found in _kept(policy, counted, newest_ns) if found[0].damaged)
    if counted:
        yield counted[0], "the newest"
    if whole and whole[0] is not counted[0]:
        yield whole[0], "the newest intact one"


def _kept(
    policy: Policy, newest_first: Sequence[Candidate], newest_ns: int
) -> Iterator[tuple[Candidate, str]]:
    """Yield what the rules keep of these, and by which one; `newest_ns` is when the newest of all began."""
    for place, each in enumerate(newest_first[: policy.keep_last], 1):
        yield each, f"last {place} of {policy.keep_last}"
    if policy.keep_within_s:
        since_ns = newest_ns - policy.keep_within_s * NS
        for each in newest_first:
            if each.begin_ns >= since_ns:
                yield each, f"within {in_words(policy.keep_within_s)} of the newest"
    for each in newest_first:
        for tag in policy.keep_tags:
            if tag.is_in(each.tags):
                yield each, f"it has the tag {tag}"
    zone = _zone_of(policy)
    for name, count, bucket in _buckets(policy):
        labelled = ((each, bucket(_local(each, zone))) for each in newest_first)
        yield from _newest_of_each(labelled, name, count)


def _newest_of_each(
    newest_first: Iterable[tuple[Candidate, str]], name: str, count: int
) -> Iterator[tuple[Candidate, str]]:
    """Yield the newest of each of the last `count` non-empty buckets, with its bucket."""
    newest: dict[str, Candidate] = {}
    for each, label in newest_first:
        newest.setdefault(label, each)
    last_first = sorted(newest.items(), key=lambda item: item[1].begin_ns, reverse=True)
    for place, (label, each) in enumerate(last_first[:count], 1):
        yield each, f"{name} {place} of {count} ({label})"


def _buckets(policy: Policy) -> Iterator[tuple[str, int, Callable[[datetime.datetime], str]]]:
    yield "hourly", policy.keep_hourly, _hour
    yield "daily", policy.keep_daily, lambda moment: moment.strftime("%Y-%m-%d")
    yield "weekly", policy.keep_weekly, lambda moment: moment.strftime("%G-W%V")
    yield "monthly", policy.keep_monthly, lambda moment: moment.strftime("%Y-%m")
    yield "yearly", policy.keep_yearly, lambda moment: moment.strftime("%Y")


def _hour(moment: datetime.datetime) -> str:
    """Return the hour with its offset: when clocks are set back, an hour of the day occurs twice."""
    return moment.strftime("%Y-%m-%d %H:00%z")


def _local(each: Candidate, zone: datetime.tzinfo) -> datetime.datetime:
    return (_EPOCH + datetime.timedelta(seconds=each.begin_ns // NS)).astimezone(zone)


def _zone_of(policy: Policy) -> datetime.tzinfo:
    try:
        return policy.zone()
    except LookupError as e:
        raise Unavailable(
            "STORE_UNAVAILABLE",
            f"this server does not know the time zone {policy.time_zone!r} of the retention policy, so nothing is deleted by it: "
            "install the system's time zone data, or set a policy with another zone",
        ) from e


def in_words(seconds: int) -> str:
    """Return a duration in its largest whole unit: 36h, 14d."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _bad(what: str) -> BadRequest:
    return BadRequest("BAD_FIELD", f"policy: {what}", field="policy")
