"""Promises 3 and 5 on the wire: damage is named and never returned as data; tenants are isolated; hostile input is refused."""

import grpc
import pytest
import zstandard
from blake3 import blake3
from staddle.v1 import errors_pb2
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.error_table import CODES, code_of
from staddle_server.api.grpc.server import SERVICE, methods
from staddle_server.api.status import status_of
from staddle_server.base import errors
from staddle_server.base.types import TokenRole
from thin import (
    Part,
    Source,
    back_up,
    backups,
    begin,
    datasets,
    finish,
    info,
    large,
    messages,
    noise,
    reason,
    restore,
    small,
)


def _packs(running):
    return sorted((running.root / "store" / "packs").rglob("*/*/*"))


def _flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


# ------------------------------------------------------------------ damage


def test_a_damaged_chunk_is_named_by_path_the_rest_restores_and_the_next_backup_heals_it(running):
    stub = running.stub()
    files = {"a": noise(1_900_000, 1), "b": noise(1_900_000, 2), "c": noise(1_900_000, 3)}
    back_up(stub, "www", files)
    (pack,) = _packs(running)
    _flip(pack, 100_000)
    found = restore(stub, "www")
    assert [damage.path for damage in found.damages] == ["a"]
    assert found.files == {"b": files["b"], "c": files["c"]}
    assert found.end.damage_count == 1
    with pytest.raises(grpc.RpcError) as lost:
        stub.ReadRange(sv.ReadRangeRequest(dataset="www", path="a", length_bytes=10))
    assert lost.value.code() == grpc.StatusCode.DATA_LOSS
    assert reason(lost.value) == "DAMAGED"

    source = Source(stub, "www", kind=pb.BACKUP_KIND_INCREMENTAL, scope=pb.UPLOAD_SCOPE_CHANGES)
    assert [entry.path for entry in source.begun.damaged_base_entries] == ["a"]
    assert [
        e.path for e in stub.GetUpload(sv.GetUploadRequest(upload_id=source.upload.id)).damaged_base_entries
    ] == ["a"]
    missing = source.missing(source.cut(files["a"]))
    assert missing
    assert not source.missing(source.cut(files["c"]))
    source.put_file("a", files["a"])
    source.commit()
    healed = restore(stub, "www")
    assert healed.files == files
    assert healed.damages == []
    first = pb.BackupSelector(backup=found.backup.id)
    assert restore(stub, "www", backup=first).files == files, "the older backup is healed with it"


def test_a_lost_pack_is_damage_and_not_an_empty_backup(running):
    stub = running.stub()
    back_up(stub, "one", {"a": noise(300_000, 1)})
    back_up(stub, "two", {"b": noise(300_000, 2)})
    first = stub.GetBackup(sv.GetBackupRequest(dataset="one")).backup
    by_size = {pack: pack.stat().st_size for pack in _packs(running)}
    assert len(by_size) == 2
    victim = next(p for p in by_size if _holds(running, p, first))
    victim.unlink()
    found = restore(stub, "one")
    assert found.files == {}
    assert found.damages
    assert restore(stub, "two").files == {"b": noise(300_000, 2)}


def _holds(running, pack, backup):
    digest = bytes.fromhex(backup.manifest_digest)
    from staddle_server.store.pack import PackReader

    keys = running.keys.load(running.tenant)
    return any(
        ref.digest == digest
        for segment in PackReader(running.blobs, keys).scan(bytes.fromhex(pack.name))
        for ref in segment.table
    )


# ------------------------------------------------------------------ tenants and roles


def test_objects_of_another_tenant_are_not_found_and_its_chunks_are_missing(running):
    mine = running.stub()
    other = running.stub(tenant=running.make_tenant("other"))
    data = noise(500_000)
    backup = back_up(mine, "www", {"a": data})
    source = Source(mine, "www")
    assert datasets(other) == []
    calls = {
        "DATASET_NOT_FOUND": [
            lambda: restore(other, "www"),
            lambda: backups(other, "www"),
            lambda: other.ListEntries(sv.ListEntriesRequest(dataset="www")),
            lambda: other.ReadRange(sv.ReadRangeRequest(dataset="www", path="a")),
            lambda: other.DeleteBackup(sv.DeleteBackupRequest(dataset="www", backup=backup.id)),
        ],
        "UPLOAD_NOT_FOUND": [
            lambda: other.GetUpload(sv.GetUploadRequest(upload_id=source.upload.id)),
            lambda: other.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)),
            lambda: other.CommitUpload(sv.CommitUploadRequest(**source.id)),
            lambda: other.AbortUpload(sv.AbortUploadRequest(**source.id)),
            lambda: other.FindMissingChunks(sv.FindMissingChunksRequest(**source.id, digests=[bytes(32)])),
        ],
    }
    for expected, group in calls.items():
        for call in group:
            with pytest.raises(grpc.RpcError) as failed:
                call()
            assert failed.value.code() == grpc.StatusCode.NOT_FOUND
            assert reason(failed.value) == expected
    theirs = Source(other, "www")
    assert theirs.missing([data[:70_000]]) == [data[:70_000]]
    chunks = source.cut(data)
    assert source.missing(chunks) == []
    assert theirs.missing(chunks) == chunks
    assert theirs.upload.chunker.seed != source.upload.chunker.seed


