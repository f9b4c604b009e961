"""Turn what an upload accepted into a backup: write its manifest, compare it with the base, check that it is
complete.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final, NoReturn

from staddle._base.figures import counted

from staddle_server.base.errors import BadRequest, Damaged, Precondition
from staddle_server.base.types import (
    EMPTY_ROOT,
    ChangeCounts,
    ChunkRef,
    Kind,
    Role,
    Root,
    Scope,
    UploadState,
)
from staddle_server.catalog import Backup, Catalog, NewBackup, Upload
from staddle_server.manifest.compare import Counts, count
from staddle_server.manifest.entries import shown
from staddle_server.manifest.merge import Merged, merge
from staddle_server.manifest.pages import PageSink, PageSource
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upload.accepted import Accepted
from staddle_server.upload.base_backup import Base
from staddle_server.upload.missing_content import Lacking, lacking
from staddle_server.upload.received import Received

log = logging.getLogger(__name__)

FIRST_EPOCH: Final = 1
"""The epoch of an upload that was never taken over."""


class Finishing:
    """The last steps of an upload before its commit; under the lock of its writer."""

    def __init__(
        self, tenant: Tenant, catalog: Catalog, upload: Upload, base: Base, accepted: Accepted
    ) -> None:
        self._tenant = tenant
        self._catalog = catalog
        self._upload = upload
        self._base = base
        self._accepted = accepted
        self._damage_epoch = accepted.chunks.damage_epoch
        """The damage known when this writer began; 0 if none was ever found."""

    def new_backup(self, checkpoint: Callable[[], None], problem_count: int) -> NewBackup:
        """Return the backup, with its manifest durable, and nothing of it missing by its damage epoch.

        `checkpoint` makes accepted data durable; `problem_count` is what the client could not read.

        Raises:
            Precondition: MISSING_CHUNKS, with all that is missing listed for GetUpload; the upload stays
                open.
            BadRequest: PATH_CONFLICT.
            Damaged: A page of the base is unreadable.

        """
        # First: whatever is looked up from here on is there by this epoch, and the commit compares it. What was
        # looked up earlier is so too, unless the epoch is not that of the writer's begin: then it is suspected.
        epoch = self._accepted.chunks.damage_epoch
        self._forget_arrived()
        suspected = self._is_suspected(epoch)
        new = self._compared(epoch, rewrite=suspected)
        if suspected or self._accepted.missing:
            self._check_whole(new.root, checkpoint)
        return replace(new, problem_count=problem_count)

    def committed(self, backup: Backup, entry_count: int, data_bytes: int) -> Upload:
        """Return the upload as the commit of this backup left it in the catalog."""
        return replace(
            self._accepted.upload,
            state=UploadState.COMMITTED,
            backup=backup.id,
            durable=b"",
            last_failure="",
            position=self._accepted.durable.position,
            entry_count=entry_count,
            data_bytes=data_bytes,
        )

    def _is_suspected(self, damage_epoch: int) -> bool:
        """Return whether the backup may rely on known damage.

        This writer's lookups avoided the damage known when it began. But a base, or an earlier writer of the
        upload, may have brought damaged chunks.
        """
        if damage_epoch != self._damage_epoch:
            return True
        brings = self._upload.scope is Scope.CHANGES or self._upload.kind is Kind.DIFFERENTIAL
        brings = brings or self._upload.epoch > FIRST_EPOCH
        return brings and damage_epoch > 0 and self._base.damage_known()

    def _forget_arrived(self) -> None:
        missing = self._accepted.missing
        here = self._accepted.chunks.present(Role.DATA, list(missing))
        refs = [ChunkRef(length, digest) for digest, length in here.items()]
        missing.check(refs)
        missing.arrived(refs)

    def _check_whole(self, root: Root, checkpoint: Callable[[], None]) -> None:
        """Look up everything that the backup refers to. Raises as `new_backup` does."""
        with self._catalog.observer.span("check that nothing is missing"):
            lost = lacking(self._tenant, self._catalog, root)
        self._accepted.missing.only(lost.chunks)
        if not lost.total:
            self._accepted.publish_chunks()
            return
        self._accepted.chunks.forget()
        checkpoint()
        self._accepted.reap(wait=True)
        self._refuse(lost)

    def _refuse(self, lost: Lacking) -> NoReturn:
        what = []
        if lost.chunks:
            what.append(
                f"{counted(len(lost.chunks), 'chunk')} that entries refer to are missing or damaged; GetUpload lists them, PutChunks "
                "sends them"
            )
        if lost.paths:
            what.append(
                f"the list of chunks or the attributes of {counted(len(lost.paths), 'entry', 'entries')} are damaged, the first is "
                f"{shown(lost.paths[0])}; send these entries again"
            )
        raise Precondition(
            "MISSING_CHUNKS",
            "; ".join([*what, "the upload stays open"]),
            upload=self._upload.id.hex(),
            count=str(lost.total),
        )

    def _compared(self, damage_epoch: int, *, rewrite: bool) -> NewBackup:
        """Return the backup, compared with its base.

        `rewrite`: write every page of its manifest, even those in the upload's runs.
        """
        merged = self._write_manifest(rewrite=rewrite)
        reader = ChunkReader(self._tenant, self._catalog)
        # A FULL counts as compared with nothing, also one that takes entries over from a base.
        base = EMPTY_ROOT if self._upload.kind is Kind.FULL else self._base.root
        if base.digest not in {b"", merged.root.digest}:
            reader.look_up_pages([base.digest, merged.root.digest])
        counts = _changes(self._upload, base, merged.root, reader)
        if counts is None:
            # Pages of this backup may lie where the base was just found damaged: write them once more.
            self._accepted.chunks.forget()
            merged = self._write_manifest(rewrite=True)
            # It needs nothing of its base, and counts as FULL.
            counts = Counts(merged.root.entries, 0, 0, 0)
        return NewBackup(
            id=os.urandom(16),
            root=merged.root,
            stored_bytes=self._accepted.durable.stored_bytes,
            changes=ChangeCounts(
                added=counts.added,
                content_changed=counts.content,
                metadata_changed=counts.metadata,
                removed=counts.removed,
                metadata_kept=merged.metadata_kept,
            ),
            damage_epoch=damage_epoch,
        )

    def _write_manifest(self, *, rewrite: bool) -> Merged:
        """Build the backup's manifest and make it durable."""
        with self._catalog.observer.span("merge entries"):
            merged = _merged(
                self._upload,
                self._base.root,
                self._accepted.received,
                ChunkReader(self._tenant, self._catalog),
                sink=self._accepted.pages,
                page_key=self._tenant.secrets.page_key,
                rewrite=rewrite,
            )
        # The entries in memory are in the manifest, but in no run: the durable point cannot move.
        self._accepted.publish_chunks()
        return merged


