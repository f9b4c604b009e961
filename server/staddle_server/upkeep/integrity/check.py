"""Check a store: compare what it should have with what it has (docs/operations.md, "Check, scrub,
repair").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from staddle_server.base.errors import Damaged, StaddleError
from staddle_server.catalog import FOOTER, WHOLE_PACK, LivePack, TenantRow
from staddle_server.store.pack import pack_name, packs_prefix, parse_pack_name
from staddle_server.store.records import records_prefix
from staddle_server.tenancy.pack_check import Examined, Examiner, Pace, PackFault
from staddle_server.tenancy.pack_listing import each_pack
from staddle_server.tenancy.pack_presence import stored_size
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.integrity.damaged_paths import LostPaths, each_backup
from staddle_server.upkeep.integrity.findings import DAMAGE, HEALED, NOTE, Emit, Finding, Kept
from staddle_server.upkeep.integrity.lost_keys import keys_words
from staddle_server.upkeep.integrity.record_check import Said, missing_records, read_records, unknown_backups
from staddle_server.upkeep.rebuild.catalog_age import was_finished


@dataclass
class Summary:
    """What a check read, and what it found."""

    tenants: int = 0
    packs: int = 0
    packs_read: int = 0
    bytes_read: int = 0
    records: int = 0
    backups: int = 0
    chunks: int = 0
    """References of manifests looked up."""
    damage: int = 0
    """Findings that matter."""
    healed: int = 0
    cleared: int = 0
    """Marks that were wrong, and were removed."""
    paths: int = 0
    """Paths in backups that cannot be restored completely."""
    orphans: int = 0
    orphan_bytes: int = 0
    """Objects without a row, and their bytes: left by a crash; the collector removes them."""
    temporary: int = 0
    """Files in store/tmp: in progress, or left by a crash; the next start removes the latter."""


class CheckProgress(Protocol):
    """Receives the progress of a check from time to time."""

    def __call__(self, doing: str, done: int, total: int) -> None:
        """Report `done` of `total` bytes (packs) or backups."""


def silent(doing: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass
class CheckPlan:
    """How a check runs.

    Attributes:
        read: Whether to read packs without suspicion; then also walk the manifests.
        share: The share of these to read, 0 to 1; others are read only for a reason.
        random: Picks them.
        pace: Receives the size of every read.
        mark_damage: Whether to mark findings in the catalog.

    """

    read: bool = False
    share: float = 1.0
    random: Random = field(default_factory=Random)
    pace: Pace = lambda _size, _chunks: None
    mark_damage: bool = True


class Check:
    """One check of a store."""

    def __init__(self, kept: Kept, plan: CheckPlan, emit: Emit, progress: CheckProgress = silent) -> None:
        self.kept = kept
        self.plan = plan
        self.progress = progress
        self._take = emit
        self.summary = Summary()

    def run(self, tenants: Sequence[TenantRow], *, all_tenants: bool) -> Summary:
        """Check these tenants; with `all_tenants` also that the store has no others.

        Raises:
            Unavailable: The store or the catalog does not answer at all.

        """
        for row in tenants:
            self.summary.tenants += 1
            tenant = self._open(row)
            if tenant is not None:
                _TenantCheck(self, tenant, row).run()
        if all_tenants:
            self._look_for_others({row.id for row in tenants})
        return self.summary

    def emit(self, finding: Finding) -> None:
        """Count a finding and pass it on."""
        self.summary.damage += finding.severity == DAMAGE
        self.summary.healed += finding.severity == HEALED
        self._take(finding)

    def _open(self, row: TenantRow) -> Tenant | None:
        try:
            return self.kept.tenants.get(row.id)
        except Damaged as e:
            self.emit(keys_finding(self.kept, row, e))
            return None

    def _look_for_others(self, known: set[bytes]) -> None:
        for tenant in self.kept.keys.tenant_ids():
            if tenant in known:
                continue
            severity, why = (
                (DAMAGE, "the catalog is older than the store; restore a newer copy, or rebuild it")
                if was_finished(self.kept.blobs, tenant)
                else (NOTE, "its creation did not come to its end, and it has no data")
            )
            words = f"the store has keys of a tenant {tenant.hex()} that the catalog does not know: {why}"
            self.emit(Finding("keys", severity, words, object=f"keys/{tenant.hex()}"))


class _TenantCheck:
    """The check of one tenant."""

    def __init__(self, check: Check, tenant: Tenant, row: TenantRow) -> None:
        self._check = check
        self._tenant = tenant
        self._row = row
        self._catalog = check.kept.catalog
        self._found: list[Examined] = []
        """Packs with something to report."""

    def run(self) -> None:
        self._look_at_records()
        self._look_at_packs()
        self._look_for_orphans()
        lost = self._walk()
        for seen in self._found:
            for finding in pack_findings(self._tenant, seen, lost):
                self._check.emit(finding)
            self._check.summary.cleared += len(seen.cleared)

    # --- records

    def _look_at_records(self) -> None:
        said, wanted = missing_records(
            self._tenant, self._catalog, self._row, self._check.kept.clock.now_ns()
        )
        self._check.summary.records += said.count + len(said.damaged)
        newer = said.chain.newest - self._catalog.tenants.newest_record(self._tenant.id)
        if newer > 0:
            self._check.emit(
                Finding(
                    "older-catalog",
                    DAMAGE,
                    f"the catalog is older than its store: it does not know {newer} of the newest decisions of tenant "
                    f"{self._tenant.name}; restore its newest copy, or run `rebuild --replace`",
                    tenant=self._tenant.name,
                )
            )
            wanted = []  # an older catalog may contradict later decisions
        for finding in record_findings(self._tenant, said.damaged, [each.what for each in wanted]):
            self._check.emit(finding)
        for finding in chain_findings(self._tenant, said):
            self._check.emit(finding)
        # The head follows its record at once, but not before a concurrent check can see that: what counts as
        # durable has its head.
        head = head_finding(self._tenant, self._catalog.verification.recorded(self._tenant.id))
        if head is not None:
            self._check.emit(head)
        unknown = unknown_backups(said, self._catalog.verification.facts(self._tenant.id))
        if unknown:
            # A backup purged between the two reads has a record of that by now.
            unknown = unknown_backups(
                read_records(self._tenant), self._catalog.verification.facts(self._tenant.id)
            )
        for backup in unknown:
            self._check.emit(
                Finding(
                    "unknown-backup",
                    DAMAGE,
                    f"the store has a record of backup {backup.hex()}, which the catalog does not know: the catalog is older than "
                    "the store; restore a newer copy, or rebuild it",
                    tenant=self._tenant.name,
                    backup=backup.hex(),
                )
            )

    # --- packs

    def _look_at_packs(self) -> None:
        plan, summary = self._check.plan, self._check.summary
        total, total_bytes = self._catalog.verification.totals(self._tenant.id)
        done = 0

        def pace(size: int, chunks: int) -> None:
            nonlocal done
            done += size
            self._check.progress("reading", done, int(total_bytes * plan.share) if plan.read else total_bytes)
            plan.pace(size, chunks)

        examiner = Examiner(
            self._tenant, self._catalog, self._check.kept.clock, pace, mark_damage=plan.mark_damage
        )
        for number, pack in enumerate(each_pack(self._catalog, self._tenant.id)):
            if not plan.read:
                self._check.progress("packs", number, total)
            seen = self._look_at(examiner, pack)
            if seen.gone:
                continue
            summary.packs += 1
            if seen.read_bytes:
                summary.packs_read += 1
                summary.bytes_read += seen.read_bytes
            if seen.faults or seen.cleared or pack.marks:
                self._found.append(seen)

    def _look_at(self, examiner: Examiner, pack: LivePack) -> Examined:
        plan = self._check.plan
        if plan.read and plan.random.random() < plan.share:
            return examiner.read(pack)
        seen = examiner.glance(pack)
        # Suspected packs are read completely, so that their findings are certain.
        suspected = pack.marks or any(fault.kind in {"footer", "index"} for fault in seen.faults)
        return examiner.read(pack) if suspected and not seen.gone else seen

    def _look_for_orphans(self) -> None:
        listed: dict[bytes, int] = {}
        for name, size in self._check.kept.blobs.list(packs_prefix(self._tenant.id)):
            try:
                listed[parse_pack_name(name)[1]] = size
            except ValueError:
                self._orphan(size)
            if len(listed) >= 1000:
                self._count_orphans(listed)
                listed = {}
        self._count_orphans(listed)

    def _count_orphans(self, listed: dict[bytes, int]) -> None:
        for pack in self._catalog.verification.without_row(self._tenant.id, list(listed)):
            # A pack may go between the listing and the query.
            if stored_size(self._tenant, pack) is not None:
                self._orphan(listed[pack])

    def _orphan(self, size: int) -> None:
        self._check.summary.orphans += 1
        self._check.summary.orphan_bytes += size

    # --- manifests

    def _walk(self) -> LostPaths:
        """Report the lost paths; read all manifests only if there is a reason, else look up the first page of
        each.
        """
        lost = LostPaths(self._tenant, self._catalog)
        summary = self._check.summary
        total = 0
        walk = self._check.plan.read or bool(self._found)
        for total, backup in enumerate(each_backup(self._catalog, self._tenant.id), start=1):
            self._check.progress("backups", total, 0)
            walk = walk or not lost.has_root(backup)
        summary.backups += total
        if walk:
            for number, backup in enumerate(each_backup(self._catalog, self._tenant.id)):
                self._check.progress("paths", number, total)
                summary.paths += lost.name(backup, self._check.emit)
        summary.chunks += lost.chunks
        return lost


def keys_finding(kept: Kept, row: TenantRow, error: StaddleError) -> Finding:
    """Return the finding for a tenant whose keys do not open: nothing else of it can be checked."""
    return Finding(
        "keys",
        DAMAGE,
        keys_words(kept.blobs, kept.keys, row, error),
        tenant=row.name,
        object=f"keys/{row.id.hex()}",
    )


def record_findings(tenant: Tenant, damaged: dict[str, str], missing: Iterable[str]) -> list[Finding]:
    """Return findings for records that do not open, and for missing ones."""
    absent = list(missing)
    found = [
        Finding(
            "record",
            DAMAGE,
            f"no record says that {what}: a rebuild would not know; `repair` writes it again",
            tenant=tenant.name,
        )
        for what in absent
    ]
    severity = DAMAGE if absent else HEALED
    why = "" if absent else "; all that the catalog knows is in other records"
    for name, message in damaged.items():
        found.append(Finding("record", severity, message + why, tenant=tenant.name, object=name))
    return found


def chain_findings(tenant: Tenant, said: Said) -> Iterator[Finding]:
    """Yield findings for missing records, and for those out of sequence.

    What a rebuild did not find is lost.
    """
    for span in said.missing:
        known = span.first > said.rebuilt
        then = (
            "the catalog knows everything in it that still counts, and `repair` writes that again"
            if known
            else "the catalog was rebuilt without it, so its content is lost. Restore the object from a copy of the store and "
            "rebuild again; or accept the loss with `repair --accept-lost-records`"
        )
        yield Finding(
            "record-missing",
            DAMAGE,
            f"{span.missing_of(tenant.name)} in the store: {then}",
            tenant=tenant.name,
            object=records_prefix(tenant.id),
        )
    for found in said.chain.breaks:
        known = found.sequence <= said.rebuilt
        then = (
            "the catalog was rebuilt from both, so nothing is left to do"
            if known
            else "as after restoring an older catalog. Rebuild the catalog"
        )
        yield Finding(
            "record-order",
            HEALED if known else DAMAGE,
            f"{found}: records of two histories are mixed; {then}",
            tenant=tenant.name,
            object=records_prefix(tenant.id),
        )


def head_finding(tenant: Tenant, newest: int) -> Finding | None:
    """Return a finding if the tenant's head does not state at least `newest`, the last record known to be
    durable.
    """
    head = tenant.records.head
    try:
        if head.read() >= newest:
            return None
        why = f"the stored object {head.name} is older than the newest record"
    except Damaged as e:
        why = e.message
    return Finding(
        "head",
        DAMAGE,
        f"{why}: a rebuild could not tell whether the newest records exist; `repair` writes it again",
        tenant=tenant.name,
        object=head.name,
    )


_KINDS: Final = {WHOLE_PACK: "pack", FOOTER: "footer"}


def pack_findings(tenant: Tenant, seen: Examined, lost: LostPaths) -> Iterator[Finding]:
    """Yield the findings of a pack, once it is known which of its data is referred to."""
    pack = seen.pack.id
    reported = {fault.segment for fault in seen.faults} | seen.marks()
    # Damage that a glance cannot see is reported because it was marked before.
    before = [
        PackFault(_KINDS.get(offset, "segment"), "it was found damaged before", max(offset, WHOLE_PACK))
        for offset in sorted(seen.pack.marks - set(seen.cleared) - reported)
    ]
    for fault in [*seen.faults, *before]:
        severity, then = _weight(seen, fault, lost)
        where = f"pack {pack.hex()}" + (
            f", segment at {fault.segment}" if fault.segment != WHOLE_PACK else ""
        )
        yield Finding(
            fault.kind,
            severity,
            f"{fault.message if pack.hex() in fault.message else f'{where}: {fault.message}'}; {then}",
            tenant=tenant.name,
            pack=pack.hex(),
            segment=fault.segment,
            chunks=fault.chunks,
            object=pack_name(tenant.id, pack),
        )
    yield from cleared_findings(tenant, seen)


_PLACES: Final = {WHOLE_PACK: "as a whole", FOOTER: "in its header or footer"}


def cleared_findings(tenant: Tenant, seen: Examined) -> Iterator[Finding]:
    """Yield findings for marks of a pack that were wrong."""
    pack = seen.pack.id
    for offset in seen.cleared:
        where = _PLACES.get(offset, f"at {offset}")
        yield Finding(
            "cleared",
            NOTE,
            f"pack {pack.hex()} was marked as damaged {where}, but is intact: the mark was removed",
            tenant=tenant.name,
            pack=pack.hex(),
            segment=offset,
            object=pack_name(tenant.id, pack),
        )


def _weight(seen: Examined, fault: PackFault, lost: LostPaths) -> tuple[str, str]:
    """Return how bad a fault is, and what repairs it."""
    pack = seen.pack.id
    match fault.kind:
        case "unanswered":
            return DAMAGE, "this says nothing about the stored data; check the disk, and check again"
        case "index":
            return DAMAGE, "`repair` writes the index again"
        case "footer" if WHOLE_PACK not in seen.pack.marks:
            return DAMAGE, "all its segments are readable by the index; `repair` copies them into a new pack"
    if lost.needs(pack, fault.segment):
        return (
            DAMAGE,
            "the paths that need it are listed; `repair` saves what is readable, and the next backup of them heals it",
        )
    return HEALED, "no restorable data needs it"
