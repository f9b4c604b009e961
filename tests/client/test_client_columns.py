"""Entries in columns as a client builds and reads them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from column_entries import BAD_COLUMNS, entries, listed_columns, one_column
from hypothesis import given
from staddle._errors import ProtocolError
from staddle._protocol.columns import columns_of, entry_of_row, row_of, rows_in
from staddle._protocol.convert import entry_of
from staddle._protocol.restore_reader import VIEW_BASIC, RowsEvent, read_restore
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv


def without_chunks(entry: pb.Entry) -> pb.Entry:
    """As a list has it."""
    listed = pb.Entry()
    listed.CopyFrom(entry)
    del listed.content.chunks[:]
    return listed


@given(entries())
def test_entries_come_out_of_columns_as_out_of_messages(sent):
    rows = [row_of(entry) for entry in sent]
    found = rows_in(columns_of(rows, pb.CHUNKER_PROFILE_CONTENT_DEFINED))
    assert [entry_of_row(row) for row in found] == [entry_of(without_chunks(entry)) for entry in sent]


def test_values_that_an_entry_does_not_have_are_none():
    (row,) = rows_in(one_column(pb.Entry(path="d", type=2, implied=True)))
    assert (row.mode, row.uid, row.gid, row.mtime_ns, row.ctime_ns, row.inode) == (None,) * 6
    assert entry_of_row(row) == entry_of(pb.Entry(path="d", type=2, implied=True))


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_columns_that_could_not_have_been_stored_are_refused(name):
    with pytest.raises(ProtocolError):
        rows_in(BAD_COLUMNS[name])
    with pytest.raises(ProtocolError):
        list(events([BAD_COLUMNS[name]]))


def events(
    many: Sequence[pb.EntryColumns],
    *,
    asked: bool = True,
    entry_count: int = 9,
    data_bytes: int = 9,
    end: bool = True,
):
    backup = pb.Backup(id="b" * 32, entry_count=entry_count, data_bytes=data_bytes)
    parts = [sv.RestorePart(header=sv.RestoreHeader(backup=backup))]
    parts += [sv.RestorePart(columns=each) for each in many]
    count = sum(len(each.types) for each in many)
    parts += [sv.RestorePart(end=sv.End(entry_count=count))] * end
    return read_restore([sv.RestoreResponse(parts=parts)], view=VIEW_BASIC, columns=asked)


def test_columns_of_a_restore_are_rows():
    first, second = listed_columns(), listed_columns(paths=b"f-\0g")
    rows = [
        row.path for event in events([first, second]) if isinstance(event, RowsEvent) for row in event.rows
    ]
    assert rows == [b"d", b"f", b"f-", b"g"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: events([listed_columns()] * 2),
        lambda: events([listed_columns(paths=b"f\0g"), listed_columns()]),
        lambda: events([listed_columns()], asked=False),
        lambda: events([listed_columns()], entry_count=1),
        lambda: events([listed_columns()], data_bytes=0),
        lambda: events([listed_columns()], end=False),
    ],
    ids=["the same twice", "another order", "not asked for", "too many", "too many bytes", "cut off"],
)
def test_a_restore_in_columns_that_breaks_a_rule_is_refused(wrong):
    with pytest.raises(ProtocolError):
        list(wrong())


def test_an_entry_where_columns_were_asked_for_is_refused():
    header = sv.RestorePart(header=sv.RestoreHeader(backup=pb.Backup(id="b" * 32, entry_count=9)))
    parts = [header, sv.RestorePart(entry=pb.Entry(path="f"))]
    with pytest.raises(ProtocolError):
        list(read_restore([sv.RestoreResponse(parts=parts)], view=VIEW_BASIC, columns=True))
