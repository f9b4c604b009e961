"""Names as text or bytes: UTF-8 is sent as text, anything else as bytes, and both come back unchanged in either client."""

from __future__ import annotations

import os

import grpc
import pytest
from staddle import ChangeType, Client
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from thin import Part, Source, begin, finish, info, messages

TEXT, RAW = "caf\u00e9", b"caf\xe9\xff"
LINK = pb.ENTRY_TYPE_SYMLINK


def xattr(**name) -> list[pb.Xattr]:
    return [pb.Xattr(**name, value=b"v")]


def entries(data: bytes) -> list[pb.Entry]:
    """Every field that is text or bytes, both ways."""
    return [
        pb.Entry(path=TEXT, data=data, xattrs=xattr(name=f"user.{TEXT}")),
        pb.Entry(raw_path=RAW, data=data + data, xattrs=xattr(raw_name=b"user." + RAW)),
        pb.Entry(path="link", type=LINK, link_target=TEXT),
        pb.Entry(path="raw link", type=LINK, raw_link_target=RAW),
    ]


def names_of(entry: pb.Entry) -> tuple:
    names = tuple((each.name, each.raw_name) for each in entry.xattrs)
    return entry.path, entry.raw_path, entry.link_target, entry.raw_link_target, names


EXPECTED = [
    (TEXT, b"", "", b"", ((f"user.{TEXT}", b""),)),
    ("", RAW, "", b"", (("", b"user." + RAW),)),
    ("link", b"", TEXT, b"", ()),
    ("raw link", b"", "", RAW, ()),
]


@pytest.fixture
def stub(running):
    stub = running.stub()
    for data in (b"1", b"22"):
        stub.Backup(
            messages([begin("www"), *(Part(entry=each) for each in entries(data)), finish(4, 3 * len(data))])
        )
    return stub


def test_text_comes_back_as_text_and_everything_else_as_bytes(stub):
    listed = stub.ListEntries(sv.ListEntriesRequest(dataset="www", recursive=True))
    restored = [
        part.entry for message in stub.Restore(sv.RestoreRequest(dataset="www")) for part in message.parts
    ]
    found = sorted(names_of(each) for each in restored if each.path or each.raw_path)
    assert found == sorted(EXPECTED)
    assert sorted(names_of(each)[:4] for each in listed.entries) == sorted(each[:4] for each in EXPECTED)


def test_bytes_that_are_utf8_name_the_same_path_as_the_text(stub):
    for named in ({"path": TEXT}, {"raw_path": TEXT.encode()}):
        assert stub.ReadRange(sv.ReadRangeRequest(dataset="www", length_bytes=9, **named)).data == b"22"
    assert stub.ReadRange(sv.ReadRangeRequest(dataset="www", length_bytes=9, raw_path=RAW)).data == b"2222"
    both = sv.RestoreRequest(dataset="www", paths=["link"], raw_paths=[RAW], exact=True)
    found = [part.entry for message in stub.Restore(both) for part in message.parts]
    assert sorted(names_of(each) for each in found if each.path or each.raw_path) == sorted(
        each for each in EXPECTED if each[0] == "link" or each[1]
    )


def test_a_name_in_both_fields_is_refused_everywhere(stub):
    source = Source(stub, "other")
    two = {"path": "a", "raw_path": b"a"}
    wrong = [
        pb.Entry(**two, data=b""),
        pb.Entry(path="a", type=LINK, link_target="a", raw_link_target=b"a"),
        pb.Entry(path="a", data=b"", xattrs=xattr(name="user.a", raw_name=b"user.a")),
    ]
    changes = [*(sv.EntryChange(entry=each) for each in wrong), sv.EntryChange(remove=pb.Remove(**two))]
    calls = [
        (stub.PutEntries, sv.PutEntriesRequest(**source.id, number=1, changes=[each])) for each in changes
    ]
    calls += [
        (stub.ReadRange, sv.ReadRangeRequest(dataset="www", length_bytes=1, **two)),
        (stub.ListEntries, sv.ListEntriesRequest(dataset="www", **two)),
    ]
    for call, request in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call(request)
        assert (info(refused.value).reason, refused.value.code()) == (
            "BAD_FIELD",
            grpc.StatusCode.INVALID_ARGUMENT,
        )
        assert "exclude each other" in refused.value.details()


