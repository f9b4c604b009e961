"""Parity of stored packs: made beside the server's other work, and used to repair packs that are damaged."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from staddle._base.figures import counted, size

from staddle_server.base.clock import Clock
from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.base.limits import PARITY_BLOCK_BYTES, PARITY_COLUMNS_MAX
from staddle_server.catalog import Catalog, PackParity
from staddle_server.store.blobs import BlobMissing, Blobs, BlobShort
from staddle_server.store.pack import PackDamaged, PackReader, pack_name
from staddle_server.store.parity import (
    BeyondParity,
    Mended,
    PackRange,
    Parity,
    has_parity,
    parity_name,
    parity_prefix,
    parse_parity_name,
    remove_parity,
    verify_pack,
)
from staddle_server.store.reedsolomon import ParityLibraryMissing, code
from staddle_server.tenancy.suspect_packs import doubt
from staddle_server.tenancy.tenant import Tenant, Tenants
from staddle_server.upkeep.schedule import Stopping, Task

log = logging.getLogger(__name__)

EVERY_S: Final = 60.0
TURN_S: Final = 60.0
"""How long the task runs before it leaves the thread to others; it resumes when it is due again."""
SWITCHED_ON: Final = "parity is on"
"""In the catalog's tasks: since when packs that are begun shall have parity. It has ended while they shall not."""
_BATCH: Final = 500


class Outcome(enum.Enum):
    """What became of a pack that was to be repaired."""

    SOUND = "sound"
    """Every byte of it was read, and is right."""
    REPAIRED = "repaired"
    NO_PARITY = "no parity"
    """It is damaged, and there is nothing to repair it from."""
    BEYOND = "beyond parity"
    """It has lost more than its parity gives back, or the parity is damaged itself."""


class RepairReport(NamedTuple):
    """What became of one pack.

    Attributes:
        pack: Its id.
        outcome: What became of it; unless it is sound or repaired, nothing was changed.
        found: In words, what was wrong with it, and what keeps it from being repaired; "" if it is sound.
        ranges: What was restored, in whole blocks.
        found_bytes: The length of the object that was there; None: there was none, or it was not looked at.
        pack_bytes: Its length as it is now; 0 where that is not known.

    """

    pack: bytes
    outcome: Outcome
    found: str = ""
    ranges: tuple[PackRange, ...] = ()
    found_bytes: int | None = None
    pack_bytes: int = 0


class ParityReport(NamedTuple):
    """What a run of `make_all` did.

    Attributes:
        packs: How many packs have got parity.
        pack_bytes: Their bytes.
        parity_bytes: Those of their parity.
        damaged: Packs that cannot have parity because they are not whole, with what is wrong, by tenant and id.
        finished: Whether it went through all of them, and was not stopped.

    """

    packs: int = 0
    pack_bytes: int = 0
    parity_bytes: int = 0
    damaged: tuple[tuple[bytes, bytes, str], ...] = ()
    finished: bool = True


def repair_pack(tenant: Tenant, catalog: Catalog, pack: bytes, now_ns: int) -> RepairReport:
    """Check every byte of a pack, and if it is damaged, cut off or gone, make it whole again from its parity.

    A pack that is sound in the end, repaired or not, is no longer marked as damaged. Where it cannot be repaired nothing is
    changed. Sectors that the disk cannot read are lost like others. It may be repaired beside reads, uploads and other repairs.

    Raises:
        Exhausted, Unavailable: the store cannot be read or written; what is there stays as it was.
        ParityLibraryMissing: there is parity, and pyeclib is not installed.

    """
    try:
        pack_bytes = verify_pack(PackReader(tenant.blobs, tenant.keys), tenant.keys, pack)
    except (PackDamaged, BlobMissing, BlobShort, Unavailable) as damage:
        return _repair(tenant, catalog, pack, now_ns, damage)
    catalog.packs.mark_sound(tenant.id, pack, now_ns)
    return RepairReport(pack, Outcome.SOUND, found_bytes=pack_bytes, pack_bytes=pack_bytes)


