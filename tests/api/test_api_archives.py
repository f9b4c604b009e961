"""Archives over HTTP, out and in, with real programs at the other end: what comes back is what went in."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import io
import logging
import os
import shutil
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest
import zstandard
from fs_trees import Node, make_socket, nodes_of, plant
from http_door import Answer, ask, open_http
from servers import Running
from staddle import Client
from staddle._protocol import archive_formats
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api import archives
from staddle_server.api.http.rest.sending import Sender
from staddle_server.base.logs import CALLS
from staddle_server.restore.browse import Selector
from thin import back_up, begin, finish, messages, noise, wait_until

TAR = {"content-type": "application/x-tar"}
XATTRS = ("--xattrs", "--xattrs-include=*")


class Place(NamedTuple):
    running: Running
    port: int

    def headers(self, role: str = "writer") -> dict[str, str]:
        return {"authorization": f"Bearer {self.running.token(role)}"}

    def get(self, query: str = "", dataset: str = "www", verb: str = "GET", role: str = "reader") -> Answer:
        path = f"/v1/datasets/{quote(dataset, safe='')}/backups/latest/archive{query}"
        return ask(self.port, path, None, self.headers(role), verb)

    def put(self, body: bytes, query: str = "", dataset: str = "www", **more: str) -> Answer:
        headers = {**self.headers(), **TAR, **{name.replace("_", "-"): text for name, text in more.items()}}
        return ask(self.port, f"/v1/datasets/{quote(dataset, safe='')}/backups{query}", body, headers, "PUT")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    running = Running(tmp_path_factory.mktemp("archives"))
    yield Place(running, open_http(running))
    running.stop()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with everything that this user can make."""
    root = tmp_path_factory.mktemp("tree") / "source"
    plant(root)
    make_socket(root / "sock")
    for name in (b"-\xff\n.txt", b"\xc3\xbc" * 120, b"n" * 255, b"a\\b"):
        Path(os.fsdecode(os.path.join(os.fsencode(root), name))).write_bytes(name)
    (root / "a" / ("d" * 200)).mkdir()
    (root / "a" / ("d" * 200) / ("e" * 200)).write_text("a long way down")
    (root / "to-long").symlink_to("x/" * 200)
    os.link(root / "a" / "x", root / "z-link")
    for name, time_ns in (("before", -1_500_000_000), ("later", 2**33 * 10**9 + 1)):
        (root / name).touch()
        os.utime(root / name, ns=(0, time_ns))
    os.setxattr(root / "text", "user.no=te", b"bin\0\xff\n=x")
    os.setxattr(root / "a", "user.empty", b"")
    if os.geteuid() == 0:
        os.chown(root / "text", 3_000_000, 2**31)
        os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (root / "text").chmod(0o4755)
    with (root / "large-sparse").open("wb") as made:
        made.truncate(40_000_000)
        for at in (0, 20_000_000):
            made.seek(at)
            made.write(b"island" * 1_000)
    return root


