"""Reading packs: pack objects → segments → chunks (docs/format.md, "Packs")."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from staddle_server.base.digests import has_digest
from staddle_server.base.errors import Damaged
from staddle_server.base.limits import (
    MIB,
    PACK_BYTES_MAX,
    SEGMENT_RAW_BYTES_MAX,
)
from staddle_server.base.types import ChunkRef, PackSummary, Role, SegmentRef, TenantKeys
from staddle_server.store import packform as form
from staddle_server.store.blobs import BlobShort, Buffer, ReadableBlobs
from staddle_server.store.frame import Codec, FrameError, compress, inflate, inflate_start
from staddle_server.store.keys import ID_BYTES, secrets_of
from staddle_server.store.segment_cache import SegmentCache

__all__ = [
    "Codec",
    "FrameError",
    "PackDamaged",
    "PackReader",
    "Segment",
    "StoredSegment",
    "Unreadable",
    "compress",
    "inflate",
    "pack_name",
    "packs_prefix",
    "parse_pack_name",
]

OPENERS_MAX: Final = 1024
"""Packs whose keys a reader remembers."""
SEARCH_BYTES: Final = 1 * MIB
SALVAGE_TRIED_BYTES_MAX: Final = 4 * PACK_BYTES_MAX
"""How many bytes of false segments a search tries to open before it gives up: heads can be forged."""


class PackDamaged(Damaged):
    """A pack does not hold what was stored, at `offset` or after it."""

    def __init__(self, pack: bytes, offset: int, what: str) -> None:
        super().__init__(f"pack {pack.hex()} is damaged at {offset}: {what}")
        self.pack = pack
        self.offset = offset

    @property
    def mark(self) -> int:
        """Return where the catalog marks the damage.

        If no segment begins there, only the pack is marked, and its chunks stay readable.
        """
        return max(1, self.offset)


class Unreadable(NamedTuple):
    """A range of a pack without a segment that opens."""

    pack: bytes
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Segment:
    """An opened segment: exactly as stored, as long as the tenant's keys are secret.

    `data` is the whole segment, unless only its start was requested.
    """

    ref: SegmentRef
    number: int
    role: Role
    table: tuple[ChunkRef, ...]
    data: Buffer
    raw_bytes: int

    def reaches(self, end: int) -> bool:
        """Return whether `data` has the bytes before `end`, as far as the segment goes."""
        return min(end, self.raw_bytes) <= len(self.data)

    def chunk(self, place_offset: int, length: int, digest: bytes) -> memoryview:
        """Return the bytes of one chunk, hashed. Raises PackDamaged if the digest differs."""
        if place_offset < 0 or length < 1 or place_offset + length > len(self.data):
            raise self._damaged(f"it does not have {length} bytes at {place_offset}")
        data = memoryview(self.data)[place_offset : place_offset + length]
        if not has_digest(data, digest):
            raise self._damaged(f"the chunk at {place_offset} in it does not match its digest")
        return data

    def _damaged(self, what: str) -> PackDamaged:
        return PackDamaged(self.ref.pack, self.ref.offset, f"the segment is damaged: {what}")


class StoredSegment(NamedTuple):
    """A segment with only its seal opened: its chunks are as they were stored, compressed or not."""

    role: Role
    codec: Codec
    payload: Buffer
    raw_bytes: int


def pack_name(tenant: bytes, pack: bytes) -> str:
    """Return the name of a pack object."""
    digits = pack.hex()
    return f"packs/{tenant.hex()}/{digits[:2]}/{digits}"


def packs_prefix(tenant: bytes) -> str:
    """Return the prefix of a tenant's pack names."""
    return f"packs/{tenant.hex()}"


def parse_pack_name(name: str) -> tuple[bytes, bytes]:
    """Tenant and pack id of a pack object's name. Raises ValueError."""
    parts = name.split("/")
    if len(parts) != 4:
        raise ValueError(f"{name} is not a pack's name")
    tenant, pack = bytes.fromhex(parts[1]), bytes.fromhex(parts[3])
    if len(tenant) != ID_BYTES or len(pack) != ID_BYTES or pack_name(tenant, pack) != name:
        raise ValueError(f"{name} is not a pack's name")
    return tenant, pack