def repair_if_possible(tenant: Tenant, catalog: Catalog, pack: bytes, now_ns: int) -> RepairReport | None:
    """As `repair_pack`, for callers that have another way if it fails; None: there is no parity, or no pyeclib.

    Raises:
        Exhausted, Unavailable: the store cannot be read or written; what is there stays as it was.

    """
    if not has_parity(tenant.blobs, tenant.id, pack):
        return None
    try:
        return repair_pack(tenant, catalog, pack, now_ns)
    except ParityLibraryMissing as e:
        log.warning("pack %s has parity, and cannot be repaired: %s", pack.hex(), e.message)
        return None


def _repair(
    tenant: Tenant, catalog: Catalog, pack: bytes, now_ns: int, damage: Damaged | Unavailable
) -> RepairReport:
    try:
        mended: Mended = Parity(tenant.blobs, tenant.keys).mend(pack)
    except Damaged as error:
        if isinstance(damage, Unavailable):
            # Without parity, what cannot be read says nothing about what is stored.
            raise damage from error
        return _not_repaired(tenant, pack, damage, error)
    catalog.packs.mark_sound(tenant.id, pack, now_ns)
    log.info("pack %s was repaired with its parity: %s", pack.hex(), damage.message)
    return RepairReport(pack, Outcome.REPAIRED, damage.message, *mended)


def _not_repaired(tenant: Tenant, pack: bytes, damage: Damaged, error: Damaged) -> RepairReport:
    if isinstance(error, BlobMissing) and error.name == parity_name(tenant.id, pack):
        return RepairReport(pack, Outcome.NO_PARITY, f"{damage.message}; it has no parity")
    why = error.message if isinstance(error, BeyondParity) else f"{damage.message}; {error.message}"
    return RepairReport(pack, Outcome.BEYOND, why)


def make_parity(tenant: Tenant, catalog: Catalog, pack: bytes, percent: int) -> int:
    """Make the parity of a pack, in place of what there may be; its bytes, 0 if the pack is not live any more.

    Durable on return. A crash on the way leaves a pack that counts as one without parity, and the next run makes it again.

    Raises:
        PackDamaged, BlobMissing, BlobShort: the pack is not whole, which is marked in the catalog; it gets no parity.
        Exhausted, Unavailable: the store cannot be read or written.
        ParityLibraryMissing: pyeclib is not installed.

    """
    try:
        parity_bytes = Parity(tenant.blobs, tenant.keys).make(pack, percent)
    except PackDamaged as damage:
        doubt(tenant, catalog, pack, damage.mark)
        raise
    except (BlobMissing, BlobShort):
        catalog.packs.mark_damaged(tenant.id, pack)
        raise
    if catalog.packs.set_parity(tenant.id, pack, parity_bytes):
        return parity_bytes
    # It was condemned meanwhile, and the collector may have removed its parity already.
    remove_parity(tenant.blobs, tenant.id, pack)
    return 0


def make_all(
    tenants: Tenants,
    catalog: Catalog,
    percent: int,
    *,
    since_ns: int = 0,
    stopping: Stopping = lambda: False,
    tick: Callable[[PackParity, int], None] = lambda _pack, _bytes: None,
) -> ParityReport:
    """Make the parity of all live packs that were begun at `since_ns` or later, are not marked as damaged and have none.

    `tick` receives each pack and the bytes of its parity. What is done stays done when it is stopped or killed. Raises what
    `make_parity` does, but for damage, which is in the report, as are tenants whose keys are damaged.
    """
    packs = pack_bytes = parity_bytes = 0
    damaged: list[tuple[bytes, bytes, str]] = []
    for each in _pages(lambda after: catalog.packs.without_parity(after, _BATCH, since_ns)):
        if stopping():
            return ParityReport(packs, pack_bytes, parity_bytes, tuple(damaged), finished=False)
        try:
            made = make_parity(tenants.get(each.tenant), catalog, each.pack, percent)
        except Damaged as damage:
            damaged.append((each.tenant, each.pack, damage.message))
            continue
        if made:
            packs, pack_bytes, parity_bytes = packs + 1, pack_bytes + each.size_bytes, parity_bytes + made
            tick(each, made)
    return ParityReport(packs, pack_bytes, parity_bytes, tuple(damaged))


