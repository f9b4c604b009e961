"""Entries of all kinds for tests of columns, as messages, and what a server makes of them one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from blake3 import blake3
from hypothesis import strategies as st
from staddle._protocol.columns import EntryRow, columns_of, row_of
from staddle.chunking import content_id
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api import convert
from staddle_server.base.types import Content, Entry, EntryType, sort_key
from staddle_server.manifest.content import store_attributes
from thin import Source, noise

CDC = pb.CHUNKER_PROFILE_CONTENT_DEFINED
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
TIMES = st.integers(-(2**63), 2**63 - 1)
NAMES = st.sampled_from([b"a", b"b", b"a.b", b".x", b"..x", b"a-", b"\xff\xfe", "é".encode(), b"x" * 1024])
PATHS = st.lists(NAMES, max_size=4).map(b"/".join)


class Kept(dict[bytes, bytes]):
    """A sink of pages."""

    def write(self, data: bytes) -> bytes:
        digest = blake3(data).digest()
        self[digest] = data
        return digest


def digest(number: int) -> bytes:
    return blake3(b"%d" % number).digest()


def set_chunks(entry: pb.Entry, lengths: Sequence[int]) -> None:
    refs = [(length, digest(length)) for length in lengths]
    entry.content.size_bytes = sum(lengths)
    entry.content.content_id = content_id(refs)
    entry.content.profile = CDC
    for length, each in refs:
        entry.content.chunks.add(length_bytes=length, digest=each)


@st.composite
def one_entry(draw: st.DrawFn, path: bytes) -> pb.Entry:
    kind = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 5, 6, 7])) if path else 2
    entry = pb.Entry(type=kind)
    convert.set_name(entry, "path", path)
    entry.mode, entry.uid, entry.gid = draw(st.integers(0, 0o7777)), draw(U32), draw(U32)
    entry.mtime_ns, entry.ctime_ns, entry.inode = draw(TIMES), draw(TIMES), draw(U64)
    entry.owner, entry.group = (
        draw(st.sampled_from(["", "root", "é" * 128])),
        draw(st.sampled_from(["", "wheel"])),
    )
    entry.read_again = draw(st.booleans())
    if kind == EntryType.FILE:
        set_chunks(entry, draw(st.lists(st.integers(1, 2**20), max_size=16)))
        entry.link_group = draw(st.sampled_from([b"", b"g"]))
        size = entry.content.size_bytes
        if size > 9 and draw(st.booleans()):
            entry.holes.add(offset_bytes=2, length_bytes=size - 3)
    elif kind == EntryType.DIRECTORY:
        entry.incomplete = draw(st.booleans())
    elif kind == EntryType.SYMLINK:
        convert.set_name(entry, "link_target", draw(st.sampled_from([b"..", b"\xff", b"t" * 4096])))
    elif kind in {EntryType.CHAR_DEVICE, EntryType.BLOCK_DEVICE}:
        entry.device_major, entry.device_minor = draw(U32), draw(st.sampled_from([0, 7]))
    if draw(st.integers(0, 5)) == 0:
        for each in draw(st.sets(st.sampled_from([b"user.a", b"user.b", b"\xff"]), min_size=1)):
            convert.set_name(entry.xattrs.add(value=b"v" * draw(st.sampled_from([0, 9, 3000]))), "name", each)
    return entry


@st.composite
def entries(draw: st.DrawFn) -> list[pb.Entry]:
    """Entries in order, at least one."""
    paths = sorted(draw(st.sets(PATHS, min_size=1, max_size=12)), key=sort_key)
    return [draw(one_entry(path)) for path in paths]


def as_columns(sent: Iterable[pb.Entry]) -> pb.EntryColumns:
    """As a client encodes them."""
    rows = []
    for entry in sent:
        row = row_of(entry, [(ref.length_bytes, ref.digest) for ref in entry.content.chunks])
        assert row is not None
        rows.append(row)
    return columns_of(rows, CDC)


def as_stored(message: pb.Entry, kept: Kept) -> Entry:
    """What a page holds of an entry that was sent as a message."""
    sent = convert.sent_of(message)
    entry: Entry = sent.entry
    if entry.type is EntryType.FILE:
        refs = tuple(sent.refs or ())
        size = sum(ref.length for ref in refs)
        content = Content(size, content_id(refs), sent.profile, refs)
        entry = msgspec.structs.replace(entry, content=content)
    return store_attributes(entry, kept)


def one_column(entry: pb.Entry) -> pb.EntryColumns:
    """A listed entry as columns of its own, as any server may send it."""
    row = EntryRow(
        path=entry.raw_path or entry.path.encode(),
        type=entry.type or pb.ENTRY_TYPE_FILE,
        flags=entry.read_again + 2 * entry.incomplete + 4 * entry.implied,
        **{
            name: getattr(entry, name) if entry.HasField(name) else None
            for name in ("mode", "uid", "gid", "mtime_ns", "ctime_ns", "inode")
        },
        owner=entry.owner,
        group=entry.group,
        size_bytes=entry.content.size_bytes,
        content_id=entry.content.content_id or bytes(32),
        link_target=entry.raw_link_target or entry.link_target.encode(),
        rare=pb.Entry(
            link_group=entry.link_group,
            device_major=entry.device_major,
            device_minor=entry.device_minor,
            xattrs=entry.xattrs,
            holes=entry.holes,
            file_digest=entry.file_digest if entry.HasField("file_digest") else None,
        ),
    )
    return columns_of([row], CDC)


BAD_PATHS = ("../x", "/etc/x", "a/../../x", ".", "a//b", "x" * 1025)


def listed_columns(**fields: Any) -> pb.EntryColumns:
    """The columns of a directory and a file, with other values for some."""
    honest: dict[str, Any] = {"paths": b"d\0f", "types": b"\2\1", "sizes": [1], "content_ids": bytes(32)}
    return pb.EntryColumns(**honest | fields)


BAD_COLUMNS: dict[str, pb.EntryColumns] = {
    **{f"columns with the path {path[:20]!r}": listed_columns(paths=path.encode() + b"\0z") for path in BAD_PATHS},
    **{f"columns that end with the path {path[:20]!r}": listed_columns(paths=b".a\0" + path.encode()) for path in BAD_PATHS},
    "columns of nothing": pb.EntryColumns(),
    "columns of too many entries": pb.EntryColumns(types=bytes([pb.ENTRY_TYPE_DIRECTORY]) * 5000, paths=b"\0".join(b"%04d" % n for n in range(5000))),
    "a million paths": listed_columns(paths=b"a\0" * 10**6),
    "columns of an unknown type": listed_columns(types=b"\2\x63"),
    "a path more than types": listed_columns(paths=b"d\0f\0g"),
    "columns out of order": listed_columns(paths=b"f\0d"),
    "columns with a path twice": listed_columns(paths=b"d\0d"),
    "columns out of order by component": listed_columns(paths=b"d-\0d/f"),
    "flags of more entries": listed_columns(flags=b"\0\0\0"),
    "modes of fewer entries": listed_columns(modes=[1]),
    "inodes of a million entries": listed_columns(inodes=[1] * 10**6),
    "sizes of more files": listed_columns(sizes=[1, 2]),
    "half a content id": listed_columns(content_ids=bytes(16)),
    "an owner without a name": listed_columns(owners=[0, 1]),
    "a name too long": listed_columns(names=["x" * 257], owners=[1, 0]),
    "targets without links": listed_columns(types=b"\2\3", sizes=[], content_ids=b""),
    "a target too long": listed_columns(types=b"\2\3", sizes=[], content_ids=b"", link_targets=b"x" * 4097),
    "a device without a number": listed_columns(types=b"\2\5", sizes=[], content_ids=b""),
    "rare fields of no entry": listed_columns(rare_at=[2], rare=[pb.Entry(link_group=b"g")]),
    "rare fields without a position": listed_columns(rare=[pb.Entry(link_group=b"g")]),
    "rare fields twice": listed_columns(rare_at=[1, 1], rare=[pb.Entry(link_group=b"g")] * 2),
    "too many rare holes": listed_columns(rare_at=[1], rare=[pb.Entry(holes=[pb.Hole()] * 40_000)]),
}  # fmt: skip


def put_columns(
    source: Source, *changes: pb.EntryColumns | sv.EntryChange, number: int = 1
) -> sv.PutEntriesResponse:
    all_ = [sv.EntryChange(columns=each) if isinstance(each, pb.EntryColumns) else each for each in changes]
    return source.stub.PutEntries(sv.PutEntriesRequest(**source.id, number=number, changes=all_))


def tree(count: int = 300) -> list[pb.Entry]:
    """Directories of files, each of which is one chunk, and a link."""
    made = []
    for at in range(count):
        if at % 50 == 0:
            made.append(pb.Entry(path=f"d{at:05}", type=2))
        made.append(pb.Entry(path=f"d{at - at % 50:05}/{at:05}", type=1))
        data = b"" if at % 7 == 0 else noise(5 + at % 90, at)
        made[-1].content.size_bytes = len(data)
        made[-1].content.content_id = blake3(data).digest()
        if data:
            made[-1].content.chunks.add(length_bytes=len(data), digest=blake3(data).digest())
    made.append(pb.Entry(path="z", type=3, link_target="d00000"))
    for at, entry in enumerate(made):
        entry.mode, entry.uid, entry.gid, entry.inode = 0o755, 0, 0, at
        entry.mtime_ns, entry.ctime_ns, entry.read_again = at, at, at % 11 == 0
    return made


def chunks_of(made: list[pb.Entry]) -> list[bytes]:
    return [noise(5 + at % 90, at) for at in range(len(made)) if at < 300 and at % 7]
