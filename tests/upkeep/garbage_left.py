"""Collect garbage of a service in this process, and examine what is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle_server.base.limits import REAP_GRACE_S
from staddle_server.base.types import Role
from staddle_server.catalog import Backup, Catalog
from staddle_server.catalog.schema import metadata
from staddle_server.manifest.content import chunks_of
from staddle_server.manifest.read import Gap, Manifest
from staddle_server.tenancy.chunk_reader import ChunkReader
from staddle_server.tenancy.tenant import Tenant, Tenants
from staddle_server.upkeep.gc.collector import CollectionReport, Collector
from thin import backups, restore

DAY_S = 86_400.0


@dataclass
class Garbage:
    """A service and its collector."""

    running: Any

    def __post_init__(self) -> None:
        # Tests move the clock by days: no upload is suspended or expires for that.
        self.running.lease_s = self.running.upload_life_s = 10 * 365 * DAY_S
        self.running.restart()

    def collector(self, holder: str = "a test") -> Collector:
        """Another collector of the same service."""
        tenants = Tenants(self.running.blobs, self.running.catalog, self.running.keys)
        return Collector(self.running.catalog, tenants, self.running.clock, holder=holder)

    def collect(self, **how: object) -> CollectionReport:
        """One collection, which fails for no tenant."""
        report = self.collector().collect(**how)
        assert [(tenant.tenant, tenant.failure) for tenant in report.failed] == []
        return report

    def collect_all(self) -> CollectionReport:
        """Collect everything that is garbage now."""
        return self.collect(grace_s=0)

    def later(self, days: float = 1.0) -> None:
        """Advance the clock."""
        self.running.clock.ahead_s += days * DAY_S + 1

    def reap_grace(self) -> None:
        """Advance the clock by a reap grace."""
        self.running.clock.ahead_s += REAP_GRACE_S + 1

    def objects(self, prefix: str = "packs") -> list[str]:
        """The names in the store."""
        return [name for name, _ in self.running.blobs.list(prefix)]

    def delete(self, dataset: str, backup: str = "") -> None:
        """Deletes a backup, softly; the newest one if none is named."""
        backup = backup or backups(self.running.stub(), dataset)[0].id
        self.running.stub().DeleteBackup(sv.DeleteBackupRequest(dataset=dataset, backup=backup))

    def tables(self) -> dict[str, list[tuple[object, ...]]]:
        """All rows of the catalog."""
        with self.running.catalog.database.read() as connection:
            return {
                table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
                for table in metadata.sorted_tables
            }

    def count(self, table: str) -> int:
        """Rows of a table."""
        return len(self.tables()[table])

    def assert_restores(self, dataset: str, files: dict[str, bytes], backup: str = "latest") -> None:
        """A backup restores what was stored in it."""
        found = restore(self.running.stub(), dataset, backup=pb.BackupSelector(backup=backup))
        assert found.damages == []
        assert {path: data for path, data in found.files.items() if data} == files


def contents(catalog: Catalog, tenant: Tenant, backup: Backup) -> dict[str, bytes]:
    """The files of a backup with their bytes, read without a server; empty ones are left out."""
    reader = ChunkReader(tenant, catalog)
    found = {}
    for entry in Manifest(backup.root, reader).walk():
        assert not isinstance(entry, Gap), entry
        if entry.content is not None and entry.content.size:
            refs = [ref for _, ref in chunks_of(entry.content, reader)]
            found[entry.path.decode()] = b"".join(reader.chunk(Role.DATA, ref.digest) for ref in refs)
    return found
