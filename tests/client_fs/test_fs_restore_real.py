"""Restores on real machines: full disks, missing permissions, coarse times, concurrent writers, killed restores."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fs_trees import open_below, seeded_bytes
from staddle._fs.temporary_names import is_temporary, open_temporary
from staddle._restore.stats import TargetFullError
from staddle._restore.target_directory import AppearedError
from staddle._restore.temporary_file import TemporaryFile
from staddle._types.options import Overwrite
from staddle._types.reports import ProblemKind
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from test_fs_restore import MTIME_NS, Server, file, leftovers, other, restore

SECOND_NS = 1_000_000_000


@pytest.fixture
def mounted(tmp_path: Path, only_root: None) -> Iterator[Callable[..., Path]]:
    """Mounts a small file system; skips where that is not possible."""
    places: list[Path] = []

    def mount(*arguments: str) -> Path:
        place = tmp_path / f"mounted-{len(places)}"
        place.mkdir()
        done = subprocess.run(["mount", *arguments, place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.decode().strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "--lazy", place], check=True)  # a failed test may hold files open


def modes_of(*paths: Path) -> list[int]:
    return [stat.S_IMODE(path.lstat().st_mode) for path in paths]


# --- a full target


def moved(entry: pb.Entry, where: str) -> pb.Entry:
    """The entry, below a directory."""
    made = pb.Entry()
    made.CopyFrom(entry)
    made.path = where + entry.path
    return made


@pytest.mark.parametrize(
    "items",
    [
        [file("large", seeded_bytes(1, 3_000_000))],
        [file(f"small-{number}", seeded_bytes(number, 400_000)) for number in range(9)],
        [file("linked", seeded_bytes(2, 3_000_000), link_group=b"g")],
        [
            file(f"l-{number}", seeded_bytes(number, 400_000), link_group=b"%d" % number)
            for number in range(9)
        ],
    ],
    ids=["a large file", "small files", "a linked file", "small linked files"],
)
@pytest.mark.parametrize("where", ["", "new/"], ids=["at the top", "in a new directory"])
def test_a_full_target_is_reported_and_keeps_no_part_of_a_file(
    items: list[tuple[pb.Entry, bytes]], where: str, mounted: Callable[..., Path]
) -> None:
    target = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    placed = [other("new"), *((moved(entry, where), data) for entry, data in items)]
    with pytest.raises(TargetFullError) as caught:
        restore(Server(other(""), *placed), target)
    assert caught.value.errno == errno.ENOSPC
    assert leftovers(target) == []
    sizes = {os.path.basename(entry.path): entry.content.size_bytes for entry, _ in items}
    assert all(path.stat().st_size == sizes[path.name] for path in target.rglob("*") if path.is_file())
    assert open_below(target) == []


@pytest.mark.parametrize("how", ["full", "read-only", "bound read-only"])
def test_a_read_only_or_full_mount_in_the_target_costs_only_its_own_files(
    how: str, tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    target = tmp_path / "target"
    (target / "d").mkdir(parents=True)
    if how == "bound read-only":
        place = mounted("--bind", str(tmp_path / "target"))
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
    else:
        place = mounted("-t", "tmpfs", "-o", "size=64k" if how == "full" else "ro", "tmpfs")
    subprocess.run(["mount", "--bind", place, target / "d"], check=True)
    if how == "bound read-only":
        subprocess.run(["mount", "-o", "remount,bind,ro", target / "d"], check=True)
    try:
        items = [
            other("d", mode=0o755),
            file("d/large", seeded_bytes(1, 3_000_000)),
            file("d/small", seeded_bytes(2, 300_000)),
            file("d/linked", seeded_bytes(3, 300_000), link_group=b"g"),
            file("e", b"rest"),
        ]
        report = restore(Server(other(""), *items), target)
        assert {"d/large", "d/small", "d/linked"} <= {each.path for each in report.problems}
        assert (target / "e").read_bytes() == b"rest"
        assert leftovers(target) == []
    finally:
        subprocess.run(["umount", "--lazy", target / "d"], check=True)


def test_a_file_over_the_limit_of_the_process_is_reported_with_its_cause(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    server = Server(file("large", seeded_bytes(1, 3_000_000)), file("small"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        report = restore(server, tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(problem.path, problem.message) for problem in report.problems] == [
        ("large", os.strerror(errno.EFBIG))
    ]
    assert (tmp_path / "target" / "small").read_bytes() == b"data"
    assert leftovers(tmp_path / "target") == []


# --- permissions that the owner lacks


def test_the_owner_restores_files_and_directories_without_permissions(
    public_path: Path, as_ordinary_user
) -> None:
    target = public_path / "target"
    items = [
        other("d", mode=0o555),
        file("d/gone", b"again"),
        file("d/same", b"same"),
        other("shut", mode=0o750),
        other("shut/in", mode=0o700),
        file("shut/in/f", b"inside"),
        file("unreadable", b"mine"),
    ]
    with as_ordinary_user():
        restore(Server(*items), target)
        (target / "d").chmod(0o755)
        (target / "d" / "gone").unlink()
        for path in ("unreadable", "d/same", "d", "shut/in", "shut"):
            (target / path).chmod(0o555 if path == "d" else 0)
        report = restore(Server(*items), target)
        assert report.problems == ()
        assert (report.entries_written, report.entries_unchanged) == (1, 6)
        paths = [target / path for path in ("d", "d/same", "shut", "shut/in", "unreadable")]
        assert modes_of(*paths) == [0o555, 0o644, 0o750, 0o700, 0o644]
        assert (target / "d" / "gone").read_bytes() == b"again"
        assert (target / "shut" / "in" / "f").read_bytes() == b"inside"
        (target / "d").chmod(0o755)


def test_permissions_of_kept_directories_are_restored(public_path: Path, as_ordinary_user) -> None:
    target = public_path / "target"
    with as_ordinary_user():
        (target / "a" / "b").mkdir(parents=True)
        (target / "a" / "b").chmod(0o500)
        (target / "a").chmod(0o000)
        report = restore(
            Server(other("a", mode=0o700), other("a/b", mode=0o700), file("a/b/c")), target, paths=(b"a/b/c",)
        )
        assert report.problems == ()
        assert modes_of(target / "a") == [0o000]
        (target / "a").chmod(0o700)
        assert modes_of(target / "a" / "b") == [0o500]
        assert (target / "a" / "b" / "c").read_bytes() == b"data"
        (target / "a" / "b").chmod(0o700)


def test_attributes_of_a_file_that_its_owner_may_not_write_are_set(
    public_path: Path, as_ordinary_user
) -> None:
    entry, data = file("f")
    entry.mode = 0o444
    entry.xattrs.add(name="user.note", value=b"kept")
    target = public_path / "target"
    with as_ordinary_user():
        for left_with in (0o000, 0o444, 0o644):
            assert restore(Server((entry, data)), target).problems == ()
            assert os.getxattr(target / "f", "user.note") == b"kept"
            assert modes_of(target / "f") == [0o444]
            (target / "f").chmod(0o644)
            os.removexattr(target / "f", "user.note")
            (target / "f").chmod(left_with)


# --- setuid and setgid


@pytest.mark.parametrize(
    ("owner", "wanted", "words"),
    [
        ({"uid": 0, "gid": 0}, 0o755, "setuid and setgid"),
        ({"uid": 0}, 0o2755, "setuid"),
        ({"gid": 0}, 0o4755, "setgid"),
        ({}, 0o6755, ""),
    ],
)
def test_setuid_and_setgid_are_dropped_and_reported_where_the_owner_could_not_be_set(
    owner: dict[str, int], wanted: int, words: str, public_path: Path, as_ordinary_user
) -> None:
    entry, data = file("tool", **owner)
    entry.mode = 0o6755
    with as_ordinary_user():
        for _ in range(2):
            report = restore(Server((entry, data)), public_path / "target")
            assert modes_of(public_path / "target" / "tool") == [wanted]
            found = [problem.message for problem in report.problems]
            assert found == ([f"mode: {words} dropped, because its owner could not be set"] if words else [])


def test_root_keeps_setuid_of_the_owner_that_it_sets(tmp_path: Path, only_root: None) -> None:
    entry, data = file("tool", uid=65534, gid=65534)
    entry.mode = 0o6755
    assert restore(Server((entry, data)), tmp_path / "target").problems == ()
    assert modes_of(tmp_path / "target" / "tool") == [0o6755]


# --- paths that appear during the restore

APPEARING: dict[str, tuple[pb.Entry, bytes]] = {
    "a small file": file("x"),
    "a large file": file("x", seeded_bytes(5, 900_000)),
    "a linked file": file("x", link_group=b"g"),
    "a symlink": other("x", pb.ENTRY_TYPE_SYMLINK, link_target="y"),
    "a fifo": other("x", pb.ENTRY_TYPE_FIFO),
    "a directory": other("x"),
}


@pytest.mark.parametrize("there", ["file", "link"])
@pytest.mark.parametrize("overwrite", ["if-changed", "never"])
@pytest.mark.parametrize(
    ("what", "fresh"),
    [(what, True) for what in APPEARING] + [(what, False) for what in APPEARING if what.endswith("file")],
)
def test_paths_that_appear_during_a_restore_are_neither_replaced_nor_followed(
    there: str, what: str, overwrite: str, fresh: bool, tmp_path: Path
) -> None:
    target, precious = tmp_path / "target", tmp_path / "precious"
    precious.write_text("keep me")
    item = APPEARING[what]
    target.mkdir()
    if not fresh:
        (target / "extra").touch()

    def appear() -> None:
        if there == "file":
            (target / "x").write_text("somebody's")
        else:
            (target / "x").symlink_to(precious)

    class Late(Server):
        """A path appears at x after the restore has decided what to do there."""

        def stream(self, method, request, *, retry):
            for response in super().stream(method, request, retry=retry):
                if request.view == sv.ENTRY_VIEW_DATA and not os.path.lexists(target / "x"):
                    appear()
                yield response

    report = restore(Late(file("g", link_group=b"g"), item), target, overwrite=overwrite)
    assert (target / "g").read_bytes() == b"data"
    assert (target / "x").read_text() == ("somebody's" if there == "file" else "keep me")
    assert (target / "x").is_symlink() == (there == "link")
    assert precious.read_text() == "keep me"
    if overwrite == "never" and item[0].type != pb.ENTRY_TYPE_DIRECTORY:
        assert report.problems == ()
        assert any("kept" in warning for warning in report.warnings)
    else:
        assert [(problem.kind, problem.path) for problem in report.problems] == [
            (ProblemKind.NOT_WRITTEN, "x")
        ]
    assert leftovers(target) == []


def test_paths_that_appear_in_an_empty_target_are_kept_even_with_selected_paths(
    tmp_path: Path,
) -> None:
    target = tmp_path / "target"

    def appear() -> None:
        target.mkdir(exist_ok=True)
        (target / "f").write_bytes(b"other")
        (target / "g").write_bytes(b"data")
        (target / "g").chmod(0o600)
        os.utime(target / "g", ns=(MTIME_NS, MTIME_NS))

    server = Server(file("f"), file("g"), file("unwanted"))
    server.hooks[b"f"] = appear
    report = restore(server, target, exclude=("unwanted",))
    assert [(problem.kind, problem.path) for problem in report.problems] == [(ProblemKind.NOT_WRITTEN, "f")]
    assert (target / "f").read_bytes() == b"other"
    assert modes_of(target / "g") == [0o600]


# --- existing files


def test_a_target_with_times_of_whole_seconds_is_not_rewritten(
    tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4_000_000))
    subprocess.run(["mkfs.ext2", "-q", "-I", "128", image], check=True)
    target = mounted("-o", "loop", str(image))
    (target / "lost+found").rmdir()
    old, _ = file("old")
    old.mtime_ns = -9_000_000_000 * SECOND_NS
    items = [file("f"), (old, b"data"), other("link", pb.ENTRY_TYPE_SYMLINK, link_target="f")]
    assert restore(Server(*items), target).entries_written == 3
    assert (target / "f").stat().st_mtime_ns == MTIME_NS // SECOND_NS * SECOND_NS
    again = restore(Server(*items), target)
    assert (again.entries_written, again.entries_unchanged) == (0, 3)
    assert restore(Server(items[0], items[2]), target, dry_run=True).entries_written == 0
    os.utime(target / "f", ns=(0, MTIME_NS + SECOND_NS))
    assert restore(Server(*items), target).entries_written == 1


def test_a_time_without_its_fraction_differs_if_the_target_keeps_fractions(tmp_path: Path) -> None:
    target = tmp_path / "target"
    restore(Server(file("f", b"right")), target)
    (target / "f").write_bytes(b"wrong")
    os.utime(target / "f", ns=(0, MTIME_NS // SECOND_NS * SECOND_NS))
    assert restore(Server(file("f", b"right")), target).entries_written == 1
    assert (target / "f").read_bytes() == b"right"


# --- restores that were killed


def test_a_restore_removes_only_the_leftovers_of_killed_restores(tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "d").mkdir(parents=True)
    dead = [f".staddle-restore-{'0' * 16}-1", f".staddle-restore-{'0' * 16}-2"]
    alive = f".staddle-restore-{'1' * 16}-3"
    others = [".staddle-restore", ".staddle-restore-notes-1", f".staddle-restore-{'0' * 16}-1.txt"]
    for name in (dead[0], alive, *others):
        (target / "d" / name).write_text("something")
    (target / "d" / dead[1]).symlink_to("nowhere")
    with (target / "d" / alive).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        restore(Server(other("d"), file("d/f")), target)
        assert {path.name for path in (target / "d").iterdir()} == {"f", alive, *others}
    restore(Server(other("d"), file("d/f")), target, paths=(b"d/f",))
    assert {path.name for path in (target / "d").iterdir()} == {"f", *others}


def test_a_temporary_file_is_locked_as_long_as_it_has_its_name(tmp_path: Path) -> None:
    directory = os.open(tmp_path, os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    name, descriptor = open_temporary(directory, flags, 0o600)
    try:
        assert is_temporary(name)
        with (tmp_path / os.fsdecode(name)).open() as second, pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
        os.close(directory)
    assert not is_temporary(b"d/" + name)
    assert not is_temporary(name + b"\n")


KILLED = """
import resource, signal, sys
from test_fs_restore import Server, file, other, restore
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
restore(Server(other("new"), file("new/f", bytes(5000))), sys.argv[1], overwrite=sys.argv[2])
"""
"""The system kills the process in the middle of its file."""


@pytest.mark.parametrize("overwrite", ["if-changed", "never"])
def test_the_next_restore_makes_whole_what_a_killed_one_left(overwrite: Overwrite, tmp_path: Path) -> None:
    target = tmp_path / "target"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, target, overwrite],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)},
        check=False,
    )
    assert done.returncode == -signal.SIGXFSZ
    (left,) = (target / "new").iterdir()
    assert left.stat().st_size == 2000
    # What has a file's name is never replaced with `never`, so there it is whole.
    assert is_temporary(os.fsencode(left.name)) is (overwrite == "never")
    restore(Server(other("new"), file("new/f", bytes(5000))), target, overwrite=overwrite)
    assert {path.name: path.read_bytes() for path in (target / "new").iterdir()} == {"f": bytes(5000)}


def test_a_small_file_in_a_new_directory_replaces_nothing_that_has_appeared(tmp_path: Path) -> None:
    place = os.open(tmp_path, os.O_RDONLY)
    (tmp_path / "f").write_text("appeared")
    try:
        with pytest.raises(AppearedError):
            TemporaryFile(place, b"f", b"new/f", file("new/f")[0], exclusive=True, at_once=True)
    finally:
        os.close(place)
    assert (tmp_path / "f").read_text() == "appeared"


# --- with a server


def test_a_forked_process_sweeps_files_of_a_killed_parent_and_uses_other_names(tmp_path: Path) -> None:
    program = (
        "import os, sys; from staddle._fs.temporary_names import open_temporary, sweep\n"
        "here = os.open(sys.argv[1], os.O_RDONLY)\n"
        "name, descriptor = open_temporary(here, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)\n"
        "os.close(descriptor)\n"  # as after a kill: the lock is gone, the file is not
        "if (child := os.fork()) == 0:\n"
        "    other, _ = open_temporary(here, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)\n"
        "    print(other[:-1] != name[:-1], sweep(here), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, check=True, text=True
    )
    assert done.stdout == "True 1\n"
