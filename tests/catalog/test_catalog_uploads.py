"""The life of an upload: begin, replay, take-over, resume, checkpoint, and one close."""

import pytest
from staddle_server.base import errors, limits
from staddle_server.base.types import ChangeCounts, Kind, Scope, UploadState
from staddle_server.catalog import DurableUpdate, MissingChunk, PendingRecord, Terms

SECOND = 1_000_000_000
TERMS = Terms(300, 7 * 24 * 3600)


def _reason(caught):
    return caught.value.reason


# --- begin


def test_the_first_upload_makes_the_dataset_and_auto_becomes_full(world):
    begun = world.begin(tags={"b": "2", "a": "1"}, host="h", root="/srv", request_id="r1")
    upload = begun.upload
    assert not begun.replayed
    assert not begun.taken_over
    assert (upload.asked_kind, upload.kind, upload.base) == (Kind.AUTO, Kind.FULL, b"")
    assert (upload.state, upload.epoch, upload.principal) == (UploadState.OPEN, 1, "ann")
    assert upload.lease_expires_ns == world.now + TERMS.lease_s * SECOND
    assert upload.expires_ns == world.now + TERMS.life_s * SECOND
    assert upload.tags == {"a": "1", "b": "2"}
    assert world.catalog.uploads.get(world.tenant, upload.id) == upload
    assert world.catalog.uploads.get_by_request(world.tenant, "r1") == upload
    assert world.catalog.datasets.get(world.tenant, "www").backup_count == 0


def test_auto_and_incremental_start_from_the_newest_backup_and_differential_from_the_newest_full(world):
    full = world.backup(kind=Kind.FULL)
    newest = world.backup()
    assert newest.kind == Kind.INCREMENTAL
    assert newest.base == full.id
    assert world.begin().upload.base == newest.id
    assert world.begin(kind=Kind.INCREMENTAL, scope=Scope.CHANGES).upload.base == newest.id
    assert world.begin(kind=Kind.DIFFERENTIAL).upload.base == full.id


def test_a_deleted_backup_is_never_a_base(world):
    full = world.backup(kind=Kind.FULL)
    newest = world.backup()
    for backup in (full, newest):
        world.catalog.backups.delete(
            world.tenant, backup.id, world.now, PendingRecord(world.id(), world.tenant, b"r")
        )
    assert world.begin().upload.kind == Kind.FULL
    for kind in (Kind.INCREMENTAL, Kind.DIFFERENTIAL):
        with pytest.raises(errors.Precondition) as caught:
            world.begin(kind=kind)
        assert _reason(caught) == "NO_BASE"


def test_a_change_backup_without_earlier_ones_has_no_base(world):
    with pytest.raises(errors.Precondition) as caught:
        world.begin(scope=Scope.CHANGES)
    assert _reason(caught) == "NO_BASE"


def test_a_begin_that_fails_leaves_no_dataset(world):
    with pytest.raises(errors.Precondition):
        world.begin(dataset="new", kind=Kind.DIFFERENTIAL)
    with pytest.raises(errors.NotFound) as caught:
        world.catalog.datasets.get(world.tenant, "new")
    assert _reason(caught) == "DATASET_NOT_FOUND"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"kind": Kind.FULL, "scope": Scope.CHANGES}, "scope"),
        ({"new_root": True, "scope": Scope.CHANGES}, "scope"),
        ({"new_root": True, "kind": Kind.DIFFERENTIAL}, "kind"),
        ({"kind": Kind.FULL, "base": bytes(16)}, "base_backup_id"),
        ({"kind": Kind.INCREMENTAL, "scope": Scope.CHANGES, "base": bytes(16)}, "base_backup_id"),
        ({"dataset": ""}, "dataset"),
        ({"dataset": "a\nb"}, "dataset"),
        ({"dataset": "ä" * 128}, "dataset"),
        ({"request_id": "r" * 129}, "request_id"),
        ({"host": "h" * 256}, "host"),
        ({"root": "r" * (16 * 1024 + 1)}, "root"),
        ({"fingerprint": "f" * 129}, "fingerprint"),
    ],
)
def test_an_impossible_value_is_a_bad_field(world, said, field):
    with pytest.raises(errors.BadRequest) as caught:
        world.begin(**said)
    assert caught.value.facts == {"field": field}


