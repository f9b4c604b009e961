"""One upload's writer: what it takes, when that becomes durable, and how it becomes a backup.

The order is the promise: chunks in a pack → pack durable → pack published together with the durable point (one
transaction) → manifest durable in the same way → backup committed (one transaction) → record durable → answer.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple

import msgspec
from staddle.chunking import Cut

from staddle_server.catalog import (
    Backup,
    Catalog,
    ChangeCounts,
    DurableUpdate,
    MissingChunk,
    NewBackup,
    Upload,
)
from staddle_server.errors import BadRequest, Conflict, Precondition, StaddleError
from staddle_server.limits import (
    CHECKPOINT_ENTRIES,
    CHECKPOINT_ENTRY_BYTES,
    CHECKPOINT_S,
    MISSING_CHUNKS_MAX,
    RUNS_MERGE,
)
from staddle_server.manifest.compare import count
from staddle_server.manifest.content import ContentBuilder, store_attributes
from staddle_server.manifest.entries import check_entry, removal, shown
from staddle_server.manifest.merge import merge
from staddle_server.manifest.read import Manifest, entries_of
from staddle_server.manifest.runs import merge_runs, sort_run
from staddle_server.manifest.tree import write_run
from staddle_server.session.clock import Clock
from staddle_server.session.frames import Frame
from staddle_server.session.gather import ChunkSink, ManifestSink
from staddle_server.session.progress import OpenEntry, Progress, Run, decode_progress, encode_progress
from staddle_server.session.reading import ChunkReader
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

log = logging.getLogger(__name__)


class _OpenFile(NamedTuple):
    """The file that is being taken: its metadata, and its list of chunks so far."""

    entry: Entry
    content: ContentBuilder


class _Published(NamedTuple):
    """What a checkpoint made durable."""

    progress: Progress
    chunks: dict[tuple[Role, bytes], int]


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
        self._lease_s = lease_s
        self._lock = threading.RLock()
        self._base_manifest = Manifest(base, ChunkReader(tenant, catalog))
        self._chunks = ChunkSink(
            tenant,
            catalog,
            upload=upload.id,
            epoch=upload.epoch,
            compressors=compressors,
            begin_pack=self._begin_pack,
        )
        self._pages = ManifestSink(self._chunks)
        self._publisher = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._publishing: Future[_Published] | None = None
        self._durable = decode_progress(upload.durable)
        self._position = self._durable.position
        self._entry_count = self._durable.entry_count
        self._data_bytes = self._durable.data_bytes
        self._last_path = self._durable.last_path
        self._put_entries_number = self._durable.put_entries_number
        self._runs = list(self._durable.runs)
        self._entries: list[tuple[int, Entry]] = []
        self._entry_bytes = 0
        self._open: _OpenFile | None = self._reopen(self._durable.open_entry)
        self._missing = dict(catalog.uploads.missing(upload.tenant, upload.id, b"", MISSING_CHUNKS_MAX))
        self._missing_before = set(self._missing)
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
            self._publisher.shutdown(wait=False)
            self._entries.clear()
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
                self._missing.pop(ref.digest, None)
            self._checkpoint_when_due()
        return stored

    # ------------------------------------------------------------------ entries

    @contextmanager
    def together(self) -> Iterator[None]:
        """Holds the writer for several steps that belong together."""
        with self._lock:
            yield

    @property
    def position(self) -> int:
        """Entries and removals accepted so far."""
        return self._position

    @property
    def put_entries_number(self) -> int:
        """The last PutEntries call that was accepted."""
        return self._put_entries_number

    def accept_number(self, number: int) -> None:
        """The PutEntries call with this number was taken."""
        with self._writing():
            self._put_entries_number = number

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
                self._open = _OpenFile(entry, ContentBuilder(self._pages, profile))
            elif (
                self._open is None
                or self._open.entry.path != entry.path
                or self._open.content.size != continue_at
            ):
                raise BadRequest(
                    "BAD_SEQUENCE",
                    f"{entry.path!r} cannot go on at byte {continue_at}: "
                    + (
                        "no entry is open"
                        if self._open is None
                        else f"the open entry is {self._open.entry.path!r} at byte {self._open.content.size}"
                    ),
                    path=shown(entry.path),
                )
            else:
                self._open = _OpenFile(entry, self._open.content)

    @property
    def open_size(self) -> int:
        """The bytes of the open file's chunks so far."""
        return 0 if self._open is None else self._open.content.size

    @property
    def open_path(self) -> bytes | None:
        """The path of the open file."""
        return None if self._open is None else self._open.entry.path

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
            self._open = None
            self._take(entry)
            return entry

    def drop_file(self) -> None:
        """Forgets the open file, as if it had never begun."""
        with self._writing():
            self._open = None

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
            self._append(removal(path))

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

    def _opened(self) -> _OpenFile:
        if self._open is None:
            raise BadRequest("BAD_SEQUENCE", "no entry is open: data belongs to the entry before it")
        return self._open

    def _take(self, entry: Entry) -> None:
        entry = store_attributes(entry, self._pages)
        self._entry_count += 1
        self._data_bytes += entry.content.size if entry.content is not None else 0
        self._append(entry)

    def _append(self, entry: Entry) -> None:
        self._position += 1
        self._last_path = entry.path
        self._entries.append((self._position, entry))
        self._entry_bytes += 512 + len(entry.path)
        self._checkpoint_when_due()

    def _reopen(self, opened: OpenEntry | None) -> _OpenFile | None:
        if opened is None:
            return None
        reader = ChunkReader(self._tenant, self._catalog)
        return _OpenFile(opened.entry, ContentBuilder.restore(opened.content, reader, self._pages))

    # ------------------------------------------------------------------ durable

    def checkpoint(self) -> Progress:
        """Makes durable everything that was taken; gives the durable point."""
        with self._writing():
            self._checkpoint()
            self._reap(wait=True)
            return self._durable

    def _due(self) -> bool:
        waiting = self._chunks.dirty or self._position != self._durable.position
        return waiting and (
            self._chunks.pack_full
            or len(self._entries) >= CHECKPOINT_ENTRIES
            or self._entry_bytes >= CHECKPOINT_ENTRY_BYTES
            or self._clock.monotonic_s() - self._checkpoint_s >= CHECKPOINT_S
        )

    def _checkpoint_when_due(self) -> None:
        if self._due():
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Seals the open pack and the run of entries so far, and publishes both beside what comes next."""
        self._checkpoint_s = self._clock.monotonic_s()
        self._reap(wait=True)
        self._write_run()
        self._publish()

    def _write_run(self) -> None:
        if not self._entries:
            return
        if len(self._runs) >= RUNS_MERGE and len({run.tier for run in self._runs[-RUNS_MERGE:]}) == 1:
            self._merge_last_runs()
        self._runs.append(Run(0, self._write(sort_run(self._entries))))
        self._entries = []
        self._entry_bytes = 0

    def _merge_last_runs(self) -> None:
        """Many runs of one size become one, so that a long upload has few."""
        last = self._runs[-RUNS_MERGE:]
        reader = ChunkReader(self._tenant, self._catalog)
        merged = self._write(merge_runs([entries_of(run.root, reader) for run in last]))
        self._runs[-RUNS_MERGE:] = [Run(last[0].tier + 1, merged)]

    def _write(self, run: Iterable[Entry]) -> Root:
        return write_run(run, self._pages, self._tenant.secrets.page_key)

    def _progress(self) -> Progress:
        opened = self._open
        return Progress(
            position=self._position,
            entry_count=self._entry_count,
            data_bytes=self._data_bytes,
            last_path=self._last_path,
            put_entries_number=self._put_entries_number,
            runs=tuple(self._runs),
            open_entry=opened and OpenEntry(opened.entry, opened.content.state(), opened.content.size),
        )

    def _publish(self) -> None:
        self._chunks.flush()
        progress = self._progress()
        pack, chunks = self._chunks.detach()
        missing = dict(self._missing)
        added = [MissingChunk(*item) for item in missing.items() if item[0] not in self._missing_before]
        removed = [digest for digest in self._missing_before if digest not in missing]
        self._missing_before = set(missing)
        stored_bytes = self._durable.stored_bytes

        def publish() -> _Published:
            summaries = [] if pack is None else [pack.finish()]
            now = msgspec.structs.replace(
                progress, stored_bytes=stored_bytes + sum(summary.size_bytes for summary in summaries)
            )
            update = DurableUpdate(encode_progress(now), now.position, now.entry_count, now.data_bytes)
            self._catalog.uploads.checkpoint(
                self.upload.tenant,
                self.upload.id,
                self.upload.epoch,
                packs=summaries,
                durable=update,
                missing_added=added,
                missing_removed=removed,
                now_ns=self._clock.now_ns(),
                lease_s=self._lease_s,
            )
            return _Published(now, chunks)

        self._publishing = self._publisher.submit(publish)

    def _reap(self, *, wait: bool) -> None:
        """Learns what became of the last checkpoint."""
        publishing = self._publishing
        if publishing is None or not (wait or publishing.done()):
            return
        self._publishing = None
        published = publishing.result()
        self._chunks.published(published.chunks)
        self._durable = published.progress

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
            self._publish()
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
        finish_backup(self._tenant, self._catalog, backup)
        self.close(
            Precondition(
                "UPLOAD_CLOSED",
                f"upload {self.upload.id.hex()} is committed as backup {backup.id.hex()}",
                upload=self.upload.id.hex(),
                state=UploadState.COMMITTED.name,
            )
        )
        return backup

    def _check_complete(self, entry_count: int, data_bytes: int) -> None:
        if self._open is not None:
            raise BadRequest("BAD_SEQUENCE", f"{shown(self._open.entry.path)} was begun and not ended")
        if (entry_count, data_bytes) != (self._entry_count, self._data_bytes):
            raise Precondition(
                "COUNT_MISMATCH",
                f"{entry_count} entries with {data_bytes} bytes were announced, {self._entry_count} entries with "
                f"{self._data_bytes} bytes have arrived; the upload stays open",
                entry_count=str(self._entry_count),
                data_bytes=str(self._data_bytes),
            )
        for digest in self._chunks.present(Role.DATA, list(self._missing)):
            del self._missing[digest]
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
        reader = ChunkReader(self._tenant, self._catalog)
        runs = [entries_of(run.root, ChunkReader(self._tenant, self._catalog)) for run in self._runs]
        merged = merge(
            self._base if self.upload.scope is Scope.CHANGES else EMPTY_ROOT,
            [*runs, sort_run(self._entries)],
            reader,
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
            stored_bytes=self._durable.stored_bytes,
            changes=ChangeCounts(
                added=counts.added,
                content_changed=counts.content,
                metadata_changed=counts.metadata,
                removed=counts.removed,
                metadata_kept=metadata_kept,
            ),
        )
