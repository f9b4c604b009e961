"""Files over REST: whole and in ranges, with preconditions, harmless names, and never short and whole-looking."""

from __future__ import annotations

import http.client
import re
from base64 import b64decode
from collections.abc import Iterator
from urllib.parse import unquote

import pytest
from http_door import Answer, open_http
from rest_door import RestDoor, name_of
from servers import Running
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.api.http.rest.files import disposition, type_of
from thin import back_up, begin, finish, large, messages, noise, wait_until

MIB = 1 << 20
BIG = noise(6 * MIB, 7)
SMALL = b"0123456789"
BASE = "/v1/datasets/www/backups/latest/files/"
RAW = b"caf\xe9 \xff.txt"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestDoor]:
    running = Running(tmp_path_factory.mktemp("files"))
    entries = [
        sv.BackupPart(entry=pb.Entry(path="small.txt", data=SMALL)),
        sv.BackupPart(entry=pb.Entry(path="empty", data=b"")),
        sv.BackupPart(entry=pb.Entry(path="d e/ü%?#.html", data=b"<script>")),
        sv.BackupPart(entry=pb.Entry(raw_path=RAW, data=b"raw")),
        sv.BackupPart(entry=pb.Entry(path="link", type=pb.ENTRY_TYPE_SYMLINK, link_target="small.txt")),
        *large("big.img", BIG),
    ]
    size = len(SMALL) + len(BIG) + 8 + 3
    running.stub().Backup(messages([begin("www"), *entries, finish(6, size)]))
    yield RestDoor(running, open_http(running))
    running.stop()


def test_a_file_comes_whole_with_its_content_id(door: RestDoor) -> None:
    found = door.get(BASE + "big.img")
    assert (found.status, found.body) == (200, BIG)
    assert found.headers["content-length"] == str(len(BIG))
    entry = door.get("/v1/datasets/www/backups/latest/entries?path=big.img").said["entries"][0]
    assert found.headers["etag"].strip('"') == b64decode(entry["content"]["contentId"]).hex()
    backup = door.get("/v1/datasets/www/backups/latest").said["backup"]["id"]
    assert found.headers["staddle-backup"] == backup
    assert door.get(BASE + "empty").body == b""


def test_the_end_of_an_answer_is_not_taken_for_the_end_of_its_reader(door: RestDoor) -> None:
    for _ in range(30):
        assert door.get(BASE + "big.img").body == BIG


def test_a_file_is_found_by_any_name(door: RestDoor) -> None:
    assert door.get(BASE + "d%20e/" + name_of("ü%?#.html")).body == b"<script>"
    assert door.get(BASE + name_of("d e/ü%?#.html")).body == b"<script>"
    assert door.get(BASE + name_of(RAW)).body == b"raw"


@pytest.mark.parametrize(
    ("wanted", "status", "start", "end"),
    [
        ("bytes=0-0", 206, 0, 1),
        ("bytes=2-4", 206, 2, 5),
        ("bytes=2-", 206, 2, 10),
        ("bytes=-3", 206, 7, 10),
        ("bytes=-99", 206, 0, 10),
        ("bytes=9-99", 206, 9, 10),
        ("Bytes= 1-2 ", 206, 1, 3),
        ("bytes=10-", 416, 0, 0),
        ("bytes=-0", 416, 0, 0),
        ("bytes=9999999999999999999-", 416, 0, 0),
        ("bytes=4-2", 200, 0, 10),
        ("bytes=0-1,3-4", 200, 0, 10),
        ("bytes=", 200, 0, 10),
        ("bytes=-", 200, 0, 10),
        ("lines=0-1", 200, 0, 10),
        ("bytes=0x1-2", 200, 0, 10),
        ("bytes=" + "9" * 30 + "-", 200, 0, 10),
        ("bytes=1-2" * 400, 200, 0, 10),
    ],
)
def test_ranges_are_those_of_rfc_9110(door: RestDoor, wanted: str, status: int, start: int, end: int) -> None:
    found = door.get(BASE + "small.txt", range=wanted)
    assert found.status == status
    if status == 416:
        assert found.headers["content-range"] == "bytes */10"
        assert found.said["code"] == "out_of_range"
        return
    assert found.body == SMALL[start:end]
    assert found.headers.get("content-range") == (f"bytes {start}-{end - 1}/10" if status == 206 else None)
    head = door.get(BASE + "small.txt", verb="HEAD", range=wanted)
    assert (head.status, head.body, head.headers["content-length"]) == (status, b"", str(end - start))


def test_a_range_of_an_empty_file_cannot_be_satisfied(door: RestDoor) -> None:
    assert door.get(BASE + "empty", range="bytes=0-").status == 416


def test_a_range_of_a_large_file_is_read_from_where_it_begins(door: RestDoor) -> None:
    for start, end in ((0, 5), (3 * MIB - 7, 3 * MIB + 700_000), (len(BIG) - 3, len(BIG))):
        found = door.get(BASE + "big.img", range=f"bytes={start}-{end - 1}")
        assert found.body == BIG[start:end]