def test_another_root_is_refused_unless_the_request_allows_it(world):
    world.backup(host="h", root="/srv")
    for said in ({"host": "h", "root": "/etc"}, {"host": "x", "root": "/srv"}, {"root": "/etc"}):
        with pytest.raises(errors.Precondition) as caught:
            world.begin(**said)
        assert _reason(caught) == "ROOT_DIFFERS"
        assert caught.value.facts == {"dataset": "www", "host": "h", "root": "/srv"}
    assert world.begin().upload.kind == Kind.INCREMENTAL
    moved = world.backup(host="h", root="/etc", new_root=True)
    assert moved.kind == Kind.FULL
    dataset = world.catalog.datasets.get(world.tenant, "www")
    assert (dataset.host, dataset.root) == ("h", "/etc")


def test_a_new_root_counts_only_once_it_is_committed(world):
    world.backup(host="h", root="/srv")
    world.begin(host="h", root="/etc", new_root=True)
    assert world.catalog.datasets.get(world.tenant, "www").root == "/srv"


# --- replay


def test_a_replayed_begin_gets_the_first_answer(world):
    said = {"request_id": "r1", "tags": {"a": "1"}, "root": "/srv", "host": "h"}
    first = world.begin(**said)
    world.now += SECOND
    again = world.begin(**said)
    assert again.replayed
    assert again.upload == first.upload


def test_a_replay_of_a_committed_upload_names_its_backup(world):
    first = world.begin(request_id="r1")
    backup = world.commit(first.upload)
    again = world.begin(request_id="r1")
    assert (again.upload.id, again.upload.state, again.upload.backup) == (
        first.upload.id,
        UploadState.COMMITTED,
        backup.id,
    )


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "other"},
        {"kind": Kind.FULL},
        {"tags": {"a": "1"}},
        {"host": "h"},
        {"root": "/"},
        {"new_root": True},
        {"take_over": True},
        {"fingerprint": "f"},
    ],
)
def test_a_request_id_that_was_used_for_another_request_is_refused(world, other):
    world.begin(request_id="r1")
    with pytest.raises(errors.AlreadyExists) as caught:
        world.begin(request_id="r1", **other)
    assert _reason(caught) == "REQUEST_ID_REUSED"


def test_a_request_id_gives_no_access_to_the_upload_of_another_principal(world):
    world.begin(request_id="r1")
    with pytest.raises(errors.AlreadyExists):
        world.begin(world.bob, request_id="r1")


def test_a_replay_after_a_take_over_has_the_old_epoch_and_cannot_write(world):
    first = world.begin(request_id="r1")
    world.catalog.uploads.resume(world.tenant, first.upload.id, world.ann, world.now, TERMS)
    replayed = world.begin(request_id="r1").upload
    assert replayed.epoch == 1
    with pytest.raises(errors.Conflict) as caught:
        world.checkpoint(replayed)
    assert _reason(caught) == "STALE_EPOCH"


def test_request_ids_of_two_tenants_are_unrelated(world):
    mine = world.begin(request_id="r1").upload
    theirs = world.begin(world.eve, request_id="r1").upload
    assert mine.id != theirs.id


# --- taking over


def test_repeating_a_command_takes_its_open_upload_over(world):
    said = {"host": "h", "root": "/srv", "fingerprint": "f", "take_over": True}
    first = world.begin(**said, request_id="r1").upload
    world.now += SECOND
    second = world.begin(**said, request_id="r2", tags={"n": "2"})
    assert second.taken_over
    assert (second.upload.id, second.upload.epoch) == (first.id, 2)
    assert second.upload.lease_expires_ns == world.now + TERMS.lease_s * SECOND
    assert second.upload.tags == {"n": "2"}
    assert world.catalog.uploads.get_by_request(world.tenant, "r2").id == first.id
    again = world.begin(**said, request_id="r2", tags={"n": "2"})
    assert (again.replayed, again.taken_over, again.upload.epoch) == (True, True, 2)


@pytest.mark.parametrize(
    "other",
    [
        {"kind": Kind.FULL},
        {"kind": Kind.DIFFERENTIAL},
        {"scope": Scope.CHANGES},
        {"host": "x"},
        {"root": "/etc"},
        {"fingerprint": "g"},
        {"new_root": True},
        {"dataset": "other"},
    ],
)
def test_another_command_opens_another_upload(world, other):
    for dataset in ("www", "other"):
        world.backup(dataset=dataset)
    first = world.begin(fingerprint="f", take_over=True).upload
    second = world.begin(**{"fingerprint": "f", "take_over": True} | other)
    assert not second.taken_over
    assert second.upload.id != first.id


def test_another_principal_does_not_take_over_by_beginning(world):
    first = world.begin(take_over=True).upload
    second = world.begin(world.bob, take_over=True)
    assert not second.taken_over
    assert second.upload.id != first.id


