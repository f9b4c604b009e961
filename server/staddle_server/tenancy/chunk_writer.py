"""The path of chunks into packs: looked up, gathered into segments, compressed in parallel, appended in
order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Final

from blake3 import blake3

from staddle_server.base.errors import BadRequest
from staddle_server.base.limits import (
    CHUNKS_PER_CALL_MAX,
    MANIFEST_SEGMENT_RAW_BYTES_TARGET,
    MIB,
    SEGMENT_RAW_BYTES_TARGET,
)
from staddle_server.base.recent import Recent
from staddle_server.base.types import ChunkRef, PackSummary, Role
from staddle_server.catalog import Catalog, Claimed, Upload
from staddle_server.store.blobs import Buffer, compact
from staddle_server.store.frame import compress
from staddle_server.store.pack_writer import PackWriter
from staddle_server.tenancy.pack_presence import Presence
from staddle_server.tenancy.tenant import Tenant

Compressed = tuple[int, Buffer]

LOOK_UP_BYTES: Final = {Role.DATA: 1 * MIB, Role.MANIFEST: MANIFEST_SEGMENT_RAW_BYTES_TARGET}
SEGMENT_BYTES: Final = {Role.DATA: SEGMENT_RAW_BYTES_TARGET, Role.MANIFEST: MANIFEST_SEGMENT_RAW_BYTES_TARGET}
COMPRESSING_MAX: Final = 1
"""Segments compressed at once, for one upload."""
KNOWN_MAX: Final = 8_192
"""Chunks that an upload remembers as stored, at least; at most twice as many."""


_CHUNK_BYTES: Final = 512
"""A chunk's overhead beside its bytes: in its pack's footer, and twice in the catalog, whose log comes first.
"""


def _key(role: Role, digest: bytes) -> bytes:
    """Return a chunk's key among all roles.

    For data it is the digest: an upload holds thousands, and pairs take more memory.
    """
    return digest if role is Role.DATA else bytes([role]) + digest


class ChunkSink:
    """Takes one upload's chunks, and stores each of them once, and claimed.

    Not thread-safe: the upload's writer holds its lock around every call. A chunk becomes durable only when
    its pack is published.
    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        *,
        upload: Upload,
        presence: Presence,
        since_s: float,
        compressors: Executor,
        begin_pack: Callable[[], PackWriter],
        finish_pack: Callable[[PackWriter], Future[PackSummary]],
    ) -> None:
        """The sink checks the existence of packs last seen before `since_s` (monotonic) again."""
        self._tenant = tenant
        self._catalog = catalog
        self._upload = upload.id
        self._epoch = upload.epoch
        self._presence = presence
        self._since_s = since_s
        self.damage_epoch = upload.damage_epoch
        """Damage found later is unknown here."""
        self._relies = bool(upload.durable)
        """Whether the upload may rely on packs that were published."""
        self._compressors = compressors
        self._begin_pack = begin_pack
        self._finish_pack = finish_pack
        self._pack: PackWriter | None = None
        self._finished: list[Future[PackSummary]] = []
        """Full packs, sealed or about to be."""
        self._asking: dict[Role, dict[bytes, bytes | memoryview]] = {role: {} for role in Role}
        self._asking_bytes = dict.fromkeys(Role, 0)
        self._table: dict[Role, list[ChunkRef]] = {role: [] for role in Role}
        self._segment: dict[Role, bytearray] = {role: bytearray() for role in Role}
        """The chunks in the table, concatenated: copies, because a view would keep the whole message alive.
        """
        self._compressing: deque[tuple[Role, list[ChunkRef], int, Future[Compressed]]] = deque()
        self._compressing_bytes = 0
        self._unpublished: dict[bytes, int] = {}
        """The length of each chunk in a pack that is not published yet."""
        self._known: Recent[bytes, int] = Recent(KNOWN_MAX)
        """Stored chunks and their lengths: recently written or looked up."""
        self._announced: set[bytes] = set()
        """Missing data chunks that were looked up and have not arrived: no second lookup when they do."""

    # ------------------------------------------------------------------ what is stored

    @property
    def full(self) -> bool:
        """Whether a full pack waits to be published."""
        return bool(self._finished)

    @property
    def dirty(self) -> bool:
        """Whether anything taken is not in a published pack."""
        return bool(self._unpublished)

    @property
    def unwritten_bytes(self) -> int:
        """Bytes taken and not yet in a file, with their tables, footers and catalog rows.

        Callable from any thread.
        """
        waiting = sum(self._asking_bytes.values()) + sum(map(len, self._segment.values()))
        return waiting + self._compressing_bytes + len(self._unpublished) * _CHUNK_BYTES

    def present(self, role: Role, digests: Sequence[bytes]) -> dict[bytes, int]:
        """Return the lengths of existing chunks; they are claimed for the upload, and stay.

        The first claim on a pack checks that its object exists; if not, its chunks are stored again: a stream
        sends its bytes only once.
        """
        return self._present({role: digests})[role]

    def _present(self, wanted: Mapping[Role, Iterable[bytes]]) -> dict[Role, dict[bytes, int]]:
        while True:
            here: dict[Role, dict[bytes, int]] = {role: {} for role in wanted}
            ask: dict[bytes, tuple[Role, bytes]] = {}
            remembered = False
            for role, digests in wanted.items():
                for digest in digests:
                    length = self._taken(role, digest)
                    if length is None and (length := self._known.get(_key(role, digest))) is not None:
                        remembered = True
                    if length is None:
                        ask[self._tenant.chunk_id(role, digest)] = (role, digest)
                    else:
                        here[role][digest] = length
            damage_epochs = []
            asked = list(ask)
            for start in range(0, len(asked), CHUNKS_PER_CALL_MAX):
                claimed = self._claim(asked[start : start + CHUNKS_PER_CALL_MAX])
                damage_epochs.append(claimed.damage_epoch)
                for chunk_id, place in claimed.places.items():
                    role, digest = ask[chunk_id]
                    here[role][digest] = place.length
                    self._known.put(_key(role, digest), place.length)
            if remembered and not damage_epochs:
                damage_epochs.append(self._catalog.packs.damage_epoch(self._tenant.id))
            if not any(self._heed(epoch) for epoch in damage_epochs):
                return here

    def _claim(self, chunk_ids: Sequence[bytes]) -> Claimed:
        while True:
            claimed = self._catalog.chunks.claim(self._tenant.id, self._upload, self._epoch, chunk_ids)
            self._relies = self._relies or bool(claimed.places)
            if not self._lost({place.segment.pack for place in claimed.places.values()}):
                return claimed

    def _lost(self, packs: Iterable[bytes]) -> bool:
        """Return whether a pack is gone; then every chunk looked up earlier counts as unknown."""
        lost = bool(self._presence.lost(self._tenant, packs, self._since_s))
        if lost:
            self.forget()
        return lost

    def heed_damage(self) -> None:
        """Look chunks up again if damage was found meanwhile."""
        self._heed(self._catalog.packs.damage_epoch(self._tenant.id))

    def _heed(self, damage_epoch: int) -> bool:
        """Return whether damage was found since the last call; then chunks are looked up again."""
        if damage_epoch == self.damage_epoch:
            return False
        self.damage_epoch = damage_epoch
        self.forget()
        return True

    def look_for_packs(self) -> None:
        """Check that the packs that the upload relies on exist; mark missing ones as damaged.

        Free for an upload that has claimed and published nothing yet.

        Raises:
            Unavailable: The store does not answer.

        """
        if self._relies:
            self._lost(self._catalog.packs.claimed(self._tenant.id, self._upload))

    def look_for_all_packs(self) -> None:
        """Do the same for all packs of the tenant: for what the upload takes over without having looked it up.

        Raises:
            Unavailable: The store does not answer.

        """
        if self._presence.lost_of_all(self._tenant):
            self.forget()

    def missing(self, digests: Sequence[bytes]) -> list[int]:
        """Return the positions of missing data chunks, which must be sent; the others are claimed."""
        here = self.present(Role.DATA, digests)
        if len(self._announced) >= KNOWN_MAX:
            self._announced.clear()
        self._announced.update(digest for digest in digests if digest not in here)
        return [index for index, digest in enumerate(digests) if digest not in here]

    def absent(self, refs: Sequence[ChunkRef], field: str) -> set[bytes]:
        """Return which of these data chunks are missing; the others are claimed.

        Raises:
            BadRequest: BAD_FIELD for `field`, a chunk exists with another length.

        """
        here = self.present(Role.DATA, [ref.digest for ref in refs])
        for ref in refs:
            if here.get(ref.digest, ref.length) != ref.length:
                raise BadRequest(
                    "BAD_FIELD",
                    f"chunk {ref.digest.hex()} has {here[ref.digest]} bytes, not {ref.length}",
                    field=field,
                )
        return {ref.digest for ref in refs if ref.digest not in here}

    def _taken(self, role: Role, digest: bytes) -> int | None:
        """Return the length of a chunk that this sink holds, or has put into a pack that is not published."""
        asking = self._asking[role].get(digest)
        return len(asking) if asking is not None else self._unpublished.get(_key(role, digest))

    def forget(self) -> None:
        """Forget what is stored, after damage was found: chunks are looked up again, and damaged ones stored
        again.
        """
        self._known.clear()

    # ------------------------------------------------------------------ taking

    def take(self, role: Role, digest: bytes, data: bytes | memoryview) -> None:
        """Take a chunk whose digest is verified."""
        if self._taken(role, digest) is not None or self._known.get(_key(role, digest)) is not None:
            return
        self._announced.discard(digest)
        asking = self._asking[role]
        # If only one chunk of a large message is new, free the rest.
        asking[digest] = compact(data)
        self._asking_bytes[role] += len(data)
        if self._asking_bytes[role] >= LOOK_UP_BYTES[role] or len(asking) >= CHUNKS_PER_CALL_MAX:
            self._look_up(role)

    def take_segment(self, table: Sequence[ChunkRef], codec: int, payload: Buffer, raw_length: int) -> int:
        """Take a verified segment of data chunks unchanged; return the number of new chunks."""
        # If another upload has stored one since the announcement, it is stored twice, which the index allows.
        new = {ref.digest for ref in table if ref.digest in self._announced}
        new |= self.absent([ref for ref in table if ref.digest not in new], "chunks")
        self._announced -= new
        if new:
            self._append(Role.DATA, list(table), codec, payload, raw_length)
            self._unpublished.update((_key(Role.DATA, ref.digest), ref.length) for ref in table)
        return len(new)

    def _take_asking(self, role: Role) -> dict[bytes, bytes | memoryview]:
        asking, self._asking[role] = self._asking[role], {}
        self._asking_bytes[role] = 0
        return asking

    def _look_up(self, role: Role) -> None:
        asking = self._take_asking(role)
        self._gather(role, asking, self.present(role, list(asking)))

    def _gather(self, role: Role, asked: Mapping[bytes, bytes | memoryview], here: Container[bytes]) -> None:
        """Put the chunks that are not here into segments."""
        for digest, data in asked.items():
            if digest in here:
                continue
            if len(self._segment[role]) + len(data) > SEGMENT_BYTES[role]:
                self._close_segment(role)
            self._table[role].append(ChunkRef(len(data), digest))
            self._segment[role] += data
            self._unpublished[_key(role, digest)] = len(data)
        if len(self._segment[role]) >= SEGMENT_BYTES[role]:
            self._close_segment(role)

    def _close_segment(self, role: Role) -> None:
        if not self._table[role]:
            return
        self._drain(COMPRESSING_MAX - 1)
        table, self._table[role] = self._table[role], []
        payload, self._segment[role] = self._segment[role], bytearray()
        self._compressing.append((role, table, len(payload), self._compressors.submit(compress, payload)))
        self._compressing_bytes += len(payload)

    def _drain(self, leave: int) -> None:
        """Append compressed segments, oldest first, until `leave` are left."""
        while len(self._compressing) > leave:
            role, table, raw_length, future = self._compressing.popleft()
            codec, payload = future.result()
            self._append(role, table, codec, payload, raw_length)
            self._compressing_bytes -= raw_length

    def _append(self, role: Role, table: list[ChunkRef], codec: int, payload: Buffer, raw: int) -> None:
        if self._pack is None:
            self._pack = self._begin_pack()
        self._pack.append(role, table, codec, payload, raw)
        if self._pack.full:
            self._seal()

    def _seal(self) -> None:
        if self._pack is not None:
            pack, self._pack = self._pack, None
            self._presence.saw(self._tenant.id, [pack.pack])
            self._finished.append(self._finish_pack(pack))

    # ------------------------------------------------------------------ packs

    def flush(self) -> tuple[list[Future[PackSummary]], list[bytes]]:
        """Put everything taken into packs, and hand these over to be published, with all their chunks.

        First pass the result of the previous publication to `published`.
        """
        asking = {role: self._take_asking(role) for role in Role}
        here = self._present(asking)
        for role in Role:
            self._gather(role, asking[role], here[role])
            self._close_segment(role)
        self._drain(0)
        self._seal()
        packs, self._finished = self._finished, []
        return packs, list(self._unpublished)

    def published(self, chunks: Iterable[bytes]) -> None:
        """Record that the packs with these chunks are published: the catalog knows them from now on."""
        for key in chunks:
            del self._unpublished[key]
            self._relies = True

    def abort(self) -> None:
        """Drop everything that is not published."""
        for *_, future in self._compressing:
            future.cancel()
        self._compressing.clear()
        if self._pack is not None:
            self._pack.abort()
            self._pack = None


class ManifestSink:
    """The sink for manifest pages: an upload's chunks of role manifest."""

    def __init__(self, chunks: ChunkSink) -> None:
        self._chunks = chunks

    def write(self, data: bytes) -> bytes:
        """Take a page; return its digest."""
        digest = blake3(data).digest()
        self._chunks.take(Role.MANIFEST, digest, data)
        return digest
