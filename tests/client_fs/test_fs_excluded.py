"""Patterns, tag files and sizes that exclude paths from a backup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from staddle._errors import BadRequestError
from staddle._fs.excludes import excludes_of, lines_of
from staddle._fs.omissions import CACHE_TAG_SIGNATURE
from staddle._types.reports import ProblemKind
from test_fs_real_machines import BOTH_WAYS, names_in


def test_patterns_from_a_pipe_apply_to_every_scan(protected) -> None:
    for name in ("secret", "open"):
        (protected.source / name).touch()
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(b"secret\n")
    try:
        protected.backup(exclude_files=(f"/proc/self/fd/{reading}",))
    finally:
        os.close(reading)
    assert names_in(protected) == {"open"}


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfsecret\nother\n",
        b"secret\r\nother\r\n",
        b"\xef\xbb\xbf# why\r\n\r\nsecret\r\nother",
        "secret\r\nother\r\n".encode("utf-16"),
    ],
)
def test_pattern_files_are_read_as_editors_write_them(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "patterns"
    file.write_bytes(data)
    assert lines_of(file) == ["secret", "other"]


@pytest.mark.parametrize(
    "pattern",
    [
        "{root}/cache",
        "{root}/cache/",
        "{root}/./cache/.",
        "./cache",
        "cache/.",
        "//cache",
        "{root}//cache",
        "{link}/cache",
    ],
)
def test_a_pattern_with_another_spelling_of_a_path_excludes_it(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    root, link = tmp_path / "root", tmp_path / "link"
    given = link if "{link}" in pattern else root
    excluded = excludes_of([pattern.format(root=root, link=link)], root=os.fsencode(given))
    assert excluded(b"cache", True)
    assert not excluded(b"other/cache", True)
    assert excludes_of([f"{root}/cache"], root=os.fsencode(link))(b"cache", True)


@pytest.mark.parametrize(
    "pattern",
    [
        *("[z-a]", "[!9-0]x", "!", "! ", "", " ", "#emacs#", "/", "..", "../x", "a/../b", "./", "x\\"),
        *("[:digit:]", "x[:alpha:]*", "[[:digits:]]", "[[:digit:]z-a]"),
    ],
)
def test_an_impossible_pattern_is_refused_by_name(pattern: str, protected) -> None:
    with pytest.raises(BadRequestError, match="invalid pattern"):
        protected.backup(exclude=(pattern,))


@pytest.mark.parametrize(
    ("pattern", "matched", "other"),
    [
        ("log.[[:digit:]]*", "log.1", "log.x"),
        ("[[:digit:][:upper:]_]x", "Ax", "ax"),
        ("[![:alpha:]]", "1", "a"),
        ("[^[:space:]]", "a", "\t"),
        ("[[:punct:]]", "]", "a"),
        ("[[:punct:]]", "!", "b"),
        ("[x[:punct:]]", "\\", "!x"),
        ("[[:graph:]]", "!", " x"),
        ("[[:xdigit:]]", "F", "g"),
        ("[a&&b]", "&", "c"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_pattern_may_name_classes_as_in_gitignore(pattern: str, matched: str, other: str) -> None:
    excluded = excludes_of([pattern])
    assert excluded(os.fsencode(matched), False)
    assert not excluded(os.fsencode(other), False)


@pytest.mark.parametrize("name", ["punct", "graph", "print", "cntrl", "space"])
def test_no_class_matches_a_slash(name: str) -> None:
    assert not excludes_of([f"a[[:{name}:]]b"])(b"a/b", False)


def test_the_root_itself_cannot_be_excluded(protected) -> None:
    with pytest.raises(BadRequestError, match="all of PATH"):
        protected.backup(exclude=(str(protected.source),))


@BOTH_WAYS
def test_a_pattern_that_matched_nothing_is_a_warning_on_every_backup(thin: bool, protected) -> None:
    for name in ("a.o", "keep.o", "file"):
        (protected.source / name).touch()
    (protected.source / "dir").mkdir()
    for _ in range(2):
        made = protected.backup(thin=thin, exclude=("*.o", "kee?.o", "!keep.o", "file/", "dir/", "nothing"))
        (warning,) = made.warnings
        assert "'file/', 'nothing'." in warning
        assert not any(name in warning for name in ("*.o", "kee?.o", "keep.o", "dir/"))


@pytest.mark.parametrize("pattern", ["dead", "dead/", "/dead/", "d*"])
def test_an_excluded_mount_that_does_not_answer_is_not_a_problem(
    pattern: str, protected, monkeypatch: pytest.MonkeyPatch
) -> None:
    (protected.source / "dead").mkdir()
    (protected.source / "file").touch()
    real = os.stat
    asked: list[str] = []

    def look(path, **options):
        if path == b"dead":
            asked.append(pattern)
            raise OSError(107, "Transport endpoint is not connected")
        return real(path, **options)

    monkeypatch.setattr(os, "stat", look)
    for _ in range(2):  # the second one by the cache
        made = protected.backup(exclude=(pattern,))
        assert made.complete
        assert not made.warnings
    assert not asked or pattern.endswith("/"), "another dead mount never answers"
    assert not protected.backup().complete


@pytest.mark.parametrize("mark", ["", ".", "..", "a/b", "/a", "*.tag", "no?"])
def test_an_impossible_tag_file_is_refused(mark: str, protected) -> None:
    with pytest.raises(BadRequestError, match="cannot mark a directory"):
        protected.backup(exclude_if_present=(mark,))


def test_an_absolute_pattern_outside_the_root_is_a_warning_and_one_above_it_too(protected) -> None:
    (protected.source / "cache").mkdir()
    patterns = ("/var/cache", str(protected.source.parent), "~/cache", f"{protected.source}/cach")
    made = protected.backup(exclude=patterns)
    assert names_in(protected) == {"cache"}
    assert all(repr(pattern) in made.warnings[0] for pattern in patterns)


def make_cache(directory: Path, tag: bytes = CACHE_TAG_SIGNATURE + b"\n") -> None:
    directory.mkdir()
    (directory / "CACHEDIR.TAG").write_bytes(tag)
    (directory / "thing").write_text("again")


@BOTH_WAYS
def test_tagged_caches_are_left_out_with_a_note(thin: bool, protected) -> None:
    make_cache(protected.source / "cache")
    make_cache(protected.source / "no-cache", b"Signature: something else")
    left = {"cache", "cache/CACHEDIR.TAG", "no-cache", "no-cache/CACHEDIR.TAG", "no-cache/thing"}
    protected.backup(thin=thin, exclude_caches=False)
    assert names_in(protected) == {*left, "cache/thing"}
    made = protected.backup(thin=thin)
    assert names_in(protected) == left
    assert made.complete
    assert [(note.kind, note.path) for note in made.notes] == [(ProblemKind.SKIPPED, "cache")]
    protected.backup(protected.source / "cache", dataset="named", thin=thin)
    assert names_in(protected, "named") == {"CACHEDIR.TAG", "thing"}
    protected.backup(
        protected.source / "cache", dataset="marked", thin=thin, exclude_if_present=(".nobackup",)
    )
    assert names_in(protected, "marked") == {"CACHEDIR.TAG", "thing"}


def test_the_cache_of_the_client_is_not_backed_up(protected) -> None:
    cache = protected.source / "cache"
    for _ in range(2):
        protected.backup(cache_dir=str(cache))
    assert names_in(protected) == {"cache", "cache/CACHEDIR.TAG"}


def test_the_data_of_a_server_is_left_out_and_refused_as_the_root(protected) -> None:
    data = protected.source / "server"
    (data / "store").mkdir(parents=True)
    (data / "master.key").write_text("staddle-master-key-1 secret\n")
    made = protected.backup()
    assert names_in(protected) == {"server"}
    assert [note.path for note in made.notes] == ["server"]
    with pytest.raises(BadRequestError, match="no-exclude-caches"):
        protected.backup(data, dataset="other")
    protected.backup(exclude_caches=False)
    assert "server/master.key" in names_in(protected)


@BOTH_WAYS
def test_marked_directories_and_large_files_are_left_out(thin: bool, protected) -> None:
    (protected.source / "big").write_bytes(b"x" * 1001)
    (protected.source / "fits").write_bytes(b"x" * 1000)
    (protected.source / "marked").mkdir()
    (protected.source / "marked" / ".nobackup").touch()
    (protected.source / "marked" / "f").touch()
    for _ in range(2):
        made = protected.backup(thin=thin, exclude_if_present=(".nobackup",), exclude_larger_than_bytes=1000)
        assert names_in(protected) == {"fits", "marked", "marked/.nobackup"}
        assert [note.path for note in made.notes] == ["big", "marked"]
