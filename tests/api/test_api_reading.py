"""Browsing and restoring: selections, views, pages, byte ranges."""

import grpc
import pytest
from blake3 import blake3
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import sort_key
from thin import (
    Part,
    back_up,
    backups,
    begin,
    content_id,
    datasets,
    finish,
    large,
    messages,
    noise,
    reason,
    restore,
    small,
)

TREE = {f"d{i}/e{j}/f{k}": bytes([i, j, k]) for i in range(5) for j in range(4) for k in range(6)}


@pytest.fixture
def stub(running):
    made = running.stub()
    back_up(made, "tree", TREE)
    return made


def _entries(stub, dataset="tree", **fields):
    found, token = [], ""
    while True:
        page = stub.ListEntries(sv.ListEntriesRequest(dataset=dataset, page_token=token, **fields))
        found += page.entries
        token = page.next_page_token
        if not token:
            return found


# ------------------------------------------------------------------ restore


def test_a_selection_restores_its_paths_and_everything_below(stub):
    found = restore(stub, "tree", paths=["d1/e1", "d3/e0/f2", "d1/e1/f0"])
    expected = {p: d for p, d in TREE.items() if p.startswith("d1/e1/") or p == "d3/e0/f2"}
    assert found.files == expected
    assert next(iter(found.entries)) == "d1/e1"


def test_an_exact_selection_restores_its_paths_only(stub):
    found = restore(stub, "tree", paths=["d1", "d3/e0/f2"], exact=True)
    assert list(found.entries) == ["d1", "d3/e0/f2"]


def test_a_missing_path_fails_before_anything_is_sent(stub):
    call = stub.Restore(sv.RestoreRequest(dataset="tree", paths=["d1", "d1/nothing"]))
    with pytest.raises(grpc.RpcError) as failed:
        next(iter(call))
    assert failed.value.code() == grpc.StatusCode.NOT_FOUND
    assert reason(failed.value) == "PATH_NOT_FOUND"


def test_entries_come_in_order_component_by_component(running):
    stub = running.stub()
    paths = ["a", "a b/c", "a-b", "a/z", "a/b/c", "b!", "b/x", "é", "日本"]
    back_up(stub, "odd", {p: b"" for p in paths if p != "a"})
    listed = [e.path for e in _entries(stub, "odd", recursive=True)]
    assert listed == sorted(listed, key=lambda p: sort_key(p.encode()))
    assert listed == list(restore(stub, "odd").entries)


def test_names_that_are_not_utf8_travel_as_bytes(running):
    stub = running.stub()
    raw = b"d/\xff\xfe name\n"
    parts = [begin("odd"), Part(entry=pb.Entry(raw_path=raw, data=b"x")), finish(1, 1)]
    stub.Backup(messages(parts))
    (_, entry) = _entries(stub, "odd", recursive=True)
    assert (entry.path, entry.raw_path) == ("", raw)
    read = stub.ReadRange(sv.ReadRangeRequest(dataset="odd", raw_path=raw, length_bytes=5))
    assert read.data == b"x"
    messages_ = list(stub.Restore(sv.RestoreRequest(dataset="odd", raw_paths=[raw])))
    assert messages_[0].parts[1].entry.raw_path == raw


def test_all_metadata_comes_back_unchanged(running):
    stub = running.stub()
    entry = pb.Entry(
        path="f",
        data=b"x" * 10_000,
        mode=0o6755,
        uid=2**32 - 1,
        gid=7,
        owner="olaf",
        group="gänge",
        mtime_ns=-1,
        ctime_ns=2**62,
        inode=2**64 - 1,
        link_group=b"g",
        xattrs=[
            pb.Xattr(name="user.a", value=b"\0\1"),
            pb.Xattr(raw_name=b"user.\xff", value=b"v" * 60_000),
        ],
        holes=[pb.Hole(offset_bytes=1, length_bytes=2), pb.Hole(offset_bytes=9_000, length_bytes=1_000)],
        read_again=True,
    )
    others = [
        pb.Entry(path="", type=pb.ENTRY_TYPE_DIRECTORY, mode=0o700),
        pb.Entry(path="l", type=pb.ENTRY_TYPE_SYMLINK, link_target="../anywhere"),
        pb.Entry(path="m", type=pb.ENTRY_TYPE_SYMLINK, raw_link_target=b"\xff"),
        pb.Entry(path="b", type=pb.ENTRY_TYPE_BLOCK_DEVICE, device_major=8, device_minor=2**32 - 1),
        pb.Entry(path="c", type=pb.ENTRY_TYPE_CHAR_DEVICE, device_major=1),
        pb.Entry(path="p", type=pb.ENTRY_TYPE_FIFO),
        pb.Entry(path="s", type=pb.ENTRY_TYPE_SOCKET),
    ]
    parts = [begin("meta"), Part(entry=entry), *[Part(entry=e) for e in others], finish(8, 10_000)]
    stub.Backup(messages(parts))
    found = restore(stub, "meta").entries
    for sent in [entry, *others]:
        got = found[sent.path]
        if sent.path == "f":
            sent.type = pb.ENTRY_TYPE_FILE
            sent.content.CopyFrom(got.content)
        assert got == sent


