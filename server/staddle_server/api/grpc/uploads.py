"""Calls that write: the thin stream, and the source-side path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from staddle._base.figures import counted
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

from staddle_server.api import convert
from staddle_server.api.convert import bad, identifier
from staddle_server.api.convert_columns import changes_of
from staddle_server.api.encoding import Piece
from staddle_server.api.gate import Call, CallerGone
from staddle_server.api.messages import PutChunks, PutEntries
from staddle_server.api.page_tokens import PageTokens
from staddle_server.base import limits
from staddle_server.base.errors import BadRequest, Conflict, StaddleError, Unfinished
from staddle_server.base.threads import Semaphore
from staddle_server.base.types import ChunkRef, UploadState
from staddle_server.catalog import Backup, Upload
from staddle_server.manifest.entries import shown
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upload.frames import check_frame
from staddle_server.upload.intake import Intake, entries_in
from staddle_server.upload.stream import BackupStream
from staddle_server.upload.uploads import BegunUpload, Uploads
from staddle_server.upload.writer import UploadWriter

Part = sv.BackupPart | Piece
LISTED: Final = 1024
LISTED_MAX: Final = 4096
UPLOADS_LISTED: Final = 100
ENTRY_FACTOR: Final = 20
"""Bytes of memory for each encoded byte of an entry with many attributes or holes."""
ENTRY_SMALL_BYTES: Final = 16 * limits.KIB
LISTED_BYTES: Final = 1 * limits.MIB
"""Entries that one answer lists."""


class ListPosition(NamedTuple):
    """The position in each of GetUpload's two lists; None: at the end."""

    missing: bytes | None = b""
    damaged: tuple[bytes, ...] | None = ()
    """A path, or empty for the beginning."""


