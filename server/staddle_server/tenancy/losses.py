"""What a backup refers to and no sound copy holds, by what the catalog knows: the one answer to whether a backup is whole."""

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
    """A chunk without a sound copy.

    Attributes:
        ref: Its digest and length; a page of the manifest has length 0 here, since nothing states its length.
        places: Where its damaged copies lie, if there are any.
        wrong: Why a sound chunk with this digest is not this one: it has another length. Else empty.

    """

    ref: ChunkRef
    places: list[ChunkPlace]
    wrong: str = ""


_Lost = dict[ChunkRef, LostChunk]


class Loss(NamedTuple):
    """Something of a manifest that is lost. Several losses in a row may belong to the same entry.

    Attributes:
        where: The entry that needs it; the gap that an unreadable page leaves; None: a page that is known to be damaged, but could be read.
        data: Lost chunks of the entry's content.
        manifest: The lost chunk of the entry's attributes, or the page.
        message: Why the page, or the entry's list of chunks, cannot be read, or that a chunk has another length than the entry says;
            else empty.

    """

    where: Entry | Gap | None
    data: list[LostChunk]
    manifest: list[LostChunk]
    message: str = ""


class Losses:
    """Walks manifests and looks up what they refer to. Reads pages and lists of chunks, no data. Not thread-safe.

    Attributes:
        chunks: Look-ups so far; a chunk that several pages name counts for each.

    """

    def __init__(
        self, reader: ChunkReader, *, share: bool = False, tick: Callable[[], None] = lambda: None
    ) -> None:
        """`share`: remembers what is whole, so that pages that several manifests share are read once.

        `tick` is called every few pages, and may raise to stop the walk.
        """
        self.chunks = 0
        self._reader = reader
        self._share = share
        self._tick = tick
        self._whole: set[bytes] = set()
        """Places of pages and list chunks of which nothing is lost, and nothing below them. Pages are remembered only with `share`."""

    def is_whole(self, root: Root) -> bool:
        """Whether nothing of a manifest is lost. Raises Unavailable where the store does not answer."""
        return next(self.of(root), None) is None

    def is_content_whole(self, entry: Entry) -> bool:
        """Whether nothing of an entry's content is lost; its attributes do not matter."""
        return next(self._of_content(entry), None) is None

    def of(self, root: Root, *, after: bytes | None = None) -> Iterator[Loss]:
        """All losses of a manifest in the order of its entries; with `after`, only those behind that path."""
        share = self._share and after is None
        index_pages: list[bytes] = []
        whole = True
        pages = Manifest(root, self._reader).pages(after=after, skip=self._whole.__contains__)
        # The reader counts the memory of so many decoded pages.
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
        """The losses of an entry; `data` and `manifest` have those of the chunks that it names itself."""
        content, attributes = entry.content, entry.attributes_ref
        refs = () if content is None else content.chunks
        own = [data[ref] for ref in refs if ref in data]
        large = [manifest[attributes]] if attributes and attributes in manifest else []
        if own or large:
            yield _loss(entry, own, large)
        if content is not None:
            yield from self._of_list(entry, content)

    def _of_list(self, entry: Entry, content: Content) -> Iterator[Loss]:
        """The losses of the chunks that an entry's list of chunks names."""
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
        """The chunks of a list, some at a time; what was read is added to `walked`, and not read again.

        Raises:
            Damaged: behind all that can be read.

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
        """Those of the chunks without a sound copy of their length."""
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
    """Whether a sound chunk of this length is the one that is meant; None: there is none."""
    return length is not None and ref.length in (0, length)


def _wrong(ref: ChunkRef, length: int | None) -> str:
    return (
        "" if length is None else f"chunk {ref.digest.hex()} has {length} bytes where {ref.length} should be"
    )


def _loss(entry: Entry, data: Collection[LostChunk], manifest: Collection[LostChunk] = ()) -> Loss:
    message = next((chunk.wrong for chunk in (*manifest, *data) if chunk.wrong), "")
    return Loss(
        entry,
        [chunk for chunk in data if not chunk.wrong],
        [chunk for chunk in manifest if not chunk.wrong],
        message,
    )
