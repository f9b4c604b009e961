"""Packs become durable and are published on a separate thread, while the upload receives more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
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
"""A ChunkSink's key of a chunk."""


class Published(NamedTuple):
    """The result of one publication: the durable point, and the chunks that the catalog now knows."""

    progress: Progress
    chunks: Sequence[ChunkKey]


class Publisher:
    """Publishes one upload's packs together with its durable point: in order, one publication at a time."""

    def __init__(
        self, catalog: Catalog, upload: Upload, clock: Clock, terms: Callable[[], Terms], durable: Progress
    ) -> None:
        self.durable = durable
        """The last known durable point."""
        self._catalog = catalog
        self.upload = upload
        """With the lease and life that the last publication gave it."""
        self._clock = clock
        self._terms = terms
        self._thread = Threads(1, thread_name_prefix="publish")
        self._publishing: Future[Published] | None = None

    def begin(self, tenant: Tenant) -> PackWriter:
        """Begin a pack of the upload, announced to the catalog before any of it is written."""
        pack = PackWriter(tenant.blobs, tenant.keys)
        try:
            self._catalog.packs.begin(
                tenant.id, self.upload.id, self.upload.epoch, pack.pack, self._clock.now_ns()
            )
        except BaseException:
            pack.abort()
            raise
        return pack

    def finish(self, pack: PackWriter) -> Future[PackSummary]:
        """Seal a full pack in the background."""
        try:
            return self._thread.submit(pack.finish)
        except BaseException:
            pack.abort()  # nobody else has it any more
            raise

    def publish(
        self,
        progress: Progress,
        packs: Sequence[Future[PackSummary]],
        chunks: Sequence[ChunkKey],
        missing: MissingChange,
        *,
        wrote: bool,
    ) -> None:
        """Begin to make a durable point durable; `reap` returns the result. The previous one must be reaped.

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
        with self._catalog.observer.span("finish packs"):
            summaries = [pack.result() for pack in packs]
        stored = self.durable.stored_bytes + sum(summary.size_bytes for summary in summaries)
        now = msgspec.structs.replace(progress, stored_bytes=stored)
        now_ns, terms = self._clock.now_ns(), self._terms()
        self._catalog.uploads.checkpoint(
            self.upload.tenant,
            self.upload.id,
            self.upload.epoch,
            packs=summaries,
            durable=DurableUpdate(encode_progress(now), now.position, now.entry_count, now.data_bytes),
            missing_added=[MissingChunk(*item) for item in missing.added.items()],
            missing_removed=missing.removed,
            wrote=wrote,
            now_ns=now_ns,
            terms=terms,
        )
        self.upload = replace(self.upload, **terms.expiries(now_ns))
        return Published(now, chunks)

    def reap(self, *, wait: bool) -> Sequence[ChunkKey]:
        """Get the result of the last publication; return the chunks that it published.

        Raises:
            StaddleError: It failed; the upload's writer must end.

        """
        publishing = self._publishing
        if publishing is None or not (wait or publishing.done()):
            return ()
        self._publishing = None
        published = publishing.result()
        self.durable = published.progress
        return published.chunks

    def close(self) -> None:
        """End the thread, after the work in progress."""
        self._thread.shutdown(wait=False)
