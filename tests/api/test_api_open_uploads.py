"""Open uploads: an administrator lists those of its tenant, and can give them up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import forked
import grpc
import pytest
from staddle import AccessDeniedError, Client
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from thin import Part, Source, begin, finish, messages, noise, reason, small


def listed(stub, **request) -> list[str]:
    """The ids, over all pages."""
    found, token = [], ""
    while True:
        answer = stub.ListUploads(sv.ListUploadsRequest(page_token=token, **request))
        found += [each.id for each in answer.uploads]
        token = answer.next_page_token
        if not token:
            return found


def test_an_administrator_lists_the_open_uploads_of_its_own_tenant_in_pages(running):
    stub = running.stub("writer")
    mine = [Source(stub, f"set{number % 2}") for number in range(5)]
    ended = Source(stub, "set0")
    ended.put_file("a", b"1")
    ended.commit()
    theirs = running.make_tenant("other")
    Source(running.stub("writer", tenant=theirs), "set0")
    admin = running.stub()
    ids = sorted(each.upload.id for each in mine)
    assert listed(admin) == listed(admin, page_size=1) == listed(admin, page_size=5) == ids
    assert listed(admin, dataset="set1") == sorted(each.upload.id for each in mine[1::2])
    assert admin.ListUploads(sv.ListUploadsRequest()).uploads[0].principal.startswith("writer")
    assert listed(running.stub("admin", tenant=theirs)) not in ([], ids)
    with pytest.raises(grpc.RpcError) as refused:
        listed(stub)
    assert reason(refused.value) == "PERMISSION_DENIED"


def test_an_upload_given_up_by_an_administrator_is_closed_and_reveals_no_paths(running):
    source = Source(running.stub("writer"), "www")
    source.put_file("secret/name", b"1")
    running.catalog.uploads.set_failure(
        running.tenant, bytes.fromhex(source.upload.id), 1, "secret/name broke"
    )
    with Client(running.address, token=running.token()) as client:
        (found,) = client.uploads("www")
        assert (found.id, found.last_failure) == (source.upload.id, "secret/name broke")
        client.abort_upload(found)
        assert list(client.uploads()) == []
    with pytest.raises(grpc.RpcError) as closed:
        source.put_file("b", b"2")
    assert reason(closed.value) == "UPLOAD_CLOSED"
    assert running.catalog.uploads.get(running.tenant, bytes.fromhex(source.upload.id)).last_failure == ""
    with (
        Client(running.address, token=running.token("writer")) as writer,
        pytest.raises(AccessDeniedError),
    ):
        list(writer.uploads())


SECRET = "secret-directory-" + "x" * 200


def _catalog_bytes(running) -> bytes:
    """All bytes of the catalog's files. The server must be stopped: closing a file ends SQLite's locks on it."""
    running.stop()
    try:
        return b"".join(path.read_bytes() for path in running.root.glob("catalog.db*"))
    finally:
        running.start()


@pytest.mark.parametrize("end", ["commit", "abort", "expire"])
def test_no_path_of_an_ended_upload_stays_in_the_catalog_file(running, end):
    stub = running.stub("writer")
    cut = Part(checkpoint=sv.Checkpoint())
    data = noise(6_000_000)
    stream = [
        begin("www", request_id="r"),
        Part(entry=pb.Entry(path=f"{SECRET}/a", data=b"1")),
        # Its chunk list so far makes a durable point that is larger than one page of the database.
        Part(entry=pb.Entry(path=f"{SECRET}/b", xattrs=[pb.Xattr(name=b"n", value=b"v" * 6000)])),
        *(
            Part(data=sv.Data(data=data[start : start + 1_000_000]))
            for start in range(0, len(data), 1_000_000)
        ),
        cut,
    ]
    upload = stub.Backup(messages(stream)).upload
    for failure in (20 * SECRET, SECRET):
        running.catalog.uploads.set_failure(running.tenant, bytes.fromhex(upload.id), upload.epoch, failure)
    assert SECRET.encode() in running.catalog.uploads.get(running.tenant, bytes.fromhex(upload.id)).durable
    id_ = {"upload_id": upload.id, "epoch": upload.epoch}
    where = sv.ContinueUpload(**id_, position=1)
    if end == "commit":
        rest = [Part(entry_end=sv.EntryEnd()), finish(2, 1 + len(data))]
        offset = upload.durable.open_offset_bytes
        opened = [
            Part(entry=pb.Entry(path=f"{SECRET}/b", continue_at_bytes=offset)),
            *(
                Part(data=sv.Data(data=data[start : start + 1_000_000]))
                for start in range(offset, len(data), 1_000_000)
            ),
        ]
        stub.Backup(messages([Part(continue_upload=where), *opened, *rest]))
        ended = stub.GetUpload(sv.GetUploadRequest(upload_id=upload.id)).upload
        assert (ended.durable.entry_count, ended.durable.data_bytes) == (2, 1 + len(data))
        assert not ended.durable.HasField("last_entry")
    else:  # the open file is dropped, and the durable point becomes small
        stub.Backup(messages([Part(continue_upload=where), small(f"{SECRET}/c", b"1"), cut]))
    if end == "abort":
        stub.AbortUpload(sv.AbortUploadRequest(**id_))
    elif end == "expire":
        assert running.catalog.uploads.expire(2**62)
    assert SECRET.encode() not in _catalog_bytes(running)


def test_both_commands_list_uploads_and_give_one_up(server):
    source = [Source(server.stub(), "www"), Source(server.stub(), "db")]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program, *rest = words
        return forked.run(
            [str(Path(sys.executable).with_name(program)), *rest], check=False, capture_output=True, text=True
        )

    data = ("--data", str(server.data))
    rows = [
        json.loads(line) for line in run("staddle-server", "uploads", "--json", *data).stdout.splitlines()
    ]
    assert {row["dataset"] for row in rows} == {"www", "db"}
    gone = run("staddle-server", "uploads", "--abort", source[0].upload.id, *data)
    assert (gone.returncode, gone.stdout.startswith("Aborted")) == (0, True), gone.stderr
    assert run("staddle-server", "uploads", "--abort", source[0].upload.id, *data).returncode == 2
    config = ("--config", str(server.config))
    assert "db" in run("staddle", "uploads", *config).stdout
    given_up = run("staddle", "uploads", *config, "--abort", source[1].upload.id[:8], "--yes")
    assert (given_up.returncode, "Aborted" in given_up.stdout) == (0, True), given_up.stderr
    assert "No open uploads" in run("staddle", "uploads", *config).stdout
