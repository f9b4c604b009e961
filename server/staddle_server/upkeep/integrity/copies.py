"""Second copies of records and keys: made in the background, and used to restore damaged or lost ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from staddle._base.figures import counted

from staddle_server.base.errors import Damaged
from staddle_server.catalog import Catalog
from staddle_server.store.copies import Copies, CopyState
from staddle_server.store.keys import KeyStore
from staddle_server.store.records import records_prefix
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.schedule import Stopping, Task

EVERY_S: Final = 600.0


class CopiesReport(NamedTuple):
    """What was done to records and keys.

    Attributes:
        copied: How many copies were written, because they were missing or damaged.
        restored: The names of damaged or lost objects that were restored from their copy.
        damaged: What is wrong with those without an intact copy.

    """

    copied: int = 0
    restored: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()


def copy_new(
    tenants: Tenants, catalog: Catalog, keys: KeyStore, stopping: Stopping = lambda: False
) -> CopiesReport:
    """Copy each record and keys object that has no copy. Raises what the blobs raise."""
    return _mend(tenants, catalog, keys, stopping, everything=False)


def mend_all(tenants: Tenants, catalog: Catalog, keys: KeyStore) -> CopiesReport:
    """Read each record and keys object and its copy, and restore either from the other.

    Raises what the blobs raise.
    """
    return _mend(tenants, catalog, keys, lambda: False, everything=True)


def copies_task(tenants: Tenants, catalog: Catalog, keys: KeyStore, *, on: bool) -> Task:
    """Return the task that copies records and keys without a copy."""

    def run(stopping: Stopping) -> str:
        report = copy_new(tenants, catalog, keys, stopping)
        said = (
            [f"{counted(report.copied, 'record or key was', 'records and keys were')} copied"]
            if report.copied
            else []
        )
        said += [f"{name} was restored" for name in report.restored]
        return "; ".join([*said, *report.damaged])

    return Task("copies", EVERY_S if on else 0, run)


def _mend(
    tenants: Tenants, catalog: Catalog, keys: KeyStore, stopping: Stopping, *, everything: bool
) -> CopiesReport:
    copied = 0
    restored: list[str] = []
    damaged: list[str] = []
    # A tenant's keys come first: its records are unreadable without them.
    for copies, prefix in _kinds(tenants, catalog, keys, damaged):
        for name in _names(copies, prefix, everything=everything):
            if stopping():
                return CopiesReport(copied, tuple(restored), tuple(damaged))
            try:
                done = copies.mend(name)
            except Damaged as error:
                damaged.append(error.message)
                continue
            copied += done is CopyState.COPIED
            if done is CopyState.RESTORED:
                restored.append(name)
    return CopiesReport(copied, tuple(restored), tuple(damaged))


def _kinds(
    tenants: Tenants, catalog: Catalog, keys: KeyStore, damaged: list[str]
) -> Iterator[tuple[Copies[Any], str]]:
    for row in catalog.tenants.list_all():
        yield keys.copies, f"keys/{row.id.hex()}"
        try:
            yield tenants.get(row.id).records.copies, records_prefix(row.id)
        except Damaged as error:
            damaged.append(f"the records of tenant {row.name} are unreadable: {error.message}")


def _names(copies: Copies[Any], prefix: str, *, everything: bool) -> Iterable[str]:
    return copies.names(prefix) if everything else copies.lacking(prefix)