def tar_of(source: Path, *options: str) -> bytes:
    made = subprocess.run(["tar", "-c", *options, "-C", source, "."], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout


def unpacked(command: list[str | Path], archive: bytes, target: Path) -> dict[bytes, Node]:
    target.mkdir()
    done = subprocess.run(command, input=archive, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return tree(target)


def tree(root: Path) -> dict[bytes, Node]:
    """All but the root, whose metadata are those of where it was unpacked, and how small files have their holes."""
    found = nodes_of(root, holes=False)
    del found[b""]
    return found


def assert_alike(found: dict[bytes, Node], expected: dict[bytes, Node]) -> None:
    assert sorted(found) == sorted(expected)
    differing = {
        path: [name for name, one, other in zip(Node._fields, node, found[path], strict=True) if one != other]
        for path, node in expected.items()
    }
    assert {path: names for path, names in differing.items() if names} == {}


def seconds(nodes: dict[bytes, Node]) -> dict[bytes, Node]:
    return {path: node._replace(mtime_ns=node.mtime_ns // 10**9) for path, node in nodes.items()}


# ---------------------------------------------------------------------- there and back


@pytest.mark.parametrize(
    "options",
    [
        ("--format=pax", *XATTRS),
        ("--format=pax", "--sparse", "--sparse-version=0.0", *XATTRS),
        ("--format=pax", "--sparse", "--sparse-version=0.1", *XATTRS),
        ("--format=pax", "--sparse", *XATTRS),
    ],
    ids=["pax", "sparse 0.0", "sparse 0.1", "sparse 1.0"],
)
def test_a_tree_comes_back_from_gnu_tar_through_a_backup_as_it_was(
    options: tuple[str, ...], place: Place, source: Path, tmp_path: Path
) -> None:
    put = place.put(tar_of(source, *options))
    assert (put.status, put.said["backup"]["dataset"]) == (201, "www"), put.said
    got = place.get()
    assert (got.status, got.headers["content-type"]) == (200, "application/x-tar")
    target = tmp_path / "target"
    assert_alike(unpacked(["tar", "-xpf", "-", "-C", target, *XATTRS], got.body, target), tree(source))
    if "--sparse" in options:
        assert len(got.body) < 20_000_000
        holes = nodes_of(target)[b"large-sparse"].holes
        assert sum(length for _, length in holes) > 39_000_000


@pytest.mark.parametrize("options", [("--format=gnu",), ("--format=gnu", "--sparse")], ids=["gnu", "sparse"])
def test_the_format_of_gnu_loses_parts_of_seconds_and_attributes_alone(
    options: tuple[str, ...], place: Place, source: Path, tmp_path: Path
) -> None:
    assert place.put(tar_of(source, *options)).status == 201
    target = tmp_path / "target"
    found = unpacked(["tar", "-xpf", "-", "-C", target, *XATTRS], place.get().body, target)
    expected = {path: node._replace(xattrs=()) for path, node in seconds(tree(source)).items()}
    assert_alike(seconds(found), expected)


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="no bsdtar")
def test_bsdtar_sends_and_unpacks_too(place: Place, source: Path, tmp_path: Path) -> None:
    expected = tree(source)
    early = b"before"  # bsdtar writes and reads half seconds before 1970 in a way of its own
    body = subprocess.run(
        ["bsdtar", "-c", "--format=pax", "--xattrs", "-f", "-", "-C", source, "."],
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    ).stdout
    assert place.put(body, dataset="bsd").status == 201
    target = tmp_path / "target"
    archive = place.get(dataset="bsd").body
    found = unpacked(["tar", "-xpf", "-", "-C", target, *XATTRS], archive, target)
    expected[early] = found[early]
    assert_alike(found, expected)
    again = tmp_path / "again"
    found = unpacked(["bsdtar", "-xpf", "-", "--xattrs", "-C", again], archive, again)
    expected[early] = found[early]
    found[b"text"] = found[b"text"]._replace(xattrs=expected[b"text"].xattrs)
    assert_alike(found, expected)  # but for "=" in the name of an attribute, which it does not decode


def test_python_reads_the_tar(place: Place, source: Path) -> None:
    place.put(tar_of(source, "--format=pax", *XATTRS))
    with tarfile.open(fileobj=io.BytesIO(place.get().body), errorlevel=2) as opened:
        names = {os.fsencode(info.name) for info in opened}
        assert opened.extractfile("text").read() == (source / "text").read_bytes()  # type: ignore[union-attr]
    assert names == set(tree(source))


def test_unzip_and_python_unpack_the_zip_which_says_what_it_lacks(
    place: Place, source: Path, tmp_path: Path
) -> None:
    assert place.put(tar_of(source, "--format=pax")).status == 201
    got = place.get("?format=zip")
    assert (got.status, got.headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(got.body)) as opened:
        assert opened.testzip() is None
        assert opened.read("text") == (source / "text").read_bytes()
        comment = opened.comment.decode()
    expected = tree(source)
    missing = {path for path in expected if path in {b"pipe", b"device", b"-\xff\n.txt"}}
    assert comment.startswith(f"{len(missing)} entries of the backup are not in this archive:\n")
    assert "pipe: a zip archive cannot hold a fifo" in comment
    if shutil.which("unzip") is None:
        return
    path, target = tmp_path / "x.zip", tmp_path / "target"
    path.write_bytes(got.body)
    found = unpacked(["unzip", "-X", "-K", "-q", path, "-d", target], b"", target)
    assert set(expected) - set(found) == missing
    # The time stamps of links, and of what is older than 1970, are not unzip's.
    assert_alike(
        {name: node._replace(mtime_ns=0) for name, node in found.items()},
        {
            name: node._replace(mtime_ns=0, links=found[name].links, xattrs=())
            for name, node in expected.items()
            if name not in missing
        },
    )


def test_what_was_put_restores_like_any_other_backup(place: Place, source: Path, tmp_path: Path) -> None:
    assert place.put(tar_of(source, "--format=pax", "--sparse", *XATTRS), dataset="restored").status == 201
    with Client(place.running.address, place.running.token()) as client:
        report = client.restore("restored", tmp_path / "target")
    assert report.problems == ()
    assert_alike(tree(tmp_path / "target"), tree(source))
    assert nodes_of(tmp_path / "target")[b""] == nodes_of(source)[b""]


@pytest.mark.parametrize("how", ["format", "encoding"])
@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_compressed_body_is_the_same_backup(kind: str, how: str, place: Place, source: Path) -> None:
    plain = tar_of(source, "--format=pax")
    packed = gzip.compress(plain, 1) if kind == "gz" else zstandard.compress(plain)
    first = place.put(plain, dataset="packed")
    if how == "format":
        second = place.put(packed, f"?format=tar.{kind}", dataset="packed")
    else:
        second = place.put(packed, dataset="packed", content_encoding={"gz": "gzip", "zst": "zstd"}[kind])
    assert second.status == 201, second.said
    manifests = [each.said["backup"]["manifestDigest"] for each in (first, second)]
    assert manifests[0] == manifests[1]


def test_a_tar_zst_holds_the_tar(place: Place, source: Path) -> None:
    place.put(tar_of(source, "--format=pax"))
    got = place.get("?format=tar.zst")
    assert got.headers["content-type"] == "application/zstd"
    assert zstandard.ZstdDecompressor().decompressobj().decompress(got.body) == place.get().body


# ---------------------------------------------------------------------- out


def test_paths_choose_a_part_and_a_head_has_no_body(place: Place) -> None:
    back_up(place.running.stub(), "parts/ünder", {"a/x": b"1", "a/y": b"2", "b": b"3", "a.b": b"4"})
    for query, names in (
        ("?path=a", ["a", "a/x", "a/y"]),
        ("?path=b&path=a/x", ["a/x", "b"]),
        ("", ["a", "a/x", "a/y", "a.b", "b"]),
    ):
        with tarfile.open(fileobj=io.BytesIO(place.get(query, "parts/ünder").body)) as opened:
            assert opened.getnames() == names
    head = place.get("?format=zip", "parts/ünder", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-disposition"] == (
        "attachment; filename=\"parts__nder-1.zip\"; filename*=UTF-8''parts_%C3%BCnder-1.zip"
    )


@pytest.mark.parametrize(
    ("query", "status", "reason"),
    [
        ("?format=rar", 400, "BAD_FIELD"),
        ("?path=../x", 400, "BAD_FIELD"),
        ("?path=/x", 400, "BAD_FIELD"),
        ("?path=nothing", 404, "PATH_NOT_FOUND"),
    ],
)
def test_a_bad_request_for_an_archive_is_an_error_before_its_first_byte(
    query: str, status: int, reason: str, place: Place
) -> None:
    back_up(place.running.stub(), "bad", {"a": b"1"})
    for verb in ("GET", "HEAD"):
        found = place.get(query, "bad", verb)
        assert found.status == status
        assert verb == "HEAD" or found.info.reason == reason
    assert place.get("", "nowhere").info.reason == "DATASET_NOT_FOUND"
    assert place.get("", "bad", role="monitor").status == 403


def test_a_zip_has_bounds_for_what_waits_for_its_end_and_a_tar_has_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(place.running.stub(), "many", {f"d/{number}": noise(400_000) for number in range(5)})
    monkeypatch.setattr(archives, "ZIP_ENTRIES_MAX", 5)
    found = place.get("?format=zip", "many")
    assert (found.status, found.info.metadata["field"]) == (400, "format")
    assert "use tar" in found.said["message"]
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        place.get("?format=zip&path=d", "many")  # known only once it is there
    assert place.get("?format=zip&path=d/1&path=d/2&path=d/3", "many").status == 200
    assert place.get("?path=d", "many").status == 200
    monkeypatch.setattr(archives, "ZIP_ENTRIES_MAX", 100)
    monkeypatch.setattr(archives, "ZIP_NAMES_BYTES_MAX", 2)
    assert place.get("?format=zip&path=d/1", "many").status == 400


def test_the_end_of_a_zip_is_sent_in_pieces(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ARCHIVE_PIECE_BYTES", 1000)
    monkeypatch.setattr(archives, "END_BYTES_IN_MEMORY", 2000)
    back_up(place.running.stub(), "ends", {f"{number:0200}": b"1" for number in range(100)})
    running = place.running
    reads = running.service._reads()
    principal = running.service._gate.principal_of(running.token("reader"))
    backup = reads.pick(principal, "ends", Selector())
    restore = reads.restore(principal, backup, data=True, refs=False, check=lambda: None)
    pieces = list(
        archives.archive_pieces(restore, [], "zip", 0, large=threading.Lock(), on_lack=lambda *_: None)
    )
    assert max(map(len, pieces)) < 3000
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as opened:
        assert len(opened.namelist()) == 100


def test_the_log_counts_what_an_archive_lacks(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    odd = pb.Xattr(raw_name=b"user.\xff", value=b"1")
    entries = [
        pb.Entry(path="f", data=b"1", xattrs=[odd]),
        pb.Entry(path="sock", type=pb.ENTRY_TYPE_SOCKET),
        pb.Entry(path="well", data=b"2"),
    ]
    parts = [begin("lacks"), *(sv.BackupPart(entry=entry) for entry in entries), finish(3, 2)]
    place.running.stub().Backup(messages(parts))
    caplog.set_level(logging.INFO, CALLS)
    assert place.get("", "lacks").status == 200
    with zipfile.ZipFile(io.BytesIO(place.get("?format=zip", "lacks").body)) as opened:
        assert opened.comment.decode() == (
            "1 entry of the backup is not in this archive:\nsock: a zip archive cannot hold a socket\n"
            "1 entry is in it without extended attributes:\n"
            "f: 1 extended attribute, which a zip archive cannot hold"
        )

    def counted() -> list[tuple[object, object]]:
        found = [record.__dict__["fields"] for record in caplog.records if record.name == CALLS]
        return [(each["left_out"], each["reduced"]) for each in found if each["method"] == "GetArchive"]

    wait_until(lambda: len(counted()) == 2)  # a line is written after its call was answered
    assert counted() == [(1, 1), (1, 1)]


def test_entries_of_thin_clients_get_usual_modes_and_the_owner_root(place: Place) -> None:
    stub = place.running.stub()
    back_up(stub, "plain", {"d/f": b"1"})
    with tarfile.open(fileobj=io.BytesIO(place.get("", "plain").body)) as opened:
        found = [(info.name, info.mode, info.uid, info.gid) for info in opened]
    assert found == [("d", 0o755, 0, 0), ("d/f", 0o644, 0, 0)]


def test_damage_in_the_middle_breaks_the_connection_and_damage_at_the_start_is_an_error(
    tmp_path: Path,
) -> None:
    running = Running(tmp_path)
    door = Place(running, open_http(running))
    stub = running.stub()
    files = {f"f{number:02}": noise(3 << 20, number) for number in range(30)}
    back_up(stub, "www", files)
    back_up(stub, "early", {"only": noise(2 << 20, 99)})
    whole = door.get().body
    packs = sorted((tmp_path / "store").rglob("*"), key=lambda path: path.stat().st_size)
    large = [path for path in packs if path.is_file() and path.stat().st_size > 1 << 20]
    for path in large:
        data = bytearray(path.read_bytes())
        for at in range(len(data) // 2, len(data) - (1 << 20), 1 << 20) if len(data) > 8 << 20 else [1 << 19]:
            data[at] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
    running.restart()
    door = Place(running, open_http(running))
    early = door.get("", "early")
    assert (early.status, early.said["code"]) == (500, "data_loss")
    for form in ("tar", "zip", "tar.zst"):
        path = f"http://127.0.0.1:{door.port}/v1/datasets/www/backups/latest/archive?format={form}"
        got = subprocess.run(
            ["curl", "-sS", "-H", f"Authorization: {door.headers()['authorization']}", path],
            capture_output=True,
            check=False,
        )
        assert got.returncode in {18, 56}, (form, got.stderr)  # a partial file, or a broken connection
        assert len(got.stdout) < len(whole)
        if form == "tar":
            with tarfile.open(fileobj=io.BytesIO(got.stdout)) as opened, pytest.raises(tarfile.ReadError):
                opened.getmembers()
    running.stop()


def test_the_end_of_a_call_does_not_break_off_an_answer_whose_end_is_leaving() -> None:
    """With the end of the answer the request ends, and so does its call, before the sending thread knows."""
    cuts: list[str] = []

    async def answered() -> None:
        loop = asyncio.get_running_loop()

        async def send(message: dict[str, object]) -> None:
            if message.get("more_body") is False:
                sender.break_off()
                await asyncio.sleep(0)  # what `break_off` asks of the loop happens now

        sender = Sender(loop, send, lambda: cuts.append("cut"))

        def work() -> None:
            sender.begin(200, {})
            sender.piece(b"data")
            sender.end()

        await loop.run_in_executor(None, work)
        assert sender.has_ended

    asyncio.run(answered())
    assert cuts == []


def test_files_that_links_may_name_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_formats, "LINKS_MAX", 3)
    monkeypatch.setattr(archive_formats, "LINKS_BYTES_MAX", 100)
    links = archive_formats.LinkSources()

    def entry(number: int) -> pb.Entry:
        return pb.Entry(link_group=b"%d" % number, content=pb.Content(content_id=b"same"))

    for number in range(5):
        links.add(b"p%d" % number, entry(number))
    assert [links.find(entry(number)) for number in range(5)] == [None, None, b"p2", b"p3", b"p4"]
    links.add(b"x" * 97, entry(5))
    assert [links.find(entry(number)) is not None for number in range(3, 6)] == [False, True, True]
    assert links.find(pb.Entry(content=pb.Content(content_id=b"same"))) is None
