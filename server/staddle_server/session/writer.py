"""One upload's writer: what it takes, when that becomes durable, and how it becomes a backup.

The order is the promise: chunks in a pack → pack durable → pack published together with the durable point (one
transaction) → manifest durable in the same way → backup committed (one transaction) → record durable → answer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager, suppress

import msgspec
from staddle.chunking import Cut

from staddle_server.catalog import Backup, Catalog, ChangeCounts, NewBackup, Upload
from staddle_server.errors import BadRequest, Conflict, Precondition, StaddleError
from staddle_server.limits import CHECKPOINT_S, MISSING_CHUNKS_MAX
from staddle_server.manifest.compare import count
from staddle_server.manifest.content import ContentBuilder, store_attributes
from staddle_server.manifest.entries import check_entry, removal, shown
from staddle_server.manifest.merge import merge
from staddle_server.manifest.read import Manifest
from staddle_server.session.clock import Clock
from staddle_server.session.frames import Frame
from staddle_server.session.gather import ChunkSink, ManifestSink
from staddle_server.session.progress import Progress, decode_progress
from staddle_server.session.publisher import Publisher
from staddle_server.session.reading import ChunkReader
from staddle_server.session.received import OpenFile, Received
from staddle_server.session.records import finish_backup
from staddle_server.session.tenant import Tenant
from staddle_server.store.pack import PackWriter
from staddle_server.types import (
    EMPTY_ROOT,
    ChunkRef,
    Content,
    Entry,
    Kind,
    Profile,
    Role,
    Root,
    Scope,
    UploadState,
)


class UploadWriter:
    """The only writer of an upload, for as long as its epoch is the upload's.

    Thread-safe: every public method takes the writer's lock. A method raises Conflict once the writer was closed by a
    take-over, and once anything went wrong below it: what is durable stays, and ResumeUpload goes on from there.
    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        *,
        upload: Upload,
        base: Root,
        compressors: Executor,
        clock: Clock,
        lease_s: float,
    ) -> None:
        self.upload = upload
        self._tenant = tenant
        self._catalog = catalog
        self._base = base
        self._clock = clock
        self._lock = threading.RLock()
        self._base_manifest = Manifest(base, ChunkReader(tenant, catalog))
        self._publisher = Publisher(catalog, upload, clock, lease_s, decode_progress(upload.durable))
        self._missing = dict(self._publisher.missing)
        self._chunks = ChunkSink(
            tenant,
            catalog,
            upload=upload.id,
            epoch=upload.epoch,
            compressors=compressors,
            begin_pack=self._begin_pack,
            finish_pack=self._publisher.finish,
        )
        self._pages = ManifestSink(self._chunks)
        self._received = Received(
            self._publisher.durable, self._pages, ChunkReader(tenant, catalog), tenant.secrets.page_key
        )
        self._closed: StaddleError | None = None
        self._on_close: list[Callable[[], None]] = []
        self._streaming = False
        self._used_s = self._checkpoint_s = clock.monotonic_s()

    # ------------------------------------------------------------------ life

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._closed is not None:
                raise self._closed
            self._used_s = self._clock.monotonic_s()
            try:
                self._reap(wait=False)
                yield
            except (BadRequest, Precondition, Conflict) as e:
                if e.reason in {"STALE_EPOCH", "UPLOAD_CLOSED"}:
                    self.close(e)
                raise
            except BaseException as e:
                self._fail(e)
                raise

    def _fail(self, cause: BaseException) -> None:
        """Nothing in memory is trusted any more; what is durable is."""
        text = (
            cause.message
            if isinstance(cause, StaddleError)
            else f"a fault of the server ({type(cause).__name__})"
        )
        self.close(
            Conflict(
                "RESUME_REQUIRED",
                f"upload {self.upload.id.hex()} stopped: {text}; ResumeUpload goes on from its durable point",
                upload=self.upload.id.hex(),
            )
        )
        with suppress(StaddleError):
            self._catalog.uploads.set_failure(self.upload.tenant, self.upload.id, self.upload.epoch, text)

    def close(self, reason: StaddleError) -> None:
        """Ends the writer; what is not published is dropped. Later calls raise `reason`."""
        with self._lock:
            if self._closed is not None:
                return
            self._closed = reason
            with suppress(Exception):  # its outcome is in the catalog, whatever it was
                self._reap(wait=True)
            self._chunks.abort()
            self._publisher.close()
            on_close, self._on_close = self._on_close, []
        for call in on_close:
            call()

    @property
    def closed(self) -> StaddleError | None:
        """Why the writer ended; None while it has not."""
        return self._closed

    @contextmanager
    def stream(self, on_close: Callable[[], None]) -> Iterator[None]:
        """Holds the upload for one Backup stream; `on_close` is called if the writer ends meanwhile."""
        with self._writing():
            if self._streaming:
                raise Conflict(
                    "UPLOAD_BUSY",
                    f"upload {self.upload.id.hex()} has a Backup stream under way; ResumeUpload ends it",
                    upload=self.upload.id.hex(),
                )
            self._streaming = True
            self._on_close.append(on_close)
        try:
            yield
        finally:
            with self._lock:
                self._streaming = False
                if on_close in self._on_close:
                    self._on_close.remove(on_close)

    def idle_s(self) -> float:
        """How long nobody called."""
        return self._clock.monotonic_s() - self._used_s

    def checkpoint_if_due(self) -> None:
        """Makes durable what has waited for long, unless a call is at work here, which will do it itself."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._closed is None and self._due():
                self._checkpoint()
        except Exception as e:  # noqa: BLE001 - the next call of this upload gets to know it
            self._fail(e)
        finally:
            self._lock.release()

    # ------------------------------------------------------------------ chunks

    def find_missing(self, digests: Sequence[bytes]) -> list[int]:
        """Which of these chunks must be sent; the others are claimed."""
        with self._writing():
            here = self._chunks.present(Role.DATA, digests)
        return [index for index, digest in enumerate(digests) if digest not in here]

    def put_frame(self, frame: Frame) -> int:
        """Takes chunks that were checked; gives how many were new."""
        with self._writing():
            stored = self._chunks.take_segment(frame.table, frame.codec, frame.payload, frame.raw_length)
            for ref in frame.table:
                self._arrived(ref)
            self._checkpoint_when_due()
        return stored

    def _arrived(self, ref: ChunkRef) -> None:
        """A chunk is there that entries may have been waiting for."""
        expected = self._missing.get(ref.digest, ref.length)
        if expected != ref.length:
            raise BadRequest(
                "BAD_FIELD",
                f"an entry refers to chunk {ref.digest.hex()} with {expected} bytes, but it has {ref.length}",
                field="content.chunks",
            )
        self._missing.pop(ref.digest, None)

    # ------------------------------------------------------------------ entries

    @contextmanager
    def together(self) -> Iterator[None]:
        """Holds the writer for several steps that belong together."""
        with self._lock:
            yield

    @property
    def position(self) -> int:
        """Entries and removals accepted so far."""
        return self._received.position

    @property
    def put_entries_number(self) -> int:
        """The last PutEntries call that was accepted."""
        return self._received.put_entries_number

    def accept_number(self, number: int) -> None:
        """The PutEntries call with this number was taken."""
        with self._writing():
            self._received.put_entries_number = number

    def absent(self, refs: Sequence[ChunkRef]) -> set[bytes]:
        """Which of these chunks are not there; the others are claimed.

        Raises:
            BadRequest: BAD_FIELD, a chunk is there with another length.

        """
        with self._writing():
            here = self._chunks.present(Role.DATA, [ref.digest for ref in refs])
        for ref in refs:
            if here.get(ref.digest, ref.length) != ref.length:
                raise BadRequest(
                    "BAD_FIELD",
                    f"chunk {ref.digest.hex()} has {here[ref.digest]} bytes, not {ref.length}",
                    field="content.chunks",
                )
        return {ref.digest for ref in refs if ref.digest not in here}

    def open_file(self, entry: Entry, profile: Profile, *, continue_at: int | None = None) -> None:
        """Begins a file of which the chunks follow, or goes on with the open one at its durable end.

        Raises:
            BadRequest: BAD_SEQUENCE, it does not go on where the open one ended.

        """
        with self._writing():
            if continue_at is None:
                self._received.open = OpenFile(entry, ContentBuilder(self._pages, profile))
                return
            opened = self._received.open
            if opened is None or (opened.entry.path, opened.content.size) != (entry.path, continue_at):
                found = (
                    "none is"
                    if opened is None
                    else f"{shown(opened.entry.path)} is, at {opened.content.size}"
                )
                raise BadRequest(
                    "BAD_SEQUENCE",
                    f"{shown(entry.path)} cannot go on at byte {continue_at} as the open entry: {found}",
                    path=shown(entry.path),
                )

    @property
    def open_size(self) -> int:
        """The bytes of the open file's chunks so far."""
        return 0 if self._received.open is None else self._received.open.content.size

    @property
    def open_path(self) -> bytes | None:
        """The path of the open file."""
        return None if self._received.open is None else self._received.open.entry.path

    def add_cuts(self, cuts: Iterable[Cut]) -> None:
        """The next chunks of the open file, with their bytes."""
        with self._writing():
            content = self._opened().content
            for cut in cuts:
                self._chunks.take(Role.DATA, cut.digest, cut.data)
                content.add(ChunkRef(len(cut.data), cut.digest))
            self._checkpoint_when_due()

    def add_refs(self, refs: Iterable[ChunkRef], absent: set[bytes]) -> None:
        """The next chunks of the open file, by reference; `absent` says which are still to come."""
        with self._writing():
            content = self._opened().content
            for ref in refs:
                if ref.digest in absent:
                    self._expect(ref)
                content.add(ref)

    def _expect(self, ref: ChunkRef) -> None:
        if len(self._missing) >= MISSING_CHUNKS_MAX and ref.digest not in self._missing:
            raise BadRequest(
                "BAD_FIELD",
                f"over {MISSING_CHUNKS_MAX} chunks are referred to and not there; send chunks before the entries",
                field="content.chunks",
            )
        self._missing[ref.digest] = ref.length

    def end_file(self, finish: Callable[[Entry, Content], Entry] | None = None) -> Entry:
        """Ends the open file and takes it; `finish` has the last word on the entry, or raises."""
        with self._writing():
            opened = self._opened()
            content = opened.content.finish()
            entry = msgspec.structs.replace(opened.entry, content=content)
            entry = entry if finish is None else finish(entry, content)
            check_entry(entry)
            self._take(entry)
            return entry

    def drop_file(self) -> None:
        """Forgets the open file, as if it had never begun."""
        with self._writing():
            self._received.open = None

    def put_file(self, entry: Entry, cuts: Sequence[Cut], profile: Profile) -> None:
        """Takes a whole small file with its bytes."""
        with self._writing():
            content = ContentBuilder(self._pages, profile)
            for cut in cuts:
                self._chunks.take(Role.DATA, cut.digest, cut.data)
                content.add(ChunkRef(len(cut.data), cut.digest))
            self._take(msgspec.structs.replace(entry, content=content.finish()))

    def put_entry(self, entry: Entry) -> None:
        """Takes an entry that is complete: no file, or one whose content is known to be in the base."""
        with self._writing():
            self._take(entry)

    def remove(self, path: bytes) -> None:
        """Takes a path, and all below it, out of what came before."""
        with self._writing():
            self._received.open = None
            self._received.append(removal(path))
            self._checkpoint_when_due()

    def base_content(self, path: bytes) -> Content:
        """The content that the base has at a path.

        Raises:
            Precondition: NOT_IN_BASE.

        """
        with self._writing():
            entry = self._base_manifest.find(path)
        if entry is None or entry.content is None:
            raise Precondition(
                "NOT_IN_BASE", f"the base has no file {shown(path)}; send it", path=shown(path)
            )
        return entry.content

    def _opened(self) -> OpenFile:
        if self._received.open is None:
            raise BadRequest("BAD_SEQUENCE", "no entry is open: data belongs to the entry before it")
        return self._received.open

    def _take(self, entry: Entry) -> None:
        entry = store_attributes(entry, self._pages)
        self._received.open = None  # a file that was begun and not gone on with is given up
        self._received.count(entry)
        self._received.append(entry)
        self._checkpoint_when_due()

    # ------------------------------------------------------------------ durable

    def checkpoint(self) -> Progress:
        """Makes durable everything that was taken; gives the durable point."""
        with self._writing():
            self._checkpoint()
            self._reap(wait=True)
            return self._publisher.durable

    def _due(self) -> bool:
        if self._chunks.full or self._received.full:
            return True
        waiting = self._chunks.dirty or self._received.position != self._publisher.durable.position
        return waiting and self._clock.monotonic_s() - self._checkpoint_s >= CHECKPOINT_S

    def _checkpoint_when_due(self) -> None:
        if self._due():
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Seals the open pack and the run of entries so far, and publishes both beside what comes next."""
        self._checkpoint_s = self._clock.monotonic_s()
        self._reap(wait=True)
        self._received.write_run()
        self._publish(self._received.progress)

    def _publish(self, progress: Callable[[], Progress]) -> None:
        """Publishes what was taken, under a durable point that is asked for when everything is in packs."""
        packs, chunks = self._chunks.flush()
        self._publisher.publish(progress(), packs, chunks, self._missing)

    def _reap(self, *, wait: bool) -> None:
        """Learns what became of the last publication."""
        self._chunks.published(self._publisher.reap(wait=wait))

    def _begin_pack(self) -> PackWriter:
        pack = PackWriter(self._tenant.blobs, self._tenant.keys)
        try:
            self._catalog.packs.begin(
                self._tenant.id, self.upload.id, self.upload.epoch, pack.pack, self._clock.now_ns()
            )
        except BaseException:
            pack.abort()
            raise
        return pack

    # ------------------------------------------------------------------ commit

    def commit(self, entry_count: int, data_bytes: int) -> Backup:
        """Makes the upload a backup: durable, visible, whole.

        Raises:
            Precondition: COUNT_MISMATCH, MISSING_CHUNKS; the upload stays open.
            BadRequest: an entry is open, or paths contradict each other; the upload stays open.

        """
        with self._writing():
            self._check_complete(entry_count, data_bytes)
            self._reap(wait=True)
            root, metadata_kept = self._merge()
            # The durable point stays where it was: the entries in memory are in the manifest, but in no run.
            durable = self._publisher.durable
            self._publish(lambda: durable)
            self._reap(wait=True)
            backup = self._catalog.uploads.commit(
                self.upload.tenant,
                self.upload.id,
                self.upload.epoch,
                packs=(),
                backup=self._new_backup(root, metadata_kept),
                now_ns=self._clock.now_ns(),
            )
            self._on_close.clear()  # the stream that commits goes on to its answer
            self.close(
                Precondition(
                    "UPLOAD_CLOSED",
                    f"upload {self.upload.id.hex()} is committed as backup {backup.id.hex()}",
                    upload=self.upload.id.hex(),
                    state=UploadState.COMMITTED.name,
                )
            )
        finish_backup(self._tenant, self._catalog, backup)
        return backup

    def _check_complete(self, entry_count: int, data_bytes: int) -> None:
        received = self._received
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
        for digest, length in self._chunks.present(Role.DATA, list(self._missing)).items():
            self._arrived(ChunkRef(length, digest))
        if self._missing:
            self._checkpoint()
            self._reap(wait=True)
            raise Precondition(
                "MISSING_CHUNKS",
                f"{len(self._missing)} chunks that entries refer to are not there; GetUpload lists them, PutChunks "
                "brings them; the upload stays open",
                upload=self.upload.id.hex(),
                count=str(len(self._missing)),
            )

    def _merge(self) -> tuple[Root, int]:
        """Writes the backup's manifest: what came, newest first, over the base or over nothing."""
        merged = merge(
            self._base if self.upload.scope is Scope.CHANGES else EMPTY_ROOT,
            self._received.runs(),
            ChunkReader(self._tenant, self._catalog),
            self._pages,
            self._tenant.secrets.page_key,
            reference=self._base if self.upload.kind is Kind.DIFFERENTIAL else None,
        )
        return merged.root, merged.metadata_kept

    def _new_backup(self, root: Root, metadata_kept: int) -> NewBackup:
        counts = count(self._base, root, ChunkReader(self._tenant, self._catalog))
        return NewBackup(
            id=os.urandom(16),
            root=root,
            stored_bytes=self._publisher.durable.stored_bytes,
            changes=ChangeCounts(
                added=counts.added,
                content_changed=counts.content,
                metadata_changed=counts.metadata,
                removed=counts.removed,
                metadata_kept=metadata_kept,
            ),
        )
