"""Parity of packs: computed from an intact pack, used to repair a damaged one (docs/format.md, "Parity")."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Final, NamedTuple

from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.base.limits import MIB, PACK_BYTES_MAX
from staddle_server.base.types import TenantKeys
from staddle_server.store import parityform as form
from staddle_server.store.blobs import (
    BlobMissing,
    Blobs,
    BlobShort,
    BlobWriter,
    ReadableBlobs,
    WritableBlobs,
    check_range,
)
from staddle_server.store.keys import chunk_id, secrets_of
from staddle_server.store.pack import PackDamaged, PackReader, pack_name, parse_pack_name
from staddle_server.store.packform import PACK_BYTES_MIN, FormError
from staddle_server.store.reedsolomon import code

ROWS_AT_ONCE: Final = 8
"""Rows read together while parity is computed: at most 8 x 100 blocks are in memory."""
COPIED_BYTES: Final = 1 * MIB


class PackRange(NamedTuple):
    """A range of a pack."""

    offset: int
    length: int


class Mended(NamedTuple):
    """A repaired pack.

    Attributes:
        ranges: What was restored, in whole blocks, in order.
        found_bytes: The object's previous length; None if it was missing.
        pack_bytes: The pack's length.

    """

    ranges: tuple[PackRange, ...]
    found_bytes: int | None
    pack_bytes: int


class ParityDamaged(Damaged):
    """A parity object is damaged and useless. The pack is unchanged."""

    def __init__(self, pack: bytes, what: str) -> None:
        super().__init__(f"the parity of pack {pack.hex()} is damaged and cannot help: {what}")
        self.pack = pack


class BeyondParity(Damaged):
    """A pack has more damage than its parity can restore. Nothing was changed."""

    def __init__(self, pack: bytes, geometry: form.Geometry, damaged: int, beyond: int) -> None:
        lost = "all" if damaged == geometry.blocks else str(damaged)
        super().__init__(
            f"pack {pack.hex()} cannot be repaired with its parity, and nothing was changed: {lost} of its "
            f"{geometry.blocks} blocks of {geometry.block_bytes} bytes are damaged or missing; in each row of "
            f"{geometry.columns} blocks {geometry.parity} can be restored, and {beyond} of its {geometry.rows} rows "
            "have lost more, or have damaged parity"
        )
        self.pack = pack


def parity_name(tenant: bytes, pack: bytes) -> str:
    """Return the name of a pack's parity object."""
    return pack_name(tenant, pack).replace("packs/", "parity/", 1)


def parity_prefix(tenant: bytes) -> str:
    """Return the prefix of the names of a tenant's parity objects."""
    return f"parity/{tenant.hex()}"


def has_parity(blobs: ReadableBlobs, tenant: bytes, pack: bytes) -> bool:
    """Return whether a pack has parity, damaged or not."""
    try:
        blobs.size(parity_name(tenant, pack))
    except BlobMissing:
        return False
    return True


def remove_parity(blobs: Blobs, tenant: bytes, pack: bytes) -> bool:
    """Remove a pack's parity, along with the pack; return whether it existed."""
    try:
        blobs.delete(parity_name(tenant, pack))
    except BlobMissing:
        return False
    return True


def parse_parity_name(name: str) -> tuple[bytes, bytes]:
    """Tenant and pack id of a parity object's name. Raises ValueError."""
    tenant, pack = parse_pack_name(name.replace("parity/", "packs/", 1))
    if parity_name(tenant, pack) != name:
        raise ValueError(f"{name} is not the name of a pack's parity")
    return tenant, pack


def verify_pack(reader: PackReader, keys: TenantKeys, pack: bytes) -> int:
    """Read and check every byte of a pack: seals, digests, and that the footer agrees.

    Return the pack's length. Raises PackDamaged, BlobMissing, BlobShort; Unavailable if the store does not
    answer.
    """
    id_key = secrets_of(keys).id_key
    summary = reader.footer(pack)
    for number, (ref, chunks) in enumerate(groupby(summary.chunks, key=lambda chunk: chunk.place.segment)):
        segment = reader.segment(ref)
        if segment.number != number:
            raise PackDamaged(
                pack, ref.offset, f"segment {segment.number} lies where segment {number} should"
            )
        ids = []
        offset = 0
        for length, digest in segment.table:
            segment.chunk(offset, length, digest)
            ids.append(chunk_id(id_key, segment.role, digest))
            offset += length
        if ids != [chunk.chunk_id for chunk in chunks]:
            raise PackDamaged(pack, ref.offset, "the segment and the footer name different chunks")
    return summary.size_bytes


