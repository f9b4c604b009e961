"""Object lock: objects that cannot be deleted before a time, whoever has the credentials of the store.

docs/decisions/2026-11-30-object-lock.md says what is locked, for how long, and how the locks are extended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from staddle._base.figures import duration

from staddle_server.store.blobs import FORMAT_NAME, ReadableBlobs
from staddle_server.store.wrapped import WrappedBlobs

LOCKED: Final = frozenset({FORMAT_NAME, "keys", "packs", "records"})
"""The kinds of objects that a restore with the master key alone needs."""
MARGIN: Final = 0.5
"""A lock is set for this share longer than promised, so that its extension has time."""

NAMED_MAX: Final = 3
"""The most names in one message."""


class Version(NamedTuple):
    """One version of an object, or the marker of a deletion."""

    id: str
    modified_ns: int
    """When it was written, by the engine's clock."""
    is_latest: bool
    is_marker: bool


class ObjectVersions(NamedTuple):
    """All versions of one name, the newest first."""

    name: str
    versions: tuple[Version, ...]

    @property
    def is_hidden(self) -> bool:
        """Whether readers find no object: the newest is the marker of a deletion."""
        return self.versions[0].is_marker


class ObjectLock(Protocol):
    """The locks of one store. Thread-safe. Raises Unavailable where the store does not answer or refuses."""

    span_s: float
    """The promise: what backups need cannot be deleted for at least this long, at any time."""

    def now_ns(self) -> int:
        """Return the engine's time, which decides when a lock ends."""

    def flaw(self) -> str:
        """Return what the bucket lacks for locks; empty if nothing."""

    def extend(self, name: str, version: str = "") -> int:
        """Lock a version, or the newest, for `span_s` and the margin from now; return until when (ns).

        A longer lock stays. Raises FileNotFoundError if it does not exist.
        """

    def histories(self, prefix: str) -> Iterator[ObjectVersions]:
        """Yield all names below `prefix` with their versions, in the order of the names."""

    def remove(self, name: str, version: str) -> bool:
        """Remove a version for good; return False if it is locked."""


def is_locked_kind(name: str) -> bool:
    """Return whether objects of that name are locked where the store has locks."""
    return name.partition("/")[0] in LOCKED


def lock_of(blobs: ReadableBlobs) -> ObjectLock | None:
    """Return the locks of a store; None for one without."""
    lock: ObjectLock | None = getattr(_unwrapped(blobs), "lock", None)
    return lock


def _unwrapped(blobs: ReadableBlobs) -> ReadableBlobs:
    """Return what is in the wrappers: only a backend has locks."""
    while isinstance(blobs, WrappedBlobs):
        blobs = blobs.inner
    return blobs


def described(blobs: ReadableBlobs) -> str:
    """Return a sentence about the locks of a store; empty for a place that has no such thing."""
    if not hasattr(_unwrapped(blobs), "lock"):
        return ""
    lock = lock_of(blobs)
    if lock is None:
        return "object lock is off: whoever has the credentials of the store can delete the backups"
    return f"object lock: what live backups need cannot be deleted for at least {duration(lock.span_s)}"


def hidden_below(lock: ObjectLock, prefix: str) -> Iterator[str]:
    """Yield the names below `prefix` that readers do not find, although versions of them exist."""
    for history in lock.histories(prefix):
        if history.is_hidden and not all(each.is_marker for each in history.versions):
            yield history.name


def unhide(lock: ObjectLock, name: str) -> bool:
    """Remove the markers of deletion above an object's newest version; return whether readers find it now.

    It stays hidden where a marker itself is locked.
    """
    for history in lock.histories(name):
        if history.name == name:
            for each in history.versions:
                if not each.is_marker:
                    return True
                if not lock.remove(name, each.id):
                    return False
    return False


def some_names(names: list[str]) -> str:
    """Return a few of the names in brackets; empty for none."""
    more = ", …" if len(names) > NAMED_MAX else ""
    return f" ({', '.join(names[:NAMED_MAX])}{more})" if names else ""


def purge(lock: ObjectLock, history: ObjectVersions) -> int:
    """Remove the versions of a hidden name that are not locked, then, if none is left, the markers; return
    how many versions are left.

    In this order, so that no older version becomes the newest.
    """
    left = sum(not lock.remove(history.name, each.id) for each in history.versions if not each.is_marker)
    if not left:
        for each in reversed(history.versions):
            if each.is_marker:
                lock.remove(history.name, each.id)
    return left
