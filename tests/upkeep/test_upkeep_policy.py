"""The backups that a policy keeps, compared with a second, naive implementation of the rules."""

from __future__ import annotations

import datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from staddle_server.base import limits
from staddle_server.base.clock import NS
from staddle_server.base.errors import BadRequest, Unavailable
from staddle_server.upkeep.lifecycle.retention import (
    Candidate,
    Policy,
    Tag,
    decode_policy,
    encode_policy,
    plan,
)

HOUR, DAY = 3600, 86_400
ZONES = {"UTC": 0, "Etc/GMT-5": 5, "Etc/GMT+11": -11}
"""Zones without summer time, and how many hours their clocks are ahead."""
NOW = 1_790_000_000
EPOCH = datetime.datetime(1970, 1, 1)


def made(number, begin_s, tags=(), *, place=None, damaged=False, protection=""):
    """A candidate named `number`. Backup numbers follow their times, as with a right clock, unless `place` differs."""
    return Candidate(
        bytes([number] * 16),
        begin_s if place is None else place,
        begin_s * NS,
        dict(tags),
        damaged,
        protection,
    )


def at(text, zone="UTC"):
    return int(datetime.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


def stays(policy, backups, now_s=NOW):
    return {each.id[0] for each in plan(policy, backups, now_s * NS) if not each.goes}


# --- the oracle


def oracle(policy: Policy, backups: list[Candidate], now_s: int) -> set[bytes]:
    """The backups that stay: each rule as a separate set, by arithmetic instead of calendars where possible."""
    everything = {each.id for each in backups}
    if policy == Policy(time_zone=policy.time_zone) or all(each.damaged for each in backups):
        return everything
    past = [each for each in backups if each.begin_ns <= now_s * NS]
    whole = [each for each in past if not each.damaged]
    newest_ns = min(
        (max(some, key=lambda each: each.number).begin_ns for some in (past, whole) if some), default=0
    )
    kept = kept_by_rules(policy, whole, newest_ns)
    kept |= {each.id for each in past if each.damaged} & kept_by_rules(policy, past, newest_ns)
    kept |= {each.id for each in backups if each.protection or each.begin_ns > now_s * NS}
    for some in (past, whole):
        if some:
            kept.add(max(some, key=lambda each: each.number).id)
    return kept


def kept_by_rules(policy: Policy, backups: list[Candidate], newest: int) -> set[bytes]:
    oldest_first = sorted(backups, key=lambda each: each.number)
    kept = {each.id for each in oldest_first[len(oldest_first) - min(policy.keep_last, len(oldest_first)) :]}
    if policy.keep_within_s:
        kept |= {each.id for each in backups if newest - each.begin_ns <= policy.keep_within_s * NS}
    for tag in policy.keep_tags:
        kept |= {
            each.id for each in backups if tag.key in each.tags and tag.value in (None, each.tags[tag.key])
        }
    for count, bucket in (
        (policy.keep_hourly, lambda s: s // HOUR),
        (policy.keep_daily, lambda s: s // DAY),
        (policy.keep_weekly, lambda s: (s // DAY + 3) // 7),  # 1970 began on a Thursday
        (policy.keep_monthly, lambda s: (day(s).year, day(s).month)),
        (policy.keep_yearly, lambda s: day(s).year),
    ):
        newest_of = {bucket(local_s(policy, each)): each for each in oldest_first}
        for label in sorted(newest_of, reverse=True)[:count]:
            kept.add(newest_of[label].id)
    return kept


def local_s(policy: Policy, each: Candidate) -> int:
    return each.begin_ns // NS + ZONES[policy.time_zone] * HOUR


def day(seconds: int) -> datetime.datetime:
    return EPOCH + datetime.timedelta(seconds=seconds)


counts = st.one_of(st.just(0), st.integers(0, 6))
tags = st.dictionaries(st.sampled_from("ab"), st.sampled_from("xy"), max_size=2)
policies = st.builds(
    Policy,
    keep_last=counts,
    keep_within_s=st.one_of(st.just(0), st.integers(1, 400 * DAY)),
    keep_hourly=counts,
    keep_daily=counts,
    keep_weekly=counts,
    keep_monthly=counts,
    keep_yearly=counts,
    keep_tags=st.lists(
        st.builds(Tag, st.sampled_from("ab"), st.one_of(st.none(), st.sampled_from("xy"))), max_size=2
    ).map(tuple),
    time_zone=st.sampled_from(sorted(ZONES)),
)
begins = st.one_of(
    st.integers(NOW - 3 * DAY, NOW + DAY), st.integers(NOW - 1500 * DAY, NOW), st.just(NOW - DAY)
)


@st.composite
def candidates(draw):
    rows = draw(
        st.lists(
            st.tuples(
                begins, tags, st.integers(0, 4).map(lambda n: n == 0), st.sampled_from(["", "", "held"])
            ),
            max_size=24,
        )
    )
    numbers = draw(st.permutations(range(len(rows))))
    return [
        made(number, begin_s, has, place=number, damaged=damaged, protection=protection)
        for number, (begin_s, has, damaged, protection) in zip(numbers, rows, strict=True)
    ]


@settings(max_examples=examples(600), deadline=None)
@given(policies, candidates())
def test_a_plan_keeps_what_the_rules_say_and_gives_a_reason_for_each(policy, backups):
    planned = plan(policy, backups, NOW * NS)
    assert {each.id for each in planned if not each.goes} == oracle(policy, backups, NOW)
    assert len(planned) == len(backups)
    assert all(each.reasons for each in planned)
    assert all(each.reasons == ("no rule keeps it",) for each in planned if each.goes)
    by_id = {each.id: each for each in backups}
    order = [by_id[each.id].number for each in planned]
    assert order == sorted(order, reverse=True)


@settings(max_examples=examples(300), deadline=None)
@given(policies, candidates())
def test_no_plan_deletes_the_last_complete_backup_or_a_protected_one(policy, backups):
    gone = {each.id for each in plan(policy, backups, NOW * NS) if each.goes}
    assert not {each.id for each in backups if each.protection} & gone
    whole = {each.id for each in backups if not each.damaged}
    assert not whole or whole - gone
    if not whole:
        assert not gone


@settings(max_examples=examples(300), deadline=None)
@given(policies, candidates())
def test_damage_never_makes_a_plan_delete_more(policy, backups):
    """So a server need not look for damage if the rules without damage delete nothing."""
    sound = [each._replace(damaged=False) for each in backups]
    gone = {each.id for each in plan(policy, backups, NOW * NS) if each.goes}
    assert gone <= {each.id for each in plan(policy, sound, NOW * NS) if each.goes}


@settings(max_examples=examples(200), deadline=None)
@given(policies, candidates(), st.integers(0, 400))
def test_what_a_plan_deleted_changes_no_later_plan(policy, backups, days):
    """Without new backups, following a policy again deletes nothing more, however much time passes."""
    kept = [each for each in backups if each.begin_ns <= NOW * NS]
    gone = {each.id for each in plan(policy, kept, NOW * NS) if each.goes}
    rest = [each for each in kept if each.id not in gone]
    assert not [each for each in plan(policy, rest, (NOW + days * DAY) * NS) if each.goes]


# --- what operators expect, one by one


def test_the_newest_of_each_bucket_stays_and_empty_buckets_do_not_count():
    backups = [
        made(1, at("2026-03-01T01:00")),
        made(2, at("2026-03-01T23:00")),
        made(3, at("2026-03-05T01:00")),
        made(4, at("2026-03-09T01:00")),
        made(5, at("2026-03-09T02:00")),
    ]
    assert stays(Policy(keep_daily=3), backups) == {2, 3, 5}
    assert stays(Policy(keep_hourly=2), backups) == {4, 5}
    assert stays(Policy(keep_weekly=2), backups) == {3, 5}, "2026-03-09 is a Monday, 03-01 a Sunday"
    assert stays(Policy(keep_monthly=9), backups) == {5}
    assert stays(Policy(keep_last=2, keep_yearly=1), backups) == {4, 5}
    assert stays(Policy(keep_within_s=4 * DAY), backups) == {4, 5}
    assert stays(Policy(keep_within_s=4 * DAY + HOUR), backups) == {3, 4, 5}


def test_the_reasons_say_which_rule_and_which_bucket():
    backups = [made(1, at("2026-02-27T01:00"), {"pin": "yes"}), made(2, at("2026-03-01T23:10"))]
    backups.append(made(3, at("2026-03-01T23:20"), protection="a legal hold"))
    policy = Policy(1, 10 * DAY, 2, 2, 1, 1, 1, (Tag("pin"), Tag("pin", "yes"), Tag("pin", "no")))
    assert [each.reasons for each in plan(policy, backups, NOW * NS)] == [
        (
            "a legal hold",
            "last 1 of 1",
            "within 10d of the newest",
            "hourly 1 of 2 (2026-03-01 23:00+0000)",
            "daily 1 of 2 (2026-03-01)",
            "weekly 1 of 1 (2026-W09)",
            "monthly 1 of 1 (2026-03)",
            "yearly 1 of 1 (2026)",
            "the newest",
        ),
        ("within 10d of the newest",),
        (
            "within 10d of the newest",
            "it has the tag pin",
            "it has the tag pin=yes",
            "hourly 2 of 2 (2026-02-27 01:00+0000)",
            "daily 2 of 2 (2026-02-27)",
        ),
    ]


def test_days_follow_the_time_zone_of_the_policy_and_a_repeated_hour_counts_as_two():
    late, early = made(1, at("2026-03-01T22:30")), made(2, at("2026-03-01T23:30"))
    assert stays(Policy(keep_daily=2), [late, early]) == {2}
    assert stays(Policy(keep_daily=2, time_zone="Europe/Berlin"), [late, early]) == {1, 2}
    first, again = made(1, at("2026-10-25T00:30")), made(2, at("2026-10-25T01:30"))
    assert stays(Policy(keep_hourly=2, time_zone="Europe/Berlin"), [first, again]) == {1, 2}


def test_a_small_setback_of_the_clock_does_not_make_a_new_backup_old():
    """By less than the jump that puts a clock in doubt."""
    before = [made(number, NOW - number * HOUR, place=10 - number) for number in (3, 2, 1)]
    back = made(4, NOW - 2 * HOUR - 1, place=10)
    backups = [*before, back]
    assert stays(Policy(keep_last=1), backups) == {4}
    assert stays(Policy(keep_last=2), backups) == {4, 1}
    assert stays(Policy(keep_within_s=HOUR), backups) == {4, 3, 2, 1}


def test_a_backup_from_a_clock_at_1970_displaces_no_daily_backup():
    days = [made(number, NOW - number * DAY, place=10 - number) for number in (3, 2, 1)]
    assert stays(Policy(keep_daily=3), [*days, made(9, 0, place=10)]) == {1, 2, 3, 9}


def test_a_clock_that_was_wrong_deletes_nothing():
    past = [made(number, NOW - number * DAY) for number in range(1, 6)]
    future = made(9, NOW + 365 * DAY)
    policy = Policy(keep_last=3, keep_within_s=DAY)
    assert stays(policy, [*past, future]) == {1, 2, 3, 9}, "it displaces no other backup"
    assert stays(policy, past, NOW - 100 * DAY) == {1, 2, 3, 4, 5}, "a clock that was set back"
    assert stays(policy, past, NOW + 5000 * DAY) == {1, 2, 3}, "nothing expires when backups stop"


def test_a_damaged_backup_takes_no_bucket_and_the_newest_complete_one_stays():
    damaged = [made(1, NOW - DAY, damaged=True), made(2, NOW - 2 * DAY, damaged=True)]
    whole = [made(number, NOW - number * DAY) for number in (3, 4, 5)]
    assert stays(Policy(keep_last=1), damaged + whole) == {1, 3}
    assert stays(Policy(keep_tags=(Tag("no"),)), damaged + whole) == {1, 3}, (
        "the newest, and the newest complete one"
    )
    planned = plan(Policy(keep_last=1), damaged + whole, NOW * NS)
    assert [each.damaged for each in planned] == [True, True, False, False, False]
    assert planned[2].reasons == ("last 1 of 1", "the newest intact one")


def test_while_no_backup_is_complete_none_is_deleted():
    backups = [made(number, NOW - number * DAY, damaged=True) for number in range(5)]
    planned = plan(Policy(keep_last=1), backups, NOW * NS)
    assert not any(each.goes for each in planned)
    assert planned[4].reasons == ("no backup is known to be intact",)


def test_without_a_rule_no_backup_is_deleted():
    backups = [made(number, NOW - number * DAY) for number in range(5)]
    for policy in (Policy(), Policy(time_zone="Europe/Berlin")):
        assert stays(policy, backups) == {0, 1, 2, 3, 4}
        assert encode_policy(policy) == ""


def test_one_plan_deletes_a_limited_number_the_oldest_first():
    backups = [
        Candidate(number.to_bytes(16, "big"), number, (NOW - 9999 + number) * NS, {})
        for number in range(1203)
    ]
    planned = plan(Policy(keep_last=3), backups, NOW * NS)
    assert sum(each.goes for each in planned) == limits.RETENTION_DELETIONS_MAX
    assert not any(each.goes for each in planned[:203])
    assert "goes later" in planned[3].reasons[0]


# --- as it is kept


@given(policies)
def test_a_policy_survives_encoding(policy):
    text = encode_policy(policy)
    if policy.has_rule:
        assert decode_policy(text) == policy
    else:
        assert text == ""
        assert decode_policy(text) == Policy()


@pytest.mark.parametrize(
    "policy",
    [
        Policy(keep_last=-1),
        Policy(keep_last=1_000_001),
        Policy(keep_within_s=-1),
        Policy(keep_within_s=limits.RETENTION_S_MAX + 1),
        Policy(keep_last=1, time_zone="Europe/Atlantis"),
        Policy(keep_last=1, time_zone="../../etc/passwd"),
        Policy(keep_last=1, time_zone="/etc/localtime"),
        Policy(keep_last=1, time_zone="Europe"),
        Policy(keep_last=1, time_zone=""),
        Policy(keep_tags=(Tag(""),)),
        Policy(keep_tags=(Tag("k"),) * 65),
        Policy(keep_tags=tuple(Tag(f"{n}", "v" * 1000) for n in range(40))),
    ],
)
def test_an_unusable_policy_is_refused(policy):
    with pytest.raises(BadRequest) as caught:
        encode_policy(policy)
    assert caught.value.facts == {"field": "policy"}
    assert caught.value.message.startswith("policy: ")


@pytest.mark.parametrize(
    "kept",
    [
        msgspec.json.encode({"keep_last": 1, "keep_fortnightly": 2}).decode(),
        "nonsense",
        '{"keep_last":"1"}',
        "[]",
    ],
)
def test_a_policy_of_another_version_deletes_nothing(kept):
    with pytest.raises(Unavailable) as caught:
        decode_policy(kept)
    assert "nothing is deleted" in caught.value.message


def test_a_time_zone_that_the_machine_has_lost_deletes_nothing():
    backups = [made(number, NOW - number * DAY) for number in range(5)]
    with pytest.raises(Unavailable) as caught:
        plan(Policy(keep_last=1, time_zone="Europe/Atlantis"), backups, NOW * NS)
    assert "Europe/Atlantis" in caught.value.message
