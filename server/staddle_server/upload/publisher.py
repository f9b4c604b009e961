"""Packs become durable and published on a thread of their own, beside what the upload receives meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

import msgspec

from staddle_server.base.clock import Clock
from staddle_server.base.threads import Threads
from staddle_server.base.types import PackSummary
from staddle_server.catalog import Catalog, DurableUpdate, MissingChunk, Terms, Upload
from staddle_server.store.pack_writer import PackWriter
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upload.missing import MissingChange
from staddle_server.upload.progress import Progress, encode_progress

ChunkKey = bytes
"""What a ChunkSink calls a chunk."""


class Published(NamedTuple):
    """What one publication made durable: the durable point, and the chunks that the catalog knows from now on."""

    progress: Progress
    chunks: Sequence[ChunkKey]


class Publisher:
    """Publishes one upload's packs together with its durable point: in order, one publication at a time."""

    def __init__(
        self, catalog: Catalog, upload: Upload, clock: Clock, terms: Callable[[], Terms], durable: Progress
    ) -> None:
        self.durable = durable
        """The durable point, as far as is known."""
        self._catalog = catalog
        self._upload = upload
        self._clock = clock
        self._terms = terms
        self._thread = Threads(1, thread_name_prefix="publish")
        self._publishing: Future[Published] | None = None

    def begin(self, tenant: Tenant) -> PackWriter:
        """A new pack of the upload, announced to the catalog before anything of it is written."""
        pack = PackWriter(tenant.blobs, tenant.keys)
        try:
            self._catalog.packs.begin(
                tenant.id, self._upload.id, self._upload.epoch, pack.pack, self._clock.now_ns()
            )
        except BaseException:
            pack.abort()
            raise
        return pack

    def finish(self, pack: PackWriter) -> Future[PackSummary]:
        """Seals a pack that is full, in the background."""
        return self._thread.submit(pack.finish)

    def publish(
        self,
        progress: Progress,
        packs: Sequence[Future[PackSummary]],
        chunks: Sequence[ChunkKey],
        missing: MissingChange,
        *,
        wrote: bool,
    ) -> None:
        """Begins to make a durable point durable; `reap` tells what became of it. The one before must be reaped.

        `wrote`: the upload's holder has sent something.
        """
        self._publishing = self._thread.submit(self._publish, progress, packs, chunks, missing, wrote)

    def _publish(
        self,
        progress: Progress,
        packs: Sequence[Future[PackSummary]],
        chunks: Sequence[ChunkKey],
        missing: MissingChange,
        wrote: bool,
    ) -> Published:
        summaries = [pack.result() for pack in packs]
        stored = self.durable.stored_bytes + sum(summary.size_bytes for summary in summaries)
        now = msgspec.structs.replace(progress, stored_bytes=stored)
        self._catalog.uploads.checkpoint(
            self._upload.tenant,
            self._upload.id,
            self._upload.epoch,
            packs=summaries,
            durable=DurableUpdate(encode_progress(now), now.position, now.entry_count, now.data_bytes),
            missing_added=[MissingChunk(*item) for item in missing.added.items()],
            missing_removed=missing.removed,
            wrote=wrote,
            now_ns=self._clock.now_ns(),
            terms=self._terms(),
        )
        return Published(now, chunks)

    def reap(self, *, wait: bool) -> Sequence[ChunkKey]:
        """Learns what became of the last publication; gives the chunks that it published.

        Raises:
            StaddleError: it failed; the upload's writer must end.

        """
        publishing = self._publishing
        if publishing is None or not (wait or publishing.done()):
            return ()
        self._publishing = None
        published = publishing.result()
        self.durable = published.progress
        return published.chunks

    def close(self) -> None:
        """Ends the thread; what was begun is finished."""
        self._thread.shutdown(wait=False)
