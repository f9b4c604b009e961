"""docs/fidelity.md, row by row."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from fs_trees import assert_same, make_socket, nodes_of, seeded_bytes

TABLE = Path(__file__).parents[2] / "docs" / "fidelity.md"
ROOT = os.geteuid() == 0
ANCIENT_NS = 1_000_000_000_123_456_789


class Row(NamedTuple):
    make: Callable[[Path], None]
    check: Callable[[Path, Path, object], None]


ROWS: dict[str, Row] = {}


def row(name: str, make: Callable[[Path], None]):
    """Declares a row: `make` puts it into an empty directory; the decorated function checks source, target and report."""

    def declare(check: Callable[[Path, Path, object], None]) -> Callable[[Path, Path, object], None]:
        assert name not in ROWS
        ROWS[name] = Row(make, check)
        return check

    return declare


def rows_of_table() -> list[str]:
    lines = TABLE.read_text().splitlines()
    start = lines.index("|---|---|---|")
    names = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        names.append(re.split(r"\s*\|\s*", line)[1])
    return names


def test_the_table_has_exactly_the_tested_rows() -> None:
    assert rows_of_table() == list(ROWS)


@pytest.mark.parametrize("name", rows_of_table())
def test_a_row_of_the_table_is_true_for_both_ways_of_sending(name: str, protected, tmp_path: Path) -> None:
    if name == "device" and not ROOT:
        pytest.skip("only root makes devices")
    source = protected.source
    ROWS[name].make(source)
    digests = set()
    for thin in (False, True):
        target, dataset = tmp_path / f"target-{thin}", f"thin-{thin}"
        path = source / "one" if name == "single file" else source
        made = protected.backup(path, thin=thin, dataset=dataset)
        assert made.problems == ()
        digests.add(made.backup.manifest_digest)
        report = protected.restore(target, dataset)
        assert report.problems == ()
        ROWS[name].check(source, target, report)
    assert len(digests) == 1


@row("regular file", lambda at: (at / "f").write_bytes(seeded_bytes(3, 2_500_000)))
def regular(source: Path, target: Path, report) -> None:
    assert (target / "f").read_bytes() == seeded_bytes(3, 2_500_000)
    assert_same(source, target)


@row("empty file", lambda at: (at / "f").touch())
def empty(source: Path, target: Path, report) -> None:
    assert (target / "f").stat().st_size == 0
    assert_same(source, target)


def make_sparse(at: Path) -> None:
    with (at / "f").open("wb") as file:
        file.truncate(40_000_000)
        file.seek(8_000_000)
        file.write(seeded_bytes(4, 300_000))
        file.seek(20_000_000)
        file.write(bytes(200_000))  # zeros that take space


@row("sparse file", make_sparse)
def sparse(source: Path, target: Path, report) -> None:
    holes = nodes_of(source)[b"f"].holes
    assert len(holes) == 3
    assert nodes_of(target)[b"f"].holes == holes
    assert (target / "f").stat().st_blocks * 512 < 2_000_000
    assert_same(source, target)


def make_symlink(at: Path) -> None:
    (at / "f").write_text("data")
    (at / "relative").symlink_to("f")
    (at / "absolute").symlink_to("/etc/passwd")
    os.utime(at / "absolute", ns=(ANCIENT_NS, ANCIENT_NS), follow_symlinks=False)


@row("symlink", make_symlink)
def symlink(source: Path, target: Path, report) -> None:
    assert os.readlink(target / "relative") == "f"
    assert os.readlink(target / "absolute") == "/etc/passwd"
    assert (target / "absolute").lstat().st_mtime_ns == ANCIENT_NS
    assert_same(source, target)


@row("dangling symlink", lambda at: (at / "l").symlink_to("nowhere/at all"))
def dangling(source: Path, target: Path, report) -> None:
    assert os.readlink(target / "l") == "nowhere/at all"


def make_hard_links(at: Path) -> None:
    (at / "d").mkdir()
    (at / "d" / "one").write_bytes(seeded_bytes(5, 400_000))
    os.link(at / "d" / "one", at / "two")
    os.link(at / "d" / "one", at / "a-third")
    (at / "same-bytes").write_bytes(seeded_bytes(5, 400_000))


@row("hard link", make_hard_links)
def hard_links(source: Path, target: Path, report) -> None:
    inodes = {name: (target / name).stat().st_ino for name in ("d/one", "two", "a-third", "same-bytes")}
    assert inodes["d/one"] == inodes["two"] == inodes["a-third"] != inodes["same-bytes"]
    assert_same(source, target)


@row("fifo", lambda at: os.mkfifo(at / "pipe", 0o640))
def fifo(source: Path, target: Path, report) -> None:
    assert stat.S_ISFIFO((target / "pipe").lstat().st_mode)
    assert_same(source, target)


def make_devices(at: Path) -> None:
    os.mknod(at / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(at / "disk", 0o660 | stat.S_IFBLK, os.makedev(7, 300))
    (at / "null").chmod(0o666)


@row("device", make_devices)
def devices(source: Path, target: Path, report) -> None:
    assert (target / "null").lstat().st_rdev == os.makedev(1, 3)
    assert (target / "disk").lstat().st_rdev == os.makedev(7, 300)
    assert_same(source, target)


@row("socket", lambda at: make_socket(at / "s"))
def socket_row(source: Path, target: Path, report) -> None:
    assert not (target / "s").exists()
    assert any("1 sockets" in warning for warning in report.warnings)
    assert report.backup.entry_count == 2


# Ordinary users cannot read their own file of mode 000: the least that their backup can hold is 400.
MODES = (0o4755, 0o2755, 0o1777, 0o000 if ROOT else 0o400, 0o7777, 0o640)


def make_modes(at: Path) -> None:
    for mode in MODES:
        path = at / f"m{mode:04o}"
        path.write_text("mode")
        if ROOT:
            os.chown(path, 1234, 4321)
        path.chmod(mode)
    (at / "shared").mkdir()
    (at / "shared").chmod(0o3775)


@row("mode", make_modes)
def modes(source: Path, target: Path, report) -> None:
    for mode in MODES:
        assert stat.S_IMODE((target / f"m{mode:04o}").stat().st_mode) == mode
    assert stat.S_IMODE((target / "shared").stat().st_mode) == 0o3775


def make_owners(at: Path) -> None:
    (at / "f").write_text("mine")
    (at / "l").symlink_to("f")
    if ROOT:
        os.chown(at / "f", 1234, 4321)
        os.chown(at / "l", 5, 6, follow_symlinks=False)


@row("owner", make_owners)
def owners(source: Path, target: Path, report) -> None:
    assert_same(source, target)
    assert report.warnings == ()


def make_times(at: Path) -> None:
    for name, time_ns in (
        ("old", ANCIENT_NS),
        ("before-1970", -1_500_000_000),
        ("odd", 1_600_000_000_000_000_001),
    ):
        (at / name).write_text(name)
        os.utime(at / name, ns=(time_ns, time_ns))
    os.mkfifo(at / "pipe")
    os.utime(at / "pipe", ns=(ANCIENT_NS, ANCIENT_NS))


@row("modification time", make_times)
def times(source: Path, target: Path, report) -> None:
    assert (target / "old").stat().st_mtime_ns == ANCIENT_NS
    assert_same(source, target)


def make_xattrs(at: Path) -> None:
    (at / "f").write_text("with attributes")
    os.setxattr(at / "f", "user.comment", b"binary \x00\xff value")
    os.setxattr(at / "f", "user.empty", b"")
    os.setxattr(at / "f", "user.large", seeded_bytes(6, 3_000))
    (at / "d").mkdir()
    os.setxattr(at / "d", "user.on-a-directory", b"yes")
    if ROOT:
        (at / "l").symlink_to("f")
        os.setxattr(at / "l", "trusted.on-a-link", b"yes", follow_symlinks=False)
        os.mkfifo(at / "p")
        os.setxattr(at / "p", "trusted.on-a-fifo", b"yes", follow_symlinks=False)


@row("extended attributes", make_xattrs)
def xattrs(source: Path, target: Path, report) -> None:
    assert os.getxattr(target / "f", "user.comment") == b"binary \x00\xff value"
    assert os.getxattr(target / "d", "user.on-a-directory") == b"yes"
    assert_same(source, target)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as Linux stores it: version 2, then (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODYS = 0xFFFFFFFF
AN_ACL = acl((1, 6, NOBODYS), (2, 6, 1234), (4, 4, NOBODYS), (16, 6, NOBODYS), (32, 0, NOBODYS))


def make_acls(at: Path) -> None:
    (at / "f").write_text("for user 1234 too")
    os.setxattr(at / "f", "system.posix_acl_access", AN_ACL)
    (at / "d").mkdir()
    os.setxattr(at / "d", "system.posix_acl_default", AN_ACL)
    (at / "d" / "inherits").write_text("gets one at birth")
    (at / "d" / "plain").write_text("had one taken away")
    os.removexattr(at / "d" / "plain", "system.posix_acl_access")


@row("POSIX ACL", make_acls)
def acls(source: Path, target: Path, report) -> None:
    assert os.getxattr(target / "f", "system.posix_acl_access") == AN_ACL
    assert os.getxattr(target / "d", "system.posix_acl_default") == AN_ACL
    assert "system.posix_acl_access" not in os.listxattr(target / "d" / "plain")
    assert_same(source, target)


def make_directory_times(at: Path) -> None:
    (at / "d" / "e").mkdir(parents=True)
    (at / "d" / "f").write_text("in it")
    (at / "d" / "e" / "g").write_text("deeper")
    os.utime(at / "d" / "e", ns=(ANCIENT_NS, ANCIENT_NS))
    os.utime(at / "d", ns=(ANCIENT_NS, ANCIENT_NS + 1))


@row("directory time", make_directory_times)
def directory_times(source: Path, target: Path, report) -> None:
    assert (target / "d" / "e").stat().st_mtime_ns == ANCIENT_NS
    assert (target / "d").stat().st_mtime_ns == ANCIENT_NS + 1
    assert_same(source, target)


def make_named(name: bytes) -> Callable[[Path], None]:
    def make(at: Path) -> None:
        directory = os.path.join(os.fsencode(at), name)
        os.mkdir(directory)
        with open(os.path.join(directory, name), "wb") as file:
            file.write(name)
        os.symlink(name, os.path.join(directory, b"link"))

    return make


def check_named(name: bytes) -> Callable[[Path, Path, object], None]:
    def check(source: Path, target: Path, report) -> None:
        with open(os.path.join(os.fsencode(target), name, name), "rb") as file:
            assert file.read() == name
        assert os.readlink(os.path.join(os.fsencode(target), name, b"link")) == name
        assert_same(source, target)

    return check


for row_name, odd in (
    ("name that is not UTF-8", b"caf\xe9 \xff\xfe"),
    ("name with a newline", b"two\nlines \t \x1b[31m\\"),
    ("name of 255 bytes", b"n" * 255),
):
    row(row_name, make_named(odd))(check_named(odd))

LEVEL = b"a level of a tree that is deeper than any path may be long"
LEVELS = 200


def make_deep(at: Path) -> None:
    descriptor = os.open(at, os.O_RDONLY)
    for _ in range(LEVELS):
        os.mkdir(LEVEL, dir_fd=descriptor)
        below = os.open(LEVEL, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open(b"bottom", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
    os.write(file, b"reached")
    os.close(file)
    os.close(descriptor)


def read_deep(at: Path) -> bytes:
    descriptor = os.open(at, os.O_RDONLY)
    for _ in range(LEVELS):
        below = os.open(LEVEL, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    file = os.open(b"bottom", os.O_RDONLY, dir_fd=descriptor)
    try:
        return os.read(file, 100)
    finally:
        os.close(file)
        os.close(descriptor)


@row("deep tree", make_deep)
def deep(source: Path, target: Path, report) -> None:
    assert LEVELS * len(LEVEL) > 4_096
    assert read_deep(target) == b"reached"
    assert report.backup.entry_count == LEVELS + 2


@row("empty directory", lambda at: (at / "d").mkdir())
def empty_directory(source: Path, target: Path, report) -> None:
    assert list((target / "d").iterdir()) == []
    assert_same(source, target)


def make_root(at: Path) -> None:
    (at / "f").write_text("in the root")
    at.chmod(0o751)
    os.setxattr(at, "user.of-the-root", b"yes")
    os.utime(at, ns=(ANCIENT_NS, ANCIENT_NS))


@row("root directory", make_root)
def root_directory(source: Path, target: Path, report) -> None:
    assert target.stat().st_mtime_ns == ANCIENT_NS
    assert stat.S_IMODE(target.stat().st_mode) == 0o751
    assert_same(source, target)


@row("single file", lambda at: (at / "one").write_bytes(seeded_bytes(9, 100_000)))
def single_file(source: Path, target: Path, report) -> None:
    assert [path.name for path in target.iterdir()] == ["one"]
    assert nodes_of(target)[b"one"] == nodes_of(source)[b"one"]
