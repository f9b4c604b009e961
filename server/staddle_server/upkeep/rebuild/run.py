"""A new catalog from the store alone.

For each tenant whose secrets open: its records, which are the truth about backups → its packs with their
chunks → its datasets and backups → their manifests, whose chunks must all be in a pack. Unusable objects are
reported, and do not affect the rest.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.base.errors import Damaged, StaddleError, Unavailable
from staddle_server.base.threads import Threads
from staddle_server.base.types import NO_LINK, TenantKeys
from staddle_server.catalog import Backup, Catalog, TenantRow
from staddle_server.catalog.rebuild import Rebuild, RebuiltPack
from staddle_server.store.backends.object_urls import PROBES
from staddle_server.store.blobs import FORMAT_NAME, BlobMissing, Blobs
from staddle_server.store.keys import KEYS_BYTES_MAX, KeyStore, StoredTenant, keys_name, parse_keys_name
from staddle_server.store.marks import is_mark_name
from staddle_server.store.pack import PackReader, packs_prefix, parse_pack_name
from staddle_server.store.records import Records, is_head_name, records_prefix, sequence_of
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.gc.live_chunks import Reached
from staddle_server.upkeep.rebuild.catalog_age import was_finished
from staddle_server.upkeep.rebuild.pack_contents import Contents, read_contents
from staddle_server.upkeep.record_chain import Chain
from staddle_server.upkeep.record_history import History, Renumbered

READERS: Final = 4
"""Footers read at once; twice as many wait to be put into the catalog."""
CHUNKS_PER_COMMIT: Final = 50_000
PAGE: Final = 1000
"""Backups, or datasets, that are written or read at once."""
LISTED_MAX: Final = 1000
"""Problems that a report lists; it counts all of them."""
BESIDE: Final = frozenset({"parity", "copies", PROBES})
"""Prefixes of objects that only help to repair others, or that tested an object store."""

Show = Callable[[str, int], None]
"""The progress: what is being read, and how many are done."""


class Problem(NamedTuple):
    """An unusable object (by its name) or backup, and what is wrong with it."""

    what: str
    message: str


@dataclass
class RebuildReport:
    """What was found in the store, and is in the new catalog."""

    tenants: int = 0
    datasets: int = 0
    backups: int = 0
    deleted: int = 0
    """Of the backups: deleted ones that can be undeleted."""
    purged: int = 0
    """Purged backups, which are not in the catalog."""
    records: int = 0
    packs: int = 0
    chunks: int = 0
    problem_count: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Differences from the old state without a fault of the store."""

    def problem(self, what: str, message: str) -> None:
        """Count a problem, and list it while the list is short."""
        self.problem_count += 1
        if len(self.problems) < LISTED_MAX:
            self.problems.append(Problem(what, message))


class NothingOpens(Damaged):
    """No tenant's secrets open: with this master key nothing can be rebuilt."""


class _FoundTenant(NamedTuple):
    """A tenant whose secrets open."""

    row: TenantRow
    keys: TenantKeys

    @property
    def id(self) -> bytes:
        return self.row.id


