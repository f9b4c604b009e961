"""Copies one pack: each seal is opened on the way, and what has arrived is checked by its footer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from typing import Final

from blake3 import blake3

from staddle_server.base.errors import Damaged
from staddle_server.base.limits import MIB, PACK_BYTES_MAX
from staddle_server.base.types import PackSummary
from staddle_server.catalog import Catalog
from staddle_server.catalog.replicas import WaitingPack
from staddle_server.store.blobs import BlobExists, BlobMissing, BlobUnreadable, BlobWriter, ReadableBlobs
from staddle_server.store.pack import PackDamaged, PackReader, pack_name
from staddle_server.store.parity import parity_name
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.replication.site import Site, SiteDamagedError, SourceLostError

PART_BYTES: Final = 1 * MIB
Rate = Callable[[int, int], None]
"""Called with the bytes that were read or sent; waits until more may be."""


class _ReadAhead:
    """The source's objects, of one of which a range was read already."""

    def __init__(self, blobs: ReadableBlobs) -> None:
        self._blobs = blobs
        self._name, self._offset, self._data = "", 0, b""

    def hold(self, name: str, offset: int, length: int) -> bytes:
        self._data = b""
        self._data = self._blobs.read(name, offset, length)
        self._name, self._offset = name, offset
        return self._data

    def read(self, name: str, offset: int, length: int) -> bytes:
        start = offset - self._offset
        if name == self._name and start >= 0 and start + length <= len(self._data):
            return self._data[start : start + length]
        return self._blobs.read(name, offset, length)

    def size(self, name: str) -> int:
        return self._blobs.size(name)


