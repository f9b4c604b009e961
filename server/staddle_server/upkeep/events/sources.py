"""Where alarms come from besides the server's own state: tokens that end, targets that fail, disks that fill."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator
from typing import Final, Protocol

from staddle._base.figures import counted

from staddle_server.base.clock import DAY_NS, NS
from staddle_server.catalog import Alarm, Catalog
from staddle_server.catalog.validation import stored_text, utc_minute
from staddle_server.store.space import Free, Space
from staddle_server.upkeep.events import kinds
from staddle_server.upkeep.events.forecast import BEGINS_DAYS, ENDS_DAYS, days_left
from staddle_server.upkeep.events.kinds import CRITICAL, WARNING, alarm

TOKEN_BEFORE_NS: Final = 14 * DAY_NS
"""How long before a token ends its alarm begins."""
TOKEN_AFTER_NS: Final = 14 * DAY_NS
"""How long after its end it lasts."""
TOKEN_LIFE_MIN_NS: Final = 28 * DAY_NS
"""Tokens that are made for less are meant to end."""
TOKENS_MAX: Final = 1000
TARGET_FAILS_NS: Final = 600 * NS
"""For how long every try of a target must have failed."""
SAMPLE_EVERY_NS: Final = 3600 * NS


class Source(Protocol):
    """Knows all alarms of some kinds.

    Attributes:
        kinds: The names of these kinds: an alarm of them that it does not yield does not hold.

    """

    @property
    def kinds(self) -> frozenset[str]:
        """Return the names of its kinds. No other source has them."""

    def alarms(self, server: str, now_ns: int) -> Iterator[Alarm]:
        """Yield what holds at the time `now_ns`; `server` names this one among several, in the keys of what
        concerns it alone.

        StaddleError: it cannot tell now.
        """


class EndingTokens:
    """Tokens that were made for long, and end soon or have ended."""

    kinds: Final = frozenset({kinds.TOKEN.name})

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def alarms(self, server: str, now_ns: int) -> Iterator[Alarm]:  # noqa: ARG002 - all servers know the same
        """Yield one alarm for each."""
        window = (now_ns - TOKEN_AFTER_NS, now_ns + TOKEN_BEFORE_NS)
        for tenant, token in self._catalog.tokens.ending(*window, TOKENS_MAX):
            ends_ns = token.expires_ns
            if ends_ns is None or ends_ns - token.created_ns < TOKEN_LIFE_MIN_NS:
                continue
            ended = ends_ns <= now_ns
            yield alarm(
                kinds.TOKEN,
                CRITICAL if ended else WARNING,
                f"The token {token.name} of tenant {tenant} {'ended' if ended else 'ends'} at {utc_minute(ends_ns)}. "
                f"{'Clients' if ended else 'After that, clients'} that use it are refused.",
                "Hand its clients a new one (`staddle-server token create`), then revoke this one "
                f"(`staddle-server token revoke {token.name} --tenant {tenant}`).",
                tenant=tenant,
                subject=f"{token.name} {token.id.hex()[:8]}",
            )


class FailingTargets:
    """Notification targets that cannot be reached."""

    kinds: Final = frozenset({kinds.TARGET.name})

    def __init__(self, catalog: Catalog, configured: Callable[[], Collection[str]]) -> None:
        """`configured` returns the names of the targets of this server."""
        self._catalog = catalog
        self._configured = configured

    def alarms(self, server: str, now_ns: int) -> Iterator[Alarm]:  # noqa: ARG002 - all servers know the same
        """Yield one alarm for each."""
        configured = self._configured()
        if not configured:
            return
        for name, state in sorted(self._catalog.deliveries.states().items()):
            failing_ns = state.failing_ns
            if name in configured and failing_ns is not None and now_ns - failing_ns >= TARGET_FAILS_NS:
                yield alarm(
                    kinds.TARGET,
                    WARNING,
                    f"The notification target {name} ({state.kind}) fails: {state.error}. "
                    f"{counted(state.pending, 'message waits', 'messages wait')} for it.",
                    "Look at `staddle-server notify list`; after a change, try `staddle-server notify test "
                    f"{name}`.",
                    subject=name,
                    since_ns=failing_ns,
                )


class FillingDisks:
    """Disks of this server that will soon be full, by hourly samples of their free space."""

    kinds: Final = frozenset({kinds.DISK.name})

    def __init__(self, catalog: Catalog, space: Space | None) -> None:
        self._catalog = catalog
        self._space = space
        self._host = socket.gethostname()
        self._sampled_ns: int | None = None
        self._days: dict[str, float] = {}

    def alarms(self, server: str, now_ns: int) -> Iterator[Alarm]:
        """Take a sample if one is due; yield one alarm for each disk."""
        if self._space is None:
            return
        if self._sampled_ns is None or not 0 <= now_ns - self._sampled_ns < SAMPLE_EVERY_NS:
            self._sample(server, self._space.free(), now_ns)
        for path, days in self._days.items():
            yield alarm(
                kinds.DISK,
                WARNING,
                f"The disk of {path} on {self._host} has room for backups for about {counted(round(days), 'more day')}, "
                "at the rate of the last two weeks.",
                "Delete backups that you do not need, shorten retention policies, then collect (`staddle-server gc`); or add "
                "space.",
                server=server,
                subject=path,
            )

    def _sample(self, server: str, disks: list[Free], now_ns: int) -> None:
        free = [each._replace(path=stored_text(each.path)) for each in disks]
        samples = {each.path: self._catalog.space_samples.of(server, each.path) for each in free}
        newest_ns = max((sample[-1][0] for sample in samples.values() if sample), default=0)
        if not 0 <= now_ns - newest_ns < SAMPLE_EVERY_NS:
            self._catalog.space_samples.note(server, {each.path: each.free_bytes for each in free}, now_ns)
            newest_ns = now_ns
        self._sampled_ns = newest_ns
        before, self._days = self._days, {}
        for each in free:
            known = [*samples[each.path], (now_ns, each.free_bytes)]
            days = days_left([sample for sample in known if sample[0] <= now_ns], each.min_bytes)
            if days is not None and days < (ENDS_DAYS if each.path in before else BEGINS_DAYS):
                self._days[each.path] = days
