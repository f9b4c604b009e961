"""Chunks that an upload's entries refer to and that have not arrived."""

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
"""Changes kept as objects before they are packed."""


class MissingChange(NamedTuple):
    """What a publication adds to the missing chunks, and removes from them."""

    added: Mapping[bytes, int]
    removed: Iterable[bytes]


class Missing(Mapping[bytes, int]):
    """The missing chunks of one upload, with the lengths that entries stated; under its writer's lock.

    Packed, 36 bytes each, in order of digest: as objects, tens of thousands would take 11 MiB as long as the
    upload is open.
    """

    def __init__(self, known: Iterable[tuple[bytes, int]]) -> None:
        self._packed = b"".join(_ITEM.pack(*item) for item in sorted(known))
        self._recent: dict[bytes, int] = {}
        """Lengths that differ from the packed ones; 0 for no longer missing."""
        self._count = len(self._packed) // _ITEM.size
        self._unpublished: dict[bytes, int] = {}
        """The same compared with what is published."""

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
        """Mark a digest as missing with this length; 0: no longer missing."""
        before = self.get(digest, 0)
        if before == length:
            return
        self._recent[digest] = self._unpublished[digest] = length
        self._count += (length > 0) - (before > 0)
        if len(self._recent) > RECENT_MAX:
            self._packed = b"".join(_ITEM.pack(*item) for item in sorted(self._items()))
            self._recent = {}

    def take_change(self) -> MissingChange:
        """Return the changes since the last call: what the next publication makes durable."""
        changed, self._unpublished = self._unpublished, {}
        added = {digest: length for digest, length in changed.items() if length}
        return MissingChange(added, [digest for digest, length in changed.items() if not length])

    def expect(self, refs: Iterable[ChunkRef]) -> None:
        """Add missing chunks that entries refer to, all or none.

        Raises:
            BadRequest: BAD_FIELD, too many, or a chunk stated with another length earlier.

        """
        more: dict[bytes, int] = {}
        for ref in refs:
            said = self.get(ref.digest) or more.setdefault(ref.digest, ref.length)
            # A chunk has only one length: the other entry could never be restored.
            _check_length(ref, said)
        if more and len(self) + len(more) > MISSING_CHUNKS_MAX:
            raise BadRequest(
                "BAD_FIELD",
                f"more than {MISSING_CHUNKS_MAX} chunks are referred to and missing; send chunks before the entries",
                field="content.chunks",
            )
        for digest, length in more.items():
            self._set(digest, length)

    def only(self, lengths: Mapping[bytes, int]) -> None:
        """Replace the missing chunks by these, up to the limit."""
        wanted = dict(islice(lengths.items(), MISSING_CHUNKS_MAX))
        for digest in [digest for digest in self if digest not in wanted]:
            self._set(digest, 0)
        for digest, length in wanted.items():
            self._set(digest, length)

    def check(self, refs: Iterable[ChunkRef]) -> None:
        """Check that these match the chunks that entries wait for.

        Raises:
            BadRequest: BAD_FIELD, an entry stated another length.

        """
        for ref in refs:
            _check_length(ref, self.get(ref.digest, ref.length))

    def arrived(self, refs: Iterable[ChunkRef]) -> None:
        """Remove chunks that arrived and were verified."""
        for ref in refs:
            self._set(ref.digest, 0)


def _check_length(ref: ChunkRef, said: int) -> None:
    if said != ref.length:
        raise BadRequest(
            "BAD_FIELD",
            f"an entry refers to chunk {ref.digest.hex()} with {said} bytes, so it cannot also have {ref.length}",
            field="content.chunks",
        )
