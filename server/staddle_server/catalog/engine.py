"""Open the catalog by its place: the right database, current tables, and its parts on one object."""

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from sqlalchemy import inspect

from staddle_server.base.observer import Observer
from staddle_server.base.places import UnknownSchemeError, scheme_of
from staddle_server.catalog import schema
from staddle_server.catalog.backups import Backups
from staddle_server.catalog.chunks import Chunks
from staddle_server.catalog.clocks import Clocks
from staddle_server.catalog.collection_runs import CollectionRuns
from staddle_server.catalog.database import BUSY_TIMEOUT_S, Database, lock_schema, unavailable
from staddle_server.catalog.datasets import Datasets
from staddle_server.catalog.deliveries import Deliveries
from staddle_server.catalog.drills import Drills
from staddle_server.catalog.events import Events
from staddle_server.catalog.expectations import Expectations
from staddle_server.catalog.figures import Figures
from staddle_server.catalog.generations import Generations
from staddle_server.catalog.leases import collectors_lease
from staddle_server.catalog.marks import Marks
from staddle_server.catalog.overview import Overview
from staddle_server.catalog.packs import Packs
from staddle_server.catalog.purge import Purge
from staddle_server.catalog.replicas import Replicas
from staddle_server.catalog.retention import Retentions
from staddle_server.catalog.runs import Runs
from staddle_server.catalog.salvage import Salvage
from staddle_server.catalog.servers import Server, Servers
from staddle_server.catalog.settings import SharedSettings
from staddle_server.catalog.space_samples import SpaceSamples
from staddle_server.catalog.sqlite import open_sqlite, path_of
from staddle_server.catalog.tasks import Tasks
from staddle_server.catalog.tenants import TenantRows
from staddle_server.catalog.tokens import Tokens
from staddle_server.catalog.uploads import UploadRows
from staddle_server.catalog.verification import Verification


class Catalog:
    """What exists and who may see it. Thread-safe; every method is one transaction, or none.

    Every method raises Unavailable STORE_UNAVAILABLE if the database does not answer and Exhausted STORE_FULL
    if its disk is full; then nothing was changed.
    """

    def __init__(self, database: Database, random: Callable[[int], bytes]) -> None:
        self.database = database
        self.tenants = TenantRows(database)
        self.tokens = Tokens(database, self.tenants, random)
        self.datasets = Datasets(database, self.tenants)
        self.backups = Backups(database, self.tenants)
        self.chunks = Chunks(database, self.tenants)
        self.packs = Packs(database, self.tenants)
        self.uploads = UploadRows(database, self.tenants)
        self.retention = Retentions(database, self.tenants)
        self.runs = Runs(database, self.tenants)
        self.expectations = Expectations(database, self.tenants)
        self.servers = Servers(database)
        self.tasks = Tasks(database)
        self.settings = SharedSettings(database)
        self.clock = Clocks(database, self.tenants)
        self.generation = Generations(database)
        self.gc_lease = collectors_lease(database)
        self.marks = Marks(database, self.tenants)
        self.collections = CollectionRuns(database, self.tenants)
        self.purge = Purge(database, self.tenants)
        self.verification = Verification(database, self.tenants)
        self.salvage = Salvage(database, self.tenants)
        self.replicas = Replicas(database, self.tenants)
        self.events = Events(database)
        self.deliveries = Deliveries(database)
        self.space_samples = SpaceSamples(database)
        self.drills = Drills(database, self.tenants)
        self.figures = Figures(database)
        self.overview = Overview(database, self.tenants)

    @property
    def observer(self) -> Observer:
        """Who hears of the work on this catalog."""
        return self.database.observer

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def _sqlite(url: str, busy_timeout_s: float) -> Database:
    return open_sqlite(path_of(url), busy_timeout_s=busy_timeout_s)


def _postgres(url: str, busy_timeout_s: float) -> Database:
    with _extra():
        from staddle_server.catalog.postgres import open_postgres
    return open_postgres(url, busy_timeout_s)


@contextmanager
def _extra() -> Iterator[None]:
    """Import in the block what is installed only with an extra."""
    try:
        yield
    except ImportError as error:
        raise unavailable(
            f"a catalog at postgresql:// needs the extra `postgres` ({error}): "
            "pip install 'staddle[server,postgres]'"
        ) from error


