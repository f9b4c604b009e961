"""One upload over as many Backup streams as needed.

When a stream breaks, the next one resumes at the durable point; what lies behind it is still here (see Replay).
"""

import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from typing import Final

from staddle._base.shortage import start
from staddle._errors import (
    DeadlineError,
    ProtocolError,
    StaddleError,
    UnavailableError,
    UnfinishedError,
    UnsupportedError,
    UploadClosedError,
    named,
)
from staddle._transport import silence
from staddle._transport.calls import BackupCall, Calls
from staddle._transport.retry import Retry, RetryNotice, may_resume
from staddle._upload.resend_buffer import CHECKPOINT_BYTES, Outcome, Replay, SentPart
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

ABORT_RETRY_S: Final = 5.0
_ONCE: Final = Retry(budget_s=0.0)


class UploadStream:
    """Entries on their way to the server, which cuts what they hold. One thread uses it.

    Attributes:
        upload: as the server answered last.
        entry_count: entries that were handed over since the upload began.
        data_bytes: bytes of the regular files among them.
        sent_bytes: bytes that were handed over here.
        resumed: it continued after a failure, or continued an earlier upload.

    """

    def __init__(
        self, calls: Calls, *, retry_s: float, notify: Callable[[RetryNotice], None] | None = None
    ) -> None:
        self._calls = calls
        self._retry = Retry(budget_s=retry_s, notify=notify)
        self._attempts = calls.attempts(self._retry)
        self._replay = Replay()
        self._call: BackupCall | None = None
        self._durable_seen = (0, 0)
        self._checkpointing = threading.Lock()
        self._checkpoint_error: StaddleError | None = None
        self._position = 0
        self._stale_position = -1
        self._pid = os.getpid()
        self.upload = pb.Upload()
        self.entry_count = 0
        self.data_bytes = 0
        self.sent_bytes = 0
        self.resumed = False

    def begin(self, request: sv.BeginUploadRequest) -> sv.BeginUploadResponse:
        """Open an upload, or take one over (its open entry starts again), and start the stream."""
        response: sv.BeginUploadResponse = self._calls.call("BeginUpload", request)
        self.upload = response.upload
        durable = self.upload.durable
        self._position, self.entry_count, self.data_bytes = (
            durable.position,
            durable.entry_count,
            durable.data_bytes,
        )
        if durable.HasField("open_entry"):
            self._stale_position = durable.position
        self.resumed = response.taken_over
        try:
            self._start_stream()
        except BaseException as error:
            self.abort(error)
            raise
        return response

    def put(self, entry: pb.Entry, size_bytes: int = 0) -> None:
        """An entry that is complete; `size_bytes` is that of its content, however the entry states it."""
        self._append(SentPart(self._position + 1, sv.BackupPart(entry=entry)))
        self.sent_bytes += len(entry.data)
        self._count(size_bytes)

    def put_file(self, entry: pb.Entry, pieces: Iterable[bytes]) -> int:
        """A file and its bytes, in pieces of at most 1 MiB, none empty. Answers its size. What `pieces` raises leaves the file unfinished."""
        position, offset = self._position + 1, 0
        self._append(SentPart(position, sv.BackupPart(entry=entry), begins_file=True))
        for piece in pieces:
            self._append(SentPart(position, sv.BackupPart(data=sv.Data(data=piece)), offset))
            offset += len(piece)
            self.sent_bytes += len(piece)
        # Known by now: a file that changed while it was read says so at its end.
        end = sv.EntryEnd(size_bytes=offset, read_again=entry.read_again)
        self._append(SentPart(position, sv.BackupPart(entry_end=end)))
        self._count(offset)
        return offset

    def remove(self, removal: pb.Remove) -> None:
        """Remove a path and everything below it."""
        self._append(SentPart(self._position + 1, sv.BackupPart(remove=removal)))
        self._position += 1

    def commit(self) -> pb.Backup:
        """Make the backup, which is durable when this returns. Raises the error that prevents it."""
        finish = sv.Finish(entry_count=self.entry_count, data_bytes=self.data_bytes)
        self._append(SentPart(self._position + 1, sv.BackupPart(finish=finish)))
        while True:
            try:
                return self._finished()
            except StaddleError as error:
                found = self._look_for_backup(error)
                if found is not None:
                    return found
                self._recover(error)

    def abort(self, error: BaseException | None) -> None:
        """Aborts the upload. If the server cannot be reached, a note on `error` says so; the upload then expires after days."""
        if os.getpid() != self._pid:
            return  # it belongs to the parent process, which may commit it
        self._cut()
        if self._calls.closed:
            return
        request = sv.AbortUploadRequest(upload_id=self.upload.id, epoch=self.upload.epoch)
        retry = _ONCE if isinstance(error, UnavailableError) else Retry(budget_s=ABORT_RETRY_S)
        try:
            self._calls.call("AbortUpload", request, retry=retry, timeout_s=ABORT_RETRY_S)
        except StaddleError as failure:
            if error is not None:
                error.add_note(f"The upload {self.upload.id} could not be aborted: {failure}")

    def _count(self, data_bytes: int) -> None:
        self._position += 1
        self.entry_count += 1
        self.data_bytes += data_bytes

    def _append(self, record: SentPart) -> None:
        """Sends a record, on a new stream if the one it was meant for has ended."""
        if os.getpid() != self._pid:
            raise UnsupportedError(
                "This upload belongs to the process that opened it, from which this one was forked."
            )
        full_since_s = None
        while (outcome := self._replay.append(record)) is not Outcome.TAKEN:
            if outcome is Outcome.ENDED:
                self._recover(self._failure())
                full_since_s = None
                continue
            # The checkpoint before may have come too early to make anything durable: without another one nothing would move.
            self._ask_for_checkpoint()
            full_since_s = full_since_s or monotonic()
            if monotonic() - full_since_s > silence.SILENCE_S:
                self._cut()
                self._recover(
                    DeadlineError(
                        f"The server at {self._calls.address} has made no data of the upload {self.upload.id} durable for "
                        f"{silence.SILENCE_S:.0f} s."
                    )
                )
                full_since_s = None
        if self._replay.held_bytes >= CHECKPOINT_BYTES:
            self._ask_for_checkpoint()

    def _cut(self) -> None:
        """Ends the stream that is under way."""
        self._replay.stop()
        if self._call is not None:
            self._call.cancel()

    def _start_stream(self) -> None:
        continued = sv.ContinueUpload(
            upload_id=self.upload.id, epoch=self.upload.epoch, position=self.upload.durable.position
        )
        first = sv.BackupPart(continue_upload=continued)
        messages = self._replay.restart(first, self._usable(self.upload.durable))
        generation = self._replay.generation
        try:
            call = self._calls.start_backup(messages, self.upload.id)
        except BaseException:
            self._replay.stop()
            raise
        self._call = call
        call.on_end(lambda: self._replay.stop(generation))

    def _failure(self) -> StaddleError:
        """Why the stream ended before the client finished it."""
        if self._checkpoint_error is not None:
            error, self._checkpoint_error = self._checkpoint_error, None
            if self._call is not None:
                self._call.cancel()
            return error
        if self._call is None:
            return UnfinishedError("The stream of this upload is closed.")
        try:
            self._call.result(self.upload)
        except StaddleError as error:
            return error
        return ProtocolError("The server ended the stream with success before it was finished.")

    def _recover(self, error: StaddleError) -> None:
        """Takes the upload over and resumes it at its durable point. Raises `error`, or a later one, if that makes no sense."""
        while True:
            if not may_resume(error) or self._calls.closed:
                raise error
            if self._attempts.repeats(error):
                try:
                    self._start_stream()
                except StaddleError as again:
                    error = again
                    continue
                return
            self._attempts.wait_after(error)
            try:
                request = sv.ResumeUploadRequest(upload_id=self.upload.id)
                upload: pb.Upload = self._calls.call("ResumeUpload", request, retry=_ONCE).upload
                self._check_sent(upload.durable)
                self.upload = upload
                self._start_stream()
            except StaddleError as again:
                error = again
                continue
            self.resumed = True
            self._note_progress(upload.durable)
            return

    def _note_progress(self, durable: pb.DurablePoint) -> None:
        """Progress of the durable point renews the retry time of the next stream."""
        point = (durable.position, durable.open_offset_bytes)
        if point != self._durable_seen:
            self._durable_seen = point
            self._attempts.progressed()

    def _ask_for_checkpoint(self) -> None:
        """Ask the server, beside the stream, to make its data durable, so this client can release it."""
        if self._checkpointing.acquire(blocking=False):
            generation = self._replay.generation
            try:
                start("staddle-checkpoint", partial(self._checkpoint, generation, self.upload.epoch))
            except BaseException:
                self._checkpointing.release()
                raise

    def _checkpoint(self, generation: int, epoch: int) -> None:
        try:
            request = sv.CheckpointUploadRequest(upload_id=self.upload.id, epoch=epoch)
            durable = self._calls.call("CheckpointUpload", request).durable
            self._check_sent(durable)
        except StaddleError as error:
            # The sending thread reports this: it takes the upload over again, or raises.
            if generation == self._replay.generation:
                self._checkpoint_error = error
                self._replay.stop(generation)
        else:
            if generation == self._replay.generation:
                self._replay.trim(self._usable(durable))
        finally:
            self._checkpointing.release()

    def _check_sent(self, durable: pb.DurablePoint) -> None:
        """Raises ProtocolError where more is durable than was handed over: what is durable is kept no longer, and counts as progress."""
        # The current entry is counted a moment after it was sent.
        if durable.position > self._position + 1:
            with named(self._calls.address):
                raise ProtocolError(
                    f"The server says that the upload {self.upload.id} is durable up to its change {durable.position:,}, "
                    f"and only {self._position:,} were sent."
                )

    def _usable(self, durable: pb.DurablePoint) -> pb.DurablePoint:
        """Drop the open entry of an upload that was taken over: another process read its bytes."""
        if durable.position != self._stale_position:
            return durable
        usable = pb.DurablePoint()
        usable.CopyFrom(durable)
        usable.ClearField("open_entry")
        usable.ClearField("open_offset_bytes")
        return usable

    def _finished(self) -> pb.Backup:
        if self._call is None:
            raise UnfinishedError("The stream of this upload is closed.")
        return self._call.result(self.upload).backup

    def _look_for_backup(self, error: StaddleError) -> pb.Backup | None:
        """The status of a stream can be lost: GetUpload knows whether the upload was committed nevertheless."""
        if not may_resume(error) or self._calls.closed:
            return None
        self._calls.leave(error)
        request = sv.GetUploadRequest(upload_id=self.upload.id)
        upload: pb.Upload = self._calls.call("GetUpload", request, retry=self._retry).upload
        if upload.state == pb.UPLOAD_STATE_OPEN:
            if upload.last_failure:
                error.add_note(f"The server says: {upload.last_failure}")
            return None
        if upload.state != pb.UPLOAD_STATE_COMMITTED:
            state = pb.UploadState.Name(upload.state)
            raise UploadClosedError(
                f"The upload {upload.id} is {state} on the server.", facts={"upload": upload.id}
            )
        selector = pb.BackupSelector(backup=upload.backup_id)
        by_id = sv.GetBackupRequest(dataset=upload.dataset, backup=selector)
        backup: pb.Backup = self._calls.call("GetBackup", by_id, retry=self._retry).backup
        return backup
