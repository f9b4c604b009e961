"""Watches for missing packs, records and keys, and for known damage, and reports them in health and log.

Damage is known as marks of packs in the catalog (`Packs.known_damage`), from any source: this comparison, a
check, the scrubber, a restore, an upload. A mark counts until every backup was found intact without what is
marked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.base.errors import Damaged, StaddleError, Unavailable
from staddle_server.base.limits import INTEGRITY_EVERY_S
from staddle_server.base.threads import Background
from staddle_server.catalog import Generation, KnownDamage, TenantRow
from staddle_server.store.blobs import FORMAT_NAME, BlobMissing
from staddle_server.store.locks import lock_of
from staddle_server.store.marks import GenerationMark
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.losses import Losses
from staddle_server.tenancy.pack_listing import compared_with_listing
from staddle_server.tenancy.pack_presence import stored_size
from staddle_server.tenancy.tenant import Tenant
from staddle_server.upkeep.integrity.damaged_paths import each_backup
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.hidden import hidden_keys, hidden_packs, hidden_records, hidden_words
from staddle_server.upkeep.integrity.lost_keys import keys_words
from staddle_server.upkeep.integrity.record_check import lost_records
from staddle_server.upkeep.schedule import StoppedError, Stopping, Task

log = logging.getLogger(__name__)

COMPARE_EVERY_S: Final = 3600.0
CATALOG_EVERY: Final = 5
"""The catalog's file is checked at every so many-th look."""
REST: Final = 10
"""Reading all manifests takes at most this share (1/n) of the time."""
MARKED_AT_ONCE: Final = 1000
LOST_NAMED: Final = 5
"""The most gaps in a tenant's records that one log line names."""
RECORDS_LOST: Final = (
    ". Backups and restores work, but a catalog rebuilt from the store would not know what these records say. To repair it: "
    "`staddle-server repair` writes again what the catalog knows of them, and `staddle-server check` lists what it does not know"
)


class Compared(NamedTuple):
    """A tenant's live packs compared with the store: how many exist, are gone, and have another size; and
    the names of those that object lock keeps below a marker of deletion.
    """

    packs: int = 0
    gone: int = 0
    other_size: int = 0
    hidden: tuple[str, ...] = ()


class LostObjects(NamedTuple):
    """What a tenant lacks besides packs: in words, how many keys and records, and how many of those are hidden."""

    words: str
    missing: int
    hidden: int


class _State(NamedTuple):
    """What determines whether a tenant's backups are intact."""

    damage: KnownDamage
    stands: tuple[int, int, int]


def compare_packs(kept: Kept, tenant: Tenant, stopping: Stopping = lambda: False) -> Compared:
    """Compare the live packs with one listing of the store, in constant memory.

    A pack whose object is gone, or has another size than published, is marked as damaged as a whole.

    Raises:
        Unavailable: The store does not answer.

    """
    packs = gone = other = 0
    suspects: list[bytes] = []
    hidden: list[str] = []
    lock = lock_of(kept.blobs)

    def settle() -> None:
        nonlocal gone, other
        # A pack may have been collected, or replaced by repair, since it was listed.
        sizes = kept.catalog.packs.live_sizes(tenant.id, suspects)
        now = {pack: stored_size(tenant, pack) for pack in sizes}
        for pack in kept.catalog.packs.mark_lost(
            tenant.id, [pack for pack in now if now[pack] != sizes[pack]]
        ):
            gone, other = gone + (now[pack] is None), other + (now[pack] is not None)
        if lock is not None and len(hidden) < MARKED_AT_ONCE:
            hidden.extend(hidden_packs(lock, tenant.id, [pack for pack in now if now[pack] is None]))
        suspects.clear()

    for pack, is_listed in compared_with_listing(tenant, kept.catalog):
        if stopping():
            break
        packs += 1
        if not is_listed:
            suspects.append(pack.id)
            if len(suspects) >= MARKED_AT_ONCE:
                settle()
    settle()
    return Compared(packs, gone, other, tuple(hidden))