def test_the_kind_that_auto_chose_matches_a_request_for_it_by_name(world):
    first = world.begin().upload
    assert world.begin(kind=Kind.FULL, take_over=True).upload.id == first.id


def test_an_upload_that_is_taken_over_keeps_its_base(world):
    base = world.backup()
    first = world.begin().upload
    world.backup()
    second = world.begin(take_over=True)
    assert second.taken_over
    assert (second.upload.id, second.upload.base) == (first.id, base.id)


def test_an_upload_past_its_life_is_not_taken_over(world):
    first = world.begin().upload
    world.now = first.expires_ns
    assert not world.begin(take_over=True).taken_over


# --- resume, renew, fail


def test_resuming_ends_the_previous_writer(world):
    upload = world.begin().upload
    resumed = world.catalog.uploads.resume(world.tenant, upload.id, world.ann, world.now, TERMS)
    assert resumed.epoch == 2
    for call in (
        lambda: world.checkpoint(upload),
        lambda: world.commit(upload),
        lambda: world.catalog.uploads.abort(world.tenant, upload.id, 1, world.now),
        lambda: world.catalog.packs.begin(world.tenant, upload.id, 1, world.id(), 1),
        lambda: world.catalog.chunks.claim(world.tenant, upload.id, 1, []),
        lambda: world.catalog.uploads.renew(world.tenant, upload.id, 1, now_ns=1, terms=TERMS),
    ):
        with pytest.raises(errors.Conflict) as caught:
            call()
        assert _reason(caught) == "STALE_EPOCH"
        assert caught.value.facts == {"upload": upload.id.hex(), "epoch": "2"}


def test_another_principal_waits_for_the_lease_and_then_becomes_the_writer(world):
    upload = world.begin().upload
    resume = world.catalog.uploads.resume
    with pytest.raises(errors.Conflict) as caught:
        resume(world.tenant, upload.id, world.bob, upload.lease_expires_ns - 1, TERMS)
    assert _reason(caught) == "LEASE_HELD"
    assert caught.value.facts["lease_expire_time"] == "2023-11-14T22:18:20Z"
    assert resume(world.tenant, upload.id, world.bob, upload.lease_expires_ns, TERMS).principal == "bob"
    assert world.commit(world.catalog.uploads.get(world.tenant, upload.id)).principal == "bob"


def test_an_upload_past_its_life_is_not_resumed(world):
    upload = world.begin().upload
    with pytest.raises(errors.Precondition) as caught:
        world.catalog.uploads.resume(world.tenant, upload.id, world.ann, upload.expires_ns, TERMS)
    assert _reason(caught) == "UPLOAD_CLOSED"
    assert caught.value.facts["state"] == "expired"


def test_renewing_extends_lease_and_life(world):
    upload = world.begin().upload
    renewed = world.catalog.uploads.renew(
        world.tenant, upload.id, 1, now_ns=world.now + 5 * SECOND, terms=Terms(10, 20)
    )
    assert renewed.lease_expires_ns == world.now + 15 * SECOND
    assert renewed.expires_ns == world.now + 25 * SECOND


def test_the_last_failure_is_set_by_the_writer_and_cleared_by_the_commit(world):
    upload = world.begin().upload
    assert world.catalog.uploads.set_failure(world.tenant, upload.id, 1, "x" * 5000)
    assert len(world.catalog.uploads.get(world.tenant, upload.id).last_failure) == 1000
    assert not world.catalog.uploads.set_failure(world.tenant, upload.id, 2, "another's")
    assert not world.catalog.uploads.set_failure(world.eve.tenant, upload.id, 1, "another's")
    world.commit(upload)
    assert world.catalog.uploads.get(world.tenant, upload.id).last_failure == ""


# --- checkpoint


def test_a_checkpoint_moves_the_durable_point_and_publishes_its_packs(world):
    upload = world.begin().upload
    ids = world.digests(20)
    pack = world.pack(upload, ids)
    assert world.catalog.chunks.find(world.tenant, ids) == {}
    world.now += SECOND
    until = world.checkpoint(upload, pack, durable=DurableUpdate(b"blob", 10, 9, 8))
    after = world.catalog.uploads.get(world.tenant, upload.id)
    assert (after.durable, after.position, after.entry_count, after.data_bytes) == (b"blob", 10, 9, 8)
    assert after.lease_expires_ns == until == world.now + TERMS.lease_s * SECOND
    assert after.expires_ns == world.now + TERMS.life_s * SECOND
    assert world.catalog.chunks.find(world.tenant, ids) == {c: [place] for c, place in pack.chunks}