def test_the_view_basic_carries_no_bytes_and_references_carry_the_chunks(running):
    stub = running.stub()
    data = noise(9_000_000)
    stub.Backup(messages([begin("www"), *large("big", data), small("s", b"x"), finish(2, len(data) + 1)]))
    basic = restore_parts(stub, "www", sv.ENTRY_VIEW_BASIC)
    assert [p.WhichOneof("part") for p in basic] == ["header", "entry", "entry", "end"]
    parts = restore_parts(stub, "www", sv.ENTRY_VIEW_REFERENCES)
    refs = [ref for part in parts for ref in part.content.chunks]
    assert sum(ref.length_bytes for ref in refs) == len(data) + 1
    start = 0
    for ref in refs[:-1]:
        assert blake3(data[start : start + ref.length_bytes]).digest() == ref.digest
        start += ref.length_bytes
    big = _entries(stub, "www", view=sv.ENTRY_VIEW_REFERENCES)[0]
    assert list(big.content.chunks) == refs[:-1]
    assert not _entries(stub, "www")[0].content.chunks


def restore_parts(stub, dataset, view):
    return [p for m in stub.Restore(sv.RestoreRequest(dataset=dataset, view=view)) for p in m.parts]


def test_a_root_that_is_an_entry_comes_first_and_an_empty_backup_is_one(running):
    stub = running.stub()
    stub.Backup(messages([begin("empty"), finish(0, 0)]))
    assert restore(stub, "empty").entries == {}
    stub.Backup(
        messages(
            [begin("root"), Part(entry=pb.Entry(type=pb.ENTRY_TYPE_DIRECTORY)), small("a", b""), finish(2, 0)]
        )
    )
    assert list(restore(stub, "root").entries) == ["", "a"]
    assert [e.path for e in _entries(stub, "root", recursive=True)] == ["a"]


# ------------------------------------------------------------------ zeros and profiles


def test_counted_zeros_are_the_same_content_as_zero_bytes(running):
    stub = running.stub()
    data = noise(300_000) + bytes(5_000_000) + noise(10, 2) + bytes(40_000)
    by_bytes = stub.Backup(messages([begin("bytes"), *large("f", data), finish(1, len(data))])).backup
    parts = [
        begin("number"),
        Part(entry=pb.Entry(path="f")),
        Part(data=sv.Data(data=data[:300_000])),
        Part(data=sv.Data(zero_bytes=1_000_000)),
        Part(data=sv.Data(zero_bytes=4_000_000)),
        Part(data=sv.Data(data=noise(10, 2))),
        Part(data=sv.Data(zero_bytes=40_000)),
        Part(entry_end=sv.EntryEnd(size_bytes=len(data))),
        finish(1, len(data)),
    ]
    by_number = stub.Backup(messages(parts)).backup
    assert by_number.manifest_digest == by_bytes.manifest_digest
    assert restore(stub, "number").files == {"f": data}


def test_a_terabyte_of_zeros_costs_almost_nothing(running):
    stub = running.stub()
    gib = 1 << 30
    parts = [begin("zeros"), Part(entry=pb.Entry(path="f")), *[Part(data=sv.Data(zero_bytes=gib))] * 64]
    backup = stub.Backup(messages([*parts, Part(entry_end=sv.EntryEnd()), finish(1, 64 * gib)])).backup
    assert backup.data_bytes == 64 * gib
    assert backup.stored_bytes < 100_000
    read = stub.ReadRange(
        sv.ReadRangeRequest(dataset="zeros", path="f", offset_bytes=63 * gib, length_bytes=100)
    )
    assert read.data == bytes(100)


def test_the_fixed_profile_cuts_equal_pieces(running):
    stub = running.stub()
    data = noise(5_300_000)
    fixed = pb.CHUNKER_PROFILE_FIXED
    stub.Backup(messages([begin("disk"), *large("img", data, profile=fixed), finish(1, len(data))]))
    found = restore(stub, "disk")
    assert found.files == {"img": data}
    entry = _entries(stub, "disk", view=sv.ENTRY_VIEW_REFERENCES)[0]
    assert entry.content.profile == fixed
    assert [ref.length_bytes for ref in entry.content.chunks] == [1 << 20] * 5 + [5_300_000 - (5 << 20)]
    pieces = [data[s : s + (1 << 20)] for s in range(0, len(data), 1 << 20)]
    assert entry.content.content_id == content_id(pieces)


