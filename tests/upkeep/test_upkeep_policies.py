"""Plans and their application, on a real store: applying a plan does exactly what it showed, or nothing."""

from __future__ import annotations

import itertools
import threading

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from policy_calls import DAY, apply, damage_chunk, delete, hold, ids, plan, set_policy, several, tenant_of
from sqlalchemy import text
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from staddle_server.catalog import indexed_id
from staddle_server.manifest.references import references
from staddle_server.store import records as rec
from staddle_server.tenancy.chunk_reader import ChunkReader
from thin import Source, back_up, backups, info, noise, reason, restore


def undelete(stub, backup, dataset="www"):
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset=dataset, backup=backup.id))


# --- a plan does what it showed


def test_a_policy_is_stored_and_shown_as_it_was_set(running):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    look = sv.GetRetentionRequest(dataset="www")
    assert not stub.GetRetention(look).retention.HasField("policy")
    tags = [pb.RetentionTag(key="pin"), pb.RetentionTag(key="why", value="")]
    rules = {
        "keep_last": 1,
        "keep_within": Duration(seconds=90),
        "keep_hourly": 2,
        "keep_daily": 3,
        "keep_weekly": 4,
        "keep_monthly": 5,
        "keep_yearly": 6,
        "keep_tags": tags,
        "time_zone": "Europe/Berlin",
    }
    answer = set_policy(stub, **rules)
    assert answer.policy == pb.RetentionPolicy(**rules)
    running.restart()
    stub = running.stub("reader")
    assert stub.GetRetention(look).retention == answer
    stub = running.stub()
    minimum = sv.SetRetentionRequest(dataset="www", minimum=Duration(seconds=60))
    assert stub.SetRetention(minimum).retention.policy == answer.policy, "settings that are not named stay"
    gone = set_policy(stub, time_zone="Europe/Berlin")
    assert not gone.HasField("policy")
    assert gone.minimum.seconds == 60


def test_a_plan_changes_nothing_and_its_application_does_exactly_what_it_showed(running):
    stub = running.stub()
    made = several(running, stub)
    other = several(running, stub, 2, "other")
    set_policy(stub, keep_last=2)
    for _ in range(2):
        shown = plan(running.stub("reader"))
        assert [each.backup.id for each in shown.backups] == ids(reversed(made))
        assert [each.goes for each in shown.backups] == [False, False, True, True, True]
        assert (shown.delete_count, shown.keep_count) == (3, 2)
        assert ids(backups(stub, "www")) == ids(reversed(made))
    answer = apply(stub, shown.plan_token)
    assert list(answer.deleted_backup_ids) == [made[2].id, made[1].id, made[0].id]
    assert ids(backups(stub, "www")) == [made[4].id, made[3].id]
    assert ids(backups(stub, "other")) == ids(reversed(other))
    gone = next(each for each in backups(stub, "www", show_deleted=True) if each.id == made[0].id)
    assert gone.purge_time == answer.purge_time
    undelete(stub, made[0])
    assert restore(stub, "www", backup={"backup": made[0].id}).files == {"a": b"0"}
    found = tenant_of(running).records
    deleted = [each for each in map(found.read, found.list()) if isinstance(each, rec.DeletedRecord)]
    assert sorted(each.backup.hex() for each in deleted) == sorted(ids(made[:3]))


def test_a_plan_shows_backups_as_a_list_does_and_a_tag_keeps_those_that_have_it(running):
    stub = running.stub()
    several(running, stub, 1, tags={"pin": "yes", "by": "ann"}, host="here", root="/home")
    several(running, stub, 2, tags={"by": "bob"}, host="here", root="/home")
    set_policy(stub, keep_last=1, keep_tags=[pb.RetentionTag(key="pin", value="yes")])
    shown = plan(stub)
    assert [each.backup for each in shown.backups] == list(backups(stub, "www"))
    assert [each.goes for each in shown.backups] == [False, True, False]
    set_policy(stub, keep_last=1, keep_tags=[pb.RetentionTag(key="pin", value="no")])
    assert [each.goes for each in plan(stub).backups] == [False, True, True]


