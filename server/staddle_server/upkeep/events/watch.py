"""Finds out what began and what is over, on its own thread, and hands it to the targets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from staddle_server.base.errors import StaddleError
from staddle_server.base.threads import Background
from staddle_server.catalog import Alarm, AlarmKey, Catalog, Event, EventChanges
from staddle_server.tenancy.clock_guard import ClockGuard
from staddle_server.upkeep.events.changes import GONE_AFTER_S, OVER_AFTER_S, changes_of
from staddle_server.upkeep.events.kinds import KINDS, TARGET
from staddle_server.upkeep.events.sources import Source
from staddle_server.upkeep.held_lease import holder_name

log = logging.getLogger(__name__)

LOOK_S: Final = 10.0
THIN_EVERY: Final = 360
"""Past events are thinned at every so many-th look: every hour."""
UNWANTED_S: Final = 3 * 86_400.0
"""After this, deliveries that no server tries are given up."""


class EventWatch:
    """Keeps the events of the catalog in step with what the sources know.

    Servers of one catalog agree: each compares, and the first that finds a change makes it. What concerns one
    server alone is its own to find.
    """

    def __init__(
        self,
        catalog: Catalog,
        guard: ClockGuard,
        sources: Sequence[Source],
        wanting: Callable[[Alarm], Iterable[str]],
        *,
        every_s: float = LOOK_S,
        over_after_s: float = OVER_AFTER_S,
    ) -> None:
        """`wanting` returns the names of the targets that an alarm goes to."""
        self._catalog = catalog
        self._guard = guard
        self._sources = sources
        self._wanting = wanting
        self._over_after_s = over_after_s
        self._thread = Background("events", every_s, self.look)
        self._looks = 0
        self._silent: set[str] = set()
        """Kinds whose source could not tell at the last look."""
        self.server = ""
        """What names this server in what concerns it alone; empty where there is no other."""
        self.holding: tuple[Alarm, ...] = ()
        """The alarms of the last look."""
        self._failing = False

    def start(self, endpoint: str) -> None:
        """Look now and then. `endpoint` names this server among those of a catalog that several may share."""
        self.server = endpoint if self._catalog.database.is_distant else ""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread."""
        self._thread.stop()

    @property
    def works(self) -> bool:
        """Whether the last look could ask all sources, compare, and record everything."""
        return not (self._failing or self._silent)

    def reaches_targets(self) -> bool:
        """Return whether no notification target fails."""
        return not self.failing_targets()

    def failing_targets(self) -> list[Alarm]:
        """Return the alarms of notification targets."""
        return [alarm for alarm in self.holding if alarm.key.kind == TARGET.name]

    def look(self) -> None:
        """Compare now. A catalog that does not answer is logged once."""
        try:
            self._look()
        except StaddleError as e:
            if not self._failing:
                log.warning("events could not be brought up to date: %s", e.message)
            self._failing = True
        except Exception:
            self._failing = True
            raise
        else:
            self._failing = False

    def _look(self) -> None:
        now_ns = self._guard.believed_ns()
        opened = self._catalog.events.open(now_ns)  # before the sources are asked: their answer is as new
        alarms = self._alarms(now_ns)
        self.holding = tuple(alarms)
        servers = self._others() if any(event.alarm.key.server for event in opened.events) else set()

        def over_after_s(key: AlarmKey) -> float | None:
            if key.kind in self._silent:
                return None
            if key.server in {"", self.server}:
                return self._over_after_s
            return None if key.server in servers else GONE_AFTER_S

        changes = changes_of(opened.events, alarms, opened.now_ns, over_after_s)
        if any(changes) and self._catalog.events.change(
            opened.fence, changes, self._wanting, holder_name(), now_ns
        ):
            _say(changes)
        if self._looks % THIN_EVERY == 0:
            self._catalog.events.thin(now_ns)
            self._catalog.deliveries.give_up(UNWANTED_S, now_ns)
        self._looks += 1

    def _alarms(self, now_ns: int) -> list[Alarm]:
        """Return what all sources yield; note the kinds of those that cannot tell. A fault of one stops no other."""
        found: list[Alarm] = []
        silent: set[str] = set()
        for source in self._sources:
            try:
                found += source.alarms(self.server, now_ns)
            except StaddleError as e:
                if not source.kinds <= self._silent:
                    log.warning("events of %s are unknown: %s", ", ".join(sorted(source.kinds)), e.message)
                silent |= source.kinds
            except Exception:
                if not source.kinds <= self._silent:
                    log.exception("events of %s are unknown", ", ".join(sorted(source.kinds)))
                silent |= source.kinds
        self._silent = silent
        return found

    def _others(self) -> set[str]:
        return {server.identity.endpoint for server in self._catalog.servers.list_all()}


def _say(changes: EventChanges) -> None:
    """Log what began and what is over."""
    for alarm in changes.begun:
        log.info("event: %s", alarm.text, extra={"fields": _fields(alarm)})
    for event in changes.over:
        log.info("over: %s", _ends(event), extra={"fields": _fields(event.alarm)})


def _fields(alarm: Alarm) -> dict[str, object]:
    named = {"event": alarm.key.kind, "tenant": alarm.key.tenant, "subject": alarm.key.subject}
    return {name: value for name, value in named.items() if value}


def _ends(event: Event) -> str:
    kind = KINDS.get(event.alarm.key.kind)
    return kind.ends if kind else event.alarm.text
