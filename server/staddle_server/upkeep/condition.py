"""The condition of a running server as data: whether it accepts backups, its clock, and known damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from staddle_server.catalog import Alarm, KnownDamage
from staddle_server.tenancy.clock_guard import Standing
from staddle_server.upkeep.events.own import OwnState


class Condition(NamedTuple):
    """The condition of a server, for one tenant.

    Attributes:
        takes_backups: The store accepts writes, and the disks have space.
        clock: Whether the clock is trusted; None if not checked yet.
        damage: The known damage of the tenant.
        warnings: What else an administrator must know, in words.

    """

    takes_backups: bool
    clock: Standing | None
    damage: KnownDamage
    warnings: Sequence[str]


class Conditions:
    """The condition as of the watches' last look. Free to ask for."""

    def __init__(self, own: OwnState, failing_targets: Callable[[], Sequence[Alarm]]) -> None:
        self._own = own
        self._failing_targets = failing_targets

    def of(self, tenant: bytes) -> Condition:
        """Return the condition for the tenant with this id."""
        warnings = [alarm.text for alarm in self._failing_targets()]
        return Condition(
            self._own.takes_backups(), self._own.clock_standing(), self._own.damage_of(tenant), warnings
        )
