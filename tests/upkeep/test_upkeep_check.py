"""Checking names damage with everything that it affects, nothing sound, and records it in the catalog."""

import pytest
from blake3 import blake3
from harm import check, damage, damage_chunk, flip, kept, objects, pack_file, paths, places
from sql import sql
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Unavailable
from staddle_server.base.types import ChunkRef, Role
from staddle_server.store.pack import Codec
from staddle_server.store.pack_writer import PackWriter
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.tenancy.pack_check import Examiner
from staddle_server.upkeep.integrity.findings import NOTE
from thin import Source, back_up, noise, restore

A, B = noise(1_500_000, 1), noise(1_500_000, 2)
FILES = {"a": A, "b": B, "small": b"few bytes"}


def first_chunk(stub, data):
    source = Source(stub, "scratch")
    chunk = source.cut(data)[0]
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    return blake3(chunk).digest()


def marks(running):
    return {
        (pack.id, offset)
        for pack in running.catalog.verification.live_packs(running.tenant)
        for offset in pack.marks
    }


def test_a_sound_store_is_clean_and_its_packs_are_verified(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    second = back_up(stub, "www", FILES | {"c": b"more"})
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=second.id))
    found, summary = check(running)
    assert (found, summary.damage, summary.packs_read) == ([], 0, 0)
    assert summary.packs == 2
    assert summary.backups == 2
    assert summary.records == 4
    assert all(p.verified_ns is None for p in running.catalog.verification.live_packs(running.tenant))
    found, summary = check(running, read=True)
    assert (found, summary.packs_read) == ([], 2)
    sizes = sum(path.stat().st_size for path in objects(running))
    assert 0.99 * sizes < summary.bytes_read < sizes
    assert all(p.verified_ns is not None for p in running.catalog.verification.live_packs(running.tenant))


def test_a_sample_of_the_packs_is_the_same_for_the_same_seed(running):
    stub = running.stub()
    for n in range(12):
        back_up(stub, "www", {f"f{n}": noise(2000, n)})

    def read_by(seed):
        with running.catalog.database.write() as connection:
            sql(connection, "UPDATE packs SET verified_ns = NULL")
        _, summary = check(running, read=True, share=0.4, seed=seed)
        packs = running.catalog.verification.live_packs(running.tenant)
        read = {pack.id for pack in packs if pack.verified_ns is not None}
        assert summary.packs_read == len(read)
        return read

    assert read_by(1) == read_by(1) != read_by(2)
    assert all(0 < len(read_by(seed)) < 12 for seed in (1, 2))


def test_a_flipped_bit_in_data_names_pack_chunk_backups_and_paths_and_counts_as_missing(running):
    stub = running.stub()
    first = back_up(stub, "www", FILES)
    second = back_up(stub, "other", {"copy/of/a": A})
    digest = first_chunk(stub, A)
    path, segment = damage_chunk(running, Role.DATA, digest)
    assert check(running)[0] == [], "a quick check reads no data"
    found, summary = check(running, read=True)
    assert paths(found) >= {(first.id, "a"), (second.id, "copy/of/a")}
    assert (first.id, "b") not in paths(found) or segment.offset in {
        s.offset for _, s in places(running, Role.DATA, first_chunk(stub, B))
    }
    damaged = next(each for each in found if each.kind == "path" and each.path == "copy/of/a")
    assert (damaged.pack, damaged.segment, damaged.dataset, damaged.number) == (
        path.name,
        segment.offset,
        "other",
        1,
    )
    assert damaged.chunk == digest.hex()
    (broken,) = [each for each in found if each.kind == "segment"]
    assert (broken.pack, broken.segment, broken.severity) == (path.name, segment.offset, "damage")
    assert summary.damage == len(damage(found)) == len(found)
    assert marks(running) == {(segment.pack, segment.offset)}
    again, _ = check(running)
    assert paths(again) == paths(found), "a later quick check still reports it"
    source = Source(stub, "www")
    assert source.missing(source.cut(A)[:1]) == source.cut(A)[:1]


def test_damage_that_no_backup_refers_to_any_more_is_not_reported(running):
    stub = running.stub()
    back_up(stub, "www", {"a": A})
    damage_chunk(running, Role.DATA, first_chunk(stub, A))
    assert damage(check(running, read=True)[0])
    back_up(stub, "www", {"a": A})
    found, summary = check(running, read=True)
    assert damage(found) == []
    assert [each.severity for each in found] == ["healed"]
    assert (summary.damage, summary.healed, summary.paths) == (0, 1, 0)
    assert restore(stub, "www").files == {"a": A}


def test_check_removes_a_wrong_damage_mark_and_reports_that(running):
    stub = running.stub()
    back_up(stub, "www", {"a": A})
    digest = first_chunk(stub, A)
    path, segment = damage_chunk(running, Role.DATA, digest)
    check(running, read=True)
    source = Source(stub, "www")
    assert source.missing(source.cut(A)[:1])
    flip(path, segment.offset + segment.length - 20)
    found, summary = check(running)
    assert [(each.kind, each.severity, each.segment) for each in found] == [
        ("cleared", "note", segment.offset)
    ]
    assert (summary.cleared, summary.damage) == (1, 0)
    assert marks(running) == set()
    assert source.missing(source.cut(A)[:1]) == []


