"""Restores of a real server's backups: compared with the target, or only previewed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fs_trees import seeded_bytes
from staddle._types.reports import EntryCounts, ProblemKind
from test_fs_restore import MTIME_NS
from test_fs_restore_real import modes_of


def test_one_path_of_a_private_tree_stays_private(protected, tmp_path: Path) -> None:
    source = protected.source
    (source / "home" / "keys").mkdir(parents=True)
    (source / "home" / "keys" / "id").write_text("secret")
    (source / "home").chmod(0o711)
    (source / "home" / "keys").chmod(0o700)
    source.chmod(0o700)
    os.utime(source / "home", ns=(MTIME_NS, MTIME_NS))
    protected.backup()
    target = tmp_path / "target"
    protected.restore(target, paths=["home/keys/id"])
    assert modes_of(target, target / "home", target / "home" / "keys") == [0o700, 0o711, 0o700]
    assert (target / "home").stat().st_mtime_ns == MTIME_NS


@pytest.fixture
def restored(protected, tmp_path: Path) -> Path:
    """A finished restore of files with one chunk, many chunks and none, links and directories."""
    source = protected.source
    (source / "d").mkdir()
    (source / "d" / "large").write_bytes(seeded_bytes(1, 3_000_000))
    (source / "d" / "small").write_bytes(b"small")
    (source / "empty").touch()
    (source / "link").symlink_to("d/small")
    (source / "sparse").write_bytes(b"")
    os.truncate(source / "sparse", 9_000_000)
    protected.backup()
    protected.restore(tmp_path / "target")
    return tmp_path / "target"


def states(target: Path) -> list[tuple[Path, int, int, int, int]]:
    """All but the times of reading, which even a look at a link may change."""
    paths = [target, *sorted(target.rglob("*"))] if target.exists() else []
    return [(p, (s := p.lstat()).st_ino, s.st_mode, s.st_mtime_ns, s.st_ctime_ns) for p in paths]


def tamper(path: Path) -> None:
    """Changes a byte of a file, and leaves its size and times."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["d/large", "d/small", "sparse"])
def test_a_comparison_by_content_finds_and_repairs_changes_hidden_from_size_and_time(
    name: str, restored: Path, protected
) -> None:
    right = (restored / name).read_bytes()
    tamper(restored / name)
    assert protected.restore(restored).entries_written == 0
    checked = protected.restore(restored, verify=True, dry_run=True)
    assert [(problem.kind, problem.path) for problem in checked.problems] == [(ProblemKind.DIFFERENT, name)]
    assert (restored / name).read_bytes() != right
    done = protected.restore(restored, verify=True)
    assert (done.entries_written, done.problems) == (1, ())
    assert (restored / name).read_bytes() == right
    os.utime(restored / name)
    assert protected.restore(restored, verify=True).entries_written == 0, "only its time is corrected"
    assert protected.restore(restored, verify=True, dry_run=True).problems == ()


def test_a_comparison_also_names_what_is_missing_and_metadata_that_differs(restored: Path, protected) -> None:
    (restored / "empty").unlink()
    (restored / "d").chmod(0o711)
    (restored / "link").unlink()
    (restored / "link").symlink_to("elsewhere")
    os.utime(restored / "d" / "small", ns=(0, 12_345_678_901))
    found = {p.path: p.message for p in protected.restore(restored, verify=True, dry_run=True).problems}
    assert sorted(found) == ["d", "d/small", "empty", "link"]
    assert found["empty"] == "it is not there"
    assert "mode" in found["d"]
    assert "modification time" in found["d/small"]


@pytest.mark.parametrize("overwrite", ["if-changed", "always", "never"])
@pytest.mark.parametrize("paths", [(), ("d/large",)])
def test_a_dry_run_writes_nothing_and_counts_what_the_restore_then_writes(
    overwrite: str, paths: tuple[str, ...], restored: Path, protected, tmp_path: Path
) -> None:
    (restored / "d" / "large").write_bytes(b"other")
    for target in (restored, tmp_path / "new"):
        before = states(target)
        dry = protected.restore(target, overwrite=overwrite, paths=paths, dry_run=True)
        assert states(target) == before
        assert target.exists() == (target == restored)
        real = protected.restore(target, overwrite=overwrite, paths=paths)
        assert dry.problems == real.problems == ()
        assert (dry.entries_written, dry.data_bytes) == (real.entries_written, real.data_bytes)


def test_a_preview_matches_what_the_restore_then_creates_replaces_fetches_and_deletes(
    protected, tmp_path: Path
) -> None:
    source, target = protected.source, tmp_path / "target"
    (source / "d").mkdir()
    (source / "d" / "first").write_bytes(seeded_bytes(1, 70_000))
    os.link(source / "d" / "first", source / "d" / "second")
    (source / "changed").write_bytes(seeded_bytes(2, 30_000))
    (source / "link").symlink_to("changed")
    os.mkfifo(source / "pipe")
    (source / "same").write_text("same")
    protected.backup()
    fresh = protected.restore(target, dry_run=True)
    assert fresh.made == EntryCounts(files=4, directories=1, symlinks=1, others=1)
    assert fresh.replaced == EntryCounts()
    assert not target.exists()
    protected.restore(target, include=["same", "changed", "link"])
    (target / "changed").write_text("short")
    (target / "link").unlink()
    (target / "link").touch()
    (target / "extra").mkdir()

    before = states(target)
    for options in ({}, {"verify": True}, {"overwrite": "never"}, {"overwrite": "always"}):
        protected.restore(target, dry_run=True, delete=True, **options)
        assert states(target) == before
    would = protected.restore(target, dry_run=True, delete=True)
    assert would.made == EntryCounts(files=2, directories=1, others=1)
    assert would.replaced == EntryCounts(files=1, symlinks=1)
    assert (would.data_bytes, would.entries_deleted, would.deleted_paths) == (100_000, 1, (b"extra",))
    done = protected.restore(target, delete=True)
    assert done.problems == ()
    for field in ("entries_written", "entries_unchanged", "entries_deleted", "data_bytes"):
        assert getattr(done, field) == getattr(would, field), field
