"""Several PATHs in one backup, and lists of paths: exactly the named paths are backed up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fs_trees import assert_same
from staddle._backup.plan import plan_backup
from staddle._errors import BadRequestError, RootDiffersError, TooMuchRemovedError
from staddle._fs.chosen_paths import absolute, source_of
from staddle._fs.omissions import CACHE_TAG_SIGNATURE
from staddle._types.backups import BackupKind
from staddle._types.options import BackupOptions
from staddle._types.reports import ProblemKind

BOTH_WAYS = pytest.mark.parametrize("thin", [False, True], ids=["source-side", "thin"])
CACHED = pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])


def make(top: Path, *names: str) -> None:
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)


def names_in(protected, dataset: str = "data") -> list[str]:
    return [entry.path for entry in protected.client.entries(dataset, recursive=True)]


def reasons(problems) -> list[tuple[str, str]]:
    return sorted((problem.path, problem.message.split(",")[0]) for problem in problems)


# --- one PATH


@pytest.mark.parametrize("thin", [False, True], ids=["source-side", "thin"])
def test_a_path_that_is_a_file_then_a_directory_then_a_file_again_keeps_nothing_of_the_directory(
    thin: bool, protected, tmp_path: Path
) -> None:
    path = protected.source / "p"
    path.write_text("one")
    protected.backup(path, thin=thin)
    path.unlink()
    make(path, "p", "q/r")
    path.chmod(0o751)
    protected.backup(path, thin=thin)
    (path / "p").unlink()
    (path / "q/r").unlink()
    (path / "q").rmdir()
    path.rmdir()
    path.write_text("three")
    with pytest.raises(TooMuchRemovedError, match="2 of 3"):
        protected.backup(path, thin=thin, max_removed_percent=50.0)
    for _ in range(2):
        made = protected.backup(path, thin=thin)
        assert (made.backup.kind, made.backup.entry_count) == (BackupKind.INCREMENTAL, 1)
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    protected.restore(target)
    assert (target / "p").read_text() == "three"
    assert (os.listdir(target), target.stat().st_mode & 0o777) == (["p"], 0o700)


# --- several PATHs


@BOTH_WAYS
@CACHED
def test_several_paths_have_their_common_parent_as_root_and_nothing_else_of_it_is_sent(
    cached: bool, thin: bool, protected, tmp_path: Path
) -> None:
    options = {"thin": thin} if cached else {"thin": thin, "cache_dir": None}
    top = protected.source
    make(
        top,
        "etc/conf",
        "etc/deep/x",
        "home/me/doc",
        "home/me/old",
        "home/you/secret",
        "var/log",
        "home/loose",
    )
    (top / "home").chmod(0o711)
    paths = [top / "home" / "me", top / "etc"]
    made = protected.backup(paths, **options)
    held = ["etc", "etc/conf", "etc/deep", "etc/deep/x", "home", "home/me", "home/me/doc", "home/me/old"]
    assert made.backup.root == str(top)
    assert names_in(protected) == held
    assert made.complete
    again = protected.backup(paths[::-1], **options)
    assert (again.read_bytes, again.entries_unchanged) == (0, len(held) + 1)
    make(top, "etc/new", "home/you/new")
    (top / "home/me/old").unlink()
    changes = protected.backup(paths, **options).backup.changes
    assert (changes.added, changes.removed, changes.content_changed) == (1, 1, 0)
    protected.restore(tmp_path / "out")
    assert (tmp_path / "out" / "home").stat().st_mode & 0o777 == 0o711
    assert sorted(os.listdir(tmp_path / "out")) == ["etc", "home"]


@CACHED
def test_a_path_that_is_no_longer_given_is_removed_unless_guarded(cached: bool, protected) -> None:
    options = {} if cached else {"cache_dir": None}
    top = protected.source
    make(top, "a/1", "b/1", "b/2", "b/3", "c/1")
    protected.backup([top / "a", top / "b", top / "c"], **options)
    with pytest.raises(TooMuchRemovedError, match="4 of 8"):
        protected.backup([top / "a", top / "c"], max_removed_percent=40.0, **options)
    assert protected.backup([top / "a", top / "c"], **options).backup.changes.removed == 4
    assert names_in(protected) == ["a", "a/1", "c", "c/1"]


@CACHED
@pytest.mark.parametrize("kind", ["auto", "full"])
def test_one_path_of_several_that_has_become_empty_makes_no_backup(
    kind: str, cached: bool, protected
) -> None:
    options = {"kind": kind} if cached else {"kind": kind, "cache_dir": None}
    top = protected.source
    make(top, "etc/conf", "mnt/disk/data")
    (top / "bare").mkdir()
    paths = [top / "etc", top / "mnt" / "disk", top / "bare"]
    protected.backup(paths, **options)
    protected.backup(paths, **options)
    (top / "mnt/disk/data").unlink()
    with pytest.raises(TooMuchRemovedError, match="mnt/disk"):
        protected.backup(paths, **options)
    assert len(list(protected.client.backups("data"))) == 2
    assert protected.backup(paths, max_removed_percent=100.0, **options).complete
    assert protected.backup(paths, **options).complete


def test_files_links_and_repeated_paths_are_handled_like_one_path(protected, tmp_path: Path) -> None:
    top = protected.source
    make(top, "real/in", "file", "beside")
    (top / "to-directory").symlink_to("real")
    (top / "to-file").symlink_to(top / "file")
    (top / "way").symlink_to(tmp_path / "elsewhere")
    make(tmp_path, "elsewhere/inside/x", "elsewhere/beside")
    paths = ["to-directory", "to-file", "file", "file", "way/inside", "real/"]
    for _ in range(2):  # the second one with the cache
        made = protected.backup([f"{top}/{path}" for path in paths])
        assert made.complete
        assert names_in(protected) == [
            *("file", "real", "real/in", "to-directory", "to-directory/in"),
            *("to-file", "way", "way/inside", "way/inside/x"),
        ]
    assert made.read_bytes == 0
    assert protected.client.read("data", "to-file") == b"file"
    assert protected.client.read("data", "way/inside/x") == b"elsewhere/inside/x"
    assert protected.backup([top / "file", top / "file"], dataset="one").backup.root == str(top / "file")


def test_deep_trees_behind_a_followed_link_are_walked_completely(protected, tmp_path: Path) -> None:
    deep = "/".join("d" * 150)
    make(tmp_path, f"elsewhere/{deep}/x", "elsewhere/z")
    make(protected.source, "a", "z")
    (protected.source / "m").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        made = protected.backup([protected.source / name for name in "amz"])
        assert made.complete
        assert {"a", f"m/{deep}/x", "m/z", "z"} <= set(names_in(protected))


def test_a_path_inside_another_one_is_in_the_backup_once(protected) -> None:
    top = protected.source
    make(top, "srv/releases/5/x", "srv/other")
    (top / "srv" / "current").symlink_to("releases/5")
    held = ["current", "other", "releases", "releases/5", "releases/5/x"]
    made = protected.backup([top / "srv" / "releases", top / "srv", top / "srv" / "current"])
    assert made.backup.root == str(top / "srv")
    assert names_in(protected) == held
    (top / "srv" / "out").symlink_to(top)
    with pytest.raises(BadRequestError, match="leads out of"):
        protected.backup([top / "srv", top / "srv" / "out"], dataset="other")


def test_a_named_path_inside_an_excluded_directory_is_backed_up(protected) -> None:
    top = protected.source
    make(top, "a/cache/keep/x", "a/cache/drop", "a/cache/way/keep/y", "a/cache/way/drop", "b", "large")
    (top / "a/cache/CACHEDIR.TAG").write_bytes(CACHE_TAG_SIGNATURE)
    paths = [top / "a", top / "a/cache/keep", top / "a/cache/way/keep", top / "large"]
    for _ in range(2):
        made = protected.backup(paths)
        assert [name for name in names_in(protected) if "/" in name] == [
            *("a/cache", "a/cache/CACHEDIR.TAG", "a/cache/keep", "a/cache/keep/x"),
            *("a/cache/way", "a/cache/way/keep", "a/cache/way/keep/y"),
        ]
        assert [note.path for note in made.notes] == ["a/cache"]
    protected.backup([top / "large", top / "b"], dataset="large", exclude_larger_than_bytes=1)
    assert names_in(protected, "large") == ["b", "large"]


def test_patterns_that_exclude_a_complete_path_are_refused(protected) -> None:
    top = protected.source
    make(top, "home/me/x", "home/me/y.o", "etc/conf", "etc/z.o")
    paths = [top / "home" / "me", top / "etc"]
    for pattern in ("/etc", "home/", "me", str(top / "home")):
        with pytest.raises(BadRequestError, match="leave out all of"):
            protected.backup(paths, exclude=(pattern,))
    protected.backup(paths, exclude=("*.o", "/etc/conf", "home/", "!/home/"))
    assert names_in(protected) == ["etc", "home", "home/me", "home/me/x"]
    for absolute_one in (str(top / "home/me/x"), "/home/me/x"):
        protected.backup(paths, exclude=(absolute_one,))
        assert "home/me/x" not in names_in(protected)


def test_a_missing_or_impossible_path_stops_the_backup_before_it_begins(protected, tmp_path: Path) -> None:
    make(protected.source, "a")
    os.mkfifo(protected.source / "pipe")
    with pytest.raises(FileNotFoundError, match="gone"):
        protected.backup([protected.source / "a", protected.source / "gone"])
    with pytest.raises(BadRequestError, match="is a pipe"):
        protected.backup([protected.source / "a", protected.source / "pipe"])
    assert list(protected.client.datasets()) == []


def test_a_path_that_vanishes_after_the_start_is_a_problem(
    protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(protected.source, "a", "d/x")
    real = os.stat

    def look(path, **options):
        if path == b"a" and "dir_fd" in options:
            (protected.source / "a").unlink(missing_ok=True)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", look)
    made = protected.backup([protected.source / "a", protected.source / "d"])
    assert reasons(made.problems) == [("a", "it was named")]
    assert names_in(protected) == ["d", "d/x"]


def test_a_parent_without_read_permission_is_not_an_obstacle(
    protected, as_ordinary_user, public_path: Path
) -> None:
    make(public_path, "home/me/doc", "home/all/doc", "home/not/doc")
    (public_path / "home").chmod(0o711)
    with as_ordinary_user():
        if os.access(public_path / "home", os.R_OK, effective_ids=True):
            pytest.skip("this user may read everything")
        named = []
        plan = plan_backup(
            protected.client._calls,
            [os.fsencode(public_path / "home" / name) for name in ("me", "all")],
            BackupOptions(dataset="data"),
            each=named.append,
        )
    assert plan.complete
    assert [each.path for each in named] == ["", "all", "all/doc", "me", "me/doc"]


def test_another_common_parent_is_another_root(protected) -> None:
    make(protected.source, "a/b/1", "a/c/1", "d")
    protected.backup([protected.source / "a/b", protected.source / "a/c"])
    with pytest.raises(RootDiffersError):
        protected.backup([protected.source / "a/b", protected.source / "d"])


def test_one_string_is_not_a_list_of_paths(protected) -> None:
    make(protected.source, "a")
    with pytest.raises(BadRequestError, match="list of paths"):
        protected.client.backup(protected.source, dataset="data", paths="a")
    with pytest.raises(BadRequestError, match="No path"):
        protected.client.backup([], dataset="data")


def test_paths_have_the_expected_root() -> None:
    assert source_of([b"/etc", b"/home"]).root == b"/"
    assert source_of([b"/etc", b"/home"]).chosen.named == {b"etc", b"home"}
    assert source_of([b"/usr/./bin//", b"/usr/bin"]).root == b"/usr/bin"
    assert source_of([b"//usr/bin"]).root == b"/usr/bin"
    both = source_of([b"/", b"/usr/bin"])
    assert both.root == b"/"
    assert b"" in both.chosen.named


def test_a_link_before_two_dots_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/below")
    assert absolute(os.fsencode(tmp_path / "link" / ".." / "x")) == os.fsencode(tmp_path / "real" / "x")


def test_staying_in_one_file_system_counts_from_each_path(only_root, protected, tmp_path: Path) -> None:
    top = protected.source
    (top / "mnt/disk").mkdir(parents=True)
    if os.system(f"mount -t tmpfs none {top}/mnt/disk 2>/dev/null"):
        pytest.skip("nothing can be mounted here")
    try:
        make(top, "mnt/disk/home/doc", "mnt/disk/other", "root-file")
        protected.backup(top, dataset="one", one_file_system=True)
        assert names_in(protected, "one") == ["mnt", "mnt/disk", "root-file"]
        for _ in range(2):
            protected.backup([top, top / "mnt/disk/home"], one_file_system=True)
            assert names_in(protected) == [
                *("mnt", "mnt/disk", "mnt/disk/home", "mnt/disk/home/doc", "root-file"),
            ]
        made = protected.backup(dataset="list", one_file_system=True, paths=("mnt/disk/home", "root-file"))
        assert names_in(protected, "list") == ["mnt", "mnt/disk", "root-file"]
        assert [(note.kind, note.path) for note in made.notes] == [(ProblemKind.SKIPPED, "mnt/disk")]
    finally:
        os.system(f"umount --lazy {top}/mnt/disk")


# --- lists


@BOTH_WAYS
@CACHED
def test_a_list_names_files_and_directories_with_everything_below(
    cached: bool, thin: bool, protected, tmp_path: Path
) -> None:
    options = {"thin": thin} if cached else {"thin": thin, "cache_dir": None}
    top = protected.source
    make(top, "a/b/1", "a/b/2", "a/c/3", "d/e/4", "f", "-dash", "new\nline")
    odd = b"d/\xff"
    Path(os.fsdecode(os.path.join(os.fsencode(top), odd))).write_text("odd")
    (top / "link").symlink_to("a")
    listed = ("./a/b/", b"d/\xff", "-dash", "new\nline", f"{top}/link", "a//b/1")
    for _ in range(2):
        made = protected.backup(paths=listed, **options)
        assert made.complete
        assert [entry.path_bytes for entry in protected.client.entries("data", recursive=True)] == [
            *(b"-dash", b"a", b"a/b", b"a/b/1", b"a/b/2", b"d", odd, b"link", b"new\nline"),
        ]
    assert made.read_bytes == 0
    protected.restore(tmp_path / "out")
    assert_same(tmp_path / "out" / "a" / "b", top / "a" / "b")
    assert os.readlink(tmp_path / "out" / "link") == "a"
    changes = protected.backup(paths=["a/b/2", "f"], **options).backup.changes
    assert (changes.added, changes.removed) == (1, 6)


def test_listed_paths_that_do_not_exist_are_problems_and_the_rest_is_backed_up(protected) -> None:
    make(protected.source, "a", "d/x")
    (protected.source / "link").symlink_to("d")
    for _ in range(2):
        made = protected.backup(paths=("a", "gone", "d/gone", "a/below", "link/x", "no/where/at", "no/more"))
        assert reasons(made.problems) == [
            *(("a/below", "it was named"), ("d/gone", "it was named"), ("gone", "it was named")),
            *(("link/x", "it was named"), ("no/more", "it was named"), ("no/where/at", "it was named")),
        ]
        assert names_in(protected) == ["a", "d"]
        assert not made.notes
    for _ in range(2):
        made = protected.backup(paths=("d", "d/gone", "d/x/below", ".", "not"))
        assert reasons(made.problems) == [
            *(("d/gone", "it was named"), ("d/x/below", "it was named"), ("not", "it was named")),
        ]


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "empty"),
        (["../x"], "not a path below"),
        (["a/../../x"], "not a path below"),
        ([""], "not a path below"),
        (["a\0b"], "not a path below"),
        (["/etc/passwd"], "does not lie below"),
        (["gone", "away"], "None of the 2"),
        (["x" * 20_000], "not a path that a backup can hold"),
    ],
)
def test_an_impossible_list_is_refused(names: list[str], why: str, protected) -> None:
    make(protected.source, "a")
    with pytest.raises(BadRequestError, match=why):
        protected.backup(paths=names)
    assert list(protected.client.datasets()) == []


def test_a_list_below_a_file_or_several_paths_is_refused(protected) -> None:
    make(protected.source, "a", "d/x")
    for path in (protected.source / "a", [protected.source / "a", protected.source / "d"]):
        with pytest.raises(BadRequestError):
            protected.backup(path, paths=["x"])


def test_exclusions_apply_to_lists(protected) -> None:
    make(protected.source, "a.o", "b", "big-one", "cache/x", "marked/.nobackup", "marked/deep/x", "d/e.o")
    (protected.source / "cache/CACHEDIR.TAG").write_bytes(CACHE_TAG_SIGNATURE)
    listed = ("a.o", "b", "big-one", "cache/x", "marked/deep/x", "d")
    made = protected.backup(
        paths=listed, exclude=("*.o",), exclude_if_present=(".nobackup",), exclude_larger_than_bytes=5
    )
    assert names_in(protected) == ["b", "cache", "d", "marked"]
    assert [note.path for note in made.notes] == ["big-one", "cache", "marked"]


def test_a_list_may_name_the_root(protected) -> None:
    make(protected.source, "a", "d/x")
    for name in (".", "./", str(protected.source)):
        protected.backup(paths=(name, "gone"), dataset="data")
        assert names_in(protected) == ["a", "d", "d/x"]


def test_a_dry_run_knows_lists_and_several_paths(protected) -> None:
    make(protected.source, "a", "d/x", "e/y")
    for given, paths in ((["a", "d"], None), ([""], ["a", "d"])):
        named = []
        plan = plan_backup(
            protected.client._calls,
            [os.fsencode(protected.source / each) for each in given],
            BackupOptions(dataset="data", kind=BackupKind.AUTO, paths=paths),
            each=named.append,
        )
        assert [each.path for each in named] == ["", "a", "d", "d/x"]
        assert plan.new.entries == 4


def test_an_interrupted_backup_of_other_paths_is_not_resumed(protected) -> None:
    make(protected.source, "a", "d/x", "e/y")

    class StoppedError(Exception):
        pass

    def interrupting() -> int:
        raise StoppedError

    def interrupt(*names: str) -> None:
        with pytest.raises(StoppedError):
            protected.backup(paths=names, clock=interrupting)

    interrupt("a", "d")
    assert protected.backup(paths=["d", "a"]).resumed
    interrupt("a", "d")
    assert not protected.backup(paths=["a", "e"]).resumed
    assert names_in(protected) == ["a", "e", "e/y"]
    interrupt("a", "d")
    assert not protected.backup(paths=["a", "d"], exclude_if_present=("x",)).resumed, "and other rules"
    interrupt("a", "d")
    assert not protected.backup([protected.source / name for name in ("a", "d")]).resumed
