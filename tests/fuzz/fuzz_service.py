"""Every call of a real service: whole Backup streams of made-up parts, and requests that are nearly right."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from blake3 import blake3
from fuzz_engine import MIB, Check, Target, mutate_bytes
from fuzz_messages import UPLOAD, mutate_message
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from staddle._protocol.restore_reader import DataEvent, EntryEvent, FileEndEvent, read_restore
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.app.service import Service
from staddle_server.app.settings import ServiceSettings
from staddle_server.base.errors import StaddleError
from staddle_server.base.types import TokenRole
from staddle_server.catalog import open_catalog
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.keys import KeyStore
from staddle_server.store.records import TenantRecord, encode_record

SERVICE = sv.DESCRIPTOR.services_by_name["StaddleService"]
UNARY = sorted(
    method.name for method in SERVICE.methods if not (method.client_streaming or method.server_streaming)
)
REASONS = {reason for each in StaddleError.__subclasses__() for reason in each.reasons} - {"INTERNAL"}
Part = sv.BackupPart
ZEROS_TRIED_MAX = 64 * MIB


class Served:
    """A service, and a caller of it."""

    def __init__(self, root: Path) -> None:
        (root / "store").mkdir()
        self._catalog = open_catalog(str(root / "catalog.db"))
        blobs = DirectoryBlobs(str(root / "store"))
        keys = KeyStore(blobs, bytes(range(32)), random.Random(1).randbytes)
        tenant = keys.create("default", time.time_ns()).tenant
        self._catalog.tenants.create(
            tenant, "default", time.time_ns(), record=encode_record(TenantRecord("default", 1))
        )
        token = self._catalog.tokens.create(tenant, "fuzz", TokenRole.ADMIN, time.time_ns())
        self._service = Service(self._catalog, blobs, keys, ServiceSettings(streams_max=8))
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self._service.start('127.0.0.1:0', None)}")
        self._metadata = [("authorization", f"Bearer {token}")]
        self._datasets = 0
        self.upload = pb.Upload()

    def close(self) -> None:
        self._channel.close()
        self._service.drain(1.0)
        self._catalog.close()

    def new_dataset(self) -> str:
        self._datasets += 1
        return f"d{self._datasets}"

    def unary(self, name: str, request: bytes) -> bytes:
        call = self._channel.unary_unary(f"/{SERVICE.full_name}/{name}")
        answer: bytes = call(request, metadata=self._metadata, timeout=60)
        return answer

    def backup(self, requests: Iterator[bytes]) -> sv.BackupResponse:
        call = self._channel.stream_unary(f"/{SERVICE.full_name}/Backup")
        return sv.BackupResponse.FromString(call(requests, metadata=self._metadata, timeout=60))

    def restore(self, request: sv.RestoreRequest) -> Iterator[sv.RestoreResponse]:
        call = self._channel.unary_stream(f"/{SERVICE.full_name}/Restore")
        return map(
            sv.RestoreResponse.FromString,
            call(request.SerializeToString(), metadata=self._metadata, timeout=60),
        )

    def end_uploads(self, more_than: int) -> None:
        """Gives up the uploads that broken streams left open, if there are many."""
        writers = dict(self._service._uploads._writers)
        for id_, writer in writers.items() if len(writers) > more_than else ():
            request = sv.AbortUploadRequest(upload_id=id_.hex(), epoch=writer.upload.epoch)
            self.unary("AbortUpload", request.SerializeToString())

    def renew_upload(self) -> None:
        """An upload is open, and not many others are."""
        self.end_uploads(50)
        request = sv.BeginUploadRequest(dataset=self.new_dataset())
        self.upload = sv.BeginUploadResponse.FromString(
            self.unary("BeginUpload", request.SerializeToString())
        ).upload


@contextmanager
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as tmp:
        made = Served(Path(tmp))
        try:
            yield made
        finally:
            made.close()


def refused(error: grpc.RpcError) -> str:
    """The outcome of a call that failed as the protocol says. Raises AssertionError for any other failure."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type] # an RpcError is a Call in fact
    if status is None:
        raise AssertionError(f"no status of ours: {error}")
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    if info.reason not in REASONS:
        raise AssertionError(f"{info.reason}: {status.message}")
    if status.ByteSize() > 3 * 1024:
        raise AssertionError("a status of more than 3 KiB")
    return f"{info.reason} {status.message}"


