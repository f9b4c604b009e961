"""Deletion, legal holds and retention times, as callers see them: no call deletes a protected backup."""

from __future__ import annotations

import threading

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import select, text
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import protection_of, schema
from staddle_server.catalog.decisions import is_protected
from staddle_server.store import records as rec
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.files import Files
from staddle_server.tenancy.tenant import Tenants
from thin import back_up, backups, info, reason, restore

DAY = 86_400
GRACE_NS = 7 * DAY * 10**9


def ns(stamp: Timestamp) -> int:
    return stamp.seconds * 10**9 + stamp.nanos


def delete(stub, backup):
    return stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=backup.id)).backup


def undelete(stub, backup):
    return stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset="www", backup=backup.id)).backup


def hold(stub, backup=None, why="case 17"):
    request = sv.SetHoldRequest(dataset="www", backup=backup.id if backup else "", reason=why)
    return stub.SetHold(request)


def release(stub, backup=None):
    return stub.ReleaseHold(sv.ReleaseHoldRequest(dataset="www", backup=backup.id if backup else ""))


def retain(stub, backup, until_ns):
    until = Timestamp(seconds=until_ns // 10**9, nanos=until_ns % 10**9)
    return stub.RetainBackup(sv.RetainBackupRequest(dataset="www", backup=backup.id, until_time=until)).backup


def minimum(stub, days):
    request = sv.SetRetentionRequest(dataset="www", minimum=Duration(seconds=int(days * DAY)))
    return stub.SetRetention(request).retention


def look(stub, backup):
    return next(each for each in backups(stub, "www", show_deleted=True) if each.id == backup.id)


def protected(stub, backup) -> dict[str, str]:
    """The facts that say why the backup cannot be deleted."""
    with pytest.raises(grpc.RpcError) as caught:
        delete(stub, backup)
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    said = info(caught.value)
    assert said.reason == "PROTECTED"
    facts = dict(said.metadata)
    assert (facts.pop("dataset"), facts.pop("backup")) == ("www", backup.id)
    assert backup.id in {each.id for each in backups(stub, "www")}, "it was not deleted"
    return facts


def records(running, type_):
    """The records of that type in the store, oldest first."""
    found = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant).records
    return [each for each in map(found.read, found.list()) if isinstance(each, type_)]


# --- deletion


