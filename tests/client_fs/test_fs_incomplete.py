"""Paths that a backup could not read: their directory is marked, and they do not count as removed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from extent import extent
from staddle._backup.plan import plan_backup
from staddle._errors import TooMuchRemovedError
from staddle._types.backups import BackupKind, ChangeType
from staddle._types.options import BackupOptions
from staddle._types.reports import ProblemKind

BOTH_WAYS = pytest.mark.parametrize("thin", [False, True], ids=["source-side", "thin"])
CACHED = pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])


def options_of(*, thin: bool, cached: bool) -> dict:
    return {"thin": thin} if cached else {"thin": thin, "cache_dir": None}


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> set[bytes]:
    """Names that the disk cannot read while they are in this set."""
    names: set[bytes] = set()
    real = os.open

    def opened(path, *args, **options) -> int:
        if path in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", opened)
    return names


def plant(source: Path) -> None:
    for name in ("bad/a", "bad/s/x", "good/f", "good/secret", "last"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)


def marked(protected) -> list[str]:
    return [entry.path for entry in protected.client.entries("data", recursive=True) if entry.incomplete]


@BOTH_WAYS
@CACHED
def test_a_directory_with_unread_paths_is_marked_until_all_of_it_was_read(
    thin: bool, cached: bool, protected, unreadable: set[bytes], tmp_path: Path
) -> None:
    options = options_of(thin=thin, cached=cached)
    plant(protected.source)
    protected.backup(**options)
    target = tmp_path / "target"
    protected.restore(target)
    (target / "extra").touch()
    (target / "bad" / "s" / "more").touch()

    (protected.source / "good" / "secret").write_text("changed, so that it has to be read")
    unreadable |= {b"bad", b"secret"}
    for _ in range(2):
        made = protected.backup(**options)
        assert [(p.kind, p.path) for p in made.problems] == [
            (ProblemKind.UNREADABLE, "bad"),
            (ProblemKind.UNREADABLE, "good/secret"),
        ]
        assert marked(protected) == ["bad", "good"]
    unreadable.clear()

    first = list(protected.client.backups("data"))[-1]
    changes = {change.path: change for change in protected.client.changes("data", first.id)}
    gone = {path: change.uncertain for path, change in changes.items() if change.type is ChangeType.REMOVED}
    assert gone == dict.fromkeys(["bad/a", "bad/s", "bad/s/x", "good/secret"], True)
    assert changes["bad"].after.incomplete

    report = protected.restore(target, delete=True)
    assert report.deleted_paths == (b"extra",)
    assert [(p.kind, p.path) for p in report.problems] == [
        (ProblemKind.NOT_DELETED, "bad"),
        (ProblemKind.NOT_DELETED, "good"),
    ]
    assert (target / "bad" / "s" / "more").exists()
    assert (target / "good" / "secret").read_text() == "good/secret"
    kept = protected.restore(target, delete=True, exclude=["bad/*", "secret"])
    assert kept.problems == ()  # restores that list their extras are not affected

    assert protected.backup(**options).complete
    assert marked(protected) == []
    report = protected.restore(target, delete=True)
    assert (report.deleted_paths, report.problems) == ((b"bad/s/more",), ())


@BOTH_WAYS
@CACHED
def test_the_content_of_a_directory_that_became_unreadable_counts_as_removed(
    thin: bool, cached: bool, protected, unreadable: set[bytes]
) -> None:
    options = options_of(thin=thin, cached=cached)
    plant(protected.source)
    protected.backup(**options)
    unreadable.add(b"bad")
    with pytest.raises(TooMuchRemovedError, match="3 of 8"):
        protected.backup(max_removed_percent=30.0, **options)
    assert protected.backup(max_removed_percent=40.0, **options).problems


@BOTH_WAYS
@CACHED
def test_files_that_became_unreadable_count_as_removed(
    thin: bool, cached: bool, protected, unreadable: set[bytes]
) -> None:
    options = options_of(thin=thin, cached=cached)
    plant(protected.source)
    protected.backup(**options)
    for name in ("bad/a", "bad/s/x", "last"):
        (protected.source / name).write_text("changed, so that it has to be read")
    (protected.source / "new").touch()
    unreadable |= {b"a", b"x", b"last", b"new"}
    for kind in ("auto", "full"):
        with pytest.raises(TooMuchRemovedError, match="3 of 8"):
            protected.backup(kind=kind, max_removed_percent=30.0, **options)
    if not thin and not cached:
        asked = BackupOptions(dataset="data", max_removed_percent=30.0)
        with pytest.raises(TooMuchRemovedError, match="3 of 8"):
            plan_backup(protected.client._calls, os.fsencode(protected.source), asked)
        plan = plan_backup(
            protected.client._calls, os.fsencode(protected.source), BackupOptions(dataset="data")
        )
        assert (plan.removed.entries, plan.removed.data_bytes) == (
            3,
            len("bad/a") + len("bad/s/x") + len("last"),
        )
    assert protected.backup(max_removed_percent=40.0, **options).backup.changes.removed == 3


@BOTH_WAYS
@CACHED
def test_a_full_backup_counts_removals_despite_new_files(thin: bool, cached: bool, protected) -> None:
    options = options_of(thin=thin, cached=cached)
    plant(protected.source)
    protected.backup(**options)
    (protected.source / "bad").rename(protected.source / "elsewhere")
    plant(protected.source / "more")
    for kind in ("auto", "full"):
        with pytest.raises(TooMuchRemovedError, match="4 of 8"):
            protected.backup(kind=kind, max_removed_percent=40.0, **options)
    assert protected.backup(kind="full", max_removed_percent=50.0, **options).backup.kind is BackupKind.FULL


def test_a_file_that_is_replaced_while_it_is_read_is_not_counted_as_removed(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(protected.source)
    protected.backup()
    real, left = os.open, [4]

    def opened(path, *args, **options) -> int:
        if path == b"last" and left[0]:
            left[0] -= 1
            if left[0] % 2:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "open", opened)
    for options in ({}, {"cache_dir": None}):
        (protected.source / "last").write_text(f"changed {options}")
        assert protected.backup(max_removed_percent=0.0, **options).complete


@BOTH_WAYS
def test_no_backup_is_made_if_no_named_path_can_be_read(
    thin: bool, protected, unreadable: set[bytes]
) -> None:
    plant(protected.source)
    top = protected.source
    unreadable |= {b"last", b"secret", b"s"}
    for paths in (top / "last", [top / "last", top / "good/secret"], [top / "last", top / "bad/s"]):
        with pytest.raises(OSError, match="Nothing was backed up") as failed:
            protected.backup(paths, thin=thin)
        assert failed.value.filename in {os.fsencode(top / name) for name in ("last", "good/secret", "bad/s")}
    with pytest.raises(OSError, match="Nothing was backed up"):
        protected.backup(thin=thin, paths=("last", "good/secret"))
    assert list(protected.client.backups("data")) == []
    assert list(protected.client.uploads("data")) == []
    assert len(protected.backup([top / "last", top / "good"], thin=thin).problems) == 2
    unreadable.clear()
    assert protected.backup([top / "last", top / "good"], thin=thin).complete


@BOTH_WAYS
@CACHED
def test_names_below_a_former_directory_mark_the_directory_above(
    thin: bool, cached: bool, protected, tmp_path: Path
) -> None:
    options = options_of(thin=thin, cached=cached) | {"paths": ("bad/s/x", "bad/a", "good")}
    plant(protected.source)
    protected.backup(**options)
    target = tmp_path / "target"
    protected.restore(target)
    (protected.source / "bad").rename(tmp_path / "moved")
    (protected.source / "bad").symlink_to(tmp_path / "moved")
    assert len(protected.backup(**options).problems) == 2
    report = protected.restore(target, delete=True)
    assert report.deleted_paths == ()
    assert (target / "bad/s/x").exists()
    (protected.source / "bad").unlink()
    (tmp_path / "moved").rename(protected.source / "bad")
    (protected.source / "bad/a").unlink()  # named and missing: its directory is marked, too
    assert [p.path for p in protected.backup(**options).problems] == ["bad/a"]
    assert marked(protected) == ["bad"]
    assert protected.restore(target, delete=True).deleted_paths == ()


@BOTH_WAYS
@pytest.mark.parametrize(
    ("became", "cached"), [("file", True), ("file", False), ("directory", True), ("link", False)]
)
def test_a_path_removed_and_recreated_during_reading_is_in_the_backup(
    thin: bool, *, became: str, cached: bool, protected, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = options_of(thin=thin, cached=cached)
    plant(protected.source)
    (protected.source / "again").write_text("before")
    if became == "file":
        protected.backup(**options)  # even if the base has it
        (protected.source / "again").write_text("changed")
    real = os.open
    left = [2]

    def opened(path, *args, **kwargs) -> int:
        if path == b"again" and left[0] and not args[0] & os.O_DIRECTORY:
            left[0] -= 1
            (protected.source / "again").unlink()
            try:
                return real(path, *args, **kwargs)
            finally:
                if became == "file":
                    (protected.source / "again").write_text("once more")
                elif became == "link":
                    (protected.source / "again").symlink_to("last")
                else:
                    (protected.source / "again").mkdir()
                    (protected.source / "again" / "in").write_text("it")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", opened)
    made = protected.backup(**options)
    assert (made.problems, made.notes) == ((), ())
    target = tmp_path / "target"
    protected.restore(target)
    if became == "link":
        assert os.readlink(target / "again") == "last"
    else:
        path = target / "again" if became == "file" else target / "again" / "in"
        assert path.read_text() == ("once more" if became == "file" else "it")
    monkeypatch.undo()
    (protected.source / "last").write_text("changed, too")
    assert protected.backup(**options).complete
    before = list(protected.client.backups("data"))[1]
    changed = [change.path for change in protected.client.changes("data", before.id)]
    assert "last" in changed
    assert not any(path.startswith("again") for path in changed)


def test_a_listed_path_that_is_never_found_is_a_problem_and_marks_its_directory(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(protected.source)
    real = os.stat

    def stat(path, *args, **kwargs):
        if path == b"f":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    for options in ({}, {"cache_dir": None}):
        made = protected.backup(**options)
        assert [(p.kind, p.path) for p in made.problems] == [(ProblemKind.UNREADABLE, "good/f")]
        assert marked(protected) == ["good"]


@CACHED
@pytest.mark.parametrize("changed", [False, True], ids=["as-in-base", "changed"])
@pytest.mark.parametrize("name", extent(["z"], ["bad", "s", "z"]))
def test_a_directory_that_vanishes_and_returns_during_the_scan_keeps_its_content(
    cached: bool, *, changed: bool, name: str, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call that the scan makes on it, anywhere in the tree."""
    options = options_of(thin=False, cached=cached)
    plant(protected.source)
    (protected.source / "z" / "below").mkdir(parents=True)
    (protected.source / "z" / "a").write_text("z/a")
    (protected.source / "z" / "below" / "b").write_text("z/below/b")
    protected.backup(**options)
    expected = {entry.path for entry in protected.client.entries("data", recursive=True)}
    (place,) = protected.source.rglob(name)
    calls = [0, 0]  # the calls made, and the one at which the directory is away

    def away_in(real):
        def called(path, *args, **kwargs):
            if path != os.fsencode(name):
                return real(path, *args, **kwargs)
            calls[0] += 1
            if calls[0] != calls[1]:
                return real(path, *args, **kwargs)
            place.rename(protected.source.parent / "away")
            try:
                return real(path, *args, **kwargs)
            finally:
                (protected.source.parent / "away").rename(place)

        return called

    for function in ("stat", "open"):
        monkeypatch.setattr(os, function, away_in(getattr(os, function)))
    while calls[0] >= calls[1]:
        at, calls[1] = calls[1] + 1, -1
        protected.backup(**options)  # with a cache, if allowed
        calls[:] = 0, at
        if changed:
            place.chmod(0o700 + calls[1])
        made = protected.backup(**options | {"thin": bool(calls[1] % 2)})
        assert (made.problems, made.notes) == ((), ())
        assert {entry.path for entry in protected.client.entries("data", recursive=True)} == expected
    assert calls[1] > 2


