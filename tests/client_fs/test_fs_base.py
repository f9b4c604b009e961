"""Comparing a scan with the base: the differences, applied to the base, give the scan."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from staddle._backup.changes import Changed, Removed
from staddle._backup.chunk_list import ChunkList
from staddle._backup.comparison import BaseDamagedError, BaseEntry, Comparison, base_entries, is_below
from staddle._errors import ProtocolError
from staddle._fs.found import Found
from staddle._protocol.columns import READ_AGAIN, EntryRow
from staddle._protocol.restore_reader import VIEW_BASIC, Event, read_restore
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

NAMES = [b"a", b"a.b", b"b", b"c"]


def order(path: bytes) -> bytes:
    return path.replace(b"/", b"\0")


@st.composite
def trees(draw) -> dict[bytes, tuple[int, int]]:
    """Path → (is a directory, version), always with parents."""
    tree: dict[bytes, tuple[int, int]] = {b"": (1, 0)}
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(sorted(path for path, (directory, _) in tree.items() if directory)))
        name = draw(st.sampled_from(NAMES))
        path = parent + b"/" + name if parent else name
        if path not in tree:
            tree[path] = (draw(st.integers(0, 1)), draw(st.integers(0, 2)))
    return tree


def found(path: bytes, directory: int, version: int) -> Found:
    mode = stat.S_IFDIR if directory else stat.S_IFREG
    values = [mode | 0o644, 7, 1, 1, 0, 0, version, 0, 0, 0, 0.0, 0.0, 0.0, 0, version, version]
    return Found(path, path, -1, os.stat_result(values), b"", 0)


def base_entry(path: bytes, directory: int, version: int) -> BaseEntry:
    kind = pb.ENTRY_TYPE_DIRECTORY if directory else pb.ENTRY_TYPE_FILE
    row = EntryRow(path, kind, 0, 0o644, 0, 0, version, version, 7, "", "", size_bytes=version)
    return BaseEntry(path, row, whole=True)


def changed_row(base: BaseEntry, **values: int) -> BaseEntry:
    return base._replace(row=base.row._replace(**values))


def differences(base, scan, **options) -> list[Changed | Removed]:
    return list(
        Comparison(
            [found(path, *scan[path]) for path in sorted(scan, key=order)],
            iter([base_entry(path, *base[path]) for path in sorted(base, key=order)]),
            **options,
        )
    )


def applied(base, changes: list[Changed | Removed]):
    """The result on the server: a removal also removes everything below, and so does an entry other than a directory."""
    result = dict(base)
    for change in changes:
        path = change.path if isinstance(change, Removed) else change.found.path
        gone = isinstance(change, Removed) or not change.found.is_directory()
        result = {each: value for each, value in result.items() if not (gone and is_below(each, path))}
        if isinstance(change, Removed):
            result.pop(path, None)
        else:
            result[path] = (int(change.found.is_directory()), change.found.stat.st_mtime_ns)
    return result


@given(trees(), trees())
def test_the_differences_applied_to_the_base_are_the_scan(base, scan) -> None:
    assert applied(base, differences(base, scan)) == scan


@given(trees())
def test_a_tree_that_did_not_change_has_no_differences(tree) -> None:
    assert differences(tree, tree) == []


@given(trees(), trees())
def test_an_unreliable_base_gives_only_removals(base, scan) -> None:
    changes = differences(base, scan, rely=False)
    assert [change.found.path for change in changes if isinstance(change, Changed)] == sorted(scan, key=order)
    assert all(not change.in_base for change in changes if isinstance(change, Changed))
    assert applied(base, changes) == scan


@given(trees(), trees(), st.data())
def test_a_resumed_comparison_yields_only_paths_after_the_last_one(base, scan, data) -> None:
    behind = data.draw(st.sampled_from(sorted(scan)))
    changes = differences(base, scan, behind=behind)
    everything = differences(base, scan)

    def path_of(change) -> bytes:
        return change.path if isinstance(change, Removed) else change.found.path

    assert [path_of(change) for change in changes] == [
        path_of(change) for change in everything if order(path_of(change)) > order(behind)
    ]


def test_an_entry_marked_for_rereading_does_not_count_as_unchanged() -> None:
    tree = {b"": (1, 0), b"f": (0, 1)}
    base = [base_entry(path, *tree[path]) for path in tree]
    base[1] = changed_row(base[1], flags=READ_AGAIN)
    changes = list(Comparison([found(path, *tree[path]) for path in tree], iter(base)))
    assert [change.found.path for change in changes] == [b"f"]


def test_a_damaged_entry_of_the_base_is_read_again_completely() -> None:
    tree = {b"": (1, 0), b"f": (0, 1)}
    (change,) = differences(tree, tree, distrusted=frozenset({b"f"}))
    assert change.found.path == b"f"
    assert not change.in_base


@pytest.mark.parametrize("field", ["mtime", "ctime", "inode", "size", "type"])
def test_any_difference_in_stat_is_a_change(field: str) -> None:
    base = base_entry(b"f", 0, 1)
    values = {
        "mtime": "mtime_ns",
        "ctime": "ctime_ns",
        "inode": "inode",
        "size": "size_bytes",
        "type": "type",
    }
    base = changed_row(base, **{values[field]: pb.ENTRY_TYPE_FIFO if field == "type" else 99})
    assert len(list(Comparison([found(b"f", 0, 1)], iter([base])))) == 1


def test_a_root_is_removed_only_for_a_single_file_which_is_then_sent_again() -> None:
    base = {b"": (1, 0), b"one": (0, 1)}
    removed, changed = differences(base, {b"one": (0, 1)})
    assert removed == Removed(b"")
    assert (changed.found.path, changed.in_base) == (b"one", False)
    assert differences(base, {}) == [Removed(b"one")]


def events(*parts: sv.RestorePart) -> Iterator[Event]:
    return read_restore([sv.RestoreResponse(parts=[part]) for part in parts], view=VIEW_BASIC)


HEADER = sv.RestorePart(header=sv.RestoreHeader(backup=pb.Backup(id="b" * 32, entry_count=5)))


def test_a_truncated_list_of_the_base_is_an_error() -> None:
    entry = sv.RestorePart(entry=pb.Entry(path="f", type=pb.ENTRY_TYPE_FILE))
    with pytest.raises(ProtocolError):
        list(base_entries(events(HEADER, entry)))


def test_an_unreadable_part_of_the_base_is_named() -> None:
    damage = sv.RestorePart(damage=sv.Damage(path="d", message="a page is missing", subtree=True))
    with pytest.raises(BaseDamagedError, match="page") as caught:
        list(base_entries(events(HEADER, damage)))
    assert caught.value.path == b"d"


def test_a_very_long_chunk_list_keeps_its_order_on_disk() -> None:
    chunks = ChunkList()
    expected = [(number % 1000 + 1, number.to_bytes(32, "big")) for number in range(40_000)]
    for length, digest in expected:
        chunks.append(length, digest)
    assert len(chunks) == 40_000
    assert list(chunks) == expected
    chunks.append(5, b"l" * 32)
    assert list(chunks)[-1] == (5, b"l" * 32)