@pytest.mark.parametrize("at", [0, 20, 47, -1, -20, -60])
def test_a_damaged_header_or_footer_is_damage_but_everything_restores_and_nothing_counts_as_missing(
    running, at
):
    stub = running.stub()
    back_up(stub, "www", FILES)
    (path,) = objects(running)
    flip(path, at)
    found, _ = check(running)
    assert [(each.kind, each.severity) for each in found] == [("footer", "damage")]
    assert running.catalog.packs.damaged_count(running.tenant) == 0
    assert restore(stub, "www").files == FILES
    source = Source(stub, "www")
    assert source.missing(source.cut(A)) == []


def test_a_damaged_footer_is_an_alarm_until_it_is_repaired_although_all_backups_are_complete(running):
    stub = running.stub()
    back_up(stub, "www", FILES)
    (path,) = objects(running)
    integrity = running.service._integrity
    flip(path, -20)
    check(running)
    integrity.look()
    integrity.look()
    assert not integrity.is_whole
    damage = running.catalog.packs.known_damage()[running.tenant]
    assert (damage.packs, damage.segments, damage.footers) == (0, 0, 1)
    assert damage_counts(stub) == (0, 0, 1)
    found, _ = check(running)
    assert [(each.kind, each.severity) for each in found] == [("footer", "damage")]
    flip(path, -20)
    found, summary = check(running)
    assert [(each.kind, each.severity) for each in found] == [("cleared", "note")]
    assert (summary.cleared, summary.damage) == (1, 0)
    assert marks(running) == set()
    integrity.look()
    assert integrity.is_whole
    assert damage_counts(stub) == (0, 0, 0)
    flip(path, -20)
    check(running)
    integrity.look()
    assert damage_counts(stub) == (0, 0, 1)
    others = running.stub("reader", tenant=running.make_tenant("theirs"))
    assert damage_counts(others) == (0, 0, 0), "damage is reported to its own tenant only"


def damage_counts(stub):
    said = stub.GetServerInfo(sv.GetServerInfoRequest()).condition
    return said.damaged_packs, said.damaged_segments, said.damaged_footers


def test_missing_and_truncated_packs_are_found_by_a_quick_check(running):
    stub = running.stub()
    first = back_up(stub, "one", {"a": A})
    second = back_up(stub, "two", {"b": B})
    cut, gone = (
        pack_file(running, s.pack)
        for data in (A, B)
        for _, s in places(running, Role.DATA, first_chunk(stub, data))
    )
    with cut.open("r+b") as file:
        file.truncate(500_000)
    gone.unlink()
    found, _ = check(running)
    assert {each.backup for each in found if each.backup} == {first.id, second.id}
    assert {each.kind for each in found if each.pack == gone.name and not each.backup} == {"pack"}
    kinds = [each.kind for each in found if each.pack == cut.name and not each.backup]
    assert kinds.count("footer") == 2, "size and footer"
    assert "segment" in kinds


def test_index_rows_that_are_missing_or_wrong_are_found(running):
    back_up(running.stub(), "www", FILES)
    assert check(running)[0] == []
    with running.catalog.database.write() as connection:
        sql(connection, "DELETE FROM chunks WHERE id_tail IN (SELECT id_tail FROM chunks LIMIT 1)")
        sql(
            connection,
            'UPDATE chunks SET "offset" = "offset" + 1 WHERE id_tail IN (SELECT id_tail FROM chunks LIMIT 1)',
        )
        sql(
            connection,
            "INSERT INTO chunks SELECT 0, 0, pack, 48, 100, 0, 1 FROM chunks LIMIT 1",
        )
    found, _ = check(running)
    (index,) = [each for each in found if each.kind == "index"]
    assert index.chunks == 3
    assert "lacks 1" in index.message
    assert "1 in another place" in index.message
    assert "names 1 that" in index.message


def test_records_that_are_missing_or_damaged_are_found(running):
    stub = running.stub()
    first = back_up(stub, "www", {"a": b"1"})
    second = back_up(stub, "www", {"a": b"2"})
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=first.id))
    records = objects(running, "records")
    for record in records:
        before = record.read_bytes()
        record.unlink()
        found, gap = check(running)[0]
        assert (found.kind, found.severity) == ("record", "damage")
        assert any(what in found.message for what in (first.id, second.id, "the tenant default"))
        assert (gap.kind, gap.severity) == ("record-missing", "damage")
        record.write_bytes(before)
        flip(record, 80)
        found, _ = check(running)
        assert {each.severity for each in found} == {"damage"}
        assert {each.object for each in found} == {"", str(record.relative_to(running.root / "store"))}
        record.write_bytes(before)
    assert check(running)[0] == []