class Parity:
    """The parity of a tenant's packs. Thread-safe.

    Methods raise ParityLibraryMissing if pyeclib is not installed.
    """

    def __init__(self, blobs: WritableBlobs, keys: TenantKeys) -> None:
        self._blobs = blobs
        self._keys = keys
        self._key = secrets_of(keys).parity_key

    def make(self, pack: bytes, percent: int) -> int:
        """Compute a pack's parity, replacing any older one; return its length. Durable on return.

        Checks the whole pack first, to avoid parity of damaged bytes: reads it twice, with at most 10 MiB in
        memory. Raises PackDamaged, BlobMissing or BlobShort for a damaged pack, and what the blobs raise.
        """
        name = pack_name(self._keys.tenant, pack)
        size = self._blobs.size(name)
        if not PACK_BYTES_MIN <= size <= PACK_BYTES_MAX:
            raise PackDamaged(pack, 0, f"invalid pack length: {size} bytes")
        geometry = form.plan(size, percent)
        head = form.encode_head(geometry, self._keys.tenant, pack, self._key)
        with self._writing() as writer:
            writer.write(head)
            checks = self._write_rows(writer, name, geometry)
            writer.write(checks)
            writer.write(head)
            # Read again against the checks: this proves that parity, checks and seals describe the same
            # bytes.
            view = _View(self._blobs, self._keys, pack, geometry, checks)
            verify_pack(PackReader(view, self._keys), self._keys, pack)
            writer.replace(parity_name(self._keys.tenant, pack))
        return geometry.object_bytes

    def check(self, pack: bytes) -> None:
        """Read a pack and its parity, and compare every block of both with its check.

        Raises BlobMissing if the pack has no parity, ParityDamaged for any mismatch, in the pack or in the
        parity.
        """
        geometry, checks = self._open(pack)
        view = _View(self._blobs, self._keys, pack, geometry, checks)
        name = parity_name(self._keys.tenant, pack)
        if self._blobs.size(name) != geometry.object_bytes:
            raise ParityDamaged(pack, "its length has changed")
        last = self._blobs.read(name, geometry.object_bytes - form.HEAD_BYTES, form.HEAD_BYTES)
        if self._blobs.read(name, 0, form.HEAD_BYTES) != last:
            raise ParityDamaged(pack, "its two heads differ")
        if view.found_bytes != geometry.pack_bytes or not view.fits():
            raise ParityDamaged(pack, "blocks of it, or of the pack, do not match their checks")

    def mend(self, pack: bytes) -> Mended:
        """Repair a damaged, truncated, overlong or missing pack from its parity. Durable on return.

        An unreadable block counts as lost. The result must pass the pack's own seals before it replaces the
        pack; otherwise nothing changes. Raises BlobMissing if the pack has no parity, ParityDamaged,
        BeyondParity, and what the blobs raise.
        """
        geometry, checks = self._open(pack)
        view = _View(self._blobs, self._keys, pack, geometry, checks)
        ranges = view.restore()
        try:
            verify_pack(PackReader(view, self._keys), self._keys, pack)
        except PackDamaged as error:
            raise ParityDamaged(
                pack, f"what it restores is not the pack, so nothing was changed ({error.message})"
            ) from error
        if ranges or view.found_bytes != geometry.pack_bytes:
            self._put(view, pack_name(self._keys.tenant, pack), geometry.pack_bytes)
        return Mended(ranges, view.found_bytes, geometry.pack_bytes)

    # --- parts

    def _put(self, view: "_View", name: str, pack_bytes: int) -> None:
        """Write the pack as restored, in place of the damaged one."""
        with self._writing() as writer:
            for start in range(0, pack_bytes, COPIED_BYTES):
                writer.write(view.read(name, start, min(COPIED_BYTES, pack_bytes - start)))
            writer.replace(name)

    @contextmanager
    def _writing(self) -> Iterator[BlobWriter]:
        writer = self._blobs.create()
        try:
            yield writer
        finally:
            writer.abort()

    def _write_rows(self, writer: BlobWriter, name: str, geometry: form.Geometry) -> bytes:
        """Write the parity of all rows; return the checks of all blocks."""
        rows, width, block_bytes = geometry.rows, geometry.columns, geometry.block_bytes
        encoder = code(width, geometry.parity, block_bytes)
        data_checks: list[bytes] = [b""] * geometry.blocks
        parity_checks: list[bytes] = []
        for first in range(0, rows, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, rows - first)
            columns = [
                _read_blocks(self._blobs, name, geometry, column * rows + first, count)
                for column in range(width)
            ]
            for index in range(count):
                row = []
                for column, blocks in enumerate(columns):
                    block = blocks[index]
                    if block:
                        data_checks[column * rows + first + index] = form.check_of(block, self._key)
                    row.append(block.ljust(block_bytes, b"\0"))
                for block in encoder.encode(row):
                    parity_checks.append(form.check_of(block, self._key))
                    writer.write(block)
        return b"".join(data_checks + parity_checks)

    def _open(self, pack: bytes) -> tuple[form.Geometry, bytes]:
        """Return geometry and checks from a pack's parity object."""
        name = parity_name(self._keys.tenant, pack)
        size = self._blobs.size(name)
        fault = ""
        for offset in (0, max(0, size - form.HEAD_BYTES)):
            try:
                head = self._blobs.read(name, offset, form.HEAD_BYTES)
                geometry = form.decode_head(head, self._keys.tenant, pack, self._key)
                return geometry, self._blobs.read(name, geometry.checks_offset, geometry.checks_bytes)
            except FormError as error:
                fault = str(error)
            except (BlobShort, Unavailable) as error:
                # The other head is still of use, even beside an unreadable sector.
                fault = error.message
        raise ParityDamaged(pack, fault)


