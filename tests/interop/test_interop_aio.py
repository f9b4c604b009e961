"""The generated Python stubs with grpc.aio, against the real server."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1 import service_pb2_grpc

Part = sv.BackupPart
FILES = {"a.txt": b"alpha", "d/b.bin": bytes(range(256)) * 8192, "d/empty": b""}
SIZE = sum(map(len, FILES.values()))
INLINE_BYTES_MAX = 1 << 16
FINISH = Part(finish=sv.Finish(entry_count=len(FILES), data_bytes=SIZE))


async def messages(last: Part) -> AsyncIterator[sv.BackupRequest]:
    yield sv.BackupRequest(parts=[Part(begin=sv.BeginUploadRequest(dataset="aio"))])
    for path, data in FILES.items():
        if len(data) <= INLINE_BYTES_MAX:
            yield sv.BackupRequest(parts=[Part(entry=pb.Entry(path=path, data=data))])
            continue
        yield sv.BackupRequest(parts=[Part(entry=pb.Entry(path=path))])
        for at in range(0, len(data), 1 << 20):
            yield sv.BackupRequest(parts=[Part(data=sv.Data(data=data[at : at + (1 << 20)]))])
        yield sv.BackupRequest(parts=[Part(entry_end=sv.EntryEnd())])
    yield sv.BackupRequest(parts=[last])


async def restored(stub, bearer) -> tuple[dict[str, bytes], sv.End]:
    files: dict[str, bytes] = {}
    path, last = "", None
    async for message in stub.Restore(sv.RestoreRequest(dataset="aio"), metadata=bearer):
        for part in message.parts:
            last = part
            if part.HasField("entry") and part.entry.type == pb.ENTRY_TYPE_FILE:
                path = part.entry.path
                files[path] = part.entry.data
            elif part.HasField("data"):
                files[path] += part.data.data or bytes(part.data.zero_bytes)
    assert last is not None
    assert last.HasField("end")
    return files, last.end


@pytest.fixture
def run(server):
    """Runs a coroutine of a stub and the metadata with the token."""
    read = tomllib.loads(server.config.read_text())

    async def within(what):
        async with grpc.aio.insecure_channel(read["server"]) as channel:
            bearer = (("authorization", f"Bearer {read['token']}"),)
            return await what(service_pb2_grpc.StaddleServiceStub(channel), bearer)

    return lambda what: asyncio.run(within(what))


def test_a_backup_by_grpc_aio_is_restored_by_grpc_aio(run) -> None:
    async def both(stub, bearer):
        answer = await stub.Backup(messages(FINISH), metadata=bearer)
        return answer, await restored(stub, bearer)

    answer, (files, end) = run(both)
    assert answer.upload.state == pb.UPLOAD_STATE_COMMITTED
    assert files == FILES
    assert (end.data_bytes, end.damage_count) == (SIZE, 0)


def test_a_failed_stream_leaves_no_backup_and_getupload_reports_its_state(run) -> None:
    wrong = Part(finish=sv.Finish(entry_count=1, data_bytes=SIZE))

    async def failed(stub, bearer):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Backup(messages(wrong), metadata=bearer)
        backups = await stub.ListBackups(sv.ListBackupsRequest(dataset="aio"), metadata=bearer)
        return raised.value, list(backups.backups)

    error, backups = run(failed)
    assert backups == []
    # The status of a failed stream can be lost on its way (see Backup): where it came, it says this.
    details = rpc_status.from_call(error)
    if details is not None:
        info = error_details_pb2.ErrorInfo()
        assert details.details[0].Unpack(info)
        assert (error.code(), info.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "COUNT_MISMATCH")
