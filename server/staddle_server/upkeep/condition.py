"""The condition of a running server as data: whether it accepts backups, its clock, and known damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from staddle_server.catalog import KnownDamage
from staddle_server.tenancy.clock_guard import Standing
from staddle_server.upkeep.clock_watch import ClockWatch
from staddle_server.upkeep.integrity.watch import Integrity

NO_DAMAGE = KnownDamage(0, 0, 0)


class Condition(NamedTuple):
    """The condition of a server, for one tenant.

    Attributes:
        takes_backups: The store accepts writes, and the disks have space.
        clock: Whether the clock is trusted; None if not checked yet.
        damage: The known damage of the tenant.

    """

    takes_backups: bool
    clock: Standing | None
    damage: KnownDamage


class Conditions:
    """The condition as of the watches' last look. Free to ask for."""

    def __init__(self, clock: ClockWatch, integrity: Integrity, takes_backups: Callable[[], bool]) -> None:
        self._clock = clock
        self._integrity = integrity
        self._takes_backups = takes_backups

    def of(self, tenant: bytes) -> Condition:
        """Return the condition for the tenant with this id."""
        damage = self._integrity.known.get(tenant, NO_DAMAGE)
        return Condition(self._takes_backups(), self._clock.standing, damage)