class UploadCalls:
    """Answers the calls that write."""

    def __init__(self, uploads: Uploads, tenants: Tenants) -> None:
        self._uploads = uploads
        self._tenants = tenants
        self._checking = Semaphore(max(2, os.cpu_count() or 1))
        """Frames inflated at once: more would only take memory."""

    # ------------------------------------------------------------------ life

    def begin_upload(self, request: sv.BeginUploadRequest, call: Call) -> sv.BeginUploadResponse:
        begun = self._begin(request, call)
        damaged = convert.fitting(map(convert.entry_out, begun.damaged), LISTED_BYTES)
        return sv.BeginUploadResponse(
            upload=self._upload(begun.upload),
            taken_over=begun.taken_over,
            damaged_base_entries=damaged,
            more_damaged_base_entries=begun.more_damaged or len(damaged) < len(begun.damaged),
        )

    def _begin(self, request: sv.BeginUploadRequest, call: Call) -> BegunUpload:
        call.facts["dataset"] = request.dataset
        begun = self._uploads.begin(call.principal, convert.begin_of(request), call.check)
        call.facts["upload"] = begun.upload.id.hex()
        return begun

    def _upload(self, upload: Upload) -> pb.Upload:
        return self._upload_at(upload, self._uploads.endpoint_of(upload))

    def _upload_at(self, upload: Upload, endpoint: str) -> pb.Upload:
        tenant = self._tenants.get(upload.tenant)
        return convert.upload_out(upload, tenant.cutter.parameters, endpoint)

    def get_upload(self, request: sv.GetUploadRequest, call: Call) -> sv.GetUploadResponse:
        which = request.WhichOneof("by")
        if which is None:
            raise bad("by", "upload_id or request_id is required")
        upload = self._uploads.get(
            call.principal,
            upload_id=identifier(request.upload_id, "upload_id") if which == "upload_id" else None,
            request_id=request.request_id,
        )
        call.facts.update(dataset=upload.dataset, upload=upload.id.hex())
        tokens = PageTokens(self._tenants.get(call.principal.tenant).secrets.token_key)
        query = ("upload", upload.id)
        limit = convert.size(request.page_size, "page_size", LISTED, LISTED_MAX)
        after = ListPosition()
        if request.page_token:
            after = tokens.read(query, request.page_token, ListPosition)
        response = sv.GetUploadResponse(upload=self._upload(upload))
        missing, damaged = after.missing, after.damaged
        if missing is not None:
            found = self._uploads.missing(upload, missing, limit)
            response.missing_digests.extend(digest.hex() for digest in found)
            missing = found[-1] if len(found) == limit else None
        if damaged is not None:
            listed = self._uploads.damaged(upload, damaged[0] if damaged else None, limit, call.check)
            page = convert.fitting(map(convert.entry_out, listed.entries), LISTED_BYTES)
            response.damaged_base_entries.extend(page)
            more = listed.more or len(page) < len(listed.entries)
            damaged = (listed.entries[len(page) - 1].path,) if more else None
        if missing is not None or damaged is not None:
            response.next_page_token = tokens.make(query, ListPosition(missing, damaged))
        return response

    def resume_upload(self, request: sv.ResumeUploadRequest, call: Call) -> sv.ResumeUploadResponse:
        call.facts["upload"] = request.upload_id
        upload = self._uploads.resume(call.principal, identifier(request.upload_id, "upload_id"))
        call.facts["dataset"] = upload.dataset
        return sv.ResumeUploadResponse(upload=self._upload(upload))

    def checkpoint_upload(
        self, request: sv.CheckpointUploadRequest, call: Call
    ) -> sv.CheckpointUploadResponse:
        progress = self._writer(request, call).checkpoint()
        return sv.CheckpointUploadResponse(durable=convert.durable_out(progress))

    def renew_upload(self, request: sv.RenewUploadRequest, call: Call) -> sv.RenewUploadResponse:
        call.facts["upload"] = request.upload_id
        upload = self._uploads.renew(
            call.principal, identifier(request.upload_id, "upload_id"), request.epoch
        )
        return sv.RenewUploadResponse(
            lease_expire_time=convert.timestamp(upload.lease_expires_ns),
            expire_time=convert.timestamp(upload.expires_ns),
        )

    def commit_upload(self, request: sv.CommitUploadRequest, call: Call) -> sv.CommitUploadResponse:
        call.facts["upload"] = request.upload_id
        upload_id = identifier(request.upload_id, "upload_id")
        backup = self._commit(upload_id, request.epoch, request, call)
        return sv.CommitUploadResponse(backup=convert.backup_out(backup))

    def _commit(
        self, upload_id: bytes, epoch: int, stated: sv.CommitUploadRequest | sv.Finish, call: Call
    ) -> Backup:
        backup = self._uploads.commit(
            call.principal,
            upload_id,
            epoch,
            stated.entry_count,
            stated.data_bytes,
            problem_count=stated.problem_count,
        )
        call.facts.update(
            dataset=backup.dataset,
            backup=backup.id.hex(),
            entries=backup.root.entries,
            bytes=backup.root.data_bytes,
            stored_bytes=backup.stored_bytes,
        )
        return backup

    def abort_upload(self, request: sv.AbortUploadRequest, call: Call) -> sv.AbortUploadResponse:
        call.facts["upload"] = request.upload_id
        upload = self._uploads.abort(
            call.principal, identifier(request.upload_id, "upload_id"), request.epoch
        )
        return sv.AbortUploadResponse(upload=self._upload(upload))

    def list_uploads(self, request: sv.ListUploadsRequest, call: Call) -> sv.ListUploadsResponse:
        dataset = convert.dataset_name(request.dataset) if request.dataset else ""
        call.facts["dataset"] = dataset
        limit = convert.size(request.page_size, "page_size", UPLOADS_LISTED, limits.SHORT_PAGE_SIZE_MAX)
        tokens = PageTokens(self._tenants.get(call.principal.tenant).secrets.token_key)
        query = ("uploads", dataset)
        after = tokens.read(query, request.page_token, bytes) if request.page_token else b""
        found = self._uploads.list_open(call.principal, dataset, after, limit)
        one_of_each = {upload.server: upload for upload in found}
        endpoints = {server: self._uploads.endpoint_of(upload) for server, upload in one_of_each.items()}
        page = convert.fitting(
            (self._upload_at(upload, endpoints[upload.server]) for upload in found), LISTED_BYTES
        )
        more = tokens.make(query, found[len(page) - 1].id) if found.more or len(found) > len(page) else ""
        return sv.ListUploadsResponse(uploads=page, next_page_token=more)

    # ------------------------------------------------------------------ source side

    def find_missing_chunks(
        self, request: sv.FindMissingChunksRequest, call: Call
    ) -> sv.FindMissingChunksResponse:
        if not 1 <= len(request.digests) <= limits.CHUNKS_PER_CALL_MAX:
            raise bad("digests", f"ask for 1 to {limits.CHUNKS_PER_CALL_MAX} chunks")
        if any(len(digest) != 32 for digest in request.digests):
            raise bad("digests", "a digest must be 32 bytes")
        missing = self._writer(request, call).find_missing(request.digests)
        call.facts.update(chunks=len(request.digests), missing=len(missing))
        return sv.FindMissingChunksResponse(missing=missing)

    def put_chunks(self, sent: PutChunks, call: Call) -> sv.PutChunksResponse:
        request = sent.request
        writer = self._writer(request, call)
        table = [ChunkRef(ref.length_bytes, ref.digest) for ref in request.chunks]
        with self._checking:
            frame = check_frame(table, sent.data, raw=request.raw)
        stored = writer.put_frame(frame)
        call.facts.update(chunks=len(table), bytes=frame.raw_length)
        return sv.PutChunksResponse(stored=stored)

    def put_entries(self, sent: PutEntries, call: Call) -> sv.PutEntriesResponse:
        writer = self._writer(sent.head, call)
        intake = Intake(writer, self._tenants.get(call.principal.tenant))
        tenant = call.principal.tenant
        # Take the writer's turn first: a waiting call then holds only its message, none of the tenant's
        # shared budget.
        with writer.together(), self._tenants.decoded.hold(tenant, sent.weigh(), call.check):
            call.check()
            request = sent.read()
            del sent
            changes, number = changes_of(request), request.number
            call.facts["entries"] = sum(map(entries_in, changes))
            del request  # thousands of objects
            return sv.PutEntriesResponse(incomplete=intake.put_entries(number, changes))

    def _writer(
        self,
        request: sv.CheckpointUploadRequest
        | sv.FindMissingChunksRequest
        | sv.PutChunksRequest
        | sv.PutEntriesRequest
        | sv.ContinueUpload,
        call: Call,
    ) -> UploadWriter:
        call.facts["upload"] = request.upload_id
        writer = self._uploads.writer(
            call.principal, identifier(request.upload_id, "upload_id"), request.epoch
        )
        call.facts["dataset"] = writer.upload.dataset
        return writer

    # ------------------------------------------------------------------ thin path

    def backup(self, messages: Iterator[Iterator[Part]], call: Call) -> sv.BackupResponse:
        parts = _parts(messages)
        first = next(parts, None)
        which = first.WhichOneof("part") if isinstance(first, sv.BackupPart) else None
        if not isinstance(first, sv.BackupPart) or which not in {"begin", "continue_upload"}:
            raise BadRequest("BAD_SEQUENCE", "a Backup stream starts with begin or continue_upload")
        if which == "begin":
            upload = self._begin(first.begin, call).upload
            if upload.state is UploadState.COMMITTED:
                # With the epoch that committed it: the caller may have resumed the upload since it began.
                committed = self._uploads.get(call.principal, upload_id=upload.id)
                return self._committed(parts, committed, call)
            writer = self._uploads.writer(call.principal, upload.id, upload.epoch)
            self._check_new(writer)
        else:
            writer = self._writer(first.continue_upload, call)
        stream = BackupStream(writer, self._tenants.get(call.principal.tenant))
        with writer.stream(call.cancel):
            if which == "continue_upload":
                stream.check_position(first.continue_upload.position)
            return self._receive(parts, stream, writer, call)

    def _committed(self, parts: Iterator[Part], upload: Upload, call: Call) -> sv.BackupResponse:
        """Handle a replayed stream whose backup exists: read it to the end, and answer as the first did if it
        matches.

        Raises:
            AlreadyExists: REQUEST_ID_REUSED, its Finish has other counts.
            Unfinished: It ended without Finish.

        """
        for part in parts:
            call.check()
            if isinstance(part, sv.BackupPart) and part.HasField("finish"):
                counts = part.finish.entry_count, part.finish.data_bytes
                backup = self._uploads.commit(call.principal, upload.id, upload.epoch, *counts)
                return sv.BackupResponse(upload=self._upload(upload), backup=convert.backup_out(backup))
        raise Unfinished(
            "UNFINISHED_STREAM",
            f"the stream ended without finish; its upload {upload.id.hex()} was committed earlier as backup "
            f"{upload.backup.hex()}",
            upload=upload.id.hex(),
        )

    @staticmethod
    def _check_new(writer: UploadWriter) -> None:
        """Check that a stream that begins an upload does not add to what an earlier one sent.

        Raises:
            Conflict: RESUME_REQUIRED.

        """
        if writer.position or writer.open_entry is not None:
            upload = writer.upload.id.hex()
            raise Conflict(
                "RESUME_REQUIRED",
                f"upload {upload} is open and has {counted(writer.position, 'entry or removal', 'entries and removals')} already: resume it with "
                "ResumeUpload and continue_upload, or drop it with AbortUpload",
                upload=upload,
            )

    def _receive(
        self, parts: Iterator[Part], stream: BackupStream, writer: UploadWriter, call: Call
    ) -> sv.BackupResponse:
        held = self._tenants.decoded.held(call.principal.tenant, call.check)

        def take_entry(part: sv.BackupPart) -> None:
            size = part.entry.ByteSize()
            # The open entry's data is kept until the next entry arrives.
            held.change((size * ENTRY_FACTOR if size > ENTRY_SMALL_BYTES else 0) - held.size)
            stream.entry(convert.sent_of(part.entry))

        take: dict[str, Callable[[sv.BackupPart], None]] = {
            "entry": take_entry,
            "data": lambda part: _take_data(stream, part.data),
            "entry_end": lambda part: stream.entry_end(
                part.entry_end.size_bytes if part.entry_end.HasField("size_bytes") else None,
                part.entry_end.content_id,
                read_again=part.entry_end.read_again,
            ),
            "remove": lambda part: stream.remove(convert.path_of(part.remove)),
        }
        try:
            for part in parts:
                call.check()  # a few bytes can stand for a gibibyte of zeros
                if not isinstance(part, sv.BackupPart):
                    stream.data(part)
                    continue
                which = part.WhichOneof("part")
                if which in take:
                    take[which](part)
                elif which in {"checkpoint", "finish"}:
                    return self._end(which, part, stream, writer, call)
                else:
                    raise BadRequest("BAD_SEQUENCE", f"{which or 'an empty part'} is not allowed here")
        except (StaddleError, CallerGone) as e:
            self._put_aside(writer, e)
            raise
        raise self._unfinished(writer)

    def _end(
        self, which: str, part: sv.BackupPart, stream: BackupStream, writer: UploadWriter, call: Call
    ) -> sv.BackupResponse:
        upload = writer.upload
        if which == "finish":
            stream.end()
            backup = self._commit(upload.id, upload.epoch, part.finish, call)
            now = writer.committed(backup, part.finish.entry_count, part.finish.data_bytes)
            return sv.BackupResponse(upload=self._upload(now), backup=convert.backup_out(backup))
        writer.checkpoint()
        now = self._uploads.get(call.principal, upload_id=upload.id)
        return sv.BackupResponse(upload=self._upload(now))

    def _put_aside(self, writer: UploadWriter, error: Exception) -> None:
        """Make a broken stream's data durable, and record the reason in the upload."""
        text = error.message if isinstance(error, StaddleError) else "the stream broke"
        self._uploads.note_failure(writer, text)

    def _unfinished(self, writer: UploadWriter) -> Unfinished:
        upload = writer.upload.id.hex()
        progress = self._uploads.note_failure(writer, "the stream ended without finish")
        last = progress.last_path
        durable = f"{counted(progress.entry_count, 'entry', 'entries')} with {counted(progress.data_bytes, 'byte')} durable"
        return Unfinished(
            "UNFINISHED_STREAM",
            f"the stream ended without finish, so there is no backup; {durable}"
            + (f", the last is {shown(last)}" if last is not None else "")
            + f"; resume with ResumeUpload of {upload} and continue_upload",
            upload=upload,
        )


def _take_data(stream: BackupStream, data: sv.Data) -> None:
    if data.zero_bytes:
        if data.data:
            raise bad("data", "data and zero_bytes exclude each other")
        stream.zeros(data.zero_bytes)
    else:
        stream.data(data.data)


def _parts(messages: Iterator[Iterator[Part]]) -> Iterator[Part]:
    for parts in messages:
        for part in parts:
            ends = isinstance(part, sv.BackupPart) and (
                part.HasField("finish") or part.HasField("checkpoint")
            )
            if ends and next(parts, None) is not None:
                raise BadRequest("BAD_SEQUENCE", "nothing may follow finish or checkpoint")
            yield part
