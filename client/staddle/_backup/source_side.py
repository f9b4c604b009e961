"""The source-side path: cut here, ask what is missing, send only that. See `staddle._backup.chunk_files` and `staddle._backup.send_missing` for its halves."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final, Self

from staddle._backup.changes import Difference
from staddle._backup.chunk_files import Batch, Producer
from staddle._backup.entries import BackupTally
from staddle._backup.previous_chunks import Earlier
from staddle._backup.send_missing import Sender
from staddle._base.figures import counted
from staddle._base.shortage import start
from staddle._errors import MissingChunksError, ProtocolError, named
from staddle._fs.found import WallClock
from staddle.chunking import ChunkerParameters, Cutter
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

if TYPE_CHECKING:
    from types import TracebackType

    from staddle._transport.calls import Calls

BATCHES_AHEAD: Final = 1
IDLE_S: Final = 60.0
"""After so long without a batch the upload's lease is renewed."""
POLL_S: Final = 0.5
STOP_S: Final = 5.0
CHUNK_BYTES_LEAST: Final = 1024
"""What smaller chunks than these cost, in memory and calls, is more than what is in them."""


class SourceAttempt:
    """Sends differences to an upload, and commits it."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._cutter: Cutter | None = None

    def __call__(
        self, upload: pb.Upload, differences: Generator[Difference], tally: BackupTally, clock: WallClock
    ) -> pb.Backup:
        """Raises MissingChunksError if the server lost chunks that were relied on, and what reading or a call failed with."""
        earlier = Earlier(self._calls, upload.dataset)
        with named(self._calls.address):
            cutter = self._cutter_for(upload.chunker)
        producer = Producer(differences, cutter, tally, clock, earlier)
        with _Feed(producer.batches(), differences) as feed, Sender(self._calls, upload, tally) as sender:
            for batch in feed:
                if batch is not None:
                    sender.take(batch)
                if batch is None or batch.is_point:
                    sender.flush()
                if batch is None:
                    self._renew(upload)
            sender.flush()
            if sender.incomplete:
                raise MissingChunksError(
                    f"{counted(sender.incomplete, 'entry refers', 'entries refer')} to chunks that the server lost."
                )
            return self._commit(upload, sender, tally.problem_count)

    def _cutter_for(self, chunker: pb.Chunker) -> Cutter:
        """Raises ProtocolError for parameters that cannot be, or that cut so small that every file becomes a list of digests."""
        try:
            parameters = ChunkerParameters(
                seed=chunker.seed,
                min_bytes=chunker.min_bytes,
                avg_bytes=chunker.avg_bytes,
                max_bytes=chunker.max_bytes,
                normalization=chunker.normalization,
                fixed_bytes=chunker.fixed_bytes,
            )
            if min(parameters.avg_bytes, parameters.fixed_bytes) < CHUNK_BYTES_LEAST:
                raise ValueError(f"chunks of under {CHUNK_BYTES_LEAST} bytes")
            if self._cutter is None or self._cutter.parameters != parameters:
                self._cutter = Cutter(parameters)
        except (ValueError, OverflowError) as error:
            raise ProtocolError(f"The server's chunker parameters cannot be used: {error}.") from error
        return self._cutter

    def _renew(self, upload: pb.Upload) -> None:
        self._calls.call("RenewUpload", sv.RenewUploadRequest(upload_id=upload.id, epoch=upload.epoch))

    def _commit(self, upload: pb.Upload, sender: Sender, problem_count: int) -> pb.Backup:
        request = sv.CommitUploadRequest(
            upload_id=upload.id,
            epoch=upload.epoch,
            entry_count=sender.entry_count,
            data_bytes=sender.data_bytes,
            problem_count=problem_count,
        )
        backup: pb.Backup = self._calls.call("CommitUpload", request).backup
        return backup


class _Feed:
    """Batches that another thread makes, a few ahead. Iterating gives None now and then, where nothing comes for a while.

    Leave it to stop that thread.
    """

    def __init__(self, batches: Generator[Batch], source: Generator[Difference]) -> None:
        self._batches = batches
        self._source = source
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(BATCHES_AHEAD)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = start("staddle-read", self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def __iter__(self) -> Iterator[Batch | None]:
        while True:
            try:
                item = self._queue.get(timeout=IDLE_S)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(batch):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for batches
            self._put(error)
        finally:
            self._batches.close()
            self._source.close()

    def _put(self, item: Batch | BaseException | None) -> bool:
        """Queue the item. Returns False once the consumer has stopped."""
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False
