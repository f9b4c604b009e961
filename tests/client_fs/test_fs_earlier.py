"""Large files are cut along their chunks in the newest backup: the cuts do not depend on it, whatever it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from fs_calls import counted_calls
from fs_trees import assert_same, seeded_bytes
from staddle._backup import previous_chunks
from staddle._backup.chunk_list import ChunkList
from staddle._client import Client
from staddle._errors import ConnectError
from staddle._protocol.restore_reader import ChunksEvent, EntryEvent
from staddle._types.backups import Profile
from staddle.chunking import Cutter
from staddle.v1 import resources_pb2 as pb

LARGE = seeded_bytes(3, 3_000_000)


@pytest.fixture
def scanned(protected, monkeypatch) -> list[int]:
    """A backup of one large file; and the lengths of all chunks found by scanning from now on."""
    monkeypatch.setattr(previous_chunks, "FILE_BYTES_MIN", 2_900_000)
    (protected.source / "large").write_bytes(LARGE)
    protected.backup()
    lengths: list[int] = []
    plain = Cutter.lengths

    def counting(cutter: Cutter, window: memoryview):
        for length in plain(cutter, window):
            lengths.append(length)
            yield length

    monkeypatch.setattr(Cutter, "lengths", counting)
    return lengths


def manifest_of_scanned(protected) -> str:
    """What a dataset has of the source that never had a backup before."""
    return protected.backup(dataset="fresh").backup.manifest_digest


def test_a_rescan_asks_for_the_chunks_of_large_files_only_and_scans_little(protected, scanned) -> None:
    (protected.source / "small").write_bytes(LARGE[:1_000_000])
    with counted_calls() as calls:
        made = protected.backup(kind="full", cache_dir="")
    assert calls["Restore"] == 1
    assert made.read_bytes == len(LARGE) + 1_000_000
    assert made.sent_bytes <= 1_000_000
    assert sum(scanned) < 0.75 * len(LARGE) + 1_000_000


def test_changed_inserted_and_removed_data_restores(protected, scanned, tmp_path: Path) -> None:
    changed = b"in front" + LARGE[:700_000] + b"?" * 90_000 + LARGE[700_000:1_500_000] + LARGE[1_700_000:]
    (protected.source / "large").write_bytes(changed)
    made = protected.backup()
    protected.restore(tmp_path / "out")
    assert_same(protected.source, tmp_path / "out", but=frozenset({b""}))
    assert made.reused_bytes > len(LARGE) / 3
    assert protected.backup(kind="full").backup.manifest_digest == manifest_of_scanned(protected)


@pytest.mark.parametrize("chunks", [[(70_000, bytes(32))] * 50, [(0, b"")], [(2**40, bytes(32))], []])
def test_a_server_that_lies_about_earlier_chunks_changes_nothing(
    protected, scanned, monkeypatch, chunks, tmp_path: Path
) -> None:
    listed = ChunkList()
    for length, digest in chunks:
        listed.append(length, digest)
    monkeypatch.setattr(previous_chunks.Earlier, "_ask", lambda *_: listed)
    first = protected.backup(kind="full").backup
    assert first.manifest_digest == manifest_of_scanned(protected)
    protected.restore(tmp_path / "out")
    assert (tmp_path / "out" / "large").read_bytes() == LARGE


def test_a_backup_works_without_an_answer_about_earlier_chunks(protected, scanned, monkeypatch) -> None:
    def fails(*_):
        raise ConnectError("nobody there")

    monkeypatch.setattr(previous_chunks.Earlier, "_ask", fails)
    assert protected.backup(kind="full").complete
    assert sum(scanned) >= len(LARGE)


def test_a_dataset_without_backups_is_asked_once(protected, scanned) -> None:
    (protected.source / "other").write_bytes(LARGE[::-1])
    with counted_calls() as calls:
        manifest_of_scanned(protected)
    assert calls["Restore"] == 1


def test_a_file_cut_by_length_gives_no_hints_for_cuts_by_content(protected, scanned, running) -> None:
    protected.backup(profile=Profile.FIXED, kind="full")
    scanned.clear()
    with Client(running.address, running.token()) as client:
        assert previous_chunks.Earlier(client._calls, "data").chunks_of(b"large", len(LARGE)) is None
    assert protected.backup(kind="full").complete
    assert sum(scanned) >= len(LARGE)


def test_of_an_endless_list_only_the_useful_part_is_read(protected, scanned, monkeypatch) -> None:
    monkeypatch.setattr(previous_chunks, "CHUNK_BYTES_LEAST", 1_500_000)
    known = previous_chunks.Earlier(protected.client._calls, "data").chunks_of(b"large", len(LARGE))
    assert known is not None
    assert len(known) > 2, "a part is used completely"
    taken = []

    def endless(_calls, _request):
        yield EntryEvent(
            b"large", pb.Entry(content=pb.Content(profile=pb.CHUNKER_PROFILE_CONTENT_DEFINED)), open=False
        )
        while True:
            taken.append(1)
            yield ChunksEvent((pb.ChunkRef(digest=bytes(32), length_bytes=70_000),))

    monkeypatch.setattr(previous_chunks, "restored", endless)
    known = previous_chunks.Earlier(protected.client._calls, "data").chunks_of(b"large", len(LARGE))
    assert known is not None
    assert len(known) == len(taken) == 3
