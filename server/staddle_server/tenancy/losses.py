"""What a backup refers to without an intact copy in the catalog: the one test of whether a backup is
complete.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import Final, NamedTuple

from staddle_server.base.errors import Damaged
from staddle_server.base.types import ChunkPlace, ChunkRef, Content, Entry, Role, Root
from staddle_server.manifest.content import lists_of
from staddle_server.manifest.cursor import PAGES_KEPT
from staddle_server.manifest.read import Gap, Manifest, ReadablePage
from staddle_server.tenancy.chunk_reader import ChunkReader

LISTED_CHUNKS_AT_ONCE: Final = 1024
"""Chunks of a long list that are looked up together, at least."""


class LostChunk(NamedTuple):
    """A chunk without an intact copy.

    Attributes:
        ref: Its digest and length; 0 for a page of the manifest, whose length is stated nowhere.
        places: The places of its damaged copies, if any.
        wrong: Why an intact chunk with this digest does not count: it has another length. Else empty.

    """

    ref: ChunkRef
    places: list[ChunkPlace]
    wrong: str = ""


_Lost = dict[ChunkRef, LostChunk]


class Loss(NamedTuple):
    """A lost part of a manifest. Several consecutive losses may belong to the same entry.

    Attributes:
        where: The entry that needs it; the gap of an unreadable page; None: a page with known damage that was
            readable.
        data: Lost chunks of the entry's content.
        manifest: The lost chunk of the entry's attributes, or the page.
        message: Why the page or the entry's list of chunks is unreadable, or that a chunk's length differs
            from the entry's; else empty.

    """

    where: Entry | Gap | None
    data: list[LostChunk]
    manifest: list[LostChunk]
    message: str = ""


class Losses:
    """Walks manifests and looks up their references. Reads pages and lists of chunks, no data.

    Not thread-safe.

    Attributes:
        chunks: Lookups so far; a chunk that several pages name counts for each.

    """

    def __init__(
        self, reader: ChunkReader, *, share: bool = False, tick: Callable[[], None] = lambda: None
    ) -> None:
        """`share`: remember what is intact, so that pages shared by several manifests are read once.

        `tick` is called every few pages, and may raise to stop the walk.
        """
        self.chunks = 0
        self._reader = reader
        self._share = share
        self._tick = tick
        self._whole: set[bytes] = set()
        """Places of intact pages and list chunks, with everything below. Pages are remembered only with
        `share`.
        """

    def is_whole(self, root: Root) -> bool:
        """Return whether a manifest is intact. Raises Unavailable if the store does not answer."""
        return next(self.of(root), None) is None

    def is_content_whole(self, entry: Entry) -> bool:
        """Return whether an entry's content is intact, without its attributes."""
        return next(self._of_content(entry), None) is None

    def of(self, root: Root, *, after: bytes | None = None) -> Iterator[Loss]:
        """Yield all losses of a manifest in entry order, with `after` only those after that path."""
        share = self._share and after is None
        index_pages: list[bytes] = []
        whole = True
        pages = Manifest(root, self._reader).pages(after=after, skip=self._whole.__contains__)
        # The reader counts the memory of this many decoded pages.
        while batch := list(islice(pages, PAGES_KEPT)):
            batch_whole = True
            for loss in self._of_pages(batch):
                whole = batch_whole = False
                yield loss
            if share:
                opened = [page for page in batch if isinstance(page, ReadablePage)]
                index_pages += [page.place for page in opened if not page.entries]
                if batch_whole:
                    self._whole.update(page.place for page in opened if page.entries)
            self._tick()
        if whole:
            self._whole.update(index_pages)

    def _of_content(self, entry: Entry) -> Iterator[Loss]:
        content = entry.content
        if content is None:
            return
        lost = self._look_up(Role.DATA, content.chunks)
        if lost:
            yield _loss(entry, lost.values())
        yield from self._of_list(entry, content)

    def _of_pages(self, batch: list[ReadablePage | Gap]) -> Iterator[Loss]:
        pages = [page for page in batch if isinstance(page, ReadablePage)]
        entries = [entry for page in pages for entry in page.entries]
        data = self._look_up(
            Role.DATA, [ref for entry in entries if entry.content is not None for ref in entry.content.chunks]
        )
        attributes = [entry.attributes_ref for entry in entries if entry.attributes_ref is not None]
        manifest = self._look_up(Role.MANIFEST, [*(ChunkRef(0, page.digest) for page in pages), *attributes])
        for each in batch:
            if isinstance(each, Gap):
                yield Loss(each, [], [], each.message)
                continue
            if (page := manifest.get(ChunkRef(0, each.digest))) is not None:
                yield Loss(None, [], [page])
            for entry in each.entries:
                yield from self._of_entry(entry, data, manifest)

    def _of_entry(self, entry: Entry, data: _Lost, manifest: _Lost) -> Iterator[Loss]:
        """Yield the losses of an entry; `data` and `manifest` have those of the chunks that it
        names itself.
        """
        content, attributes = entry.content, entry.attributes_ref
        refs = () if content is None else content.chunks
        own = [data[ref] for ref in refs if ref in data]
        large = [manifest[attributes]] if attributes and attributes in manifest else []
        if own or large:
            yield _loss(entry, own, large)
        if content is not None:
            yield from self._of_list(entry, content)

    def _of_list(self, entry: Entry, content: Content) -> Iterator[Loss]:
        """Yield the losses of the chunks in an entry's list of chunks."""
        walked: set[bytes] = set()
        whole = True
        try:
            for refs in self._listed(content, walked):
                if lost := self._look_up(Role.DATA, refs):
                    whole = False
                    yield _loss(entry, lost.values())
        except Damaged as e:
            yield Loss(entry, [], [], e.message)
            return
        if whole and self._share:
            self._whole |= walked

    def _listed(self, content: Content, walked: set[bytes]) -> Iterator[list[ChunkRef]]:
        """Yield the chunks of a list in batches; what is read is added to `walked`, and not read again.

        Raises:
            Damaged: After everything readable.

        """
        refs: list[ChunkRef] = []
        try:
            known = self._whole
            for place, more in lists_of(
                content, self._reader, lambda place: place in walked or place in known
            ):
                walked.add(place)
                refs += more
                if len(refs) >= LISTED_CHUNKS_AT_ONCE:
                    yield refs
                    refs = []
        except Damaged:
            yield refs
            raise
        yield refs

    def _look_up(self, role: Role, refs: Collection[ChunkRef]) -> _Lost:
        """Return which of the chunks have no intact copy of their length."""
        wanted = dict.fromkeys(refs)
        if not wanted:
            return {}
        self.chunks += len(wanted)
        sound = self._reader.sound(role, {ref.digest for ref in wanted})
        lost = [ref for ref in wanted if not _fits(ref, sound.get(ref.digest))]
        absent = {ref.digest for ref in lost if ref.digest not in sound}
        places = self._reader.locate(role, absent) if absent else {}
        return {
            ref: LostChunk(ref, places.get(ref.digest, []), _wrong(ref, sound.get(ref.digest)))
            for ref in lost
        }


def _fits(ref: ChunkRef, length: int | None) -> bool:
    """Return whether an intact chunk of this length matches the reference; None for no chunk."""
    return length is not None and ref.length in (0, length)


def _wrong(ref: ChunkRef, length: int | None) -> str:
    return "" if length is None else f"chunk {ref.digest.hex()} has {length} bytes instead of {ref.length}"


def _loss(entry: Entry, data: Collection[LostChunk], manifest: Collection[LostChunk] = ()) -> Loss:
    message = next((chunk.wrong for chunk in (*manifest, *data) if chunk.wrong), "")
    return Loss(
        entry,
        [chunk for chunk in data if not chunk.wrong],
        [chunk for chunk in manifest if not chunk.wrong],
        message,
    )