def test_a_catalog_that_is_older_than_the_store_is_found(running):
    back_up(running.stub(), "www", {"a": b"1"})
    keys = running.keys.create("unknown", 1)
    records = running.root / "store" / "records" / keys.tenant.hex()
    records.mkdir(parents=True)
    (records / f"{1:012x}-{keys.tenant.hex()}").write_bytes(b"of the tenant")
    with running.catalog.database.write() as connection:
        sql(connection, "DELETE FROM backups")
    found, _ = check(running)
    assert {each.kind for each in damage(found)} == {"unknown-backup", "keys"}
    assert any(keys.tenant.hex() in each.message for each in found)


def test_a_tenant_with_damaged_keys_does_not_stop_the_check_of_others(running):
    other = running.make_tenant("other")
    back_up(running.stub(), "www", {"a": A})
    (key,) = objects(running, f"keys/{other.hex()}")
    flip(key, -1)
    damage_chunk(running, Role.DATA, first_chunk(running.stub(), A))
    found, summary = check(running, read=True)
    assert {each.kind for each in found if each.tenant == "other"} == {"keys"}
    assert {each.kind for each in found if each.tenant == "default"} == {"segment", "path"}
    assert summary.tenants == 2


def test_orphans_are_counted_but_are_not_damage(running):
    back_up(running.stub(), "www", {"a": A})
    (path,) = objects(running)
    stray = path.parent / (path.name[:2] + "0" * 30)
    stray.write_bytes(b"left by a crash")
    found, summary = check(running)
    assert found == []
    assert (summary.orphans, summary.orphan_bytes) == (1, 15)


def test_damage_in_pages_lists_and_attributes_is_named(running):
    stub = running.stub()
    xattrs = [pb.Xattr(name=b"user.big", value=noise(3000, 9))]
    source = Source(stub, "www")
    source.put_entries(pb.Entry(path="with-attributes", data=b"x", xattrs=xattrs))
    source.entries, source.bytes = 1, 1
    backup = source.commit()
    running.restart()
    assert check(running, read=True)[0] == []
    segments = {
        chunk.place.segment
        for pack in running.catalog.verification.live_packs(running.tenant)
        for chunk in kept(running).tenants.get(running.tenant).packs.footer(pack.id).chunks
    }
    assert len(segments) >= 2
    for segment in segments:
        path = pack_file(running, segment.pack)
        flip(path, segment.offset + segment.length - 20)
        found, _ = check(running, read=True)
        assert {each.backup for each in damage(found) if each.kind in {"path", "manifest"}} == {backup.id}
        flip(path, segment.offset + segment.length - 20)
        assert {each.kind for each in check(running)[0]} == {"cleared"}


def test_a_store_that_does_not_answer_is_not_damage_for_check(running, monkeypatch):
    back_up(running.stub(), "www", {"a": A})
    silent = kept(running)
    tenant = silent.tenants.get(running.tenant)
    (pack,) = running.catalog.verification.live_packs(running.tenant)

    class Mute(WrappedBlobs):
        """A store whose reads fail from an offset on."""

        def read(self, name, offset, length):
            if 48 < offset < 1_000_000:
                raise Unavailable("STORE_UNAVAILABLE", "the disk does not answer", retry_after_s=1)
            return super().read(name, offset, length)

    monkeypatch.setattr(tenant.packs, "_blobs", Mute(running.blobs))
    seen = Examiner(tenant, running.catalog, running.clock).read(pack)
    assert {fault.kind for fault in seen.faults} == {"unanswered"}
    assert marks(running) == set()
    (now,) = running.catalog.verification.live_packs(running.tenant)
    assert now.verified_ns is None


def test_a_sealed_chunk_with_a_wrong_digest_is_found(running):
    """Memory that failed before sealing leaves such a chunk."""
    tenant = kept(running).tenants.get(running.tenant)
    writer = PackWriter(running.blobs, tenant.keys)
    table = [ChunkRef(4, blake3(b"good").digest()), ChunkRef(4, blake3(b"what").digest())]
    writer.append(Role.DATA, table, Codec.RAW, b"goodbad!", 8)
    fence = running.catalog.gc_lease.acquire("a test", running.clock.now_ns(), 60)
    running.catalog.marks.begin_pack(running.tenant, fence, writer.pack, running.clock.now_ns())
    running.catalog.salvage.publish(running.tenant, fence, writer.finish(), (), running.clock.now_ns())
    found, _ = check(running, read=True)
    assert [(each.kind, each.pack, each.segment) for each in found] == [("segment", writer.pack.hex(), 48)]
    assert blake3(b"what").hexdigest() in found[0].message


def test_keys_of_a_tenant_whose_creation_was_interrupted_are_no_damage(running):
    """A tenant gets its keys first, and its record last."""
    made = running.keys.create("interrupted", 1)
    found, summary = check(running)
    assert [(each.kind, each.severity) for each in found] == [("keys", NOTE)]
    assert made.tenant.hex() in found[0].message
    assert "it has no data" in found[0].message
    assert summary.damage == 0
