"""Shared by the tests of rebuilding: rebuild into a new catalog, list a catalog, and restore from it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import postgres_server
from sql import sql
from staddle.v1 import service_pb2 as sv
from staddle_server.base.types import EntryType
from staddle_server.catalog import Catalog, open_catalog
from staddle_server.restore.restore import Restore, SentDamage, SentData, SentEnd, SentEntry, SentZeros
from staddle_server.store.backends.directory import DirectoryBlobs
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import KeyStore
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.rebuild.run import Rebuilding, RebuildReport

MASTER = bytes(range(32))
"""The master key of `running`."""
NOW_NS = 2_000_000_000_000_000_000
Facts = dict[str, dict[Any, Any]]

_QUERIES = {
    "tenants": "SELECT id, name, created_ns, grace_s FROM tenants",
    "datasets": (
        "SELECT t.id, d.name, d.created_ns, d.host, d.root, d.last_number, d.min_retention_s, d.hold_ns, d.hold_reason, "
        "d.policy, d.success_ns, d.expect_every_s, d.expect_grace_s, d.expect_ns, d.expect_mute_ns FROM datasets d JOIN tenants t ON d.tenant = t.row"
    ),
    "backups": (
        "SELECT b.id, t.id, d.name, b.number, b.kind, b.scope, b.base, b.upload, b.request_id, b.principal, b.authors, b.begin_ns, "
        "b.commit_ns, b.deleted_ns IS NULL, b.root_level, b.root_digest, b.entry_count, b.data_bytes, b.stored_bytes, "
        "b.added, b.content_changed, b.metadata_changed, b.removed, b.metadata_kept, b.tags, b.host, b.source_root, "
        "b.retain_until_ns, b.hold_ns, b.hold_reason FROM backups b "
        "JOIN datasets d ON b.dataset = d.row JOIN tenants t ON b.tenant = t.row WHERE b.purged_ns IS NULL"
    ),
    "packs": (
        "SELECT t.id, p.id, p.size_bytes, p.chunk_count, p.damaged FROM packs p JOIN tenants t ON p.tenant = t.row "
        "WHERE p.state = 2"
    ),
    "chunks": (
        'SELECT c.id_head, c.id_tail, p.id, t.id, c.segment_offset, c.segment_length, c."offset", c.length FROM chunks c '
        "JOIN packs p ON c.pack = p.row JOIN tenants t ON p.tenant = t.row"
    ),
}
KEYS = {"tenants": 1, "datasets": 2, "backups": 1, "packs": 2, "chunks": 3}


def facts_of(catalog: Catalog) -> Facts:
    """The rows of a catalog by table and natural key, without its internal numbers."""
    with catalog.database.read() as connection:
        return {
            table: {tuple(row[: KEYS[table]]): tuple(row[KEYS[table] :]) for row in sql(connection, query)}
            for table, query in _QUERIES.items()
        }


def open_store(path: Path, master: bytes = MASTER) -> tuple[Blobs, KeyStore]:
    blobs = DirectoryBlobs(str(path))
    return blobs, KeyStore(blobs, master)


@contextmanager
def rebuilt(store: Path, place: Path | str, now_ns: int = NOW_NS) -> Iterator[tuple[Catalog, RebuildReport]]:
    """A new catalog at `place`, made from the store alone."""
    blobs, keys = open_store(store)
    catalog = open_catalog(str(place))
    try:
        yield catalog, Rebuilding(blobs, keys, catalog, now_ns).run()
    finally:
        catalog.close()


def facts_in(place: str) -> Facts:
    """The same for the catalog at this place."""
    catalog = open_catalog(place)
    try:
        return facts_of(catalog)
    finally:
        catalog.close()


def rebuild_in_place(running: Any) -> tuple[RebuildReport, Facts]:
    """What an operator does after losing the catalog: stop, rebuild, start. Also returns the rows of the lost one.

    New tokens are made.
    """
    running.stop()
    lost = facts_in(running.catalog_place)
    for path in running.root.glob("catalog.db*"):
        path.unlink()
    if running.catalog_url:
        running.catalog_url = postgres_server.new_url()
    with rebuilt(running.root / "store", running.catalog_place, time.time_ns()) as (_, report):
        pass
    running.tokens.clear()
    running.start()
    return report, lost


def files_of(catalog: Catalog, store: Path, tenant: bytes, backup: bytes) -> dict[str, bytes]:
    """Restores a backup: its files, each checked by the restore itself. Fails for any damage."""
    blobs, keys = open_store(store)
    opened = Tenants(blobs, catalog, keys).get(tenant)
    root = catalog.backups.get(tenant, backup).root
    files: dict[str, bytes] = {}
    path, parts = "", []
    with ThreadPoolExecutor(1) as opener:
        for event in Restore(opened, catalog, root, opener, data=True).events([], exact=False):
            match event:
                case SentEntry(entry, data) if entry.type is EntryType.FILE:
                    path, parts = entry.path.decode(), []
                    if data is not None:
                        files[path] = bytes(data)
                case SentData(data):
                    parts.append(bytes(data))
                case SentZeros(length):
                    parts.append(bytes(length))
                case SentEnd():
                    files[path] = b"".join(parts)
                case SentDamage():
                    raise AssertionError(f"{event.path!r}: {event.message}")
    return files


def link_store(store: Path, to: Path) -> None:
    """Copy a store in use as docs/operations.md describes: heads first, then records, then all that they rely on."""
    to.mkdir(parents=True)
    for part in ("heads", "records", "format", "keys", "packs"):
        if (store / part).is_dir():
            shutil.copytree(store / part, to / part, copy_function=_link)
        elif (store / part).exists():
            _link(store / part, to / part)


def _link(source: str | Path, target: str | Path) -> None:
    os.link(source, target)


def delete(stub, dataset, backup):
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset=dataset, backup=backup))