class Rebuilding:
    """One rebuild, of one store into one new catalog. `run` it once.

    Memory is bounded by about 500 bytes for each backup of a tenant, and a few packs' tables.
    """

    def __init__(
        self,
        blobs: Blobs,
        keys: KeyStore,
        catalog: Catalog,
        now_ns: int,
        show: Show = lambda _what, _count: None,
    ) -> None:
        self._blobs = blobs
        self._keys = keys
        self._catalog = catalog
        self._rebuild = Rebuild(catalog)
        self._now_ns = now_ns
        self._show = show
        self._report = RebuildReport()

    def run(self) -> RebuildReport:
        """Read the store and fill the catalog.

        Raises:
            NothingOpens: The store has tenants, and none of their secrets open.
            Unavailable: The store cannot be listed: that is never taken for an empty store.
            Exhausted: The catalog's disk is full.

        """
        opened = self._open_tenants()
        for tenant in opened:
            history, chain, damaged = self._read_records(tenant)
            newest = max(chain.newest, self._head(tenant, chain))
            link = chain.link if chain.newest == newest else NO_LINK
            self._rebuild.add_tenant(tenant.row, history.grace_s, history.last_ns, newest, link)
            self._name_missing(tenant, chain, newest)
            self._report.tenants += 1
            self._add_packs(tenant)
            self._add_datasets(tenant, history)
            self._walk_manifests(tenant)
            self._name_orphans(history.orphans() - damaged)
        self._look_for_strangers({tenant.id for tenant in opened})
        return self._report

    # ------------------------------------------------------------------ tenants

    def _open_tenants(self) -> list[_FoundTenant]:
        found: list[tuple[StoredTenant, TenantKeys]] = []
        closed: list[StaddleError] = []
        for tenant in self._tenant_ids():
            try:
                found.append((self._keys.tenant(tenant), self._keys.load(tenant)))
            except (Damaged, Unavailable) as e:
                closed.append(e)
                self._report.problem(f"keys/{tenant.hex()}", e.message)
        if closed and not found:
            raise NothingOpens(
                f"nothing can be rebuilt: {closed[0].message}. Restore the master.key, or the keys/ of the store, that "
                "belong to it"
            )
        return self._named([each for each in found if self._was_finished(each[0])])

    def _tenant_ids(self) -> list[bytes]:
        try:
            return self._keys.tenant_ids()
        except Damaged:  # a foreign object among the keys; reported later, it hides no tenant
            owners = (_owner("keys", name) for name, _ in self._blobs.list("keys"))
            return sorted({owner for owner in owners if owner is not None})

    def _was_finished(self, tenant: StoredTenant) -> bool:
        if was_finished(self._blobs, tenant.tenant):
            return True
        self._report.notes.append(
            f"the tenant {tenant.name} ({tenant.tenant.hex()}) has keys and nothing else: its creation was never completed, so it is left out"
        )
        return False

    def _named(self, found: list[tuple[StoredTenant, TenantKeys]]) -> list[_FoundTenant]:
        """Return the tenants with unique names; of two with the same name the older one keeps it."""
        taken: set[str] = set()
        opened = []
        for tenant, keys in sorted(found, key=lambda each: (each[0].created_ns, each[0].tenant)):
            name = tenant.name
            if name in taken:
                name = f"{tenant.name[:55]}.{tenant.tenant.hex()[:8]}"
                self._report.notes.append(
                    f"two tenants have the name {tenant.name}: the younger one is now {name}"
                )
            taken.add(name)
            opened.append(_FoundTenant(self._row(tenant, name, keys), keys))
        return opened

    def _row(self, tenant: StoredTenant, name: str, keys: TenantKeys) -> TenantRow:
        version = max(keys.pack_keys)
        return TenantRow(
            id=tenant.tenant,
            name=name,
            created_ns=tenant.created_ns,
            keys_version=version,
            wrapped_keys=self._object(keys_name(tenant.tenant, version)),
        )

    def _object(self, name: str) -> bytes:
        """Return the whole object; empty if it is unreadable: the catalog only keeps it as a second copy."""
        try:
            size = self._blobs.size(name)
            return self._blobs.read(name, 0, size) if size <= KEYS_BYTES_MAX else b""
        except (Damaged, Unavailable):
            return b""

    # ------------------------------------------------------------------ records

    def _read_records(self, tenant: _FoundTenant) -> tuple[History, Chain, set[bytes]]:
        """Return the combined records, their chain, and the ids of unreadable ones."""
        history, chain, damaged = History(), Chain(), set[bytes]()
        records = Records(self._blobs, tenant.keys)
        for count, name in enumerate(records.list()):
            self._show("records", count)
            if sequence_of(name) is None:
                continue
            try:
                stored = records.stored(name)
            except (Damaged, Unavailable) as e:
                damaged.add(bytes.fromhex(name[-32:]))
                self._report.problem(name, e.message)
                chain.take(name, None)
                continue
            history.add(stored.record, name)
            chain.take(name, stored)
            self._report.records += 1
        return history, chain, damaged

    def _head(self, tenant: _FoundTenant, chain: Chain) -> int:
        """Return the number of the newest record according to the tenant's head; 0 if unknown."""
        head = Records(self._blobs, tenant.keys).head
        try:
            return head.read()
        except BlobMissing:
            if chain.newest > 1:  # the first record is written before it
                self._report.problem(head.name, "it is missing, so missing newest records cannot be detected")
        except (Damaged, Unavailable) as e:
            self._report.problem(head.name, f"{e.message}, so missing newest records cannot be detected")
        return 0

    def _name_missing(self, tenant: _FoundTenant, chain: Chain, newest: int) -> None:
        """Report missing records: their content is lost with the old catalog."""
        for span in chain.missing(newest):
            self._report.problem(
                records_prefix(tenant.id),
                f"{span.missing_of(tenant.row.name)}, and so is what "
                "was decided in them: a backup, a deletion, a hold, a policy. Restore the objects from a copy of the store, "
                "and rebuild again",
            )
        for found in chain.breaks:
            self._report.problem(
                records_prefix(tenant.id), f"{found}: two histories of this store were mixed; both are used"
            )

    def _name_orphans(self, backups: set[bytes]) -> None:
        """Report decisions about a backup without a commit record: that record is lost, and the backup with
        it.
        """
        for backup in sorted(backups):
            self._report.problem(
                f"backup {backup.hex()}",
                "it has records, but not that of its commit: restore that from a copy of the store",
            )

    # ------------------------------------------------------------------ packs

    def _add_packs(self, tenant: _FoundTenant) -> None:
        waiting: list[RebuiltPack] = []
        chunks = 0
        for name, contents in self._contents(tenant):
            self._show("packs", self._report.packs)
            if contents.damage:
                self._report.problem(name, contents.damage)
            waiting.append(contents.pack)
            chunks += len(contents.pack.summary.chunks)
            self._report.packs += 1
            if chunks >= CHUNKS_PER_COMMIT:
                self._rebuild.add_packs(tenant.id, waiting, self._now_ns)
                self._report.chunks += chunks
                waiting, chunks = [], 0
        self._rebuild.add_packs(tenant.id, waiting, self._now_ns)
        self._report.chunks += chunks

    def _contents(self, tenant: _FoundTenant) -> Iterator[tuple[str, Contents]]:
        """Yield the tenant's packs in order, reading the next few ahead."""
        reader = PackReader(self._blobs, tenant.keys)
        reading: deque[tuple[str, Future[Contents]]] = deque()
        with Threads(READERS, thread_name_prefix="footers") as readers:
            for name, size in self._blobs.list(packs_prefix(tenant.id)):
                pack = _pack_of(name)
                if pack is None:
                    continue
                reading.append((name, readers.submit(read_contents, reader, tenant.keys, pack, size)))
                if len(reading) >= 2 * READERS:
                    first, future = reading.popleft()
                    yield first, future.result()
            for first, future in reading:
                yield first, future.result()

    # ------------------------------------------------------------------ datasets and backups

    def _add_datasets(self, tenant: _FoundTenant, history: History) -> None:
        # The grace periods of deleted backups begin again; by a clock that is behind they would end as soon
        # as it is right.
        grace_ns = max(self._now_ns, history.newest_ns)
        for dataset in history.datasets(self._now_ns):
            self._rebuild.add_dataset(tenant.id, dataset)
            self._report.datasets += 1
            backups = history.backups(dataset.name, grace_ns, self._note_number)
            while batch := list(islice(backups, PAGE)):
                self._rebuild.add_backups(tenant.id, dataset.name, batch)
                self._report.backups += len(batch)
                self._report.deleted += sum(backup.deleted_ns is not None for backup in batch)
                self._show("backups", self._report.backups)
        self._report.purged += history.purged

    def _note_number(self, found: Renumbered) -> None:
        self._report.notes.append(
            f"backup {found.backup.hex()} of dataset {found.dataset!r} now has the number {found.number}: another "
            f"one has its number {found.before}, because a catalog was once restored from a copy"
        )

    # ------------------------------------------------------------------ manifests

    def _walk_manifests(self, tenant: _FoundTenant) -> None:
        """Report the backups whose manifest is unreadable.

        They stay: it may return, and a restore reports what is missing. Chunks without a pack were in lost
        packs: nothing else reveals these, and the next uploads must know.
        """
        reached = Reached(Tenants(self._blobs, self._catalog, self._keys).get(tenant.id), self._catalog)
        unreadable = 0
        for count, backup in enumerate(self._kept(tenant.id)):
            try:
                reached.walk(backup.root, lambda: self._show("chunks looked for", reached.chunks))
            except (Damaged, Unavailable) as e:
                unreadable += 1
                self._report.problem(
                    f"backup {backup.id.hex()}",
                    f"number {backup.number} of dataset {backup.dataset!r} is damaged: {e.message}",
                )
            self._show("manifests", count + 1)
        if reached.missing:
            self._report.problem(
                f"packs/{tenant.id.hex()}",
                f"No readable pack holds {counted(reached.missing, 'chunk')} that backups refer to. Restore the lost packs from a "
                "copy of the store, and rebuild again; otherwise the next backups of the same data heal them: the server asks clients for "
                "what is missing",
            )
        if (reached.missing or unreadable) and not self._catalog.packs.damaged_count(tenant.id):
            self._rebuild.add_lost_pack(tenant.id, self._now_ns)

    def _kept(self, tenant: bytes) -> Iterator[Backup]:
        """Yield all backups of the tenant, deleted ones included."""
        after = ""
        while datasets := self._catalog.datasets.list_page(tenant, after, PAGE):
            for dataset in datasets:
                yield from self._kept_of(tenant, dataset.name)
            after = datasets[-1].name

    def _kept_of(self, tenant: bytes, dataset: str) -> Iterator[Backup]:
        before: int | None = None
        while page := self._catalog.backups.list_page(
            tenant, dataset, limit=PAGE, before_number=before, show_deleted=True
        ):
            yield from page
            before = page[-1].number

    # ------------------------------------------------------------------ what no row names

    def _look_for_strangers(self, tenants: set[bytes]) -> None:
        """Report foreign objects, and count those of tenants that are not in the catalog."""
        left: Counter[tuple[str, bytes]] = Counter()
        for name, _ in self._blobs.list(""):
            kind = name.partition("/")[0]
            owner = _owner(kind, name)
            if owner is None and name != FORMAT_NAME and kind not in BESIDE and not is_mark_name(name):
                self._report.problem(
                    name,
                    "not an object of Staddle's, skipped: move it elsewhere",
                )
            elif owner is not None and owner not in tenants and kind != "keys":
                left[(kind, owner)] += 1
        for (kind, owner), count in sorted(left.items()):
            self._report.problem(
                f"{kind}/{owner.hex()}",
                f"{count} {kind} of a tenant whose keys are missing or damaged: restore keys/{owner.hex()} from a copy of "
                "the store, and rebuild again; a catalog that knows the tenant also has a copy of them, which `repair` writes "
                "to the store",
            )


def _pack_of(name: str) -> bytes | None:
    try:
        return parse_pack_name(name)[1]
    except ValueError:
        return None


def _keys_owner(name: str) -> bytes | None:
    try:
        return parse_keys_name(name)[0]
    except Damaged:
        return None


def _owner(kind: str, name: str) -> bytes | None:
    """Return the tenant that an object belongs to; None for a name that is not Staddle's."""
    if kind == "keys":
        return _keys_owner(name)
    if kind == "packs":
        return None if _pack_of(name) is None else bytes.fromhex(name.split("/")[1])
    if kind == "records" and sequence_of(name) is not None:
        return bytes.fromhex(name.split("/")[1])
    if kind == "heads" and is_head_name(name):
        return bytes.fromhex(name.split("/")[1])
    return None
