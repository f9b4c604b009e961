"""How far the copy at a second place is behind, and whether that is too far."""

from __future__ import annotations

from typing import Final, NamedTuple

from staddle._base.figures import age, size

from staddle_server.base.clock import NS
from staddle_server.catalog import Catalog

LATE_MIN_S: Final = 3600.0
LATE_PERIODS: Final = 10
"""A copy that is behind for so many periods, and for LATE_MIN_S, is late."""


class SiteLag(NamedTuple):
    """The copy at one place.

    Attributes:
        place: Its name, without options.
        lag_s: Everything that was decided longer ago is there. None: the copy was never whole.
        bytes_behind: Bytes of packs that are not there yet.
        warning: Why the copy is late, in words; empty if it is not.

    """

    place: str
    lag_s: float | None
    bytes_behind: int
    warning: str


def site_lag(catalog: Catalog, place: str, every_s: float, now_ns: int, since_ns: int) -> SiteLag:
    """Return the state at `now_ns` of the copy at `place`, which is brought up to date every `every_s`.

    `since_ns`: from when on a copy that was never whole counts as behind. Raises Unavailable.
    """
    state = catalog.replicas.get(place)
    whole_ns = state and state.whole_ns
    if state is not None and state.is_whole:
        return SiteLag(place, 0.0, 0, "")
    behind_s = max(0.0, (now_ns - (since_ns if whole_ns is None else whole_ns)) / NS)
    missing = state.bytes_behind if state is not None else 0
    warning = ""
    if behind_s > max(LATE_MIN_S, LATE_PERIODS * every_s):
        since = f"is {age(behind_s)} behind" if whole_ns is not None else "has never been complete"
        last = f"; last run: {state.outcome}" if state is not None and state.outcome else ""
        warning = f"the copy at {place} {since}, and {size(missing)} are not there{last}. See `staddle-server replicate --status`"
    return SiteLag(place, None if whole_ns is None else behind_s, missing, warning)