# ---------------------------------------------------------------------- streams


def _file(path: str, *data: bytes, **fields: Any) -> list[Part]:
    return [
        Part(entry=pb.Entry(path=path, **fields)),
        *(Part(data=sv.Data(data=each)) for each in data),
        Part(entry_end=sv.EntryEnd(size_bytes=sum(map(len, data)))),
    ]


def _streams() -> list[bytes]:
    noise = random.Random(9).randbytes(300_000)
    first = [
        Part(begin=sv.BeginUploadRequest(dataset="d", tags={"a": "b"})),
        Part(
            entry=pb.Entry(
                path="a", data=b"one", mode=0o640, mtime_ns=5, xattrs=[pb.Xattr(name="user.a", value=b"1")]
            )
        ),
        Part(entry=pb.Entry(path="d", type=pb.ENTRY_TYPE_DIRECTORY)),
        Part(entry=pb.Entry(path="d/link", type=pb.ENTRY_TYPE_SYMLINK, link_target="../a")),
        *_file("d/big", noise[:200_000], noise[200_000:], b"end"),
        Part(entry=pb.Entry(path="sparse", holes=[pb.Hole(offset_bytes=0, length_bytes=2_000_000)])),
        Part(data=sv.Data(zero_bytes=2_000_000)),
        Part(data=sv.Data(data=b"x")),
        Part(entry_end=sv.EntryEnd()),
        Part(remove=pb.Remove(path="gone")),
        Part(finish=sv.Finish(entry_count=5, data_bytes=2_300_007)),
    ]
    digest = blake3(noise).digest()
    second = [
        Part(begin=sv.BeginUploadRequest(dataset="d", kind=1)),
        *_file("x", b"", b"ab", file_digest=pb.FileDigest(blake3=blake3(b"ab").digest())),
        Part(
            entry=pb.Entry(
                path="refs", content=pb.Content(chunks=[pb.ChunkRef(digest=digest, length_bytes=7)])
            )
        ),
        Part(entry=pb.Entry(path="dev", type=pb.ENTRY_TYPE_BLOCK_DEVICE, device_major=8)),
        Part(checkpoint=sv.Checkpoint()),
    ]
    return [sv.BackupRequest(parts=parts).SerializeToString() for parts in (first, second)]