DATABASES: Final[Mapping[str, Callable[[str, float], Database]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgres,
}
"""What opens a URL, by scheme. A further database is a module beside `sqlite` with a DatabaseKind, and a line
here.
"""


def open_catalog(
    place: str,
    *,
    random: Callable[[int], bytes] = secrets.token_bytes,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> Catalog:
    """Open the catalog at `place`, creating it if necessary, and bring its tables up to date.

    `place` is the path of a file, or a URL: sqlite:////absolute/path. Any number of processes may open it at
    once. `random(n)` returns n unpredictable bytes, for tokens and their ids. A transaction waits at most
    `busy_timeout_s` for its turn.

    Raises:
        UnknownSchemeError: This version has no such database.
        Unavailable: The file is unusable, is not a catalog, or was written by a newer version of Staddle.
        Exhausted: The disk is full.

    """
    database = open_database(place, busy_timeout_s)
    try:
        bring_up_to_date(database)
    except BaseException:
        database.close()
        raise
    return Catalog(database, random)


def open_database(place: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
    """Open the database of `open_catalog`, with its tables as they are. Raises as that does."""
    scheme = scheme_of(place)
    if not scheme:
        return open_sqlite(place, busy_timeout_s=busy_timeout_s)
    if scheme not in DATABASES:
        raise UnknownSchemeError("catalog", scheme, DATABASES)
    return DATABASES[scheme](place, busy_timeout_s)


class Replacement(Protocol):
    """A new catalog that is built inside the database of another one, and takes its place at the end."""

    @property
    def place(self) -> str:
        """What opens it while it is built."""

    def prepare(self) -> None:
        """Make room for it. What an interrupted rebuild left is dropped."""

    def drop(self) -> None:
        """Drop it, unless it was installed."""

    def install(self, aside: str) -> str | None:
        """Give it its place, and set an existing catalog aside under this name.

        Returns the name; None: there was none.
        """


def replacement(url: str) -> Replacement:
    """Return the replacement of the catalog at a URL of PostgreSQL. Raises as `open_catalog` does."""
    with _extra():
        from staddle_server.catalog.postgres_replace import PostgresReplacement
    return PostgresReplacement(url)


@contextmanager
def alone(url: str) -> Iterator[None]:
    """Run the block while no other server of the database at a URL runs such a block: see Database.alone.

    The database may be empty. Raises as `open_catalog` does.
    """
    database = open_database(url)
    try:
        with database.alone():
            yield
    finally:
        database.close()


def servers_of(url: str) -> list[Server]:
    """Return the servers in the catalog that a URL names, whatever its version; none if it has no list.

    Raises as `open_catalog` does.
    """
    database = open_database(url)
    try:
        with database.read() as connection:
            if not inspect(connection).has_table("servers"):
                return []
        return Servers(database).list_all()
    finally:
        database.close()


def has_catalog(url: str) -> bool:
    """Return whether the database that a URL names holds the tables of a catalog.

    Raises as `open_catalog` does.
    """
    database = open_database(url)
    try:
        with database.read() as connection:
            return inspect(connection).has_table("alembic_version")
    finally:
        database.close()


def name_of(url: str) -> str:
    """Return how messages name the catalog at a URL: without secrets. Raises as `open_catalog` does."""
    database = open_database(url)
    try:
        return database.name
    finally:
        database.close()


def bring_up_to_date(database: Database) -> None:
    """Bring the catalog's tables to this version.

    Raises:
        Unavailable: A newer version of Staddle wrote it.

    """
    with database.read() as connection:
        if inspect(connection).has_table("alembic_version"):
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            if found == schema.REVISION:
                return
    if _make_tables(database):
        return
    # Alembic takes 12 MiB and is needed only here.
    from staddle_server.catalog.migrate import migrate

    migrate(database)


def _make_tables(database: Database) -> bool:
    """Create this version's tables in one transaction, if the database has none; return False if it has."""
    with database.write() as connection:
        lock_schema(connection)
        if inspect(connection).get_table_names():
            return False
        schema.metadata.create_all(connection, checkfirst=False)
        # As the migrations leave it, which lead to the same tables.
        connection.exec_driver_sql(
            "CREATE TABLE alembic_version ("
            "version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
        )
        connection.exec_driver_sql(f"INSERT INTO alembic_version (version_num) VALUES ('{schema.REVISION}')")  # noqa: S608
    return True