def test_a_deleted_backup_says_until_when_it_can_be_undeleted(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    assert not backup.HasField("purge_time")
    gone = delete(stub, backup)
    assert ns(gone.purge_time) == ns(gone.delete_time) + GRACE_NS
    assert look(stub, backup) == gone
    back = undelete(stub, backup)
    assert back == backup
    with running.catalog.database.write() as connection:
        connection.execute(text("UPDATE tenants SET grace_s = 60"))
    gone = delete(stub, backup)
    assert ns(gone.purge_time) == ns(gone.delete_time) + 60 * 10**9, "each tenant has its grace period"
    until = running.clock.now_ns() + DAY * 10**9
    assert ns(retain(stub, backup, until).purge_time) == until, "it is not removed before its retention ends"


# --- holds


def test_a_held_backup_cannot_be_deleted_until_its_hold_is_released(running):
    stub = running.stub()
    backup, other = back_up(stub, "www", {"a": b"1"}), back_up(stub, "www", {"a": b"2"})
    answer = hold(stub, backup)
    assert (answer.hold.reason, answer.backup.hold) == ("case 17", answer.hold)
    assert look(stub, backup).hold == answer.hold
    assert protected(stub, backup) == {"by": "hold"}
    running.clock.ahead_s += 400 * 365 * DAY / 4
    assert protected(stub, backup) == {"by": "hold"}, "a hold has no end"
    assert delete(stub, other).id == other.id
    running.restart()
    stub = running.stub()
    assert protected(stub, backup) == {"by": "hold"}
    assert not release(stub, backup).backup.HasField("hold")
    assert delete(stub, backup).id == backup.id


def test_a_held_dataset_protects_all_its_backups_and_later_ones_only(running):
    stub = running.stub()
    first = back_up(stub, "www", {"a": b"1"})
    elsewhere = back_up(stub, "other", {"a": b"1"})
    assert hold(stub).hold.reason == "case 17"
    later = back_up(stub, "www", {"a": b"2"})
    for backup in (first, later):
        assert protected(stub, backup) == {"by": "dataset_hold"}
        assert look(stub, backup).dataset_hold.reason == "case 17"
    assert stub.DeleteBackup(sv.DeleteBackupRequest(dataset="other", backup=elsewhere.id)).backup.id
    got = stub.GetRetention(sv.GetRetentionRequest(dataset="www")).retention
    assert got.hold.reason == "case 17"
    release(stub)
    assert delete(stub, first).id == first.id


def test_the_two_kinds_of_holds_are_independent(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    hold(stub, backup, "one")
    hold(stub, None, "two")
    release(stub)
    assert protected(stub, backup) == {"by": "hold"}
    hold(stub, None, "two")
    release(stub, backup)
    assert protected(stub, backup) == {"by": "dataset_hold"}
    release(stub)
    delete(stub, backup)


def test_purging_respects_a_hold_on_a_deleted_backup(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    delete(stub, backup)
    hold(stub, backup)
    assert look(stub, backup).hold.reason == "case 17"
    assert may_go(running) == set()
    assert delete(stub, backup).hold.reason == "case 17", "it is deleted already: a replay changes nothing"
    release(stub, backup)
    assert may_go(running) == {backup.id}


def may_go(running) -> set[str]:
    """The unprotected backups by the condition of purging, which must match the reported reasons."""
    now_ns = running.clock.now_ns()
    b = schema.backups
    query = select(b.c.id).join(schema.datasets, b.c.dataset == schema.datasets.c.row)
    with running.catalog.database.read() as connection:
        ids = set(connection.execute(query.where(~is_protected(now_ns))).scalars())
        everything = set(connection.execute(select(b.c.id)).scalars())
    for id_ in everything:
        backup = running.catalog.backups.get(running.tenant, id_)
        assert (protection_of(backup, now_ns) is None) == (id_ in ids)
    return {id_.hex() for id_ in ids}


def test_purging_respects_every_kind_of_protection(running):
    stub = running.stub()
    free, kept, timed = (back_up(stub, "www", {"a": b"%d" % n}) for n in range(3))
    hold(stub, kept)
    retain(stub, timed, running.clock.now_ns() + DAY * 10**9)
    assert may_go(running) == {free.id}
    running.clock.ahead_s += DAY + 1
    assert may_go(running) == {free.id, timed.id}
    hold(stub)
    assert may_go(running) == set()
    release(stub, kept)
    release(stub)
    assert may_go(running) == {free.id, kept.id, timed.id}


def test_another_reason_replaces_the_first_and_a_replay_changes_nothing(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    first = hold(stub, backup)
    assert hold(stub, backup) == first
    second = hold(stub, backup, "case 18")
    assert second.hold.reason == "case 18"
    assert hold(stub) == hold(stub)
    for _ in range(2):
        release(stub, backup)
        release(stub)
    id_ = bytes.fromhex(backup.id)
    held = [(each.backup, each.dataset, each.reason) for each in records(running, rec.HeldRecord)]
    assert held == [(id_, "www", "case 17"), (id_, "www", "case 18"), (b"", "www", "case 17")]
    released = [(each.backup, each.dataset) for each in records(running, rec.ReleasedRecord)]
    assert released == [(id_, "www"), (b"", "www")]


# --- retention times


def test_a_retained_backup_cannot_be_deleted_before_its_time(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    until = running.clock.now_ns() + 30 * DAY * 10**9
    assert ns(retain(stub, backup, until).retain_until_time) == until
    facts = protected(stub, backup)
    assert facts["by"] == "retention"
    assert facts["until"].endswith("Z")
    assert ns(retain(stub, backup, until - 1).retain_until_time) == until, "never earlier"
    running.clock.ahead_s += 29 * DAY
    protected(stub, backup)
    running.clock.ahead_s += DAY + 1
    delete(stub, backup)
    assert [(each.backup.hex(), each.until_ns) for each in records(running, rec.RetainedRecord)] == [
        (backup.id, until)
    ]


def test_a_minimum_retention_is_set_at_the_commit_and_never_shortened(running):
    stub = running.stub()
    before = back_up(stub, "www", {"a": b"1"})
    assert minimum(stub, 10).minimum.seconds == 10 * DAY
    during = back_up(stub, "www", {"a": b"2"})
    for backup in (before, during):
        seen = look(stub, backup)
        assert ns(seen.retain_until_time) == ns(seen.commit_time) + 10 * DAY * 10**9
        assert protected(stub, backup)["by"] == "retention"
    minimum(stub, 20)
    longer = look(stub, before)
    assert ns(longer.retain_until_time) == ns(longer.commit_time) + 20 * DAY * 10**9
    minimum(stub, 0)
    assert look(stub, before) == longer, "lowering it shortens no retention"
    after = back_up(stub, "www", {"a": b"3"})
    assert not after.HasField("retain_until_time")
    delete(stub, after)
    minimum(stub, 5)
    assert look(stub, before) == longer, "raising it to less than before moves nothing earlier"
    assert look(stub, after).HasField("retain_until_time"), "it also keeps a deleted backup"


def test_every_decision_has_its_record_and_a_replay_writes_none(running):
    stub = running.stub()
    first = back_up(stub, "www", {"a": b"1"})
    for _ in range(2):
        minimum(stub, 10)
    second = back_up(stub, "www", {"a": b"2"})
    for _ in range(2):
        minimum(stub, 20)
    committed = {each.backup.hex(): each.retain_until_ns for each in records(running, rec.CommittedRecord)}
    assert committed == {first.id: 0, second.id: ns(second.commit_time) + 10 * DAY * 10**9}
    retained = [(each.backup.hex(), each.until_ns) for each in records(running, rec.RetainedRecord)]
    assert sorted(retained) == sorted(
        [
            (first.id, ns(first.commit_time) + 10 * DAY * 10**9),
            (first.id, ns(first.commit_time) + 20 * DAY * 10**9),
            (second.id, ns(second.commit_time) + 20 * DAY * 10**9),
        ]
    )
    policies = [(each.policy, each.min_retention_s) for each in records(running, rec.PolicyRecord)]
    assert policies == [("", 10 * DAY), ("", 20 * DAY)]


def test_raising_the_minimum_agrees_with_a_record_unknown_to_the_catalog(running, monkeypatch):
    """The record is in the store, unknown to the catalog; meanwhile the backup's retention is raised."""
    stub = running.stub()

    def unheard(*_):
        raise Unavailable("STORE_UNAVAILABLE", "the catalog does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(type(running.catalog.backups), "mark_records_written", unheard)
        with pytest.raises(grpc.RpcError):
            back_up(stub, "www", {"a": b"1"})
    assert len(records(running, rec.CommittedRecord)) == 1
    minimum(stub, 10)
    running.restart()
    assert running.service.finished_records == 0
    (backup,) = backups(running.stub(), "www")
    assert protected(running.stub(), backup)["by"] == "retention"
    assert len(records(running, rec.CommittedRecord)) == 1
    assert len(records(running, rec.RetainedRecord)) == 1


def test_uploads_work_from_a_protected_base(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1", "b": b"2"})
    hold(stub)
    minimum(stub, 10)
    second = back_up(stub, "www", {"a": b"3"}, scope=2)
    assert restore(stub, "www", backup={"backup": second.id}).files == {"a": b"3", "b": b"2"}


# --- refusals


@pytest.mark.parametrize(
    ("call", "request_", "field"),
    [
        ("SetHold", {"dataset": "www", "backup": "latest", "reason": "x"}, "backup"),
        ("SetHold", {"dataset": "www", "reason": ""}, "reason"),
        ("SetHold", {"dataset": "www", "reason": "x" * 1025}, "reason"),
        ("SetHold", {"dataset": "www", "reason": "a\nb"}, "reason"),
        ("SetHold", {"dataset": "", "reason": "x"}, "dataset"),
        ("ReleaseHold", {"dataset": "www", "backup": "abc"}, "backup"),
        ("RetainBackup", {"dataset": "www", "backup": ""}, "until_time"),
        ("RetainBackup", {"dataset": "www", "backup": "zzzz", "until_time": {}}, "backup"),
        ("SetRetention", {"dataset": "www"}, "policy"),
        ("SetRetention", {"dataset": "www", "minimum": {"seconds": -1}}, "minimum"),
        ("SetRetention", {"dataset": "www", "minimum": {"seconds": 1, "nanos": 1}}, "minimum"),
        ("SetRetention", {"dataset": "www", "minimum": {"seconds": 2**60}}, "minimum"),
        ("SetRetention", {"dataset": "www", "policy": {"keep_last": 2**32 - 1}}, "policy"),
        (
            "SetRetention",
            {"dataset": "www", "policy": {"keep_within": {"seconds": -5}}},
            "policy.keep_within",
        ),
        ("SetRetention", {"dataset": "www", "policy": {"keep_last": 1, "time_zone": "../x"}}, "policy"),
        ("SetRetention", {"dataset": "www", "policy": {"keep_tags": [{"key": ""}]}}, "policy.keep_tags.key"),
        ("PlanRetention", {"dataset": "www", "page_size": 1001}, "page_size"),
        ("PlanRetention", {"dataset": "www", "page_token": "bm9uc2Vuc2U"}, "page_token"),
        ("ApplyRetention", {"dataset": "www"}, "plan_token"),
    ],
)
def test_a_wrong_value_is_named_by_its_field(running, call, request_, field):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, call)(getattr(sv, f"{call}Request")(**request_))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert info(caught.value).metadata["field"] == field


def test_an_unreasonably_late_time_is_refused(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    for seconds in (253_402_300_799, running.clock.now_ns() // 10**9 + 101 * 366 * DAY, -1):
        with pytest.raises(grpc.RpcError) as caught:
            retain(stub, backup, seconds * 10**9)
        assert info(caught.value).metadata["field"] == "until_time"
    assert not look(stub, backup).HasField("retain_until_time")


def test_a_past_time_is_refused_but_not_in_the_replay_of_a_valid_call(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    for until in (0, running.clock.now_ns() - 1):
        with pytest.raises(grpc.RpcError) as caught:
            retain(stub, backup, max(until, 1))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert info(caught.value).metadata["field"] == "until_time"
        assert "has passed" in caught.value.details()
    assert not look(stub, backup).HasField("retain_until_time")
    until = running.clock.now_ns() + DAY * 10**9
    retain(stub, backup, until)
    running.clock.ahead_s += 2 * DAY
    assert ns(retain(stub, backup, until).retain_until_time) == until


def test_backups_and_holds_of_another_tenant_are_not_found(running):
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    eve = running.stub(tenant=running.make_tenant("eve"))
    for call, expected in (
        (lambda: hold(eve), "DATASET_NOT_FOUND"),
        (lambda: hold(eve, backup), "DATASET_NOT_FOUND"),
        (lambda: release(eve), "DATASET_NOT_FOUND"),
        (lambda: minimum(eve, 1), "DATASET_NOT_FOUND"),
        (lambda: eve.GetRetention(sv.GetRetentionRequest(dataset="www")), "DATASET_NOT_FOUND"),
        (lambda: eve.PlanRetention(sv.PlanRetentionRequest(dataset="www")), "DATASET_NOT_FOUND"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert reason(caught.value) == expected
    back_up(eve, "www", {"a": b"1"})
    with pytest.raises(grpc.RpcError) as caught:
        hold(eve, backup)
    assert reason(caught.value) == "BACKUP_NOT_FOUND"
    assert not look(stub, backup).HasField("hold")


# --- records and races


class NoRoomForRecords(Files):
    """A disk that refuses records while a test says so."""

    full = False

    def link(self, source: str, target: str) -> None:
        if self.full and "/records/" in target:
            raise OSError(28, "no space")
        super().link(source, target)


@pytest.mark.parametrize("what", ["hold", "hold dataset", "retain", "minimum", "release"])
def test_nothing_is_acknowledged_before_its_record_is_durable(running, what):
    files = NoRoomForRecords()
    running.stop()
    running.wrap = lambda _: DirectoryBlobs(str(running.root / "store"), files)
    running.start()
    stub = running.stub()
    backup = back_up(stub, "www", {"a": b"1"})
    hold(stub, backup, "earlier")
    until = running.clock.now_ns() + DAY * 10**9
    call, type_ = {
        "hold": (lambda: hold(stub, backup), rec.HeldRecord),
        "hold dataset": (lambda: hold(stub), rec.HeldRecord),
        "retain": (lambda: retain(stub, backup, until), rec.RetainedRecord),
        "minimum": (lambda: minimum(stub, 5), rec.RetainedRecord),
        "release": (lambda: release(stub, backup), rec.ReleasedRecord),
    }[what]
    known = len(records(running, type_))
    files.full = True
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert reason(caught.value) == "STORE_FULL"
    assert len(records(running, type_)) == known
    files.full = False
    call()
    assert len(records(running, type_)) == known + 1, "a replay writes it, once"


def test_a_concurrent_hold_and_deletion_have_one_order(running):
    """A caller with a placed hold finds the backup undeleted, or learns of the deletion from its delete_time."""
    stubs = [running.stub(name=f"admin{n}") for n in range(4)]
    for round_ in range(12):
        backup = back_up(stubs[0], "www", {"a": b"%d" % round_})
        start, outcome = threading.Barrier(2), {}

        def deleting(backup=backup, start=start, outcome=outcome):
            start.wait()
            try:
                outcome["deleted"] = delete(stubs[1], backup)
            except grpc.RpcError as error:
                outcome["refused"] = reason(error)

        def holding(backup=backup, start=start, outcome=outcome, round_=round_):
            start.wait()
            outcome["held"] = hold(stubs[2], backup if round_ % 2 else None)

        threads = [threading.Thread(target=each) for each in (deleting, holding)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = look(stubs[3], backup)
        if "deleted" in outcome:
            assert seen.HasField("delete_time")
            assert not outcome["deleted"].HasField("hold")
        else:
            assert outcome["refused"] == "PROTECTED"
            assert not seen.HasField("delete_time")
        release(stubs[3])