def _mutate_stream(chance: random.Random, data: bytes) -> bytes:
    if chance.random() < 0.1:
        return mutate_bytes(chance, data)
    try:
        request = sv.BackupRequest.FromString(data)
    except DecodeError:
        return mutate_bytes(chance, data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        rest = request.parts[1:]
        mutate_message(chance, chance.choice(rest) if rest and chance.random() < 0.7 else request)
    # Only with fitting counts can a changed stream become a backup.
    if chance.random() < 0.7 and request.parts and request.parts[-1].HasField("finish"):
        expected = _expected(list(request.parts))
        request.parts[-1].finish.entry_count = len(expected)
        request.parts[-1].finish.data_bytes = min(sum(_size(pieces) for _, pieces in expected), 2**64 - 1)
    return request.SerializeToString()


Pieces = list[bytes | int] | None
"""The bytes of a file, and numbers of zeros; None: not known from the stream alone."""


def _expected(parts: list[Part]) -> list[tuple[bytes, Pieces]]:
    """The entries of a stream, in order, with the bytes that it sends for them."""
    entries: list[tuple[bytes, Pieces]] = []
    for part in parts:
        if part.HasField("entry"):
            entry = part.entry
            whole = entry.HasField("data") or entry.type not in (0, 1)
            known = whole or not (entry.HasField("content") or entry.content_from_base)
            pieces: Pieces = ([entry.data] if entry.HasField("data") else []) if known else None
            entries.append((entry.raw_path or entry.path.encode(), pieces))
        elif part.HasField("data") and entries and entries[-1][1] is not None:
            entries[-1][1].append(part.data.zero_bytes or part.data.data)
    return entries


def _size(pieces: Pieces) -> int:
    return sum(each if isinstance(each, int) else len(each) for each in pieces or ())


@contextmanager
def _backups() -> Iterator[Check]:
    with served() as service:

        def check(data: bytes) -> str:
            try:
                parts = list(sv.BackupRequest.FromString(data).parts)
            except DecodeError:
                return _backup(service, [data])[0]
            if sum(part.data.zero_bytes for part in parts if part.HasField("data")) > ZEROS_TRIED_MAX:
                parts = [part for part in parts if part.data.zero_bytes <= MIB]
            dataset = service.new_dataset()
            if parts and parts[0].HasField("begin") and parts[0].begin.dataset == "d":
                parts[0].begin.dataset = dataset
            step = 1 + len(data) % 7
            requests = [
                sv.BackupRequest(parts=parts[at : at + step]).SerializeToString()
                for at in range(0, len(parts), step)
            ]
            outcome, backup = _backup(service, requests)
            service.end_uploads(50)
            if backup is not None and backup.dataset == dataset:
                _check_restored(service, backup, _expected(parts))
            return outcome

        yield check


def _backup(service: Served, requests: list[bytes]) -> tuple[str, pb.Backup | None]:
    try:
        response = service.backup(iter(requests))
    except grpc.RpcError as error:
        return refused(error), None
    return ("a backup", response.backup) if response.HasField("backup") else ("a checkpoint", None)


def _check_restored(service: Served, backup: pb.Backup, sent: list[tuple[bytes, Pieces]]) -> None:
    """What comes back is what went in last for each path, and nothing else but directories that hold it."""
    last = dict(sent)
    request = sv.RestoreRequest(dataset=backup.dataset, backup=pb.BackupSelector(backup=backup.id))
    path, found = b"", bytearray()
    for event in read_restore(service.restore(request)):
        match event:
            case EntryEvent(entry_path, entry, opened, data):
                assert entry_path in last or entry.implied, f"{entry_path!r} was not sent"
                path, found = entry_path, bytearray(data)
                if not opened and entry.type == pb.ENTRY_TYPE_FILE:
                    _check_bytes(path, bytes(found), last[path])
            case DataEvent(data, zero_bytes):
                found += data or bytes(zero_bytes)
            case FileEndEvent():
                _check_bytes(path, bytes(found), last[path])


def _check_bytes(path: bytes, found: bytes, pieces: Pieces) -> None:
    if pieces is not None:
        expected = b"".join(bytes(each) if isinstance(each, int) else each for each in pieces)
        assert found == expected, f"{path!r} came back as other bytes"


# ---------------------------------------------------------------------- unary calls


def _requests() -> list[tuple[str, Message]]:
    chunk = b"a chunk of some bytes"
    ref = pb.ChunkRef(digest=blake3(chunk).digest(), length_bytes=len(chunk))
    id_ = {"upload_id": UPLOAD, "epoch": 1}
    entry = pb.Entry(path="a/b", content=pb.Content(chunks=[ref], size_bytes=len(chunk)), mode=0o600)
    changes = [sv.EntryChange(entry=entry), sv.EntryChange(remove=pb.Remove(path="x"))]
    latest = pb.BackupSelector(backup="latest")
    return [
        ("BeginUpload", sv.BeginUploadRequest(dataset="d1", request_id="r", tags={"a": "b"}, host="h", root="/", take_over=True)),
        ("GetUpload", sv.GetUploadRequest(upload_id=UPLOAD, page_size=1)),
        ("ResumeUpload", sv.ResumeUploadRequest(upload_id=UPLOAD)),
        ("CheckpointUpload", sv.CheckpointUploadRequest(**id_)),
        ("RenewUpload", sv.RenewUploadRequest(**id_)),
        ("FindMissingChunks", sv.FindMissingChunksRequest(**id_, digests=[ref.digest, bytes(32)])),
        ("PutChunks", sv.PutChunksRequest(**id_, chunks=[ref], data=chunk, raw=True)),
        ("PutEntries", sv.PutEntriesRequest(**id_, number=1, changes=changes)),
        ("CommitUpload", sv.CommitUploadRequest(**id_, entry_count=1, data_bytes=len(chunk))),
        ("AbortUpload", sv.AbortUploadRequest(**id_)),
        ("ReadRange", sv.ReadRangeRequest(dataset="d0", path="a", offset_bytes=1, length_bytes=5, backup=latest)),
        ("ListDatasets", sv.ListDatasetsRequest(page_size=2)),
        ("ListBackups", sv.ListBackupsRequest(dataset="d0", page_size=1, show_deleted=True)),
        ("GetBackup", sv.GetBackupRequest(dataset="d0", backup=pb.BackupSelector(at={"seconds": 2**33}))),
        ("ListEntries", sv.ListEntriesRequest(dataset="d0", path="d", recursive=True, page_size=1, view=3)),
        ("ListChanges", sv.ListChangesRequest(dataset="d0", from_backup=latest, to_backup=latest, page_size=1)),
        ("DeleteBackup", sv.DeleteBackupRequest(dataset="d0", backup="0000")),
        ("UndeleteBackup", sv.UndeleteBackupRequest(dataset="d0", backup="0000")),
        ("GetServerInfo", sv.GetServerInfoRequest()),
    ]  # fmt: skip


def _request_type(name: str) -> Any:
    return getattr(sv, SERVICE.methods_by_name[name].input_type.name)


def _mutate_call(chance: random.Random, data: bytes) -> bytes:
    if not data or chance.random() < 0.1:
        return mutate_bytes(chance, data)
    try:
        message = _request_type(UNARY[data[0] % len(UNARY)]).FromString(data[1:])
    except DecodeError:
        return mutate_bytes(chance, data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        mutate_message(chance, message)
    return data[:1] + message.SerializeToString()


@contextmanager
def _calls() -> Iterator[Check]:
    with served() as service:
        service.renew_upload()
        seed = sv.BackupRequest.FromString(_streams()[0])
        seed.parts[0].begin.dataset = "d0"
        service.backup(iter([seed.SerializeToString()]))

        def check(data: bytes) -> str:
            name = UNARY[(data[:1] or b"\0")[0] % len(UNARY)]
            body = data[1:]
            try:
                message = _request_type(name).FromString(body)
                if getattr(message, "upload_id", "") == UPLOAD:
                    message.upload_id = service.upload.id
                    if getattr(message, "epoch", 0) == 1:
                        message.epoch = service.upload.epoch
                    body = message.SerializeToString()
            except DecodeError:
                pass
            try:
                answer = service.unary(name, body)
            except grpc.RpcError as error:
                outcome = refused(error)
                if any(reason in outcome for reason in ("UPLOAD_CLOSED", "STALE_EPOCH", "RESUME_REQUIRED")):
                    service.renew_upload()
                return f"{name} {outcome}"
            if name in {"ResumeUpload", "CommitUpload", "AbortUpload"}:
                service.renew_upload()
            return f"{name} {len(answer) > 0}"

        yield check


TARGETS = [
    Target("backup", _backups, _streams, _mutate_stream, growth_bytes_max=160 * MIB, short_runs=100),
    Target(
        "call", _calls,
        lambda: [bytes([UNARY.index(name)]) + message.SerializeToString() for name, message in _requests()],
        _mutate_call, growth_bytes_max=160 * MIB, short_runs=400,
    ),
]  # fmt: skip
