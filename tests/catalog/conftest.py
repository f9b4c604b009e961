"""A catalog with two tenants, seeded ids, and helpers for the steps that a test is not about."""

import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from databases import DATABASES, Databases
from sqlalchemy import select
from staddle_server.base.types import (
    ChangeCounts,
    ChunkPlace,
    Kind,
    PackSummary,
    Root,
    SegmentRef,
    StoredChunk,
    TokenRole,
)
from staddle_server.catalog import (
    Backup,
    BeginUpload,
    Begun,
    Catalog,
    DurableUpdate,
    NewBackup,
    Principal,
    Terms,
    Upload,
    open_catalog,
)
from staddle_server.catalog.database import Database
from staddle_server.catalog.engine import open_database
from staddle_server.catalog.migrate import migrate
from staddle_server.catalog.schema import metadata

SECOND = 1_000_000_000


TERMS = Terms(300, 7 * 24 * 3600)


@dataclass
class World:
    """`now` is the time of every call; tests move it."""

    url: str
    catalog: Catalog
    seeded: random.Random = field(default_factory=lambda: random.Random(20240601))
    now: int = 1_700_000_000 * SECOND

    def __post_init__(self) -> None:
        self.ann = self.principal("one", "ann")
        self.bob = self.principal_of(self.ann.tenant, "bob")
        self.eve = self.principal("two", "eve")
        self.tenant = self.ann.tenant

    def rows(self) -> dict[str, list[str]]:
        """What is in every table."""
        with self.catalog.database.read() as connection:
            return {
                table.name: sorted(repr(tuple(row)) for row in connection.execute(select(table)))
                for table in metadata.sorted_tables
            }

    def id(self) -> bytes:
        return self.seeded.randbytes(16)

    def pending(self) -> list[bytes]:
        """The ids of the records that are not durable, except those of commits and of new tenants."""
        return [
            each.id
            for each in self.catalog.backups.pending_records()
            if each.body != b"made" and not each.body.startswith(b"committed")
        ]

    def digests(self, count: int) -> list[bytes]:
        return [self.seeded.randbytes(32) for _ in range(count)]

    def principal(self, tenant: str, name: str) -> Principal:
        made = self.catalog.tenants.create(self.id(), tenant, self.now, record=b"made")
        return self.principal_of(made.id, name)

    def principal_of(self, tenant: bytes, name: str) -> Principal:
        token = self.catalog.tokens.create(tenant, name, TokenRole.WRITER, self.now)
        return self.catalog.tokens.authenticate(token, self.now)

    def begin(self, principal: Principal | None = None, dataset: str = "www", **said: Any) -> Begun:
        return self.catalog.uploads.begin(
            BeginUpload(
                upload=self.id(),
                principal=principal or self.ann,
                dataset=dataset,
                now_ns=self.now,
                terms=TERMS,
                **said,
            )
        )

    def pack(self, upload: Upload, chunk_ids: list[bytes], *, begin: bool = True) -> PackSummary:
        """A pack of an upload, begun, with eight chunks to a segment."""
        pack = self.id()
        if begin:
            self.catalog.packs.begin(upload.tenant, upload.id, upload.epoch, pack, self.now)
        chunks = [
            StoredChunk(
                chunk_id, ChunkPlace(SegmentRef(pack, 48 + 1000 * (n // 8), 1000), 100 * (n % 8), 100)
            )
            for n, chunk_id in enumerate(chunk_ids)
        ]
        return PackSummary(pack, 48 + 125 * len(chunks), chunks)

    def checkpoint(self, upload: Upload, *packs: PackSummary, **more: Any) -> int:
        return self.catalog.uploads.checkpoint(
            upload.tenant,
            upload.id,
            upload.epoch,
            packs=packs,
            durable=more.pop("durable", DurableUpdate(b"point", 3, 2, 1)),
            now_ns=self.now,
            terms=TERMS,
            **more,
        )

    def commit(self, upload: Upload, *packs: PackSummary, **more: Any) -> Backup:
        new = NewBackup(
            more.pop("backup", None) or self.id(),
            Root(1, b"\x07" * 32, 12, 3456),
            789,
            ChangeCounts(1, 2, 3, 4, 5),
            problem_count=more.pop("problem_count", 0),
        )
        return self.catalog.uploads.commit(
            upload.tenant,
            upload.id,
            upload.epoch,
            packs=packs,
            backup=new,
            record=lambda made: b"committed " + made.id,
            now_ns=self.now,
            accepted=(2, 1),
            **more,
        )

    def backup(self, dataset: str = "www", kind: Kind = Kind.AUTO, **said: Any) -> Backup:
        """Begin and commit a backup, then advance the clock by a second."""
        made = self.commit(self.begin(dataset=dataset, kind=kind, **said).upload)
        self.now += SECOND
        return made


@pytest.fixture(
    params=[name if name == "sqlite" else pytest.param(name, marks=pytest.mark.slow) for name in DATABASES]
)
def databases(request: pytest.FixtureRequest) -> Databases:
    """Each kind of database in turn; daily SQLite alone, besides what test_catalog_postgres.py tests."""
    return DATABASES[request.param]


@pytest.fixture
def new_url(databases: Databases, tmp_path: Path) -> Callable[[], str]:
    """A function that creates an empty database and returns its URL."""
    return lambda: databases.empty(Path(tempfile.mkdtemp(dir=tmp_path)))


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """An empty database."""
    return new_url()


@pytest.fixture
def migrated(new_url: Callable[[], str]) -> Iterator[Database]:
    """A database that went through every migration."""
    database = open_database(new_url())
    migrate(database)
    yield database
    database.close()


@pytest.fixture
def ready_url(databases: Databases, tmp_path: Path) -> str:
    """A database that has the tables."""
    return databases.ready(Path(tempfile.mkdtemp(dir=tmp_path)))


@pytest.fixture
def world(ready_url: str) -> Iterator[World]:
    catalog = open_catalog(ready_url)
    yield World(ready_url, catalog)
    catalog.close()
