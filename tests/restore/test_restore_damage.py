"""Damage during an upload or a restore: only the damaged data is lost, and the rest continues."""

from itertools import pairwise

import grpc
import pytest
from blake3 import blake3
from staddle import Client, DamageError
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from thin import Source, back_up, backups, info, noise, reason, restore

MANY = {f"d{i % 7}/{'long' * 40}/f{i:04}": b"%d" % i for i in range(2800)}
DAMAGED = f"d3/{'long' * 40}/f1403"
BEFORE, BEHIND = f"d0/{'long' * 40}/f0007", f"d6/{'long' * 40}/f2799"


def place_of(running, role, digest):
    """The file and the offset of the segment with a chunk."""
    from staddle_server.store.keys import chunk_id, secrets_of

    keys = running.keys.load(running.tenant)
    name = chunk_id(secrets_of(keys).id_key, role, digest)
    (place,) = running.catalog.chunks.find(running.tenant, [name])[name]
    packs = running.root / "store" / "packs" / running.tenant.hex()
    (path,) = packs.rglob(place.segment.pack.hex())
    return path, place.segment


def damage(running, role, digest):
    path, segment = place_of(running, role, digest)
    data = bytearray(path.read_bytes())
    data[segment.offset + segment.length - 20] ^= 1
    path.write_bytes(data)


def a_leaf(running, backup, path):
    """The digest of the leaf with a path."""
    import msgspec
    from staddle_server.tenancy.chunk_reader import ChunkReader
    from staddle_server.tenancy.tenant import Tenants

    tenant = Tenants(running.blobs, running.catalog, running.keys).get(running.tenant)
    reader = ChunkReader(tenant, running.catalog)
    digest = bytes.fromhex(backup.manifest_digest)
    while (data := reader.read(digest))[0] == 2:
        _, children = msgspec.msgpack.decode(data[1:])
        key = path.replace(b"/", b"\0")
        digest = next(child[1] for child in children if child[0].replace(b"/", b"\0") >= key)
    assert digest != bytes.fromhex(backup.manifest_digest)
    return digest


def a_leaf_over_two_directories(running, backup):
    """The digest of a leaf that begins in one directory and ends in the next one: where leaves end depends on the tenant's keys.

    Its segment holds neither the root nor the first leaf.
    """
    others = (bytes.fromhex(backup.manifest_digest), a_leaf(running, backup, b""))
    places = [place_of(running, Role.MANIFEST, other) for other in others]
    for before, after in pairwise(sorted(MANY)):
        if before[:2] != after[:2]:
            leaf = a_leaf(running, backup, before.encode())
            if leaf != a_leaf(running, backup, after.encode()):
                continue
            if place_of(running, Role.MANIFEST, leaf) not in places:
                return leaf
    raise AssertionError("each directory begins with a leaf")


def test_a_damaged_page_of_the_base_costs_a_complete_backup_only_its_counts(running):
    stub = running.stub()
    first = back_up(stub, "www", MANY)
    damage(running, Role.MANIFEST, bytes.fromhex(first.manifest_digest))
    files = MANY | {"new": b"1"}
    second = back_up(stub, "www", files)
    assert second.kind == pb.BACKUP_KIND_INCREMENTAL
    assert second.changes.added == second.entry_count
    assert restore(stub, "www").files == files


def test_a_damaged_page_of_the_base_is_named_at_the_commit_of_changes_and_the_upload_stays_open(running):
    stub = running.stub()
    first = back_up(stub, "www", MANY)
    damage(running, Role.MANIFEST, a_leaf(running, first, DAMAGED.encode()))
    source = Source(stub, "www", kind=pb.BACKUP_KIND_INCREMENTAL, scope=pb.UPLOAD_SCOPE_CHANGES)
    source.put_file(DAMAGED, b"other")
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failed:
            source.commit()
        assert failed.value.code() == grpc.StatusCode.DATA_LOSS
        assert reason(failed.value) == "DAMAGED"
        assert "FULL" in failed.value.details()
    assert len(backups(stub, "www")) == 1
    found = source.state()
    assert found.state == pb.UPLOAD_STATE_OPEN
    stub.AbortUpload(sv.AbortUploadRequest(**source.id))
    back_up(stub, "www", MANY, kind=pb.BACKUP_KIND_FULL)
    assert restore(stub, "www").files == MANY


