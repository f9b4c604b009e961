"""A dry run shows what the restore then does, whatever the target contains."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
from staddle.v1 import resources_pb2 as pb
from test_fs_restore import MTIME_NS, Server, file, other, restore

WANTED = {
    "file": [file("d/p", b"wanted")],
    "linked": [
        file("d/p", b"wanted", link_group=b"g"),
        file("d/q", b"wanted", link_group=b"g"),
        file("d/r", b"wanted", link_group=b"g"),
    ],
    "directory": [other("d/p"), file("d/p/in", b"in")],
    "link": [other("d/p", pb.ENTRY_TYPE_SYMLINK, link_target="nowhere")],
    "pipe": [other("d/p", pb.ENTRY_TYPE_FIFO, mode=0o644)],
}


def write(path: Path, data: bytes, mtime_ns: int = MTIME_NS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def make_filled(path: Path) -> None:
    write(path / "mine", b"mine")


def make_linked(target: Path) -> None:
    write(target / "d" / "p", b"wanted")
    os.link(target / "d" / "p", target / "d" / "q")
    write(target / "d" / "r", b"wanted")


def make_linked_but_first(target: Path) -> None:
    write(target / "d" / "p", b"before")
    write(target / "d" / "q", b"wanted")


THERE = {
    "no-target": None,
    "absent": lambda target: write(target / "other", b""),
    "no-directory": lambda target: write(target / "d", b"in the way"),
    "same": lambda target: write(target / "d" / "p", b"wanted"),
    "other-bytes": lambda target: write(target / "d" / "p", b"before"),
    "other-size": lambda target: write(target / "d" / "p", b"longer than that"),
    "rounded-time": lambda target: write(target / "d" / "p", b"wanted", MTIME_NS - MTIME_NS % 10**9),
    "directory": lambda target: (target / "d" / "p").mkdir(parents=True),
    "filled-directory": lambda target: make_filled(target / "d" / "p"),
    "link": lambda target: ((target / "d").mkdir(parents=True), (target / "d" / "p").symlink_to("nowhere")),
    "link-to-directory": lambda target: (
        make_filled(target / "there"),
        (target / "d").mkdir(),
        (target / "d" / "p").symlink_to("../there"),
    ),
    "directory-is-link": lambda target: (make_filled(target / "there"), (target / "d").symlink_to("there")),
    "pipe": lambda target: ((target / "d").mkdir(parents=True), os.mkfifo(target / "d" / "p", 0o644)),
    "linked-in-part": make_linked,
    "linked-but-first": make_linked_but_first,
}
HOW = {
    "if-changed": {},
    "never": {"overwrite": "never"},
    "always": {"overwrite": "always"},
    "delete": {"delete": True},
    "include": {"include": ["p"]},
    "exclude": {"exclude": ["q", "in"], "delete": True},
    "one-path": {"paths": (b"d/p",)},
    "one-path-never": {"paths": (b"d/p",), "overwrite": "never"},
}


@pytest.mark.parametrize("how", HOW)
def test_a_dry_run_shows_what_the_restore_does(how: str, tmp_path: Path) -> None:
    wrong = []
    for number, (wanted, there) in enumerate(itertools.product(WANTED, THERE)):
        server = Server(other(""), other("d"), *WANTED[wanted])
        target = tmp_path / str(number) / "target"
        if THERE[there] is not None:
            target.mkdir(parents=True)
            THERE[there](target)
        planned = restore(server, target, dry_run=True, **HOW[how])
        done = restore(server, target, **HOW[how])
        wrong.extend(
            (wanted, there, name, getattr(planned, name), getattr(done, name))
            for name in ("entries_written", "entries_unchanged", "data_bytes", "problems", "deleted_paths")
            if getattr(planned, name) != getattr(done, name)
        )
        made = sum(vars_of(planned.made)) + sum(vars_of(planned.replaced))
        assert made == planned.entries_written
        if wanted == "linked" and how in ("if-changed", "always") and not done.problems:
            assert len({(target / "d" / name).stat().st_ino for name in "pqr"}) == 1
    assert not wrong, "\n".join(map(str, wrong))


def vars_of(counts) -> list[int]:
    return [counts.files, counts.directories, counts.symlinks, counts.others]


@pytest.mark.usefixtures("only_root")
def test_a_comparison_says_of_a_setuid_file_of_another_owner_that_its_owner_differs(tmp_path: Path) -> None:
    server = Server(other(""), file("p", b"", uid=0, gid=0), file("q", b"", uid=0, gid=0))
    for item, _ in server.items[1:]:
        item.mode = 0o4755
    restore(server, tmp_path / "target")
    os.chown(tmp_path / "target" / "p", 65_534, 0)
    (tmp_path / "target" / "p").chmod(0o4755)
    (tmp_path / "target" / "q").chmod(0o755)
    said = restore(server, tmp_path / "target", dry_run=True, verify=True).problems
    assert [(each.path, each.message) for each in said] == [
        ("p", "its owner differs"),
        ("q", "its mode differs"),
    ]
    restore(server, tmp_path / "target")
    assert restore(server, tmp_path / "target", dry_run=True, verify=True).complete


def test_a_comparison_says_what_is_different(tmp_path: Path) -> None:
    link = other("l", pb.ENTRY_TYPE_SYMLINK, link_target="here")
    server = Server(
        other(""), file("f", b""), link, file("x", b"", link_group=b"g"), file("y", b"", link_group=b"g")
    )
    target = tmp_path / "target"
    target.mkdir()
    (target / "f").symlink_to("nowhere")
    (target / "l").symlink_to("there")
    write(target / "x", b"")
    write(target / "y", b"")
    said = restore(server, target, dry_run=True, verify=True).problems
    assert [(each.path, each.message) for each in said] == [
        ("f", "it is of another type"),
        ("l", "its link target differs"),
        ("y", "it is not linked as in the backup"),
    ]
