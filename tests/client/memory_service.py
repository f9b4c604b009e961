"""The protocol in memory, for tests of the client: what it answers follows the .proto; it keeps nothing.

It is slow to make things durable on purpose: only at a requested checkpoint, and at commit.
"""

# ruff: noqa: N802 - the methods have the names of the protocol

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NoReturn

import grpc
from blake3 import blake3
from column_entries import one_column
from google.protobuf import any_pb2, duration_pb2, timestamp_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from memory_state import (
    CHUNK,
    Opened,
    OpenUpload,
    State,
    Stored,
    StoredBackup,
    chunks_of,
    path_of,
    sort_key,
)
from ports import free_port
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1.service_pb2_grpc import StaddleServiceServicer, add_StaddleServiceServicer_to_server

TOKEN = "writer-token"
PAGE = 2


def rpc_abort(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    retry_after_s: float | None = None,
    **facts: str,
) -> NoReturn:
    """End a call with a google.rpc.Status with an ErrorInfo, as in the protocol."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="staddle", metadata=facts)]
    if retry_after_s is not None:
        delay = duration_pb2.Duration(nanos=int(retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=getattr(code_pb2, code.name), message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.abort_with_status(rpc_status.to_status(status))
    raise AssertionError("abort raises")


class MemoryService(StaddleServiceServicer):
    """Datasets and uploads in dictionaries. `before` hooks may end a call; each sees (method, context, counter)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ids = (f"{number:032x}" for number in itertools.count(0xABC0_0000_0000_0000))
        self.backups: dict[str, list[StoredBackup]] = {}
        self.uploads: dict[str, OpenUpload] = {}
        self.calls: list[str] = []
        self.received_bytes = 0
        self.message_sizes: list[int] = []
        self.now_s = 1_700_000_000
        self.before: Callable[[str, grpc.ServicerContext], None] = lambda _method, _context: None
        self.on_part: Callable[[sv.BackupPart, grpc.ServicerContext], None] = lambda _part, _context: None
        self.checkpoint_moves: Callable[[], bool] = lambda: True
        self.after_commit: Callable[[grpc.ServicerContext], None] = lambda _context: None
        self.damaged: set[bytes] = set()
        self.same_page = False
        self.change_restore: Callable[[list[sv.RestorePart]], list[sv.RestorePart]] = lambda parts: parts

    @property
    def unary_calls(self) -> list[str]:
        """The calls that the client waits for, in its order. When a stream's handler starts beside them is up to gRPC."""
        return [call for call in self.calls if call not in ("Backup", "Restore")]

    def _enter(self, method: str, context: grpc.ServicerContext) -> None:
        self.calls.append(method)
        token = dict(context.invocation_metadata()).get("authorization")
        if token != f"Bearer {TOKEN}":
            rpc_abort(
                context, grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "No known token; make one."
            )
        self.before(method, context)

    # ---------------------------------------------------------------- uploads

    def BeginUpload(self, request, context):
        self._enter("BeginUpload", context)
        with self.lock:
            for upload in self.uploads.values():
                if request.request_id and upload.message.request_id == request.request_id:
                    return sv.BeginUploadResponse(upload=upload.shown())
            has_base = bool(self.backups.get(request.dataset))
            kind = request.kind
            if kind == pb.BACKUP_KIND_UNSPECIFIED:
                kind = pb.BACKUP_KIND_INCREMENTAL if has_base else pb.BACKUP_KIND_FULL
            elif kind != pb.BACKUP_KIND_FULL and not has_base:
                rpc_abort(
                    context,
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "NO_BASE",
                    f"{request.dataset} has no backup to start from.",
                    dataset=request.dataset,
                )
            self.now_s += 10
            message = pb.Upload(
                id=next(self.ids),
                dataset=request.dataset,
                request_id=request.request_id,
                state=pb.UPLOAD_STATE_OPEN,
                epoch=1,
                kind=kind,
                scope=request.scope or pb.UPLOAD_SCOPE_WHOLE,
                begin_time=timestamp_pb2.Timestamp(seconds=self.now_s, nanos=123_456_789),
                tags=request.tags,
                host=request.host,
                root=request.root,
            )
            upload = self.uploads[message.id] = OpenUpload(message)
            return sv.BeginUploadResponse(upload=upload.shown(), more_damaged_base_entries=self.same_page)

    def _upload(self, context, upload_id: str, epoch: int | None = None) -> OpenUpload:
        upload = self.uploads.get(upload_id)
        if upload is None:
            rpc_abort(
                context, grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND", "No such upload.", upload=upload_id
            )
        if epoch is not None and epoch != upload.message.epoch:
            rpc_abort(
                context,
                grpc.StatusCode.ABORTED,
                "STALE_EPOCH",
                "Another writer has taken it over.",
                upload=upload_id,
            )
        return upload

    def GetUpload(self, request, context):
        self._enter("GetUpload", context)
        with self.lock:
            shown = self._upload(context, request.upload_id).shown()
            return sv.GetUploadResponse(upload=shown, next_page_token="same" if self.same_page else "")

    def ResumeUpload(self, request, context):
        self._enter("ResumeUpload", context)
        with self.lock:
            upload = self._upload(context, request.upload_id)
            if upload.message.state != pb.UPLOAD_STATE_OPEN:
                state = pb.UploadState.Name(upload.message.state)
                rpc_abort(
                    context,
                    grpc.StatusCode.FAILED_PRECONDITION,
                    "UPLOAD_CLOSED",
                    f"It is {state}.",
                    state=state,
                )
            upload.message.epoch += 1
            upload.received = upload.durable.copied()
            return sv.ResumeUploadResponse(upload=upload.shown())

    def CheckpointUpload(self, request, context):
        self._enter("CheckpointUpload", context)
        moves = self.checkpoint_moves()
        with self.lock:
            upload = self._upload(context, request.upload_id, request.epoch)
            if moves:
                upload.durable = upload.received.durable()
            return sv.CheckpointUploadResponse(durable=upload.durable.point())

    def AbortUpload(self, request, context):
        self._enter("AbortUpload", context)
        with self.lock:
            upload = self._upload(context, request.upload_id)
            upload.message.state = pb.UPLOAD_STATE_ABORTED
            return sv.AbortUploadResponse(upload=upload.shown())

    def Backup(self, request_iterator, context):
        self._enter("Backup", context)
        upload: OpenUpload | None = None
        epoch = 0
        for request in request_iterator:
            self.message_sizes.append(request.ByteSize())
            for part in request.parts:
                with self.lock:
                    if upload is None:
                        upload = self._continued(part.continue_upload, context)
                        epoch = part.continue_upload.epoch
                        continue
                    self._upload(context, upload.message.id, epoch)
                    self.on_part(part, context)
                    if part.HasField("finish"):
                        return self._commit(upload, part.finish, context)
                    self._take(upload.received, part, context)
        where = upload.message.id if upload is not None else ""
        rpc_abort(
            context, grpc.StatusCode.CANCELLED, "UNFINISHED_STREAM", "It ended without Finish.", upload=where
        )

    def _continued(self, continued, context) -> OpenUpload:
        upload = self._upload(context, continued.upload_id, continued.epoch)
        if continued.position != upload.received.position:
            rpc_abort(context, grpc.StatusCode.INVALID_ARGUMENT, "BAD_SEQUENCE", "Not where the upload is.")
        return upload

    def _take(self, state: State, part, context) -> None:
        kind = part.WhichOneof("part")
        sequence = state.opened is not None if kind in {"data", "entry_end"} else True
        if not sequence:
            rpc_abort(context, grpc.StatusCode.INVALID_ARGUMENT, "BAD_SEQUENCE", f"{kind} outside a file.")
        if kind == "entry":
            self._take_entry(state, part.entry, context)
        elif kind == "data":
            self.received_bytes += len(part.data.data)
            state.opened.data += part.data.data
        elif kind == "entry_end":
            opened, state.opened = state.opened, None
            if part.entry_end.size_bytes != len(opened.data):
                rpc_abort(context, grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH", "Another size came.")
            claimed = opened.entry.file_digest.blake3
            if claimed and claimed != blake3(bytes(opened.data)).digest():
                rpc_abort(context, grpc.StatusCode.INVALID_ARGUMENT, "DIGEST_MISMATCH", "Other bytes came.")
            state.take(opened.entry, bytes(opened.data))
        elif kind == "remove":
            gone = path_of(part.remove)
            for path in [p for p in state.entries if p == gone or p.startswith(gone + b"/")]:
                del state.entries[path]
            state.position += 1

    def _take_entry(self, state: State, entry, context) -> None:
        is_file = entry.type in {pb.ENTRY_TYPE_UNSPECIFIED, pb.ENTRY_TYPE_FILE}
        if not is_file or entry.HasField("data"):
            self.received_bytes += len(entry.data)
            state.opened = None
            state.take(entry, entry.data)
        elif not entry.HasField("continue_at_bytes"):
            state.opened = Opened(copy.deepcopy(entry))
        elif state.opened is None or entry.continue_at_bytes != len(state.opened.data):
            rpc_abort(context, grpc.StatusCode.INVALID_ARGUMENT, "BAD_SEQUENCE", "Not where the entry is.")

    def _commit(self, upload: OpenUpload, finish, context):
        state = upload.received
        if (finish.entry_count, finish.data_bytes) != (state.entry_count, state.data_bytes):
            rpc_abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                "COUNT_MISMATCH",
                "Other counts were received.",
                entry_count=str(state.entry_count),
                data_bytes=str(state.data_bytes),
            )
        kept = self.backups.setdefault(upload.message.dataset, [])
        message = pb.Backup(
            id=next(self.ids),
            dataset=upload.message.dataset,
            number=len(kept) + 1,
            kind=upload.message.kind,
            begin_time=upload.message.begin_time,
            commit_time=timestamp_pb2.Timestamp(seconds=self.now_s + 5),
            entry_count=len(state.entries),
            data_bytes=sum(len(stored.data) for stored in state.entries.values()),
            tags=upload.message.tags,
            scope=upload.message.scope,
        )
        kept.append(StoredBackup(message, dict(state.entries)))
        upload.message.state = pb.UPLOAD_STATE_COMMITTED
        upload.message.backup_id = message.id
        self.after_commit(context)
        return sv.BackupResponse(upload=upload.shown(), backup=message)

    # ---------------------------------------------------------------- reading

    def _picked(self, context, dataset: str, selector: pb.BackupSelector) -> StoredBackup:
        if dataset not in self.backups:
            rpc_abort(
                context,
                grpc.StatusCode.NOT_FOUND,
                "DATASET_NOT_FOUND",
                f"No dataset {dataset}.",
                dataset=dataset,
            )
        there = [each for each in self.backups[dataset] if not each.message.HasField("delete_time")]
        by = selector.WhichOneof("by")
        if by == "backup" and selector.backup != "latest":
            there = [each for each in there if each.message.id.startswith(selector.backup)]
        elif by == "at":
            limit = (selector.at.seconds, selector.at.nanos)
            there = [e for e in there if (e.message.begin_time.seconds, e.message.begin_time.nanos) <= limit]
        elif by == "ago":
            there = [e for e in there if e.message.begin_time.seconds <= self.now_s - selector.ago.seconds]
        if not there:
            rpc_abort(
                context, grpc.StatusCode.NOT_FOUND, "BACKUP_NOT_FOUND", "No such backup.", dataset=dataset
            )
        return there[-1]

    def _found(self, context, backup: StoredBackup, path: bytes) -> Stored:
        stored = backup.entries.get(path)
        if stored is None:
            rpc_abort(context, grpc.StatusCode.NOT_FOUND, "PATH_NOT_FOUND", f"No {path!r}.", path=repr(path))
        return stored

    def GetBackup(self, request, context):
        self._enter("GetBackup", context)
        return sv.GetBackupResponse(backup=self._picked(context, request.dataset, request.backup).message)

    def ReadRange(self, request, context):
        self._enter("ReadRange", context)
        backup = self._picked(context, request.dataset, request.backup)
        path = path_of(request)
        stored = self._found(context, backup, path)
        if stored.entry.type != pb.ENTRY_TYPE_FILE:
            rpc_abort(
                context, grpc.StatusCode.FAILED_PRECONDITION, "NOT_A_FILE", "It is no file.", path=repr(path)
            )
        if path in self.damaged:
            rpc_abort(context, grpc.StatusCode.DATA_LOSS, "DAMAGED", "It is damaged.", path=repr(path))
        end = request.offset_bytes + request.length_bytes
        return sv.ReadRangeResponse(
            data=stored.data[request.offset_bytes : end],
            file_size_bytes=len(stored.data),
            content_id=stored.entry.content.content_id,
            backup_id=backup.message.id,
        )

    def _page(self, request, response, field: str, items: list) -> object:
        start = 0 if self.same_page else int(request.page_token or 0)
        getattr(response, field).extend(items[start : start + PAGE])
        if start + PAGE < len(items):
            response.next_page_token = str(start + PAGE)
        return response

    def ListDatasets(self, request, context):
        self._enter("ListDatasets", context)
        items = [
            pb.Dataset(name=name, backup_count=len(kept), newest_backup=kept[-1].message)
            for name, kept in sorted(self.backups.items())
        ]
        return self._page(request, sv.ListDatasetsResponse(), "datasets", items)

    def ListBackups(self, request, context):
        self._enter("ListBackups", context)
        self._picked(context, request.dataset, pb.BackupSelector())
        items = [each.message for each in reversed(self.backups[request.dataset])]
        items = [each for each in items if request.show_deleted or not each.HasField("delete_time")]
        return self._page(request, sv.ListBackupsResponse(), "backups", items)

    def ListEntries(self, request, context):
        self._enter("ListEntries", context)
        backup = self._picked(context, request.dataset, request.backup)
        top = path_of(request)
        if top:
            self._found(context, backup, top)
        below = [p for p in backup.entries if p and (not top or p.startswith(top + b"/"))]
        if not request.recursive:
            below = [p for p in below if b"/" not in p[len(top) :].strip(b"/")]
        items = [backup.entries[path].entry for path in sorted(below, key=sort_key)]
        field, found = ("columns", list(map(one_column, items))) if request.columns else ("entries", items)
        return self._page(request, sv.ListEntriesResponse(backup_id=backup.message.id), field, found)

    def ListChanges(self, request, context):
        self._enter("ListChanges", context)
        before = self._picked(context, request.dataset, request.from_backup)
        after = self._picked(context, request.dataset, request.to_backup)
        items = []
        for path in sorted({*before.entries, *after.entries}, key=sort_key):
            old, new = before.entries.get(path), after.entries.get(path)
            if old is None:
                items.append(sv.Change(type=sv.CHANGE_TYPE_ADDED, after=new.entry))
            elif new is None:
                items.append(sv.Change(type=sv.CHANGE_TYPE_REMOVED, before=old.entry))
            elif old.data != new.data:
                kind = sv.CHANGE_TYPE_CONTENT
                items.append(sv.Change(type=kind, before=old.entry, after=new.entry))
        return self._page(request, sv.ListChangesResponse(), "changes", items)

    def Restore(self, request, context) -> Iterator[sv.RestoreResponse]:
        self._enter("Restore", context)
        backup = self._picked(context, request.dataset, request.backup)
        parts = self.change_restore(restore_parts(backup, self.damaged))
        for at in range(0, len(parts), 3):
            yield sv.RestoreResponse(parts=parts[at : at + 3])

    def _hide(self, request, context, *, hidden: bool) -> pb.Backup:
        for each in self.backups.get(request.dataset, []):
            if each.message.id.startswith(request.backup) and each.message.HasField("delete_time") != hidden:
                if hidden:
                    each.message.delete_time.CopyFrom(timestamp_pb2.Timestamp(seconds=self.now_s))
                else:
                    each.message.ClearField("delete_time")
                return each.message
        rpc_abort(context, grpc.StatusCode.NOT_FOUND, "BACKUP_NOT_FOUND", "No such backup.")

    def DeleteBackup(self, request, context):
        self._enter("DeleteBackup", context)
        return sv.DeleteBackupResponse(backup=self._hide(request, context, hidden=True))

    def UndeleteBackup(self, request, context):
        self._enter("UndeleteBackup", context)
        return sv.UndeleteBackupResponse(backup=self._hide(request, context, hidden=False))

    def GetServerInfo(self, request, context):
        self._enter("GetServerInfo", context)
        return sv.GetServerInfoResponse(
            version="0.0.0",
            tenant="default",
            principal="tests",
            role="writer",
            chunker=pb.Chunker(seed=7, min_bytes=CHUNK, avg_bytes=CHUNK, max_bytes=CHUNK),
            limits=sv.Limits(
                read_range_bytes_max=3 * 1024 * 1024, upload_lease=duration_pb2.Duration(seconds=300)
            ),
            server_time=timestamp_pb2.Timestamp(seconds=self.now_s),
            condition=sv.ServerCondition(
                clock_in_doubt=True,
                clock_jump=duration_pb2.Duration(seconds=-7200, nanos=-500),
                damaged_packs=3,
            ),
        )


