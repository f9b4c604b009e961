"""The accepted chunks and entries of an upload, and how they become durable.

The order is the promise: chunks in a pack → pack durable → pack published together with the durable point
(one transaction).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress

from staddle_server.base.clock import Clock
from staddle_server.base.limits import CHECKPOINT_S, MISSING_CHUNKS_MAX
from staddle_server.base.types import Kind
from staddle_server.catalog import Catalog, Terms, Upload
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.chunk_writer import ChunkSink, ManifestSink
from staddle_server.tenancy.pack_presence import Presence
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upload.missing import Missing
from staddle_server.upload.progress import Progress, decode_progress
from staddle_server.upload.publisher import Publisher
from staddle_server.upload.received import Received


class Accepted:
    """One upload's chunks, entries and missing chunks, and their durable point.

    Under the lock of the upload's writer.

    Attributes:
        chunks: The sink for data chunks.
        pages: The sink for pages, lists of chunks and attributes.
        received: The entries and removals.
        missing: The chunks that entries refer to and that have not arrived.
        wrote: Whether the upload's holder has sent something in this epoch, and so is an author.

    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        *,
        upload: Upload,
        presence: Presence,
        compressors: Executor,
        clock: Clock,
        terms: Callable[[], Terms],
    ) -> None:
        self._clock = clock
        publisher = self._publisher = Publisher(
            catalog, upload, clock, terms, decode_progress(upload.durable)
        )
        # Before its first checkpoint, an upload has no list of missing chunks.
        missing = upload.durable and catalog.uploads.missing(
            upload.tenant, upload.id, b"", MISSING_CHUNKS_MAX
        )
        self.missing = Missing(missing or ())
        self.chunks = ChunkSink(
            tenant,
            catalog,
            upload=upload,
            presence=presence,
            # A FULL backup trusts nothing seen before it.
            since_s=clock.monotonic_s() if upload.kind is Kind.FULL else -math.inf,
            compressors=compressors,
            begin_pack=lambda: publisher.begin(
                tenant
            ),  # not a method of `self`: the reference cycle would keep the memory
            finish_pack=publisher.finish,
        )
        self.pages = ManifestSink(self.chunks)
        self.received = Received(
            publisher.durable, self.pages, ChunkReader(tenant, catalog), tenant.secrets.page_key
        )
        self.wrote = False
        self._checkpoint_s = clock.monotonic_s()

    @property
    def durable(self) -> Progress:
        """The last known durable point; see `reap`."""
        return self._publisher.durable

    @property
    def upload(self) -> Upload:
        """The upload, with the lease and life that the last publication gave it."""
        return self._publisher.upload

    @property
    def unwritten_bytes(self) -> int:
        """Bytes accepted and not yet on disk, with their overhead there. Callable from any thread."""
        return self.chunks.unwritten_bytes + self.received.unwritten_bytes

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        if self.chunks.full or self.received.full:
            return True
        return self.is_waiting and self._clock.monotonic_s() - self._checkpoint_s >= CHECKPOINT_S

    @property
    def is_waiting(self) -> bool:
        """Whether anything accepted is not durable yet."""
        durable, received = self.durable, self.received
        offset = durable.open_entry.size_bytes if durable.open_entry is not None else 0
        return (
            self.chunks.dirty
            or (received.position, received.put_entries_number)
            != (durable.position, durable.put_entries_number)
            or received.open_size != offset
        )

    def note_author(self) -> None:
        """Record whether the holder has sent something.

        Call it before the server writes a manifest, which must not count.
        """
        self.wrote = self.wrote or self.is_waiting

    def checkpoint(self) -> None:
        """Seal the open pack and the run of entries so far, and begin to publish both in the background.

        Raises:
            Damaged: An earlier run of the upload is unreadable; the upload's writer must end.

        """
        self._checkpoint_s = self._clock.monotonic_s()
        self.note_author()
        self.reap(wait=True)
        self.received.write_run()
        self._publish(self.received.progress)

    def publish_chunks(self) -> None:
        """Make chunks and the list of missing chunks durable, without moving the durable point."""
        durable = self.durable
        self._publish(lambda: durable)
        self.reap(wait=True)

    def _publish(self, progress: Callable[[], Progress]) -> None:
        """Publish what was accepted, under a durable point that is computed once everything is in packs."""
        packs, chunks = self.chunks.flush()
        change = self.missing.take_change()
        self._publisher.publish(progress(), packs, chunks, change, wrote=self.wrote)

    def reap(self, *, wait: bool) -> None:
        """Get the result of the last publication.

        Raises:
            StaddleError: It failed; the upload's writer must end.

        """
        self.chunks.published(self._publisher.reap(wait=wait))

    def close(self) -> None:
        """Drop what is not published."""
        try:
            with suppress(Exception):  # its result is in the catalog, whatever it was
                self.reap(wait=True)
            self.chunks.abort()
        finally:
            self._publisher.close()