def test_without_a_policy_no_backup_is_deleted(running):
    stub = running.stub()
    made = several(running, stub, 3)
    shown = plan(stub)
    assert [each.goes for each in shown.backups] == [False] * 3
    assert shown.backups[0].reasons == ["the dataset has no policy"]
    assert list(apply(stub, shown.plan_token).deleted_backup_ids) == []
    assert ids(backups(stub, "www")) == ids(reversed(made))


def test_a_replayed_application_gets_the_first_answer(running):
    stub = running.stub()
    several(running, stub)
    set_policy(stub, keep_last=2)
    token = plan(stub).plan_token
    first = apply(stub, token)
    running.restart()
    stub = running.stub()
    back_up(stub, "www", {"a": b"later"})
    assert apply(stub, token) == first
    assert len(backups(stub, "www")) == 3


def test_a_plan_that_was_applied_and_undone_is_not_replayed(running):
    """The same backups, policy and outcome, yet another plan: a replay of the old one deletes nothing again."""
    stub = running.stub()
    made = several(running, stub, 3)
    set_policy(stub, keep_last=1)
    token = plan(stub).plan_token
    apply(stub, token)
    for backup in made[:2]:
        undelete(stub, backup)
    again = plan(stub).plan_token
    assert again != token
    apply(stub, token)
    assert ids(backups(stub, "www")) == ids(reversed(made))
    assert len(apply(stub, again).deleted_backup_ids) == 2


CHANGES = {
    "a new backup": lambda stub, name, made, now_s: back_up(stub, name, {"a": b"new"}),
    "a deletion": lambda stub, name, made, now_s: delete(stub, made[0], name),
    "a deletion of one that stays": lambda stub, name, made, now_s: delete(stub, made[3], name),
    "a hold": lambda stub, name, made, now_s: hold(stub, name, made[0]),
    "a hold on one that stays": lambda stub, name, made, now_s: hold(stub, name, made[3]),
    "a hold on the dataset": lambda stub, name, made, now_s: hold(stub, name),
    "a retention time": lambda stub, name, made, now_s: stub.RetainBackup(
        sv.RetainBackupRequest(dataset=name, backup=made[0].id, until_time=Timestamp(seconds=now_s + DAY))
    ),
    "another policy": lambda stub, name, made, now_s: set_policy(stub, name, keep_last=1),
    "another policy of the same outcome": lambda stub, name, made, now_s: set_policy(
        stub, name, keep_last=2, keep_daily=1
    ),
    "a minimum retention": lambda stub, name, made, now_s: stub.SetRetention(
        sv.SetRetentionRequest(dataset=name, minimum=Duration(seconds=100 * DAY))
    ),
}