def check_counts(received: Received, entry_count: int, data_bytes: int) -> None:
    """Check that everything announced has arrived.

    Raises:
        BadRequest: BAD_SEQUENCE, a file is open.
        Precondition: COUNT_MISMATCH.

    """
    if received.open is not None:
        raise BadRequest("BAD_SEQUENCE", f"{shown(received.open.entry.path)} was begun and not ended")
    if (entry_count, data_bytes) != (received.entry_count, received.data_bytes):
        raise Precondition(
            "COUNT_MISMATCH",
            f"{counted(entry_count, 'entry', 'entries')} with {counted(data_bytes, 'byte')} were announced, {counted(received.entry_count, 'entry', 'entries')} with "
            f"{counted(received.data_bytes, 'byte')} arrived; the upload stays open",
            entry_count=str(received.entry_count),
            data_bytes=str(received.data_bytes),
        )


def _merged(
    upload: Upload,
    base: Root,
    received: Received,
    source: PageSource,
    *,
    sink: PageSink,
    page_key: bytes,
    rewrite: bool,
) -> Merged:
    """Write the backup's manifest: what was received, newest first, over the base or over nothing.

    `rewrite`: write every page, even those that the runs have already.

    Raises:
        BadRequest: PATH_CONFLICT.
        Damaged: A required page is unreadable; the upload is unchanged.

    """
    try:
        if (
            not rewrite
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
            f"upload {upload.id.hex()} cannot become a backup, because a page that it starts from is damaged: {e.message}; "
            "a FULL backup does not need it"
        ) from e


def _changes(upload: Upload, base: Root, root: Root, source: PageSource) -> Counts | None:
    """Return how the backup differs from its base; None if the base is unreadable."""
    try:
        return count(base, root, source)
    except Damaged as e:
        log.warning("upload %s cannot be compared with its base: %s", upload.id.hex(), e.message)
        return None
