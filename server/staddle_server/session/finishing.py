"""What an upload has received, made into the manifest of a backup, and counted against its base."""

from __future__ import annotations

import logging
import os

from staddle_server.catalog import ChangeCounts, NewBackup, Upload
from staddle_server.errors import BadRequest, Damaged, Precondition
from staddle_server.manifest.compare import Counts, count
from staddle_server.manifest.entries import shown
from staddle_server.manifest.merge import Merged, merge
from staddle_server.manifest.pages import PageSink, PageSource
from staddle_server.session.received import Received
from staddle_server.types import EMPTY_ROOT, Kind, Root, Scope

log = logging.getLogger(__name__)


def check_counts(received: Received, entry_count: int, data_bytes: int) -> None:
    """Whether all has arrived that was announced.

    Raises:
        BadRequest: BAD_SEQUENCE, a file is open.
        Precondition: COUNT_MISMATCH.

    """
    if received.open is not None:
        raise BadRequest("BAD_SEQUENCE", f"{shown(received.open.entry.path)} was begun and not ended")
    if (entry_count, data_bytes) != (received.entry_count, received.data_bytes):
        raise Precondition(
            "COUNT_MISMATCH",
            f"{entry_count} entries with {data_bytes} bytes were announced, {received.entry_count} entries with "
            f"{received.data_bytes} bytes have arrived; the upload stays open",
            entry_count=str(received.entry_count),
            data_bytes=str(received.data_bytes),
        )


def write_manifest(
    upload: Upload,
    base: Root,
    received: Received,
    source: PageSource,
    *,
    sink: PageSink,
    page_key: bytes,
    anew: bool,
) -> Merged:
    """Writes the backup's manifest: what came, newest first, over the base or over nothing.

    `anew`: every page is written, also those that what was received has already.

    Raises:
        BadRequest: PATH_CONFLICT.
        Damaged: a page that it needs cannot be read; the upload is as it was.

    """
    try:
        if (
            not anew
            and upload.scope is Scope.WHOLE
            and upload.kind is not Kind.DIFFERENTIAL
            and (whole := received.whole()) is not None
        ):
            return Merged(whole, 0)
        return merge(
            base if upload.scope is Scope.CHANGES else EMPTY_ROOT,
            received.runs(),
            source,
            sink,
            page_key,
            reference=base if upload.kind is Kind.DIFFERENTIAL else None,
        )
    except Damaged as e:
        raise Damaged(
            f"upload {upload.id.hex()} cannot become a backup, for a page that it starts from is damaged: {e.message}; "
            "a backup of the kind FULL needs nothing of it"
        ) from e


def new_backup(merged: Merged, counts: Counts, stored_bytes: int) -> NewBackup:
    """The backup as the catalog gets it."""
    return NewBackup(
        id=os.urandom(16),
        root=merged.root,
        stored_bytes=stored_bytes,
        changes=ChangeCounts(
            added=counts.added,
            content_changed=counts.content,
            metadata_changed=counts.metadata,
            removed=counts.removed,
            metadata_kept=merged.metadata_kept,
        ),
    )


def compared(upload: Upload, base: Root, root: Root, source: PageSource) -> Counts | None:
    """How the backup differs from its base; None: the base cannot be read."""
    try:
        return count(base, root, source)
    except Damaged as e:
        log.warning("upload %s cannot be compared with its base: %s", upload.id.hex(), e.message)
        return None


def all_added(root: Root) -> Counts:
    """As a FULL counts: what a backup whose base cannot be read counts, since it needs nothing of it."""
    return Counts(root.entries, 0, 0, 0)
