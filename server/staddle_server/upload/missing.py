"""Chunks that an upload's entries refer to and that have not come."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from struct import Struct
from typing import Final, NamedTuple

from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import MISSING_CHUNKS_MAX
from staddle_server.base.types import ChunkRef

DIGEST_BYTES: Final = 32
_ITEM: Final = Struct(f"<{DIGEST_BYTES}sI")
RECENT_MAX: Final = 4096
"""So many changes are kept as objects before they are packed."""


class MissingChange(NamedTuple):
    """What a publication adds to the missing chunks, and takes from them."""

    added: Mapping[bytes, int]
    removed: Iterable[bytes]


class Missing(Mapping[bytes, int]):
    """The length of each, as entries said it; of one upload, under its writer's lock.

    Packed, 36 bytes each, in order of digest: as objects, tens of thousands of them would take 11 MiB for as long as the upload is
    open.
    """

    def __init__(self, known: Iterable[tuple[bytes, int]]) -> None:
        self._packed = b"".join(_ITEM.pack(*item) for item in sorted(known))
        self._recent: dict[bytes, int] = {}
        """Lengths that differ from what is packed; 0: it is not missing any more."""
        self._count = len(self._packed) // _ITEM.size
        self._unpublished: dict[bytes, int] = {}
        """The same against what is published."""

    def __getitem__(self, digest: bytes) -> int:
        length = self._recent.get(digest)
        if length is None:
            length = self._find(digest)
        if not length:
            raise KeyError(digest)
        return length

    def _find(self, digest: bytes) -> int:
        count = len(self._packed) // _ITEM.size
        at = bisect_left(range(count), digest, key=self._digest)
        if at == count:
            return 0
        found, length = _ITEM.unpack_from(self._packed, at * _ITEM.size)
        return int(length) if found == digest else 0

    def _digest(self, at: int) -> bytes:
        start = at * _ITEM.size
        return self._packed[start : start + DIGEST_BYTES]

    def __iter__(self) -> Iterator[bytes]:
        return (digest for digest, _ in self._items())

    def __len__(self) -> int:
        return self._count

    def _items(self) -> Iterator[tuple[bytes, int]]:
        recent = self._recent
        packed = (item for item in _ITEM.iter_unpack(self._packed) if item[0] not in recent)
        return chain(packed, ((digest, length) for digest, length in recent.items() if length))

    def _set(self, digest: bytes, length: int) -> None:
        """From now on this is missing with this length; 0: it is not."""
        before = self.get(digest, 0)
        if before == length:
            return
        self._recent[digest] = self._unpublished[digest] = length
        self._count += (length > 0) - (before > 0)
        if len(self._recent) > RECENT_MAX:
            self._packed = b"".join(_ITEM.pack(*item) for item in sorted(self._items()))
            self._recent = {}

    def take_change(self) -> MissingChange:
        """What has changed since this was last asked: what the next publication makes durable."""
        changed, self._unpublished = self._unpublished, {}
        added = {digest: length for digest, length in changed.items() if length}
        return MissingChange(added, [digest for digest, length in changed.items() if not length])

    def expect(self, refs: Iterable[ChunkRef]) -> None:
        """Entries refer to these, and they are not there: all are waited for, or none.

        Raises:
            BadRequest: BAD_FIELD, there are too many, or a chunk was said to have another length.

        """
        more: dict[bytes, int] = {}
        for ref in refs:
            said = self.get(ref.digest) or more.setdefault(ref.digest, ref.length)
            # The chunk can only have one length: the other entry would be a file that nobody can restore.
            _check_length(ref, said)
        if more and len(self) + len(more) > MISSING_CHUNKS_MAX:
            raise BadRequest(
                "BAD_FIELD",
                f"over {MISSING_CHUNKS_MAX} chunks are referred to and not there; send chunks before the entries",
                field="content.chunks",
            )
        for digest, length in more.items():
            self._set(digest, length)

    def only(self, lengths: Mapping[bytes, int]) -> None:
        """These are waited for and no others: as many of them as may be."""
        wanted = dict(islice(lengths.items(), MISSING_CHUNKS_MAX))
        for digest in [digest for digest in self if digest not in wanted]:
            self._set(digest, 0)
        for digest, length in wanted.items():
            self._set(digest, length)

    def check(self, refs: Iterable[ChunkRef]) -> None:
        """Whether these may be the chunks that entries wait for.

        Raises:
            BadRequest: BAD_FIELD, an entry said another length.

        """
        for ref in refs:
            _check_length(ref, self.get(ref.digest, ref.length))

    def arrived(self, refs: Iterable[ChunkRef]) -> None:
        """These are there now; they were checked."""
        for ref in refs:
            self._set(ref.digest, 0)


def _check_length(ref: ChunkRef, said: int) -> None:
    if said != ref.length:
        raise BadRequest(
            "BAD_FIELD",
            f"an entry refers to chunk {ref.digest.hex()} with {said} bytes, which cannot have {ref.length} too",
            field="content.chunks",
        )
