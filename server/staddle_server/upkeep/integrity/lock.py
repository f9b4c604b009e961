"""Object locks of what backups need: extended before they end, and what nothing needs any more is removed by
version.

docs/decisions/2026-11-30-object-lock.md says why in this way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import Final

from staddle._base.figures import counted

from staddle_server.base.clock import NS
from staddle_server.base.errors import Damaged, Unavailable
from staddle_server.base.threads import Threads
from staddle_server.catalog import LockDue
from staddle_server.store.blobs import FORMAT_NAME
from staddle_server.store.keys import parse_keys_name
from staddle_server.store.locks import LOCKED, MARGIN, ObjectLock, ObjectVersions, lock_of, purge, some_names
from staddle_server.store.pack import pack_name, parse_pack_name
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.integrity.hidden import hidden_records, hidden_words
from staddle_server.upkeep.integrity.record_check import lost_records
from staddle_server.upkeep.schedule import StoppedError, Stopping, Task

log = logging.getLogger(__name__)

DAY_S: Final = 86_400.0
PACKS: Final = "lock"
VERSIONS: Final = "versions"
AT_ONCE: Final = 8
_BATCH: Final = 500
_UNLOCKED: Final = frozenset({"copies", "heads", "marks", "parity", "probe"})
"""Kinds of Staddle's objects that no restore needs."""


@dataclass
class LockReport:
    """What was done.

    Attributes:
        extended: Locks that were extended.
        removed: Old versions that were removed for good.
        kept: Hidden versions that are still locked.
        missing: Names of live packs without an object.
        hidden: Names of live packs, records and keys that someone with the keys of the store has deleted.
        replaced: Names of packs, records and keys that were replaced: by a repair, or by such a person.

    """

    extended: int = 0
    removed: int = 0
    kept: int = 0
    missing: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        said = []
        if self.extended:
            said.append(f"{counted(self.extended, 'lock was', 'locks were')} extended")
        if self.removed:
            said.append(f"{counted(self.removed, 'old version was', 'old versions were')} removed")
        if self.kept:
            said.append(f"{counted(self.kept, 'deleted object is', 'deleted objects are')} still locked")
        if self.missing:
            said.append(
                f"{counted(len(self.missing), 'pack')} cannot be found in the store{some_names(self.missing)}"
            )
        if self.hidden:
            said.append(hidden_words(self.hidden))
        if self.replaced:
            said.append(
                f"{counted(len(self.replaced), 'object was', 'objects were')} replaced; all versions stay locked{some_names(self.replaced)}"
            )
        return "; ".join(said)


