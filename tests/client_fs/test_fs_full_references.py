"""A full backup with a cache reads everything, and sends only the entries that are not as the newest backup has them."""

from __future__ import annotations

import errno
import os
import random
import time
from pathlib import Path

import pytest
from blake3 import blake3
from extent import extent
from fs_calls import counted_calls
from fs_trees import plant
from lost_packs import lose_packs, mark, packs
from staddle._backup import chunk_files
from staddle._backup.cache.base_entries import cached_entries
from staddle._backup.cache.file import DIGEST_BYTES, NO_DIGEST, ROW_BYTES, CacheBlock, row_of
from staddle._backup.cache.store import Cache
from staddle._errors import ConnectError, TooMuchRemovedError
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import Role
from test_fs_cache import Edits, few_children
from test_fs_cache_wrong import newest_of, write_wrong

LARGE, OTHER = (random.Random(seed).randbytes(3_000_000) for seed in (1, 2))


def cached(protected):
    """The cache of the newest backup, and its id."""
    newest = next(iter(protected.client.backups("data")))
    return Cache(str(protected.cache), protected.client.address, "data"), newest.id


def digests_of(protected) -> dict[bytes, bytes]:
    cache, newest = cached(protected)
    known = cache.find(newest)
    assert known is not None
    try:
        return {each.path: each.digest for each in cached_entries(known)}
    finally:
        known.close()


def whole(protected, **options):
    """The same backup without a cache: what it must be equal to."""
    return protected.backup(dataset=f"whole-{time.monotonic_ns()}", cache_dir=None, kind="full", **options)