class PackCopier:
    """Copies the packs of one tenant to a site. Thread-safe. Memory: one segment for each pack in flight.

    Methods raise SourceLostError, SiteDamagedError, what `rate` raises, and Exhausted or Unavailable for the site.
    """

    def __init__(self, tenant: Tenant, catalog: Catalog, site: Site, rate: Rate) -> None:
        self._tenant = tenant
        self._catalog = catalog
        self._site = site
        self._rate = rate
        self._there = PackReader(site.blobs, tenant.keys)

    def copy(self, pack: WaitingPack, *, verify: bool, replace: bool) -> int:
        """Copy a pack unless it is there; return the bytes sent. It is durable, and checked, on return.

        `verify`: read it back and compare every byte; read what is there already, and replace it if it is
        damaged. `replace`: it is known to be damaged.
        """
        name = pack_name(self._tenant.id, pack.pack)
        if not replace:
            try:
                if self._is_there(pack, name, verify=verify):
                    return 0
            except SiteDamagedError:
                if not verify:
                    raise
                replace = True
        try:
            summary = self._footer(pack)
            writer = self._site.blobs.create()
            try:
                digest = self._send(name, summary, writer)
                if replace:
                    writer.replace(name)
                else:
                    writer.commit(name)
            finally:
                writer.abort()
        except BlobExists:
            self._check(pack, name)
            return 0
        del summary  # the footer there has as many chunks
        self._check(pack, name)
        if verify:
            self._compare(name, pack.size_bytes, digest)
        return pack.size_bytes

    def verify(self, pack: WaitingPack) -> None:
        """Read every byte of a pack that is there. Raises SiteDamagedError if one is not as it was sealed."""
        name = pack_name(self._tenant.id, pack.pack)
        self._check(pack, name)
        try:
            for ref, _ in groupby(
                self._there.footer(pack.pack).chunks, key=lambda chunk: chunk.place.segment
            ):
                self._rate(ref.length, 0)
                self._there.stored(ref)
        except Damaged as error:
            raise self._damaged(name, error.message) from error

    def copy_parity(self, pack: WaitingPack) -> int:
        """Copy a pack's parity, replacing any older one; return the bytes sent."""
        name = parity_name(self._tenant.id, pack.pack)
        source = self._tenant.blobs
        with suppress(BlobMissing):
            if self._site.blobs.size(name) == pack.parity_bytes:
                return 0
        try:
            size = source.size(name)
            if size != pack.parity_bytes:
                raise Damaged(f"{name} has {size} bytes, not {pack.parity_bytes}")
            writer = self._site.blobs.create()
            try:
                for part in self._raw(source, name, 0, size):
                    writer.write(part)
                writer.replace(name)
            finally:
                writer.abort()
        except (Damaged, BlobUnreadable) as error:
            raise SourceLostError(name, error.message) from error
        return size

    # --- the source

    def _footer(self, pack: WaitingPack) -> PackSummary:
        name = pack_name(self._tenant.id, pack.pack)
        with _ReadingSource(name):
            size = self._tenant.blobs.size(name)
            if size != pack.size_bytes or size > PACK_BYTES_MAX:
                raise PackDamaged(pack.pack, 0, f"it has {size} bytes, not {pack.size_bytes}")
            return PackReader(self._tenant.blobs, self._tenant.keys).footer(pack.pack)

    def _send(self, name: str, summary: PackSummary, writer: BlobWriter) -> bytes:
        """Write the whole pack; return the digest of its bytes."""
        hasher = blake3()
        parts = self._parts(name, summary)
        while True:
            with _ReadingSource(name):
                part = next(parts, None)
            if part is None:
                return hasher.digest()
            hasher.update(part)
            writer.write(part)
            del part

    def _parts(self, name: str, summary: PackSummary) -> Iterator[bytes]:
        """Yield a pack's bytes in order; each segment only after its seal was opened."""
        ahead = _ReadAhead(self._tenant.blobs)
        reader = PackReader(ahead, self._tenant.keys)
        end = 0
        for ref, _ in groupby(summary.chunks, key=lambda chunk: chunk.place.segment):
            if ref.offset < end:
                raise PackDamaged(ref.pack, ref.offset, "two segments overlap")
            yield from self._raw(ahead, name, end, ref.offset)
            data = ahead.hold(name, ref.offset, ref.length)
            self._rate(len(data), 0)
            reader.stored(ref)
            yield data
            end = ref.offset + ref.length
        yield from self._raw(ahead, name, end, summary.size_bytes)

    def _raw(self, blobs: ReadableBlobs, name: str, start: int, end: int) -> Iterator[bytes]:
        for offset in range(start, end, PART_BYTES):
            part = blobs.read(name, offset, min(PART_BYTES, end - offset))
            self._rate(len(part), 0)
            yield part

    # --- the site

    def _is_there(self, pack: WaitingPack, name: str, *, verify: bool) -> bool:
        try:
            self._site.blobs.size(name)
        except BlobMissing:
            return False
        if verify:
            self.verify(pack)
        else:
            self._check(pack, name)
        return True

    def _check(self, pack: WaitingPack, name: str) -> None:
        """Raise SiteDamagedError unless the object there has the pack's size, and a footer that opens."""
        try:
            summary = self._there.footer(pack.pack)
        except Damaged as error:
            raise self._damaged(name, error.message) from error
        if summary.size_bytes != pack.size_bytes:
            raise self._damaged(name, f"it has {summary.size_bytes} bytes, not {pack.size_bytes}")

    def _compare(self, name: str, size: int, digest: bytes) -> None:
        hasher = blake3()
        try:
            for offset in range(0, size, PART_BYTES):
                hasher.update(self._site.blobs.read(name, offset, min(PART_BYTES, size - offset)))
        except Damaged as error:
            raise self._damaged(name, error.message) from error
        if hasher.digest() != digest:
            raise self._damaged(name, "what was read back differs from what was sent")

    def _damaged(self, name: str, why: str) -> SiteDamagedError:
        return SiteDamagedError(
            name,
            f"{self._site.name} has another object of this name, or a damaged one ({why}). It was not replaced: "
            "`replicate --verify` puts an intact copy in its place",
        )


class _ReadingSource:
    """Reports damage, and a disk that does not read, as the source's."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Damaged | BlobUnreadable):
            raise SourceLostError(self._name, error.message) from error
