"""Copies a tenant's records, last of all: a backup whose record is at the place has everything there.

A `committed` record is copied only if its backup is not purged. One of a purged backup follows its `purged`
record, so that at no moment a rebuild there would list a backup whose packs were not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from staddle_server.base.errors import Damaged
from staddle_server.catalog import Catalog
from staddle_server.store.blobs import BlobExists, BlobMissing, Blobs, BlobUnreadable, replace_object
from staddle_server.store.records import (
    CommittedRecord,
    PurgedRecord,
    Record,
    Records,
    record_id_of,
    records_prefix,
    sequence_of,
)
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.replication.site import ReplicationReport, Site, SiteDamagedError, Tick

BATCH: Final = 1000


class RecordPair(NamedTuple):
    """A record by name, and where it is."""

    name: str
    here: bool
    there: bool


def pairs(tenant: Tenant, there: Blobs) -> Iterator[RecordPair]:
    """Yield the tenant's records here and there, in chain order. Memory does not grow with them."""
    ours, theirs = tenant.records.list(), (name for name, _ in there.list(records_prefix(tenant.id)))
    mine, other = next(ours, None), next(theirs, None)
    while mine is not None or other is not None:
        if other is None or (mine is not None and mine < other):
            assert mine is not None
            yield RecordPair(mine, here=True, there=False)
            mine = next(ours, None)
        elif mine is None or other < mine:
            yield RecordPair(other, here=False, there=True)
            other = next(theirs, None)
        else:
            yield RecordPair(mine, here=True, there=True)
            mine, other = next(ours, None), next(theirs, None)


def newest_there(tenant: Tenant, site: Site) -> int:
    """Return the number of the tenant's newest record at the place, as its head says; 0 without one."""
    try:
        return Records(site.blobs, tenant.keys).head.read()
    except Damaged:
        return 0


@dataclass
class _HeldRecords:
    """What a run cannot copy yet, by name, and the purged backups that it has seen."""

    names: list[str] = field(default_factory=list)
    purged: set[bytes] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)


class RecordCopier:
    """Copies the records of one tenant, after its packs."""

    def __init__(
        self, tenant: Tenant, catalog: Catalog, site: Site, *, report: ReplicationReport, tick: Tick
    ) -> None:
        self._tenant = tenant
        self._catalog = catalog
        self._site = site
        self._report = report
        self._tick = tick
        self._records_there = Records(site.blobs, tenant.keys)

    def copy(self, upto: int, *, verify: bool) -> int:
        """Copy the durable records up to this number; return the number up to which all are there.

        Then the head says so. Packs that records up to `upto` need were copied before. Raises SiteDamagedError if
        the place has records of another history, and what the site raises.
        """
        held = _HeldRecords()
        lacking = self._lacking(upto, verify=verify)
        while batch := list(islice(lacking, BATCH)):
            # The record of a commit has its backup's id. A backup that counts now has all its packs there.
            known = self._catalog.purge.known(self._tenant.id, map(record_id_of, batch))
            for name in batch:
                self._take(name, known, held)
        self._release(held, upto)
        left = [sequence_of(name) or 1 for name in (*held.names, *held.failed)]
        reached = min(left) - 1 if left else upto
        if upto and newest_there(self._tenant, self._site) < upto:
            self._records_there.head.write(upto)
        return reached

    # --- which

    def _lacking(self, upto: int, *, verify: bool) -> Iterator[str]:
        """Yield the names of records up to `upto` that the place lacks.

        Raises SiteDamagedError for records there that this store never had.
        """
        last_here = last_there = 0
        for pair in pairs(self._tenant, self._site.blobs):
            self._tick()
            number = sequence_of(pair.name)
            if number is None:
                continue
            if pair.here and pair.there:
                if verify:
                    self._verify(pair.name)
                continue
            if pair.here:
                last_here = number
                if number <= upto:
                    yield pair.name
            else:
                last_there = number
                if number > upto and number > self._catalog.tenants.newest_record(self._tenant.id):
                    raise self._other_history(pair.name)
            if last_here == last_there:
                raise self._other_history(pair.name)

    def _other_history(self, name: str) -> SiteDamagedError:
        return SiteDamagedError(
            name,
            f"{self._site.name} has a record that this store never had: one of the two was put back from an older "
            f"copy, or served on its own. No record of tenant {self._tenant.name} was copied. Name an empty place, or "
            "rebuild the catalog from the store that is right",
        )

    def _verify(self, name: str) -> None:
        try:
            self._records_there.copies.found(name)
        except Damaged as error:
            with suppress(Damaged, BlobUnreadable):
                replace_object(self._site.blobs, name, self._tenant.records.copies.found(name)[1])
                self._report.notes.append(f"{error.message} at {self._site.name}, and was replaced")

    # --- one record

    def _take(self, name: str, known: dict[bytes, bool], held: _HeldRecords) -> None:
        self._tick()
        found = self._read(name, held)
        if found is None:
            return
        record, data = found
        if isinstance(record, CommittedRecord) and known.get(record.backup) is not False:
            held.names.append(name)
            return
        if isinstance(record, PurgedRecord):
            held.purged.add(record.backup)
        self._put(name, data)

    def _read(self, name: str, held: _HeldRecords) -> tuple[Record, bytes] | None:
        try:
            stored, data = self._tenant.records.copies.found(name)
        except BlobMissing:
            return None  # forgotten meanwhile, as a later record says
        except (Damaged, BlobUnreadable) as error:
            self._report.problem(name, error.message)
            held.failed.append(name)
            return None
        return stored.record, data

    def _put(self, name: str, data: bytes) -> None:
        try:
            self._site.blobs.put(name, data)
        except BlobExists:
            # Another process was faster: names are never used for two records.
            return
        self._report.records += 1
        self._report.bytes_sent += len(data)

    # --- records of purged backups

    def _release(self, held: _HeldRecords, upto: int) -> None:
        """Copy the held records whose backup is purged at the place, too; the others wait for that."""
        if not held.names:
            return
        wanted = set(map(record_id_of, held.names)) - held.purged
        if wanted:
            held.purged |= self._purged_there(wanted, upto)
        waiting = []
        for name in held.names:
            if record_id_of(name) not in held.purged:
                waiting.append(name)
                continue
            found = self._read(name, held)
            if found is not None:
                self._put(name, found[1])
        held.names = waiting

    def _purged_there(self, backups: set[bytes], upto: int) -> set[bytes]:
        """Return which of these backups have their `purged` record at the place."""
        found: set[bytes] = set()
        names = (
            pair.name
            for pair in pairs(self._tenant, self._site.blobs)
            if pair.there and (sequence_of(pair.name) or 0) <= upto
        )
        while batch := list(islice(names, BATCH)):
            known = self._catalog.purge.known(self._tenant.id, map(record_id_of, batch))
            for name in batch:
                self._tick()
                if record_id_of(name) in known:
                    continue
                with suppress(Damaged, BlobUnreadable):
                    record = self._records_there.read(name)
                    if isinstance(record, PurgedRecord) and record.backup in backups:
                        found.add(record.backup)
        return found
