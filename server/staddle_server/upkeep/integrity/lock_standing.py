"""The state of a store's object lock, from what the catalog knows: until when it protects, and whether locks are
extended in time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from staddle._base.figures import age, duration

from staddle_server.base.clock import NS
from staddle_server.catalog import Catalog
from staddle_server.catalog.tasks import FAILED, TaskRun
from staddle_server.store.locks import MARGIN
from staddle_server.upkeep.integrity.lock import PACKS, VERSIONS, versions_every_s

LATE: Final = 1 + MARGIN / 4
"""A lock that ends earlier than this share of the promise is extended late: the task begins at twice the margin."""


class LockStanding(NamedTuple):
    """How well what backups need is protected.

    Attributes:
        promise_s: For how long it is locked at least, at any time.
        packs_until_ns: When the lock of the least protected live pack ends, at the earliest. None: not known.
        others_until_ns: When the first lock of a key or record ends, at the earliest. None: not known.
        packs: The last run of the task that extends locks of packs.
        others: The last run of the task that extends the other locks.
        warnings: What is wrong, in words; the locks are extended late, or not at all.

    """

    promise_s: float
    packs_until_ns: int | None
    others_until_ns: int | None
    packs: TaskRun
    others: TaskRun
    warnings: tuple[str, ...]


def lock_standing(catalog: Catalog, promise_s: float, now_ns: int) -> LockStanding:
    """Return the state at `now_ns` of locks that promise so much. Raises Unavailable."""
    packs, others = catalog.tasks.last(PACKS), catalog.tasks.last(VERSIONS)
    # A pack whose end is not known was written, and locked, after the last run began that came to its end.
    packs_until_ns = catalog.packs.least_locked_ns() or _until_at_least(packs, promise_s)
    others_until_ns = _until_at_least(others, promise_s)
    warnings = [
        *_failure(packs, "packs"),
        *_failure(others, "keys and records"),
        *_lateness(packs_until_ns, promise_s, now_ns),
    ]
    overdue_s = 2 * versions_every_s(promise_s)
    if others.begun_ns is not None and now_ns - others.begun_ns > overdue_s * NS:
        since = age((now_ns - others.begun_ns) / NS)
        warnings.append(
            f"the locks of keys and records were last extended {since} ago. A server must run to extend them"
        )
    return LockStanding(promise_s, packs_until_ns, others_until_ns, packs, others, tuple(warnings))


def _until_at_least(run: TaskRun, promise_s: float) -> int | None:
    """Return the end of the locks that a run extended or found long enough; None if it did not come to its end."""
    if run.begun_ns is None or run.ended_ns is None or run.has_failed:
        return None
    return run.begun_ns + round(promise_s * (1 + MARGIN)) * NS


def _failure(run: TaskRun, what: str) -> list[str]:
    if not run.has_failed:
        return []
    return [f"the locks of {what} could not be extended: {run.outcome.removeprefix(FAILED)}"]


def _lateness(until_ns: int | None, promise_s: float, now_ns: int) -> list[str]:
    if until_ns is None or until_ns - now_ns >= promise_s * LATE * NS:
        return []
    left_s = (until_ns - now_ns) / NS
    if left_s <= 0:
        return [
            "the lock of a pack that backups need has ended: it can be deleted. See the log of task `lock`"
        ]
    kept = "less than" if left_s < promise_s else "barely more than"
    return [
        f"the least protected pack is locked for another {age(left_s)}, {kept} the promised {duration(promise_s)}"
    ]
