"""What every target has: a name, a filter, and a way to send."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from staddle_server.catalog import Alarm, Event
from staddle_server.upkeep.events.kinds import CRITICAL, TARGET, WARNING
from staddle_server.upkeep.notify.attempt import Attempt
from staddle_server.upkeep.notify.notice import BEGAN, Notice

TARGETS_MAX: Final = 20
TIMEOUT_S: Final = 30.0


class Filter(NamedTuple):
    """Which alarms a target gets.

    Attributes:
        kinds: Names of kinds; empty: all.
        tenants: Names of tenants; empty: all. Alarms of no tenant always pass.
        severity: The least severity.

    """

    kinds: Collection[str] = ()
    tenants: Collection[str] = ()
    severity: str = WARNING

    def passes(self, alarm: Alarm) -> bool:
        """Return whether the target gets this alarm."""
        return (
            (not self.kinds or alarm.key.kind in self.kinds)
            and (not self.tenants or not alarm.key.tenant or alarm.key.tenant in self.tenants)
            and (self.severity == WARNING or alarm.severity == CRITICAL)
        )


class Target(Protocol):
    """A place that hears of events.

    Attributes:
        name: Its name in the file of targets.
        kind: Its kind there.
        filter: Which alarms it gets.
        timeout_s: How long a try may take.

    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def filter(self) -> Filter: ...
    @property
    def timeout_s(self) -> float: ...


class Receiver(Target, Protocol):
    """A target that gets a message when an event begins, and one when it is over.

    Attributes:
        most: How many messages it takes at once.

    """

    @property
    def most(self) -> int: ...

    def send(self, notices: Sequence[Notice], attempt: Attempt, now_ns: int) -> None:
        """Send 1 to `most` messages, or raise TargetError."""


def wants(target: Target, alarm: Alarm) -> bool:
    """Return whether a target gets an alarm: not the one that it fails itself."""
    is_own = alarm.key.kind == TARGET.name and alarm.key.subject == target.name
    return not is_own and target.filter.passes(alarm)


def open_notices(target: Target, events: Iterable[Event]) -> list[Notice]:
    """Return messages of the open events that a target gets."""
    return [
        Notice(f"{event.id.hex()}.{BEGAN}", BEGAN, event.alarm, event.began_ns, None)
        for event in events
        if wants(target, event.alarm)
    ]