class PackReader:
    """Reads a tenant's packs. Thread-safe.

    Opens and checks everything that it returns. Raises PackDamaged (or BlobMissing, BlobShort) for damaged
    bytes, Unavailable if the store does not answer.
    """

    def __init__(self, blobs: ReadableBlobs, keys: TenantKeys, cache: SegmentCache | None = None) -> None:
        """With `cache`, segments may come from there. Only for restores: a check for damage must read the store."""
        self._blobs = blobs
        self._cache = cache
        self._keys = keys
        self._id_key = secrets_of(keys).id_key
        self._openers: OrderedDict[bytes, AESGCM] = OrderedDict()
        self._openers_lock = threading.Lock()

    def stored(self, ref: SegmentRef) -> StoredSegment:
        """Return the segment at `ref` without inflating it.

        Its seal proves that these are the stored bytes.
        """
        head, body = self._read_body(ref, self._opener(ref.pack))
        return StoredSegment(head.role, head.codec, body[head.table_bytes :], head.raw_bytes)

    def segment(self, ref: SegmentRef, end: int = SEGMENT_RAW_BYTES_MAX) -> Segment:
        """Return the segment at `ref`, inflated at least up to `end`.

        Works with a damaged header too: trying all pack keys replaces it.
        """
        try:
            return self._read_segment(ref, self._opener(ref.pack), end)
        except PackDamaged:
            # The header may be what is damaged, and may be repaired one day: read it again next time.
            with self._openers_lock:
                self._openers.pop(ref.pack, None)
            for opener in self._candidate_openers(ref.pack):
                with suppress(PackDamaged):
                    return self._read_segment(ref, opener, end)
            raise

    def footer(self, pack: bytes) -> PackSummary:
        """Return what the pack holds, from its footer.

        Checks header, footer and trailer, and reads no segment.
        """
        opener = self._read_opener(pack)
        size = self._blobs.size(self._name(pack))
        trailer, plain = self._open_footer(pack, size, opener)
        with _naming(pack, size - form.TRAILER_BYTES - trailer.footer_bytes):
            chunks = form.decode_footer(plain, trailer, pack, self._id_key)
        return PackSummary(pack, size, chunks)

    def scan(self, pack: bytes) -> Iterator[Segment | Unreadable]:
        """Yield every segment that opens, in order, and the gaps between them: for damaged packs.

        Needs neither footer nor header: searches for segment heads, and rebuilds the header from the pack's
        name.
        """
        size = min(self._blobs.size(self._name(pack)), PACK_BYTES_MAX)
        openers = self._candidate_openers(pack)
        if not self._has_header(pack):
            yield Unreadable(pack, 0, min(size, form.HEADER_BYTES))
        position = form.HEADER_BYTES
        end = self._segments_end(pack, size, openers)
        while position < end:
            segment = self._segment_at(pack, position, end, openers)
            if segment is None:
                segment = self._search(pack, position + 1, end, openers)
                stop = end if segment is None else segment.ref.offset
                yield Unreadable(pack, position, stop - position)
            if segment is None:
                return
            yield segment
            position = segment.ref.offset + segment.ref.length

    # --- parts

    def _name(self, pack: bytes) -> str:
        return pack_name(self._keys.tenant, pack)

    def _opener(self, pack: bytes) -> AESGCM:
        with self._openers_lock:
            opener = self._openers.get(pack)
            if opener is not None:
                self._openers.move_to_end(pack)
                return opener
        opener = self._read_opener(pack)
        with self._openers_lock:
            self._openers[pack] = opener
            if len(self._openers) > OPENERS_MAX:
                self._openers.popitem(last=False)
        return opener

    def _read_opener(self, pack: bytes) -> AESGCM:
        """Return the cipher of the pack's seals, from its header."""
        data = self._blobs.read(self._name(pack), 0, form.HEADER_BYTES)
        with _naming(pack, 0):
            header = form.decode_header(data)
            if (header.tenant, header.pack) != (self._keys.tenant, pack):
                raise form.FormError("its header is another pack's")
            if header.key_version not in self._keys.pack_keys:
                raise form.FormError(
                    f"it is sealed with pack key {header.key_version}, which the tenant does not have"
                )
        return AESGCM(form.pack_key(self._keys.pack_keys[header.key_version], data))

    def _read_segment(self, ref: SegmentRef, opener: AESGCM, end: int = SEGMENT_RAW_BYTES_MAX) -> Segment:
        head, body = self._read_body(ref, opener)
        with _naming(ref.pack, ref.offset):
            table = form.decode_table(body[: head.table_bytes], head.raw_bytes)
            raw = inflate_start(head.codec, body[head.table_bytes :], head.raw_bytes, end)
        return Segment(ref, head.number, head.role, table, raw, head.raw_bytes)

    def _read_body(self, ref: SegmentRef, opener: AESGCM) -> tuple[form.SegmentHead, memoryview]:
        """Return a segment's head and what its seal holds: the table, followed by the payload."""
        with _naming(ref.pack, ref.offset):
            if ref.offset < form.HEADER_BYTES:
                raise form.FormError("a segment cannot start there")
            if not form.SEGMENT_BYTES_MIN <= ref.length <= form.SEGMENT_BYTES_MAX:
                raise form.FormError(f"a segment cannot have {ref.length} bytes")
        if self._cache is not None and (kept := self._cache.get(ref)) is not None:
            with suppress(PackDamaged):
                return _open_body(ref, memoryview(kept), opener)
            self._cache.drop(ref)
        # The sealed bytes are freed on return, before the payload is inflated, to save memory.
        data = memoryview(self._blobs.read(self._name(ref.pack), ref.offset, ref.length))
        opened = _open_body(ref, data, opener)
        if self._cache is not None:
            self._cache.put(ref, data)
        return opened

    def _open_footer(self, pack: bytes, size: int, opener: AESGCM) -> tuple[form.Trailer, bytes]:
        offset = max(0, size - form.TRAILER_BYTES)
        encoded = self._blobs.read(self._name(pack), offset, form.TRAILER_BYTES)
        with _naming(pack, offset):
            trailer = form.decode_trailer(encoded, size)
        offset -= trailer.footer_bytes
        sealed = self._blobs.read(self._name(pack), offset, trailer.footer_bytes)
        with _naming(pack, offset):
            associated = encoded[: form.TRAILER_SEALED_BYTES]
            return trailer, opener.decrypt(form.nonce(form.FOOTER_NUMBER), sealed, associated)

    # --- parts of scan

    def _candidate_openers(self, pack: bytes) -> list[AESGCM]:
        """Return one cipher for each pack key, newest first, without trusting the header."""
        openers = []
        for version, key in sorted(self._keys.pack_keys.items(), reverse=True):
            header = form.encode_header(form.Header(version, self._keys.tenant, pack))
            openers.append(AESGCM(form.pack_key(key, header)))
        return openers

    def _has_header(self, pack: bytes) -> bool:
        try:
            self._read_opener(pack)
        except (PackDamaged, BlobShort):
            return False
        return True

    def _segments_end(self, pack: bytes, size: int, openers: Sequence[AESGCM]) -> int:
        """Return where the segments end: before a footer that opens, else up to the object's end."""
        for opener in openers:
            try:
                trailer, _ = self._open_footer(pack, size, opener)
            except (PackDamaged, BlobShort):
                continue
            return size - form.TRAILER_BYTES - trailer.footer_bytes
        return size

    def _segment_at(self, pack: bytes, offset: int, end: int, openers: Sequence[AESGCM]) -> Segment | None:
        """Return the segment that begins at `offset` and ends by `end`, if one opens there."""
        if offset + form.SEGMENT_BYTES_MIN > end:
            return None
        try:
            head = form.decode_head(self._blobs.read(self._name(pack), offset, form.HEAD_BYTES))
        except form.FormError:
            return None
        if offset + head.segment_bytes > end:
            return None
        for opener in openers:
            try:
                return self._read_segment(SegmentRef(pack, offset, head.segment_bytes), opener)
            except PackDamaged:
                continue
        return None

    def _search(self, pack: bytes, start: int, end: int, openers: Sequence[AESGCM]) -> Segment | None:
        """Return the first segment after `start` that opens."""
        tried_bytes = 0
        for offset, head in self._heads(pack, start, end):
            segment = self._segment_at(pack, offset, end, openers)
            tried_bytes += head.segment_bytes * len(openers)
            if segment is not None or tried_bytes > SALVAGE_TRIED_BYTES_MAX:
                return segment
        return None

    def _heads(self, pack: bytes, start: int, end: int) -> Iterator[tuple[int, form.SegmentHead]]:
        """Yield everything between `start` and `end` that looks like a segment head."""
        while end - start >= form.HEAD_BYTES:
            block = self._blobs.read(self._name(pack), start, min(SEARCH_BYTES, end - start))
            index = block.find(form.SEGMENT_MAGIC)
            while 0 <= index <= len(block) - form.HEAD_BYTES:
                with suppress(form.FormError):
                    yield start + index, form.decode_head(block[index : index + form.HEAD_BYTES])
                index = block.find(form.SEGMENT_MAGIC, index + 1)
            start += len(block) - form.HEAD_BYTES + 1


def _open_body(ref: SegmentRef, data: memoryview, opener: AESGCM) -> tuple[form.SegmentHead, memoryview]:
    with _naming(ref.pack, ref.offset):
        head = form.decode_head(data[: form.HEAD_BYTES])
        if head.segment_bytes != ref.length:
            raise form.FormError(f"the segment has {head.segment_bytes} bytes, not {ref.length}")
        body = opener.decrypt(form.nonce(head.number), data[form.HEAD_BYTES :], data[: form.HEAD_BYTES])
    return head, memoryview(body)


class _naming:  # noqa: N801 - a context manager
    """Reports a broken seal or malformed bytes as damage of this pack at this offset.

    A class: with a generator, Python 3.13 keeps each error in a reference cycle with the frames below it,
    which hold megabytes of a pack.
    """

    def __init__(self, pack: bytes, offset: int) -> None:
        self._pack = pack
        self._offset = offset

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, InvalidTag):
            raise PackDamaged(self._pack, self._offset, "its seal does not open") from error
        if isinstance(error, form.FormError):
            raise PackDamaged(self._pack, self._offset, str(error)) from error
        if isinstance(error, FrameError):
            raise PackDamaged(self._pack, self._offset, error.message) from error
