"""Plans and their application, on a real store: what was shown is what happens, or nothing does."""

from __future__ import annotations

import itertools
import logging
import random
import threading

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.grpc import retention
from staddle_server.base.errors import Precondition
from staddle_server.base.types import Role
from staddle_server.manifest.references import references
from staddle_server.store import records as rec
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.records import as_pending
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.lifecycle.policies import Policies
from thin import Source, back_up, backups, info, noise, reason, restore, wait_until

DAY = 86_400


def set_policy(stub, dataset="www", **rules):
    request = sv.SetRetentionRequest(dataset=dataset, policy=pb.RetentionPolicy(**rules))
    return stub.SetRetention(request).retention


def plan(stub, dataset="www", **more):
    return stub.PlanRetention(sv.PlanRetentionRequest(dataset=dataset, **more))


def apply(stub, token, dataset="www"):
    return stub.ApplyRetention(sv.ApplyRetentionRequest(dataset=dataset, plan_token=token))


def delete(stub, backup, dataset="www"):
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset=dataset, backup=backup.id))


def undelete(stub, backup, dataset="www"):
    stub.UndeleteBackup(sv.UndeleteBackupRequest(dataset=dataset, backup=backup.id))


def ids(found):
    return [each.id for each in found]


def several(running, stub, count=5, dataset="www", **fields):
    """Backups a day apart, the oldest first."""
    made = []
    for number in range(count):
        made.append(back_up(stub, dataset, {"a": b"%d" % number}, **fields))
        running.clock.ahead_s += DAY
    return made


def tenant_of(running):
    return Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)


# --- what was shown is what happens


def test_a_policy_is_kept_and_shown_as_it_was_set(running):
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
    assert stub.SetRetention(minimum).retention.policy == answer.policy, "what is not named stays"
    gone = set_policy(stub, time_zone="Europe/Berlin")
    assert not gone.HasField("policy")
    assert gone.minimum.seconds == 60


def test_a_plan_changes_nothing_and_its_application_does_just_what_it_said(running):
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


def test_without_a_policy_nothing_goes(running):
    stub = running.stub()
    made = several(running, stub, 3)
    shown = plan(stub)
    assert [each.goes for each in shown.backups] == [False] * 3
    assert shown.backups[0].reasons == ["there is no policy"]
    assert list(apply(stub, shown.plan_token).deleted_backup_ids) == []
    assert ids(backups(stub, "www")) == ids(reversed(made))


def test_a_replayed_application_is_answered_as_the_first_was(running):
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


def test_a_plan_that_was_applied_and_undone_is_not_taken_for_the_same_again(running):
    """The same backups, policy and outcome as before, yet another plan: a replay of the old one deletes nothing anew."""
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


def hold(stub, dataset, backup=None):
    stub.SetHold(sv.SetHoldRequest(dataset=dataset, backup=backup.id if backup else "", reason="x"))


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


def test_a_plan_of_another_dataset_or_tenant_is_worth_nothing(running):
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


def test_what_is_protected_stays_and_the_plan_says_so(running):
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


def test_a_long_plan_comes_in_pages_of_one_plan(running):
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


def test_an_upload_goes_on_when_its_base_is_let_go(running):
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
    """Each application either deletes exactly its plan, or nothing; a backup that was made or held meanwhile is there."""
    stub = running.stub()
    set_up = several(running, stub, 3)
    set_policy(stub, keep_last=2)
    stop, safe, failures = threading.Event(), [], []

    def backing_up():
        mine = running.stub(name="busy")
        for number in itertools.count():
            if stop.is_set():
                return
            made = back_up(mine, "www", {"b": b"%d" % number})
            try:
                mine.SetHold(sv.SetHoldRequest(dataset="www", backup=made.id, reason="mine"))
            except grpc.RpcError as error:  # an application may have come first, and hidden it
                failures.append(reason(error))
            safe.append(made.id)

    thread = threading.Thread(target=backing_up)
    thread.start()
    applied, refused = 0, []
    for _ in range(25):
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


# --- only whole backups count


def hurt(running, digest, role=Role.DATA):
    """Flips a bit of the segment that a chunk lies in, and has it noticed."""
    tenant = tenant_of(running)
    chunk_id = tenant.chunk_id(role, digest)
    (place,) = running.catalog.chunks.find(running.tenant, [chunk_id])[chunk_id]
    (path,) = (running.root / "store" / "packs").rglob(place.segment.pack.hex())
    data = bytearray(path.read_bytes())
    data[place.segment.offset + place.segment.length - 20] ^= 1
    path.write_bytes(data)


def data_of(running, backup):
    """The digests of a backup's data."""
    (row,) = [
        each
        for each in running.catalog.retention.state(running.tenant, "www").backups
        if each.id.hex() == backup.id
    ]
    reader = ChunkReader(tenant_of(running), running.catalog)
    return [digest for found in references(row.root, reader) for digest in found.data]


