"""A dry run shows what the next backup would do, and does nothing itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fs_calls import counted_calls
from staddle._backup.plan import plan_backup
from staddle._errors import BadRequestError, NoBaseError, RootDiffersError, TooMuchRemovedError
from staddle._types.backups import BackupKind
from staddle._types.options import BackupOptions
from staddle._types.plan import Amount, BackupPlan, PlannedChange, PlannedPath

ONLY_READ = {"ListBackups", "Restore"}


def planned(protected, source: Path | None = None, **options) -> tuple[BackupPlan, list[PlannedPath]]:
    named: list[PlannedPath] = []
    options.setdefault("dataset", "data")
    options.setdefault("cache_dir", str(protected.cache))
    options["kind"] = BackupKind(options.get("kind", "auto"))
    path = os.fsencode(source or protected.source)
    plan = plan_backup(protected.client._calls, path, BackupOptions(**options), each=named.append)
    return plan, named


def all_files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fill(source: Path) -> None:
    (source / "dir").mkdir()
    for number in range(5):
        (source / "dir" / str(number)).write_bytes(bytes(100 + number))
    (source / "stays").write_bytes(bytes(7))
    (source / "goes").mkdir()
    (source / "goes" / "with").write_bytes(bytes(50))
    (source / "link").symlink_to("nowhere")


def change(source: Path) -> None:
    (source / "new").write_bytes(bytes(1000))
    (source / "dir" / "3").write_bytes(bytes(2000))
    (source / "goes" / "with").unlink()
    (source / "goes").rmdir()


def counts_of(plan: BackupPlan) -> list[int]:
    return [each.entries for each in (plan.new, plan.changed, plan.removed, plan.unchanged)]


def test_a_first_backup_would_send_everything(protected) -> None:
    fill(protected.source)
    plan, named = planned(protected)
    assert (plan.kind, plan.base) == (BackupKind.FULL, None)
    assert plan.new == Amount(11, 510 + 7 + 50)
    assert counts_of(plan)[1:] == [0, 0, 0]
    assert {each.change for each in named} == {PlannedChange.NEW}
    made = protected.backup()
    assert (made.backup.entry_count, made.backup.data_bytes) == (plan.new.entries, plan.new.data_bytes)


@pytest.mark.parametrize("kind", ["auto", "incremental", "differential", "full"])
def test_the_next_backup_does_what_was_planned(kind: str, protected) -> None:
    fill(protected.source)
    first = protected.backup().backup
    change(protected.source)
    plan, named = planned(protected, kind=kind)
    made = protected.backup(kind=kind)
    assert plan.kind == made.backup.kind
    assert plan.new.data_bytes + plan.changed.data_bytes == made.read_bytes
    assert counts_of(plan)[3] == made.entries_unchanged
    if kind == "full":
        assert counts_of(plan) == [made.backup.entry_count, 0, 0, 0]
        return
    assert plan.base is not None
    assert plan.base.id == made.backup.base_backup_id == first.id
    assert (plan.new, plan.removed) == (Amount(1, 1000), Amount(2, 50))
    assert plan.unchanged == Amount(7, 100 + 101 + 102 + 104 + 7)
    assert [(each.change.value, each.path, each.size_bytes) for each in named] == [
        ("changed", "", 0),
        ("changed", "dir/3", 2000),
        ("removed", "goes", 0),
        ("new", "new", 1000),
    ]


def test_a_dry_run_changes_neither_server_nor_cache(protected, tmp_path: Path) -> None:
    fill(protected.source)
    with counted_calls() as calls:
        planned(protected)
    assert set(calls) <= ONLY_READ
    assert list(protected.client.datasets()) == []
    assert not protected.cache.exists()
    protected.backup()
    change(protected.source)
    cache = all_files(protected.cache)
    with counted_calls() as calls:
        planned(protected)
    assert set(calls) == ONLY_READ
    assert all_files(protected.cache) == cache
    assert len(list(protected.client.backups("data"))) == 1
    assert not protected.backup().resumed


def test_a_dry_run_names_unreadable_paths_and_patterns_without_a_match(
    protected, as_ordinary_user, public_path: Path
) -> None:
    for name in ("closed", "open", "secret"):
        (public_path / name).write_text(name)
    (public_path / "closed").chmod(0)
    with as_ordinary_user():
        plan, named = planned(protected, public_path, exclude=("secret", "nothing"))
    assert [problem.path for problem in plan.problems] == ["closed"]
    assert [each.path for each in named] == ["", "open"]
    assert plan.excluded_entries == 1
    assert "'nothing'" in plan.warnings[0]
    assert not plan.complete


def test_a_dry_run_refuses_what_the_backup_would_refuse(protected, tmp_path: Path) -> None:
    for kind in ("incremental", "differential"):
        with pytest.raises(NoBaseError):
            planned(protected, kind=kind)
    fill(protected.source)
    protected.backup()
    with pytest.raises(RootDiffersError):
        planned(protected, tmp_path)
    assert planned(protected, tmp_path, new_root=True)[0].kind is BackupKind.FULL
    with pytest.raises(BadRequestError, match="invalid pattern"):
        planned(protected, exclude=("[z-a]",))
    change(protected.source)
    with pytest.raises(TooMuchRemovedError):
        planned(protected, max_removed_percent=10.0)
