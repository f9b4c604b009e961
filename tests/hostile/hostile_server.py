"""A server that answers every call as configured: right or wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from blake3 import blake3
from column_entries import one_column
from google.protobuf.message import Message
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

MIB = 1024 * 1024
SERVICE = sv.DESCRIPTOR.services_by_name["StaddleService"]
METHODS = {method.name: method for method in SERVICE.methods}
MESSAGE_BYTES = 4 * MIB - 1000
ID, OTHER = "ab" * 16, "cd" * 16
CHUNKER = pb.Chunker(
    seed=7, min_bytes=65_536, avg_bytes=262_144, max_bytes=MIB, normalization=2, fixed_bytes=MIB
)
Answer = Callable[[Any], "bytes | Message | Iterator[bytes | Message]"]


def backup(**fields: Any) -> pb.Backup:
    return pb.Backup(
        **{"id": ID, "dataset": "d", "number": 1, "kind": 1, "entry_count": 50, "data_bytes": MIB, **fields}
    )


def upload(**fields: Any) -> pb.Upload:
    plain = {"id": ID, "dataset": "d", "state": 1, "epoch": 1, "kind": 1, "scope": 1, "chunker": CHUNKER}
    return pb.Upload(**{**plain, **fields})


def run(**fields: Any) -> pb.Run:
    return pb.Run(**{"id": ID, "dataset": "d", "outcome": 4, "reason": "why", **fields})


def parts(*made: sv.RestorePart) -> sv.RestoreResponse:
    return sv.RestoreResponse(parts=made)


def header(**fields: Any) -> sv.RestorePart:
    return sv.RestorePart(header=sv.RestoreHeader(backup=backup(**fields)))


def entry(path: str, **fields: Any) -> sv.RestorePart:
    return sv.RestorePart(entry=pb.Entry(path=path, **fields))


def file(path: str, data: bytes, **fields: Any) -> sv.RestorePart:
    content = pb.Content(size_bytes=len(data), content_id=blake3(data).digest())
    return entry(path, type=1, content=content, data=data, **fields)


def end(entries: int, data_bytes: int = 0, damages: int = 0) -> sv.RestorePart:
    return sv.RestorePart(end=sv.End(entry_count=entries, data_bytes=data_bytes, damage_count=damages))


def honest_restore(asked: sv.RestoreRequest) -> sv.RestoreResponse:
    found = file("f", b"one")
    if asked.view == sv.ENTRY_VIEW_REFERENCES:
        found.entry.ClearField("data")
        found.entry.content.chunks.add(digest=found.entry.content.content_id, length_bytes=3)
    return parts(header(), found, end(1, 3))


HONEST: dict[str, Answer] = {
    "Backup": lambda _: sv.BackupResponse(upload=upload(state=2), backup=backup()),
    "BeginUpload": lambda asked: sv.BeginUploadResponse(upload=upload(scope=asked.scope)),
    "GetUpload": lambda _: sv.GetUploadResponse(upload=upload()),
    "ResumeUpload": lambda _: sv.ResumeUploadResponse(upload=upload(epoch=2)),
    "CheckpointUpload": lambda _: sv.CheckpointUploadResponse(),
    "RenewUpload": lambda _: sv.RenewUploadResponse(),
    "CommitUpload": lambda _: sv.CommitUploadResponse(backup=backup()),
    "AbortUpload": lambda _: sv.AbortUploadResponse(upload=upload(state=3)),
    "ListUploads": lambda _: sv.ListUploadsResponse(),
    "FindMissingChunks": lambda asked: sv.FindMissingChunksResponse(missing=range(len(asked.digests))),
    "PutChunks": lambda _: sv.PutChunksResponse(),
    "PutEntries": lambda _: sv.PutEntriesResponse(),
    "Restore": lambda asked: iter([honest_restore(asked)]),
    "ReadRange": lambda _: sv.ReadRangeResponse(data=b"one", file_size_bytes=3, content_id=bytes(32), backup_id=ID),
    "ListDatasets": lambda _: sv.ListDatasetsResponse(datasets=[pb.Dataset(name="d")]),
    "ListBackups": lambda _: sv.ListBackupsResponse(),
    "GetBackup": lambda _: sv.GetBackupResponse(backup=backup()),
    "ListEntries": lambda asked: sv.ListEntriesResponse(columns=[one_column(pb.Entry(path="f"))]) if asked.columns else sv.ListEntriesResponse(entries=[pb.Entry(path="f")]),
    "ListChanges": lambda _: sv.ListChangesResponse(changes=[sv.Change(type=1, after=pb.Entry(path="f"))]),
    "DeleteBackup": lambda _: sv.DeleteBackupResponse(backup=backup()),
    "UndeleteBackup": lambda _: sv.UndeleteBackupResponse(backup=backup()),
    "SetHold": lambda _: sv.SetHoldResponse(hold=pb.Hold(reason="why"), backup=backup()),
    "ReleaseHold": lambda _: sv.ReleaseHoldResponse(backup=backup()),
    "RetainBackup": lambda _: sv.RetainBackupResponse(backup=backup()),
    "GetRetention": lambda _: sv.GetRetentionResponse(),
    "SetRetention": lambda _: sv.SetRetentionResponse(),
    "PlanRetention": lambda _: sv.PlanRetentionResponse(keep_count=1, backups=[sv.PlannedBackup(backup=backup())]),
    "ApplyRetention": lambda _: sv.ApplyRetentionResponse(deleted_backup_ids=[ID]),
    "ListRuns": lambda _: sv.ListRunsResponse(),
    "ReportRun": lambda asked: sv.ReportRunResponse(run=run(dataset=asked.dataset)),
    "SetExpectation": lambda _: sv.SetExpectationResponse(expectation=pb.Expectation(dataset="d")),
    "DeleteExpectation": lambda _: sv.DeleteExpectationResponse(),
    "ListExpectations": lambda _: sv.ListExpectationsResponse(),
    "GetStatus": lambda _: sv.GetStatusResponse(),
    "ListEvents": lambda _: sv.ListEventsResponse(),
    "GetServerInfo": lambda _: sv.GetServerInfoResponse(chunker=CHUNKER),
}  # fmt: skip


class HostileServer:
    """Answers as HONEST says, but for the methods in `hostile`. FAILS in place of an answer is a failure that passes."""

    def __init__(self) -> None:
        self.hostile: dict[str, Answer] = {}
        self.over = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = METHODS[details.method.rpartition("/")[2]]
        read: Any = getattr(sv, method.input_type.name)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(
                lambda asked, context: map(
                    _encoded, self._answer(method.name, read.FromString(asked), context)
                )
            )
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._backup)
        return grpc.unary_unary_rpc_method_handler(
            lambda asked, context: _encoded(self._answer(method.name, read.FromString(asked), context))
        )

    def _backup(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        if "Backup" not in self.hostile:
            for _ in requests:
                pass
        return _encoded(self._answer("Backup", requests, context))

    def _answer(self, name: str, asked: Any, context: grpc.ServicerContext) -> Any:
        found = self.hostile.get(name, HONEST[name])(asked)
        if found == FAILS:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return found


FAILS = b"fails"


def _encoded(answer: bytes | Message) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()