def restore_parts(backup: StoredBackup, damaged: set[bytes] = frozenset()) -> list[sv.RestorePart]:
    """A complete restore, part by part."""
    parts = [sv.RestorePart(header=sv.RestoreHeader(backup=backup.message))]
    data_bytes = 0
    for path in sorted(backup.entries, key=sort_key):
        stored = backup.entries[path]
        entry = copy.deepcopy(stored.entry)
        parts.append(sv.RestorePart(entry=entry))
        if path in damaged:
            message = sv.Damage(path=path.decode(), message="a segment cannot be opened", offset_bytes=0)
            parts.append(sv.RestorePart(damage=message))
            continue
        data_bytes += len(stored.data)
        if len(stored.data) <= CHUNK:
            if stored.data:
                entry.data = stored.data
                parts[-1].entry.CopyFrom(entry)
            continue
        for chunk in chunks_of(stored.data):
            data = sv.Data(data=chunk, chunk_lengths=[len(chunk)])
            if not chunk.strip(b"\0"):
                data = sv.Data(zero_bytes=len(chunk), chunk_lengths=[len(chunk)])
            parts.append(sv.RestorePart(data=data))
        end = sv.EntryEnd(size_bytes=len(stored.data), content_id=stored.entry.content.content_id)
        parts.append(sv.RestorePart(entry_end=end))
    end_part = sv.End(
        entry_count=len(backup.entries),
        data_bytes=data_bytes,
        damage_count=len(damaged & set(backup.entries)),
    )
    parts.append(sv.RestorePart(end=end_part))
    return parts


@dataclass
class Running:
    """A service that listens."""

    service: MemoryService
    address: str
    server: grpc.Server

    def stop(self) -> None:
        self.server.stop(0).wait()

    def restart(self) -> None:
        """The same service on the same port, as after a restart: data that was not durable is gone."""
        self.stop()
        with self.service.lock:
            for upload in self.service.uploads.values():
                upload.received = upload.durable.copied()
        self.server, _ = start(self.service, self.address)


def start(
    memory: MemoryService, address: str = "", credentials: grpc.ServerCredentials | None = None
) -> tuple[grpc.Server, str]:
    address = address or f"127.0.0.1:{free_port()}"
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    add_StaddleServiceServicer_to_server(memory, server)
    insecure = credentials is None
    port = server.add_insecure_port(address) if insecure else server.add_secure_port(address, credentials)
    server.start()
    return server, f"127.0.0.1:{port}"