def forget_lost(tenants: Tenants, catalog: Catalog, blobs: Blobs, *, read: bool = False) -> int:
    """Look which parity objects are gone or of another length: their packs count as without from then on. How many.

    With `read`, all packs that have parity are read, and their parity, and those count, too, where anything does not fit.
    """
    lost = 0
    for each in _pages(lambda after: catalog.packs.with_parity(after, _BATCH)):
        if not _fits(tenants, blobs, each, read=read):
            lost += catalog.packs.set_parity(each.tenant, each.pack, 0)
    return lost


def _fits(tenants: Tenants, blobs: Blobs, pack: PackParity, *, read: bool) -> bool:
    try:
        if blobs.size(parity_name(pack.tenant, pack.pack)) != pack.parity_bytes:
            return False
    except BlobMissing:
        return False
    return not read or _fits_the_pack(tenants, pack)


def _fits_the_pack(tenants: Tenants, pack: PackParity) -> bool:
    try:
        tenant = tenants.get(pack.tenant)
    except Damaged:
        return True  # without the tenant's keys there is nothing to be said of its packs
    try:
        Parity(tenant.blobs, tenant.keys).check(pack.pack)
    except Damaged:
        return False
    return True


def remove_orphans(blobs: Blobs, catalog: Catalog, tenant: bytes) -> int:
    """Remove parity of a tenant's packs that are gone, of which there is neither a row nor an object. How many."""
    packs = _parities_of(blobs, tenant)
    removed = 0
    while batch := list(islice(packs, _BATCH)):
        known = catalog.packs.known(tenant, batch)
        removed += sum(_remove_orphan(blobs, tenant, pack) for pack in batch if pack not in known)
    return removed


def _parities_of(blobs: Blobs, tenant: bytes) -> Iterator[bytes]:
    for name, _ in blobs.list(parity_prefix(tenant)):
        with suppress(ValueError):  # what is not ours is left alone
            yield parse_parity_name(name)[1]


def _remove_orphan(blobs: Blobs, tenant: bytes, pack: bytes) -> bool:
    # A pack without a row may be one of a catalog that was put back from an older copy: then its parity is still wanted.
    with suppress(BlobMissing):
        blobs.size(pack_name(tenant, pack))
        return False
    return remove_parity(blobs, tenant, pack)


def _pages(page: Callable[[int], list[PackParity]]) -> Iterator[PackParity]:
    after = 0
    while found := page(after):
        yield from found
        after = found[-1].row


# --- what the server does by itself


def parity_task(tenants: Tenants, catalog: Catalog, clock: Clock, percent: int) -> Task:
    """What makes parity of packs that are begun from now on, or from when it was switched on; percent 0: off.

    Raises ParityLibraryMissing if it is on and pyeclib is not installed.
    """
    if percent:
        code(PARITY_COLUMNS_MAX, percent, PARITY_BLOCK_BYTES)
    since_ns = _switch(catalog, clock.now_ns(), on=percent > 0)

    def run(stopping: Stopping) -> str:
        end_s = clock.monotonic_s() + TURN_S

        def enough() -> bool:
            return stopping() or clock.monotonic_s() > end_s

        return _words(make_all(tenants, catalog, percent, since_ns=since_ns, stopping=enough))

    return Task("parity", EVERY_S if percent else 0, run)


def _switch(catalog: Catalog, now_ns: int, *, on: bool) -> int:
    """Keep in the catalog since when parity is on, over restarts; 0 if it is off."""
    last = catalog.tasks.last(SWITCHED_ON)
    was_on = last.begun_ns is not None and last.ended_ns is None
    if on and not was_on:
        catalog.tasks.begin(SWITCHED_ON, now_ns)
    elif was_on and not on:
        catalog.tasks.end(SWITCHED_ON, now_ns, "switched off")
    return (catalog.tasks.last(SWITCHED_ON).begun_ns or 0) if on else 0


def _words(report: ParityReport) -> str:
    said = []
    if report.packs:
        said.append(f"parity was made for {counted(report.packs, 'pack')}, {size(report.parity_bytes)}")
    if not report.finished:
        said.append("there are more")
    if report.damaged:
        said.append(f"{counted(len(report.damaged), 'pack')} not whole: {report.damaged[0][2]}")
    return "; ".join(said)
