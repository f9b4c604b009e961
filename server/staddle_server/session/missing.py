"""Chunks that an upload's entries refer to and that have not come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from staddle_server.errors import BadRequest
from staddle_server.limits import MISSING_CHUNKS_MAX
from staddle_server.types import ChunkRef


class Missing(Mapping[bytes, int]):
    """The length of each, as entries said it; of one upload, under its writer's lock."""

    def __init__(self, known: Mapping[bytes, int]) -> None:
        self._lengths = dict(known)

    def __getitem__(self, digest: bytes) -> int:
        return self._lengths[digest]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._lengths)

    def __len__(self) -> int:
        return len(self._lengths)

    def expect(self, refs: Iterable[ChunkRef]) -> None:
        """Entries refer to these, and they are not there: all are waited for, or none.

        Raises:
            BadRequest: BAD_FIELD, there are too many, or a chunk was said to have another length.

        """
        more: dict[bytes, int] = {}
        for ref in refs:
            said = self._lengths.get(ref.digest) or more.setdefault(ref.digest, ref.length)
            # The chunk can only have one length: the other entry would be a file that nobody can restore.
            _check_length(ref, said)
        if more and len(self._lengths) + len(more) > MISSING_CHUNKS_MAX:
            raise BadRequest(
                "BAD_FIELD",
                f"over {MISSING_CHUNKS_MAX} chunks are referred to and not there; send chunks before the entries",
                field="content.chunks",
            )
        self._lengths.update(more)

    def only(self, lengths: Mapping[bytes, int]) -> None:
        """These are waited for and no others: as many of them as may be."""
        self._lengths = dict(islice(lengths.items(), MISSING_CHUNKS_MAX))

    def check(self, refs: Iterable[ChunkRef]) -> None:
        """Whether these may be the chunks that entries wait for.

        Raises:
            BadRequest: BAD_FIELD, an entry said another length.

        """
        for ref in refs:
            _check_length(ref, self._lengths.get(ref.digest, ref.length))

    def arrived(self, refs: Iterable[ChunkRef]) -> None:
        """These are there now; they were checked."""
        for ref in refs:
            self._lengths.pop(ref.digest, None)


def _check_length(ref: ChunkRef, said: int) -> None:
    if said != ref.length:
        raise BadRequest(
            "BAD_FIELD",
            f"an entry refers to chunk {ref.digest.hex()} with {said} bytes, which cannot have {ref.length} too",
            field="content.chunks",
        )
