"""Deletion, holds and retention of the library, with the real service."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest
from staddle import (
    AppliedRetention,
    BadRequestError,
    Client,
    Hold,
    PlanChangedError,
    PreconditionError,
    ProtectedError,
    Retention,
    RetentionPolicy,
    RetentionTag,
)
from staddle import _retention as retention_calls
from thin import back_up

UTC = datetime.UTC
DAY = datetime.timedelta(days=1)


@pytest.fixture
def admin(running) -> Iterator[Client]:
    with Client(running.address, running.token("admin")) as client:
        yield client


@pytest.fixture
def made(running) -> list[str]:
    """The ids of four backups of `www`, the oldest first."""
    return [
        back_up(running.stub(), "www", {"a": b"%d" % number}, tags={"n": f"{number}"}).id
        for number in range(4)
    ]


def test_a_deleted_backup_has_the_time_of_its_removal(admin: Client, made: list[str]) -> None:
    gone = admin.delete_backup("www", made[0][:8])
    assert gone.delete_time is not None
    assert gone.purge_time == gone.delete_time + 7 * DAY
    assert (gone.hold, gone.dataset_hold, gone.retain_until_time) == (None, None, None)
    assert admin.undelete_backup("www", made[0]).purge_time is None


def test_deleting_a_held_backup_is_a_specific_error(admin: Client, made: list[str]) -> None:
    placed = admin.set_hold("www", made[0], reason="case 17")
    assert placed.reason == "case 17"
    assert admin.get_backup("www", made[0]).hold == placed
    with pytest.raises(ProtectedError) as caught:
        admin.delete_backup("www", made[0])
    assert isinstance(caught.value, PreconditionError)
    assert caught.value.facts == {"dataset": "www", "backup": made[0], "by": "hold"}
    admin.release_hold("www", made[0])
    dataset_hold = admin.set_hold("www", reason="audit")
    assert admin.get_backup("www", made[0]).dataset_hold == dataset_hold
    assert admin.get_retention("www") == Retention(
        None, datetime.timedelta(0), Hold("audit", dataset_hold.time)
    )
    admin.release_hold("www")
    admin.delete_backup("www", made[0])


def test_the_error_of_a_retained_backup_has_its_end_time(admin: Client, made: list[str]) -> None:
    until = datetime.datetime.now(UTC).replace(microsecond=123456) + DAY
    assert admin.retain_backup("www", made[0], until).retain_until_time == until
    naive = (until + DAY).astimezone().replace(tzinfo=None)
    assert admin.retain_backup("www", made[0], naive).retain_until_time == until + DAY
    with pytest.raises(ProtectedError) as caught:
        admin.delete_backup("www", made[0])
    assert caught.value.facts["until"] == (until + DAY).isoformat().replace("+00:00", "Z")


def test_a_policy_comes_back_as_it_was_set(admin: Client, made: list[str]) -> None:
    policy = RetentionPolicy(
        1, 36 * DAY / 24, 2, 3, 4, 5, 6, (RetentionTag("pin"), RetentionTag("n", "")), "Europe/Berlin"
    )
    expected = Retention(policy, 2 * DAY, None)
    assert admin.set_retention("www", policy, minimum=2 * DAY) == expected
    assert admin.set_retention("www", minimum=datetime.timedelta(0)).policy == policy
    assert admin.get_retention("www").policy == policy
    assert admin.set_retention("www", RetentionPolicy()).policy is None


def test_a_plan_is_read_from_all_pages_and_applied_by_its_token(
    admin: Client, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_calls, "PLAN_PAGE", 3)
    admin.set_retention("www", RetentionPolicy(keep_last=1, keep_tags=(RetentionTag("n", "0"),)))
    plan = admin.plan_retention("www")
    assert [(each.backup.id, each.goes) for each in plan.backups] == [
        (made[3], False),
        (made[2], True),
        (made[1], True),
        (made[0], False),
    ]
    assert plan.backups[3].reasons == ("it has the tag n=0",)
    assert [each.backup.id for each in plan.going] == [made[2], made[1]]
    assert plan.free_bytes
    assert plan.free_bytes_unknown == ""
    assert admin.plan_retention("www", free_bytes=False).free_bytes is None
    applied = admin.apply_retention("www", plan.token)
    assert applied.deleted_backup_ids == (made[2], made[1])
    assert applied.purge_time is not None
    assert admin.apply_retention("www", plan.token) == applied
    assert admin.apply_retention("www", admin.plan_retention("www").token) == AppliedRetention((), None)


def test_an_outdated_plan_is_a_specific_error(admin: Client, made: list[str]) -> None:
    admin.set_retention("www", RetentionPolicy(keep_last=1))
    token = admin.plan_retention("www").token
    admin.set_hold("www", made[3], reason="x")
    with pytest.raises(PlanChangedError) as caught:
        admin.apply_retention("www", token)
    assert caught.value.facts == {"dataset": "www"}
    assert len(list(admin.backups("www"))) == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda admin: admin.set_retention("www", RetentionPolicy(keep_last=-1)),
        lambda admin: admin.set_retention("www", RetentionPolicy(keep_daily=2**40)),
        lambda admin: admin.set_retention("www", RetentionPolicy(keep_within=-DAY)),
        lambda admin: admin.set_retention("www", RetentionPolicy(keep_within=DAY / 7_000_000)),
        lambda admin: admin.set_retention("www", minimum=-DAY),
        lambda admin: admin.set_retention("www", RetentionPolicy(keep_tags=(RetentionTag("\ud800"),))),
        lambda admin: admin.set_hold("www", reason="\ud800"),
        lambda admin: admin.retain_backup("www", "abcd", datetime.datetime(1, 1, 1)),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_sent(call) -> None:
    with Client("127.0.0.1:1", "token") as nobody, pytest.raises(BadRequestError):
        call(nobody)
