"""A small client for the tests, from the generated code alone, as a third party would write it."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import grpc
import zstandard
from blake3 import blake3
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from staddle.chunking import ChunkerParameters, Cutter
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

Part = sv.BackupPart
PIECE = 1 << 20


@functools.lru_cache(maxsize=16)
def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def begin(dataset: str, **fields: object) -> Part:
    return Part(begin=sv.BeginUploadRequest(dataset=dataset, **fields))


def small(path: str, data: bytes, **fields: object) -> Part:
    return Part(entry=pb.Entry(path=path, data=data, **fields))


def large(path: str, data: bytes, **fields: object) -> Iterator[Part]:
    yield Part(entry=pb.Entry(path=path, **fields))
    yield from pieces(data)
    yield Part(entry_end=sv.EntryEnd(size_bytes=len(data)))


def pieces(data: bytes) -> Iterator[Part]:
    for start in range(0, len(data), PIECE):
        yield Part(data=sv.Data(data=data[start : start + PIECE]))


def finish(entry_count: int, data_bytes: int) -> Part:
    return Part(finish=sv.Finish(entry_count=entry_count, data_bytes=data_bytes))


def messages(parts: Iterable[Part]) -> Iterator[sv.BackupRequest]:
    """Parts in messages of about a megabyte."""
    message, size = sv.BackupRequest(), 0
    for part in parts:
        if message.parts and size + part.ByteSize() > PIECE:
            yield message
            message, size = sv.BackupRequest(), 0
        message.parts.append(part)
        size += part.ByteSize()
    yield message


def back_up(stub, dataset: str, files: Mapping[str, bytes], **fields: object) -> pb.Backup:
    """A complete thin backup."""

    def parts() -> Iterator[Part]:
        yield begin(dataset, **fields)
        for path, data in files.items():
            if len(data) <= PIECE:
                yield small(path, data)
            else:
                yield from large(path, data)
        yield finish(len(files), sum(map(len, files.values())))

    return stub.Backup(messages(parts())).backup


@dataclass
class Restored:
    """What a restore stream brought, checked as any client can."""

    backup: pb.Backup = field(default_factory=pb.Backup)
    entries: dict[str, pb.Entry] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    damages: list[sv.Damage] = field(default_factory=list)
    end: sv.End | None = None


def restore(stub, dataset: str, **fields: object) -> Restored:
    """Reads a restore stream to its end, and checks every content id."""
    out = Restored()
    open_path, chunks = None, []
    for response in stub.Restore(sv.RestoreRequest(dataset=dataset, **fields)):
        for part in response.parts:
            match part.WhichOneof("part"):
                case "header":
                    out.backup = part.header.backup
                case "entry":
                    assert open_path is None, "an entry came before the last one ended"
                    entry = part.entry
                    out.entries[entry.path] = entry
                    if entry.HasField("data"):
                        out.files[entry.path] = entry.data
                        assert not entry.data or blake3(entry.data).digest() == entry.content.content_id
                    elif entry.type == pb.ENTRY_TYPE_FILE and entry.content.size_bytes:
                        open_path, chunks = entry.path, []
                case "data":
                    data = part.data.data or bytes(part.data.zero_bytes)
                    assert sum(part.data.chunk_lengths) == len(data)
                    for length in part.data.chunk_lengths:
                        chunks.append(data[:length])
                        data = data[length:]
                case "entry_end":
                    assert open_path is not None
                    assert content_id(chunks) == part.entry_end.content_id
                    out.files[open_path] = b"".join(chunks)
                    assert len(out.files[open_path]) == part.entry_end.size_bytes
                    open_path = None
                case "damage":
                    out.damages.append(part.damage)
                    open_path = None
                case "end":
                    out.end = part.end
    assert out.end is not None, "a stream without End is a failure"
    assert out.end.entry_count == len(out.entries)
    assert out.end.damage_count == len(out.damages)
    return out


def content_id(chunks: list[bytes]) -> bytes:
    """An independent implementation of docs/format.md."""
    if len(chunks) == 1:
        return blake3(chunks[0]).digest()
    hasher = blake3(derive_key_context="staddle.v1 content id")
    for chunk in chunks:
        hasher.update(len(chunk).to_bytes(4, "little") + blake3(chunk).digest())
    return hasher.digest()


class Source:
    """A source-side upload, call by call."""

    def __init__(self, stub, dataset: str, **fields: object) -> None:
        self.stub = stub
        self.begun = stub.BeginUpload(sv.BeginUploadRequest(dataset=dataset, **fields))
        self.upload = self.begun.upload
        self.number = 0
        self.entries = 0
        self.bytes = 0

    @property
    def id(self) -> dict[str, object]:
        return {"upload_id": self.upload.id, "epoch": self.upload.epoch}

    def cut(self, data: bytes) -> list[bytes]:
        c = self.upload.chunker
        cutter = Cutter(
            ChunkerParameters(c.seed, c.min_bytes, c.avg_bytes, c.max_bytes, c.normalization, c.fixed_bytes)
        )
        chunks, start = [], 0
        for length in cutter.lengths(memoryview(data)) if data else ():
            chunks.append(data[start : start + length])
            start += length
        return chunks

    def missing(self, chunks: list[bytes]) -> list[bytes]:
        digests = [blake3(chunk).digest() for chunk in chunks]
        found = self.stub.FindMissingChunks(sv.FindMissingChunksRequest(**self.id, digests=digests))
        return [chunks[index] for index in found.missing]

    def put_chunks(self, chunks: list[bytes], *, raw: bool = False) -> int:
        stored = 0
        for chunk in chunks:
            data = chunk if raw else zstandard.ZstdCompressor().compress(chunk)
            refs = [pb.ChunkRef(digest=blake3(chunk).digest(), length_bytes=len(chunk))]
            request = sv.PutChunksRequest(**self.id, chunks=refs, data=data, raw=raw)
            stored += self.stub.PutChunks(request).stored
        return stored

    def put_entries(self, *entries: pb.Entry | pb.Remove, number: int | None = None) -> sv.PutEntriesResponse:
        self.number = number or self.number + 1
        changes = [
            sv.EntryChange(remove=entry) if isinstance(entry, pb.Remove) else sv.EntryChange(entry=entry)
            for entry in entries
        ]
        return self.stub.PutEntries(sv.PutEntriesRequest(**self.id, number=self.number, changes=changes))

    def entry(self, path: str, data: bytes, **fields: object) -> pb.Entry:
        """An entry by reference, counted."""
        self.entries += 1
        self.bytes += len(data)
        refs = [pb.ChunkRef(digest=blake3(c).digest(), length_bytes=len(c)) for c in self.cut(data)]
        return pb.Entry(path=path, content=pb.Content(chunks=refs, size_bytes=len(data)), **fields)

    def put_file(self, path: str, data: bytes, **fields: object) -> None:
        chunks = self.cut(data)
        if chunks:
            self.put_chunks(self.missing(chunks))
        self.put_entries(self.entry(path, data, **fields))

    def state(self) -> pb.Upload:
        """The upload as the server has it now."""
        return self.stub.GetUpload(sv.GetUploadRequest(upload_id=self.upload.id)).upload

    def commit(self) -> pb.Backup:
        request = sv.CommitUploadRequest(**self.id, entry_count=self.entries, data_bytes=self.bytes)
        return self.stub.CommitUpload(request).backup


def reason(error: grpc.RpcError) -> str:
    """The ErrorInfo reason of a failed call."""
    return info(error).reason


def info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of a failed call."""
    status = rpc_status.from_call(error)
    assert status is not None, error
    found = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(found)
    assert found.domain == "staddle"
    return found


def datasets(stub) -> list[str]:
    return [dataset.name for dataset in stub.ListDatasets(sv.ListDatasetsRequest()).datasets]


def backups(stub, dataset: str, **fields: object) -> list[pb.Backup]:
    return list(stub.ListBackups(sv.ListBackupsRequest(dataset=dataset, **fields)).backups)


def open_upload(stub, request_id):
    """The upload, as soon as the server has received its begin."""
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        try:
            return stub.GetUpload(sv.GetUploadRequest(request_id=request_id)).upload
        except grpc.RpcError as e:
            if reason(e) != "UPLOAD_NOT_FOUND":
                raise
            threading.Event().wait(0.05)
    raise AssertionError("the upload never began")


class Held:
    """A function that, once it is called, waits until a test lets it go."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        self.reached = threading.Event()
        self.go = threading.Event()

    def __call__(self, *arguments: object, **fields: object) -> object:
        self.reached.set()
        assert self.go.wait(60), "no test let it go"
        return self._function(*arguments, **fields)


def wait_until(true: Callable[[], object], deadline_s: float = 60.0) -> None:
    """Wait for a condition that another thread makes true; fail if it does not."""
    deadline_s += time.monotonic()
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen"
        threading.Event().wait(0.02)
