"""Backups as archives: tar and zip readers accept them, and an incomplete one never looks complete."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from fs_trees import assert_same, make_socket, plant, seeded_bytes
from staddle._errors import BadRequestError, ConnectError, DamageError, ProtocolError
from staddle._protocol import archive_tar, archive_zip
from staddle._protocol.archive_tar import NOT_COMPLETE
from staddle._protocol.archive_zip import ZipArchive
from staddle._restore import archive as _archived
from staddle._restore.archive import ToArchive
from staddle._types.options import RestoreOptions
from staddle._types.reports import ProblemKind
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from test_fs_restore import MTIME_NS, Server, file, other

LARGE = seeded_bytes(7, 400_000) + bytes(200_000) + seeded_bytes(8, 400_000)
SECOND_NS = 10**9


def archive(server: Server, form: str = "tar", sink: io.BytesIO | None = None, **options):
    """The report, and the archive."""
    written = sink or io.BytesIO()
    made = ToArchive(
        server, "d", pb.BackupSelector(), written, archive_format=form, options=RestoreOptions(**options)
    )
    return made.run(), written.getvalue()


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errorlevel=2) as opened:
        return {info.name: info for info in opened}


def unpack(data: bytes, target: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    target.mkdir()
    words = ["tar", "-xpf", "-", "-C", target, *options]
    return subprocess.run(words, input=data, capture_output=True, check=False)


# --- tar


def test_gnu_tar_unpacks_the_backed_up_tree(protected, tmp_path: Path) -> None:
    source = protected.source
    plant(source)
    make_socket(source / "sock")
    for name in (b"-\xff\n.txt", b"\xc3\xbc" * 120, b"n" * 255, b"a\\b"):
        with open(os.path.join(os.fsencode(source), name), "wb") as made:
            made.write(name)
    (source / "a" / ("d" * 200)).mkdir()
    (source / "a" / ("d" * 200) / ("e" * 200)).write_text("a long way down")
    (source / "to-long").symlink_to("x/" * 200)
    for name, time_ns in (("before", -1_500_000_000), ("later", 2**33 * SECOND_NS + 1), ("empty", 7)):
        (source / name).touch()
        os.utime(source / name, ns=(0, time_ns))
    os.setxattr(source / "text", "user.no=te", b"bin\0\xff\n=x")
    if os.geteuid() == 0:
        os.chown(source / "text", 3_000_000, 2**31)
        os.mknod(source / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (source / "text").chmod(0o4755)
    protected.backup()
    written = io.BytesIO()
    report = protected.client.write_archive("data", written)
    assert report.problems == ()
    assert report.warnings == ("1 sockets are not in the archive: no restore makes any.",)
    done = unpack(written.getvalue(), tmp_path / "target", "--xattrs", "--xattrs-include=*", "--sparse")
    assert done.returncode == 0, done.stderr
    (source / "sock").unlink()
    shutil.copystat(source, tmp_path / "target")
    for tree in (source, tmp_path / "target"):
        (tree / "sparse").unlink()  # its holes are zeros now
    for tree in (source, tmp_path / "target"):
        os.utime(tree, ns=(0, 0))
    assert_same(source, tmp_path / "target")


@pytest.mark.parametrize("name", [b"sparse", b"sp\xff\n" + b"n" * 200])
def test_a_large_sparse_file_is_sparse_in_a_tar_archive_and_once_unpacked(
    name: bytes, protected, tmp_path: Path
) -> None:
    path = os.path.join(os.fsencode(protected.source), name)
    with open(path, "wb") as made:
        made.truncate(80_000_000)
        for place in (0, 30_000_000, 50_000_000):
            made.seek(place)
            made.write(b"island" * 1_000)
    (protected.source / "z").write_text("behind it")
    protected.backup()
    written = io.BytesIO()
    protected.client.write_archive("data", written)
    assert len(written.getvalue()) < 500_000
    assert unpack(written.getvalue(), tmp_path / "target").returncode == 0
    shutil.copystat(protected.source, tmp_path / "target")
    assert_same(protected.source, tmp_path / "target")
    with tarfile.open(fileobj=io.BytesIO(written.getvalue())) as opened:
        found = opened.extractfile(opened.getmember(os.fsdecode(name)))
        with open(path, "rb") as expected:
            assert found.read() == expected.read()


@pytest.mark.parametrize(
    "holes",
    [[(0, 2**16)], [(2**16, 2**17)], [(0, 2**16), (2**17, 2**16)], [(2**18, 2**18)], [(0, 2**19)]],
)
def test_holes_at_every_place_come_back_with_every_piece_size(
    holes: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_tar, "SPARSE_BYTES_MIN", 0)
    data = bytearray(seeded_bytes(1, 2**19))
    for start, length in holes:
        data[start : start + length] = bytes(length)
    entry, _ = file("s", bytes(data))
    for start, length in holes:
        entry.holes.add(offset_bytes=start, length_bytes=length)
    _, made = archive(Server((entry, bytes(data)), file("z")))
    assert len(made) < len(data) - sum(length for _, length in holes) + 20_000
    assert unpack(made, tmp_path / "target").returncode == 0
    assert (tmp_path / "target" / "s").read_bytes() == data
    assert (tmp_path / "target" / "z").read_bytes() == b"data"


@pytest.mark.parametrize("holes", [[(5, 10), (8, 10)], [(0, 2**40)], [(2**63, 2**63)], [(0, 0)]])
def test_impossible_holes_are_ignored(
    holes: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_tar, "SPARSE_BYTES_MIN", 0)
    entry, data = file("s", seeded_bytes(1, 5_000))
    for start, length in holes:
        entry.holes.add(offset_bytes=start, length_bytes=length)
    _, made = archive(Server((entry, data)))
    assert unpack(made, tmp_path / "target").returncode == 0
    assert (tmp_path / "target" / "s").read_bytes() == data


def test_data_in_a_hole_ends_the_archive_and_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_tar, "SPARSE_BYTES_MIN", 0)
    entry, data = file("s", seeded_bytes(1, 5_000))
    entry.holes.add(offset_bytes=1_000, length_bytes=1_000)
    sink = io.BytesIO()
    with pytest.raises(DamageError):
        archive(Server((entry, data)), sink=sink)
    with pytest.raises(tarfile.ReadError):
        members(sink.getvalue())


def test_an_archive_of_selected_paths_has_the_directories_above_them_and_not_the_root() -> None:
    tree = [other("", mode=0o700), other("a", mode=0o711), other("a/b", mode=0o700), other("a/c")]
    tree += [file("a/b/x"), file("a/b/y"), file("a/c/z"), file("z")]
    for options in ({"paths": (b"a/b/x", b"z")}, {"include": ["x", "/z"]}):
        report, data = archive(Server(*tree), **options)
        found = members(data)
        assert sorted(found) == ["a", "a/b", "a/b/x", "z"]
        assert [found[name].mode for name in ("a", "a/b")] == [0o711, 0o700]
        assert report.entries_written == 4
    _, data = archive(Server(*tree), exclude=["b"])
    assert sorted(members(data)) == ["a", "a/c", "a/c/z", "z"]


def test_excluded_files_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_archived, "BATCH_PATHS", 3)
    server = Server(*(file(f"{letter}{number}") for number in range(5) for letter in "kx"))
    _, data = archive(server, exclude=["x*"])
    assert sorted(members(data)) == [f"k{number}" for number in range(5)]
    asked = [list(each.paths) for each in server.requests if each.view == sv.ENTRY_VIEW_DATA]
    assert asked == [["k0", "k1", "k2"], ["k3", "k4"]]


def test_unset_metadata_follows_the_process_and_the_time_of_the_backup() -> None:
    entry = pb.Entry(path="bare", type=pb.ENTRY_TYPE_FILE)
    entry.content.CopyFrom(file("bare")[0].content)
    _, data = archive(Server((entry, b"data"), (pb.Entry(path="d", type=pb.ENTRY_TYPE_DIRECTORY), b"")))
    found = members(data)
    assert [(found[name].mode, found[name].uid) for name in ("bare", "d")] == [
        (0o644, os.geteuid()),
        (0o755, os.geteuid()),
    ]


@pytest.mark.parametrize("form", ["tar", "zip"])
@pytest.mark.parametrize("first", [1, 3, 8, 14])
@pytest.mark.parametrize("gathered", [0, 10**9])
def test_a_broken_stream_is_resumed_and_the_archive_is_the_same(
    first: int, form: str, gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_archived, "GATHER_BYTES_MAX", gathered)
    tree = [other(""), file("a"), file("large", LARGE), file("z", seeded_bytes(2, 5_000))]
    _, whole = archive(Server(*tree), form)
    for options in ({}, {"exclude": ["nothing"]}):
        server = Server(*tree)
        server.break_after = [first, 9, -1, 7, -1]
        assert archive(server, form, retry_s=5.0, **options)[1] == whole
        assert len(server.requests) > 2


def test_different_bytes_after_a_resume_give_no_complete_archive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_archived, "GATHER_BYTES_MAX", 0)
    (entry, data), bad = file("large", LARGE), bytearray(LARGE)
    bad[0] ^= 1
    server = Server((entry, bytes(bad)))
    server.break_after = [4]
    server.hooks[b"large"] = lambda: server.hooks.update(
        {b"large": lambda: server.items.__setitem__(0, (entry, data))}
    )
    sink = io.BytesIO()
    with pytest.raises(ProtocolError):
        archive(server, sink=sink, retry_s=5.0)
    with pytest.raises(tarfile.ReadError):
        members(sink.getvalue())


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_a_damaged_file_is_left_out_and_named_and_the_rest_is_in_the_archive(form: str) -> None:
    server = Server(file("a"), file("large", LARGE), file("z"))
    server.damaged.add(b"large")
    report, data = archive(server, form)
    assert [(problem.kind, problem.path) for problem in report.problems] == [(ProblemKind.DAMAGED, "large")]
    if form == "tar":
        assert sorted(members(data)) == ["a", "z"]
    else:
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            assert opened.namelist() == ["a", "z"]
            assert opened.testzip() is None


@pytest.mark.parametrize("form", ["tar", "zip"])
@pytest.mark.parametrize("how", ["damaged", "broken", "between files", "sink"])
def test_archive_readers_refuse_an_incomplete_archive(
    how: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_archived, "GATHER_BYTES_MAX", 0)
    server = Server(file("a"), file("large", LARGE), file("z"))
    sink = io.BytesIO()
    if how == "damaged":
        server.damaged.add(b"large")
    elif how == "broken":
        server.break_after = [6]
    elif how == "between files":
        server.break_after = [2]
    else:
        sink = Full()
    expected = {"damaged": DamageError, "sink": OSError}.get(how, ConnectError)
    with pytest.raises(expected):
        archive(server, form, sink, retry_s=0.0)
    (tmp_path / "archive").write_bytes(sink.getvalue())
    words = ["tar", "-tf"] if form == "tar" else ["unzip", "-tq"]
    done = subprocess.run([*words, tmp_path / "archive"], capture_output=True, check=False)
    if how == "sink" and form == "tar":
        return  # nothing more could be written, and the writing program has failed
    assert done.returncode != 0, done.stdout


class Full(io.BytesIO):
    """A sink on a full disk."""

    def write(self, data, /) -> int:
        if self.tell() > 300_000:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_an_incomplete_tar_archive_ends_with_a_member_that_says_so() -> None:
    server = Server(file("a"), file("b"))
    server.break_after = [2]
    sink = io.BytesIO()
    with pytest.raises(ConnectError):
        archive(server, sink=sink, retry_s=0.0)
    with tarfile.open(fileobj=io.BytesIO(sink.getvalue())) as opened:
        assert [opened.next().name for _ in range(2)] == ["a", NOT_COMPLETE]


@pytest.mark.parametrize("form", ["tar", "zip"])
@pytest.mark.parametrize("path", ["../x", "/x", "a\0b", "a/./b", "link/x"])
def test_a_path_that_leads_outside_is_never_written_to_an_archive(path: str, form: str) -> None:
    link = other("link", pb.ENTRY_TYPE_SYMLINK, link_target="/etc")
    sink = io.BytesIO()
    with pytest.raises(ProtocolError):
        archive(Server(link, file(path)), form, sink)
    with pytest.raises((tarfile.ReadError, zipfile.BadZipFile)):
        members(sink.getvalue()) if form == "tar" else zipfile.ZipFile(io.BytesIO(sink.getvalue()))


def test_an_impossible_pattern_and_an_unknown_format_are_refused_before_writing(
    protected,
) -> None:
    sink = io.BytesIO()
    for options in ({"format": "rar"}, {"include": ["[z-a]"]}, {"paths": ["../x"]}):
        with pytest.raises(BadRequestError):
            protected.client.write_archive("data", sink, **options)
    assert sink.getvalue() == b""


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_an_unbuffered_file_gets_the_complete_archive(form: str) -> None:
    class Raw(io.BytesIO):
        def write(self, data, /) -> int:
            return super().write(data[:1_000])

    tree = [file("large", LARGE), file("a")]
    assert archive(Server(*tree), form, Raw())[1] == archive(Server(*tree), form)[1]

    class Busy(io.BytesIO):
        def write(self, data, /) -> None:
            return None

    with pytest.raises(BlockingIOError):
        archive(Server(*tree), form, Busy())


# --- zip


def test_a_name_that_leads_outside_by_backslashes_is_never_written_to_a_zip() -> None:
    report, data = archive(Server(file("a\\b"), file("a\\..\\..\\x")), "zip")
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == ["a\\b"]
    assert [problem.path for problem in report.problems] == ["a\\..\\..\\x"]


def test_unzip_unpacks_what_zip_can_hold_and_the_rest_is_named(protected, tmp_path: Path) -> None:
    source = protected.source
    plant(source)
    (source / "ünï ★").write_text("text")
    with open(os.fsencode(source) + b"/not-\xff", "wb"):
        pass
    os.setxattr(source / "text", "user.note", b"kept")
    (source / "text").chmod(0o4755)
    os.utime(source / "empty-dir", ns=(0, 315_000_000 * SECOND_NS))
    protected.backup()
    written = io.BytesIO()
    report = protected.client.write_archive("data", written, format="zip")
    found = {problem.path_bytes: problem.message for problem in report.problems}
    assert sorted(found) == [b"not-\xff", b"pipe", b"text"]
    assert "attribute" in found[b"text"]
    assert report.warnings == ("1 hard links are copies: a zip archive has no links.",)
    (tmp_path / "a.zip").write_bytes(written.getvalue())
    done = subprocess.run(
        ["unzip", "-qXK", "a.zip", "-d", "target"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, (done.stdout, done.stderr)
    os.removexattr(source / "text", "user.note")
    os.unlink(os.fsencode(source) + b"/not-\xff")
    (source / "pipe").unlink()
    target = tmp_path / "target"
    (source / "big-too").unlink()
    shutil.copy2(source / "big", source / "big-too")
    assert (target / "to-nowhere").readlink() == Path("no/such/place")
    for tree in (source, target):
        (tree / "to-nowhere").unlink()  # Info-ZIP sets no times of links
        (tree / "sparse").unlink()
        for path in sorted(tree.rglob("*"), reverse=True):
            os.utime(path, ns=(0, path.stat().st_mtime_ns // SECOND_NS * SECOND_NS))
        tree.chmod(0o755)
        os.utime(tree, ns=(0, 0))
    assert_same(source, target)


class Tail(io.RawIOBase):
    """Keeps the end of the written bytes."""

    data = b""

    def write(self, data, /) -> int:
        self.data = (self.data + bytes(data))[-200:]
        return len(data)


def test_the_directory_of_a_zip_archive_is_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_zip, "MEMBERS_BYTES_IN_MEMORY", 65_536)
    made = ZipArchive(Tail(), MTIME_NS)
    entry = pb.Entry(type=pb.ENTRY_TYPE_DIRECTORY, mode=0o755, mtime_ns=MTIME_NS)
    made.add(b"first", entry)
    tracemalloc.start()
    try:
        for number in range(2_000):
            made.add(b"d%d" % number, entry)
        made.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300_000, peak  # the module's own list takes over 1 MB for them


@pytest.mark.slow
def test_a_zip_archive_holds_more_than_65535_members() -> None:
    tail = Tail()
    made = ZipArchive(tail, MTIME_NS)
    made.add(b"d", pb.Entry(type=pb.ENTRY_TYPE_DIRECTORY, mode=0o755))
    (member,) = made._members
    for _ in range(69_999):
        made._members.append(member)
    made.finish()
    assert b"PK\x06\x06" in tail.data
    assert (70_000).to_bytes(8, "little") in tail.data