class Integrity:
    """Keeps the report of damage current while a server runs, on its own thread."""

    def __init__(self, kept: Kept, every_s: float = INTEGRITY_EVERY_S) -> None:
        """Look every `every_s` after the start; 0: only at the start."""
        self._kept = kept
        self._every_s = every_s
        self._thread = Background("integrity", every_s, self._look_again)
        self.known: dict[bytes, KnownDamage] = {}
        """What is damaged, by tenant, a second ago."""
        self._walked: dict[bytes, _State] = {}
        """The state in which a tenant's backups were last found damaged."""
        self._rest_until_s = 0.0
        self._looks = 0
        self._mark: Generation | None = None
        """The newest, of this server's start or another one's."""
        self.is_whole = True
        """Whether no damage was known a second ago."""
        self.lost: dict[bytes, LostObjects] = {}
        """What tenants lack besides packs: keys that open, and records."""
        self._absent: set[str] = set()
        """Which of store and catalog were missing a second ago."""

    @property
    def absent(self) -> list[str]:
        """Which of store and catalog were missing a second ago, in words."""
        return sorted(self._absent)

    def start(self) -> None:
        """Compare all tenants with the store, report damage, and keep watching on a separate thread."""
        self._mark = self._kept.catalog.generation.get()
        self.look_for_lost(lambda: self._thread.stopping)
        self.compare(lambda: self._thread.stopping)
        self._tell(self._kept.catalog.packs.known_damage())
        if self._every_s:
            self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._thread.stop()

    @property
    def is_watching(self) -> bool:
        """Whether it looks again after the start."""
        return self._every_s > 0

    def tasks(self) -> list[Task]:
        """Return the comparisons as tasks of a running server, which compares for the first time when it
        starts.

        What is wrong with packs is in the catalog, for all servers; what is lost besides, each finds itself.
        """
        every_s = COMPARE_EVERY_S if self._every_s else 0
        return [
            Task("packs", every_s, self.compare, first_after_s=COMPARE_EVERY_S),
            Task(
                "keys and records",
                every_s,
                self.look_for_lost,
                first_after_s=COMPARE_EVERY_S,
                everywhere=True,
            ),
        ]

    def compare(self, stopping: Stopping) -> str:
        """Compare the packs of all tenants with the store. Return findings in words; "" for none."""
        gone = other = 0
        for row in self._kept.catalog.tenants.list_all():
            try:
                found = compare_packs(self._kept, self._kept.tenants.get(row.id), stopping)
            except StaddleError as e:
                log.error("the packs of tenant %s were not compared with the store: %s", row.name, e.message)  # noqa: TRY400
                continue
            gone, other = gone + found.gone, other + found.other_size
            if found.hidden:
                log.error("packs of tenant %s: %s", row.name, hidden_words(list(found.hidden)))
        return (
            f"{counted(gone, 'pack is', 'packs are')} gone, {counted(other, 'pack has', 'packs have')} another size"
            if gone or other
            else ""
        )

    def look_for_lost(self, stopping: Stopping) -> str:
        """Check that the keys of all tenants open and their records exist; log and report what is lost."""
        for row in self._kept.catalog.tenants.list_all():
            if stopping():
                break
            try:
                self._look_for_lost(row)
            except StaddleError as e:
                log.error("the records of tenant %s were not checked: %s", row.name, e.message)  # noqa: TRY400
        return ""

    def look(self) -> None:
        """Check store and catalog, known damage, and whether the backups are intact without it."""
        if not self._look_for_parts():
            return
        known = self._kept.catalog.packs.known_damage()
        begun_s = self._kept.clock.monotonic_s()
        if (known or self.lost) and begun_s >= self._rest_until_s:
            for row in self._kept.catalog.tenants.list_all():
                if row.id in self.lost:
                    self._look_for_lost(row)
            known = self._without_healed(known)
            now_s = self._kept.clock.monotonic_s()
            self._rest_until_s = now_s + REST * max(0.0, now_s - begun_s - INTEGRITY_EVERY_S)
        self._tell(known)

    def _look_for_parts(self) -> bool:
        """Return whether the opened store and catalog still exist: one may be unmounted, or replaced by
        another.
        """
        self._look_for(
            "the store",
            lambda: self._kept.blobs.size(FORMAT_NAME),
            ". Is its file system mounted, or its object store running?",
        )
        self._look_for("the catalog", self._look_into_catalog)
        if self._absent:
            self.is_whole = False
        return not self._absent

    def _look_into_catalog(self) -> None:
        self._kept.catalog.database.check_place()
        self._looks += 1
        if self._mark is not None and self._looks % CATALOG_EVERY == 0:
            self._mark = self._kept.catalog.generation.require_same(self._mark, self._succeeds)

    def _succeeds(self, before: Generation, after: Generation) -> bool:
        """Return whether another server of this store left the later mark."""
        old, new = GenerationMark.parse(before.current), GenerationMark.parse(after.current)
        if new is None or (old is not None and new.number <= old.number):
            return False
        try:
            self._kept.blobs.size(new.name)
        except BlobMissing:
            return False
        except Unavailable:
            pass  # unknown now: the next look tells
        return True

    def _look_for(self, part: str, ask: Callable[[], object], hint: str = ".") -> None:
        try:
            ask()
        except BlobMissing:
            pass  # memory has none
        except Unavailable as e:
            if part not in self._absent:
                log.error(  # noqa: TRY400
                    "%s is missing or was replaced: %s%s Backups and restores fail until that is fixed",
                    part,
                    e.message,
                    hint,
                )
            self._absent.add(part)
            return
        if part in self._absent:
            log.warning("%s is back", part)
            self._absent.remove(part)

    def _look_for_lost(self, row: TenantRow) -> None:
        """Check that the tenant's keys open and its records exist. Raises Unavailable."""
        before, lost = self.lost.pop(row.id, None), self._lost_of(row)
        if lost is not None:
            self.lost[row.id] = lost
        if lost is not None and lost != before:
            log.error("%s", lost.words)
        if before and lost is None:
            log.warning("keys and records of tenant %s are complete again", row.name)

    def _lost_of(self, row: TenantRow) -> LostObjects | None:
        lock = lock_of(self._kept.blobs)
        hidden = [] if lock is None else hidden_keys(lock, row.id)
        try:
            spans = [] if hidden else lost_records(self._kept.tenants.get(row.id), self._kept.catalog)
            if lock is not None:
                hidden += hidden_records(lock, row.id, spans)
        except Damaged as e:
            return LostObjects(keys_words(self._kept.blobs, self._kept.keys, row, e), 1, 0)
        missing = sum(span.last - span.first + 1 for span in spans)
        if hidden:
            return LostObjects(
                f"of tenant {row.name}, {hidden_words(hidden)}", max(missing, len(hidden)), len(hidden)
            )
        if not spans:
            return None
        words = "; ".join(span.missing_of(row.name) for span in spans[:LOST_NAMED])
        others = "; and others" if len(spans) > LOST_NAMED else ""
        return LostObjects(f"{words}{others}{RECORDS_LOST}", missing, 0)

    def _without_healed(self, known: dict[bytes, KnownDamage]) -> dict[bytes, KnownDamage]:
        left = dict(known)
        for tenant, damage in known.items():
            if not damage.packs and not damage.segments:
                continue  # backups cannot show whether footers are intact
            state = _State(damage, self._kept.catalog.verification.stands(tenant))
            if self._walked.get(tenant) == state:
                continue
            try:
                whole = self._all_whole(tenant)
            except StaddleError as e:
                log.warning("could not determine whether backups are intact: %s", e.message)
                continue
            if whole and self._kept.catalog.packs.not_needed(tenant, damage.epoch):
                left[tenant] = damage._replace(packs=0, segments=0)
                if not damage.footers:
                    del left[tenant]
            else:
                self._walked[tenant] = state
        return left

    def _all_whole(self, tenant: bytes) -> bool:
        reader = ChunkReader(self._kept.tenants.get(tenant), self._kept.catalog)
        losses = Losses(reader, share=True, tick=self._tick)
        return all(losses.is_whole(backup.root) for backup in each_backup(self._kept.catalog, tenant))

    def _tick(self) -> None:
        if self._thread.stopping:
            raise StoppedError

    def _tell(self, known: dict[bytes, KnownDamage]) -> None:
        self.is_whole = not known and not self.lost and not self._absent
        if known == self.known:
            return
        names = {row.id: row.name for row in self._kept.catalog.tenants.list_all()}
        for tenant, damage in known.items():
            before = self.known.get(tenant)
            if before is None or damage[1:] != before[1:]:
                log.error(
                    "damage is known in tenant %s: %s gone or damaged as a whole, and of others %s and %s. Run `staddle-server check` to see what it costs; the next FULL backup of the same data heals packs and "
                    "segments, `staddle-server repair` the others",
                    names.get(tenant, tenant.hex()),
                    counted(damage.packs, "pack is", "packs are"),
                    counted(damage.segments, "segment"),
                    counted(damage.footers, "header or footer", "headers or footers"),
                    extra={
                        "fields": {
                            "packs": damage.packs,
                            "segments": damage.segments,
                            "footers": damage.footers,
                        }
                    },
                )
        for tenant in self.known.keys() - known.keys():
            log.warning("no damage is left in tenant %s: all its backups are intact", names.get(tenant, ""))
        self.known = known

    def _look_again(self) -> None:
        try:
            self.look()
        except StoppedError:
            return
        except StaddleError as e:
            log.warning("could not determine whether anything is damaged: %s", e.message)