def test_a_pack_of_an_older_epoch_is_never_published(world):
    first = world.begin().upload
    ids = world.digests(3)
    pack = world.pack(first, ids)
    resumed = world.catalog.uploads.resume(world.tenant, first.id, world.ann, world.now, TERMS)
    with pytest.raises(errors.Conflict) as caught:
        world.checkpoint(resumed, pack)
    assert _reason(caught) == "STALE_EPOCH"
    assert world.catalog.chunks.find(world.tenant, ids) == {}
    assert world.catalog.uploads.get(world.tenant, first.id).position == 0


def test_a_pack_that_was_never_begun_is_not_published(world):
    upload = world.begin().upload
    with pytest.raises(errors.Conflict):
        world.commit(upload, world.pack(upload, world.digests(1), begin=False))
    assert world.catalog.uploads.get(world.tenant, upload.id).state == UploadState.OPEN


def test_a_replayed_checkpoint_changes_nothing(world):
    upload = world.begin().upload
    pack = world.pack(upload, world.digests(5))
    world.checkpoint(upload, pack)
    world.checkpoint(upload, pack)
    assert all(
        len(places) == 1
        for places in world.catalog.chunks.find(world.tenant, [c for c, _ in pack.chunks]).values()
    )


@pytest.mark.parametrize("kind", [Kind.FULL, Kind.INCREMENTAL])
def test_what_begin_and_commit_return_is_what_the_catalog_has(world, kind):
    first = world.backup(tags={"of": "first"})
    world.catalog.packs.mark_damaged(world.tenant, world.pack(world.begin().upload, world.digests(1)).pack)
    begun = world.begin(kind=kind, host="h", root="/r", tags={"a": "1"}).upload
    assert begun == world.catalog.uploads.get(world.tenant, begun.id)
    assert begun.base_root == (None if kind is Kind.FULL else first.root)
    assert begun.damage_epoch == 1
    made = world.commit(begun)
    assert made == world.catalog.backups.get(world.tenant, made.id)


def test_missing_chunks_are_listed_in_pages_and_block_the_commit(world):
    upload = world.begin().upload
    digests = sorted(world.digests(25))
    world.checkpoint(upload, missing_added=[MissingChunk(digest, 7) for digest in digests + digests[:3]])
    first = world.catalog.uploads.missing(world.tenant, upload.id, b"", 20)
    rest = world.catalog.uploads.missing(world.tenant, upload.id, first[-1].digest, 20)
    assert first + rest == [MissingChunk(digest, 7) for digest in digests]
    with pytest.raises(errors.Precondition) as caught:
        world.commit(upload)
    assert _reason(caught) == "MISSING_CHUNKS"
    assert caught.value.facts == {"upload": upload.id.hex(), "count": "25"}
    world.checkpoint(upload, missing_removed=digests[:20])
    world.checkpoint(upload, missing_removed=digests[20:])
    assert world.commit(upload).number == 1


def test_more_missing_chunks_than_the_limit_are_all_refused(world, monkeypatch):
    monkeypatch.setattr(limits, "MISSING_CHUNKS_MAX", 10)
    upload = world.begin().upload
    with pytest.raises(errors.Exhausted) as caught:
        world.checkpoint(upload, missing_added=[MissingChunk(digest, 1) for digest in world.digests(11)])
    assert _reason(caught) == "TOO_MANY"
    assert world.catalog.uploads.missing(world.tenant, upload.id, b"", 20) == []


# --- closing


def test_a_commit_makes_one_backup_with_everything_from_the_upload(world):
    base = world.backup()
    upload = world.begin(
        kind=Kind.INCREMENTAL, scope=Scope.CHANGES, tags={"k": "v"}, host="h", root="/srv", request_id="r"
    ).upload
    ids = world.digests(2)
    pack = world.pack(upload, ids)
    world.now += SECOND
    backup = world.commit(upload, pack)
    assert (backup.number, backup.kind, backup.scope, backup.base) == (
        2,
        Kind.INCREMENTAL,
        Scope.CHANGES,
        base.id,
    )
    assert (backup.begin_ns, backup.commit_ns, backup.deleted_ns) == (upload.begin_ns, world.now, None)
    assert (backup.root.entries, backup.root.data_bytes, backup.root.level) == (12, 3456, 1)
    assert (backup.stored_bytes, backup.changes) == (789, ChangeCounts(1, 2, 3, 4, 5))
    assert (backup.tags, backup.host, backup.source_root) == ({"k": "v"}, "h", "/srv")
    assert (backup.principal, backup.upload, backup.request_id) == ("ann", upload.id, "r")
    assert [each.id for each in world.catalog.backups.pending_records(world.tenant)][-1] == backup.id
    assert world.catalog.backups.get(world.tenant, backup.id) == backup
    assert set(world.catalog.chunks.find(world.tenant, ids)) == set(ids)
    closed = world.catalog.uploads.get(world.tenant, upload.id)
    assert (closed.state, closed.backup) == (UploadState.COMMITTED, backup.id)


