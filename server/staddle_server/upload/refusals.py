"""Errors for calls on an upload that has another writer, has no writer, or has ended."""

from __future__ import annotations

from staddle._base.figures import counted

from staddle_server.base.errors import AlreadyExists, Conflict, Exhausted, Precondition, Unavailable
from staddle_server.base.types import UploadState
from staddle_server.catalog import Terms, Upload, lease_held


def busy(upload: bytes) -> Conflict:
    """Return the error for an upload with a Backup stream in progress."""
    text = f"upload {upload.hex()} has a Backup stream in progress; ResumeUpload ends it"
    return Conflict("UPLOAD_BUSY", text, upload=upload.hex())


def resume_required(upload: bytes, why: str) -> Conflict:
    """Return the error for an upload without a writer: what is durable stays, and ResumeUpload resumes from
    there.
    """
    text = f"upload {upload.hex()} {why}; ResumeUpload resumes from its durable point"
    return Conflict("RESUME_REQUIRED", text, upload=upload.hex())


def wrong_server(upload: bytes, endpoint: str) -> Precondition:
    """Return the error for an upload that another server writes."""
    return Precondition(
        "WRONG_SERVER",
        f"upload {upload.hex()} is being written by the server at {endpoint}: send its calls there",
        upload=upload.hex(),
        endpoint=endpoint,
    )


def taken_over(upload: bytes, epoch: int, now: int) -> Conflict:
    """Return the error for a caller whose epoch is not the upload's."""
    return Conflict(
        "STALE_EPOCH",
        f"upload {upload.hex()} is in epoch {now}, not {epoch}: another writer took it over",
        upload=upload.hex(),
        epoch=str(now),
    )


def closed(upload: bytes, state: UploadState, what: str = "") -> Precondition:
    """Return the error for an upload that is over."""
    text = what or f"is {state.name.lower()}"
    return Precondition(
        "UPLOAD_CLOSED", f"upload {upload.hex()} {text}", upload=upload.hex(), state=state.name
    )


def check_open(upload: Upload, epoch: int) -> None:
    """Check that a caller of this epoch may write.

    Raises:
        Precondition: UPLOAD_CLOSED.
        Conflict: STALE_EPOCH.

    """
    if upload.state is not UploadState.OPEN:
        raise closed(upload.id, upload.state)
    if upload.epoch != epoch:
        raise taken_over(upload.id, epoch, upload.epoch)


def check_held(upload: Upload, token: bytes, now_ns: int, terms: Terms) -> None:
    """Check that the caller's token holds the upload. Only ResumeUpload takes an upload over.

    Raises:
        Precondition: UPLOAD_CLOSED, another principal ended it.
        Conflict: LEASE_HELD while the holder's lease lasts, RESUME_REQUIRED after that.

    """
    if upload.token == token:
        return
    if upload.state is not UploadState.OPEN:
        raise closed(upload.id, upload.state)
    if not terms.holds(upload.lease_expires_ns, now_ns):
        raise resume_required(upload.id, f"belongs to {upload.principal!r}, whose lease has ended")
    raise lease_held(upload)


def other_counts(upload: Upload, entry_count: int, data_bytes: int) -> AlreadyExists:
    """Return the error for a replayed commit with other counts."""
    return AlreadyExists(
        "REQUEST_ID_REUSED",
        f"upload {upload.id.hex()} was committed with {counted(upload.entry_count, 'entry', 'entries')} and {counted(upload.data_bytes, 'byte')}; this "
        f"call states {counted(entry_count, 'entry', 'entries')} and {counted(data_bytes, 'byte')}, so it is not a replay: begin a new upload",
        field="entry_count" if entry_count != upload.entry_count else "data_bytes",
    )


def other_entries(number: int) -> AlreadyExists:
    """Return the error for a PutEntries call with the number of an earlier one and other changes."""
    return AlreadyExists(
        "REQUEST_ID_REUSED",
        f"PutEntries call {number} was accepted with other changes: send a replay unchanged, and new changes under the "
        "next number",
        field="number",
    )


def too_many(count: int, whose: str) -> Exhausted:
    """Return the error for an upload beyond the limit."""
    return Exhausted(
        "TOO_MANY",
        f"this server is writing {counted(count, 'upload')}{whose} already; try again when some have ended",
        retry_after_s=10,
    )


def draining() -> Unavailable:
    """Return the error for new uploads during shutdown."""
    return Unavailable("DRAINING", "the server is shutting down; try again", retry_after_s=2)