def test_preconditions_compare_the_content_id(door: RestDoor) -> None:
    tag = door.get(BASE + "small.txt", verb="HEAD").headers["etag"]

    def status(**headers: str) -> int:
        found = door.get(BASE + "small.txt", **headers)
        assert found.headers["etag"] == tag
        return found.status

    for same in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        assert status(if_none_match=same) == 304
    assert status(if_none_match='"x"') == 200
    assert status(if_match=tag) == 200
    assert status(if_match=f'"x", W/{tag}') == 412
    assert status(range="bytes=0-0", if_range=tag) == 206
    assert status(range="bytes=0-0", if_range=f"W/{tag}") == 200
    assert status(range="bytes=0-0", if_range="Wed, 21 Oct 2015 07:28:00 GMT") == 200
    assert door.get(BASE + "small.txt", if_none_match=tag).body == b""


def test_what_is_not_a_file_says_what_it_is(door: RestDoor) -> None:
    found = door.get(BASE + "link")
    assert (found.status, found.info.reason) == (400, "NOT_A_FILE")
    assert "symlink to 'small.txt'" in found.said["message"]
    assert "is a directory" in door.get(BASE + "d%20e").said["message"]
    assert door.get(BASE).info.reason == "NOT_A_FILE"
    assert door.get(BASE + "nothing").info.reason == "PATH_NOT_FOUND"


@pytest.mark.parametrize(
    "path", ["../x", "d%20e/../small.txt", "%2e%2e/x", "./small.txt", "d//x", "%00", "/x", "x/"]
)
def test_a_path_that_is_no_path_is_refused(door: RestDoor, path: str) -> None:
    found = door.get(BASE + path)
    assert (found.status, found.info.reason) == (400, "BAD_FIELD"), found.body


def test_a_browser_saves_a_file_and_runs_nothing_of_it(door: RestDoor) -> None:
    headers = door.get(BASE + name_of("d e/ü%?#.html")).headers
    assert headers["content-type"] == "text/html"
    assert headers["content-disposition"].startswith("attachment;")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("sandbox;")


@pytest.mark.parametrize(
    ("name", "plain", "whole"),
    [
        (b"a.txt", "a.txt", "a.txt"),
        (b'a"b\\c/d', "a_b_c_d", "a_b_c_d"),
        (b"a\r\nSet-Cookie: x", "a__Set-Cookie_ x", "a__Set-Cookie_ x"),
        ("ü%41.txt".encode(), "__41.txt", "ü%41.txt"),
        ("a\u202etxt.exe".encode(), "a_txt.exe", "a_txt.exe"),
        (b"\xff.bin", "_.bin", "\ufffd.bin"),
        (b"..", "file", "file"),
        (b"...  ", "file", "file"),
        (b".profile", ".profile", ".profile"),
    ],
)
def test_names_in_content_disposition_are_harmless(name: bytes, plain: str, whole: str) -> None:
    found = re.fullmatch(r"attachment; filename=\"([^\"]*)\"; filename\*=UTF-8''([!-~]*)", disposition(name))
    assert found is not None
    assert (found[1], unquote(found[2])) == (plain, whole)


def test_types_come_from_the_name() -> None:
    assert [type_of(each) for each in (b"a.PNG", b"a.json", b"a.tar.gz", b"a.xz", b"data", b"\xff.pdf")] == [
        "image/png",
        "application/json",
        "application/gzip",
        "application/x-xz",
        "application/octet-stream",
        "application/pdf",
    ]


def test_a_damaged_file_is_an_error_or_breaks_off_and_never_looks_whole(tmp_path) -> None:
    running = Running(tmp_path)
    stub = running.stub()
    back_up(stub, "www", {"a": BIG})
    door = RestDoor(running, open_http(running))
    pack = max((each for each in (tmp_path / "store" / "packs").rglob("*") if each.is_file()), key=size_of)
    whole = pack.read_bytes()
    pack.write_bytes(whole[: 4 * MIB] + bytes(64) + whole[4 * MIB + 64 :])
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        door.get(BASE + "a")
    # What is whole of it can still be had; what is not is an error with a reason.
    assert door.get(BASE + "a", range="bytes=0-99999").body == BIG[:100_000]
    answers = [answer(door, start) for start in range(0, len(BIG), 256 << 10)]
    assert {each.status for each in answers} == {206, 500}
    assert {each.said["code"] for each in answers if each.status == 500} == {"data_loss"}
    wait_until(lambda: running.service._gate.streams.idle)
    running.stop()


def answer(door: RestDoor, start: int) -> Answer:
    return door.get(BASE + "a", range=f"bytes={start}-{start}")


def size_of(path) -> int:
    return path.stat().st_size


def test_a_reader_may_read_files_and_a_caller_without_a_token_may_not(door: RestDoor) -> None:
    found = door.get(BASE + "small.txt", role=None)
    assert found.status == 401
    found = door.get(BASE + "small.txt", role="monitor")
    assert found.status == 403
