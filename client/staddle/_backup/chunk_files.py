"""The first half of the source-side path: what changed, read, cut and hashed, in batches that are sent one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, cast

from blake3 import blake3

from staddle._backup.capture import captures, to_send
from staddle._backup.changes import Changed, Difference, Removed
from staddle._backup.chunk_list import ChunkList
from staddle._backup.entries import BackupTally, Content, LinkedFiles, add_holes, entry_of_file
from staddle._backup.entry_digest import digest_of
from staddle._backup.previous_chunks import Earlier
from staddle._base.threads import Threads
from staddle._fs.file_reader import READ_BYTES, FileReader, is_racy, open_file, read_small
from staddle._fs.found import WallClock
from staddle._fs.metadata import OwnerNames, entry_of, set_path, small_file_row
from staddle._protocol.columns import CHUNKS_MAX, EntryRow, row_of
from staddle._protocol.convert import PROFILES_TO_WIRE
from staddle._types.backups import Profile
from staddle.chunking import EMPTY_CONTENT_ID, Chunker, ContentHasher, Cut, Cutter, Expected, hashed
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv

BATCH_CHUNKS_MAX: Final = 4_096
BATCH_BYTES: Final = 4 * 1024 * 1024
BATCH_STEPS: Final = 4_096
RECENT_MAX: Final = 32_768
"""So many digests at least, and at most twice as many, are remembered as known to the server, and not asked for again."""
POINT_ENTRIES: Final = 4_096
POINT_BYTES: Final = 1024 * 1024 * 1024
"""After so much that was taken over from the base, one entry is sent all the same: an upload that is cut off resumes behind it."""
PART_CHUNKS: Final = 4_096
"""A longer list of chunks goes in parts of so many."""


class EncodedChange(NamedTuple):
    """An entry whose chunks have all been steps before, or are known to the server; or a removal.

    In bytes: a list of entries is one such after the other, and as objects they would take several times as much.
    """

    parts: Iterable[bytes]
    """Lists of one change each; several for a file with a long list of chunks."""
    is_entry: bool
    size_bytes: int


Step = Cut | EncodedChange | EntryRow
"""What to send, in order. Of the chunks only those that the server does not have."""


def entry_step(entry: pb.Entry, chunks: ChunkList) -> EncodedChange | EntryRow:
    """An entry with its chunks."""
    if len(chunks) <= CHUNKS_MAX:
        row = row_of(entry, tuple(chunks))
        if row is not None:
            return row
    size_bytes = entry.content.size_bytes
    if len(chunks) > PART_CHUNKS:
        return EncodedChange(_parts_of(entry, chunks), True, size_bytes)
    for length, digest in chunks:
        entry.content.chunks.add(length_bytes=length, digest=digest)
    return EncodedChange((_packed(entry, more=False),), True, size_bytes)


def removal(path: bytes) -> EncodedChange:
    """A path that no longer exists."""
    request = sv.PutEntriesRequest()
    set_path(request.changes.add().remove, path)
    return EncodedChange((request.SerializeToString(),), False, 0)


def _packed(entry: pb.Entry, *, more: bool) -> bytes:
    request = sv.PutEntriesRequest()
    request.changes.add(entry=entry, more=more)
    return request.SerializeToString()


def _parts_of(entry: pb.Entry, chunks: ChunkList) -> Iterator[bytes]:
    """The entry in parts: in each the same once more, so that a server may go by either, and the next of its chunks."""
    remaining, references, offset = len(chunks), iter(chunks), 0
    while remaining > 0:
        part = pb.Entry()
        part.CopyFrom(entry)
        if offset:
            part.continue_at_bytes = offset
        for length, digest in itertools.islice(references, PART_CHUNKS):
            part.content.chunks.add(length_bytes=length, digest=digest)
            offset += length
        remaining -= PART_CHUNKS
        yield _packed(part, more=remaining > 0)


def _one_chunk(data: bytes, content_id: bytes) -> Content:
    """The content of a file that is one chunk, or empty."""
    chunks = ChunkList()
    if data:
        chunks.append(len(data), content_id)
    return Content(chunks, len(data), content_id)


@dataclass(slots=True)
class Batch:
    """Steps in order, a few megabytes of them."""

    steps: list[Step] = field(default_factory=list)
    chunks: int = 0
    data_bytes: int = 0
    taken_over: int = 0
    """Entries that the backup takes over from the base: read, found the same, and not sent."""
    taken_over_bytes: int = 0
    """Bytes of files that were read and found the same."""
    is_point: bool = False
    """The server has to have all of it before more is read."""

    def is_full(self) -> bool:
        """Whether the batch has reached its limit of chunks, bytes, steps or entries taken over."""
        return (
            self.is_point
            or self.taken_over >= BATCH_STEPS
            or self.chunks >= BATCH_CHUNKS_MAX
            or self.data_bytes >= BATCH_BYTES
            or len(self.steps) >= BATCH_STEPS
        )


class Producer:
    """Turns differences into batches. Not thread-safe: one thread iterates over `batches`, and closes it.

    A separate thread cuts a large file, while the next piece is read and the previous one is hashed.
    """

    def __init__(
        self,
        differences: Iterable[Difference],
        cutter: Cutter,
        tally: BackupTally,
        clock: WallClock,
        earlier: Earlier,
    ) -> None:
        self._differences = differences
        self._cutter = cutter
        self._tally = tally
        self._clock = clock
        self._earlier = earlier
        self._names = OwnerNames()
        self._linked = LinkedFiles()
        # Two sets: removing the oldest key of a dictionary gets slower with every earlier removal.
        self._recent: set[bytes] = set()
        self._recent_before: set[bytes] = set()
        self._batch = Batch()
        self._since_point = self._bytes_since_point = 0
        """What was taken over since an entry was sent for that."""
        self._pool = Threads(1, thread_name_prefix="staddle-cut")
        fixed = tally.profile is Profile.FIXED
        self._profile = PROFILES_TO_WIRE[tally.profile]
        self._one_chunk_bytes = cutter.parameters.fixed_bytes if fixed else cutter.parameters.min_bytes

    def batches(self) -> Generator[Batch]:
        """All batches; the last one may be empty."""
        try:
            for each in to_send(self._differences, self._names, self._tally, self._takes_over):
                if isinstance(each, Removed):
                    self._batch.steps.append(removal(each.path))
                elif isinstance(each, Changed):
                    yield from self._changed(each)
                else:
                    self._add(each, ChunkList())
                if self._batch.is_full():
                    yield self._take_batch()
            yield self._take_batch()
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _take_batch(self) -> Batch:
        batch, self._batch = self._batch, Batch()
        return batch

    def _changed(self, changed: Changed) -> Iterator[Batch]:
        found = changed.found
        linked = self._linked.find(found)
        if linked is not None:
            self._add_linked(changed, *linked)
            return
        try:
            data = read_small(found, self._one_chunk_bytes)
            if data is None:
                if not (changed.known and (yield from self._is_as_known(changed))):
                    yield from self._file(changed)
            else:
                self._small(changed, data)
        except OSError as error:
            self._tally.failed(found.path, error)

    def _add(self, entry: pb.Entry, chunks: ChunkList) -> None:
        self._batch.steps.append(entry_step(entry, chunks))

    def _takes_over(self, changed: Changed, digest: bytes, size: int = 0) -> bool:
        """Whether the backup has the base's entry, because that is the same, and it need not be sent."""
        if not changed.known or changed.known != digest:
            return False
        self._since_point += 1
        self._bytes_since_point += size
        if self._since_point >= POINT_ENTRIES or self._bytes_since_point >= POINT_BYTES:
            self._since_point = self._bytes_since_point = 0
            self._batch.is_point = True
            return False
        self._batch.taken_over += 1
        self._batch.taken_over_bytes += size
        return True

    def _add_linked(self, changed: Changed, known: pb.Entry, content: Content) -> None:
        found = changed.found
        entry = pb.Entry()
        entry.CopyFrom(known)
        entry.ClearField("path")
        entry.ClearField("raw_path")
        set_path(entry, found.path)
        digest = self._digest_of(entry)
        changed.holds(found.stat, read_again=known.read_again, digest=digest)
        if not self._takes_over(changed, digest):  # its bytes were counted under the first name
            self._add(entry, content.chunks)

    def _digest_of(self, entry: pb.Entry) -> bytes:
        """The digest of a file's entry; empty if it has none."""
        row = row_of(entry)
        return b"" if row is None else digest_of(row, self._profile)

    def _small(self, changed: Changed, data: bytes) -> None:
        """Takes a small file that was read in one piece."""
        found = changed.found
        racy = is_racy(found.stat, found.seen_ns)
        content_id = self._read_id(data)
        row = small_file_row(found, self._names, content_id, read_again=racy)
        if row is not None:
            digest = digest_of(row, self._profile)
            changed.holds(found.stat, read_again=racy, digest=digest)
            if not self._takes_over(changed, digest, len(data)):
                self._take_small(data, content_id)
                self._batch.steps.append(row)
            return
        entry = entry_of(found, self._names, self._tally)
        if entry is not None:
            self._take_small(data, content_id)
            content = _one_chunk(data, content_id)
            self._set_content(entry, content, read_again=racy)
            self._add(entry, content.chunks)
            changed.holds(found.stat, read_again=racy)

    def _is_as_known(self, changed: Changed) -> Generator[Batch, None, bool]:
        """Reads a file that seems to be as the base has it, and sends none of it. Returns whether it is so; then it is dealt with.

        Raises OSError if it cannot be opened.
        """
        with open_file(changed.found, self._clock) as opened:
            entry = entry_of_file(changed.found, opened, self._names, self._tally)
            if entry is None or opened.racy:
                return False
            content = yield from self._content(changed.found.path, opened, send=False)
            if not opened.is_settled() or opened.size_is_wrong():
                return False
            add_holes(entry, opened.holes, content.size_bytes)
            self._set_content(entry, content, read_again=False)
            digest = self._digest_of(entry)
            if digest != changed.known:
                return False
            changed.holds(opened.status, read_again=False, digest=digest)
            self._linked.keep(opened, entry, content)
            if not self._takes_over(changed, digest, content.size_bytes):
                self._add(entry, content.chunks)  # which the base has
                self._batch.taken_over_bytes += content.size_bytes
            return True

    def _file(self, changed: Changed) -> Iterator[Batch]:
        with closing(captures(changed, self._clock, self._names, self._tally)) as readings:
            for reading in readings:
                content = yield from self._content(changed.found.path, reading.opened)
                if reading.counts():
                    entry = reading.entry
                    add_holes(entry, reading.opened.holes, content.size_bytes)
                    self._set_content(entry, content, read_again=reading.read_again)
                    if reading.settled:
                        self._linked.keep(reading.opened, entry, content)
                    reading.digest = self._digest_of(entry)
                    self._add(entry, content.chunks)

    def _set_content(self, entry: pb.Entry, content: Content, *, read_again: bool) -> None:
        """The content without its chunks."""
        entry.read_again = read_again
        own = entry.content
        own.size_bytes = content.size_bytes
        own.content_id = content.content_id
        own.profile = self._profile

    def _content(
        self, path: bytes, opened: FileReader, *, send: bool = True
    ) -> Generator[Batch, None, Content]:
        """Reads all of a file; its chunks become steps if they are to be sent."""
        if opened.status.st_size <= self._one_chunk_bytes and not opened.holes and not opened.unsized:
            # Without holes, all pieces are bytes.
            data = b"".join(cast("Iterator[bytes]", opened.pieces()))
            content_id = self._read_id(data)
            if send:
                self._take_small(data, content_id)
            return _one_chunk(data, content_id)
        chunker = self._chunker(path, opened.status.st_size)
        hasher, chunks = ContentHasher(), ChunkList()
        size = 0
        for cuts in self._cut(chunker, opened):
            size += sum(len(cut.data) for cut in cuts)
            done = hashed(cuts)
            for cut in done:
                hasher.add(len(cut.data), cut.digest)
                chunks.append(len(cut.data), cut.digest)
            if send:
                yield from self._take_cuts(done)
        return Content(chunks, size, hasher.content_id())

    def _chunker(self, path: bytes, size_bytes: int) -> Chunker:
        """What leaves the digests to this thread, except where they say how to cut."""
        if self._tally.profile is Profile.FIXED:
            return Chunker(self._cutter, fixed=True, hashes=False)
        chunks = self._earlier.chunks_of(path, size_bytes)
        expected = Expected(chunks, self._cutter.parameters) if chunks else None
        return Chunker(self._cutter, hashes=False, expected=expected)

    def _cut(self, chunker: Chunker, opened: FileReader) -> Iterator[list[Cut]]:
        """All chunks, piece by piece, not all with their digests. While a piece of a large file is cut, the next one is read."""
        cutting: Future[list[Cut]] | None = None
        for piece in opened.pieces():
            push: Callable[[], list[Cut]]
            if isinstance(piece, int):
                push = partial(chunker.push_zeros, piece)
            else:
                push = partial(chunker.push, piece)
                self._tally.read_bytes += len(piece)
            self._tally.watch()
            if opened.status.st_size <= READ_BYTES and not opened.unsized:
                yield push()  # to hand it over takes longer
                continue
            before, cutting = cutting, self._pool.submit(push)
            if before is not None:
                yield before.result()
        if cutting is not None:
            yield cutting.result()
        yield chunker.finish()

    def _read_id(self, data: bytes) -> bytes:
        """The content id of a file so small that it is one chunk, or none, wherever cuts may fall."""
        self._tally.read_bytes += len(data)
        return blake3(data).digest() if data else EMPTY_CONTENT_ID

    def _take_small(self, data: bytes, digest: bytes) -> None:
        """Make the chunk of such a file, if it has one, a step."""
        if not data:
            return
        if self._is_recent(digest):
            self._tally.reused_bytes += len(data)
        else:
            self._remember(digest)
            self._add_cut(Cut(digest, memoryview(data)))

    def _take_cuts(self, cuts: list[Cut]) -> Iterator[Batch]:
        wanted = []
        for cut in cuts:
            if self._is_recent(cut.digest):
                self._tally.reused_bytes += len(cut.data)
            else:
                self._remember(cut.digest)
                wanted.append(cut)
        # A chunk is a view of all that was read with it: where little of that is wanted, a copy lets the rest go.
        kept = {id(cut.data.obj): memoryview(cut.data.obj).nbytes for cut in wanted}
        sparse = 2 * sum(len(cut.data) for cut in wanted) < sum(kept.values())
        for cut in wanted:
            self._add_cut(Cut(cut.digest, memoryview(bytes(cut.data))) if sparse else cut)
            if self._batch.is_full():
                yield self._take_batch()

    def _add_cut(self, cut: Cut) -> None:
        self._batch.steps.append(cut)
        self._batch.chunks += 1
        self._batch.data_bytes += len(cut.data)

    def _is_recent(self, digest: bytes) -> bool:
        return digest in self._recent or digest in self._recent_before

    def _remember(self, digest: bytes) -> None:
        if len(self._recent) >= RECENT_MAX:
            self._recent, self._recent_before = set(), self._recent
        self._recent.add(digest)
