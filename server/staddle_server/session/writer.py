"""One upload's writer: what it takes, when that becomes durable, and how it becomes a backup.

The order is the promise: chunks in a pack → pack durable → pack published together with the durable point (one
transaction) → manifest durable in the same way → backup committed (one transaction) → record durable → answer.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Final, NamedTuple, NoReturn

import msgspec
from staddle.chunking import Cut

from staddle_server.catalog import Backup, Catalog, NewBackup, Terms, Upload
from staddle_server.errors import (
    BadRequest,
    Conflict,
    Damaged,
    Precondition,
    StaddleError,
    Unauthenticated,
)
from staddle_server.limits import CHECKPOINT_S, MISSING_CHUNKS_MAX
from staddle_server.manifest.content import ContentBuilder, store_attributes
from staddle_server.manifest.entries import check_entry, removal, shown
from staddle_server.manifest.merge import Merged
from staddle_server.session import refusals
from staddle_server.session.base import Base
from staddle_server.session.clock import Clock
from staddle_server.session.clockguard import ClockGuard
from staddle_server.session.finishing import all_added, check_counts, compared, new_backup, write_manifest
from staddle_server.session.frames import Frame
from staddle_server.session.gather import ChunkSink, ManifestSink
from staddle_server.session.missing import Missing
from staddle_server.session.presence import Presence
from staddle_server.session.progress import Progress, decode_progress
from staddle_server.session.publisher import Publisher
from staddle_server.session.reading import ChunkReader
from staddle_server.session.received import OpenFile, Received
from staddle_server.session.records import encode_committed, finish_record
from staddle_server.session.tenant import Tenant
from staddle_server.session.wholeness import Lacking, lacking
from staddle_server.store.space import Space
from staddle_server.threads import shortage
from staddle_server.types import ChunkRef, Content, Entry, Kind, Profile, Role, Root, Scope, UploadState

log = logging.getLogger(__name__)

REPLAYS_KNOWN: Final = 64
"""Of so many PutEntries calls a writer knows what they said, to tell a replay from another call with its number."""
FIRST_EPOCH: Final = 1
"""The epoch of an upload that nobody has taken over."""


class _Stream(NamedTuple):
    """The Backup stream that holds the upload: its thread, and what ends it from another one."""

    thread: int
    cancel: Callable[[], None]


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
        presence: Presence,
        compressors: Executor,
        clock: Clock,
        terms: Callable[[], Terms],
        space: Space | None = None,
    ) -> None:
        """`space`: the room on the disk. Where there is too little for more, what has arrived can still be made durable."""
        self.upload = upload
        self._space = space
        self._tenant = tenant
        self._catalog = catalog
        self.base = Base(tenant, catalog, base)
        self._clock = clock
        self._lock = threading.RLock()
        publisher = self._publisher = Publisher(
            catalog, upload, clock, terms, decode_progress(upload.durable)
        )
        self._missing = Missing(catalog.uploads.missing(upload.tenant, upload.id, b"", MISSING_CHUNKS_MAX))
        self._chunks = ChunkSink(
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
        self._damage_epoch = self._chunks.damage_epoch
        self._resumed = upload.epoch > FIRST_EPOCH
        self._pages = ManifestSink(self._chunks)
        self._received = Received(
            publisher.durable, self._pages, ChunkReader(tenant, catalog), tenant.secrets.page_key
        )
        self._digests: deque[tuple[int, bytes]] = deque(maxlen=REPLAYS_KNOWN)
        """The last PutEntries calls."""
        self._closed: StaddleError | None = None
        self._stream: _Stream | None = None
        self._taking = False
        self._wrote = False
        self._used_s = self._checkpoint_s = clock.monotonic_s()

    # ------------------------------------------------------------------ life

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._closed is not None:
                raise self._closed.with_traceback(None)  # else each caller's frames would stay with it
            self._used_s = self._clock.monotonic_s()
            try:
                self._reap(wait=False)
                yield
            except (BadRequest, Precondition, Conflict, Damaged, Unauthenticated) as e:
                if e.reason in {"STALE_EPOCH", "UPLOAD_CLOSED"}:
                    self.close(e)
                raise
            except BaseException as e:
                self._fail(e)
                raise

    def _fail(self, cause: BaseException) -> None:
        """Nothing in memory is trusted any more; what is durable is."""
        told = cause if isinstance(cause, StaddleError) else shortage(cause)
        text = told.message if told is not None else f"a fault of the server ({type(cause).__name__})"
        self.close(refusals.resume_required(self.upload.id, f"stopped: {text}"))
        with suppress(StaddleError):
            self._catalog.uploads.set_failure(self.upload.tenant, self.upload.id, self.upload.epoch, text)

    def close(self, reason: StaddleError) -> None:
        """Ends the writer; what is not published is dropped. Later calls raise `reason`."""
        with self._lock:
            if self._closed is not None:
                return
            self._closed = reason
            try:
                with suppress(Exception):  # its outcome is in the catalog, whatever it was
                    self._reap(wait=True)
                self._chunks.abort()
            finally:
                self._publisher.close()
                stream, self._stream = self._stream, None
        # The stream's own thread goes on to its answer, which says what happened.
        if stream is not None and stream.thread != threading.get_ident():
            stream.cancel()

    @property
    def closed(self) -> StaddleError | None:
        """Why the writer ended; None while it has not."""
        return self._closed

    @contextmanager
    def stream(self, cancel: Callable[[], None]) -> Iterator[None]:
        """Holds the upload for one Backup stream; `cancel` is called if the writer ends meanwhile from outside."""
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
        """Takes so many bytes, if the disk has room for them. Raises what `Space.taking` does."""
        return nullcontext() if self._space is None else self._space.taking(size)

    @property
    def unwritten_bytes(self) -> int:
        """What was taken, and what writing it down takes beside it, as far as it is not on the disk. Asked from any thread."""
        if self._closed is not None:
            return 0
        return self._chunks.unwritten_bytes + self._received.unwritten_bytes

    def check_free(self) -> None:
        """Whether no Backup stream is under way.

        Raises:
            Conflict: UPLOAD_BUSY.

        """
        if self._stream is not None:
            raise refusals.busy(self.upload.id)

    def keep(self, idle_s: float) -> None:
        """Makes durable what has waited for long, and puts the upload aside if nobody called for `idle_s`.

        Does nothing while a call is at work here, which will see to it itself.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._closed is not None:
                return
            self._reap(wait=False)
            if self._clock.monotonic_s() - self._used_s > idle_s:
                self.put_aside("was idle")
            elif self._due():
                self._checkpoint()
        except Exception as e:  # noqa: BLE001 - the next call of this upload gets to know it
            self._fail(e)
        finally:
            self._lock.release()

    def put_aside(self, why: str) -> None:
        """Ends the writer at a checkpoint: the upload keeps its durable point, and nothing in memory."""
        with self._lock:
            if self._closed is not None:
                return
            try:
                self._reap(wait=True)
                if self._waiting():  # or the lease of a caller that has gone would be renewed
                    self._checkpoint()
                    self._reap(wait=True)
            except Exception as e:
                log.warning(
                    "upload %s could not be made durable at its end", self.upload.id.hex(), exc_info=e
                )
                self._fail(e)
            self.close(refusals.resume_required(self.upload.id, why))

    # ------------------------------------------------------------------ chunks

    def find_missing(self, digests: Sequence[bytes]) -> list[int]:
        """The positions of those chunks that must be sent; the others are claimed."""
        with self._writing():
            return self._chunks.missing(digests)

    def put_frame(self, frame: Frame) -> int:
        """Takes chunks that were checked; gives how many were new."""
        with self._room(len(frame.payload)), self._writing():
            self._missing.check(frame.table)
            stored = self._chunks.take_segment(frame.table, frame.codec, frame.payload, frame.raw_length)
            self._missing.arrived(frame.table)
            self._checkpoint_when_due()
        return stored

    # ------------------------------------------------------------------ entries

    @contextmanager
    def together(self) -> Iterator[None]:
        """Holds the writer for several steps that belong together."""
        with self._lock:
            yield

    @contextmanager
    def taking(self) -> Iterator[None]:
        """Several steps that are one: none is durable before all are done, and if one fails the writer ends."""
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

    @property
    def put_entries_number(self) -> int:
        """The last PutEntries call that was accepted."""
        return self._received.put_entries_number

    def accept_number(self, number: int, digest: bytes) -> None:
        """The PutEntries call with this number was taken; `digest` is that of its changes."""
        with self._writing():
            self._received.put_entries_number = number
            self._received.put_entries_digest = digest
            self._digests.append((number, digest))

    def check_replay(self, number: int, digest: bytes) -> None:
        """Whether a PutEntries call that was taken before says the same again, as far as that is known.

        The last calls of this writer are known, and the last one before it.

        Raises:
            AlreadyExists: REQUEST_ID_REUSED.

        """
        received = self._received
        known = {received.put_entries_number: received.put_entries_digest, **dict(self._digests)}
        if known.get(number, digest) not in {digest, b""}:
            raise refusals.other_entries(number)

    def absent(self, refs: Sequence[ChunkRef]) -> set[bytes]:
        """Which of these chunks are not there; the others are claimed.

        Raises:
            BadRequest: BAD_FIELD, a chunk is there with another length.

        """
        with self._writing():
            return self._chunks.absent(refs, "content.chunks")

    def open_file(self, entry: Entry, profile: Profile, *, continue_at: int | None = None) -> None:
        """Begins a file of which the chunks follow, or goes on with the open one at its durable end.

        Raises:
            BadRequest: BAD_SEQUENCE, it does not go on where the open one ended.

        """
        with self._writing():
            if continue_at is None:
                self._received.open = OpenFile(entry, ContentBuilder(self._pages, profile))
            else:
                self._received.check_open(entry.path, continue_at)

    @property
    def open_size(self) -> int:
        """The bytes of the open file's chunks so far."""
        return 0 if self._received.open is None else self._received.open.content.size

    @property
    def open_entry(self) -> Entry | None:
        """The open file."""
        return None if self._received.open is None else self._received.open.entry

    def add_cuts(self, cuts: Sequence[Cut]) -> None:
        """The next chunks of the open file, with their bytes."""
        with self._room(_bytes_of(cuts)), self._writing():
            content = self._opened().content
            for cut in cuts:
                self._chunks.take(Role.DATA, cut.digest, cut.data)
                content.add(ChunkRef(len(cut.data), cut.digest))
            self._checkpoint_when_due()

    def expect(self, refs: Iterable[ChunkRef]) -> None:
        """Entries refer to these chunks, which are still to come.

        Raises:
            BadRequest: BAD_FIELD, there are too many, or one has another length elsewhere; none is waited for.

        """
        with self._writing():
            self._missing.expect(refs)

    def add_refs(self, refs: Iterable[ChunkRef]) -> None:
        """The next chunks of the open file, by reference; they are there, or expected."""
        with self._writing():
            content = self._opened().content
            for ref in refs:
                content.add(ref)

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
        with self._room(_bytes_of(cuts)), self._writing():
            content = ContentBuilder(self._pages, profile)
            for cut in cuts:
                self._chunks.take(Role.DATA, cut.digest, cut.data)
                content.add(ChunkRef(len(cut.data), cut.digest))
            self._take(msgspec.structs.replace(entry, content=content.finish()))

    def put_entries(self, entries: Iterable[Entry]) -> None:
        """Takes entries that are complete and were checked: no files, or such whose chunks are there or expected."""
        with self._writing():
            for entry in entries:
                self._take(entry)

    def remove(self, path: bytes) -> None:
        """Takes a path, and all below it, out of what came before."""
        with self._writing():
            self._received.open = None
            self._received.append(removal(path))
            self._checkpoint_when_due()

    def base_content(self, path: bytes, *, check: bool) -> Content:
        """The content that the base has at a path, as Base.content gives it."""
        with self._writing():
            return self.base.content(path, check=check)

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
        if self._taking:
            return False
        if self._chunks.full or self._received.full:
            return True
        return self._waiting() and self._clock.monotonic_s() - self._checkpoint_s >= CHECKPOINT_S

    def _waiting(self) -> bool:
        """Whether anything was taken that is not durable."""
        durable, received = self._publisher.durable, self._received
        offset = durable.open_entry.size_bytes if durable.open_entry is not None else 0
        return (
            self._chunks.dirty
            or (received.position, received.put_entries_number)
            != (durable.position, durable.put_entries_number)
            or self.open_size != offset
        )

    def _note_wrote(self) -> None:
        """Whether this writer's caller is an author: not for a manifest, which the server writes, and so asked before it."""
        self._wrote = self._wrote or self._waiting()

    def _checkpoint_when_due(self) -> None:
        if self._due():
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Seals the open pack and the run of entries so far, and publishes both beside what comes next."""
        self._checkpoint_s = self._clock.monotonic_s()
        self._note_wrote()
        self._reap(wait=True)
        try:
            self._received.write_run()
        except Damaged as e:  # the upload's own runs: there is nothing here to go on with
            self._fail(e)
            raise
        self._publish(self._received.progress)

    def _publish(self, progress: Callable[[], Progress]) -> None:
        """Publishes what was taken, under a durable point that is asked for when everything is in packs."""
        packs, chunks = self._chunks.flush()
        change = self._missing.take_change()
        self._publisher.publish(progress(), packs, chunks, change, wrote=self._wrote)

    def _reap(self, *, wait: bool) -> None:
        """Learns what became of the last publication."""
        self._chunks.published(self._publisher.reap(wait=wait))

    # ------------------------------------------------------------------ commit

    def commit(self, entry_count: int, data_bytes: int) -> Backup:
        """Makes the upload a backup: durable, visible, whole.

        Raises:
            Precondition: COUNT_MISMATCH, MISSING_CHUNKS; the upload stays open.
            BadRequest: an entry is open, or paths contradict each other; the upload stays open.
            Damaged: a page of the base cannot be read; the upload stays open.
            Unauthenticated: the holder's token has ended meanwhile; the upload stays open.

        """
        with self._writing():
            check_counts(self._received, entry_count, data_bytes)
            self._note_wrote()
            self._reap(wait=True)
            self._chunks.look_for_packs()
            new = self._whole_backup()
            self._tenant.blobs.check_writable()  # or there would be a backup that cannot be recorded
            backup = self._catalog.uploads.commit(
                self.upload.tenant,
                self.upload.id,
                self.upload.epoch,
                packs=(),
                backup=new,
                record=encode_committed,
                now_ns=self._clock.now_ns(),
                retain_from_ns=ClockGuard(self._catalog, self._clock).look().latest_ns,
                accepted=(entry_count, data_bytes),
                wrote=self._wrote,
            )
            what = f"is committed as backup {backup.id.hex()}"
            self.close(refusals.closed(self.upload.id, UploadState.COMMITTED, what))
        finish_record(self._tenant, self._catalog, backup.id)
        return backup

    def _whole_backup(self) -> NewBackup:
        """The backup's manifest, made durable, of which nothing is missing as far as is known.

        Raises:
            Precondition: MISSING_CHUNKS.

        """
        self._forget_arrived()
        while True:
            epoch = self._catalog.packs.damage_epoch(self.upload.tenant)
            suspected = self._is_suspected(epoch)
            new = self._new_backup(anew=suspected)
            if suspected or self._missing:
                self._check_whole(new)
            if self._catalog.packs.damage_epoch(self.upload.tenant) == epoch:
                return new

    def _is_suspected(self, damage_epoch: int) -> bool:
        """Whether the backup may rely on what is known to be damaged.

        Damage that was known when the upload began cannot hurt what came since: that was asked for with the damage in mind. It can
        hurt what a base brings along, and what an earlier writer of this upload was told.
        """
        if damage_epoch != self._damage_epoch:
            return True
        brings = self.upload.scope is Scope.CHANGES or self.upload.kind is Kind.DIFFERENTIAL
        return (brings or self._resumed) and self.base.damage_known()

    def _forget_arrived(self) -> None:
        here = self._chunks.present(Role.DATA, list(self._missing))
        refs = [ChunkRef(length, digest) for digest, length in here.items()]
        self._missing.check(refs)
        self._missing.arrived(refs)

    def _check_whole(self, new: NewBackup) -> None:
        """Looks up everything that the backup refers to.

        Raises:
            Precondition: MISSING_CHUNKS, with all that is missing put down for GetUpload; the upload stays open.
            Damaged: a page of the base cannot be read.

        """
        lost = lacking(self._tenant, self._catalog, new.root, MISSING_CHUNKS_MAX)
        self._missing.only(lost.chunks)
        if not lost.total:
            durable = self._publisher.durable
            self._publish(lambda: durable)  # that nothing is missing any more
            self._reap(wait=True)
            return
        self._chunks.forget()
        self._checkpoint()
        self._reap(wait=True)
        self._refuse(lost)

    def _refuse(self, lost: Lacking) -> NoReturn:
        upload = self.upload.id.hex()
        what = []
        if lost.chunks:
            what.append(
                f"{len(lost.chunks)} chunks that entries refer to are not there, or are damaged; GetUpload lists them, PutChunks "
                "brings them"
            )
        if lost.paths:
            what.append(
                f"of {len(lost.paths)} entries the list of chunks or the attributes are damaged, the first is "
                f"{shown(lost.paths[0])}; send these entries again"
            )
        raise Precondition(
            "MISSING_CHUNKS",
            "; ".join([*what, "the upload stays open"]),
            upload=upload,
            count=str(lost.total),
        )

    def _new_backup(self, *, anew: bool) -> NewBackup:
        merged = self._write_manifest(anew=anew)
        source = ChunkReader(self._tenant, self._catalog)
        counts = compared(self.upload, self.base.root, merged.root, source)
        if counts is None:
            # Pages of this backup may lie where the base was found damaged just now: they are written once more.
            self._chunks.forget()
            merged = self._write_manifest(anew=True)
            counts = all_added(merged.root)
        return new_backup(merged, counts, self._publisher.durable.stored_bytes)

    def _write_manifest(self, *, anew: bool) -> Merged:
        """Makes the backup's manifest, and makes it durable."""
        merged = write_manifest(
            self.upload,
            self.base.root,
            self._received,
            ChunkReader(self._tenant, self._catalog),
            sink=self._pages,
            page_key=self._tenant.secrets.page_key,
            anew=anew,
        )
        # The durable point stays where it was: the entries in memory are in the manifest, but in no run.
        durable = self._publisher.durable
        self._publish(lambda: durable)
        self._reap(wait=True)
        return merged


def _bytes_of(cuts: Iterable[Cut]) -> int:
    """What different chunks have: a gibibyte of zeros is one."""
    return sum({cut.digest: len(cut.data) for cut in cuts}.values())