def test_a_damaged_newest_backup_does_not_push_the_last_whole_one_out(running):
    stub = running.stub()
    whole, newest = (back_up(stub, "www", {"a": noise(300_000, n)}, kind=pb.BACKUP_KIND_FULL) for n in (1, 2))
    set_policy(stub, keep_last=1)
    assert [each.goes for each in plan(stub).backups] == [False, True]
    hurt(running, data_of(running, newest)[0])
    assert restore(stub, "www").damages, "now it is known"
    shown = plan(stub)
    assert [(each.backup.id, each.goes, each.damaged) for each in shown.backups] == [
        (newest.id, False, True),
        (whole.id, False, False),
    ]
    back_up(stub, "www", {"a": noise(300_000, 2)}, kind=pb.BACKUP_KIND_FULL)
    assert [each.damaged for each in plan(stub).backups] == [False] * 3, (
        "the same bytes came again: it is healed"
    )
    assert [each.goes for each in plan(stub).backups] == [False, True, True]


def test_a_manifest_that_cannot_be_read_is_damage_that_the_plan_itself_finds(running):
    stub = running.stub()
    older, newest = (back_up(stub, "www", {"a": b"%d" % n}, kind=pb.BACKUP_KIND_FULL) for n in (1, 2))
    set_policy(stub, keep_last=1)
    hurt(running, bytes.fromhex(newest.manifest_digest), Role.MANIFEST)
    shown = plan(stub)
    assert [(each.goes, each.damaged) for each in shown.backups] == [(False, True), (False, False)]
    hurt(running, bytes.fromhex(older.manifest_digest), Role.MANIFEST)
    shown = plan(stub)
    assert [(each.goes, each.damaged) for each in shown.backups] == [(False, True), (False, True)]
    assert shown.backups[1].reasons == ["no backup is known to be whole"]


def test_a_chunk_that_no_pack_has_is_found_although_no_damage_was_known(running):
    stub = running.stub()
    older = back_up(stub, "www", {"a": noise(9_000, 1)}, kind=pb.BACKUP_KIND_FULL)
    newest = back_up(stub, "www", {"a": noise(9_000, 2)}, kind=pb.BACKUP_KIND_FULL)
    set_policy(stub, keep_last=1)
    (digest,) = data_of(running, newest)
    with running.catalog.database.write() as connection:
        chunk_id = tenant_of(running).chunk_id(Role.DATA, digest)
        connection.execute(text("DELETE FROM chunks WHERE chunk_id = :id"), {"id": chunk_id})
    shown = plan(stub)
    assert [(each.backup.id, each.goes, each.damaged) for each in shown.backups] == [
        (newest.id, False, True),
        (older.id, False, False),
    ]


# --- what comes free


def test_what_only_the_going_backups_have_comes_free_to_the_byte(running):
    stub = running.stub()
    gone = back_up(stub, "www", {"a": noise(3_000_000, 1)}, kind=pb.BACKUP_KIND_FULL)
    back_up(stub, "www", {"a": noise(1_000_000, 2)}, kind=pb.BACKUP_KIND_FULL)
    set_policy(stub, keep_last=1)
    assert plan(stub).free_bytes == gone.stored_bytes > 3_000_000, "all of its packs, and nothing else"
    assert not plan(stub, without_free_bytes=True).HasField("free_bytes")


def test_what_other_backups_share_does_not_come_free(running):
    stub = running.stub()
    shared, alone = noise(1_500_000, 1), noise(700_000, 2)
    back_up(stub, "www", {"shared": shared, "alone": alone}, kind=pb.BACKUP_KIND_FULL)
    back_up(stub, "www", {"x": b"1"}, kind=pb.BACKUP_KIND_FULL)
    set_policy(stub, keep_last=1)
    alone_there = plan(stub).free_bytes
    assert alone_there > 2_200_000
    elsewhere = back_up(stub, "elsewhere", {"copy": shared})
    free = plan(stub).free_bytes
    assert 700_000 < free < 720_000
    delete(stub, elsewhere, "elsewhere")
    assert plan(stub).free_bytes == alone_there, "what is deleted already goes before"
    stub.SetHold(sv.SetHoldRequest(dataset="elsewhere", reason="x"))
    assert plan(stub).free_bytes == free, "but not while it is held"


