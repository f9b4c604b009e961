"""Repairs keys, records and index rows from their other copy, and saves chunks from damaged packs.

Never discards anything: a damaged pack stays, and stays readable, until the collector finds that nothing
needs it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from staddle._base.figures import counted

from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.base.limits import PACK_BYTES_MAX
from staddle_server.base.types import ChunkPlace, ChunkRef, StoredChunk
from staddle_server.catalog import WHOLE_PACK, TenantRow, indexed_id
from staddle_server.store.blobs import BlobMissing, replace_object
from staddle_server.store.frame import compress
from staddle_server.store.keys import keys_name
from staddle_server.store.pack import Segment, Unreadable
from staddle_server.store.pack_writer import PackWriter
from staddle_server.store.records import SPANS_MAX, ForgottenRecord
from staddle_server.tenancy.pack_check import Examined, Examiner, check_digests
from staddle_server.tenancy.pack_listing import each_pack
from staddle_server.tenancy.records import as_pending, finish_missing
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.gc.collector import LEASE_S
from staddle_server.upkeep.integrity.check import (
    Check,
    CheckPlan,
    CheckProgress,
    chain_findings,
    cleared_findings,
    head_finding,
    keys_finding,
    pack_findings,
    record_findings,
    silent,
)
from staddle_server.upkeep.integrity.damaged_paths import LostPaths, each_backup
from staddle_server.upkeep.integrity.findings import DAMAGE, NOTE, Emit, Finding, Kept
from staddle_server.upkeep.integrity.lost_keys import catalog_has_keys
from staddle_server.upkeep.integrity.parity import Outcome, repair_if_possible
from staddle_server.upkeep.integrity.record_check import Said, missing_records

LOOKED_AT: Final = frozenset(
    {
        "cleared",
        "footer",
        "head",
        "index",
        "keys",
        "manifest",
        "pack",
        "path",
        "record",
        "record-missing",
        "record-order",
    }
    | {"segment", "unanswered"}
)
"""Kinds of findings that a dry run reports itself: what would be left of them."""


@dataclass
class Repaired:
    """What a repair did, or with `dry_run` would do, and what is lost all the same."""

    keys: int = 0
    records: int = 0
    index_packs: int = 0
    """Packs whose index was written again."""
    parity_packs: int = 0
    """Packs repaired from their parity."""
    chunks: int = 0
    """Chunks saved from damaged packs into new ones."""
    bytes: int = 0
    packs: int = 0
    """New packs."""
    cleared: int = 0
    damage: int = 0
    """Findings that it could not repair."""
    paths: int = 0
    """Paths in backups that cannot be restored completely."""


class Repair:
    """One repair of a store."""

    def __init__(
        self,
        kept: Kept,
        emit: Emit,
        progress: CheckProgress = silent,
        *,
        dry_run: bool = False,
        accept_lost_records: bool = False,
    ) -> None:
        """`accept_lost_records`: accept the loss of records that a rebuild did not find."""
        self.kept = kept
        self.progress = progress
        self.dry_run = dry_run
        self.accept_lost_records = accept_lost_records
        self.done = Repaired()
        self._take = emit

    def run(self, tenants: Sequence[TenantRow], *, all_tenants: bool = True) -> Repaired:
        """Repair these tenants (`all_tenants`: there are no others), and then check them: the check's
        findings are what is left.

        A dry run, which repairs nothing, counts as left what it would not repair.

        Raises:
            Unavailable: The store or the catalog does not answer; what was done until then stays.
            Conflict: LEASE_HELD, STALE_EPOCH: a collection is running; what was done stays.
            Exhausted: No space for saved chunks.

        """
        for row in tenants:
            tenant = self._open(row)
            if tenant is not None:
                _TenantRepair(self, tenant, row).run()
        self._check(tenants, all_tenants=all_tenants)
        return self.done

    def _check(self, tenants: Sequence[TenantRow], *, all_tenants: bool) -> None:
        """Check the result: the definition of damage is that of `check`."""
        left: list[Finding] = []
        plan = CheckPlan(mark_damage=not self.dry_run)
        take = left.append if self.dry_run else self.emit
        checked = Check(self.kept, plan, take, self.progress).run(tenants, all_tenants=all_tenants)
        if not self.dry_run:
            self.done.paths = checked.paths
            return
        for finding in left:
            if finding.kind not in LOOKED_AT:
                self.emit(finding)

    def emit(self, finding: Finding) -> None:
        """Count a finding and pass it on."""
        self.done.damage += finding.severity == DAMAGE
        self._take(finding)

    def note(self, finding: Finding) -> None:
        """Pass on what says nothing about what is left."""
        self._take(replace(finding, severity=NOTE))

    def say(self, kind: str, message: str, tenant: str, **fields: str) -> None:
        """Report a repair."""
        would = "would be repaired: " if self.dry_run else "repaired: "
        self._take(Finding(kind, NOTE, would + message, tenant=tenant, **fields))  # type: ignore[arg-type]

    def _open(self, row: TenantRow) -> Tenant | None:
        try:
            return self.kept.tenants.get(row.id)
        except Damaged as error:
            if not self._write_keys(row):
                if self.dry_run:
                    self.emit(keys_finding(self.kept, row, error))
                return None
        return None if self.dry_run else self.kept.tenants.get(row.id)

    def _write_keys(self, row: TenantRow) -> bool:
        """Write the keys from the catalog's copy of the tenant's wrapped keys."""
        if not catalog_has_keys(self.kept.blobs, self.kept.keys, row):
            return False
        name = keys_name(row.id, row.keys_version)
        self.say("keys", f"the keys of tenant {row.name}, from the catalog", row.name, object=name)
        self.done.keys += 1
        if not self.dry_run:
            replace_object(self.kept.blobs, name, row.wrapped_keys)
        return True


class _TenantRepair:
    """The repair of one tenant."""

    def __init__(self, repair: Repair, tenant: Tenant, row: TenantRow) -> None:
        self._repair = repair
        self._kept = repair.kept
        self._tenant = tenant
        self._row = row

    def run(self) -> None:
        self._mend_records()
        found = self._mend_packs()
        self._repair.done.cleared += sum(len(seen.cleared) for seen in found)
        if not self._repair.dry_run:
            for seen in found:
                for finding in cleared_findings(self._tenant, seen):
                    self._repair.emit(finding)
            return
        lost = LostPaths(self._tenant, self._kept.catalog)
        for backup in each_backup(self._kept.catalog, self._tenant.id):
            self._repair.done.paths += lost.name(backup, self._repair.emit)
        for seen in found:
            for finding in pack_findings(self._tenant, seen, lost):
                self._repair.emit(finding)

    # --- records

    def _mend_records(self) -> None:
        catalog, now_ns = self._kept.catalog, self._kept.clock.now_ns()
        if not self._repair.dry_run:
            finish_missing(self._tenant, catalog)
        said, wanted = missing_records(self._tenant, catalog, self._row, now_ns)
        for each in wanted:
            self._repair.say("record", f"the record that {each.what}", self._tenant.name)
            if not self._repair.dry_run:
                with catalog.tenants.deciding(
                    self._tenant.id, said.history.last_ns
                ):  # later decisions come after it
                    # Under a new id: a damaged record keeps its name.
                    catalog.tenants.keep_records(self._tenant.id, [as_pending(self._tenant.id, each.record)])
            self._repair.done.records += 1
        if self._repair.dry_run:
            for finding in record_findings(self._tenant, said.damaged, ()):
                self._repair.emit(finding)
        self._mend_chain(said, now_ns)

    def _mend_chain(self, said: Said, now_ns: int) -> None:
        """Permit the absence of lost records without loss: their content is written by now."""
        catalog = self._kept.catalog
        accepted = self._repair.accept_lost_records
        given_up = [span for span in said.missing if accepted or span.first > said.rebuilt]
        for span in given_up:
            what = f"{span}: all that still counts in it is in other records"
            if span.first <= said.rebuilt:
                what = f"{span}: its loss is accepted, with its content"
            self._repair.say("record-missing", what, self._tenant.name)
        if given_up and not self._repair.dry_run:
            with catalog.tenants.deciding(self._tenant.id, now_ns) as at_ns:
                spans = [(span.first, span.last) for span in given_up[:SPANS_MAX]]
                record = ForgottenRecord(spans=spans, at_ns=at_ns)
                catalog.tenants.keep_records(self._tenant.id, [as_pending(self._tenant.id, record)])
        if not self._repair.dry_run:
            finish_missing(self._tenant, catalog)
        recorded = catalog.verification.facts(self._tenant.id).recorded
        finding = head_finding(self._tenant, recorded)
        if finding is not None:
            self._repair.say(
                "head", "the head of the records", self._tenant.name, object=self._tenant.records.head.name
            )
            if not self._repair.dry_run:
                self._tenant.records.head.write(recorded)
        said.missing = [span for span in said.missing if span not in given_up]
        if self._repair.dry_run:
            for left in chain_findings(self._tenant, said):
                self._repair.emit(left)

    # --- packs

    def _mend_packs(self) -> list[Examined]:
        """Repair what is wrong with packs; return those with something left to report."""
        catalog = self._kept.catalog
        total, _ = catalog.verification.totals(self._tenant.id)
        examiner = Examiner(self._tenant, catalog, self._kept.clock, mark_damage=not self._repair.dry_run)
        damaged: list[Examined] = []
        for number, pack in enumerate(each_pack(catalog, self._tenant.id)):
            self._repair.progress("packs", number, total)
            seen = examiner.glance(pack)
            if not seen.gone and (seen.faults or pack.marks):
                seen = examiner.read(pack)
            if any(fault.kind != "index" for fault in seen.faults):
                seen = self._from_parity(seen, examiner)
            if not seen.gone and (seen.faults or seen.cleared or pack.marks):
                damaged.append(seen)
        for seen in damaged:
            self._mend_index(seen)
        to_save = [seen for seen in damaged if _falls_apart(seen)]
        if to_save:
            self._save(to_save)
        return [self._again(seen) for seen in damaged]

    def _from_parity(self, seen: Examined, examiner: Examiner) -> Examined:
        """Return a damaged pack's state after its parity, if any, restored what was lost."""
        if self._repair.dry_run:
            return seen
        catalog, pack = self._kept.catalog, seen.pack.id
        report = repair_if_possible(self._tenant, catalog, pack, self._kept.clock.now_ns())
        now = catalog.verification.live_pack(self._tenant.id, pack)
        if report is None or report.outcome is not Outcome.REPAIRED or now is None:
            return seen
        self._repair.done.parity_packs += 1
        restored = sum(each.length for each in report.ranges)
        what = f"pack {pack.hex()}, {counted(restored, 'byte')} of it from its parity"
        self._repair.say("pack", what, self._tenant.name, pack=pack.hex())
        return examiner.read(now)

    def _again(self, seen: Examined) -> Examined:
        """Return what is left of a finding when the rest was repaired."""
        if self._repair.dry_run:
            return seen
        now = self._kept.catalog.verification.live_pack(self._tenant.id, seen.pack.id)
        faults = [fault for fault in seen.faults if fault.kind != "index"]
        return seen if now is None else Examined(now, faults, seen.cleared, seen.read_bytes)

    def _mend_index(self, seen: Examined) -> None:
        """Write a pack's index rows again: from its footer, else from a search of the pack."""
        try:
            chunks, all_of_it = self._tenant.packs.footer(seen.pack.id).chunks, True
        except (Damaged, Unavailable):
            chunks, all_of_it = self._missing_from_index(seen), False
        if all_of_it and not any(fault.kind == "index" for fault in seen.faults):
            return
        if not chunks:
            return
        self._repair.say(
            "index", f"the index of pack {seen.pack.id.hex()}", self._tenant.name, pack=seen.pack.id.hex()
        )
        self._repair.done.index_packs += 1
        if not self._repair.dry_run:
            self._kept.catalog.salvage.reindex(self._tenant.id, seen.pack.id, chunks, all_of_it=all_of_it)

    def _missing_from_index(self, seen: Examined) -> list[StoredChunk]:
        """Return chunks that a search of the pack finds and the index does not have there."""
        known = {chunk.id for chunk in self._kept.catalog.verification.indexed(self._tenant.id, seen.pack.id)}
        return [
            chunk
            for segment in self._readable(seen)
            for chunk in self._stored(segment)
            if indexed_id(chunk.chunk_id) not in known
        ]

    def _stored(self, segment: Segment) -> Iterator[StoredChunk]:
        offset = 0
        for length, digest in segment.table:
            chunk_id = self._tenant.chunk_id(segment.role, digest)
            yield StoredChunk(chunk_id, ChunkPlace(segment.ref, offset, length))
            offset += length

    def _readable(self, seen: Examined) -> Iterator[Segment]:
        """Yield every intact segment of a pack, wherever it is found."""
        try:
            for segment in self._tenant.packs.scan(seen.pack.id):
                if isinstance(segment, Unreadable):
                    continue
                try:
                    check_digests(segment)
                except Damaged:
                    continue
                yield segment
        except BlobMissing:
            return
        except Unavailable as e:
            self._repair.note(
                Finding(
                    "unanswered",
                    DAMAGE,
                    f"pack {seen.pack.id.hex()} could not be searched to its end: {e.message}; check the disk, and repair again",
                    tenant=self._tenant.name,
                    pack=seen.pack.id.hex(),
                )
            )

    # --- saving

    def _save(self, damaged: Sequence[Examined]) -> None:
        """Copy what only these packs have into new ones."""
        with self._turn() as fence:
            saved = _SavedPacks(self._repair, self._tenant, fence, {seen.pack.id for seen in damaged})
            try:
                for number, seen in enumerate(damaged):
                    self._repair.progress("saving", number, len(damaged))
                    saved.source(seen.pack.id)
                    for segment in self._readable(seen):
                        saved.take(segment)
                saved.finish()
            finally:
                saved.abort()

    @contextmanager
    def _turn(self) -> Iterator[int]:
        """Hold the collector's lease; for a dry run, do nothing."""
        collectors, clock = self._kept.catalog.gc_lease, self._kept.clock
        if self._repair.dry_run:
            yield 0
            return
        fence = collectors.acquire(f"repair {secrets.token_hex(4)}", clock.now_ns(), LEASE_S)
        try:
            yield fence
        finally:
            collectors.release(fence)