ROLES = {
    "Backup": "writer",
    "BeginUpload": "writer",
    "GetUpload": "writer",
    "ResumeUpload": "writer",
    "CheckpointUpload": "writer",
    "RenewUpload": "writer",
    "CommitUpload": "writer",
    "AbortUpload": "writer",
    "ListUploads": "admin",
    "FindMissingChunks": "writer",
    "PutChunks": "writer",
    "PutEntries": "writer",
    "Restore": "reader",
    "ReadRange": "reader",
    "ListDatasets": "reader",
    "ListBackups": "reader",
    "GetBackup": "reader",
    "ListEntries": "reader",
    "ListChanges": "reader",
    "DeleteBackup": "admin",
    "UndeleteBackup": "admin",
    "SetHold": "admin",
    "ReleaseHold": "admin",
    "RetainBackup": "admin",
    "GetRetention": "reader",
    "SetRetention": "admin",
    "PlanRetention": "reader",
    "ApplyRetention": "admin",
    "ListRuns": "reader",
    "ReportRun": "writer",
    "SetExpectation": "admin",
    "DeleteExpectation": "admin",
    "ListExpectations": "reader",
    "GetStatus": "reader",
    "ListEvents": "reader",
    "GetServerInfo": "reader",
}


def _code(stub, name):
    described = SERVICE.methods_by_name[name]
    request = getattr(sv, described.input_type.name)()
    call = getattr(stub, name)
    try:
        if described.client_streaming:
            call(iter([request]))
        elif described.server_streaming:
            list(call(request))
        else:
            call(request)
    except grpc.RpcError as e:
        return e.code()
    return grpc.StatusCode.OK


def test_every_method_of_the_contract_has_a_role_and_no_other(running):
    assert set(ROLES) == set(SERVICE.methods_by_name)
    order = ["reader", "writer", "admin"]
    stubs = {role: running.stub(role) for role in order}
    nobody, wrong = running.stub_with(None), running.stub_with("staddle_" + "x" * 43)
    for name, needed in ROLES.items():
        for role, stub in stubs.items():
            allowed = order.index(role) >= order.index(needed)
            denied = _code(stub, name) == grpc.StatusCode.PERMISSION_DENIED
            assert denied is not allowed, (name, role)
        assert _code(nobody, name) == grpc.StatusCode.UNAUTHENTICATED
        assert _code(wrong, name) == grpc.StatusCode.UNAUTHENTICATED


def test_a_revoked_token_is_refused_at_once(running):
    stub = running.stub("reader", name="leaver")
    assert datasets(stub) == []
    running.catalog.tokens.revoke(running.tenant, "leaver", running.clock.now_ns())
    with pytest.raises(grpc.RpcError) as failed:
        datasets(stub)
    assert failed.value.code() == grpc.StatusCode.UNAUTHENTICATED


# ------------------------------------------------------------------ errors


def test_every_reason_of_the_contract_belongs_to_one_error_class_and_every_class_to_one_code():
    named = {
        name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name
    } - {"UNSPECIFIED"}
    classes = errors.StaddleError.__subclasses__()
    owners = [(reason, cls) for cls in classes for reason in cls.reasons]
    assert sorted(reason for reason, _ in owners) == sorted(named)
    assert set(CODES) == set(classes)
    for name, cls in owners:
        error = cls("words") if cls is errors.Damaged else cls(name, "words")
        status = status_of(error)
        assert status.code == grpc.StatusCode[code_of(error).name].value[0]


def test_a_status_with_long_parts_stays_under_three_kibibytes():
    error = errors.BadRequest(
        "BAD_FIELD", "é" * 10_000, retry_after_s=1.5, **{f"k{i}": "ü" * 5_000 for i in range(20)}
    )
    assert status_of(error).ByteSize() < 3 * 1024


# ------------------------------------------------------------------ hostile input


def _put(source, data, refs, raw=False):
    return source.stub.PutChunks(sv.PutChunksRequest(**source.id, chunks=refs, data=data, raw=raw))


def _ref(data, length=None):
    return pb.ChunkRef(digest=blake3(data).digest(), length_bytes=len(data) if length is None else length)