# ------------------------------------------------------------------ ranges


def test_a_range_returns_the_right_bytes_anywhere_in_a_file(running):
    stub = running.stub()
    data = noise(6_000_000)
    stub.Backup(messages([begin("www"), *large("f", data), small("e", b""), finish(2, len(data))]))
    for offset, length in [
        (0, 10),
        (5_999_990, 100),
        (1_000_000, 3 << 20),
        (6_000_000, 5),
        (1 << 40, 5),
        (17, 0),
    ]:
        request = sv.ReadRangeRequest(dataset="www", path="f", offset_bytes=offset, length_bytes=length)
        answer = stub.ReadRange(request)
        assert answer.data == data[offset : offset + length]
        assert answer.file_size_bytes == len(data)
    assert stub.ReadRange(sv.ReadRangeRequest(dataset="www", path="e", length_bytes=5)).data == b""
    with pytest.raises(grpc.RpcError) as long:
        stub.ReadRange(sv.ReadRangeRequest(dataset="www", path="f", length_bytes=(3 << 20) + 1))
    assert reason(long.value) == "BAD_FIELD"


def test_a_range_reads_only_its_own_segments(running):
    stub = running.stub()
    data = noise(40_000_000)
    stub.Backup(messages([begin("www"), *large("f", data), finish(1, len(data))]))
    running.restart()
    stub = running.stub()
    read = []
    inner = running.blobs.read

    def counting(name, offset, length):
        read.append(length)
        return inner(name, offset, length)

    running.blobs.read = counting
    stub.ReadRange(sv.ReadRangeRequest(dataset="www", path="f", offset_bytes=20_000_000, length_bytes=1_000))
    assert sum(read) < 5_000_000


def test_a_range_of_anything_but_a_file_is_refused(stub):
    with pytest.raises(grpc.RpcError) as directory:
        stub.ReadRange(sv.ReadRangeRequest(dataset="tree", path="d1", length_bytes=1))
    assert reason(directory.value) == "NOT_A_FILE"
    with pytest.raises(grpc.RpcError) as nothing:
        stub.ReadRange(sv.ReadRangeRequest(dataset="tree", path="nothing", length_bytes=1))
    assert reason(nothing.value) == "PATH_NOT_FOUND"


# ------------------------------------------------------------------ lists and pages


@pytest.mark.parametrize("page_size", [1, 7, 1000])
def test_pages_of_any_size_list_the_same(stub, page_size):
    everything = [e.path for e in _entries(stub, recursive=True, page_size=page_size)]
    assert everything == list(restore(stub, "tree").entries)
    assert [e.path for e in _entries(stub, page_size=page_size)] == [f"d{i}" for i in range(5)]
    below = [e.path for e in _entries(stub, path="d2/e1", page_size=page_size)]
    assert below == [f"d2/e1/f{k}" for k in range(6)]
    assert [e.path for e in _entries(stub, path="d2/e1/f0")] == ["d2/e1/f0"]


def test_all_pages_of_a_list_are_of_the_backup_that_the_first_one_selected(stub):
    first = stub.ListEntries(sv.ListEntriesRequest(dataset="tree", recursive=True, page_size=10))
    back_up(stub, "tree", {"only": b""})
    rest = stub.ListEntries(
        sv.ListEntriesRequest(dataset="tree", recursive=True, page_token=first.next_page_token)
    )
    assert rest.backup_id == first.backup_id
    assert [e.path for e in (*first.entries, *rest.entries)] == list(
        restore(stub, "tree", backup=pb.BackupSelector(backup=first.backup_id)).entries
    )


def test_a_page_token_is_bound_to_its_query_and_to_its_tenant(running, stub):
    token = stub.ListEntries(
        sv.ListEntriesRequest(dataset="tree", recursive=True, page_size=1)
    ).next_page_token
    other = running.stub(tenant=running.make_tenant("other"))
    back_up(other, "tree", TREE)
    flipped = token[:9] + ("A" if token[9] != "A" else "B") + token[10:]
    for client, request in [
        (stub, sv.ListEntriesRequest(dataset="tree", recursive=False, page_token=token)),
        (stub, sv.ListEntriesRequest(dataset="tree", recursive=True, path="d1", page_token=token)),
        (stub, sv.ListEntriesRequest(dataset="tree", recursive=True, page_token=flipped)),
        (stub, sv.ListEntriesRequest(dataset="tree", recursive=True, page_token="é" * 10)),
        (stub, sv.ListEntriesRequest(dataset="tree", recursive=True, page_token="A" * 100_000)),
        (other, sv.ListEntriesRequest(dataset="tree", recursive=True, page_token=token)),
    ]:
        with pytest.raises(grpc.RpcError) as failed:
            client.ListEntries(request)
        assert failed.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert reason(failed.value) == "BAD_PAGE_TOKEN"
    with pytest.raises(grpc.RpcError) as swapped:
        stub.ListDatasets(sv.ListDatasetsRequest(page_token=token))
    assert reason(swapped.value) == "BAD_PAGE_TOKEN"