@CACHED
def test_a_file_that_vanishes_and_returns_during_the_scan_does_not_count_as_removed(
    cached: bool, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_of(thin=False, cached=cached) | {"max_removed_percent": 0.0}
    (protected.source / "only").write_text("one")
    protected.backup(**options)
    real, calls = os.stat, [0, 0]

    def away(path, *args, **kwargs):
        if path == b"only":
            calls[0] += 1
            if calls[0] == calls[1]:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", away)
    for calls[1] in (1, 2):
        calls[0] = 0
        (protected.source / "only").write_text(f"number {calls[1]}")
        made = protected.backup(**options)
        assert (made.problems, made.notes, made.backup.entry_count) == ((), (), 2)
        assert protected.client.read("data", "only") == f"number {calls[1]}".encode()


@pytest.mark.parametrize("how", extent(["open"], ["stat", "open", "listdir"]))
@CACHED
def test_an_entirely_unreadable_source_does_not_count_as_empty(
    cached: bool, how: str, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (protected.source / name).write_text("before")
    real = getattr(os, how)

    def failing(path, *args, **options):
        if path in {b"a", b"b"} or how == "listdir":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **options)

    for thin in (False, True):
        options = options_of(thin=thin, cached=cached) | {"dataset": f"thin-{thin}"}
        protected.backup(**options)
        for name in ("a", "b"):
            (protected.source / name).write_text(f"changed {thin}")
        monkeypatch.setattr(os, how, failing)
        for kind in ("auto", "full"):
            if how == "listdir":
                for more in ({}, {"dataset": "first"}, {"max_removed_percent": 100.0}):
                    with pytest.raises(OSError, match=f"{os.strerror(errno.EIO)}. Nothing was backed up"):
                        protected.backup(kind=kind, **options | more)
                continue
            with pytest.raises(TooMuchRemovedError, match=r"2 of 2 entries .* more than 99 %"):
                protected.backup(kind=kind, max_removed_percent=99.0, **options)
        if how != "listdir":  # without a limit only a source that is empty is refused
            assert [p.path for p in protected.backup(**options).problems] == ["a", "b"]
            dataset = options["dataset"]
            assert [entry.path for entry in protected.client.entries(dataset) if entry.incomplete] == []
            assert next(iter(protected.client.backups(dataset))).changes.removed == 2
        monkeypatch.undo()
