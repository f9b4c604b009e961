"""The writer of an open upload: one caller at a time adds to it, makes it durable and commits it.

The order is the promise: chunks in a pack → pack durable → pack published together with the durable point
(one transaction) → manifest durable in the same way → backup committed (one transaction) → record durable →
answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import NamedTuple

import msgspec
from staddle.chunking import Cut

from staddle_server.base.clock import Clock
from staddle_server.base.errors import (
    BadRequest,
    Conflict,
    Damaged,
    Precondition,
    StaddleError,
    Unauthenticated,
)
from staddle_server.base.threads import shortage
from staddle_server.base.types import ChunkRef, Content, Entry, Kind, Profile, Role, Root, UploadState
from staddle_server.catalog import Backup, Catalog, NewDamageError, Terms, Upload
from staddle_server.manifest.columns import CheckedColumns
from staddle_server.manifest.content import ContentBuilder, store_attributes
from staddle_server.manifest.entries import check_entry, removal
from staddle_server.store.space import Space
from staddle_server.tenancy.clock_guard import Standing
from staddle_server.tenancy.pack_presence import Presence
from staddle_server.tenancy.records import encode_committed, finish_record
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upload import refusals
from staddle_server.upload.accepted import Accepted
from staddle_server.upload.base_backup import Base
from staddle_server.upload.finish import Finishing, check_counts
from staddle_server.upload.frames import CheckedChunks
from staddle_server.upload.progress import Progress
from staddle_server.upload.received import IncomingFile, Received

log = logging.getLogger(__name__)


class _Stream(NamedTuple):
    """The Backup stream that holds the upload: its thread, and how another thread cancels it."""

    thread: int
    cancel: Callable[[], None]


class UploadWriter:
    """The only writer of an upload while its epoch is current.

    Thread-safe: every public method takes the writer's lock. Methods raise Conflict once a take-over or a
    failure in a lower layer closed the writer: what is durable stays, and ResumeUpload resumes from there.
    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        *,
        upload: Upload,
        base: Root,
        presence: Presence,
        compressors: Executor,
        clock: Clock,
        look_at_clock: Callable[[], Standing],
        terms: Callable[[], Terms],
        space: Space | None = None,
    ) -> None:
        """`space`: of the disk. If it is short, nothing more is accepted, but what arrived can become durable."""
        self.upload = upload
        self._space = space
        self._tenant = tenant
        self._catalog = catalog
        self.base = Base(tenant, catalog, base)
        self._clock = clock
        self._look_at_clock = look_at_clock
        self._lock = threading.RLock()
        accepted = self._accepted = Accepted(
            tenant,
            catalog,
            upload=upload,
            presence=presence,
            compressors=compressors,
            clock=clock,
            terms=terms,
        )
        self._chunks, self._pages = accepted.chunks, accepted.pages
        self._received, self._missing = accepted.received, accepted.missing
        self._finishing = Finishing(tenant, catalog, upload, self.base, accepted)
        self._closed: StaddleError | None = None
        self._stream: _Stream | None = None
        self._taking = False
        self._used_s = clock.monotonic_s()

    # ------------------------------------------------------------------ life

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._closed is not None:
                raise self._closed.with_traceback(None)  # otherwise it would keep each caller's frames
            self._used_s = self._clock.monotonic_s()
            try:
                self._accepted.reap(wait=False)
                yield
            except (BadRequest, Precondition, Conflict, Damaged, Unauthenticated) as e:
                if e.reason in {"STALE_EPOCH", "UPLOAD_CLOSED"}:
                    self.close(e)
                raise
            except BaseException as e:
                self._fail(e)
                raise

    def _fail(self, cause: BaseException) -> None:
        """End the writer after a failure: discard everything in memory, and record the cause in
        the upload.
        """
        known = cause if isinstance(cause, StaddleError) else shortage(cause)
        text = known.message if known is not None else f"a fault of the server ({type(cause).__name__})"
        self.close(refusals.resume_required(self.upload.id, f"stopped: {text}"))
        with suppress(StaddleError):
            self._catalog.uploads.set_failure(self.upload.tenant, self.upload.id, self.upload.epoch, text)

    def close(self, reason: StaddleError) -> None:
        """End the writer; what is not published is dropped. Later calls raise `reason`."""
        with self._lock:
            if self._closed is not None:
                return
            self._closed = reason
            try:
                self._accepted.close()
            finally:
                stream, self._stream = self._stream, None
        # The stream's own thread continues to its answer, which says what happened.
        if stream is not None and stream.thread != threading.get_ident():
            stream.cancel()

    def close_unless_busy(self, reason: StaddleError) -> None:
        """Close; do nothing while a call holds the writer, which learns from the catalog that it is over."""
        if self._lock.acquire(blocking=False):
            try:
                self.close(reason)
            finally:
                self._lock.release()

    @property
    def closed(self) -> StaddleError | None:
        """Why the writer ended; None if it has not."""
        return self._closed

    @contextmanager
    def stream(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Hold the upload for one Backup stream; `cancel` is called if the writer is ended meanwhile."""
        mine = _Stream(threading.get_ident(), cancel)
        with self._writing():
            self.check_free()
            self._stream = mine
        try:
            yield
        finally:
            with self._lock:
                if self._stream is mine:
                    self._stream = None

    def _room(self, size: int) -> AbstractContextManager[None]:
        """Reserve `size` bytes on the disk for a block. Raises as `Space.taking` does."""
        return nullcontext() if self._space is None else self._space.taking(size)

    @property
    def unwritten_bytes(self) -> int:
        """Bytes accepted and not yet on disk, with their overhead there. Callable from any thread."""
        if self._closed is not None:
            return 0
        return self._accepted.unwritten_bytes

    def check_free(self) -> None:
        """Check that no Backup stream holds the upload.

        Raises:
            Conflict: UPLOAD_BUSY.

        """
        if self._stream is not None:
            raise refusals.busy(self.upload.id)

    def keep(self, idle_s: float) -> None:
        """Checkpoint if that is due, and suspend the upload if no call came for `idle_s`.

        Does nothing while a call holds the writer: that call checkpoints.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._closed is not None:
                return
            self._accepted.reap(wait=False)
            if self._clock.monotonic_s() - self._used_s > idle_s:
                self.put_aside("was idle")
            elif self._accepted.is_due:
                self._checkpoint()
        except Exception as e:  # noqa: BLE001 - the next call of this upload reports it
            self._fail(e)
        finally:
            self._lock.release()

    def put_aside(self, why: str) -> None:
        """End the writer at a checkpoint: the upload keeps its durable point, and nothing in memory."""
        with self._lock:
            if self._closed is not None:
                return
            try:
                self._accepted.reap(wait=True)
                if self._accepted.is_waiting:  # a needless checkpoint would renew the lease of a lost caller
                    self._checkpoint()
                    self._accepted.reap(wait=True)
            except Exception as e:
                log.warning(
                    "upload %s could not be made durable at its end", self.upload.id.hex(), exc_info=e
                )
                self._fail(e)
            self.close(refusals.resume_required(self.upload.id, why))

    # ------------------------------------------------------------------ chunks

    def find_missing(self, digests: Sequence[bytes]) -> list[int]:
        """Return the positions of those chunks that must be sent; the others are claimed."""
        with self._writing():
            return self._chunks.missing(digests)

    def put_frame(self, frame: CheckedChunks) -> int:
        """Accept verified chunks, and return how many were new."""
        with self._room(len(frame.payload)), self._writing():
            self._missing.check(frame.table)
            stored = self._chunks.take_segment(frame.table, frame.codec, frame.payload, frame.raw_length)
            self._missing.arrived(frame.table)
            self._checkpoint_when_due()
        return stored

    # ------------------------------------------------------------------ entries

    @contextmanager
    def together(self) -> Iterator[None]:
        """Keep other calls out between several steps."""
        with self._lock:
            yield

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Combine several steps: none becomes durable before all are done, and a failure ends the writer."""
        with self._room(0), self._writing():
            self._taking = True
            try:
                yield
            except BaseException as e:
                self._fail(e)
                raise
            finally:
                self._taking = False
            self._checkpoint_when_due()

    @property
    def position(self) -> int:
        """Entries and removals accepted so far."""
        return self._received.position

    def received_so_far(self) -> Received:
        """Make everything accepted durable, and return it: to be read only, and before more is accepted."""
        self.checkpoint()
        return self._received

    @property
    def put_entries_number(self) -> int:
        """The last accepted PutEntries call."""
        return self._received.put_entries_number

    def accept_number(self, number: int, digest: bytes) -> None:
        """Record that the PutEntries call with this number was accepted; `digest` is that of its changes."""
        with self._writing():
            self._received.accept_number(number, digest)

    def check_replay(self, number: int, digest: bytes) -> None:
        """Check that a repeated PutEntries call has the same changes again.

        Only this writer's last calls are remembered, and the last one before it; others pass.

        Raises:
            AlreadyExists: REQUEST_ID_REUSED.

        """
        self._received.check_replay(number, digest)

    def absent(self, refs: Sequence[ChunkRef]) -> set[bytes]:
        """Return which of these chunks are missing; the others are claimed.

        Raises:
            BadRequest: BAD_FIELD, a chunk exists with another length.

        """
        with self._writing():
            return self._chunks.absent(refs, "content.chunks")

    def open_file(self, entry: Entry, profile: Profile, *, continue_at: int | None = None) -> None:
        """Begin a file whose chunks follow, or continue the open one at byte `continue_at`.

        Raises:
            BadRequest: BAD_SEQUENCE, another file is open, or it has another size.

        """
        with self._writing():
            if continue_at is None:
                self._received.open = IncomingFile(entry, ContentBuilder(self._pages, profile))
            else:
                self._received.check_open(entry.path, continue_at)

    @property
    def open_size(self) -> int:
        """The bytes of the open file's chunks so far."""
        return self._received.open_size

    @property
    def open_entry(self) -> Entry | None:
        """The open file."""
        return None if self._received.open is None else self._received.open.entry

    def add_cuts(self, cuts: Sequence[Cut]) -> None:
        """Add the next chunks of the open file, with their bytes."""
        with self._room(_bytes_of(cuts)), self._writing():
            content = self._opened().content
            for cut in cuts:
                self._chunks.take(Role.DATA, cut.digest, cut.data)
                content.add(ChunkRef(len(cut.data), cut.digest))
            self._checkpoint_when_due()

    def expect(self, refs: Iterable[ChunkRef]) -> None:
        """Record chunks that entries refer to and that have not arrived.

        Raises:
            BadRequest: BAD_FIELD, too many, or one has another length elsewhere; then none is recorded.

        """
        with self._writing():
            self._missing.expect(refs)

    def add_refs(self, refs: Iterable[ChunkRef]) -> None:
        """Add the next chunks of the open file by reference; they are stored, or expected."""
        with self._writing():
            content = self._opened().content
            for ref in refs:
                content.add(ref)

    def end_file(self, finish: Callable[[Entry, Content], Entry] | None = None) -> Entry:
        """End the open file and accept it; `finish` returns its final entry, or raises."""
        with self._writing():
            opened = self._opened()
            content = opened.content.finish()
            entry = msgspec.structs.replace(opened.entry, content=content)
            entry = entry if finish is None else finish(entry, content)
            check_entry(entry)
            self._take(entry)
            return entry

    def drop_file(self) -> None:
        """Drop the open file, as if it had never begun."""
        with self._writing():
            self._received.open = None

    def put_file(self, entry: Entry, cuts: Sequence[Cut], profile: Profile) -> None:
        """Accept a whole small file with its bytes."""
        with self._room(_bytes_of(cuts)), self._writing():
            content = ContentBuilder(self._pages, profile)
            for cut in cuts:
                self._chunks.take(Role.DATA, cut.digest, cut.data)
                content.add(ChunkRef(len(cut.data), cut.digest))
            self._take(msgspec.structs.replace(entry, content=content.finish()))

    def put_entries(self, entries: Iterable[Entry]) -> None:
        """Accept complete, checked entries; the chunks of files are stored, or expected."""
        with self._writing():
            for entry in entries:
                self._take(entry)

    def put_columns(self, columns: CheckedColumns) -> None:
        """Accept the entries of columns, as put_entries does."""
        with self._writing():
            self._received.open = None
            self._received.extend(columns.stored(partial(store_attributes, sink=self._pages)))
            self._checkpoint_when_due()

    def remove(self, path: bytes) -> None:
        """Remove a path, and everything below it, from earlier entries."""
        with self._writing():
            self._received.open = None
            self._received.append(removal(path))
            self._checkpoint_when_due()

    def base_content(self, path: bytes, *, check: bool) -> Content:
        """Return the base's content at a path, as Base.content does."""
        with self._writing():
            return self.base.content(path, check=check)

    def _opened(self) -> IncomingFile:
        if self._received.open is None:
            raise BadRequest("BAD_SEQUENCE", "no entry is open: data must follow its entry")
        return self._received.open

    def _take(self, entry: Entry) -> None:
        entry = store_attributes(entry, self._pages)
        self._received.open = None  # a file without an end is dropped
        self._received.count(entry)
        self._received.append(entry)
        self._checkpoint_when_due()

    # ------------------------------------------------------------------ durable

    def checkpoint(self) -> Progress:
        """Make everything accepted durable, and return the durable point."""
        with self._writing():
            self._checkpoint()
            self._accepted.reap(wait=True)
            return self._accepted.durable

    def _checkpoint_when_due(self) -> None:
        if not self._taking and self._accepted.is_due:
            self._checkpoint()

    def _checkpoint(self) -> None:
        try:
            self._accepted.checkpoint()
        except Damaged as e:  # the upload's own runs: nothing in memory allows a resume
            self._fail(e)
            raise

    # ------------------------------------------------------------------ commit

    def commit(self, entry_count: int, data_bytes: int, problem_count: int = 0) -> Backup:
        """Make the upload a backup: durable, visible, complete; `problem_count` is what its client states.

        Raises:
            Precondition: COUNT_MISMATCH, MISSING_CHUNKS; the upload stays open.
            BadRequest: An entry is open, or paths contradict each other; the upload stays open.
            Damaged: A page of the base is unreadable; the upload stays open.
            Unauthenticated: The holder's token has ended meanwhile; the upload stays open.

        """
        with self._writing():
            check_counts(self._received, entry_count, data_bytes)
            self._accepted.note_author()
            self._accepted.reap(wait=True)
            if self.upload.kind is Kind.FULL and self.upload.base:
                # Whatever the upload takes over from its base lies in some of them; which ones, only reading all
                # of the base would tell.
                self._chunks.look_for_all_packs()
            else:
                self._chunks.look_for_packs()
            while (backup := self._committed((entry_count, data_bytes), problem_count)) is None:
                self._chunks.heed_damage()
            what = f"is committed as backup {backup.id.hex()}"
            self.close(refusals.closed(self.upload.id, UploadState.COMMITTED, what))
        finish_record(self._tenant, self._catalog, backup.id)
        return backup

    def committed(self, backup: Backup, entry_count: int, data_bytes: int) -> Upload:
        """Return the upload as `commit` left it in the catalog."""
        return self._finishing.committed(backup, entry_count, data_bytes)

    def _committed(self, counts: tuple[int, int], problem_count: int) -> Backup | None:
        """Commit once; None if damage was found meanwhile. Raises as `commit` does."""
        new = self._finishing.new_backup(self._checkpoint, problem_count)
        self._tenant.blobs.check_writable()  # otherwise a backup could exist that cannot be recorded
        standing = self._look_at_clock()
        with suppress(NewDamageError):
            return self._catalog.uploads.commit(
                self.upload.tenant,
                self.upload.id,
                self.upload.epoch,
                packs=(),
                backup=new,
                record=encode_committed,
                now_ns=standing.latest_ns,
                token_ns=standing.believed_ns,
                accepted=counts,
                wrote=self._accepted.wrote,
            )
        return None


def _bytes_of(cuts: Iterable[Cut]) -> int:
    """Return the bytes of the distinct chunks: a gibibyte of zeros is one chunk."""
    return sum({cut.digest: len(cut.data) for cut in cuts}.values())
