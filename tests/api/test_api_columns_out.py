"""Entries in columns on the way out: the same entries as without, and pieces while the client has their segments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import grpc
import pytest
from blake3 import blake3
from column_entries import (
    as_columns,
    chunks_of,
    one_column,
    put_columns,
    tree,
)
from extent import extent
from hypothesis import example, given
from hypothesis import strategies as st
from staddle._errors import ProtocolError
from staddle._protocol.columns import entry_of_row, rows_in
from staddle._protocol.convert import entry_of
from staddle._protocol.restore_reader import DataEvent, EntryEvent, is_file, read_restore
from staddle._protocol.segments import Segments
from staddle._types.entries import Entry
from staddle.chunking import EMPTY_CONTENT_ID
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api import encoding
from staddle_server.api.grpc import reads
from staddle_server.base.types import ChunkRef, Content, EntryType, Role
from staddle_server.base.types import Entry as ServerEntry
from staddle_server.restore.restore import Event, SentEnd, SentEntry, SentPiece, SentSegment
from staddle_server.restore.stored_segments import Piece
from staddle_server.store.frame import Codec
from staddle_server.store.pack import StoredSegment
from thin import Source, info, noise


@pytest.fixture
def mixed(running):
    """A backup of all kinds of entries, of which some lack values that others have."""
    stub = running.stub()
    source = Source(stub, "www")
    made = tree()
    source.put_chunks(source.missing(chunks_of(made)))
    put_columns(source, as_columns(made))
    odd = [
        pb.Entry(path="d00000/00003", data=b"thin"),
        pb.Entry(
            path="d00050/00051",
            data=b"fixed",
            profile=pb.CHUNKER_PROFILE_FIXED,
            mode=0o600,
            uid=0,
            gid=0,
            mtime_ns=1,
            ctime_ns=1,
            inode=1,
        ),
        pb.Entry(path="n", type=5, device_major=1, device_minor=3, owner="root"),
        pb.Entry(
            path="x", data=b"1", xattrs=[pb.Xattr(name="user.large", value=bytes(60_000))], link_group=b"g"
        ),
        pb.Entry(path="below/nothing", data=b"", read_again=True),
    ]
    source.number = 1
    source.put_entries(*odd)
    source.entries = len(made) + len(odd)
    sent = [*made, *odd]
    source.bytes = sum(len(entry.data) or entry.content.size_bytes for entry in sent)
    source.commit()
    return stub


def values(listed: list[pb.Entry]) -> list[Entry]:
    return [entry_of(each) for each in listed]


def test_a_restore_in_columns_has_the_same_entries(mixed):
    request = sv.RestoreRequest(dataset="www", view=sv.ENTRY_VIEW_BASIC)
    parts = [part for response in mixed.Restore(request) for part in response.parts]
    plain = values([part.entry for part in parts if part.HasField("entry")])
    request.columns = True
    in_columns = [part for response in mixed.Restore(request) for part in response.parts]
    assert not any(part.HasField("entry") for part in in_columns)
    found = [
        entry_of_row(row) for part in in_columns if part.HasField("columns") for row in rows_in(part.columns)
    ]
    assert found == plain
    fixed = [part.columns for part in in_columns if part.columns.profile == pb.CHUNKER_PROFILE_FIXED]
    assert [b"d00050/00051" in columns.paths for columns in fixed] == [True]
    assert in_columns[-1].end == parts[-1].end
    assert len(in_columns) < len(parts) / 10


@pytest.mark.parametrize("page_size", extent([7, 1000], [1, 50]))
def test_a_list_in_columns_has_the_same_entries_and_pages(mixed, page_size):
    def listed(*, columns: bool) -> tuple[list[Entry], int]:
        request = sv.ListEntriesRequest(dataset="www", recursive=True, page_size=page_size, columns=columns)
        found: list[Entry] = []
        pages = 0
        while True:
            page = mixed.ListEntries(request)
            rows = [entry_of_row(row) for each in page.columns for row in rows_in(each)]
            assert len(rows) + len(page.entries) <= page_size
            found += [*values(page.entries), *rows]
            pages += 1
            if not page.next_page_token:
                return found, pages
            request.page_token = page.next_page_token

    assert listed(columns=True) == listed(columns=False)


def test_columns_are_refused_with_views_that_they_cannot_have(mixed):
    for view in (sv.ENTRY_VIEW_DATA, sv.ENTRY_VIEW_REFERENCES):  # DATA without segments
        with pytest.raises(grpc.RpcError) as refused:
            list(mixed.Restore(sv.RestoreRequest(dataset="www", view=view, columns=True)))
        assert info(refused.value).metadata["field"] == "columns"
    with pytest.raises(grpc.RpcError) as refused:
        mixed.ListEntries(sv.ListEntriesRequest(dataset="www", view=sv.ENTRY_VIEW_REFERENCES, columns=True))
    assert info(refused.value).metadata["field"] == "columns"


def stored(number: int) -> StoredSegment:
    data = noise(900, number)
    return StoredSegment(Role.DATA, Codec.RAW, data, len(data))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 4)), max_size=60))
@example([(True, 0, 0), (False, 0, 1), (False, 0, 4), (False, 0, 1)])
@example([(True, 0, 0), (False, 0, 1), *[(True, 0, 0)] * 9, (False, 0, 1)])
def test_entries_in_columns_come_before_a_segment_that_they_refer_to_is_forgotten(steps):
    """A step is a segment, or an entry: a piece of one of the last eight,
    a file whose pieces follow, its bytes, a directory, an empty file.
    """
    sent: list[Event] = []
    expected: list[tuple[bytes, bytes | None]] = []
    count = 0
    for at, (is_segment, back, kind) in enumerate(steps):
        path = b"%06d" % at
        if is_segment:
            sent.append(SentSegment(stored(count)))
            count += 1
        elif kind == 0 or (count == 0 and kind < 3):
            sent.append(SentEntry(ServerEntry(path, EntryType.DIRECTORY), None))
            expected.append((path, None))
        elif kind == 3:
            sent.append(SentEntry(ServerEntry(path, content=Content(0, EMPTY_CONTENT_ID)), b""))
            expected.append((path, b""))
        else:
            number = count - 1 - min(back, count - 1)
            data = noise(900, number)[at : at + 50]
            content = Content(50, blake3(data).digest(), chunks=(ChunkRef(50, blake3(data).digest()),))
            piece = Piece(number, at, 50)
            if kind == 4:
                sent.append(SentEntry(ServerEntry(path, content=content), memoryview(data)))
            elif kind == 1:
                sent.append(SentEntry(ServerEntry(path, content=content), piece))
            else:
                sent += [
                    SentEntry(ServerEntry(path, content=content), None),
                    SentPiece(piece),
                    SentEnd(content),
                ]
            expected.append((path, data))
    data_bytes = sum(len(data or b"") for _, data in expected)
    backup = pb.Backup(id="b" * 32, entry_count=len(expected), data_bytes=data_bytes)
    parts = [
        encoding.part(sv.RestorePart(header=sv.RestoreHeader(backup=backup))),
        *reads._parts_of(iter(sent), threading.Lock(), reads._CompleteEntries(threading.Lock(), data=True)),
        encoding.part(sv.RestorePart(end=sv.End(entry_count=len(expected), data_bytes=data_bytes))),
    ]
    responses = [sv.RestoreResponse.FromString(encoding.response(part)) for part in parts]
    parts_sent = [part for response in responses for part in response.parts]
    assert not any(part.HasField("piece") or part.entry.HasField("data") for part in parts_sent)
    with closing(Segments()) as segments:
        found: list[tuple[bytes, bytes | None]] = []
        for event in read_restore(responses, segments=segments, columns=True):
            if isinstance(event, EntryEvent):
                found.append((event.path, bytes(event.data) if is_file(event.entry) else None))
            elif isinstance(event, DataEvent):
                found[-1] = found[-1][0], bytes(event.data)
    assert found == expected


def test_a_restore_with_data_has_the_same_files_in_columns_and_without(mixed):
    def read(*, columns: bool) -> list[tuple[bytes, bytes, bytes]]:
        request = sv.RestoreRequest(dataset="www", segments=True, columns=columns)
        with closing(Segments()) as segments:
            found = []
            for event in read_restore(mixed.Restore(request), segments=segments, columns=columns):
                if isinstance(event, EntryEvent):
                    entry = pb.Entry.FromString(event.entry.SerializeToString())
                    entry.ClearField("data")
                    entry.content.ClearField("profile")
                    if not event.entry.HasField("content"):
                        entry.ClearField("content")
                    found.append((event.path, entry.SerializeToString(deterministic=True), bytes(event.data)))
        return found

    with_columns = read(columns=True)
    assert with_columns == read(columns=False)
    assert any(data for _, _, data in with_columns)
    parts = [
        p
        for r in mixed.Restore(sv.RestoreRequest(dataset="www", segments=True, columns=True))
        for p in r.parts
    ]
    # Each file lies in its own segment here, and the client keeps eight of them.
    assert sum(part.HasField("columns") for part in parts) < len(with_columns) / 5
    assert not any(part.HasField("piece") for part in parts)


WRONG_PIECES: dict[str, Callable[[sv.PieceColumns], object]] = {
    "none": lambda m: m.Clear(),
    "one more": lambda m: (m.segments.append(0), m.offsets_bytes.append(0)),
    "no offset": lambda m: m.offsets_bytes.pop(),
    "another segment": lambda m: m.segments.__setitem__(0, 1),
    "behind the end": lambda m: m.offsets_bytes.__setitem__(0, 2**32 - 1),
    "other bytes": lambda m: m.offsets_bytes.__setitem__(0, 1),
}


@pytest.mark.parametrize("data", [b"x" * 39, b"x" * 41, b"", b"y" * 40])
def test_bytes_of_columns_that_are_not_the_content_are_refused(data):
    row = pb.Entry(path="f", type=1, content=pb.Content(size_bytes=40, content_id=blake3(b"x" * 40).digest()))

    def read(content: bytes) -> list[object]:
        backup = pb.Backup(id="b" * 32, entry_count=1, data_bytes=40)
        parts = [
            sv.RestorePart(header=sv.RestoreHeader(backup=backup)),
            sv.RestorePart(columns=one_column(row), column_data=content),
            sv.RestorePart(end=sv.End(entry_count=1, data_bytes=40)),
        ]
        with closing(Segments()) as segments:
            return list(read_restore([sv.RestoreResponse(parts=parts)], segments=segments, columns=True))

    assert len(read(b"x" * 40)) == 3
    with pytest.raises(ProtocolError):
        read(data)


@pytest.mark.parametrize("name", WRONG_PIECES)
def test_pieces_of_columns_that_are_not_the_content_are_refused(name):
    data = noise(40, 3)
    row = pb.Entry(path="f", type=1, content=pb.Content(size_bytes=40, content_id=blake3(data).digest()))
    pieces = sv.PieceColumns(segments=[0], offsets_bytes=[0])
    WRONG_PIECES[name](pieces)
    backup = pb.Backup(id="b" * 32, entry_count=1, data_bytes=40)
    parts = [
        sv.RestorePart(header=sv.RestoreHeader(backup=backup)),
        sv.RestorePart(segment=sv.Segment(data=data + b"more", raw=True, raw_bytes=44)),
        sv.RestorePart(columns=one_column(row), piece_columns=pieces),
        sv.RestorePart(end=sv.End(entry_count=1, data_bytes=40)),
    ]
    with closing(Segments()) as segments, pytest.raises(ProtocolError):
        list(read_restore([sv.RestoreResponse(parts=parts)], segments=segments, columns=True))
