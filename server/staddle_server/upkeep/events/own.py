"""What a server knows about itself: the one source of its health, and of its alarms."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from staddle._base.figures import counted, listed

from staddle_server.catalog import Alarm, KnownDamage
from staddle_server.store.space import Space
from staddle_server.upkeep.condition import Watches
from staddle_server.upkeep.events import kinds
from staddle_server.upkeep.events.kinds import CRITICAL, WARNING, alarm
from staddle_server.upkeep.integrity.findings import Kept


class CertificateDates(Protocol):
    """What the dates of the server's certificates mean now."""

    @property
    def is_valid(self) -> bool:
        """Whether they are valid."""

    @property
    def words(self) -> str:
        """Which one ends when; empty if none ends soon."""


class OwnState:
    """The state of one server, of its disks, its clock and its certificates. Free to ask for."""

    kinds: Final = frozenset(
        kind.name
        for kind in (
            kinds.RESTORE_ONLY,
            kinds.STORE,
            kinds.CLOCK,
            kinds.CERTIFICATE,
            kinds.DAMAGE,
            kinds.LOCK,
            kinds.SECOND_SITE,
        )
    )

    def __init__(
        self,
        kept: Kept,
        space: Space | None,
        watches: Watches,
        certificates: Callable[[], CertificateDates | None],
        catalog_writes: Callable[[], bool],
    ) -> None:
        """`certificates` returns None without TLS; `catalog_writes` whether the catalog takes writes."""
        self._catalog = kept.catalog
        self._blobs = kept.blobs
        self._space = space
        self._watches = watches
        self._certificates = certificates
        self._catalog_writes = catalog_writes
        self._host = socket.gethostname()

    def has_room(self) -> bool:
        """Return whether the disks have room for backups."""
        return self._space is None or self._space.flaw() is None

    def takes_backups(self) -> bool:
        """Return whether store and catalog take writes, and the disks have room."""
        return self._blobs.failed is None and self._catalog_writes() and self.has_room()

    def trusts_clock(self) -> bool:
        """Return whether the clock is trusted."""
        return not self._watches.clock.in_doubt

    def lock_lasts(self) -> bool:
        """Return whether the locks of the store are extended in time."""
        return self._watches.store.lock_lasts

    def site_is_current(self) -> bool:
        """Return whether the second site is not behind for too long."""
        return self._watches.store.site_is_current

    def is_whole(self) -> bool:
        """Return whether store and catalog exist, and no damage is known."""
        return self._watches.integrity.is_whole

    def certificates_last(self) -> bool:
        """Return whether the certificates are valid, and for long enough."""
        dates = self._certificates()
        return dates is None or not dates.words

    def alarms(self, server: str, now_ns: int) -> Iterator[Alarm]:  # noqa: ARG002 - each watch has its own time
        """Yield what is wrong now; `server` names this one among several.

        StaddleError: the catalog does not tell the tenants' names.
        """
        if self._blobs.failed is not None:
            yield alarm(
                kinds.RESTORE_ONLY,
                CRITICAL,
                f"The server on {self._host} is read-only because its store failed: {self._blobs.failed}. Backups are refused; restores work.",
                "Check the disk and the server's log, then restart the server.",
                server=server,
                subject="store",
            )
        if not self._catalog_writes():
            yield alarm(
                kinds.RESTORE_ONLY,
                CRITICAL,
                f"The catalog of the server on {self._host} takes no writes. Backups are refused; restores work.",
                "Check the disk or the database of the catalog; the server's log says why. It recovers by itself.",
                server=server,
                subject="catalog",
            )
        if not self.has_room():
            yield alarm(
                kinds.RESTORE_ONLY,
                CRITICAL,
                f"The disk of the server on {self._host} is nearly full. Backups are refused; restores work.",
                "Delete backups and collect (`staddle-server gc`), or add space; `staddle-server health` shows how much is free.",
                server=server,
                subject="disk",
            )
        standing = self._watches.clock.standing
        if standing is not None and standing.jump_ns:
            yield alarm(
                kinds.CLOCK,
                CRITICAL,
                f"The clock of {self._host} {standing.jump_words}. Until this is resolved, nothing is purged, expired or deleted by policy.",
                "Set the clock right; or, if it is right now, run `staddle-server clock --confirm`.",
                server=server,
            )
        dates = self._certificates()
        if dates is not None and dates.words:
            yield alarm(
                kinds.CERTIFICATE,
                WARNING if dates.is_valid else CRITICAL,
                f"On {self._host}, {dates.words}.",
                "Renew the certificate and replace its file: the server reads it again within a minute, without a restart.",
                server=server,
            )
        yield from self._store_alarms(server)
        yield from self._integrity_alarms(server)

    def _store_alarms(self, server: str) -> Iterator[Alarm]:
        lock, site = self._watches.store.lock, self._watches.store.site
        if lock is not None and lock.warnings:
            yield alarm(
                kinds.LOCK,
                CRITICAL,
                f"The object lock of the store is not extended in time: {'; '.join(lock.warnings)}.",
                "Look at `staddle-server lock`, which says why.",
            )
        if site is not None and site.warning:
            yield alarm(
                kinds.SECOND_SITE,
                WARNING,
                f"On {self._host}, {site.warning.partition('. See ')[0]}.",
                "Look at `staddle-server replicate --status`.",
                server=server,
                subject=site.place,
            )

    def _integrity_alarms(self, server: str) -> Iterator[Alarm]:
        for part in self._watches.integrity.absent:
            yield alarm(
                kinds.STORE,
                CRITICAL,
                f"{part.capitalize()} of the server on {self._host} is missing or was replaced. Backups and restores fail.",
                "Check that its file system is mounted, or that its object store or database runs; the server's log says more.",
                server=server,
                subject=part,
            )
        lost, known = dict(self._watches.integrity.lost), self._watches.integrity.known
        names = {row.id: row.name for row in self._catalog.tenants.list_all()} if lost or known else {}
        for tenant, objects in lost.items():
            yield alarm(
                kinds.DAMAGE,
                CRITICAL,
                f"Keys or records of tenant {names.get(tenant, tenant.hex())} are damaged or missing: {objects.words.partition('. ')[0]}.",
                "Run `staddle-server check` to see what that costs, then `staddle-server repair`.",
                tenant=names.get(tenant, ""),
                server=server,
                subject="keys and records",
            )
        for tenant, damage in known.items():
            yield alarm(
                kinds.DAMAGE,
                CRITICAL,
                f"Stored data of tenant {names.get(tenant, tenant.hex())} is damaged: {_of(damage)}.",
                "Run `staddle-server check` to see which backups and files that concerns, then `staddle-server repair`. The next full "
                "backup of the same data heals it, too.",
                tenant=names.get(tenant, ""),
                subject="stored data",
            )


def _of(damage: KnownDamage) -> str:
    """Return in words how much is damaged."""
    parts = (
        (damage.packs, "pack", ""),
        (
            damage.segments,
            *(
                ("part of another pack", "parts of other packs")
                if damage.packs
                else ("part of a pack", "parts of packs")
            ),
        ),
        (damage.footers, "header or footer", "headers or footers"),
    )
    return listed([counted(number, one, many) for number, one, many in parts if number])