def _read_blocks(
    blobs: ReadableBlobs, name: str, geometry: form.Geometry, first: int, count: int
) -> list[bytes]:
    """Return `count` blocks of a pack from block `first`; the pack's last may be short, any after it are
    empty.
    """
    start = first * geometry.block_bytes
    length = max(0, min(count * geometry.block_bytes, geometry.pack_bytes - start))
    data = blobs.read(name, start, length) if length else b""
    return [
        data[at : at + geometry.block_bytes]
        for at in range(0, count * geometry.block_bytes, geometry.block_bytes)
    ]


class _View:
    """A pack as it was when its parity was computed: only blocks that match their check, and restored ones.

    Attributes:
        found_bytes: The current length of the pack's object; None if it is missing.

    """

    def __init__(
        self, blobs: ReadableBlobs, keys: TenantKeys, pack: bytes, geometry: form.Geometry, checks: bytes
    ) -> None:
        self._blobs = blobs
        self._pack = pack
        self._name = pack_name(keys.tenant, pack)
        self._parity_name = parity_name(keys.tenant, pack)
        self._key = secrets_of(keys).parity_key
        self._geometry = geometry
        self._checks = checks
        self._restored: dict[int, bytes] = {}
        try:
            self.found_bytes: int | None = blobs.size(self._name)
        except BlobMissing:
            self.found_bytes = None

    def size(self, name: str) -> int:
        """Return the pack's original length."""
        if name != self._name:
            raise BlobMissing(name)
        return self._geometry.pack_bytes

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return bytes of the original pack.

        Raises PackDamaged for a block that is neither intact nor restored.
        """
        check_range(offset, length)
        if offset + length > self.size(name):
            raise BlobShort(name, offset, length, self._geometry.pack_bytes)
        step = self._geometry.block_bytes
        first, end = offset // step, -(-(offset + length) // step)
        parts = []
        for block, data in self._blocks(first, end - first):
            if data is None:
                raise PackDamaged(self._pack, block * step, "a block of it does not match its check")
            parts.append(data)
        return b"".join(parts)[offset - first * step :][:length]

    def restore(self) -> tuple[PackRange, ...]:
        """Restore the damaged blocks in memory; return the ranges that differ from the original.

        Raises BeyondParity.
        """
        damaged = self._damaged()
        rows: dict[int, list[int]] = {}
        for block in damaged:
            rows.setdefault(block % self._geometry.rows, []).append(block)
        beyond = sum(not self._restore_row(row, blocks) for row, blocks in rows.items())
        if beyond:
            raise BeyondParity(self._pack, self._geometry, len(damaged), beyond)
        return self._changed(damaged)

    def fits(self) -> bool:
        """Return whether each block of the pack and of its parity matches its check."""
        return not self._damaged() and all(
            len(self._parity(row)) == self._geometry.parity for row in range(self._geometry.rows)
        )

    # --- parts

    def _damaged(self) -> list[int]:
        count, at_once = self._geometry.blocks, COPIED_BYTES // self._geometry.block_bytes
        return [
            block
            for first in range(0, count, at_once)
            for block, data in self._blocks(first, min(at_once, count - first))
            if data is None
        ]

    def _restore_row(self, row: int, damaged: list[int]) -> bool:
        """Restore these blocks of a row; return False if its parity is not enough."""
        _, step, rows, columns, parity = self._geometry
        present = self._parity(row)
        if len(present) < len(damaged):
            return False
        for column in range(columns):
            block = column * rows + row
            if block in damaged:
                continue
            for _, data in self._blocks(block, 1):
                if data is None:
                    raise PackDamaged(self._pack, block * step, "it changed while it was read")
                present[column] = data.ljust(step, b"\0")
        whole = code(columns, parity, step).restore(present)
        for block in damaged:
            self._restored[block] = whole[block // rows][: self._length(block)]
        return True

    def _parity(self, row: int) -> dict[int, bytes]:
        """Return the intact parity blocks of a row by their index in the row, which continues the data's."""
        _, step, _, columns, parity = self._geometry
        found = {}
        for index in range(parity):
            offset = form.HEAD_BYTES + row * self._geometry.row_parity_bytes + index * step
            with suppress(BlobShort, Unavailable):
                block = self._blobs.read(self._parity_name, offset, step)
                if self._has_check(self._geometry.blocks + row * parity + index, block):
                    found[columns + index] = block
        return found

    def _blocks(self, first: int, count: int) -> Iterator[tuple[int, bytes | None]]:
        """Yield blocks from the store or from memory; None for a lost one.

        Blocks past the pack's end are empty.
        """
        step = self._geometry.block_bytes
        try:
            stored = self._stored(first * step, count * step)
        except Unavailable:
            if count == 1:
                yield first, self._restored.get(first)
            else:
                for block in range(first, first + count):
                    yield from self._blocks(block, 1)
            return
        for number in range(count):
            block = first + number
            found = stored[number * step : number * step + self._length(block)]
            if block in self._restored:
                yield block, self._restored[block]
            elif block >= self._geometry.blocks or self._has_check(block, found):
                yield block, found
            else:
                yield block, None

    def _stored(self, offset: int, length: int) -> bytes:
        """Return the part of this range that the object has."""
        end = min(offset + length, self.found_bytes or 0)
        return self._blobs.read(self._name, offset, end - offset) if offset < end else b""

    def _length(self, block: int) -> int:
        step = self._geometry.block_bytes
        return max(0, min(step, self._geometry.pack_bytes - block * step))

    def _has_check(self, index: int, block: bytes) -> bool:
        start = index * form.CHECK_BYTES
        return form.check_of(block, self._key) == self._checks[start : start + form.CHECK_BYTES]

    def _changed(self, damaged: list[int]) -> tuple[PackRange, ...]:
        """Return which of the damaged blocks had to be restored: sometimes only the check was damaged."""
        step = self._geometry.block_bytes
        ranges: list[PackRange] = []
        for block in damaged:
            length = self._length(block)
            with suppress(Unavailable):
                if self._stored(block * step, length) == self._restored[block]:
                    continue
            if ranges and sum(ranges[-1]) == block * step:
                ranges[-1] = PackRange(ranges[-1].offset, ranges[-1].length + length)
            else:
                ranges.append(PackRange(block * step, length))
        return tuple(ranges)