def test_what_open_uploads_rely_on_does_not_come_free(running):
    stub = running.stub()
    data = noise(1_000_000, 1)
    back_up(stub, "www", {"a": data}, kind=pb.BACKUP_KIND_FULL)
    source = Source(stub, "www")
    back_up(stub, "www", {"x": b"1"}, kind=pb.BACKUP_KIND_FULL)
    set_policy(stub, keep_last=1)
    assert plan(stub).free_bytes == 0, "it is the base of an open upload"
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    assert plan(stub).free_bytes > 1_000_000
    source = Source(stub, "elsewhere")
    assert source.missing(source.cut(data)) == []
    assert plan(stub).free_bytes == 0, "an open upload was told that it is there"
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    assert plan(stub).free_bytes > 1_000_000


def test_what_comes_free_is_what_a_naive_count_says(running):
    """Backups of random files over few contents, and every chunk of every manifest counted by itself."""
    stub, chance = running.stub(), random.Random(7)
    contents = [noise(chance.randrange(1, 400_000), n) for n in range(12)]
    for number in range(10):
        files = {f"f{n}": contents[n] for n in chance.sample(range(12), 4)}
        back_up(stub, chance.choice(["www", "other"]) if number else "www", files, kind=pb.BACKUP_KIND_FULL)
    back_up(stub, "www", {"f": contents[0]}, kind=pb.BACKUP_KIND_FULL)
    for keep in (1, 2, 3):
        set_policy(stub, keep_last=keep)
        shown = plan(stub)
        going = {each.backup.id for each in shown.backups if each.goes}
        assert going
        assert shown.free_bytes == naive(running, going)


def naive(running, going: set[str]) -> int:
    tenant = tenant_of(running)
    reader = ChunkReader(tenant, running.catalog)
    needed = {True: set(), False: set()}
    for dataset in ("www", "other"):
        for backup in running.catalog.retention.state(running.tenant, dataset).backups:
            for found in references(backup.root, reader):
                chunks = needed[backup.id.hex() in going]
                chunks.update(tenant.chunk_id(Role.MANIFEST, digest) for digest in found.manifest)
                chunks.update(tenant.chunk_id(Role.DATA, digest) for digest in found.data)
    alone = needed[True] - needed[False]
    total = 0
    for path in (running.root / "store" / "packs").rglob("*"):
        if not path.is_file():
            continue
        summary = tenant.packs.footer(bytes.fromhex(path.name))
        free = [chunk for chunk in summary.chunks if chunk.chunk_id in alone]
        if len(free) == len(summary.chunks):
            total += path.stat().st_size
            continue
        segments = {chunk.place.segment for chunk in free}
        for segment in segments:
            inside = [chunk for chunk in summary.chunks if chunk.place.segment == segment]
            share = sum(chunk.place.length for chunk in inside if chunk.chunk_id in alone)
            total += segment.length * share // sum(chunk.place.length for chunk in inside)
    return total


def test_where_damage_hides_what_comes_free_the_plan_says_why_and_is_there_all_the_same(running):
    stub = running.stub()
    damaged = back_up(stub, "other", {"b": b"of its own"})
    made = several(running, stub, 3)
    hurt(running, bytes.fromhex(damaged.manifest_digest), Role.MANIFEST)
    set_policy(stub, keep_last=1)
    shown = plan(stub)
    assert not shown.HasField("free_bytes")
    assert "damaged" in shown.free_bytes_unknown
    assert sorted(apply(stub, shown.plan_token).deleted_backup_ids) == sorted(ids(made[:2]))


# --- by itself


def test_the_server_follows_the_policies_by_itself_and_logs_what_it_deleted(running, caplog):
    running.retention_every_s = 3600.0
    running.restart()
    stub, eve = running.stub(), running.stub(tenant=running.make_tenant("eve"))
    mine, hers, free = several(running, stub, 4), several(running, eve, 3), several(running, stub, 3, "free")
    set_policy(stub, keep_last=2)
    set_policy(eve, keep_daily=1)
    running.service._schedule.look()
    assert len(backups(stub, "www")) == 4, "whoever has just set a policy has time to look at its plan"
    running.clock.ahead_s += 3601
    with caplog.at_level(logging.INFO):
        running.service._schedule.look()
    assert ids(backups(stub, "www")) == [mine[3].id, mine[2].id]
    assert ids(backups(eve, "www")) == [hers[2].id]
    assert ids(backups(stub, "free")) == ids(reversed(free)), "no policy, no deletion"
    assert mine[0].id in caplog.text
    assert running.catalog.tasks.last("retention").outcome == "4 backups deleted"
    several(running, stub, 1)
    running.clock.ahead_s -= DAY
    running.service._schedule.look()
    assert len(backups(stub, "www")) == 3, "it is not due yet"
    running.clock.ahead_s += DAY
    running.service._schedule.look()
    assert len(backups(stub, "www")) == 2


def test_a_server_that_shall_never_follow_policies_does_not(running):
    stub = running.stub()
    several(running, stub, 3)
    set_policy(stub, keep_last=1)
    running.clock.ahead_s += 400 * DAY
    running.service._schedule.look()
    assert len(backups(stub, "www")) == 3


