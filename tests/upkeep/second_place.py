"""Shared by the tests of replication: a second place for the store of a service in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rebuilt import files_of, rebuilt
from servers import Running
from staddle_server.app.data_directory import DataDirectory
from staddle_server.app.second_site import SecondSite
from staddle_server.store.blobs import Blobs, BlobWriter
from staddle_server.store.wrapped import WrappedBlobs, WrappedWriter
from staddle_server.tenancy.tenant import Tenants
from staddle_server.upkeep.gc.collector import Collector
from staddle_server.upkeep.integrity.findings import Kept
from staddle_server.upkeep.replication.run import Replication, ReplicationPlan
from staddle_server.upkeep.replication.site import ReplicationReport, Site
from thin import restore

Files = dict[str, bytes]


class KilledError(Exception):
    """The process is gone before its next object is durable."""


class Cut(WrappedBlobs):
    """A place at which a process dies when it has made `left` objects durable."""

    def __init__(self, blobs: Blobs, left: int) -> None:
        super().__init__(blobs)
        self.left = left

    def spend(self) -> None:
        if self.left == 0:
            raise KilledError
        self.left -= 1

    def create(self) -> CutWriter:
        return CutWriter(super().create(), self)

    def put(self, name: str, data: bytes) -> None:
        self.spend()
        super().put(name, data)

    def delete(self, name: str) -> None:
        self.spend()
        super().delete(name)


class CutWriter(WrappedWriter):
    def __init__(self, writer: BlobWriter, cut: Cut) -> None:
        super().__init__(writer)
        self._cut = cut

    def commit(self, name: str) -> None:
        self._cut.spend()
        super().commit(name)

    def replace(self, name: str) -> None:
        self._cut.spend()
        super().replace(name)


class Wrapped(SecondSite):
    """A second place whose objects are reached through a wrapper."""

    wrap: Callable[[Blobs], Blobs]

    @contextmanager
    def opened(self, *, known: bool) -> Iterator[Site]:
        with super().opened(known=known) as site:
            yield Site(site.name, self.wrap(site.blobs), keeps_parity=site.keeps_parity)


def kept_of(running: Running) -> Kept:
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    return Kept(running.catalog, running.blobs, running.keys, tenants, running.clock)


def replicate(
    running: Running,
    to: Path | str,
    *,
    wrap: Callable[[Blobs], Blobs] = lambda blobs: blobs,
    stopping: Callable[[], bool] = lambda: False,
    **plan: Any,
) -> ReplicationReport:
    """One run, as another process makes it."""
    place = Wrapped(DataDirectory(running.root), str(to), os.environ)
    place.wrap = wrap
    return Replication(kept_of(running), place, ReplicationPlan(**plan)).run(stopping)


def collect(running: Running, **how: Any) -> None:
    """What no backup needs is purged and removed at once: the first collection condemns, the second removes."""
    tenants = Tenants(running.blobs, running.catalog, running.keys)
    for _ in range(2):
        report = Collector(running.catalog, tenants, running.clock).collect(grace_s=0, **how)
        assert [tenant.failure for tenant in report.failed] == []


def objects(place: Path) -> dict[str, bytes]:
    """The objects of a store in a directory, by name."""
    return {
        str(path.relative_to(place)): path.read_bytes()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.relative_to(place).parts[0] != "tmp"
    }


def contents_at(place: Path, scratch: Path) -> dict[str, Files]:
    """The files of every backup that a rebuild at the place lists, by backup. Fails if one does not restore."""
    with rebuilt(place, scratch) as (catalog, _):
        return {
            backup.id.hex(): files_of(catalog, place, tenant.id, backup.id)
            for tenant in catalog.tenants.list_all()
            for dataset in catalog.datasets.list_page(tenant.id, "", 1000)
            for backup in catalog.backups.list_page(tenant.id, dataset.name, limit=1000, show_deleted=True)
        }


def problems_at(place: Path, scratch: Path) -> list[str]:
    """What a rebuild at the place complains of."""
    with rebuilt(place, scratch) as (_, report):
        return [problem.message for problem in report.problems]


def files_in(stub: Any, dataset: str) -> Files:
    return dict(restore(stub, dataset).files)
