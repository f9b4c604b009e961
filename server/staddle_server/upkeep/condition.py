"""The condition of a running server as data: whether it accepts backups, its clock, known damage, the object lock
and the second site.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from staddle_server.catalog import Alarm, KnownDamage
from staddle_server.tenancy.clock_guard import Standing
from staddle_server.upkeep.clock_watch import ClockWatch
from staddle_server.upkeep.integrity.lock_standing import LockStanding
from staddle_server.upkeep.integrity.watch import Integrity, LostObjects
from staddle_server.upkeep.replication.lag import SiteLag
from staddle_server.upkeep.store_watch import StoreWatch

NO_DAMAGE = KnownDamage(0, 0, 0)
NOTHING_LOST = LostObjects("", 0, 0)


class Condition(NamedTuple):
    """The condition of a server, for one tenant.

    Attributes:
        takes_backups: The store accepts writes, and the disks have space.
        clock: Whether the clock is trusted; None if not checked yet.
        damage: The known damage of the tenant.
        lost: What the tenant lacks besides packs.
        lock: The object lock of the store; None if it has none.
        site: The copy at the second site; None if there is none.
        warnings: What else an administrator must know, in sentences.

    """

    takes_backups: bool
    clock: Standing | None
    damage: KnownDamage
    lost: LostObjects
    lock: LockStanding | None
    site: SiteLag | None
    warnings: Sequence[str]


class Watches(NamedTuple):
    """What looks at a running server, each on its own thread."""

    clock: ClockWatch
    integrity: Integrity
    store: StoreWatch


class Conditions:
    """The condition as of the watches' last look. Free to ask for."""

    def __init__(
        self,
        watches: Watches,
        takes_backups: Callable[[], bool],
        failing_targets: Callable[[], Sequence[Alarm]],
    ) -> None:
        self._watches = watches
        self._takes_backups = takes_backups
        self._failing_targets = failing_targets

    def of(self, tenant: bytes) -> Condition:
        """Return the condition for the tenant with this id."""
        return Condition(
            self._takes_backups(),
            self._watches.clock.standing,
            self._watches.integrity.known.get(tenant, NO_DAMAGE),
            self._watches.integrity.lost.get(tenant, NOTHING_LOST),
            self._watches.store.lock,
            self._watches.store.site,
            [alarm.text for alarm in self._failing_targets()],
        )