class Locker:
    """Keeps locked what backups need."""

    def __init__(self, kept: Kept, lock: ObjectLock) -> None:
        self._kept = kept
        self._catalog = kept.catalog
        self._lock = lock

    def extend_packs(self, stopping: Stopping = lambda: False) -> LockReport:
        """Extend the locks of live packs that have used up half of the margin, those that end first first.

        One request for each. What a stop leaves, the next call does. Raises Unavailable.
        """
        if flaw := self._lock.flaw():
            raise Unavailable("STORE_UNAVAILABLE", f"the bucket cannot lock objects any more: {flaw}")
        report = LockReport()
        due_ns = self._lock.now_ns() + round(self._lock.span_s * (1 + MARGIN / 2)) * NS
        after = (-1, 0)
        with Threads(AT_ONCE, thread_name_prefix="lock") as threads:
            while not stopping() and (batch := self._catalog.packs.lock_due(due_ns, after, _BATCH)):
                after = (batch[-1].locked_until_ns, batch[-1].row)
                found = zip(batch, threads.map(self._extend_pack, batch), strict=True)
                until_ns = {}
                for pack, end_ns in found:
                    if end_ns is None:
                        report.missing.append(pack_name(pack.tenant, pack.pack))
                    else:
                        until_ns[pack.row] = end_ns
                self._catalog.packs.note_locked(until_ns)
                report.extended += len(until_ns)
        return report

    def look_at_versions(self, stopping: Stopping = lambda: False) -> LockReport:
        """Extend the locks of keys, records and the store's format, and remove old versions that nothing needs.

        All versions of what was hidden or replaced are extended as well: the first one is intact. Lists the
        whole store. Raises Unavailable.
        """
        report = LockReport()
        now_ns = self._lock.now_ns()
        hidden = self._hidden_records()
        histories = self._lock.histories("")
        with Threads(AT_ONCE, thread_name_prefix="lock") as threads:
            while not stopping() and (batch := list(islice(histories, _BATCH))):
                found = self._live(batch) | hidden
                needed = [history for history in batch if self._is_needed(history, found)]
                report.hidden += [history.name for history in needed if history.is_hidden]
                report.replaced += [
                    history.name for history in needed if len(history.versions) > 1 and not history.is_hidden
                ]
                report.extended += sum(threads.map(self._extend_all, needed))
                for removed, kept in threads.map(
                    lambda history: self._remove_old(history, now_ns),
                    [history for history in batch if not self._is_needed(history, found)],
                ):
                    report.removed += removed
                    report.kept += kept
        return report

    def _hidden_records(self) -> set[str]:
        """Return the names of hidden records that the catalog needs."""
        names: set[str] = set()
        for row in self._catalog.tenants.list_all():
            with suppress(Damaged):  # with keys that do not open: Integrity reports them
                missing = lost_records(self._kept.tenants.get(row.id), self._catalog)
                names.update(hidden_records(self._lock, row.id, missing))
        return names

    def _is_needed(self, history: ObjectVersions, found: set[str]) -> bool:
        """Return whether the locks of all its versions are extended here; `found`: packs and hidden records."""
        kind = history.name.partition("/")[0]
        if history.name in found:
            return True
        if kind not in LOCKED - {"packs"}:
            return False
        return not history.is_hidden or history.name == FORMAT_NAME or self._is_known_key(history.name)

    def _is_known_key(self, name: str) -> bool:
        """Return whether these are keys of a tenant that exists: they are never deleted."""
        if not name.startswith("keys/"):
            return False
        with suppress(Damaged):
            tenant, _ = parse_keys_name(name)
            return tenant in {row.id for row in self._catalog.tenants.list_all()}
        return False

    def _live(self, histories: list[ObjectVersions]) -> set[str]:
        """Return the names of those that are live packs with more than one version: each lock of the others is
        extended by `extend_packs`.
        """
        packs: dict[bytes, set[bytes]] = {}
        for history in histories:
            if history.name.startswith("packs/") and len(history.versions) > 1:
                with suppress(ValueError):
                    tenant, pack = parse_pack_name(history.name)
                    packs.setdefault(tenant, set()).add(pack)
        known = {row.id for row in self._catalog.tenants.list_all()}
        return {
            pack_name(tenant, pack)
            for tenant in packs.keys() & known
            for pack in self._catalog.packs.live_sizes(tenant, packs[tenant])
        }

    def _extend_pack(self, pack: LockDue) -> int | None:
        try:
            return self._lock.extend(pack_name(pack.tenant, pack.pack))
        except FileNotFoundError:
            return None

    def _extend_all(self, history: ObjectVersions) -> int:
        """Extend all versions; return how many. One that was removed meanwhile is left out."""
        extended = 0
        for version in history.versions:
            if not version.is_marker:
                with suppress(FileNotFoundError):
                    self._lock.extend(history.name, version.id)
                    extended += 1
        return extended

    def _remove_old(self, history: ObjectVersions, now_ns: int) -> tuple[int, int]:
        """Remove what is hidden or replaced for long enough; return how many versions, and how many are
        locked.
        """
        kind = history.name.partition("/")[0]
        if kind not in LOCKED | _UNLOCKED:
            return 0, 0  # not Staddle's
        settled_ns = now_ns - round(self._lock.span_s if kind in LOCKED else DAY_S) * NS
        if history.is_hidden:
            if history.versions[0].modified_ns > settled_ns:
                return 0, 0
            kept = purge(self._lock, history)
            return sum(not each.is_marker for each in history.versions) - kept, kept
        if kind in LOCKED:
            return 0, 0
        replaced = [old for new, old in pairwise(history.versions) if new.modified_ns <= settled_ns]
        removed = [self._lock.remove(history.name, each.id) for each in replaced]
        return removed.count(True), removed.count(False)


def lock_tasks(kept: Kept) -> list[Task]:
    """Return the tasks that keep locked what backups need; none for a store without object lock."""
    lock = lock_of(kept.blobs)
    if lock is None:
        return []
    locker = Locker(kept, lock)
    return [
        Task(PACKS, min(DAY_S, lock.span_s * MARGIN / 8), partial(_run, locker.extend_packs)),
        Task(VERSIONS, versions_every_s(lock.span_s), partial(_run, locker.look_at_versions)),
    ]


def versions_every_s(span_s: float) -> float:
    """Return how often the locks of keys and records are extended, for that promise."""
    return span_s * MARGIN / 4


def _run(work: Callable[[Stopping], LockReport], stopping: Stopping) -> str:
    report = work(stopping)
    if stopping():
        raise StoppedError
    return _told(report)


def _told(report: LockReport) -> str:
    if report.missing or report.hidden or report.replaced:
        log.error("the store was changed by someone else, or has lost objects: %s", report)
    return str(report)
