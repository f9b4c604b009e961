"""The client and the real server: acknowledged data restores byte for byte, whatever was killed on the way."""

import asyncio
import io
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from staddle import (
    AccessDeniedError,
    BackupNotFoundError,
    BadRequestError,
    Client,
    DatasetNotFoundError,
    EntryType,
    NoBaseError,
    NotAFileError,
    PathNotFoundError,
    RootDiffersError,
)
from staddle._protocol.restore_reader import DataEvent, EndEvent, EntryEvent, read_restore
from staddle._transport.settings import load_settings
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1.service_pb2_grpc import StaddleServiceStub

MIB = 1024 * 1024
BIG = random.Random(11).randbytes(5 * MIB + 3)
HOLEY = BIG[:MIB] + bytes(6 * MIB) + BIG[MIB : 2 * MIB]


@pytest.fixture
def admin(server) -> Iterator[Client]:
    with Client.from_config(server.config) as client:
        yield client


def restored(client: Client, dataset: str, **selector: str) -> dict[bytes, bytes]:
    """A complete restore: every path, with its bytes."""
    request = sv.RestoreRequest(dataset=dataset, backup=pb.BackupSelector(**selector))
    files: dict[bytes, bytearray] = {}
    last = b""
    event = None
    for event in read_restore(client.stream("Restore", request)):
        if isinstance(event, EntryEvent):
            last = event.path
            files[last] = bytearray(event.entry.data)
        elif isinstance(event, DataEvent):
            files[last] += event.data or bytes(event.zero_bytes)
    assert isinstance(event, EndEvent)
    return {path: bytes(data) for path, data in files.items()}


def test_uploaded_files_are_restored_byte_for_byte(admin: Client) -> None:
    with admin.upload("orders", tags={"why": "test"}) as upload:
        upload.put("a.json", b"{}", mode=0o600, uid=7, gid=8, mtime_ns=1_234_567_890_123_456_789)
        upload.put("big.bin", BIG)
        upload.put("deep/er/holey", io.BytesIO(HOLEY))
        upload.put("disk.img", [BIG], profile="fixed")
        upload.put("empty", b"")
        upload.put(b"\xff\n", b"odd name")
        upload.mkdir("hollow", mode=0o2755)
        upload.symlink("link", "a.json")
    assert restored(admin, "orders") == {
        b"a.json": b"{}",
        b"big.bin": BIG,
        b"deep": b"",
        b"deep/er": b"",
        b"deep/er/holey": HOLEY,
        b"disk.img": BIG,
        b"empty": b"",
        b"hollow": b"",
        b"link": b"",
        b"\xff\n": b"odd name",
    }
    backup = upload.report.backup
    assert (backup.dataset, backup.number, backup.kind, backup.tags) == ("orders", 1, "full", {"why": "test"})
    assert backup.data_bytes == 2 * len(BIG) + len(HOLEY) + 10
    assert backup.entry_count == 10
    assert backup == admin.get_backup("orders") == next(admin.backups("orders"))
    entry = next(each for each in admin.entries("orders") if each.path == "a.json")
    assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns) == (0o600, 7, 8, 1_234_567_890_123_456_789)
    types = {each.path_bytes: each.type for each in admin.entries("orders", recursive=True)}
    assert types[b"link"] is EntryType.SYMLINK
    assert types[b"deep/er"] is EntryType.DIRECTORY


def test_a_second_backup_counts_the_changes(admin: Client) -> None:
    with admin.upload("orders") as upload:
        upload.put("a", b"1")
        upload.put("b", b"1")
    first = upload.report.backup
    with admin.upload("orders", scope="changes") as upload:
        upload.put("a", b"2")
        upload.put("c", b"3")
        upload.remove("b")
    second = upload.report.backup
    assert (second.kind, second.base_backup_id) == ("incremental", first.id)
    assert [(each.type.value, each.path) for each in admin.changes("orders")] == [
        ("content", "a"),
        ("removed", "b"),
        ("added", "c"),
    ]
    assert restored(admin, "orders") == {b"a": b"2", b"c": b"3"}
    assert restored(admin, "orders", backup=first.id) == {b"a": b"1", b"b": b"1"}
    assert admin.read("orders", "a", at=first.begin_time) == b"1"
    assert admin.read("orders", "a", backup=second.id[:8]) == b"2"
    assert admin.get_backup("orders", at="0s").id == second.id
    assert admin.get_backup("orders", "Latest").id == second.id
    assert admin.get_backup("orders", first.id[:6].upper()).id == first.id


def test_files_are_read_in_ranges_and_opened(admin: Client) -> None:
    admin.backup_stream("db", name="dump", source=iter([BIG, HOLEY]), mtime_ns=5)
    whole = BIG + HOLEY
    assert admin.read("db", "dump") == whole
    assert admin.read("db", "dump", offset=MIB - 1, length=4 * MIB) == whole[MIB - 1 : 5 * MIB - 1]
    with admin.open("db", "dump") as remote:
        assert remote.seek(-10, io.SEEK_END) == len(whole) - 10
        assert remote.read() == whole[-10:]
        remote.seek(len(BIG) - 2)
        assert remote.read(5) == whole[len(BIG) - 2 :][:5]