def test_datasets_and_backups_are_paged(running):
    stub = running.stub()
    for index in range(5):
        back_up(stub, f"set-{index}", {"a": b""})
        back_up(stub, "many", {"a": bytes([index])})
    names, token = [], ""
    while True:
        page = stub.ListDatasets(sv.ListDatasetsRequest(page_size=2, page_token=token))
        assert len(page.datasets) <= 2
        names += [d.name for d in page.datasets]
        token = page.next_page_token
        if not token:
            break
    assert names == ["many", *[f"set-{i}" for i in range(5)]] == datasets(stub)
    numbers, token = [], ""
    while True:
        page = stub.ListBackups(sv.ListBackupsRequest(dataset="many", page_size=2, page_token=token))
        numbers += [b.number for b in page.backups]
        token = page.next_page_token
        if not token:
            break
    assert numbers == [5, 4, 3, 2, 1] == [b.number for b in backups(stub, "many")]
    with pytest.raises(grpc.RpcError) as large_page:
        stub.ListDatasets(sv.ListDatasetsRequest(page_size=1001))
    assert reason(large_page.value) == "BAD_FIELD"


def test_changes_name_what_differs_between_any_two_backups_in_pages(running):
    stub = running.stub()
    back_up(stub, "www", TREE)
    after = {**TREE, "d1/e1/f1": b"other", "new/one": b"1"}
    del after["d2/e2/f2"]
    parts = [begin("www"), *[small(p, d, mode=0o600 if p == "d0/e0/f0" else None) for p, d in after.items()]]
    stub.Backup(messages([*parts, finish(len(after), sum(map(len, after.values())))]))
    back_up(stub, "www", {"unrelated": b""})
    ids = [b.id for b in reversed(backups(stub, "www"))]

    def changes(a, b, size):
        found, token = [], ""
        while True:
            between = {"from_backup": pb.BackupSelector(backup=a), "to_backup": pb.BackupSelector(backup=b)}
            request = sv.ListChangesRequest(dataset="www", **between, page_size=size, page_token=token)
            page = stub.ListChanges(request)
            found += [(c.type, c.before.path or c.after.path) for c in page.changes]
            token = page.next_page_token
            if not token:
                return found

    forward = [
        (sv.CHANGE_TYPE_METADATA, "d0/e0/f0"),
        (sv.CHANGE_TYPE_CONTENT, "d1/e1/f1"),
        (sv.CHANGE_TYPE_REMOVED, "d2/e2/f2"),
        (sv.CHANGE_TYPE_ADDED, "new"),
        (sv.CHANGE_TYPE_ADDED, "new/one"),
    ]
    for size in (1, 2, 100):
        assert changes(ids[0], ids[1], size) == forward
    swapped = {sv.CHANGE_TYPE_ADDED: sv.CHANGE_TYPE_REMOVED, sv.CHANGE_TYPE_REMOVED: sv.CHANGE_TYPE_ADDED}
    assert changes(ids[1], ids[0], 100) == [(swapped.get(t, t), p) for t, p in forward]
    assert changes(ids[1], ids[1], 100) == []


def test_backups_are_named_by_unique_prefixes_and_by_latest(running):
    stub = running.stub()
    made = [back_up(stub, "www", {"a": bytes([i])}) for i in range(3)]
    for index, backup in enumerate(made):
        selected = restore(stub, "www", backup=pb.BackupSelector(backup=backup.id[:12].upper()))
        assert selected.files == {"a": bytes([index])}
    assert restore(stub, "www", backup=pb.BackupSelector(backup="latest")).files == {"a": b"\x02"}
    for text, expected in [("abc", "BAD_FIELD"), ("xyzw", "BAD_FIELD"), ("0" * 32, "BACKUP_NOT_FOUND")]:
        with pytest.raises(grpc.RpcError) as failed:
            restore(stub, "www", backup=pb.BackupSelector(backup=text))
        assert reason(failed.value) == expected