def test_a_replayed_commit_returns_the_same_backup(world):
    upload = world.begin().upload
    first = world.commit(upload)
    world.now += SECOND
    assert world.commit(upload) == first
    assert len(world.catalog.backups.list_page(world.tenant, "www", limit=10)) == 1


def test_numbers_count_up_in_each_dataset(world):
    assert [world.backup().number, world.backup().number, world.backup("other").number] == [1, 2, 1]


def test_an_aborted_upload_leaves_no_backup_and_no_claim(world):
    upload = world.begin().upload
    world.checkpoint(upload, world.pack(upload, world.digests(2)), missing_added=[MissingChunk(b"m" * 32, 1)])
    aborted = world.catalog.uploads.abort(world.tenant, upload.id, 1, world.now)
    assert (aborted.state, aborted.durable) == (UploadState.ABORTED, b"")
    assert world.catalog.uploads.abort(world.tenant, upload.id, 1, world.now) == aborted
    assert world.catalog.backups.list_page(world.tenant, "www", limit=10) == []
    assert world.catalog.uploads.missing(world.tenant, upload.id, b"", 9) == []
    with world.catalog.database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM claims").scalar() == 0


def test_a_closed_upload_refuses_every_write_and_names_its_state(world):
    committed = world.begin().upload
    world.commit(committed)
    aborted = world.begin().upload
    world.catalog.uploads.abort(world.tenant, aborted.id, 1, world.now)
    for upload, state in ((committed, "committed"), (aborted, "aborted")):
        for call in (
            world.checkpoint,
            lambda u: world.catalog.packs.begin(world.tenant, u.id, 1, world.id(), 1),
            lambda u: world.catalog.chunks.claim(world.tenant, u.id, 1, []),
            lambda u: world.catalog.uploads.resume(world.tenant, u.id, world.ann, world.now, TERMS),
        ):
            with pytest.raises(errors.Precondition) as caught:
                call(upload)
            assert caught.value.facts == {"upload": upload.id.hex(), "state": state}
    with pytest.raises(errors.Precondition):
        world.commit(aborted)
    with pytest.raises(errors.Precondition):
        world.catalog.uploads.abort(world.tenant, committed.id, 1, world.now)


def test_expired_uploads_are_ended_and_named(world):
    old = world.begin().upload
    world.now += SECOND
    young = world.begin().upload
    committed = world.begin().upload
    world.commit(committed)
    assert world.catalog.uploads.expire(old.expires_ns - 1) == []
    assert world.catalog.uploads.expire(old.expires_ns) == [(world.tenant, old.id)]
    assert world.catalog.uploads.expire(old.expires_ns) == []
    assert world.catalog.uploads.get(world.tenant, old.id).state == UploadState.EXPIRED
    assert world.catalog.uploads.get(world.tenant, young.id).state == UploadState.OPEN


def test_the_upload_of_another_tenant_is_not_found(world):
    upload = world.begin(request_id="r1").upload
    theirs = world.eve.tenant
    uploads = world.catalog.uploads
    for call in (
        lambda: uploads.get(theirs, upload.id),
        lambda: uploads.get_by_request(theirs, "r1"),
        lambda: uploads.resume(theirs, upload.id, world.eve, upload.lease_expires_ns, TERMS),
        lambda: uploads.renew(theirs, upload.id, 1, now_ns=1, terms=TERMS),
        lambda: uploads.abort(theirs, upload.id, 1, 1),
        lambda: uploads.missing(theirs, upload.id, b"", 1),
        lambda: world.catalog.packs.begin(theirs, upload.id, 1, world.id(), 1),
        lambda: world.catalog.chunks.claim(theirs, upload.id, 1, []),
    ):
        with pytest.raises(errors.NotFound) as caught:
            call()
        assert _reason(caught) == "UPLOAD_NOT_FOUND"
    assert uploads.get(world.tenant, upload.id) == upload