def test_a_dataset_whose_policy_cannot_be_followed_keeps_no_other_back_and_loses_nothing(running, caplog):
    running.retention_every_s = 3600.0
    running.restart()
    stub = running.stub()
    several(running, stub, 3, "a")
    several(running, stub, 3, "b")
    for dataset in ("a", "b"):
        set_policy(stub, dataset, keep_last=1)
    running.clock.ahead_s += 3601
    with running.catalog.database.write() as connection:
        connection.execute(text("UPDATE datasets SET policy = 'of another version' WHERE name = 'a'"))
    running.service._schedule.look()
    assert len(backups(stub, "a")) == 3
    assert len(backups(stub, "b")) == 1
    assert (
        running.catalog.tasks.last("retention").outcome == "2 backups deleted, 1 dataset failed: see the log"
    )
    assert "retention of dataset 'a' failed" in caplog.text
    with pytest.raises(grpc.RpcError) as caught:
        plan(stub, "a")
    assert reason(caught.value) == "STORE_UNAVAILABLE"


def test_a_server_that_is_about_to_end_deletes_nothing_more(running):
    stub = running.stub()
    several(running, stub, 3)
    set_policy(stub, keep_last=1)
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    policies = Policies(running.catalog, tenants, running.clock, 1.0)
    running.clock.ahead_s += 60
    assert policies.run(lambda: True) == ""
    assert len(backups(stub, "www")) == 3
    assert policies.run(lambda: False) == "2 backups deleted"


class SlowBlobs(WrappedBlobs):
    """A store whose reads wait for a sign."""

    def __init__(self, blobs):
        super().__init__(blobs)
        self.go = threading.Event()
        self.go.set()
        self.waiting = 0

    def read(self, *asked):
        self.waiting += 1
        assert self.go.wait(30)
        return super().read(*asked)


def test_only_so_many_plans_are_made_at_once_and_other_calls_go_on(running):
    running.stop()
    running.wrap = SlowBlobs
    running.start()
    stub = running.stub()
    several(running, stub, 2)
    set_policy(stub, keep_last=1)
    running.blobs.waiting = 0
    running.blobs.go.clear()
    others = running.stub(tenant=running.make_tenant("theirs"))
    running.blobs.go.set()
    several(running, others, 2)
    set_policy(others, keep_last=1)
    running.blobs.waiting = 0
    running.blobs.go.clear()
    calls = [
        stub.PlanRetention.future(sv.PlanRetentionRequest(dataset="www"))
        for _ in range(retention.PLANS_TENANT_MAX)
    ]
    wait_until(lambda: running.blobs.waiting == retention.PLANS_TENANT_MAX)
    with pytest.raises(grpc.RpcError) as caught:
        plan(stub)
    assert reason(caught.value) == "TOO_MANY"
    assert len(backups(stub, "www")) == 2
    calls.append(others.PlanRetention.future(sv.PlanRetentionRequest(dataset="www")))
    wait_until(lambda: running.blobs.waiting == retention.PLANS_MAX)
    running.blobs.go.set()
    for call in calls:
        assert call.result().delete_count == 1
    assert plan(stub).delete_count == 1


def test_what_changes_between_a_plan_and_its_transaction_is_seen_by_the_transaction(running):
    """The window that callers cannot hit at will: the plan is still right when it is compared, and wrong when it is applied."""
    stub = running.stub()
    made = several(running, stub, 3)
    set_policy(stub, keep_last=1)
    catalog = running.catalog.retention
    seen = catalog.state(running.tenant, "www")
    gone = [bytes.fromhex(each.id) for each in made[:2]]

    def application(expected):
        now_ns = running.clock.now_ns()
        return catalog.apply(
            running.tenant,
            "www",
            "a plan",
            expected=expected,
            backups=gone,
            now_ns=now_ns,
            deleted=lambda backup: as_pending(running.tenant, rec.DeletedRecord(backup, now_ns)),
        )

    back_up(stub, "www", {"a": b"new"})
    with pytest.raises(Precondition) as caught:
        application(seen)
    assert caught.value.reason == "PLAN_CHANGED"
    hold(stub, "www", made[0])
    with pytest.raises(Precondition) as caught:
        application(catalog.state(running.tenant, "www"))
    assert caught.value.reason == "PROTECTED", "whatever a plan says"
    assert len(backups(stub, "www")) == 4, "all or nothing"
    stub.ReleaseHold(sv.ReleaseHoldRequest(dataset="www", backup=made[0].id))
    seen = catalog.state(running.tenant, "www")
    first = application(seen)
    assert len(first.backups) == 2
    assert application(seen) == first, "of two at once the later one is answered as the first was"
