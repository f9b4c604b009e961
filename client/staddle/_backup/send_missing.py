"""The second half of the source-side path: asks what is missing, sends that, and then the entries that refer to it.

An entry is sent only after every chunk before it has been accepted, so whatever point of the upload becomes durable, its entries have
their chunks. Everything overlaps: a few questions, a few frames and one list of entries are under way at a time.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final, Self

import zstandard

from staddle._backup.chunk_files import Batch, EncodedChange
from staddle._backup.entries import BackupTally
from staddle._base.threads import Threads
from staddle._protocol.columns import EntryRow, columns_of
from staddle._protocol.convert import PROFILES_TO_WIRE, sort_key
from staddle._protocol.encoding import tag, varint
from staddle.chunking import Cut
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from types import TracebackType

    from staddle._transport.calls import Calls

ASKS_MAX: Final = 3
FRAMES_MAX: Final = 5
FRAME_BYTES_MAX: Final = 2 * 1024 * 1024
"""The most that a call may bring: each costs the server more than half a millisecond. What frames have is what segments have."""
FRAME_CHUNKS_MAX: Final = 4_096
ENTRIES_BYTES: Final = 512 * 1024
ENTRIES_MAX: Final = 4_096
ROW_BYTES: Final = 96
"""What an entry takes beside its path and link target: the most that it is without rare fields."""
COMPRESSION_LEVEL: Final = 2
"""See docs/decisions/2026-11-26-stages-that-overlap.md."""

_DATA_TAG: Final = tag(sv.PutChunksRequest, "data")

_compressors = threading.local()


class Sender:
    """Sends batches to an open upload. One thread uses it; leave it to end what is under way."""

    def __init__(self, calls: Calls, upload: pb.Upload, tally: BackupTally) -> None:
        self._calls = calls
        self._upload_id = upload.id
        self._epoch = upload.epoch
        self._tally = tally
        self._profile = PROFILES_TO_WIRE[tally.profile]
        self._number = upload.durable.put_entries_number
        self.entry_count = upload.durable.entry_count
        self.data_bytes = upload.durable.data_bytes
        self.incomplete = 0
        """Entries that the server took although a chunk of theirs is not there any more."""
        self._pool = Threads(ASKS_MAX + FRAMES_MAX + 1, thread_name_prefix="staddle-send")
        self._asks: deque[tuple[Batch, Future[set[int]] | None]] = deque()
        self._frame: list[Cut] = []
        self._frame_bytes = 0
        self._frames: deque[tuple[int, Future[None]]] = deque()
        self._frame_number = 0
        """Of the frame that is being filled."""
        self._waiting: deque[tuple[int, EncodedChange | EntryRow]] = deque()
        """Entries, each with the number of the frame that must have been accepted before."""
        self._rows: list[EntryRow] = []
        """Entries in order, which go into columns."""
        self._row_key: bytes | None = None
        """The order of the last of them."""
        self._changes: list[bytes] = []
        """What comes before these: lists of changes, encoded."""
        self._changes_count = self._changes_bytes = 0
        """Of both."""
        self._putting: Future[int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def take(self, batch: Batch) -> None:
        """Sends a batch, now or soon. Raises what an earlier call failed with."""
        self._tally.entries_done += batch.taken_over
        self._tally.reused_bytes += batch.taken_over_bytes
        digests = [step.digest for step in batch.steps if isinstance(step, Cut)]
        self._asks.append((batch, self._pool.submit(self._find_missing, digests) if digests else None))
        while self._asks and (len(self._asks) > ASKS_MAX or _is_done(self._asks[0][1])):
            self._answered()
        self._send_entries()

    def flush(self) -> None:
        """Sends what is still gathered, and waits until all was accepted."""
        while self._asks:
            self._answered()
        self._send_frame()
        self._wait_frames(0)
        self._send_entries()
        self._put_entries()
        self._wait_entries()

    def _answered(self) -> None:
        batch, asked = self._asks.popleft()
        missing = set() if asked is None else asked.result()
        position = itertools.count()
        for step in batch.steps:
            if not isinstance(step, Cut):
                self._waiting.append((self._frame_number if self._frame else self._frame_number - 1, step))
            elif next(position) in missing:
                self._add_to_frame(step)
            else:
                self._tally.reused_bytes += len(step.data)

    def _find_missing(self, digests: list[bytes]) -> set[int]:
        request = sv.FindMissingChunksRequest(upload_id=self._upload_id, epoch=self._epoch, digests=digests)
        return set(self._calls.call("FindMissingChunks", request).missing)

    # --- chunks

    def _add_to_frame(self, cut: Cut) -> None:
        if self._frame_bytes + len(cut.data) > FRAME_BYTES_MAX or len(self._frame) >= FRAME_CHUNKS_MAX:
            self._send_frame()
        self._frame.append(cut)
        self._frame_bytes += len(cut.data)

    def _send_frame(self) -> None:
        if not self._frame:
            return
        self._wait_frames(FRAMES_MAX - 1)
        self._frames.append((self._frame_number, self._pool.submit(self._put_chunks, self._frame)))
        self._tally.sent_bytes += self._frame_bytes
        self._frame_number += 1
        self._frame, self._frame_bytes = [], 0

    def _put_chunks(self, cuts: list[Cut]) -> None:
        data = b"".join(cut.data for cut in cuts)
        packed = _compressor().compress(data)
        raw = len(packed) >= len(data)
        sent = data if raw else packed
        request = sv.PutChunksRequest(
            upload_id=self._upload_id,
            epoch=self._epoch,
            chunks=[pb.ChunkRef(digest=cut.digest, length_bytes=len(cut.data)) for cut in cuts],
            raw=raw,
        )
        # A field more is as good at the end of the message as in it, and is copied once.
        self._calls.call(
            "PutChunks",
            b"".join((request.SerializeToString(), _DATA_TAG, varint(len(sent)), sent)),
            upload=self._upload_id,
            count=len(cuts),
        )

    def _wait_frames(self, under_way_max: int) -> None:
        while self._frames and (len(self._frames) > under_way_max or self._frames[0][1].done()):
            self._frames.popleft()[1].result()

    # --- entries

    def _send_entries(self) -> None:
        self._wait_frames(FRAMES_MAX)
        accepted = self._frames[0][0] - 1 if self._frames else self._frame_number - 1
        while self._waiting and self._waiting[0][0] <= accepted:
            change = self._waiting.popleft()[1]
            self._count(change)
            if isinstance(change, EntryRow):
                self._add_row(change)
                continue
            self._end_columns()
            for part in change.parts:
                self._make_room(len(part))
                self._changes.append(part)

    def _add_row(self, row: EntryRow) -> None:
        """Add an entry to the columns, or begin new ones if it comes before their last."""
        size = ROW_BYTES + len(row.path) + len(row.link_target)
        self._make_room(size if row.rare is None else size + row.rare.ByteSize())
        key = sort_key(row.path)
        if self._row_key is not None and key <= self._row_key:
            self._end_columns()
        self._row_key = key
        self._rows.append(row)

    def _end_columns(self) -> None:
        if self._rows:
            request = sv.PutEntriesRequest()
            request.changes.add(columns=columns_of(self._rows, self._profile))
            self._changes.append(request.SerializeToString())
            self._rows, self._row_key = [], None

    def _make_room(self, size: int) -> None:
        """Send what is gathered if another change of this size makes it too much, and count that change."""
        if self._changes_count and (
            self._changes_bytes + size > ENTRIES_BYTES or self._changes_count >= ENTRIES_MAX
        ):
            self._put_entries()
        self._changes_count += 1
        self._changes_bytes += size

    def _put_entries(self) -> None:
        if not self._changes_count:
            return
        self._end_columns()
        self._wait_entries()
        self._number += 1
        head = sv.PutEntriesRequest(upload_id=self._upload_id, epoch=self._epoch, number=self._number)
        # Messages one after the other are one message with what all of them repeat.
        request, count = b"".join((head.SerializeToString(), *self._changes)), self._changes_count
        self._changes, self._changes_count, self._changes_bytes = [], 0, 0
        self._putting = self._pool.submit(self._put, request, count)

    def _count(self, change: EncodedChange | EntryRow) -> None:
        if isinstance(change, EntryRow) or change.is_entry:
            self.entry_count += 1
            self.data_bytes += change.size_bytes
            self._tally.entries_done += 1

    def _put(self, request: bytes, count: int) -> int:
        return len(self._calls.call("PutEntries", request, upload=self._upload_id, count=count).incomplete)

    def _wait_entries(self) -> None:
        if self._putting is not None:
            putting, self._putting = self._putting, None
            self.incomplete += putting.result()


def _is_done(asked: Future[set[int]] | None) -> bool:
    return asked is None or asked.done()


def _compressor() -> zstandard.ZstdCompressor:
    """One for each thread: two must not use the same."""
    compressor: zstandard.ZstdCompressor | None = getattr(_compressors, "own", None)
    if compressor is None:
        compressor = _compressors.own = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL)
    return compressor
