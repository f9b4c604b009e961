"""Every limit of docs/protocol.md#limits that a caller can reach: a value at it is accepted, one over it is refused by name."""

import grpc
import pytest
from blake3 import blake3
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base import limits
from staddle_server.upload import missing as session_missing
from thin import Part, Source, back_up, begin, finish, reason

F, D, L = pb.ENTRY_TYPE_FILE, pb.ENTRY_TYPE_DIRECTORY, pb.ENTRY_TYPE_SYMLINK


def path_of(size: int) -> str:
    """A path of so many bytes, in components of 1,000."""
    return "/".join(["p" * 1000] * (size // 1001) + ["q" * (size % 1001)]).rstrip("/")


def entry(**fields):
    return lambda stub, n: put(stub, pb.Entry(**{name: make(n) for name, make in fields.items()}))


def put(stub, *entries: pb.Entry):
    source = Source(stub, "bounds")
    try:
        source.put_entries(*entries)
    finally:
        stub.AbortUpload(sv.AbortUploadRequest(**source.id))


def begun(**fields):
    def call(stub, n):
        made = {name: make(n) for name, make in fields.items()}
        upload = stub.BeginUpload(sv.BeginUploadRequest(**{"dataset": "bounds", **made})).upload
        stub.AbortUpload(sv.AbortUploadRequest(upload_id=upload.id, epoch=upload.epoch))

    return call


def find(stub, n):
    source = Source(stub, "bounds")
    stub.FindMissingChunks(
        sv.FindMissingChunksRequest(**source.id, digests=[blake3(b"%d" % i).digest() for i in range(n)])
    )


def chunks(count, total=None):
    """A call of `count` chunks, which have `total` bytes together."""

    def call(stub, n):
        many, size = count(n), (total or count)(n)
        lengths = [size // many + (at < size % many) for at in range(many)]
        data, refs, at = bytes(size), [], 0
        for length in lengths:
            refs.append(pb.ChunkRef(digest=blake3(data[at : at + length]).digest(), length_bytes=length))
            at += length
        source = Source(stub, "bounds")
        stub.PutChunks(sv.PutChunksRequest(**source.id, chunks=refs, data=data, raw=True))

    return call


def awaited(stub, n):
    """Entries that wait for n chunks."""
    source = Source(stub, "bounds")
    refs = [pb.ChunkRef(digest=at.to_bytes(32, "big"), length_bytes=1) for at in range(n)]
    for at in range(0, n, 30):
        source.put_entries(pb.Entry(path=f"f{at}", content=pb.Content(chunks=refs[at : at + 30])))


def parts(stub, n):
    first = sv.BackupRequest(parts=[begin("bounds"), Part(entry=pb.Entry(path="a"))])
    many = sv.BackupRequest(parts=[Part(data=sv.Data(data=b"x"))] * n)
    last = sv.BackupRequest(parts=[Part(entry_end=sv.EntryEnd()), finish(1, n)])
    stub.Backup(iter([first, many, last]))


def zeros(stub, n):
    made = [
        begin("bounds"),
        Part(entry=pb.Entry(path="a")),
        Part(data=sv.Data(zero_bytes=n)),
        Part(entry_end=sv.EntryEnd()),
    ]
    stub.Backup(iter([sv.BackupRequest(parts=[*made, finish(1, n)])]))


def xattr(n=1, name=6, value=0):
    return [pb.Xattr(name=f"{at:0{name}}", value=bytes(value)) for at in range(n)]


def of_one_mib(n):
    """Attributes with this encoded size in bytes."""
    made = xattr(16, 6, 65_000)
    # An array of two; 16 pairs, each of an array's head, a name of 6 and a value with heads of 2 and 3; no holes.
    used = 1 + 3 + 16 * (1 + 2 + 6 + 3 + 65_000) + 1
    made.append(pb.Xattr(name="z", value=bytes(n - 1 - used - (1 + 2 + 1 + 3))))
    return made


PAGED = {
    "datasets": lambda stub, n: stub.ListDatasets(sv.ListDatasetsRequest(page_size=n)),
    "backups": lambda stub, n: stub.ListBackups(sv.ListBackupsRequest(dataset="read", page_size=n)),
    "entries": lambda stub, n: stub.ListEntries(sv.ListEntriesRequest(dataset="read", page_size=n)),
    "changes": lambda stub, n: stub.ListChanges(sv.ListChangesRequest(dataset="read", page_size=n)),
}
BOUNDS = {
    "parts": (limits.PARTS_PER_MESSAGE_MAX, parts),
    "chunks of a call": (limits.CHUNKS_PER_CALL_MAX, chunks(lambda n: n)),
    "bytes of a call": (limits.PUT_CHUNKS_INFLATED_BYTES_MAX, chunks(lambda _: 3, lambda n: n)),
    "a chunk": (limits.CHUNK_BYTES_MAX, chunks(lambda _: 1, lambda n: n)),
    "digests": (limits.CHUNKS_PER_CALL_MAX, find),
    "changes of a call": (limits.ENTRIES_PER_CALL_MAX, lambda stub, n: put(stub, *(pb.Entry(path=f"f{at}", data=b"") for at in range(n)))),
    "zeros": (limits.ZERO_BYTES_MAX, zeros),
    "read": (limits.READ_RANGE_BYTES_MAX, lambda stub, n: stub.ReadRange(sv.ReadRangeRequest(dataset="read", path="a", length_bytes=n))),
    "selected paths": (limits.RESTORE_PATHS_MAX, lambda stub, n: list(stub.Restore(sv.RestoreRequest(dataset="read", paths=["a"] * n)))),
    "page of datasets": (limits.SHORT_PAGE_SIZE_MAX, PAGED["datasets"]),
    "page of backups": (limits.SHORT_PAGE_SIZE_MAX, PAGED["backups"]),
    "page of entries": (limits.PAGE_SIZE_MAX, PAGED["entries"]),
    "page of changes": (limits.PAGE_SIZE_MAX, PAGED["changes"]),
    "path": (limits.PATH_BYTES_MAX, entry(path=path_of, data=lambda _: b"")),
    "components": (limits.PATH_COMPONENTS_MAX, entry(path=lambda n: "/".join("c" * n), data=lambda _: b"")),
    "component": (limits.COMPONENT_BYTES_MAX, entry(path=lambda n: "c" * n, data=lambda _: b"")),
    "link target": (limits.LINK_TARGET_BYTES_MAX, entry(path=lambda _: "a", type=lambda _: L, link_target=lambda n: "t" * n)),
    "owner": (limits.OWNER_BYTES_MAX, entry(path=lambda _: "a", type=lambda _: D, owner=lambda n: "o" * n)),
    "group": (limits.OWNER_BYTES_MAX, entry(path=lambda _: "a", type=lambda _: D, group=lambda n: "o" * n)),
    "link group": (limits.LINK_GROUP_BYTES_MAX, entry(path=lambda _: "a", data=lambda _: b"", link_group=lambda n: b"g" * n)),
    "attributes": (limits.XATTRS_MAX, entry(path=lambda _: "a", data=lambda _: b"", xattrs=xattr)),
    "name of an attribute": (limits.XATTR_NAME_BYTES_MAX, entry(path=lambda _: "a", data=lambda _: b"", xattrs=lambda n: xattr(name=n))),
    "value of an attribute": (limits.XATTR_VALUE_BYTES_MAX, entry(path=lambda _: "a", data=lambda _: b"", xattrs=lambda n: xattr(value=n))),
    "attributes together": (limits.ATTRIBUTES_BYTES_MAX, entry(path=lambda _: "a", type=lambda _: D, xattrs=of_one_mib)),
    "holes": (
        limits.HOLES_MAX,
        entry(path=lambda _: "a", data=lambda _: bytes(100_000), holes=lambda n: [pb.Hole(offset_bytes=2 * at, length_bytes=1) for at in range(n)]),
    ),
    "dataset": (limits.DATASET_BYTES_MAX, begun(dataset=lambda n: "d" * n)),
    "host": (limits.HOST_BYTES_MAX, begun(host=lambda n: "h" * n, new_root=lambda _: True)),
    "root": (limits.ROOT_BYTES_MAX, begun(root=lambda n: "r" * n, new_root=lambda _: True)),
    "request id": (limits.REQUEST_ID_BYTES_MAX, begun(request_id=lambda n: "r" * n)),
    "fingerprint": (limits.FINGERPRINT_BYTES_MAX, begun(fingerprint=lambda n: "f" * n)),
    "tags": (limits.TAGS_MAX, begun(tags=lambda n: {f"{at}": "v" for at in range(n)})),
    "key of a tag": (limits.TAG_KEY_BYTES_MAX, begun(tags=lambda n: {"k" * n: "v"})),
    "value of a tag": (limits.TAG_VALUE_BYTES_MAX, begun(tags=lambda n: {"k": "v" * n})),
}  # fmt: skip


READS = {"read", "selected paths", *(name for name in BOUNDS if name.startswith("page of "))}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_value_at_a_limit_is_accepted_and_one_over_it_is_refused(running, name):
    most, call = BOUNDS[name]
    stub = running.stub()
    if name in READS:
        back_up(stub, "read", {"a": b"1"})
        back_up(stub, "read", {"a": b"22"})
    call(stub, most)
    with pytest.raises(grpc.RpcError) as refused:
        call(stub, most + 1)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(refused.value) == "BAD_FIELD"


def test_entries_wait_for_a_limited_number_of_chunks(running, monkeypatch):
    monkeypatch.setattr(session_missing, "MISSING_CHUNKS_MAX", 100)
    awaited(running.stub(), 100)
    with pytest.raises(grpc.RpcError) as refused:
        awaited(running.stub(), 101)
    assert reason(refused.value) == "BAD_FIELD"


def test_a_message_of_four_mebibytes_is_accepted_and_one_byte_more_is_refused(running):
    channel = grpc.insecure_channel(running.address)
    ask = channel.unary_unary("/staddle.v1.StaddleService/GetServerInfo")
    metadata = [("authorization", f"Bearer {running.token()}")]

    def padded(size):
        # An unknown field is skipped: two bytes of tag, four of length.
        return (
            b"\xfa\x7f"
            + bytes([(size >> shift) & 0x7F | (0x80 if shift < 21 else 0) for shift in (0, 7, 14, 21)])
            + bytes(size)
        )

    most = limits.MESSAGE_BYTES_MAX - 6
    assert len(padded(most)) == limits.MESSAGE_BYTES_MAX
    assert ask(padded(most), metadata=metadata)
    with pytest.raises(grpc.RpcError) as refused:
        ask(padded(most + 1), metadata=metadata)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    channel.close()


def test_numbers_that_are_negative_or_absurd_are_refused(running):
    stub = running.stub()
    source = Source(stub, "numbers")
    for fields in (
        {"device_major": 2**32 - 1, "type": F},
        {"mode": 2**32 - 1},
        {"holes": [pb.Hole(offset_bytes=2**63, length_bytes=2**63)]},
        {"holes": [pb.Hole(offset_bytes=0, length_bytes=2**64 - 1)]},
        {"type": -1},
        {"type": 99},
        {"profile": -7},
    ):
        with pytest.raises(grpc.RpcError) as refused:
            source.put_entries(pb.Entry(path="a", data=b"1", **fields), number=1)
        assert reason(refused.value) == "BAD_FIELD", fields
    for number in (0, 2, 2**63, 2**64 - 1):
        with pytest.raises(grpc.RpcError) as refused:
            stub.PutEntries(sv.PutEntriesRequest(**source.id, number=number))
        assert reason(refused.value) == "ENTRIES_OUT_OF_ORDER"
    for request in (
        sv.CommitUploadRequest(**source.id, entry_count=2**64 - 1, data_bytes=0),
        sv.CommitUploadRequest(**source.id, entry_count=0, data_bytes=2**64 - 1),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            stub.CommitUpload(request)
        assert reason(refused.value) == "COUNT_MISMATCH"
    source.number = 0
    source.put_file("a", b"1", mtime_ns=-(2**63), ctime_ns=2**63 - 1, inode=2**64 - 1)
    source.commit()
