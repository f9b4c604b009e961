"""Another place for a copy of the store: whether it may be one, and what is found while copying to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from staddle_server.base.errors import Damaged, Fault
from staddle_server.store.blobs import BlobMissing, Blobs, check_format, create_format
from staddle_server.store.keys import parse_keys_name
from staddle_server.store.marks import marks_in, read_mark

LISTED_MAX: Final = 1000
"""Problems that a report lists; it counts all of them."""


@dataclass(frozen=True)
class Site:
    """A second place for the store.

    Attributes:
        name: What messages and the catalog call it.
        blobs: Its objects.
        keeps_parity: Whether parity is copied, too: an object store has its own means.

    """

    name: str
    blobs: Blobs
    keeps_parity: bool


class SitePlace(Protocol):
    """Where a site is, before it is opened."""

    @property
    def name(self) -> str:
        """What messages and the catalog call it."""

    def opened(self, *, known: bool) -> AbstractContextManager[Site]:
        """Open it, and hold it for this process where the place has locks. `known`: something was copied there,
        so it exists, or is lost; otherwise it is made if necessary.

        Raises SiteRefused, and what the place raises, such as Unavailable.
        """


class SiteRefused(Fault):
    """The place is not a copy of this store, or is no longer only a copy. Nothing there was changed."""

    def __init__(self, message: str) -> None:
        super().__init__("INTERNAL", message)


class _ObjectError(Exception):
    """One object could not be copied; the rest is."""

    def __init__(self, what: str, message: str) -> None:
        super().__init__(message)
        self.what = what
        self.message = message


class SourceLostError(_ObjectError):
    """An object of this store is missing, damaged or unreadable."""


class SiteDamagedError(_ObjectError):
    """The place has another object under a name, or a damaged one. It is not replaced."""


class ReplicationProblem(NamedTuple):
    """An object that could not be copied or removed, and why."""

    what: str
    message: str


@dataclass
class ReplicationReport:
    """What one run did."""

    place: str = ""
    packs: int = 0
    records: int = 0
    keys: int = 0
    parities: int = 0
    bytes_sent: int = 0
    there: int = 0
    """Packs that were there already, and are known from now on."""
    missing: int = 0
    """Packs that were copied before and were not there any more."""
    removed: int = 0
    """Objects removed there: they were gone here for the place's grace period."""
    waiting: int = 0
    """Objects there that are gone here, and whose grace period is not over."""
    verified: int = 0
    """Packs there of which every byte was read."""
    problem_count: int = 0
    problems: list[ReplicationProblem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    whole_ns: int = 0
    """Everything decided before this time is there; 0 if this run did not get that far."""
    stopped: bool = False
    idle: bool = False
    """Nothing was new."""

    def problem(self, what: str, message: str) -> None:
        """Count a problem, and list it while the list is short."""
        self.problem_count += 1
        if len(self.problems) < LISTED_MAX:
            self.problems.append(ReplicationProblem(what, message))

    @property
    def objects(self) -> int:
        """Return how many objects were sent."""
        return self.packs + self.records + self.keys + self.parities


Tick = Callable[[], None]
"""Called often: it raises StoppedError when the run must end."""


def require_ours(site: Site, tenants: Iterable[bytes]) -> None:
    """Check that the place is empty, or a copy of the store with these tenants that nobody serves.

    Raises:
        SiteRefused: It is not.
        Damaged: It has another format.

    """
    if marks := marks_in(site.blobs):
        newest = max(marks)
        began = read_mark(site.blobs, newest)
        when = f" (on {began.host}, at {began.at})" if began.host and began.at else ""
        raise SiteRefused(
            f"{site.name} is served, or was: a server has started or stopped on it{when}. Its backups are its own "
            "now, so nothing is copied there. Name an empty place; or, if that server is retired and its own backups "
            f"may be lost, remove {newest.name} there"
        )
    try:
        check_format(site.blobs)
    except BlobMissing:
        _require_empty(site)
        create_format(site.blobs)
        return
    strangers = _tenants_in(site.blobs) - set(tenants)
    if strangers:
        raise SiteRefused(
            f"{site.name} belongs to another installation: it has the keys of tenant {min(strangers).hex()}, which this "
            "catalog does not know. Nothing was copied: name an empty place"
        )


def _require_empty(site: Site) -> None:
    for prefix in ("keys", "packs", "records"):
        found = next(site.blobs.list(prefix), None)
        if found is not None:
            raise SiteRefused(
                f"{site.name} is not empty, and has no object `format` (found {found[0]}): name an empty place"
            )


def _tenants_in(blobs: Blobs) -> set[bytes]:
    found = set()
    for name, _ in blobs.list("keys"):
        try:
            found.add(parse_keys_name(name)[0])
        except Damaged:
            continue
    return found
