"""Restoring from streams that a server might send, good and hostile ones: nothing outside the target is ever touched."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from fs_trees import nodes_of, seeded_bytes
from staddle._errors import ConnectError, ProtocolError
from staddle._restore import temporary_file
from staddle._restore.run import Restore
from staddle._transport.retry import Attempts, Retry
from staddle._transport.servers import Servers
from staddle._transport.settings import Settings
from staddle._types.options import RestoreOptions
from staddle._types.reports import ProblemKind
from staddle.chunking import content_id
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

BACKUP = pb.Backup(id="b" * 32, dataset="d", entry_count=3)
MTIME_NS = 1_500_000_000_123_456_789


class Waits:
    """A clock that does not wait."""

    def now_s(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        pass


class Server:
    """Answers Restore from a list of entries, each with its bytes, as the protocol says; `hooks` run before a path's entry goes out."""

    def __init__(self, *items: tuple[pb.Entry, bytes]) -> None:
        self.items = sorted(items, key=lambda item: path_of(item[0]).replace(b"/", b"\0"))
        self.hooks: dict[bytes, Callable[[], None]] = {}
        self.damaged: set[bytes] = set()
        self.requests: list[sv.RestoreRequest] = []
        self.break_after: list[int] = []
        self.address = "127.0.0.1:1"

    def attempts(self, retry: Retry) -> Attempts:
        return Attempts(retry, Waits(), Servers(Settings(self.address, "token"), await_server=True))

    def stream(
        self, method: str, request: sv.RestoreRequest, *, retry: Retry
    ) -> Iterator[sv.RestoreResponse]:
        assert method == "Restore"
        asked = sv.RestoreRequest()
        asked.CopyFrom(request)
        self.requests.append(asked)
        left = self.break_after.pop(0) if self.break_after else -1
        for part in self._parts(asked):
            if left == 0:
                raise ConnectError("the connection broke")
            left -= 1
            yield sv.RestoreResponse(parts=[part])

    def _parts(self, request: sv.RestoreRequest) -> Iterator[sv.RestorePart]:
        header = sv.RestoreHeader(backup=BACKUP)
        header.backup.entry_count = max(BACKUP.entry_count, len(self.items))
        header.backup.data_bytes = sum(entry.content.size_bytes for entry, _ in self.items)
        yield sv.RestorePart(header=header)
        entries = data_bytes = damages = 0
        wanted = {path.encode() for path in request.paths} | set(request.raw_paths)
        for item, data in self.items:
            path = path_of(item)
            if wanted and not any(
                path == each or (not request.exact and path.startswith(each + b"/")) for each in wanted
            ):
                continue
            self.hooks.pop(path, lambda: None)()
            entries += 1
            entry = pb.Entry()
            entry.CopyFrom(item)
            if entry.type != pb.ENTRY_TYPE_FILE:
                yield sv.RestorePart(entry=entry)
            elif request.view == sv.ENTRY_VIEW_BASIC:
                data_bytes += len(data)
                yield sv.RestorePart(entry=entry)
            elif path in self.damaged:
                damages += 1
                yield sv.RestorePart(entry=entry)
                yield sv.RestorePart(data=sv.Data(data=data[:1000], chunk_lengths=[1000]))
                yield sv.RestorePart(
                    damage=sv.Damage(path=entry.path, message="a chunk is gone", offset_bytes=1000)
                )
            else:
                data_bytes += len(data)
                yield from self._file(entry, data)
        yield sv.RestorePart(end=sv.End(entry_count=entries, data_bytes=data_bytes, damage_count=damages))

    def _file(self, entry: pb.Entry, data: bytes) -> Iterator[sv.RestorePart]:
        if len(data) <= 1000:
            entry.data = data
            yield sv.RestorePart(entry=entry)
            return
        yield sv.RestorePart(entry=entry)
        for piece in pieces_of(data):
            if piece.count(0) == len(piece):
                yield sv.RestorePart(data=sv.Data(zero_bytes=len(piece), chunk_lengths=[len(piece)]))
            else:
                yield sv.RestorePart(data=sv.Data(data=piece, chunk_lengths=[len(piece)]))
        yield sv.RestorePart(entry_end=sv.EntryEnd(size_bytes=len(data), content_id=entry.content.content_id))


def pieces_of(data: bytes) -> list[bytes]:
    return [data[start : start + 65_536] for start in range(0, len(data), 65_536)]