class _SavedPacks:
    """New packs with saved chunks. Each is published when it is full, with its source packs."""

    def __init__(self, repair: Repair, tenant: Tenant, fence: int, damaged: set[bytes]) -> None:
        self._repair = repair
        self._kept = repair.kept
        self._tenant = tenant
        self._fence = fence
        self._damaged = damaged
        self._writer: PackWriter | None = None
        self._sources: set[bytes] = set()
        self._taken: set[bytes] = set()
        """Ids of chunks already saved from another damaged pack."""

    def source(self, pack: bytes) -> None:
        """Set the source pack of the following segments."""
        self._sources.add(pack)

    def take(self, segment: Segment) -> None:
        """Save the chunks of a segment that have no intact copy in another pack."""
        chunks = self._only_here(segment)
        if not chunks:
            return
        data = b"".join(chunk for _, chunk in chunks)
        self._repair.done.chunks += len(chunks)
        self._repair.done.bytes += len(data)
        if self._repair.dry_run:
            return
        codec, payload = compress(data)
        writer = self._open_writer()
        table = [ref for ref, _ in chunks]
        writer.append(segment.role, table, codec, payload, len(data))
        self._kept.catalog.gc_lease.renew(self._fence, self._kept.clock.now_ns(), LEASE_S)
        if writer.full or writer.size > PACK_BYTES_MAX // 2:
            self._publish()

    def finish(self) -> None:
        """Publish the last pack, and mark the damaged ones, even if nothing had to be saved."""
        if not self._repair.dry_run:
            self._publish()

    def abort(self) -> None:
        """Drop what was not published."""
        if self._writer is not None:
            self._writer.abort()

    def _only_here(self, segment: Segment) -> list[tuple[ChunkRef, memoryview]]:
        ids = [self._tenant.chunk_id(segment.role, ref.digest) for ref in segment.table]
        sound = self._kept.catalog.chunks.find(self._tenant.id, dict.fromkeys(ids))
        chunks: list[tuple[ChunkRef, memoryview]] = []
        offset = 0
        view = memoryview(segment.data)
        for chunk_id, ref in zip(ids, segment.table, strict=True):
            places = sound.get(chunk_id, [])
            elsewhere = any(place.segment.pack not in self._damaged for place in places)
            if not elsewhere and chunk_id not in self._taken:
                self._taken.add(chunk_id)
                chunks.append((ref, view[offset : offset + ref.length]))
            offset += ref.length
        return chunks

    def _open_writer(self) -> PackWriter:
        if self._writer is None:
            self._writer = PackWriter(self._kept.blobs, self._tenant.keys)
            self._kept.catalog.marks.begin_pack(
                self._tenant.id, self._fence, self._writer.pack, self._kept.clock.now_ns()
            )
        return self._writer

    def _publish(self) -> None:
        writer, self._writer = self._writer, None
        salvage, now_ns = self._kept.catalog.salvage, self._kept.clock.now_ns()
        summary = None if writer is None else writer.finish()
        salvage.publish(self._tenant.id, self._fence, summary, self._sources, now_ns)
        if summary is None:
            return
        self._repair.done.packs += 1
        pack = summary.pack.hex()
        self._repair.say(
            "saved",
            f"{counted(len(summary.chunks), 'chunk was', 'chunks were')} saved into the new pack {pack}",
            self._tenant.name,
            pack=pack,
        )


def _falls_apart(seen: Examined) -> bool:
    """Return whether to replace a pack as a whole: its footer or header is gone.

    Damaged segments leave the others usable.
    """
    whole = WHOLE_PACK in seen.pack.marks and WHOLE_PACK not in seen.cleared
    return whole or any(fault.kind in {"pack", "footer"} for fault in seen.faults)