def test_anything_that_changed_since_makes_the_plan_void_and_nothing_is_deleted(running):
    stub = running.stub()
    for name, change in CHANGES.items():
        made = several(running, stub, 4, name)
        set_policy(stub, name, keep_last=2)
        token = plan(stub, name, without_free_bytes=True).plan_token
        change(stub, name, made, running.clock.now_ns() // 10**9)
        before = ids(backups(stub, name))
        with pytest.raises(grpc.RpcError) as caught:
            apply(stub, token, name)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert info(caught.value).reason == "PLAN_CHANGED"
        assert ids(backups(stub, name)) == before


def test_a_retention_that_ended_since_makes_the_plan_void(running):
    stub = running.stub()
    stub_made = several(running, stub, 3)
    until = Timestamp(seconds=running.clock.now_ns() // 10**9 + 60)
    stub.RetainBackup(sv.RetainBackupRequest(dataset="www", backup=stub_made[0].id, until_time=until))
    set_policy(stub, keep_last=1)
    shown = plan(stub)
    assert [each.goes for each in shown.backups] == [False, True, False]
    running.clock.ahead_s += 61
    with pytest.raises(grpc.RpcError) as caught:
        apply(stub, shown.plan_token)
    assert reason(caught.value) == "PLAN_CHANGED"
    assert [each.goes for each in plan(stub).backups] == [False, True, True]


def test_a_plan_of_another_dataset_or_tenant_is_refused(running):
    stub, eve = running.stub(), running.stub(tenant=running.make_tenant("eve"))
    for each, dataset in ((stub, "www"), (stub, "other"), (eve, "www")):
        several(running, each, 3, dataset)
        set_policy(each, dataset, keep_last=1)
    token = plan(stub).plan_token
    for each, dataset in ((stub, "other"), (eve, "www")):
        for said in (token, "", "x" * 10_000):
            with pytest.raises(grpc.RpcError) as caught:
                apply(each, said, dataset)
            assert reason(caught.value) == ("PLAN_CHANGED" if said else "BAD_FIELD")
        assert len(backups(each, dataset)) == 3


def test_protected_backups_stay_and_the_plan_says_so(running):
    stub = running.stub()
    made = several(running, stub, 4)
    stub.SetHold(sv.SetHoldRequest(dataset="www", backup=made[0].id, reason="case 17"))
    until = Timestamp(seconds=running.clock.now_ns() // 10**9 + DAY)
    stub.RetainBackup(sv.RetainBackupRequest(dataset="www", backup=made[1].id, until_time=until))
    set_policy(stub, keep_last=1)
    shown = plan(stub)
    assert [each.goes for each in shown.backups] == [False, True, False, False]
    assert shown.backups[2].reasons[0].startswith("retained until 2")
    assert shown.backups[3].reasons[0].endswith(": case 17")
    assert list(apply(stub, shown.plan_token).deleted_backup_ids) == [made[2].id]


def test_a_long_plan_comes_in_pages(running):
    stub = running.stub()
    made = several(running, stub, 7)
    set_policy(stub, keep_last=2)
    whole = plan(stub)
    first = plan(stub, page_size=3)
    assert first.HasField("free_bytes")
    second = plan(stub, page_size=3, page_token=first.next_page_token)
    assert not second.HasField("free_bytes")
    third = plan(stub, page_size=3, page_token=second.next_page_token)
    assert third.next_page_token == ""
    assert [*first.backups, *second.backups, *third.backups] == list(whole.backups)
    assert {each.plan_token for each in (first, second, third)} == {whole.plan_token}
    assert {(each.delete_count, each.keep_count) for each in (first, second, third)} == {(5, 2)}
    delete(stub, made[0])
    with pytest.raises(grpc.RpcError) as caught:
        plan(stub, page_size=3, page_token=second.next_page_token)
    assert reason(caught.value) == "PLAN_CHANGED"


def test_an_upload_continues_when_a_policy_deletes_its_base(running):
    stub = running.stub()
    several(running, stub, 2)
    source = Source(stub, "www", scope=pb.UPLOAD_SCOPE_CHANGES)
    source.put_file("b", b"new")
    back_up(stub, "www", {"a": b"newest"})
    set_policy(stub, keep_last=1)
    assert len(apply(stub, plan(stub).plan_token).deleted_backup_ids) == 2
    made = source.commit()
    assert restore(stub, "www", backup={"backup": made.id}).files == {"a": b"1", "b": b"new"}


def test_applying_a_plan_beside_backups_and_holds_never_deletes_what_it_did_not_show(running):
    """Each application deletes exactly its plan, or nothing; a backup that was made or held meanwhile stays."""
    stub = running.stub()
    set_up = several(running, stub, 3)
    set_policy(stub, keep_last=2)
    stop, safe, failures = threading.Event(), [], []

    def backing_up():
        mine = running.stub(name="busy")
        for number in itertools.count():
            # Without a pause now and then, every plan could be outdated before it is applied.
            if stop.wait(0.1 * (number % 4 == 3)):
                return
            made = back_up(mine, "www", {"b": b"%d" % number})
            try:
                mine.SetHold(sv.SetHoldRequest(dataset="www", backup=made.id, reason="mine"))
            except grpc.RpcError as error:  # an application may have come first and deleted it
                failures.append(reason(error))
            safe.append(made.id)

    thread = threading.Thread(target=backing_up)
    thread.start()
    applied, refused = 0, []
    for number in itertools.count():
        if number >= 25 and (applied or number >= 250):
            break
        shown = plan(stub, without_free_bytes=True)
        expected = [each.backup.id for each in shown.backups if each.goes]
        try:
            assert list(apply(stub, shown.plan_token).deleted_backup_ids) == expected
            applied += 1
        except grpc.RpcError as error:
            refused.append(reason(error))
    stop.set()
    thread.join()
    assert failures == []
    everything = {each.id: each for each in backups(stub, "www", show_deleted=True)}
    assert applied
    assert set(refused) <= {"PLAN_CHANGED"}
    assert len(backups(stub, "www")) >= 2
    for id_ in (*safe, *ids(set_up)):
        each = everything[id_]
        if each.HasField("hold") and each.HasField("delete_time"):
            assert each.delete_time.ToNanoseconds() <= each.hold.time.ToNanoseconds(), (
                "held, and then deleted"
            )
    assert set(safe) <= {each.id for each in everything.values() if each.HasField("hold")}


def data_of(running, backup):
    """The digests of a backup's data."""
    (row,) = [
        each
        for each in running.catalog.retention.state(running.tenant, "www").backups
        if each.id.hex() == backup.id
    ]
    reader = ChunkReader(tenant_of(running), running.catalog)
    return [digest for found in references(row.root, reader) for digest in found.data]


def test_a_damaged_newest_backup_does_not_displace_the_last_complete_one(running):
    stub = running.stub()
    whole, newest = (back_up(stub, "www", {"a": noise(300_000, n)}, kind=pb.BACKUP_KIND_FULL) for n in (1, 2))
    set_policy(stub, keep_last=1)
    assert [each.goes for each in plan(stub).backups] == [False, True]
    damage_chunk(running, data_of(running, newest)[0])
    assert restore(stub, "www").damages, "now it is known"
    shown = plan(stub)
    assert [(each.backup.id, each.goes, each.damaged) for each in shown.backups] == [
        (newest.id, False, True),
        (whole.id, False, False),
    ]
    back_up(stub, "www", {"a": noise(300_000, 2)}, kind=pb.BACKUP_KIND_FULL)
    assert [each.damaged for each in plan(stub).backups] == [False] * 3, (
        "the same bytes came again, so the backup is healed"
    )
    assert [each.goes for each in plan(stub).backups] == [False, True, True]


def test_a_plan_finds_an_unreadable_manifest_itself(running):
    stub = running.stub()
    older, newest = (back_up(stub, "www", {"a": b"%d" % n}, kind=pb.BACKUP_KIND_FULL) for n in (1, 2))
    set_policy(stub, keep_last=1)
    damage_chunk(running, bytes.fromhex(newest.manifest_digest), Role.MANIFEST)
    shown = plan(stub)
    assert [(each.goes, each.damaged) for each in shown.backups] == [(False, True), (False, False)]
    damage_chunk(running, bytes.fromhex(older.manifest_digest), Role.MANIFEST)
    shown = plan(stub)
    assert [(each.goes, each.damaged) for each in shown.backups] == [(False, True), (False, True)]
    assert shown.backups[1].reasons == ["no backup is known to be intact"]


def test_a_plan_finds_a_chunk_that_no_pack_has(running):
    stub = running.stub()
    older = back_up(stub, "www", {"a": noise(9_000, 1)}, kind=pb.BACKUP_KIND_FULL)
    newest = back_up(stub, "www", {"a": noise(9_000, 2)}, kind=pb.BACKUP_KIND_FULL)
    set_policy(stub, keep_last=1)
    (digest,) = data_of(running, newest)
    with running.catalog.database.write() as connection:
        name = indexed_id(tenant_of(running).chunk_id(Role.DATA, digest))
        connection.execute(text("DELETE FROM chunks WHERE id_tail = :tail"), {"tail": name.tail})
    shown = plan(stub)
    assert [(each.backup.id, each.goes, each.damaged) for each in shown.backups] == [
        (newest.id, False, True),
        (older.id, False, False),
    ]