def test_a_path_of_bytes_is_removed_by_bytes_and_compared_by_side(stub):
    source = Source(stub, "www", kind=pb.BACKUP_KIND_INCREMENTAL, scope=pb.UPLOAD_SCOPE_CHANGES)
    new = sv.EntryChange(entry=pb.Entry(raw_path=b"new\xff", data=b"3"))
    changes = [sv.EntryChange(remove=pb.Remove(raw_path=RAW)), new]
    stub.PutEntries(sv.PutEntriesRequest(**source.id, number=1, changes=changes))
    stub.CommitUpload(sv.CommitUploadRequest(**source.id, entry_count=1, data_bytes=1))
    newest, older, _ = [each.id for each in stub.ListBackups(sv.ListBackupsRequest(dataset="www")).backups]

    def compared(one: str, other: str):
        sides = {"from_backup": pb.BackupSelector(backup=one), "to_backup": pb.BackupSelector(backup=other)}
        answer = stub.ListChanges(sv.ListChangesRequest(dataset="www", **sides))
        assert (answer.from_backup_id, answer.to_backup_id) == (one, other)
        return {
            (each.before.raw_path, each.after.raw_path): each.type
            for each in answer.changes
            if each.before.raw_path or each.after.raw_path
        }

    added, removed = sv.CHANGE_TYPE_ADDED, sv.CHANGE_TYPE_REMOVED
    assert compared(older, newest) == {(RAW, b""): removed, (b"", b"new\xff"): added}
    assert compared(newest, older) == {(b"", RAW): added, (b"new\xff", b""): removed}


def test_the_client_sends_and_returns_every_name_byte_for_byte(running, tmp_path):
    with Client(running.address, running.token()) as client:
        for data in (b"1", b"2"):
            with client.upload("www", scope="whole") as upload:
                upload.put(TEXT, data)
                upload.put(RAW, data)
                upload.symlink("link", TEXT)
                upload.symlink("raw link", RAW)
        assert {(each.path_bytes, each.link_target_bytes) for each in client.entries("www")} == {
            (TEXT.encode(), b""),
            (RAW, b""),
            (b"link", TEXT.encode()),
            (b"raw link", RAW),
        }
        sent = running.stub().ListEntries(sv.ListEntriesRequest(dataset="www"))
        assert sorted(names_of(each)[:4] for each in sent.entries) == sorted(each[:4] for each in EXPECTED)
        assert (client.read("www", RAW), client.read("www", TEXT)) == (b"2", b"2")
        newest, older = (each.id for each in client.backups("www"))
        for one, other, sizes in ((older, newest, (b"1", b"2")), (newest, older, (b"2", b"1"))):
            changes = {each.path_bytes: each for each in client.changes("www", one, other)}
            assert set(changes) == {TEXT.encode(), RAW}
            assert {each.type for each in changes.values()} == {ChangeType.CONTENT}
            for side, data in zip(("before", "after"), sizes, strict=True):
                backup = one if side == "before" else other
                entry = getattr(changes[RAW], side)
                listed = next(e for e in client.entries("www", backup=backup) if e.path_bytes == RAW)
                assert (entry.content_id, client.read("www", RAW, backup=backup)) == (listed.content_id, data)
        target = tmp_path / "target"
        client.restore("www", target, paths=[RAW, "raw link"])
        assert sorted(each.name.encode("utf-8", "surrogateescape") for each in target.iterdir()) == [
            RAW,
            b"raw link",
        ]
        os.symlink(TEXT.encode(), os.fsencode(target) + b"/link")
        (target / TEXT).touch()
        name, path = b"user." + RAW, os.fsencode(target) + b"/" + RAW
        try:
            os.setxattr(path, name, b"v")
        except OSError:
            pytest.skip("this file system has no such attributes")
        client.backup(target, dataset="tree")
        sent = running.stub().ListEntries(sv.ListEntriesRequest(dataset="tree"))
        assert sorted(names_of(each)[:4] for each in sent.entries) == sorted(each[:4] for each in EXPECTED)
        again = os.fsencode(tmp_path) + b"/again"
        client.restore("tree", again)
        assert os.getxattr(again + b"/" + RAW, name) == b"v"
        os.setxattr(path, name, b"other")
        client.backup(target, dataset="tree")
        (found,) = client.changes("tree")
        assert [(each.name, each.value) for each in found.before.xattrs] == [(name, b"v")]
        assert [(each.name, each.value) for each in found.after.xattrs] == [(name, b"other")]