def path_of(entry: pb.Entry) -> bytes:
    return entry.raw_path or entry.path.encode()


def file(path: str, data: bytes = b"data", **fields) -> tuple[pb.Entry, bytes]:
    entry = pb.Entry(path=path, type=pb.ENTRY_TYPE_FILE, mode=0o644, mtime_ns=MTIME_NS, **fields)
    entry.content.size_bytes = len(data)
    pieces = pieces_of(data) if len(data) > 1000 else [data]
    entry.content.content_id = content_id((len(piece), blake3(piece).digest()) for piece in pieces if piece)
    return entry, data


def other(
    path: str, kind: pb.EntryType.ValueType = pb.ENTRY_TYPE_DIRECTORY, **fields
) -> tuple[pb.Entry, bytes]:
    fields.setdefault("mode", 0o755)
    return pb.Entry(path=path, type=kind, mtime_ns=MTIME_NS, **fields), b""


def restore(server: Server, target: Path, **options):
    return Restore(server, "d", pb.BackupSelector(), os.fsencode(target), RestoreOptions(**options)).run()


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.name.startswith(".staddle-")]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory beside the target that must stay unchanged."""
    place = tmp_path / "outside"
    place.mkdir()
    (place / "precious").write_text("keep me")
    before = nodes_of(tmp_path / "outside")
    yield place
    assert nodes_of(place) == before


HOSTILE = [
    "../outside/new",
    "/etc/staddle-was-here",
    "a/../../outside/new",
    "..",
    ".",
    "a/./b",
    "a//b",
    "a/",
    "nul\0byte",
    "x/" * 9_000 + "x",
]


@pytest.mark.parametrize("path", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_a_path_that_leads_outside_ends_the_restore_without_writing(
    path: str, kind: str, tmp_path: Path, outside: Path
) -> None:
    made = {"file": file, "directory": other}.get(
        kind, lambda path: other(path, pb.ENTRY_TYPE_SYMLINK, link_target="x")
    )(path)
    with pytest.raises(ProtocolError):
        restore(Server(made), tmp_path / "target")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["outside", "target"]
    assert list((tmp_path / "target").iterdir()) == []
    assert not Path("/etc/staddle-was-here").exists()


def test_a_file_below_a_stored_symlink_never_follows_it(tmp_path: Path, outside: Path) -> None:
    link = other("a", pb.ENTRY_TYPE_SYMLINK, link_target=str(outside))
    restore(Server(link, file("a/precious", b"stolen")), tmp_path / "target")
    assert not (tmp_path / "target" / "a").is_symlink()
    assert (tmp_path / "target" / "a" / "precious").read_bytes() == b"stolen"


def test_a_path_below_a_stored_file_always_turns_it_into_a_directory(tmp_path: Path) -> None:
    for number in range(20):
        target = tmp_path / f"target{number}"
        report = restore(Server(file("a"), file("a/b/c", b"below"), file("z")), target)
        assert (target / "a" / "b" / "c").read_bytes() == b"below"
        assert report.entries_written == 3
        assert leftovers(target) == []


def test_a_link_in_the_target_is_replaced_and_never_followed(tmp_path: Path, outside: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").symlink_to(outside)
    (target / "precious").symlink_to(outside / "precious")
    restore(Server(other("a"), file("a/new"), file("precious", b"mine")), target)
    assert not (target / "a").is_symlink()
    assert (target / "a" / "new").read_bytes() == b"data"
    assert (target / "precious").read_bytes() == b"mine"


def test_a_link_in_the_target_is_kept_under_never_and_what_is_below_is_reported(
    tmp_path: Path, outside: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "a").symlink_to(outside)
    report = restore(Server(other("a"), file("a/new"), file("b")), target, overwrite="never")
    assert (target / "a").is_symlink()
    assert {problem.path for problem in report.problems} == {"a", "a/new"}
    assert (target / "b").read_bytes() == b"data"


@pytest.mark.parametrize("swapped", ["a", "a/b"])
def test_swapping_a_directory_for_a_link_during_a_restore_gains_nothing(
    swapped: str, tmp_path: Path, outside: Path
) -> None:
    target = tmp_path / "target"
    server = Server(
        other("a"), other("a/b"), file("a/b/c1"), file("a/b/c2", seeded_bytes(1, 300_000)), file("z")
    )

    def swap() -> None:
        (target / swapped).rename(tmp_path / "moved")
        (target / swapped).symlink_to(outside)

    server.hooks[b"a/b/c2"] = swap
    restore(server, target)
    assert (target / "z").read_bytes() == b"data"


def test_a_hard_link_to_a_swapped_file_is_written_as_a_separate_file(tmp_path: Path, outside: Path) -> None:
    target = tmp_path / "target"
    server = Server(file("a", b"shared", link_group=b"g"), file("b", b"shared", link_group=b"g"))

    def swap() -> None:
        (target / "a").unlink()
        os.link(outside / "precious", target / "a")

    server.hooks[b"b"] = swap
    restore(server, target)
    (target / "a").unlink()
    assert (target / "b").read_bytes() == b"shared"
    assert (target / "b").stat().st_nlink == 1


def test_hard_links_need_group_and_content_to_agree(tmp_path: Path) -> None:
    target = tmp_path / "target"
    restore(
        Server(
            *(file(name, data, link_group=b"g") for name, data in (("a", b"1"), ("b", b"2"), ("c", b"2")))
        ),
        target,
    )
    inodes = {name: (target / name).stat().st_ino for name in "abc"}
    assert inodes["b"] == inodes["c"] != inodes["a"]


def test_names_that_are_already_linked_leave_no_temporary_name(tmp_path: Path) -> None:
    target = tmp_path / "target"
    server = Server(*(file(name, b"shared", link_group=b"g") for name in "abc"))
    restore(server, target)
    restore(server, target, overwrite="always")
    assert sorted(item.name for item in target.iterdir()) == ["a", "b", "c"]
    assert (target / "a").stat().st_nlink == 3


def test_damage_is_reported_leaves_no_file_and_the_rest_is_restored(tmp_path: Path) -> None:
    server = Server(file("a"), file("damaged", seeded_bytes(2, 200_000)), file("z", seeded_bytes(3, 200_000)))
    server.damaged.add(b"damaged")
    report = restore(server, tmp_path / "target")
    assert [(problem.kind, problem.path) for problem in report.problems] == [(ProblemKind.DAMAGED, "damaged")]
    assert sorted(item.name for item in (tmp_path / "target").iterdir()) == ["a", "z"]


def test_damage_keeps_the_previous_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "damaged").write_text("the previous version")
    server = Server(file("damaged", seeded_bytes(2, 200_000)))
    server.damaged.add(b"damaged")
    assert len(restore(server, target).damaged) == 1
    assert (target / "damaged").read_text() == "the previous version"
    assert leftovers(target) == []


def test_a_truncated_stream_is_a_failure_and_leaves_no_partial_file(tmp_path: Path) -> None:
    class Stops(Server):
        def _parts(self, request):
            yield from list(super()._parts(request))[:-3]

    with pytest.raises(ProtocolError):
        restore(Stops(file("a"), file("big", seeded_bytes(4, 300_000))), tmp_path / "target")
    assert [item.name for item in (tmp_path / "target").iterdir()] == ["a"]


def test_bytes_that_contradict_their_content_id_never_get_the_name(tmp_path: Path) -> None:
    entry, _ = file("f", seeded_bytes(5, 300_000))
    with pytest.raises(ProtocolError):
        restore(Server((entry, seeded_bytes(6, 300_000))), tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []


def test_after_a_wrong_segment_the_restore_continues_without_segments_and_finds_the_damage(
    tmp_path: Path,
) -> None:
    class Wrong(Server):
        """Its segments hold other bytes than they should, as after a fault of memory while they were made."""

        def _file(self, entry, data):
            if not self.requests[-1].segments or entry.path != "wrong":
                yield from super()._file(entry, data)
                return
            yield sv.RestorePart(segment=sv.Segment(data=data[::-1], raw=True, raw_bytes=len(data)))
            yield sv.RestorePart(entry=entry, piece=sv.Piece(length_bytes=len(data)))

    server = Wrong(file("a"), file("damaged", seeded_bytes(2, 200_000)), file("wrong", b"bytes"), file("z"))
    server.damaged.add(b"damaged")
    report = restore(server, tmp_path / "target", retry_s=0.0)
    assert [request.segments for request in server.requests] == [True, False, False]
    assert {(problem.kind, problem.path) for problem in report.problems} == {(ProblemKind.DAMAGED, "damaged")}
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == ["a", "wrong", "z"]
    assert (tmp_path / "target" / "wrong").read_bytes() == b"bytes"
    assert leftovers(tmp_path / "target") == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system is left to itself")
@pytest.mark.parametrize("fails", [False, True])
def test_a_large_file_is_flushed_while_it_arrives(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []

    def advise(_descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        begun.append((offset, length))
        if fails:
            raise OSError(errno.EINVAL, "not on this file system")

    monkeypatch.setattr(temporary_file, "WRITE_BACK_BYTES", 200_000)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    data = seeded_bytes(9, 1_500_000)
    restore(Server(file("large", data), file("small", data[:900])), tmp_path / "target")
    assert (tmp_path / "target" / "large").read_bytes() == data
    ends = [offset + length for offset, length in begun]
    assert [0, *ends[:-1]] == [offset for offset, _ in begun]
    assert len(data) - 200_000 < ends[-1] <= len(data)


def test_matching_files_are_not_transferred_and_their_metadata_is_corrected(tmp_path: Path) -> None:
    target = tmp_path / "target"
    items = [other("d"), file("d/same", b"1"), file("d/differs", b"2"), file("d/new", b"3")]
    target.mkdir()
    (target / "extra").write_text("stays")
    restore(Server(*items[:3]), target)
    (target / "d" / "same").chmod(0o600)
    (target / "d" / "differs").write_bytes(b"X")
    inode = (target / "d" / "same").stat().st_ino
    server = Server(*items)
    report = restore(server, target)
    fetched = [sorted(request.paths) for request in server.requests if request.view == sv.ENTRY_VIEW_DATA]
    assert fetched == [["d/differs", "d/new"]]
    assert (report.entries_written, report.entries_unchanged) == (2, 2)
    assert stat.S_IMODE((target / "d" / "same").stat().st_mode) == 0o644
    assert (target / "d" / "same").stat().st_ino == inode
    assert (target / "d" / "differs").read_bytes() == b"2"
    assert (target / "d").stat().st_mtime_ns == MTIME_NS
    assert (target / "extra").read_text() == "stays"


def test_a_file_that_matches_is_not_even_touched(tmp_path: Path) -> None:
    target = tmp_path / "target"
    server = Server(file("f", b"1"))
    restore(server, target)
    before = (target / "f").stat().st_ctime_ns
    restore(server, target)
    assert (target / "f").stat().st_ctime_ns == before


def test_overwrite_never_keeps_existing_files_and_writes_the_rest(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "f").write_bytes(b"old")
    report = restore(Server(file("f"), file("g")), target, overwrite="never")
    assert ((target / "f").read_bytes(), (target / "g").read_bytes()) == (b"old", b"data")
    assert any("kept" in warning for warning in report.warnings)


def test_overwrite_always_rewrites_everything(tmp_path: Path) -> None:
    target = tmp_path / "target"
    server = Server(file("f"), file("g"))
    restore(server, target)
    inode = (target / "f").stat().st_ino
    assert restore(server, target, overwrite="always").entries_written == 2
    assert (target / "f").stat().st_ino != inode


def test_unset_metadata_follows_the_restoring_process(tmp_path: Path) -> None:
    entry = pb.Entry(path="f", type=pb.ENTRY_TYPE_FILE)
    entry.content.size_bytes = 4
    entry.content.content_id = blake3(b"data").digest()
    before = os.umask(0o027)
    try:
        restore(Server((entry, b"data")), tmp_path / "target")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "target" / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("mtime_ns", [2**63 - 1, -(2**63)])
def test_times_out_of_range_are_reported_and_the_file_is_restored(mtime_ns: int, tmp_path: Path) -> None:
    entry, data = file("f")
    entry.mtime_ns = mtime_ns
    restore(Server((entry, data), file("g")), tmp_path / "target")
    assert (tmp_path / "target" / "f").read_bytes() == b"data"
    assert (tmp_path / "target" / "g").read_bytes() == b"data"


def test_holes_are_skipped_and_bytes_in_a_wrong_hole_are_still_written(tmp_path: Path) -> None:
    data = bytes(400_000) + seeded_bytes(7, 100_000) + bytes(300_000)
    entry, _ = file("f", data)
    for offset, length in ((0, 393_216), (400_000, 100_000), (524_288, 275_712)):
        entry.holes.add(offset_bytes=offset, length_bytes=length)
    restore(Server((entry, data)), tmp_path / "target")
    assert (tmp_path / "target" / "f").read_bytes() == data
    assert (tmp_path / "target" / "f").stat().st_blocks * 512 < 200_000
