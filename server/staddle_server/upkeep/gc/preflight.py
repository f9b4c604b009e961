"""The check before a collection that catalog and store belong together. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from staddle._base.figures import counted

from staddle_server.base.errors import Damaged
from staddle_server.catalog import GoneBackup
from staddle_server.store.blobs import BlobMissing
from staddle_server.store.pack import packs_prefix, parse_pack_name
from staddle_server.store.records import (
    CommittedRecord,
    DeletedRecord,
    ForgottenRecord,
    HeldRecord,
    NotedRecord,
    PurgedRecord,
    Record,
    ReleasedRecord,
    RetainedRecord,
    UndeletedRecord,
    record_id_of,
)
from staddle_server.upkeep.gc.tenant_run import NotCollected, Turn

_BATCH: Final = 1000
_OF_A_BACKUP: Final = (
    CommittedRecord,
    DeletedRecord,
    UndeletedRecord,
    HeldRecord,
    ReleasedRecord,
    RetainedRecord,
)


@dataclass
class Decided:
    """What the store's records say about backups that are gone, or unknown to the catalog."""

    gone: list[GoneBackup] = field(default_factory=list)
    """Backups purged at least a reap grace before the records were read, so that all their records are here.
    """
    purged: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """The name and time (ns) of the `purged` record, by backup."""
    others: dict[bytes, list[str]] = field(default_factory=dict)
    """The names of all other records of a backup; for an unpurged one, not of all kinds."""
    forgotten: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """The contents of the `forgotten` records, by name."""
    noted: list[str] = field(default_factory=list)
    """The names of the `noted` records."""
    late: list[str] = field(default_factory=list)
    """The names of records that were removed before: a server that had stalled wrote them again."""
    known: dict[bytes, bool] = field(default_factory=dict)
    """Of those in `purged`: whether the catalog has them as purged; unknown ones are left out."""


@dataclass
class Objects:
    """The store's list of a tenant's packs, compared with the catalog."""

    orphans: dict[str, int] = field(default_factory=dict)
    """Sizes of the objects without a row, by name."""
    absent: int = 0
    """Live packs that are not listed."""


def read_decided(turn: Turn) -> Decided:
    """Read the tenant's records, except `committed` ones of backups that the catalog knows.

    Raises:
        NotCollected: The catalog is older than the store, or a record is unreadable.

    """
    found = Decided(gone=turn.catalog.purge.gone(turn.tenant.id, turn.reaped_before_ns()))
    unknown: set[bytes] = set()
    names = turn.tenant.records.list()
    while batch := list(islice(names, _BATCH)):
        turn.tick()
        # The record of a commit has the backup's own id: that of a known backup need not be read.
        ids = [record_id_of(name) for name in batch]
        known = turn.catalog.purge.known(turn.tenant.id, ids)
        removed = turn.catalog.purge.removed_records(turn.tenant.id, ids)
        for name, record_id in zip(batch, ids, strict=True):
            if record_id in removed and record_id not in known:
                found.late.append(name)
            elif record_id not in known:
                _take(turn, name, found, unknown)
            elif known[record_id]:
                found.others.setdefault(record_id, []).append(name)
    found.known = turn.catalog.purge.known(turn.tenant.id, found.purged)
    _check_age(turn, found, unknown)
    return found


def _take(turn: Turn, name: str, found: Decided, unknown: set[bytes]) -> None:
    record = _read(turn, name)
    if isinstance(record, ForgottenRecord):
        found.forgotten[name] = record.spans
    elif isinstance(record, NotedRecord):
        found.noted.append(name)
    elif isinstance(record, PurgedRecord):
        found.purged[record.backup] = (name, record.at_ns)
    elif isinstance(record, _OF_A_BACKUP) and record.backup:
        found.others.setdefault(record.backup, []).append(name)
        if isinstance(record, CommittedRecord):
            unknown.add(record.backup)


def _read(turn: Turn, name: str) -> Record | None:
    try:
        return turn.tenant.records.read(name)
    except BlobMissing:
        return None  # an earlier collector has just removed it
    except Damaged as e:
        raise NotCollected(
            f"{e.message}; it may belong to a backup that the catalog does not know. Restore the object from a copy of the "
            "store; or, if this catalog was never restored from a copy, move the object out of the store"
        ) from e


def _check_age(turn: Turn, found: Decided, unknown: set[bytes]) -> None:
    # What was committed while the records were read is known by now.
    unknown -= turn.catalog.purge.known(turn.tenant.id, unknown).keys() | found.purged.keys()
    brought_back = [backup for backup, purged in found.known.items() if not purged]
    if not unknown and not brought_back:
        return
    backup = min(unknown or brought_back)
    what = "does not know" if unknown else "has as not purged"
    raise NotCollected(
        f"the catalog is older than the store: it {what} {counted(len(unknown or brought_back), 'backup')} with records, "
        f"such as {backup.hex()}. Nothing is collected, as unknown backups would be lost. Restore the newest copy of "
        "the catalog, or rebuild it from the store"
    )


def look_at_objects(turn: Turn) -> Objects:
    """List the tenant's packs in the store.

    Raises:
        NotCollected: All live packs are missing.

    """
    live = turn.catalog.purge.live(turn.tenant.id)
    expected = len(live)
    found = Objects()
    listed = _packs_listed(turn)
    while batch := list(islice(listed, _BATCH)):
        turn.tick()
        others = [pack for pack, _, _ in batch if pack not in live]
        live.difference_update(pack for pack, _, _ in batch)
        nameless = set(others) - turn.catalog.packs.known(turn.tenant.id, others)
        found.orphans.update((name, size) for pack, name, size in batch if pack in nameless)
    if expected and len(live) == expected:
        raise NotCollected(
            f"the store lists none of the packs that the catalog has ({expected}): an empty list is not trusted. Is another "
            "directory mounted there, or was the store lost?"
        )
    found.absent = len(live)
    return found


def _packs_listed(turn: Turn) -> Iterator[tuple[bytes, str, int]]:
    for name, size in turn.tenant.blobs.list(packs_prefix(turn.tenant.id)):
        try:
            _, pack = parse_pack_name(name)
        except ValueError:
            continue  # not Staddle's, so not Staddle's to remove
        yield pack, name, size
