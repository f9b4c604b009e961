"""What an upload has accepted, chunks and entries, and how that becomes durable.

The order is the promise: chunks in a pack → pack durable → pack published together with the durable point (one transaction).
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
    """One upload's chunks, entries and missing chunks, and their durable point. Under the lock of the upload's writer.

    Attributes:
        chunks: Where data chunks go.
        pages: Where pages, lists of chunks and attributes go.
        received: The entries and removals.
        missing: The chunks that entries refer to and that are still to come.
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
        self.missing = Missing(catalog.uploads.missing(upload.tenant, upload.id, b"", MISSING_CHUNKS_MAX))
        self.chunks = ChunkSink(
            tenant,
            catalog,
            upload=upload.id,
            epoch=upload.epoch,
            presence=presence,
            # A FULL trusts nothing that was seen before it.
            since_s=clock.monotonic_s() if upload.kind is Kind.FULL else -math.inf,
            compressors=compressors,
            begin_pack=lambda: publisher.begin(tenant),  # not of `self`: the cycle would stay for a while
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
        """The durable point, as far as is known; see `reap`."""
        return self._publisher.durable

    @property
    def unwritten_bytes(self) -> int:
        """What was accepted and is not on the disk yet, with what it takes there besides. Asked from any thread."""
        return self.chunks.unwritten_bytes + self.received.unwritten_bytes

    @property
    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        if self.chunks.full or self.received.full:
            return True
        return self.is_waiting and self._clock.monotonic_s() - self._checkpoint_s >= CHECKPOINT_S

    @property
    def is_waiting(self) -> bool:
        """Whether anything was accepted that is not durable."""
        durable, received = self.durable, self.received
        offset = durable.open_entry.size_bytes if durable.open_entry is not None else 0
        return (
            self.chunks.dirty
            or (received.position, received.put_entries_number)
            != (durable.position, durable.put_entries_number)
            or received.open_size != offset
        )

    def note_author(self) -> None:
        """Notes whether the holder has sent something. Call it before the server writes a manifest, which must not count."""
        self.wrote = self.wrote or self.is_waiting

    def checkpoint(self) -> None:
        """Seals the open pack and the run of entries so far, and begins to publish both beside what comes next.

        Raises:
            Damaged: an earlier run of the upload cannot be read; the upload's writer must end.

        """
        self._checkpoint_s = self._clock.monotonic_s()
        self.note_author()
        self.reap(wait=True)
        self.received.write_run()
        self._publish(self.received.progress)

    def publish_chunks(self) -> None:
        """Makes chunks durable, and what is missing; the durable point stays where it was."""
        durable = self.durable
        self._publish(lambda: durable)
        self.reap(wait=True)

    def _publish(self, progress: Callable[[], Progress]) -> None:
        """Publishes what was accepted, under a durable point that is asked for when everything is in packs."""
        packs, chunks = self.chunks.flush()
        change = self.missing.take_change()
        self._publisher.publish(progress(), packs, chunks, change, wrote=self.wrote)

    def reap(self, *, wait: bool) -> None:
        """Learns what became of the last publication.

        Raises:
            StaddleError: it failed; the upload's writer must end.

        """
        self.chunks.published(self._publisher.reap(wait=wait))

    def close(self) -> None:
        """Drops what is not published."""
        try:
            with suppress(Exception):  # its outcome is in the catalog, whatever it was
                self.reap(wait=True)
            self.chunks.abort()
        finally:
            self._publisher.close()
