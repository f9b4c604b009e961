"""One tenant's turn in a collection: the shared state of its steps, and their report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from staddle_server.base.clock import NS, Clock
from staddle_server.catalog import Catalog
from staddle_server.tenancy.tenant import Tenant


class NotCollected(Exception):  # noqa: N818 - an outcome that is reported, not a fault
    """The garbage of this tenant stays for now. The message says why, and what to do."""


class Stopped(Exception):  # noqa: N818 - not an error: the caller wants it to stop
    """The collector must stop: what is done stays done, and the next collection does the rest."""


@dataclass
class TenantReport:
    """What a collection did for a tenant, or in a dry run would do. Sizes are bytes in the store."""

    tenant: str
    backups_purged: int = 0
    backups_hidden: int = 0
    """Deleted ones that can still be undeleted."""
    purge_from_ns: int | None = None
    """When the first one's grace period ends."""
    backups_walked: int = 0
    chunks_looked_up: int = 0
    chunks_missing: int = 0
    """Chunks that manifests name and no pack has. They do not block collection; a check reports them."""
    packs_looked_at: int = 0
    bytes_looked_at: int = 0
    """Of the packs that were live when the mark began."""
    packs_condemned: int = 0
    bytes_condemned: int = 0
    packs_compacted: int = 0
    bytes_compacted: int = 0
    packs_written: int = 0
    bytes_written: int = 0
    packs_reaped: int = 0
    bytes_freed: int = 0
    packs_left_over: int = 0
    packs_absent: int = 0
    """Live packs whose objects the store does not list."""
    orphans: int = 0
    """Objects without a row that stay for now."""
    bytes_orphaned: int = 0
    packs_waiting: int = 0
    """Condemned packs whose bytes become free later."""
    bytes_waiting: int = 0
    free_from_ns: int | None = None
    free_by_ns: int | None = None
    backups_forgotten: int = 0
    failure: str = ""
    """Why the tenant was not collected, or not completely."""

    def figures(self) -> dict[str, int]:
        """Return its numbers that are known, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


@dataclass(frozen=True)
class Graces:
    """How long deleted data stays. `purge_s` None: as set for each tenant."""

    purge_s: int | None
    reap_s: int


@dataclass(frozen=True)
class Turn:
    """Whose garbage is collected, by whom, and how the steps learn that they must end.

    Attributes:
        fence: The fence of changes to the catalog.
        tick: Called often: keeps the lease, and raises Stopped when it is time to end.
        show: Reports a step's progress: the step, amount done, total (0: unknown).

    """

    catalog: Catalog
    tenant: Tenant
    clock: Clock
    graces: Graces
    fence: int = 0
    tick: Callable[[], None] = lambda: None
    show: Callable[[str, int, int], None] = lambda _what, _done, _of: None
    report: TenantReport = field(default_factory=lambda: TenantReport(""))

    def reaped_before_ns(self) -> int:
        """Return what was condemned, or first seen as an orphan, before this time may go now."""
        return self.clock.now_ns() - self.graces.reap_s * NS
