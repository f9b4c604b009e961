"""Entries as columns: the same as so many entries, and refused where an entry would be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import grpc
import pytest
from blake3 import blake3
from column_entries import (
    Kept,
    as_columns,
    as_stored,
    chunks_of,
    entries,
    put_columns,
    set_chunks,
    tree,
)
from extent import extent
from hypothesis import given
from staddle._protocol.columns import CHUNKS_MAX
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.convert_columns import changes_of, columns_of
from staddle_server.api.messages import decoder, put_entries
from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import CHUNKS_INLINE_MAX, ENTRIES_PER_CALL_MAX, FILE_BYTES_MAX
from staddle_server.manifest.column_checks import check_columns
from staddle_server.manifest.columns import CheckedColumns, entry_at
from staddle_server.manifest.content import store_attributes
from staddle_server.manifest.leaves import leaf_of
from staddle_server.manifest.pages import encode_leaf, leaf_page
from thin import Source, info, noise, reason, restore


def checked(columns: pb.EntryColumns) -> CheckedColumns:
    return check_columns(columns_of(columns, "changes[0].columns"))


@given(entries())
def test_columns_are_stored_as_the_same_entries_one_by_one(sent):
    kept = Kept()
    found = checked(as_columns(sent))
    stored = found.stored(partial(store_attributes, sink=kept))
    alone = Kept()
    expected = [as_stored(entry, alone) for entry in sent]
    assert list(stored) == expected
    assert kept == alone
    assert stored.data_bytes == sum(entry.content.size_bytes for entry in sent)
    assert leaf_page(leaf_of(stored.columns)) == encode_leaf(expected)
    assert found.refs == [(ref.length_bytes, ref.digest) for entry in sent for ref in entry.content.chunks]
    for at, entry in enumerate(expected):
        assert store_attributes(found[at], kept) == entry


def test_rare_fields_that_are_all_unset_are_none() -> None:
    """An entry has one form, or pages would end elsewhere."""
    sent = as_columns([each for each in tree() if not each.HasField("content")][:1])
    assert not sent.rare
    more = pb.EntryColumns()
    more.CopyFrom(sent)
    more.rare.add()
    more.rare_at.append(0)
    assert checked(more).columns == checked(sent).columns


@given(entries())
def test_files_with_a_missing_chunk_are_named_by_position(sent):
    found = checked(as_columns(sent))
    for at, entry in enumerate(sent):
        for ref in entry.content.chunks:
            assert at in found.lacking({ref.digest})
    assert found.lacking({bytes(32)}) == []


def test_a_client_and_the_server_agree_which_lists_of_chunks_fit():
    assert CHUNKS_MAX == CHUNKS_INLINE_MAX


def sample() -> pb.EntryColumns:
    """A directory with an empty file, a file, one of two chunks, a symlink and a device."""

    def made(path: str, kind: int, **fields: object) -> pb.Entry:
        numbers = {
            "mode": 0o644,
            "uid": 1,
            "gid": 2,
            "mtime_ns": -5,
            "ctime_ns": 6,
            "inode": 7,
            "owner": "root",
        }
        return pb.Entry(path=path, type=kind, **numbers, **fields)  # type: ignore[arg-type]

    files = [made(path, 1) for path in ("d/a", "d/b", "d/c")]
    for entry, lengths in zip(files, ([], [9], [1 << 20, 5]), strict=True):
        set_chunks(entry, lengths)
    others = [made("d/l", 3, link_target="a"), made("d/n", 5, device_major=1)]
    return as_columns([made("d", 2), *files, *others])


Spoil = Callable[[pb.EntryColumns], object]


def twice(field: str) -> Spoil:
    """One value more than there are entries."""
    return lambda m: getattr(m, field).append(1)


def put(field: str, at: int, value: object) -> Spoil:
    def spoil(m: pb.EntryColumns) -> None:
        values = getattr(m, field)
        if isinstance(values, bytes):
            setattr(m, field, values[:at] + bytes([value]) + values[at + 1 :])  # type: ignore[list-item]
        else:
            values[at] = value

    return spoil


def said(**fields: object) -> Spoil:
    return lambda m: [setattr(m, name, value) for name, value in fields.items()]


def paths(joined: bytes) -> Spoil:
    return said(paths=joined)


def ids(*digests: bytes) -> Spoil:
    return said(content_ids=b"".join(digests))


TWO = blake3(b"x").digest()
WRONG: dict[str, tuple[Spoil, str, str]] = {
    "no entries": (lambda m: m.Clear(), "types", ""),
    "too many entries": (said(types=b"\2" * (ENTRIES_PER_CALL_MAX + 1)), "types", ""),
    "a type that does not exist": (put("types", 1, 8), "types", ""),
    "a removal": (put("types", 1, 0), "types", ""),
    "a path too few": (paths(b"d\0d/a\0d/b\0d/c\0d/l"), "paths", ""),
    "a path too many": (paths(b"d\0d/a\0d/b\0d/c\0d/l\0d/n\0e"), "paths", ""),
    "a path twice": (paths(b"d\0d/a\0d/a\0d/c\0d/l\0d/n"), "paths", "d/a"),
    "paths out of order": (paths(b"d\0d/b\0d/a\0d/c\0d/l\0d/n"), "paths", "d/a"),
    "out of order as bytes are compared": (paths(b"d\0d/a-\0d/a/x\0d/c\0d/l\0d/n"), "paths", "d/a/x"),
    "an empty path behind others": (paths(b"d\0d/a\0\0d/c\0d/l\0d/n"), "paths", ""),
    "the root as a file": (lambda m: (paths(b"\0d/a\0d/b\0d/c\0d/l\0d/n")(m), put("types", 0, 7)(m)), "types", ""),
    "an absolute path": (paths(b"/d\0d/a\0d/b\0d/c\0d/l\0d/n"), "path", "/d"),
    "a path that leads out": (paths(b"d\0d/../a\0d/b\0d/c\0d/l\0d/n"), "path", "d/../a"),
    "a path of a dot": (paths(b"d\0d/.\0d/b\0d/c\0d/l\0d/n"), "path", "d/."),
    "a first path of dots": (paths(b"..\0d/a\0d/b\0d/c\0d/l\0d/n"), "path", ".."),
    "an empty component": (paths(b"d\0d//a\0d/b\0d/c\0d/l\0d/n"), "path", "d//a"),
    "a slash at the end": (paths(b"d\0d/a\0d/b\0d/c\0d/l\0d/n/"), "path", "d/n/"),
    "a slash at an end": (paths(b"d\0d/a/\0d/b\0d/c\0d/l\0d/n"), "path", "d/a/"),
    "a slash at a beginning": (paths(b"d\0/d/a\0d/b\0d/c\0d/l\0d/n"), "path", "/d/a"),
    "a component too long": (paths(b"d\0d/a\0d/b\0d/c\0d/l\0d/n" + b"x" * 1024), "path", "d/nx"),
    "a path too long": (paths(b"d\0d/a\0d/b\0d/c\0d/l\0d/n" + b"/x" * 8192), "path", "d/n/x"),
    "flags too few": (said(flags=b"\1"), "flags", ""),
    "an unknown flag": (said(flags=bytes([0, 8, 0, 0, 0, 0])), "flags", ""),
    "an incomplete file": (said(flags=bytes([0, 2, 0, 0, 0, 0])), "flags", "d/a"),
    "a mode over 07777": (put("modes", 2, 0o10000), "modes", "d/b"),
    **{
        f"one more of {field}": (twice(field), field, "")
        for field in ("modes", "uids", "gids", "mtimes_ns", "ctimes_ns", "inodes", "owners", "groups", "sizes")
    },
    "a size too few": (lambda m: m.sizes.pop(), "sizes", ""),
    "an owner without a name": (put("owners", 1, 2), "owners", ""),
    "a name twice": (lambda m: m.names.append("root"), "names", ""),
    "an empty name": (lambda m: m.names.append(""), "names", ""),
    "a name too long": (lambda m: m.names.__setitem__(0, "é" * 129), "owners", "d"),
    "a digest cut off": (lambda m: ids(m.content_ids[:-1])(m), "content_ids", ""),
    "a digest too many": (lambda m: ids(m.content_ids, TWO)(m), "content_ids", ""),
    "an empty file with another digest": (lambda m: ids(TWO, m.content_ids[32:])(m), "content_ids", "d/a"),
    "a size over the largest": (put("sizes", 2, FILE_BYTES_MAX + 1), "sizes", "d/c"),
    "a large file without its chunks": (put("sizes", 1, (1 << 20) + 1), "rare", "d/b"),
    "a profile that does not exist": (said(profile=9), "profile", ""),
    "a target too many": (said(link_targets=b"a\0b"), "link_targets", ""),
    "no target": (said(link_targets=b""), "link_targets", "d/l"),
    "a target too long": (said(link_targets=b"a" * 4097), "link_targets", "d/l"),
    "a position without fields": (lambda m: m.rare_at.append(5), "rare_at", ""),
    "fields without a position": (lambda m: m.rare.add(link_group=b"g"), "rare_at", ""),
    "positions that do not ascend": (put("rare_at", 1, 3), "rare_at", ""),
    "a position behind the end": (put("rare_at", 1, 6), "rare_at", ""),
    "a field that is a column": (lambda m: setattr(m.rare[1], "mode", 1), "rare[1].mode", ""),
    "a field of streams": (lambda m: setattr(m.rare[1], "continue_at_bytes", 1), "rare[1].continue_at_bytes", ""),
    "a size beside the chunks": (lambda m: setattr(m.rare[0].content, "size_bytes", 1), "rare[0].content", ""),
    "a device without a number": (lambda m: (m.rare.pop(), m.rare_at.pop()), "rare", "d/n"),
    "a number of what is no device": (lambda m: setattr(m.rare[0], "device_major", 1), "device", "d/c"),
    "a list of chunks at another entry": (put("rare_at", 0, 0), "rare", "d/c"),
    "a single chunk in a list": (lambda m: m.rare[0].content.chunks.pop(), "rare", "d/c"),
    "more chunks than fit": (lambda m: m.rare[0].content.chunks.extend([pb.ChunkRef(digest=TWO, length_bytes=1)] * 15), "rare", "d/c"),
    "a chunk of no bytes": (lambda m: setattr(m.rare[0].content.chunks[1], "length_bytes", 0), "rare", "d/c"),
    "a chunk with half a digest": (lambda m: setattr(m.rare[0].content.chunks[1], "digest", TWO[:16]), "rare", "d/c"),
    "a link group too long": (lambda m: setattr(m.rare[0], "link_group", bytes(65)), "link_group", "d/c"),
    "a hole outside": (lambda m: m.rare[0].holes.add(offset_bytes=1 << 20, length_bytes=6), "holes", "d/c"),
    "an attribute twice": (lambda m: m.rare[0].xattrs.extend([pb.Xattr(name="user.a")] * 2), "xattrs", "d/c"),
    "half a file digest": (lambda m: setattr(m.rare[0].file_digest, "blake3", TWO[:16]), "file_digest.blake3", ""),
}  # fmt: skip


BAD_PATHS = {
    "a dot behind another": b"\0.\0d",
    "dots behind another": b"\0..\0d",
    "a slash at the end of the last": b"\0a\0b/",
    "a component too long": b"\0a\0" + b"x" * 1025,
    "too many components": b"\0a\0" + b"/".join([b"x"] * 1025),
}


@pytest.mark.parametrize("name", BAD_PATHS)
def test_paths_are_looked_at_wherever_they_are(name):
    columns = pb.EntryColumns(paths=b"\0a\0b", types=b"\2\2\2")
    assert len(checked(columns)) == 3
    columns.paths = BAD_PATHS[name]
    with pytest.raises(BadRequest) as refused:
        checked(columns)
    assert refused.value.facts["field"] == "path"


def test_chunks_of_what_is_no_file_are_refused():
    chunks = [pb.ChunkRef(digest=TWO, length_bytes=1)] * 2
    rare = pb.Entry(content=pb.Content(chunks=chunks))
    columns = pb.EntryColumns(paths=b"d", types=b"\2", rare_at=[0], rare=[rare])
    with pytest.raises(BadRequest, match="only a file has content"):
        checked(columns)


def test_the_sample_is_accepted():
    assert len(checked(sample()).refs) == 3


@pytest.mark.parametrize("name", WRONG)
def test_wrong_columns_are_refused_with_the_entry_and_the_field(name):
    spoil, field, path = WRONG[name]
    columns = sample()
    spoil(columns)
    with pytest.raises(BadRequest) as refused:
        checked(columns)
    assert refused.value.reason == "BAD_FIELD"
    assert refused.value.facts["field"].endswith(field)
    assert refused.value.facts.get("path", "").startswith(path)
    assert path in refused.value.message


@pytest.mark.parametrize("spoil", [put("sizes", 2, 1 << 20), lambda m: ids(m.content_ids[:64], TWO)(m)])
def test_chunks_that_are_not_the_content_are_refused(spoil):
    columns = sample()
    spoil(columns)
    with pytest.raises(BadRequest) as refused:
        checked(columns)
    assert refused.value.reason == "DIGEST_MISMATCH"
    assert refused.value.facts["path"] == "d/c"


def test_a_column_that_is_left_out_is_unset_in_all_entries():
    columns = sample()
    optional = ("flags", "modes", "uids", "gids", "mtimes_ns", "ctimes_ns", "inodes", "owners", "groups")
    for field in optional:
        columns.ClearField(field)
    found = checked(columns).columns
    for at in range(6):
        entry = entry_at(found, at)
        assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.ctime_ns, entry.inode) == (None,) * 6
        assert (entry.owner, entry.group, entry.flags) == ("", "", 0)


# ------------------------------------------------------------------ the size of messages


def of_columns(*columns: pb.EntryColumns) -> bytes:
    changes = [sv.EntryChange(columns=each) for each in columns]
    return sv.PutEntriesRequest(upload_id="u", epoch=1, number=1, changes=changes).SerializeToString()


def many(count: int) -> pb.EntryColumns:
    return pb.EntryColumns(types=b"\2" * count, paths=b"\0".join(b"%08d" % number for number in range(count)))


@pytest.mark.parametrize("count", extent([1, ENTRIES_PER_CALL_MAX], [100, 1000]))
def test_the_weight_of_columns_grows_with_their_entries(count):
    weight = put_entries(of_columns(many(count))).weigh()
    assert 2048 * count < weight < 2048 * count + 8 * len(of_columns(many(count))) + 1024


AMPLIFIED: dict[str, bytes] = {
    "numbers": of_columns(pb.EntryColumns(types=b"\1", inodes=[1] * 300_000)),
    "names": of_columns(pb.EntryColumns(types=b"\1", names=["x"] * 60_000)),
    "positions": of_columns(pb.EntryColumns(types=b"\1", rare_at=[1] * 300_000)),
    "entries": of_columns(*[many(3000)] * 4),
    "types": of_columns(pb.EntryColumns(types=b"\1" * 100_000)),
    "attributes": of_columns(
        pb.EntryColumns(types=b"\2", rare_at=[0], rare=[pb.Entry(xattrs=[pb.Xattr()] * 300_000)])
    ),
}


@pytest.mark.parametrize("name", AMPLIFIED)
def test_columns_with_more_than_their_entries_can_have_are_refused_unread(name, monkeypatch):
    message = AMPLIFIED[name]
    monkeypatch.setattr("staddle_server.api.messages._put_entries", decoder_of_heads)
    with pytest.raises(BadRequest) as refused:
        put_entries(message).read()
    assert refused.value.reason == "BAD_FIELD"


def decoder_of_heads(data: bytes) -> sv.PutEntriesRequest:
    assert len(data) < 100, "the whole message was decoded"
    return decoder(sv.PutEntriesRequest)(data)


def test_an_entry_behind_another_field_of_its_change_is_counted_too(monkeypatch):
    monkeypatch.setattr("staddle_server.api.messages._put_entries", decoder_of_heads)
    entry = sv.EntryChange(entry=pb.Entry(path="a", xattrs=[pb.Xattr()] * 300_000)).SerializeToString()
    change = b"\x18\x00" + entry  # more comes first
    size = len(change)
    head = sv.PutEntriesRequest(upload_id="u", epoch=1, number=1).SerializeToString()
    length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
    message = head + b"\x22" + length + change
    with pytest.raises(BadRequest, match="limit is 262144"):
        put_entries(message).read()


def test_the_entries_of_all_changes_together_are_limited():
    gone = sv.EntryChange(remove=pb.Remove(path="a"))
    columns = sv.EntryChange(columns=many(ENTRIES_PER_CALL_MAX - 1))
    assert len(changes_of(sv.PutEntriesRequest(changes=[columns, gone]))) == 2
    for changes in ([columns, gone, gone], [gone] * (ENTRIES_PER_CALL_MAX + 1), [gone, gone, columns]):
        with pytest.raises(BadRequest, match="4096"):
            changes_of(sv.PutEntriesRequest(changes=changes))


# ------------------------------------------------------------------ a service


def test_a_backup_of_columns_equals_one_of_entries_and_restores(running):
    stub = running.stub()
    made = tree()
    roots = []
    for way in ("columns", "entries"):
        source = Source(stub, way)
        source.put_chunks(source.missing(chunks_of(made)))
        if way == "columns":
            assert not put_columns(source, as_columns(made[:100]), as_columns(made[100:])).incomplete
        else:
            source.put_entries(*made)
        source.entries = len(made)
        source.bytes = sum(entry.content.size_bytes for entry in made)
        roots.append(source.commit().manifest_digest)
    assert roots[0] == roots[1]
    found = restore(stub, "columns")
    assert len(found.entries) == len(made)
    assert found.files["d00000/00008"] == noise(13, 8)


def test_columns_out_of_order_entries_and_removals_mix_as_they_are_sent(running):
    stub = running.stub()
    made = tree()
    source = Source(stub, "www")
    source.put_chunks(source.missing(chunks_of(made)))
    gone = sv.EntryChange(remove=pb.Remove(path="d00050"))
    again = sv.EntryChange(entry=pb.Entry(path="d00100/00101", data=b"changed"))
    put_columns(source, as_columns(made[200:]), as_columns(made[:200]), gone, again)
    put_columns(
        source, as_columns([pb.Entry.FromString(each.SerializeToString()) for each in made[-1:]]), number=2
    )
    source.entries = len(made) + 2
    source.bytes = sum(entry.content.size_bytes for entry in made) + 7
    source.commit()
    found = restore(stub, "www")
    left = [entry.path for entry in made if not entry.path.startswith("d00050")]
    assert sorted(found.entries) == sorted(left)
    assert found.files["d00100/00101"] == b"changed"


@pytest.mark.parametrize("types", [(1, 2), (2,)], ids=["files", "directories alone"])
def test_columns_may_begin_before_the_end_of_those_before_them(running, types):
    stub = running.stub()
    made = [entry for entry in tree() if entry.type in types and not entry.content.size_bytes]
    roots = []
    for at in (0, len(made) // 2, len(made)):
        source = Source(stub, f"from {at}")
        first, later = made[:1] + made[at + 1 :], made[1 : at + 1]
        for number, part in enumerate((first, later), 1):
            if part:
                put_columns(source, as_columns(part), number=number)
        source.entries = len(made)
        roots.append(source.commit().manifest_digest)
    assert len(set(roots)) == 1


def test_files_that_lack_a_chunk_are_named_by_their_place_among_all_entries(running):
    source = Source(running.stub(), "www")
    made = tree()
    first = sv.EntryChange(entry=pb.Entry(path="a", type=2))
    answer = put_columns(source, first, as_columns(made[:50]), as_columns(made[50:]))
    expected = [at for at, entry in enumerate([pb.Entry(), *made]) if entry.content.size_bytes]
    assert list(answer.incomplete) == expected
    source.put_chunks(chunks_of(made))
    source.entries, source.bytes = len(made) + 1, sum(entry.content.size_bytes for entry in made)
    source.commit()


def test_a_replay_of_columns_changes_nothing_and_other_columns_are_no_replay(running):
    source = Source(running.stub(), "www")
    made = [entry for entry in tree() if entry.type == 2]
    for _ in range(2):
        put_columns(source, as_columns(made))
    with pytest.raises(grpc.RpcError) as other:
        put_columns(source, as_columns(made[:-1]))
    assert reason(other.value) == "REQUEST_ID_REUSED"
    source.entries = len(made)
    source.commit()


def test_a_call_with_one_wrong_column_changes_nothing(running):
    source = Source(running.stub(), "www")
    made = [entry for entry in tree() if entry.type == 2]
    wrong = as_columns(made)
    wrong.modes[2] = 0o10000
    with pytest.raises(grpc.RpcError) as refused:
        put_columns(source, as_columns(made), wrong)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert dict(info(refused.value).metadata) == {"field": "columns.modes", "path": "d00100"}
    with pytest.raises(grpc.RpcError) as many_:
        put_columns(source, many(3000), many(3000))
    assert reason(many_.value) == "BAD_FIELD"
    put_columns(source, as_columns(made))
    source.entries = len(made)
    source.commit()


def test_columns_survive_a_checkpoint_and_a_take_over(running):
    stub = running.stub()
    source = Source(stub, "www")
    made = tree()
    source.put_chunks(source.missing(chunks_of(made)))
    put_columns(source, as_columns(made[:120]))
    stub.CheckpointUpload(sv.CheckpointUploadRequest(**source.id))
    put_columns(source, as_columns(made[120:]), number=2)
    source.upload = stub.ResumeUpload(sv.ResumeUploadRequest(upload_id=source.upload.id)).upload
    durable = source.upload.durable
    assert (durable.entry_count, durable.put_entries_number) == (120, 1)
    assert durable.last_entry.path == made[119].path
    source.put_chunks(source.missing(chunks_of(made)))
    put_columns(source, as_columns(made[120:]), number=2)
    source.entries, source.bytes = len(made), sum(entry.content.size_bytes for entry in made)
    source.commit()
    assert len(restore(stub, "www").entries) == len(made)
