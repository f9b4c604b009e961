"""Brings events to the targets: each target has a thread of its own, so one that is down delays no other.

A delivery is claimed in the catalog, sent, and marked. What was sent but not marked is sent again, with the
same id.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from staddle._base.figures import counted

from staddle_server.base.clock import Clock
from staddle_server.base.errors import StaddleError
from staddle_server.base.threads import Background
from staddle_server.catalog import Alarm, Catalog, Delivery, Event
from staddle_server.catalog.deliveries import RETRY_S_MAX
from staddle_server.tenancy.clock_guard import ClockGuard
from staddle_server.upkeep.notify.attempt import Attempt, TargetError, Watchdog
from staddle_server.upkeep.notify.notice import Notice, notice_of
from staddle_server.upkeep.notify.ping import Ping
from staddle_server.upkeep.notify.targets import Receiver, Target, open_notices, wants

log = logging.getLogger(__name__)

AnyTarget = Receiver | Ping

LOOK_S: Final = 5.0
RETRY_S: Final = 30.0
"""The wait after the first failed try of a delivery; it doubles up to RETRY_S_MAX."""
PAUSE_S_MAX: Final = 300.0
"""How long at most a target is left alone after failed tries in a row."""
BUSY_S: Final = 60.0
"""How long after the longest try a claim ends: then another server may try."""
GIVE_UP_S: Final = 3 * 86_400.0
TRIES_MIN: Final = 10
"""Fewer tries are not enough to give up: a clock that was ahead makes a delivery old at once."""


class Notifier:
    """The targets of one server, and the threads that send to them."""

    def __init__(
        self,
        catalog: Catalog,
        guard: ClockGuard,
        clock: Clock,
        knows: Callable[[], bool],
        every_s: float = LOOK_S,
    ) -> None:
        """`knows` returns whether the events are up to date: if not, no ping service hears that all is well."""
        self._catalog = catalog
        self._knows = knows
        self._guard = guard
        self._clock = clock
        self._every_s = every_s
        self._watchdog = Watchdog()
        self._targets: dict[str, AnyTarget] = {}
        self._threads: dict[str, Background] = {}
        self._pauses: dict[str, _Pause] = {}
        self._random = random.Random()  # noqa: S311 - spreads retries
        self._running = False

    @property
    def names(self) -> frozenset[str]:
        """The names of the targets."""
        return frozenset(self._targets)

    def wanting(self, alarm: Alarm) -> list[str]:
        """Return the names of the targets that get messages of an alarm."""
        targets = self._targets.values()
        return [each.name for each in targets if not isinstance(each, Ping) and wants(each, alarm)]

    def set_targets(self, targets: Iterable[AnyTarget]) -> None:
        """Use these targets from now on; each keeps what waits for its name."""
        self._targets = {target.name: target for target in targets}
        if self._running:
            self._start_threads()

    def start(self) -> None:
        """Start sending."""
        self._running = True
        self._watchdog.start()
        self._start_threads()

    def stop(self) -> None:
        """Cut the tries that are under way, and stop."""
        if not self._running:
            return
        self._running = False
        self._watchdog.cut_all()
        for thread in self._threads.values():
            thread.stop()
        self._watchdog.stop()

    def _start_threads(self) -> None:
        """Start a thread for each name that has none. One whose target is gone idles until it is back."""
        for name in self._targets.keys() - self._threads.keys():
            thread = Background(f"notify-{name}", self._every_s, partial(self._turn, name))
            thread.start()
            self._threads[name] = thread

    def _turn(self, name: str) -> None:
        try:
            self.turn(name)
        except StaddleError as e:
            log.warning("notification target %s: the catalog does not answer: %s", name, e.message)

    def turn(self, name: str) -> None:
        """Send to a target what is due now, once."""
        target = self._targets.get(name)
        pause = self._pauses.setdefault(name, _Pause())
        now_s = self._clock.monotonic_s()
        if target is None or now_s < pause.until_s:
            return
        if isinstance(target, Ping):
            self._tell(target, pause)
            return
        claimed = self._catalog.deliveries.claim(
            name, target.most, self._guard.believed_ns(), target.timeout_s + BUSY_S
        )
        if claimed:
            self._deliver(target, claimed, pause)

    def _deliver(self, target: Receiver, claimed: Sequence[Delivery], pause: _Pause) -> None:
        now_ns = self._guard.believed_ns()
        error = self._tried(
            target, lambda attempt: target.send([notice_of(each) for each in claimed], attempt, now_ns)
        )
        ended = [(each, self._retry_s(each) if error else None) for each in claimed]
        for each, retry_s in ended:
            if error and retry_s is None:
                log.error(
                    "notification target %s: a message of %s was given up after %s: %s",
                    target.name,
                    each.event.alarm.key.kind,
                    counted(each.tries, "try", "tries"),
                    error,
                )
        self._end(target, ended, error, pause)

    def _tell(self, target: Ping, pause: _Pause) -> None:
        if not self._knows():
            return  # the service raises the alarm when it hears nothing
        events = self._catalog.events.open(self._guard.believed_ns()).events
        notices = open_notices(target, events)
        state = frozenset(notice.id for notice in notices)
        if self._clock.monotonic_s() < pause.again_s and state == pause.told:
            return
        error = self._tried(target, lambda attempt: target.tell(notices, attempt))
        pause.told = state
        pause.again_s = self._clock.monotonic_s() + target.every_s
        self._end(target, (), error, pause)

    def _tried(self, target: Target, send: Callable[[Attempt], None]) -> str:
        """Try once; return why it failed, "" if it did not."""
        try:
            with self._watchdog.attempt(target.timeout_s) as attempt:
                send(attempt)
        except TargetError as e:
            return str(e)
        except Exception as e:
            log.exception("a fault in sending to the notification target %s", target.name)
            return f"a fault of the server ({type(e).__name__})"
        return ""

    def _end(
        self, target: Target, ended: Sequence[tuple[Delivery, float | None]], error: str, pause: _Pause
    ) -> None:
        if error and not pause.failures:
            log.warning(
                "notification target %s cannot be reached, and is tried again: %s", target.name, error
            )
        if not error and pause.failures:
            log.warning("notification target %s is reached again", target.name)
        pause.failures = pause.failures + 1 if error else 0
        if error:
            wait_s = min(PAUSE_S_MAX, self._every_s * 2 ** min(pause.failures, 16))
            pause.until_s = self._clock.monotonic_s() + wait_s
            pause.again_s = 0.0
        self._catalog.deliveries.end(target.name, target.kind, ended, error, self._guard.believed_ns())

    def _retry_s(self, delivery: Delivery) -> float | None:
        """Return when a failed delivery is due again; None: never."""
        if delivery.waiting_s >= GIVE_UP_S and delivery.tries >= TRIES_MIN:
            return None
        wait_s = min(RETRY_S_MAX, RETRY_S * 2.0 ** min(delivery.tries - 1, 16))
        return wait_s * self._random.uniform(0.75, 1.0)


class _Pause:
    """What a thread remembers of its target between turns. Times are monotonic."""

    def __init__(self) -> None:
        self.failures = 0
        self.until_s = 0.0
        self.again_s = 0.0
        self.told: frozenset[str] = frozenset()


def try_each(
    targets: Iterable[AnyTarget], notice: Notice, events: Sequence[Event], now_ns: int
) -> Iterator[tuple[AnyTarget, str]]:
    """Send a message to each target, one after the other; yield why it failed, "" if it did not.

    A ping service is told of the open events instead.
    """
    with Watchdog() as watchdog:
        for target in targets:
            try:
                with watchdog.attempt(target.timeout_s) as attempt:
                    if isinstance(target, Ping):
                        target.tell(open_notices(target, events), attempt)
                    else:
                        target.send([notice], attempt, now_ns)
            except TargetError as e:
                yield target, str(e)
            else:
                yield target, ""
