"""What callers are told whose upload has another writer, no writer, or an end."""

from __future__ import annotations

from staddle_server.catalog import Upload
from staddle_server.errors import Conflict, Exhausted, Precondition, Unavailable
from staddle_server.types import UploadState


def busy(upload: bytes) -> Conflict:
    """A Backup stream is under way."""
    text = f"upload {upload.hex()} has a Backup stream under way; ResumeUpload ends it"
    return Conflict("UPLOAD_BUSY", text, upload=upload.hex())


def resume_required(upload: bytes, why: str) -> Conflict:
    """There is no writer any more: what is durable stays, and ResumeUpload goes on from there."""
    text = f"upload {upload.hex()} {why}; ResumeUpload goes on from its durable point"
    return Conflict("RESUME_REQUIRED", text, upload=upload.hex())


def taken_over(upload: bytes, epoch: int, now: int) -> Conflict:
    """The caller's epoch is not the upload's."""
    return Conflict(
        "STALE_EPOCH",
        f"upload {upload.hex()} is in epoch {now}, not {epoch}: another writer took it over",
        upload=upload.hex(),
        epoch=str(now),
    )


def closed(upload: bytes, state: UploadState, what: str = "") -> Precondition:
    """The upload is over."""
    text = what or f"is {state.name.lower()}"
    return Precondition(
        "UPLOAD_CLOSED", f"upload {upload.hex()} {text}", upload=upload.hex(), state=state.name
    )


def check_open(upload: Upload, epoch: int) -> None:
    """Whether a caller of this epoch may write.

    Raises:
        Precondition: UPLOAD_CLOSED.
        Conflict: STALE_EPOCH.

    """
    if upload.state is not UploadState.OPEN:
        raise closed(upload.id, upload.state)
    if upload.epoch != epoch:
        raise taken_over(upload.id, epoch, upload.epoch)


def too_many(count: int, whose: str) -> Exhausted:
    """No further upload can be written here."""
    return Exhausted(
        "TOO_MANY",
        f"this server writes {count} uploads{whose} already; try again when some have ended",
        retry_after_s=10,
    )


def draining() -> Unavailable:
    """The server takes no more uploads, since it is about to end."""
    return Unavailable("DRAINING", "the server is shutting down; try again", retry_after_s=2)
