"""Parity of stored packs: made in the background, and used to repair damaged packs."""

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
from staddle_server.upkeep.shared_setting import PARITY_PERCENT, SharedSetting

log = logging.getLogger(__name__)

EVERY_S: Final = 60.0
TURN_S: Final = 60.0
"""How long the task runs before it yields to others; it resumes when it is due again."""
TASK: Final = "parity"
_BATCH: Final = 500


class Outcome(enum.Enum):
    """The result for a pack."""

    SOUND = "sound"
    """Every byte was read, and is intact."""
    REPAIRED = "repaired"
    NO_PARITY = "no parity"
    """It is damaged, and has no parity."""
    BEYOND = "beyond parity"
    """It has lost more than its parity restores, or the parity is damaged itself."""


class RepairReport(NamedTuple):
    """The result for one pack.

    Attributes:
        pack: Its id.
        outcome: The result; unless it is sound or repaired, nothing was changed.
        found: What was wrong with it, and what prevents its repair; "" if it is sound.
        ranges: What was restored, in whole blocks.
        found_bytes: The length of the existing object; None if it was missing, or was not read.
        pack_bytes: Its current length; 0 if unknown.

    """

    pack: bytes
    outcome: Outcome
    found: str = ""
    ranges: tuple[PackRange, ...] = ()
    found_bytes: int | None = None
    pack_bytes: int = 0


class ParityReport(NamedTuple):
    """The result of a run of `make_all`.

    Attributes:
        packs: How many packs got parity.
        pack_bytes: Their bytes.
        parity_bytes: The bytes of their parity.
        damaged: Packs that cannot have parity because they are damaged, with the reason, by tenant and id.
        finished: Whether it processed all of them without a stop.

    """

    packs: int = 0
    pack_bytes: int = 0
    parity_bytes: int = 0
    damaged: tuple[tuple[bytes, bytes, str], ...] = ()
    finished: bool = True


def repair_pack(tenant: Tenant, catalog: Catalog, pack: bytes, now_ns: int) -> RepairReport:
    """Check every byte of a pack, and repair it from its parity if it is damaged, truncated or gone.

    The marks of a pack that is intact in the end, repaired or not, are cleared. If it cannot be repaired
    nothing changes. Unreadable sectors count as lost. Safe beside reads, uploads and other repairs.

    Raises:
        Exhausted, Unavailable: The store cannot be read or written; it stays unchanged.
        ParityLibraryMissing: The pack has parity, and pyeclib is not installed.

    """
    try:
        pack_bytes = verify_pack(PackReader(tenant.blobs, tenant.keys), tenant.keys, pack)
    except (PackDamaged, BlobMissing, BlobShort, Unavailable) as damage:
        return _repair(tenant, catalog, pack, now_ns, damage)
    catalog.packs.mark_sound(tenant.id, pack, now_ns)
    return RepairReport(pack, Outcome.SOUND, found_bytes=pack_bytes, pack_bytes=pack_bytes)


def repair_if_possible(tenant: Tenant, catalog: Catalog, pack: bytes, now_ns: int) -> RepairReport | None:
    """Repair as `repair_pack` does, for callers with an alternative; return None without parity or without
    pyeclib.

    Raises:
        Exhausted, Unavailable: The store cannot be read or written; it stays unchanged.

    """
    if not has_parity(tenant.blobs, tenant.id, pack):
        return None
    try:
        return repair_pack(tenant, catalog, pack, now_ns)
    except ParityLibraryMissing as e:
        log.warning("pack %s has parity, but cannot be repaired: %s", pack.hex(), e.message)
        return None


def _repair(
    tenant: Tenant, catalog: Catalog, pack: bytes, now_ns: int, damage: Damaged | Unavailable
) -> RepairReport:
    try:
        mended: Mended = Parity(tenant.blobs, tenant.keys).mend(pack)
    except Damaged as error:
        if isinstance(damage, Unavailable):
            # Without parity, unreadable bytes say nothing about the stored data.
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
    """Make the parity of a pack, replacing any older one; return its bytes, 0 if the pack is not live any
    more.

    Durable on return. After a crash the pack counts as one without parity, and the next run makes it.

    Raises: PackDamaged, BlobMissing, BlobShort: The pack is damaged, which is marked in the catalog; it gets
        no parity. Exhausted, Unavailable: The store cannot be read or written.
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
    """Make parity for all live packs begun at `since_ns` or later that are not marked as damaged and have
    none.

    `tick` receives each pack and the bytes of its parity. A stop or kill keeps what is done. Raises as
    `make_parity` does, except for damage, which is in the report, as are tenants whose keys are damaged.
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
    """Find parity objects that are gone or have another length, count their packs as without, and return how
    many.

    With `read`, also read all packs with parity and their parity, and include every mismatch.
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
        return True  # without the tenant's keys its packs cannot be checked
    try:
        Parity(tenant.blobs, tenant.keys).check(pack.pack)
    except Damaged:
        return False
    return True


def remove_orphans(blobs: Blobs, catalog: Catalog, tenant: bytes) -> int:
    """Remove parity of a tenant's packs that have neither a row nor an object; return how many."""
    packs = _parities_of(blobs, tenant)
    removed = 0
    while batch := list(islice(packs, _BATCH)):
        known = catalog.packs.known(tenant, batch)
        removed += sum(_remove_orphan(blobs, tenant, pack) for pack in batch if pack not in known)
    return removed


def _parities_of(blobs: Blobs, tenant: bytes) -> Iterator[bytes]:
    for name, _ in blobs.list(parity_prefix(tenant)):
        with suppress(ValueError):  # foreign objects are left alone
            yield parse_parity_name(name)[1]


def _remove_orphan(blobs: Blobs, tenant: bytes, pack: bytes) -> bool:
    # A pack without a row may belong to a catalog restored from an older copy: then its parity is still
    # needed.
    with suppress(BlobMissing):
        blobs.size(pack_name(tenant, pack))
        return False
    return remove_parity(blobs, tenant, pack)


def _pages(page: Callable[[int], list[PackParity]]) -> Iterator[PackParity]:
    after = 0
    while found := page(after):
        yield from found
        after = found[-1].row


# --- scheduled work


def parity_task(tenants: Tenants, catalog: Catalog, clock: Clock, percent: int) -> Task:
    """Return the task that makes parity for packs begun from now on, or since it was switched on; percent 0:
    off.

    Raises ParityLibraryMissing if it is on and pyeclib is not installed.
    """
    if percent:
        code(PARITY_COLUMNS_MAX, percent, PARITY_BLOCK_BYTES)
    setting = SharedSetting(catalog, clock, PARITY_PERCENT, percent)

    def run(stopping: Stopping) -> str:
        end_s = clock.monotonic_s() + TURN_S

        def enough() -> bool:
            return stopping() or clock.monotonic_s() > end_s

        now = setting.in_force()
        if not now.value:
            return ""
        return _words(make_all(tenants, catalog, now.value, since_ns=now.since_ns, stopping=enough))

    return Task(TASK, EVERY_S if percent else 0, run)


def _words(report: ParityReport) -> str:
    said = []
    if report.packs:
        said.append(f"parity was made for {counted(report.packs, 'pack')}, {size(report.parity_bytes)}")
    if not report.finished:
        said.append("more are left")
    if report.damaged:
        said.append(f"{counted(len(report.damaged), 'pack')} damaged: {report.damaged[0][2]}")
    return "; ".join(said)