def test_refusals_of_the_server_are_exceptions(admin: Client) -> None:
    with pytest.raises(DatasetNotFoundError):
        admin.backups("nobody")
    with pytest.raises(NoBaseError), admin.upload("new", kind="incremental"):
        pass
    with admin.upload("www", host="h", root="/srv") as upload:
        upload.put("d/a", b"1")
    with pytest.raises(RootDiffersError) as caught, admin.upload("www", host="h", root="/var"):
        pass
    assert caught.value.facts["root"] == "/srv"
    with pytest.raises(PathNotFoundError):
        admin.read("www", "nowhere")
    with pytest.raises(PathNotFoundError):
        admin.entries("www", "nowhere")
    with pytest.raises(NotAFileError):
        admin.open("www", "d")
    with pytest.raises(BackupNotFoundError) as not_found:
        admin.get_backup("www", at="1970-01-02")
    assert not_found.value.facts["earliest"]
    with pytest.raises(BadRequestError), admin.upload("w\nw"):
        pass


def test_deleting_hides_a_backup_and_undeleting_shows_it(admin: Client) -> None:
    with admin.upload("www") as upload:
        upload.put("a", b"1")
    backup = upload.report.backup
    assert admin.delete_backup("www", backup.id[:6]).delete_time is not None
    assert list(admin.backups("www")) == []
    assert [each.id for each in admin.backups("www", show_deleted=True)] == [backup.id]
    assert admin.undelete_backup("www", backup.id).delete_time is None
    assert admin.read("www", "a") == b"1"


def test_an_upload_survives_a_kill_and_restart_of_the_server(server, admin: Client) -> None:
    pieces = [random.Random(seed).randbytes(MIB) for seed in range(90)]
    settings = load_settings(server.config)

    def source() -> Iterator[bytes]:
        for number, piece in enumerate(pieces):
            if number == 80:
                server.kill()
                server.flags += ("--listen", settings.server)
                server.start()
            yield piece

    notices: list[str] = []
    with admin.upload("db", progress=lambda progress: notices.append(progress.notice)) as upload:
        upload.put("small", b"first")
        upload.put("dump", source())
        upload.put("last", b"last")
    assert upload.report.resumed
    assert any("Trying again" in notice for notice in notices)
    files = restored(admin, "db")
    assert (files[b"small"], files[b"last"]) == (b"first", b"last")
    assert files[b"dump"] == b"".join(pieces)
    assert upload.report.backup.data_bytes == 90 * MIB + 9


def test_an_exception_leaves_no_backup_and_no_open_upload(admin: Client) -> None:
    upload = admin.upload("orders")

    def failing() -> Iterator[bytes]:
        yield BIG
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"), upload:
        upload.put("a", failing())
    assert list(admin.backups("orders")) == []
    state = admin.call("GetUpload", sv.GetUploadRequest(upload_id=upload.id)).upload.state
    assert state == pb.UPLOAD_STATE_ABORTED


def test_many_threads_share_one_client(admin: Client) -> None:
    def one(number: int) -> bytes:
        admin.backup_stream(f"d{number}", name="f", source=[bytes([number]) * 100_000])
        return admin.read(f"d{number}", "f")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [bytes([number]) * 100_000 for number in range(8)]
    assert len(list(admin.datasets())) == 8


def test_info_comes_from_the_server(admin: Client) -> None:
    info = admin.info()
    assert (info.tenant, info.role) == ("default", "admin")
    assert info.chunker.max_bytes == MIB
    assert info.limits["read_range_bytes_max"] >= 2 * MIB


def test_an_insufficient_role_is_named(running) -> None:
    with (
        Client(running.address, running.token("reader")) as reader,
        pytest.raises(AccessDeniedError) as caught,
    ):
        reader.backup_stream("db", name="f", source=[b"1"])
    assert caught.value.reason == "PERMISSION_DENIED"


def test_the_generated_stub_works_with_asyncio_against_the_server(server) -> None:
    settings = load_settings(server.config)
    metadata = (("authorization", f"Bearer {settings.token}"),)

    async def back_up_and_read() -> bytes:
        async with grpc.aio.insecure_channel(settings.server) as channel:
            stub = StaddleServiceStub(channel)

            async def parts():
                begin = sv.BeginUploadRequest(dataset="aio", request_id="1")
                yield sv.BackupRequest(parts=[sv.BackupPart(begin=begin)])
                entry = pb.Entry(path="a", data=b"hello")
                yield sv.BackupRequest(parts=[sv.BackupPart(entry=entry)])
                finish = sv.Finish(entry_count=1, data_bytes=5)
                yield sv.BackupRequest(parts=[sv.BackupPart(finish=finish)])

            await stub.Backup(parts(), metadata=metadata)
            request = sv.ReadRangeRequest(dataset="aio", path="a", length_bytes=100)
            return (await stub.ReadRange(request, metadata=metadata)).data

    assert asyncio.run(back_up_and_read()) == b"hello"