def test_put_chunks_stores_no_chunk_of_a_frame_with_a_wrong_digest(running):
    source = Source(running.stub(), "www")
    good, bad = noise(1000, 1), noise(1000, 2)
    with pytest.raises(grpc.RpcError) as failed:
        _put(source, zstandard.compress(good + bad), [_ref(good), _ref(noise(1000, 3))])
    assert reason(failed.value) == "DIGEST_MISMATCH"
    assert source.missing([good]) == [good]


@pytest.mark.parametrize(
    ("data", "refs"),
    [
        (zstandard.compress(bytes(100 << 20)), [_ref(bytes(1 << 20))]),
        (zstandard.compress(bytes(1 << 20)), [_ref(bytes(1 << 20)), _ref(bytes(1 << 20))]),
        (zstandard.compress(b"x" * 100) + b"behind", [_ref(b"x" * 100)]),
        (zstandard.compress(b"x" * 100) * 2, [_ref(b"x" * 100)]),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100), [_ref(b"x" * 100)]),
        (b"no frame at all", [_ref(b"x" * 100)]),
        (b"", [_ref(b"x" * 100)]),
    ],
    ids=["bomb", "short", "behind", "two frames", "no size", "no frame", "nothing"],
)
def test_broken_or_mismatching_frames_are_refused(running, data, refs):
    source = Source(running.stub(), "www")
    with pytest.raises(grpc.RpcError) as failed:
        _put(source, data, refs)
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(failed.value) in {"BAD_FRAME", "BAD_FIELD"}
    source.put_file("still", b"up")
    source.commit()


@pytest.mark.parametrize(
    "refs",
    [
        [],
        [pb.ChunkRef(digest=bytes(31), length_bytes=1)],
        [pb.ChunkRef(digest=bytes(32), length_bytes=0)],
        [pb.ChunkRef(digest=bytes(32), length_bytes=(1 << 20) + 1)],
        [pb.ChunkRef(digest=bytes(32), length_bytes=1 << 20)] * 3,
        [pb.ChunkRef(digest=bytes(32), length_bytes=1)] * 4097,
    ],
    ids=["none", "digest", "empty", "large", "over 2 MiB", "too many"],
)
def test_chunk_lists_out_of_their_limits_are_refused(running, refs):
    with pytest.raises(grpc.RpcError) as failed:
        _put(Source(running.stub(), "www"), b"x", refs, raw=True)
    assert reason(failed.value) == "BAD_FIELD"


BAD_PATHS = [
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "a/../b",
    "a/./b",
    "a\0b",
    "a/..",
    "x" * 1025,
    "/".join(["d" * 200] * 90),
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=range(len(BAD_PATHS)))
def test_paths_that_are_not_relative_and_plain_are_refused_everywhere(running, path):
    stub = running.stub()
    back_up(stub, "www", {"a": b"1"})
    source = Source(stub, "www")
    for call in (
        lambda: stub.Backup(messages([begin("www"), small(path, b"")])),
        lambda: stub.Backup(messages([begin("www"), Part(remove=pb.Remove(path=path))])),
        lambda: source.put_entries(pb.Entry(path=path, data=b""), number=1),
        lambda: restore(stub, "www", paths=[path]),
        lambda: stub.ListEntries(sv.ListEntriesRequest(dataset="www", path=path)),
        lambda: stub.ReadRange(sv.ReadRangeRequest(dataset="www", path=path, length_bytes=1)),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT, path
        assert reason(failed.value) == "BAD_FIELD"


F = pb.ENTRY_TYPE_FILE
BAD_ENTRIES = {
    "mode": pb.Entry(path="a", data=b"", mode=0o10000),
    "type": pb.Entry(path="a", type=99),
    "target": pb.Entry(path="a", type=pb.ENTRY_TYPE_SYMLINK),
    "content of a directory": pb.Entry(path="a", type=pb.ENTRY_TYPE_DIRECTORY, data=b"x"),
    "root that is a file": pb.Entry(path="", data=b"x"),
    "hole outside": pb.Entry(path="a", data=b"x", holes=[pb.Hole(offset_bytes=0, length_bytes=2)]),
    "holes out of order": pb.Entry(
        path="a",
        data=b"x" * 9,
        holes=[pb.Hole(offset_bytes=5, length_bytes=1), pb.Hole(offset_bytes=1, length_bytes=1)],
    ),
    "two paths": pb.Entry(path="a", raw_path=b"b", data=b""),
    "link group": pb.Entry(path="a", data=b"", link_group=bytes(65)),
    "xattr": pb.Entry(path="a", data=b"", xattrs=[pb.Xattr(name="user.x", value=bytes(65 * 1024))]),
    "twice the xattr": pb.Entry(path="a", data=b"", xattrs=[pb.Xattr(name="user.x")] * 2),
    "target of a file": pb.Entry(path="a", data=b"", link_target="b"),
    "device that is a file": pb.Entry(path="a", data=b"", device_major=1),
    "digest": pb.Entry(path="a", data=b"", file_digest=pb.FileDigest(blake3=b"x")),
    "both contents": pb.Entry(path="a", data=b"", content_from_base=True),
    "profile": pb.Entry(path="a", data=b"", profile=9),
}


@pytest.mark.parametrize("entry", BAD_ENTRIES.values(), ids=BAD_ENTRIES.keys())
def test_impossible_entries_are_refused_and_the_server_keeps_running(running, entry):
    stub = running.stub()
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages([begin("www"), Part(entry=entry), finish(1, 0)]))
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    back_up(stub, "www", {"a": b"1"})


