"""The first half of the source-side path: what changed, read, cut and hashed, in batches that are sent one after another."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple, cast

from blake3 import blake3

from staddle._base import BaseEntry, Changed, ChunkList, Removed
from staddle._gather import (
    Content,
    LinkedFiles,
    Tally,
    add_holes,
    entry_of_file,
    entry_without_content,
)
from staddle._metadata import Names, set_path
from staddle._reading import OpenFile, open_file
from staddle._scan import Clock, Found, reason_of
from staddle._types import Profile
from staddle.chunking import EMPTY_CONTENT_ID, Chunker, ContentHasher, Cut, Cutter
from staddle.v1 import resources_pb2 as pb

BATCH_CHUNKS_MAX: Final = 4_096
BATCH_BYTES: Final = 4 * 1024 * 1024
BATCH_STEPS: Final = 4_096
RECENT_MAX: Final = 65_536
"""So many digests are remembered as known to the server, and not asked for again."""
BASE_KNOWN_MAX: Final = 65_536
"""A file of the base with more chunks than that is asked for like any other."""
PROFILES: Final = {
    Profile.CONTENT_DEFINED: pb.CHUNKER_PROFILE_CONTENT_DEFINED,
    Profile.FIXED: pb.CHUNKER_PROFILE_FIXED,
}


class EntryStep(NamedTuple):
    """An entry whose chunks have all been steps before, or are known to the server. `chunks` go into its content."""

    entry: pb.Entry
    chunks: ChunkList | None
    size_bytes: int


Step = Cut | EntryStep | pb.Remove
"""What to send, in order. Of the chunks only those that the server does not have."""


@dataclass(slots=True)
class Batch:
    """Steps in order, a few megabytes of them."""

    steps: list[Step] = field(default_factory=list)
    chunks: int = 0
    data_bytes: int = 0

    def is_full(self) -> bool:
        return (
            self.chunks >= BATCH_CHUNKS_MAX
            or self.data_bytes >= BATCH_BYTES
            or len(self.steps) >= BATCH_STEPS
        )


class Producer:
    """Turns differences into batches. Not thread-safe: one thread draws from `batches`."""

    def __init__(
        self, differences: Iterable[Changed | Removed], cutter: Cutter, tally: Tally, clock: Clock
    ) -> None:
        self._differences = differences
        self._cutter = cutter
        self._tally = tally
        self._clock = clock
        self._names = Names()
        self._linked = LinkedFiles()
        self._recent: dict[bytes, None] = {}
        self._batch = Batch()
        fixed = tally.profile is Profile.FIXED
        self._one_chunk_bytes = cutter.parameters.fixed_bytes if fixed else cutter.parameters.min_bytes

    def batches(self) -> Iterator[Batch]:
        """All batches; the last one may be empty."""
        for difference in self._differences:
            if isinstance(difference, Removed):
                remove = pb.Remove()
                set_path(remove, difference.path)
                self._batch.steps.append(remove)
            else:
                self._tally.path = difference.found.path
                yield from self._changed(difference.found, difference.base)
            if self._batch.is_full():
                yield self._take_batch()
        yield self._take_batch()

    def _take_batch(self) -> Batch:
        batch, self._batch = self._batch, Batch()
        return batch

    def _changed(self, found: Found, base: BaseEntry | None) -> Iterator[Batch]:
        if not found.is_file():
            entry = entry_without_content(found, self._names, self._tally)
            if entry is not None:
                self._batch.steps.append(EntryStep(entry, None, 0))
            elif base is not None:
                self._remove(found.path)
            return
        linked = self._linked.find(found)
        if linked is not None:
            self._add_linked(found, *linked)
            return
        try:
            yield from self._file(found, base)
        except OSError as error:
            self._tally.unreadable(found.path, reason_of(error))
            if base is not None:
                self._remove(found.path)

    def _remove(self, path: bytes) -> None:
        remove = pb.Remove()
        set_path(remove, path)
        self._batch.steps.append(remove)

    def _add_linked(self, found: Found, known: pb.Entry, content: Content) -> None:
        entry = pb.Entry()
        entry.CopyFrom(known)
        entry.ClearField("path")
        entry.ClearField("path_bytes")
        set_path(entry, found.path)
        self._batch.steps.append(EntryStep(entry, content.chunks, content.size_bytes))

    def _file(self, found: Found, base: BaseEntry | None) -> Iterator[Batch]:
        """Reads a file; once more if it changed meanwhile, and then takes it as it is."""
        for last in (False, True):
            with open_file(found, self._clock) as opened:
                entry = entry_of_file(found, opened, self._names, self._tally)
                if entry is None:
                    return
                content = yield from self._content(opened, base)
                settled = opened.is_settled()
                if settled or last:
                    add_holes(entry, opened.holes, content.size_bytes)
                    self._finish_file(entry, content, settled=settled, racy=opened.racy)
                    if settled:
                        self._linked.keep(opened, entry, content)
                    else:
                        self._tally.kept_changing(found.path)
                    return

    def _finish_file(self, entry: pb.Entry, content: Content, *, settled: bool, racy: bool) -> None:
        entry.read_again = racy or not settled
        entry.content.size_bytes = content.size_bytes
        entry.content.content_id = content.content_id
        entry.content.profile = PROFILES[self._tally.profile]
        self._batch.steps.append(EntryStep(entry, content.chunks, content.size_bytes))

    def _content(self, opened: OpenFile, base: BaseEntry | None) -> Generator[Batch, None, Content]:
        if opened.status.st_size <= self._one_chunk_bytes and not opened.holes:
            return (yield from self._one_chunk(opened, base))
        before = [] if base is None else base.chunks.first()
        known = {digest for _, digest in before} if len(before) <= BASE_KNOWN_MAX else set()
        chunker = Chunker(self._cutter, fixed=self._tally.profile is Profile.FIXED)
        hasher, chunks = ContentHasher(), ChunkList()
        size = 0
        for piece in opened.pieces():
            if isinstance(piece, int):
                cuts = chunker.push_zeros(piece)
                size += piece
            else:
                cuts = chunker.push(piece)
                size += len(piece)
                self._tally.read_bytes += len(piece)
            self._tally.watch()
            yield from self._cuts(cuts, hasher, chunks, known)
        yield from self._cuts(chunker.finish(), hasher, chunks, known)
        return Content(chunks, size, hasher.content_id())

    def _one_chunk(self, opened: OpenFile, base: BaseEntry | None) -> Generator[Batch, None, Content]:
        """A file so small that it is one chunk, or none, wherever cuts may fall."""
        data = b"".join(cast("Iterator[bytes]", opened.pieces()))  # there are no holes
        chunks = ChunkList()
        if not data:
            return Content(chunks, 0, EMPTY_CONTENT_ID)
        digest = blake3(data).digest()
        chunks.append(len(data), digest)
        self._tally.read_bytes += len(data)
        if digest in self._recent or (base is not None and (len(data), digest) in base.chunks.first()):
            self._tally.reused_bytes += len(data)
        else:
            self._remember(digest)
            self._add_cut(Cut(digest, memoryview(data)))
            if self._batch.is_full():
                yield self._take_batch()
        return Content(chunks, len(data), digest)

    def _cuts(
        self, cuts: list[Cut], hasher: ContentHasher, chunks: ChunkList, known: set[bytes]
    ) -> Iterator[Batch]:
        wanted = []
        for cut in cuts:
            length = len(cut.data)
            hasher.add(length, cut.digest)
            chunks.append(length, cut.digest)
            if cut.digest in known or cut.digest in self._recent:
                self._tally.reused_bytes += length
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

    def _remember(self, digest: bytes) -> None:
        if len(self._recent) >= RECENT_MAX:
            del self._recent[next(iter(self._recent))]
        self._recent[digest] = None
