"""Compares what is at a place with this store, and removes there, after a grace period, what is gone here.

Nothing is removed because a listing lacks it: a pack only if the catalog does not have it as live, a record
only if a `forgotten` record says that it may be absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from staddle_server.base.errors import Damaged
from staddle_server.catalog import Catalog
from staddle_server.catalog.replicas import CopiedPack, Replica, WaitingPack
from staddle_server.catalog.validation import batches
from staddle_server.store.blobs import BlobMissing, BlobUnreadable
from staddle_server.store.pack import pack_name, packs_prefix, parse_pack_name
from staddle_server.store.parity import remove_parity
from staddle_server.store.records import (
    CommittedRecord,
    ForgottenRecord,
    PurgedRecord,
    Records,
    is_forgotten_name,
    record_id_of,
    records_prefix,
    sequence_of,
)
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.record_chain import Span, merge_spans, subtract
from staddle_server.upkeep.replication.packs import PackCopier
from staddle_server.upkeep.replication.records import pairs
from staddle_server.upkeep.replication.site import ReplicationReport, Site, SiteDamagedError, Tick

BATCH: Final = 1000


class Comparison:
    """Compares the objects of one tenant, here and at a place, and removes there what is gone here.

    Memory grows with what was purged here within the grace period, not with the store.
    """

    def __init__(
        self,
        tenant: Tenant,
        catalog: Catalog,
        *,
        site: Site,
        replica: Replica,
        report: ReplicationReport,
        tick: Tick,
    ) -> None:
        self._tenant = tenant
        self._catalog = catalog
        self._site = site
        self._replica = replica
        self._report = report
        self._tick = tick
        self._records_there = Records(site.blobs, tenant.keys)

    # --- packs

    def compare_packs(self, now_ns: int, verifier: PackCopier | None) -> set[bytes]:
        """Note which copied packs are missing there, and which there are gone here.

        With a verifier, read those that count; return those that are damaged.
        """
        damaged: set[bytes] = set()
        listed = self._listed()
        copied = self._copied()
        there, known = next(listed, None), next(copied, None)
        strange: list[bytes] = []
        missing: list[int] = []
        while there is not None or known is not None:
            self._tick()
            if there is None or (known is not None and known.pack < there):
                assert known is not None
                missing.append(known.row)
                self._report.missing += known.live
                known = next(copied, None)
                continue
            if known is None or there < known.pack or not known.live:
                strange.append(there)
            elif verifier is not None and not self._verified(verifier, known):
                damaged.add(known.pack)
                missing.append(known.row)
            if known is not None and known.pack == there:
                known = next(copied, None)
            there = next(listed, None)
            if len(strange) >= BATCH:
                self._note_packs(strange, now_ns)
                strange = []
            if len(missing) >= BATCH:
                self._catalog.replicas.note_missing(self._replica, missing)
                missing = []
        self._note_packs(strange, now_ns)
        self._catalog.replicas.note_missing(self._replica, missing)
        return damaged

    def _verified(self, verifier: PackCopier, pack: CopiedPack) -> bool:
        try:
            verifier.verify(WaitingPack(pack.row, self._tenant.id, pack.pack, pack.size_bytes, 0))
        except SiteDamagedError as error:
            self._report.notes.append(error.message)
            return False
        self._report.verified += 1
        return True

    def _listed(self) -> Iterator[bytes]:
        for name, _ in self._site.blobs.list(packs_prefix(self._tenant.id)):
            with suppress(ValueError):
                yield parse_pack_name(name)[1]

    def _copied(self) -> Iterator[CopiedPack]:
        after = b""
        while page := self._catalog.replicas.copied(self._replica, self._tenant.id, after=after, limit=BATCH):
            yield from page
            after = page[-1].pack

    def _note_packs(self, packs: list[bytes], now_ns: int) -> None:
        """Note those that the catalog does not have, or has as condemned."""
        states = self._catalog.replicas.states(self._tenant.id, packs)
        gone = [
            pack for pack in packs if (state := states.get(pack)) is None or not (state.live or state.writing)
        ]
        names = {pack_name(self._tenant.id, pack): False for pack in gone}
        self._catalog.replicas.note_gone(self._replica, names, now_ns)

    # --- records

    def compare_records(self, now_ns: int) -> None:
        """Note the records there that are gone here; report those that were lost here."""
        absent: list[str] = []
        forgotten: list[Span] = []
        last_here = 0
        for pair in pairs(self._tenant, self._site.blobs):
            self._tick()
            number = sequence_of(pair.name)
            if pair.here:
                last_here = number or 0
                if absent and sequence_of(absent[-1]) == number:
                    absent.pop()  # of another history: copying reports it
                if is_forgotten_name(pair.name):
                    forgotten += self._spans(pair.name)
            elif number not in {None, last_here}:
                absent.append(pair.name)
        may_be = merge_spans(forgotten)
        newest = self._catalog.tenants.newest_record(self._tenant.id)
        gone = []
        for name in absent:
            number = sequence_of(name) or 0
            if number > newest:
                continue  # of another history: copying reports it
            if subtract([Span(number, number)], may_be):
                self._report.problem(
                    name,
                    f"the record {name} is missing here, and is intact at {self._site.name}: copy it back, or run "
                    "`staddle-server repair`, which writes what the catalog still knows",
                )
            else:
                gone.append(name)
        self._note_records(gone, now_ns)

    def _spans(self, name: str) -> list[Span]:
        with suppress(Damaged, BlobUnreadable):
            record = self._tenant.records.read(name)
            if isinstance(record, ForgottenRecord):
                return [Span(*span) for span in record.spans]
        return []

    def _note_records(self, gone: list[str], now_ns: int) -> None:
        """Note them. A backup without its `purged` record there counts as listed: its packs stay."""
        known = self._catalog.replicas.gone(self._replica, records_prefix(self._tenant.id))
        new = [name for name in gone if name not in known]
        records = {name: self._read(name) for name in new}
        purged = {record.backup for record in records.values() if isinstance(record, PurgedRecord)}
        backups = {name for name, record in records.items() if isinstance(record, CommittedRecord)}
        listed = {name: name in backups and record_id_of(name) not in purged for name in new}
        self._catalog.replicas.note_gone(self._replica, listed, now_ns)

    def _read(self, name: str) -> object:
        with suppress(Damaged, BlobUnreadable):
            return self._records_there.read(name)
        return None

    # --- removal

    def remove(self, before_ns: int) -> None:
        """Remove what was noted as gone at `before_ns` or earlier: records first, then packs.

        Call after everything was copied that was decided when they were noted. Records of a backup go in the
        order in which a collection removes them, `purged` last. No pack goes while a backup is listed there
        that is gone here.
        """
        still_listed = self._remove_records(before_ns)
        packs = self._catalog.replicas.gone(self._replica, packs_prefix(self._tenant.id))
        old = [name for name, gone in packs.items() if gone.seen_ns <= before_ns]
        if still_listed or not self._may_remove_packs(old):
            self._report.waiting += len(packs)
            return
        self._report.waiting += len(packs) - len(old)
        for batch in batches(old):
            ids = {parse_pack_name(name)[1]: name for name in batch}
            states = self._catalog.replicas.states(self._tenant.id, ids)
            for pack, name in ids.items():
                self._tick()
                state = states.get(pack)
                if state is None or not (state.live or state.writing):
                    remove_parity(self._site.blobs, self._tenant.id, pack)
                    self._delete(name)
            self._catalog.replicas.drop_gone(self._replica, batch)

    def _may_remove_packs(self, old: list[str]) -> bool:
        """Return whether a tenant still has packs here: one that suddenly has none loses nothing there."""
        if not old or self._catalog.replicas.has_live(self._tenant.id):
            return True
        self._report.notes.append(
            f"tenant {self._tenant.name} has no pack here, so all its packs stay at {self._site.name}: if it really is "
            "to be emptied, remove them there"
        )
        return False

    def _remove_records(self, before_ns: int) -> bool:
        """Return whether a backup is still listed there that is gone here."""
        gone = self._catalog.replicas.gone(self._replica, records_prefix(self._tenant.id))
        left = {record_id_of(name): name for name in gone}
        last: list[str] = []
        for name, each in gone.items():
            if each.seen_ns > before_ns:
                continue
            self._tick()
            if isinstance(self._read(name), PurgedRecord):
                last.append(name)
                continue
            self._drop(name, left)
        for name in last:
            record = self._read(name)
            if not isinstance(record, PurgedRecord) or record.backup not in left:
                self._drop(name, left)
        self._report.waiting += len(left)
        return any(each.listed for name, each in gone.items() if record_id_of(name) in left)

    def _drop(self, name: str, left: dict[bytes, str]) -> None:
        self._records_there.copies.remove(name)
        self._report.removed += 1
        self._catalog.replicas.drop_gone(self._replica, [name])
        left.pop(record_id_of(name), None)

    def _delete(self, name: str) -> None:
        with suppress(BlobMissing):
            self._site.blobs.delete(name)
        self._report.removed += 1