BAD_STREAMS = {
    "nothing": [],
    "no begin": [small("a", b"")],
    "data first": [begin("www"), Part(data=sv.Data(data=b"x"))],
    "end first": [begin("www"), Part(entry_end=sv.EntryEnd())],
    "entry in an entry": [begin("www"), Part(entry=pb.Entry(path="a")), small("b", b"")],
    "finish in an entry": [begin("www"), Part(entry=pb.Entry(path="a")), finish(1, 0)],
    "begin twice": [begin("www"), begin("www")],
    "an empty part": [begin("www"), Part()],
    "continues nothing": [begin("www"), Part(entry=pb.Entry(path="a", continue_at_bytes=5))],
    "too many zeros": [begin("www"), Part(entry=pb.Entry(path="a")), Part(data=sv.Data(zero_bytes=1 << 40))],
    "zeros and data": [
        begin("www"),
        Part(entry=pb.Entry(path="a")),
        Part(data=sv.Data(zero_bytes=1, data=b"x")),
    ],
}


@pytest.mark.parametrize("parts", BAD_STREAMS.values(), ids=BAD_STREAMS.keys())
def test_parts_out_of_place_are_refused(running, parts):
    stub = running.stub()
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages(parts))
    assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    back_up(stub, "www", {"a": b"1"})
    assert len(backups(stub, "www")) == 1


@pytest.mark.parametrize("stated", ["size", "content id", "digest"])
@pytest.mark.parametrize("how", ["inline", "stream"])
def test_a_file_that_differs_from_its_stated_size_or_digest_is_refused(running, how, stated):
    stub = running.stub()
    data = noise(200_000)
    fields = {
        "size": {"content": pb.Content(size_bytes=len(data) + 1)},
        "content id": {"content": pb.Content(content_id=bytes(32))},
        "digest": {"file_digest": pb.FileDigest(blake3=bytes(32))},
    }[stated]
    if how == "inline":
        parts = [small("a", data, **fields)]
    elif stated == "digest":
        parts = list(large("a", data, **fields))
    else:
        end = sv.EntryEnd(size_bytes=1) if stated == "size" else sv.EntryEnd(content_id=bytes(32))
        parts = [Part(entry=pb.Entry(path="a")), Part(data=sv.Data(data=data)), Part(entry_end=end)]
    with pytest.raises(grpc.RpcError) as failed:
        stub.Backup(messages([begin("www"), *parts, finish(1, len(data))]))
    assert reason(failed.value) == "DIGEST_MISMATCH"
    assert info(failed.value).metadata["path"] == "a"


def test_the_digest_of_a_file_says_whether_client_or_server_vouches_for_it(running):
    stub = running.stub()
    data = noise(2_000_000)
    digest = pb.FileDigest(blake3=blake3(data).digest())
    source = Source(stub, "www")
    source.put_chunks(source.cut(data))
    source.put_entries(source.entry("claimed", data, file_digest=digest))
    source.commit()
    stub.Backup(
        messages(
            [
                begin("www", kind=pb.BACKUP_KIND_INCREMENTAL, scope=pb.UPLOAD_SCOPE_CHANGES),
                *large("verified", data, file_digest=digest),
                finish(1, len(data)),
            ]
        )
    )
    found = restore(stub, "www").entries
    assert found["claimed"].file_digest.origin == pb.DIGEST_ORIGIN_CLAIMED
    assert found["verified"].file_digest.origin == pb.DIGEST_ORIGIN_VERIFIED


def test_the_table_of_roles_matches_the_served_methods():
    table = methods(*(_Anything(),) * 5, events=_Anything())
    assert {name: method.role.name.lower() for name, method in table.items()} == ROLES
    # A monitor reads the metrics, and calls nothing.
    assert {role.name.lower() for role in TokenRole} - set(ROLES.values()) == {"monitor"}


class _Anything:
    def __getattr__(self, name):
        return name
