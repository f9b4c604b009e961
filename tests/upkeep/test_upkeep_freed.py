"""The bytes that a retention plan frees by its deletions."""

from __future__ import annotations

import random

from policy_calls import apply, damage_chunk, delete, ids, plan, set_policy, several, tenant_of
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from staddle_server.manifest.references import references
from staddle_server.tenancy.chunk_reader import ChunkReader
from thin import Source, back_up, noise

# --- freed bytes


def test_chunks_of_deleted_backups_only_are_freed_to_the_byte(running):
    stub = running.stub()
    gone = back_up(stub, "www", {"a": noise(3_000_000, 1)}, kind=pb.BACKUP_KIND_FULL)
    back_up(stub, "www", {"a": noise(1_000_000, 2)}, kind=pb.BACKUP_KIND_FULL)
    set_policy(stub, keep_last=1)
    assert plan(stub).free_bytes == gone.stored_bytes > 3_000_000, "exactly its packs"
    assert not plan(stub, without_free_bytes=True).HasField("free_bytes")


def test_chunks_shared_with_other_backups_are_not_freed(running):
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
    assert plan(stub).free_bytes == alone_there, "backups already deleted are removed first"
    stub.SetHold(sv.SetHoldRequest(dataset="elsewhere", reason="x"))
    assert plan(stub).free_bytes == free, "but not while it is held"


def test_chunks_that_open_uploads_rely_on_are_not_freed(running):
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
    assert plan(stub).free_bytes == 0, "the server reported it as present to an open upload"
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    assert plan(stub).free_bytes > 1_000_000


def test_the_freed_bytes_equal_a_naive_count(running):
    """Backups of random files over few contents; every chunk of every manifest counted separately."""
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


def test_a_plan_whose_freed_bytes_are_unknown_for_damage_is_made_and_says_why(running):
    stub = running.stub()
    damaged = back_up(stub, "other", {"b": b"of its own"})
    made = several(running, stub, 3)
    damage_chunk(running, bytes.fromhex(damaged.manifest_digest), Role.MANIFEST)
    set_policy(stub, keep_last=1)
    shown = plan(stub)
    assert not shown.HasField("free_bytes")
    assert "damaged" in shown.free_bytes_unknown
    assert sorted(apply(stub, shown.plan_token).deleted_backup_ids) == sorted(ids(made[:2]))
