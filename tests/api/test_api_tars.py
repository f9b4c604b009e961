"""Backups from tars over HTTP: whole ones and changes, all or nothing, and what hostile senders get."""

from __future__ import annotations

import gzip
import io
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard
from http_door import Answer, answer_of, ask, open_http
from servers import Running
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.errors import Exhausted, Unavailable
from staddle_server.base.limits import XATTR_VALUE_BYTES_MAX
from staddle_server.upload import tar_upload
from tars import END, GNU, header, member, pax, sparse, tar_of
from thin import back_up, noise, restore, wait_until

MIB = 1 << 20


class Place(NamedTuple):
    running: Running
    port: int

    @property
    def stub(self) -> Any:
        return self.running.stub(name="looks")

    def put(
        self, body: bytes, query: str = "", dataset: str = "www", role: str = "writer", **more: str
    ) -> Answer:
        headers = {"authorization": f"Bearer {self.running.token(role)}"}
        headers |= {name.replace("_", "-"): text for name, text in more.items()}
        return ask(self.port, f"/v1/datasets/{dataset}/backups{query}", body, headers, "PUT")

    def taken(self, body: bytes, query: str = "", dataset: str = "www", **more: str) -> dict[str, Any]:
        found = self.put(body, query, dataset, **more)
        assert found.status == 201, found.said
        backup: dict[str, Any] = found.said["backup"]
        self.assert_nothing_open()
        return backup

    def refused(self, body: bytes, query: str = "", **more: str) -> Answer:
        """A refusal, after which nothing is left but a failed run with its reason."""
        found = self.put(body, query, "refused", **more)
        assert found.status in {400, 429}, found.said
        self.assert_nothing_but(found.said["message"], "refused")
        return found

    def assert_nothing_but(self, reason: str, dataset: str) -> None:
        self.assert_nothing_open()
        assert not self.stub.ListBackups(sv.ListBackupsRequest(dataset=dataset)).backups
        run = self.stub.ListRuns(sv.ListRunsRequest(dataset=dataset, page_size=1)).runs[0]
        assert (run.outcome, run.reason) == (pb.RUN_OUTCOME_FAILED, reason)

    def assert_nothing_open(self) -> None:
        gate = self.running.service._gate
        wait_until(lambda: not gate._calls and gate.streams.idle and gate.calls.idle)
        assert not self.stub.ListUploads(sv.ListUploadsRequest()).uploads
        assert self.running.service._uploads.open_count == 0

    def connect(self, head: str, dataset: str = "refused") -> socket.socket:
        """A connection on which the head of a PUT was sent."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        token = self.running.token("writer")
        line.sendall(
            f"PUT /v1/datasets/{dataset}/backups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{head}\r\n\r\n".encode()
        )
        return line


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    running = Running(tmp_path_factory.mktemp("tars"))
    yield Place(running, open_http(running))
    running.stop()


def files(place: Place, dataset: str = "www") -> dict[str, bytes]:
    return restore(place.stub, dataset).files


# ---------------------------------------------------------------------- what a backup has


def test_a_tar_becomes_a_backup_with_what_the_parameters_say(place: Place) -> None:
    data = noise(3 * MIB)
    body = tar_of({"a": b"1", "d/big": data}, mode=0o640, uid=7, mtime=12)
    backup = place.taken(body, "?tag=night&tag=job%3Dweekly&host=h1&root=/srv/w")
    assert (backup["kind"], backup["entryCount"]) == ("BACKUP_KIND_FULL", "3")
    assert backup["tags"] == {"night": "", "job": "weekly"}
    assert (backup["host"], backup["root"]) == ("h1", "/srv/w")
    found = restore(place.stub, "www")
    assert found.files == {"a": b"1", "d/big": data}
    entry = found.entries["d/big"]
    assert (entry.mode, entry.uid, entry.mtime_ns, entry.link_group) == (0o640, 7, 12 * 10**9, b"")
    run = place.stub.ListRuns(sv.ListRunsRequest(dataset="www", page_size=1)).runs[0]
    assert (run.outcome, run.backup_id, run.host) == (pb.RUN_OUTCOME_DONE, backup["id"], "h1")


def test_a_second_whole_tar_is_incremental_and_has_only_what_it_holds(place: Place) -> None:
    place.taken(tar_of({"a": b"1", "b": b"2"}), dataset="whole")
    backup = place.taken(tar_of({"b": b"2", "c": b"3"}), dataset="whole")
    assert backup["kind"] == "BACKUP_KIND_INCREMENTAL"
    assert backup["changes"] == {"added": "1", "removed": "1"}
    assert files(place, "whole") == {"b": b"2", "c": b"3"}
    assert place.taken(tar_of({"z": b""}), "?kind=full", "whole")["kind"] == "BACKUP_KIND_FULL"


def test_changes_replace_what_they_name_and_keep_the_rest(place: Place) -> None:
    first = place.taken(tar_of({"a": b"1", "d/x": b"2", "d/y": b"3", "e/z": b"4"}), dataset="changes")
    body = tar_of({"d/x": b"new", "e/w": b"5"})
    backup = place.taken(body, "?scope=changes&remove=e&remove=a", "changes")
    assert (backup["baseBackupId"], backup["scope"]) == (first["id"], "UPLOAD_SCOPE_CHANGES")
    assert files(place, "changes") == {"d/x": b"new", "d/y": b"3", "e/w": b"5"}
    place.taken(member(b"d", b"a file now") + END, "?scope=changes", "changes")
    assert files(place, "changes") == {"d": b"a file now", "e/w": b"5"}


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("?scope=changes", "NO_BASE"),
        ("?scope=changes&kind=full", "BAD_FIELD"),
        ("?kind=differential", "NO_BASE"),
        ("?remove=a", "BAD_FIELD"),
        ("?scope=changes&remove=../a", "BAD_FIELD"),
        ("?format=zip", "BAD_FIELD"),
        ("?kind=other", "BAD_FIELD"),
        ("?tag=a%0Ab", "BAD_FIELD"),
        ("?tag=a=1&tag=b&tag=a=2", "BAD_FIELD"),
        ("?host=a%0Ab", "BAD_FIELD"),
        ("?host=a%00b", "BAD_FIELD"),
        ("?host=a%C2%85b", "BAD_FIELD"),
        ("?root=a%00b", "BAD_FIELD"),
    ],
)
def test_parameters_that_make_no_backup_are_refused(query: str, reason: str, place: Place) -> None:
    found = place.put(tar_of({"a": b"1"}), query, "parameters")
    assert (found.status, found.info.reason) == (400, reason)
    place.assert_nothing_open()


def test_only_a_writer_may_send_one(place: Place) -> None:
    assert place.put(END, role="reader").status == 403
    assert place.put(END, content_type="text/plain").info.metadata["field"] == "Content-Type"
    assert place.put(END, content_encoding="br").info.metadata["field"] == "Content-Encoding"
    assert place.put(END, "?format=tar.gz", content_encoding="gzip").info.metadata["field"] == "format"


def test_of_a_member_that_is_there_twice_the_last_counts(place: Place) -> None:
    body = member(b"f", b"old") + member(b"d/", kind=b"5", mode=0o700) + member(b"f", b"new")
    place.taken(body + member(b"d/", kind=b"5", mode=0o711) + END, dataset="twice")
    found = restore(place.stub, "twice")
    assert (found.files, found.entries["d"].mode) == ({"f": b"new"}, 0o711)


def test_an_empty_tar_is_an_empty_backup(place: Place) -> None:
    assert "entryCount" not in place.taken(END, dataset="empty") or files(place, "empty") == {}


# ---------------------------------------------------------------------- hard links


def link(name: bytes, target: bytes) -> bytes:
    return header(name, kind=b"1", linkname=target)


def groups(place: Place, dataset: str) -> list[set[str]]:
    found: dict[bytes, set[str]] = {}
    for path, entry in restore(place.stub, dataset).entries.items():
        if entry.link_group:
            found.setdefault(entry.link_group + entry.content.content_id, set()).add(path)
    return sorted(found.values(), key=sorted)


def test_hard_links_share_a_group_and_the_metadata_of_their_file(place: Place) -> None:
    data = noise(2 * MIB, 3)
    body = (
        pax([(b"SCHILY.xattr.user.a", b"b" * 3_000)])
        + member(b"f", data, mode=0o600)
        + member(b"g", b"small")
        + link(b"d/f2", b"./f")
        + link(b"f3", b"d/f2")
        + link(b"g2", b"g")
        + link(b"f", b"f")
        + member(b"alone", b"small")
    )
    first = place.taken(body + END, dataset="links")
    assert groups(place, "links") == [{"d/f2", "f", "f3"}, {"g", "g2"}]
    found = restore(place.stub, "links")
    assert found.files["f3"] == data
    assert (found.entries["f3"].mode, found.entries["f3"].xattrs[0].value) == (0o600, b"b" * 3_000)
    again = place.taken(body + END, dataset="links")
    assert again["manifestDigest"] == first["manifestDigest"]


def test_many_hard_links_are_found_again_over_several_checkpoints(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_upload, "TOGETHER", 7)
    body = b"".join(member(b"f%05d" % n, b"%d" % n) for n in range(9_000))
    body += b"".join(link(b"l%05d" % n, b"f%05d" % n) for n in range(0, 9_000, 90))
    place.taken(body + END, dataset="many")
    found = groups(place, "many")
    assert found == [{f"f{n:05}", f"l{n:05}"} for n in range(0, 9_000, 90)]


def test_more_hard_links_than_may_wait_are_made_in_between(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_upload, "LINKS_BYTES_MAX", 2_000)
    made: list[int] = []
    make = tar_upload.TarUpload._make_links
    monkeypatch.setattr(
        tar_upload.TarUpload, "_make_links", lambda self: (made.append(len(self._links)), make(self))[1]
    )
    body = member(b"f", b"1") + member(b"g", b"2")
    body += b"".join(link(b"l%02d" % n, b"fg"[n % 2 : n % 2 + 1]) for n in range(30)) + link(b"last", b"l00")
    place.taken(body + END, dataset="waiting")
    assert groups(place, "waiting") == [
        {"f", "last", *(f"l{n:02}" for n in range(0, 30, 2))},
        {"g", *(f"l{n:02}" for n in range(1, 30, 2))},
    ]
    assert len(made) > 5
    assert max(made) < 10


def test_a_link_that_a_later_member_replaces_is_gone(place: Place) -> None:
    body = member(b"f", b"1") + link(b"g", b"f") + member(b"g", b"2") + link(b"h", b"f") + link(b"h", b"g")
    place.taken(body + END, dataset="replaced")
    assert files(place, "replaced") == {"f": b"1", "g": b"2", "h": b"2"}
    assert groups(place, "replaced") == [{"g", "h"}]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (member(b"a", b"1") + link(b"b", b"nothing"), "not a file of this tar"),
        (member(b"a/", kind=b"5") + link(b"b", b"a"), "not a file of this tar"),
        (member(b"a", b"1") + link(b"b", b"a") + member(b"a", b"2"), "once more after it"),
        (member(b"a", b"1") + link(b"b", b"../a"), "leads out"),
        (member(b"a", b"1") + link(b"b", b"/a"), "absolute"),
        (member(b"x", b"1") + member(b"z", b"2") + link(b"y", b"z") + link(b"z", b"x"), "once more after it"),
        (member(b"a", b"1") + link(b"b", b"a") + member(b"b/c", b"2"), "'b' above it"),
        (member(b"a", b"1") + link(b"b", b"a") + member(b"a/c/d", b"2"), "'a' above it"),
        (member(b"a", b"1") + link(b"b", b"a") + link(b"b/c", b"a"), "'b' above it"),
        (member(b"a", b"1") + link(b"./", b"a"), "root of the tar"),
        (member(b"a", b"1") + link(b"b", b"./"), "root of the tar"),
        (pax([(b"path", b"b\0c")]) + link(b"b", b"a"), "NUL"),
        (pax([(b"linkpath", b"a\0c")]) + link(b"b", b"a"), "NUL"),
        (pax([(b"linkpath", b"a" * 5000)]) + link(b"b", b"a"), "the limit is"),
    ],
)
def test_a_hard_link_without_its_file_is_refused(body: bytes, words: str, place: Place) -> None:
    assert words in place.refused(body + END).said["message"]


# ---------------------------------------------------------------------- nothing by halves

SOUND = tar_of({"a": b"1", "big": noise(3 * MIB), "z": b"2"})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "cut short"),
        (SOUND[: SOUND.index(END, 3 * MIB) + 512], "cut short"),
        (SOUND[: 2 * MIB], "cut short"),
        (SOUND + b"more", "more follows"),
        (b"PK\3\4" + bytes(2_000), "not a tar"),
        (member(b"../../etc/passwd", b"x") + END, "leads out"),
        (member(b"/etc/passwd", b"x") + END, "absolute"),
        (pax([(b"path", b"a\0b")]) + member(b"f") + END, "NUL"),
        (pax([(b"path", b"n" * 2_000)]) + member(b"f") + END, "limit is"),
        (pax([(b"path", b"n/" * 9_000 + b"f")]) + member(b"f") + END, "limit is"),
        (header(b"l", kind=b"2", linkname=b"/etc") + member(b"l/passwd", b"x") + END, "not a directory"),
        (member(b"f", b"x") + member(b"f/g", b"x") + END, "not a directory"),
        (member(b".", b"x") + END, "not a directory"),
        (header(b"l", kind=b"2") + END, "no target"),
        (pax([(b"SCHILY.xattr.user.a", b"v" * (XATTR_VALUE_BYTES_MAX + 1))]) + member(b"f") + END, "65536"),
        (sparse(100, [(0, 60), (50, 10)], b"x" * 70) + END, "overlap"),
        (header(b"f", 1 << 32) + b"x" * MIB, "cut short"),
        (header(b"x", 1 << 30, b"x") + bytes(MIB), "the limit"),
    ],
)
def test_a_tar_that_is_not_sound_leaves_no_backup(body: bytes, words: str, place: Place) -> None:
    assert words in place.refused(body).said["message"]


def _with_large_window(data: bytes) -> bytes:
    """As `zstd --long` does."""
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return writer.compress(data) + writer.flush()


@pytest.mark.parametrize(
    ("form", "body", "words"),
    [
        ("tar.gz", gzip.compress(SOUND)[:-1], "cut short"),
        ("tar.gz", gzip.compress(SOUND)[:-8] + b"\0" * 8, "not valid gzip"),
        ("tar.gz", SOUND, "not valid gzip"),
        ("tar.zst", zstandard.compress(SOUND)[:-1], "cut short"),
        ("tar.zst", zstandard.compress(SOUND) + b"junk", "not valid zstd"),
        ("tar.zst", b"", "cut short"),
        (
            "tar.zst",
            _with_large_window(SOUND),
            "not valid zstd",
        ),
    ],
)
def test_a_compressed_body_that_is_not_sound_leaves_no_backup(
    form: str, body: bytes, words: str, place: Place
) -> None:
    assert words in place.refused(body, f"?format={form}").said["message"]


@pytest.mark.parametrize("head", ["Content-Length: 1000000000", "Transfer-Encoding: chunked"])
def test_a_sender_that_leaves_in_the_middle_leaves_no_backup(head: str, place: Place) -> None:
    line = place.connect(head)
    piece = SOUND[:MIB]
    line.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if "chunked" in head else piece)
    uploads = place.running.service._uploads
    wait_until(lambda: uploads.open_count == 1)
    line.close()
    wait_until(lambda: uploads.open_count == 0)
    place.assert_nothing_but("the tar did not arrive completely", "refused")


def test_a_whole_tar_in_a_body_that_goes_on_is_not_committed_before_the_body_ends(place: Place) -> None:
    line = place.connect(f"Content-Length: {len(SOUND) + 512}")
    line.sendall(SOUND)
    uploads = place.running.service._uploads
    wait_until(lambda: any(writer.position >= 3 for writer in uploads._all()))
    assert not place.stub.ListBackups(sv.ListBackupsRequest(dataset="refused")).backups
    line.close()
    wait_until(lambda: uploads.open_count == 0)
    place.assert_nothing_but("the tar did not arrive completely", "refused")


def test_a_sender_that_pauses_is_told_and_leaves_no_backup(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from staddle_server.api.http.rest import archives

    monkeypatch.setattr(archives, "HTTP_TAR_SILENCE_S", 1.0)
    line = place.connect("Content-Length: 1000000")
    line.sendall(SOUND[:1000])
    with line:
        found = answer_of(line)
    assert (found.status, found.info.reason) == (400, "BAD_SEQUENCE")
    assert "paused" in found.said["message"]
    place.assert_nothing_but(found.said["message"], "refused")


def test_changes_from_a_list_of_gnu_are_refused(place: Place) -> None:
    place.taken(tar_of({"d/a": b"1"}), dataset="listed")
    body = member(b"d/", b"Ya\0\0", b"D", magic=GNU) + member(b"d/a", b"2") + END
    found = place.put(body, "?scope=changes", "listed")
    assert (found.status, found.info.metadata["path"]) == (400, "d")
    place.taken(body, dataset="listed")
    assert files(place, "listed") == {"d/a": b"2"}


def test_an_acl_by_names_is_a_problem_of_the_run(place: Place) -> None:
    body = pax([(b"SCHILY.acl.access", b"user::rw-,user:joe:r--,group::r--,mask::r--,other::---")])
    backup = place.taken(body + member(b"f", b"1") + END, dataset="acl")
    run = place.stub.ListRuns(sv.ListRunsRequest(dataset="acl", page_size=1)).runs[0]
    assert (run.outcome, run.problem_count, run.backup_id) == (
        pb.RUN_OUTCOME_DONE_WITH_PROBLEMS,
        1,
        backup["id"],
    )


def test_a_tar_that_python_wrote_with_many_links_and_long_names_is_taken(place: Place) -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as opened:
        for number in range(50):
            info = tarfile.TarInfo("n" * 150 + f"/{number}")
            info.type, info.linkname = tarfile.SYMTYPE, "t" * 200
            opened.addfile(info)
    place.taken(made.getvalue(), dataset="long")
    found = restore(place.stub, "long").entries
    assert {entry.link_target for path, entry in found.items() if "/" in path} == {"t" * 200}


def test_a_token_that_ends_meanwhile_ends_the_tar(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.running.only_by_hand(monkeypatch)
    token = place.running.token("writer", name="ends")
    line = socket.create_connection(("127.0.0.1", place.port), timeout=60)
    head = f"PUT /v1/datasets/refused/backups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    line.sendall(f"{head}Content-Length: {len(SOUND)}\r\n\r\n".encode() + SOUND[:MIB])
    wait_until(lambda: place.running.service._uploads.open_count == 1)
    place.running.catalog.tokens.revoke(place.running.tenant, "ends", 1)
    assert place.running.service._gate.end_invalid() == 1
    line.sendall(SOUND[MIB:])
    with line:
        found = answer_of(line)
    assert (found.status, found.info.reason) == (401, "UNAUTHENTICATED")
    place.assert_nothing_but(found.said["message"], "refused")


def test_nothing_is_left_open_when_a_begin_or_a_report_fails(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads, runs = place.running.service._uploads, place.running.service._runs
    too_many = Exhausted("TOO_MANY", "Too many things at once", retry_after_s=1)

    def fails(*_: object, **__: object) -> None:
        raise too_many

    monkeypatch.setattr(uploads, "damaged", fails)  # the last that a begin does
    assert place.put(SOUND, dataset="refused").status == 429
    place.assert_nothing_but(too_many.message, "refused")
    monkeypatch.undo()
    monkeypatch.setattr(runs, "report", fails)
    assert place.put(b"no tar", dataset="refused").status == 400
    place.assert_nothing_open()


def test_a_commit_that_fails_once_it_is_decided_says_that_the_backup_exists(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = place.running.service._uploads
    commit = uploads.commit

    def fails_late(*arguments: Any, **more: Any) -> None:
        commit(*arguments, **more)
        raise Unavailable("STORE_UNAVAILABLE", "The record could not be written")

    monkeypatch.setattr(uploads, "commit", fails_late)
    found = place.put(SOUND, dataset="decided")
    assert found.status == 503
    backup = place.stub.ListBackups(sv.ListBackupsRequest(dataset="decided")).backups[0]
    assert f"The backup exists all the same: {backup.id}" in found.said["message"]
    run = place.stub.ListRuns(sv.ListRunsRequest(dataset="decided", page_size=1)).runs[0]
    assert run.outcome == pb.RUN_OUTCOME_DONE


def test_a_server_that_stops_leaves_no_backup_of_half_a_tar(tmp_path: Path) -> None:
    running = Running(tmp_path)
    door = Place(running, open_http(running))
    line = door.connect(f"Content-Length: {len(SOUND)}", "www")
    line.sendall(SOUND[:MIB])
    wait_until(lambda: running.service._uploads.open_count == 1)
    running.restart()
    line.close()
    assert not running.stub().ListBackups(sv.ListBackupsRequest(dataset="www")).backups
    back_up(running.stub(), "www", {"a": b"1"})
    running.stop()