def test_damaged_content_of_a_base_is_requested_again_and_the_upload_stays_open(running):
    stub = running.stub()
    data, other = noise(1_500_000, 1), noise(1_500_000, 2)
    back_up(stub, "www", {"a": data, "b": other})
    source = Source(stub, "www")
    damage(running, Role.DATA, blake3(source.cut(data)[1]).digest())
    assert [found.path for found in restore(stub, "www").damages] == ["a"]
    with pytest.raises(grpc.RpcError) as refused:
        source.put_entries(
            pb.Entry(path="b", content_from_base=True), pb.Entry(path="a", content_from_base=True)
        )
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(refused.value) == "NOT_IN_BASE"
    assert info(refused.value).metadata["path"] == "a"
    source.put_entries(pb.Entry(path="b", content_from_base=True), number=1)
    source.put_file("a", data)
    source.entries, source.bytes = 2, 3_000_000
    source.commit()
    found = restore(stub, "www")
    assert found.files == {"a": data, "b": other}
    assert found.damages == []


def test_content_of_a_base_with_a_damaged_page_is_requested_again(running):
    stub = running.stub()
    first = back_up(stub, "www", MANY)
    damage(running, Role.MANIFEST, a_leaf(running, first, DAMAGED.encode()))
    source = Source(stub, "www")
    with pytest.raises(grpc.RpcError) as refused:
        source.put_entries(pb.Entry(path=DAMAGED, content_from_base=True))
    assert reason(refused.value) == "NOT_IN_BASE"
    source.number = 0
    source.put_file(DAMAGED, b"other")
    source.commit()
    assert restore(stub, "www").files == {DAMAGED: b"other"}


@pytest.mark.parametrize("exact", [False, True])
def test_a_selection_with_one_damaged_path_restores_the_others(running, exact):
    stub = running.stub()
    backup = back_up(stub, "www", MANY)
    damage(running, Role.MANIFEST, a_leaf(running, backup, DAMAGED.encode()))
    found = restore(stub, "www", paths=[BEFORE, DAMAGED, BEHIND], exact=exact)
    assert set(found.files) >= {BEFORE, BEHIND}
    assert DAMAGED not in found.files
    # Two where DAMAGED ends its page: the next one might hold something below it, and lies in the same segment.
    assert 1 <= len(found.damages) <= 2


def test_a_tenant_with_damaged_keys_does_not_stop_the_server_from_starting(running):
    other = running.make_tenant("other")
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    running.stop()
    (key,) = (running.root / "store" / "keys" / other.hex()).iterdir()
    data = bytearray(key.read_bytes())
    data[-1] ^= 1
    key.write_bytes(data)
    running.start()
    assert restore(running.stub(), "www").files == {"a": b"1"}
    with pytest.raises(grpc.RpcError) as failed:
        back_up(running.stub(tenant=other), "www", {"a": b"1"})
    assert failed.value.code() == grpc.StatusCode.DATA_LOSS


def test_a_backup_without_its_only_page_is_damaged_for_every_request(running, tmp_path):
    backup = back_up(running.stub(), "www", {"a": b"1"})
    damage(running, Role.MANIFEST, bytes.fromhex(backup.manifest_digest))
    paths = ["not/in/this/backup", "nor/that"]
    with Client(running.address, token=running.token()) as client, pytest.raises(DamageError):
        client.restore("www", tmp_path / "target", paths=paths)


def test_a_lost_page_that_reaches_beyond_an_excluded_directory_is_named(running, tmp_path):
    stub = running.stub()
    backup = back_up(stub, "www", MANY)
    damage(running, Role.MANIFEST, a_leaf_over_two_directories(running, backup))
    before = [found.path for found in restore(stub, "www").damages]
    excluded = before[0].partition("/")[0]
    lost = max(path for path in before if path.startswith(excluded))
    target = tmp_path / "target"
    with Client(running.address, token=running.token()) as client, pytest.raises(DamageError) as failed:
        client.restore("www", target, exclude=[f"/{excluded}/"])
    assert any(not path.startswith(excluded) and not (target / path).exists() for path in MANY)
    assert lost in [problem.path for problem in failed.value.report.problems]