@pytest.mark.parametrize("most", [4_096, 2])
@pytest.mark.parametrize("seed", range(extent(1, 8)))
def test_full_backups_with_and_without_a_cache_are_the_same_over_random_edits(
    seed: int, most: int, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_children(monkeypatch, most)
    monkeypatch.setattr(chunk_files, "POINT_ENTRIES", 7)
    edits = Edits(protected.source, seed)
    chance = edits.chance
    edits.some(60)
    (protected.source / "large").write_bytes(LARGE)
    real_open = os.open
    for step in range(8):
        refused = {os.fsencode(name) for name in chance.sample("abcdef", chance.choice([0, 0, 1]))}

        def refusing(path, *args, refused=refused, **options) -> int:
            if path in refused:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real_open(path, *args, **options)

        now_ns = time.time_ns() + chance.choice([0, 10_000_000_000])
        options = {
            "kind": chance.choice(["auto", "full", "full", "full"]) if step else "auto",
            "exclude": chance.choice([(), (), ("c",), ("d/",)]),
            "clock": lambda now_ns=now_ns: now_ns,
        }
        monkeypatch.setattr(os, "open", refusing)
        made = protected.backup(dataset="with", **options)
        other = protected.backup(dataset="without", cache_dir=None, **options)
        monkeypatch.setattr(os, "open", real_open)
        assert made.backup.manifest_digest == other.backup.manifest_digest
        assert made.backup.changes == other.backup.changes
        assert (made.backup.kind, made.backup.entry_count) == (other.backup.kind, other.backup.entry_count)
        assert set(made.problems) == set(other.problems)
        if options["kind"] == "full":
            assert made.read_bytes == other.read_bytes
            assert made.sent_bytes + made.reused_bytes == other.sent_bytes + other.reused_bytes
        edits.some(chance.choice([0, 0, 1, 2, 8]))


def test_an_unchanged_tree_costs_the_server_the_same_whatever_its_size(protected) -> None:
    costs = []
    for count in (30, 3_000):
        for number in range(count):
            if number % 100 == 0:
                (directory := protected.source / f"d{count}-{number}").mkdir()
            (directory / f"f{number}").write_bytes(b"%d" % number)
        protected.backup(kind="full")
        with counted_calls() as calls:
            made = protected.backup(kind="full")
        costs.append(calls)
        assert made.backup.kind.value == "full"
        assert made.read_bytes == made.reused_bytes == made.backup.data_bytes
        assert (made.sent_bytes, made.entries_unchanged) == (0, 0)
        assert made.backup.changes.added == made.backup.entry_count
        assert made.backup.base_backup_id == ""
    assert costs[0] == costs[1]
    assert costs[0]["PutEntries"] == costs[0]["FindMissingChunks"] == costs[0]["Restore"] == 0


def test_a_large_unchanged_file_is_read_once_and_none_of_its_chunks_is_asked_for(protected) -> None:
    (protected.source / "large").write_bytes(LARGE)
    first = protected.backup(kind="full")
    with counted_calls() as calls:
        made = protected.backup(kind="full")
    assert calls["FindMissingChunks"] == calls["PutEntries"] == 0
    assert made.read_bytes == len(LARGE)
    assert made.backup.manifest_digest == first.backup.manifest_digest


@pytest.mark.parametrize("size", [0, 5, 3_000_000])
def test_content_that_changed_under_the_same_stat_is_found_by_reading(size: int, protected) -> None:
    """A cache that says of the file as it is now what it said of the file as it was."""
    path = protected.source / "f"
    path.write_bytes(LARGE[:size])
    (protected.source / "other").write_bytes(b"other")
    protected.backup(kind="full")
    before = digests_of(protected)
    changed = OTHER[: max(1, size)]
    path.write_bytes(changed)
    rows = row_of(path.lstat()) + row_of((protected.source / "other").lstat())
    lying = CacheBlock(b"", True, False, 2, b"f\0other", rows, before[b"f"] + before[b"other"])
    write_wrong(protected, [lying])
    with counted_calls() as calls:
        made = protected.backup(kind="full")
    assert calls["PutEntries"] == 1
    assert made.sent_bytes == len(changed)
    assert protected.client.read("data", "f") == changed
    assert made.backup.manifest_digest == whole(protected).backup.manifest_digest


def test_an_entry_whose_digest_is_unknown_is_sent_and_known_from_then_on(protected) -> None:
    plant(protected.source, files=8)
    protected.backup()
    rows = {}
    for name in sorted(os.listdir(os.fsencode(protected.source))):
        rows[name] = row_of(os.lstat(os.path.join(os.fsencode(protected.source), name)))
    made = protected.backup(kind="full", cache_dir=None)
    protected.backup(
        kind="incremental"
    )  # its base is not cached: unchanged entries are known without digests
    assert set(digests_of(protected).values()) == {b""}
    with counted_calls() as calls:
        again = protected.backup(kind="full")
    assert calls["PutEntries"] == 1
    assert again.backup.manifest_digest == made.backup.manifest_digest
    assert b"" not in digests_of(protected).values()


def test_what_an_incremental_takes_over_unread_stays_known(protected) -> None:
    plant(protected.source, files=20)
    protected.backup()
    (protected.source / "a" / "beside").write_bytes(b"beside")
    protected.backup()
    before = digests_of(protected)
    (protected.source / "a" / "x").write_bytes(b"changed")
    protected.backup()
    after = digests_of(protected)
    assert {path for path in after if after[path] != before.get(path)} == {b"a/x"}
    assert b"" not in after.values()


def test_a_cache_with_fewer_entries_than_its_backup_is_not_used(protected) -> None:
    (protected.source / "gone").write_bytes(b"1")
    (protected.source / "stays").write_bytes(b"2")
    protected.backup(kind="full")
    digests = digests_of(protected)
    (protected.source / "gone").unlink()
    row = row_of((protected.source / "stays").lstat())
    write_wrong(protected, [CacheBlock(b"", True, False, 1, b"stays", row, digests[b"stays"])])
    made = protected.backup(kind="full")
    assert made.backup.manifest_digest == whole(protected).backup.manifest_digest


@pytest.mark.parametrize("names", [b"z\0a", b"a\0a"])
def test_a_cache_out_of_order_makes_a_full_backup_begin_anew_without_it(names: bytes, protected) -> None:
    for name in "az":
        (protected.source / name).write_bytes(b"1")
    protected.backup(kind="full")
    row = row_of((protected.source / "a").lstat())
    write_wrong(protected, [CacheBlock(b"", True, False, 2, names, 2 * row)])
    with counted_calls() as calls:
        made = protected.backup(kind="full")
    assert calls["AbortUpload"] == 1
    assert made.backup.manifest_digest == whole(protected).backup.manifest_digest


# --- damage and loss


def test_known_damage_makes_a_full_backup_send_everything_and_heal(protected, running) -> None:
    plant(protected.source, files=12)
    (protected.source / "f").write_bytes(b"precious")
    protected.backup(kind="full")
    mark(running, Role.DATA, blake3(b"precious").digest())
    with counted_calls() as calls:
        made = protected.backup(kind="full")
    assert made.sent_bytes >= len(b"precious")
    assert calls["AbortUpload"] == calls["CommitUpload"] == 1, "it was known before anything was read"
    assert protected.client.read("data", "f") == b"precious"
    with counted_calls() as calls:
        protected.backup(kind="full")
    assert calls["PutEntries"] == calls["AbortUpload"] == 0, "nothing is damaged any more"


@pytest.mark.parametrize("what", ["data", "everything"])
def test_packs_that_were_lost_unnoticed_are_found_and_stored_again(what: str, protected, running) -> None:
    (protected.source / "f").write_bytes(LARGE)
    protected.backup(kind="full", dataset="before")
    data = packs(running)
    (protected.source / "g").write_bytes(LARGE)
    protected.backup(kind="full")
    if what == "data":
        for path in data:
            path.unlink()
    else:
        lose_packs(running)
    made = protected.backup(kind="full")
    assert made.problems == ()
    assert made.sent_bytes >= len(LARGE)
    assert protected.client.read("data", "f") == protected.client.read("data", "g") == LARGE


def test_a_base_that_is_deleted_meanwhile_is_not_needed(protected, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(protected.source, files=8)
    base = protected.backup(kind="full").backup
    real = protected.client._calls.call
    named = []

    def call(method, request, **options):
        if method == "BeginUpload":
            named.append(request.base_backup_id)
            if request.base_backup_id:
                protected.client.delete_backup("data", base.id)
        return real(method, request, **options)

    monkeypatch.setattr(protected.client._calls, "call", call)
    made = protected.backup(kind="full")
    assert named == [base.id, ""]
    assert made.backup.manifest_digest == base.manifest_digest


@pytest.mark.parametrize("options", [{"thin": True}, {"new_root": True}], ids=["thin", "new root"])
def test_what_is_no_such_backup_names_no_base(options, protected, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(protected.source, files=4)
    protected.backup(kind="full")
    real = protected.client._calls.call
    scopes = []

    def call(method, request, **more):
        if method == "BeginUpload":
            scopes.append((request.scope, request.base_backup_id))
        return real(method, request, **more)

    monkeypatch.setattr(protected.client._calls, "call", call)
    protected.backup(kind="full", **options)
    assert scopes == [(pb.UPLOAD_SCOPE_WHOLE, "")]


def test_removals_are_limited_only_where_that_was_asked_for(protected) -> None:
    for number in range(10):
        (protected.source / str(number)).write_bytes(b"%d" % number)
    protected.backup(kind="full")
    for number in range(8):
        (protected.source / str(number)).unlink()
    with counted_calls() as calls, pytest.raises(TooMuchRemovedError):
        protected.backup(kind="full", max_removed_percent=50)
    assert calls["Restore"] == 0
    made = protected.backup(kind="full")
    assert made.backup.manifest_digest == whole(protected).backup.manifest_digest


# --- cut off and resumed


def cut_off_at_commit(protected, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first commit fails; all that was sent before is durable."""
    real = protected.client._calls.call
    failed = []

    def call(method, request, **options):
        if method == "CommitUpload" and not failed:
            failed.append(method)
            real(
                "CheckpointUpload",
                sv.CheckpointUploadRequest(upload_id=request.upload_id, epoch=request.epoch),
            )
            raise ConnectError("the connection broke")
        return real(method, request, **options)

    monkeypatch.setattr(protected.client._calls, "call", call)


@pytest.mark.parametrize("by", ["itself", "another run"])
def test_an_upload_that_is_cut_off_resumes_behind_what_it_read(
    by: str, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_files, "POINT_ENTRIES", 10)
    for number in range(100):
        (protected.source / f"{number:03}").write_bytes(b"%03d" % number)
    protected.backup(kind="full")
    (protected.source / "000").unlink()
    (protected.source / "099").write_bytes(b"changed")
    cut_off_at_commit(protected, monkeypatch)
    if by == "itself":
        with counted_calls() as calls:
            made = protected.backup(kind="full")
        assert calls["PutEntries"] >= 9, "an entry was sent, and accepted, after each ten that are the same"
        read = made.read_bytes - (3 * 98 + 7)
        assert read <= 3 * 10 + 7, "what is behind the last durable entry is not read again"
    else:
        with pytest.raises(ConnectError):
            protected.backup(kind="full", retry_s=0.0)
        (protected.source / "050").write_bytes(b"written between the runs")
        made = protected.backup(kind="full")
        assert made.resumed
    assert made.backup.manifest_digest == whole(protected).backup.manifest_digest


def test_a_run_whose_cache_is_gone_begins_anew(protected, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(protected.source, files=12)
    protected.backup(kind="full")
    (protected.source / "new").write_bytes(b"new")
    cut_off_at_commit(protected, monkeypatch)
    with pytest.raises(ConnectError):
        protected.backup(kind="full", retry_s=0.0)
    newest_of(protected.cache).unlink()
    made = protected.backup(kind="full")
    assert not made.resumed
    assert made.backup.manifest_digest == whole(protected).backup.manifest_digest


def test_an_upload_with_another_base_is_not_taken_over(protected, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(protected.source, files=12)
    protected.backup(kind="full")
    (protected.source / "new").write_bytes(b"new")
    cut_off_at_commit(protected, monkeypatch)
    with pytest.raises(ConnectError):
        protected.backup(kind="full", retry_s=0.0)
    (protected.source / "new").write_bytes(b"newer")
    protected.backup(kind="incremental")
    with counted_calls() as calls:
        made = protected.backup(kind="full")
    assert (calls["AbortUpload"], made.resumed) == (0, False)
    assert made.backup.manifest_digest == whole(protected).backup.manifest_digest


def test_a_cache_that_is_removed_during_the_run_is_not_missed(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(protected.source, files=12)
    protected.backup(kind="full")
    real = protected.client._calls.call
    removed: list[Path] = []

    def call(method, request, **options):
        answer = real(method, request, **options)
        if method == "BeginUpload" and not removed:
            removed.append(newest_of(protected.cache))
            removed[0].unlink()
        return answer

    monkeypatch.setattr(protected.client._calls, "call", call)
    made = protected.backup(kind="full")
    assert removed
    assert made.backup.manifest_digest == whole(protected).backup.manifest_digest


def test_digests_and_rows_have_the_documented_sizes() -> None:
    assert (33, 32, bytes(32)) == (ROW_BYTES, DIGEST_BYTES, NO_DIGEST)
