"""Building a catalog in PostgreSQL beside another one, which it replaces in one transaction.

Both are in one database: the new one in a schema of its own until it is complete.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote, urlencode

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Connection, text

from staddle_server.catalog.database import BUSY_TIMEOUT_S, Database, lock_schema
from staddle_server.catalog.postgres import open_postgres

NEW: Final = "staddle_new"
_TABLES: Final = text(
    "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
    "WHERE relkind = 'r' AND nspname = :schema ORDER BY relname"
)


class PostgresReplacement:
    """A new catalog on its way into the database that a URL names. Raises Unavailable where the database does."""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def place(self) -> str:
        """The URL of the new catalog while it is built."""
        given = conninfo_to_dict(self._url)
        options = f"{given.get('options') or ''} -c search_path={NEW}".strip()
        return f"postgresql:///?{urlencode({**given, 'options': options}, quote_via=quote)}"

    def prepare(self) -> None:
        """Make room for a new catalog. What an interrupted rebuild left is dropped."""
        with _opened(self._url) as database, database.write() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {NEW} CASCADE"))
            connection.execute(text(f"CREATE SCHEMA {NEW}"))

    def drop(self) -> None:
        """Drop the new catalog, unless it was installed."""
        with _opened(self._url) as database, database.write() as connection:
            connection.execute(text(f"DROP SCHEMA IF EXISTS {NEW} CASCADE"))

    def install(self, aside: str) -> str | None:
        """Give the new catalog its place, in one transaction, and move an existing one to the schema `aside`.

        Returns the name of that schema; None: there was no catalog.
        """
        with _opened(self._url) as database, database.write() as connection:
            lock_schema(connection)
            schema = str(connection.execute(text("SELECT current_schema()")).scalar_one())
            old = _move(connection, schema, aside) if _tables(connection, schema) else 0
            _move(connection, NEW, schema)
            connection.execute(text(f"DROP SCHEMA {NEW} CASCADE"))
        return aside if old else None


@contextmanager
def _opened(url: str) -> Iterator[Database]:
    database = open_postgres(url, BUSY_TIMEOUT_S)
    try:
        yield database
    finally:
        database.close()


def _tables(connection: Connection, schema: str) -> list[str]:
    return list(connection.execute(_TABLES, {"schema": schema}).scalars())


def _move(connection: Connection, source: str, target: str) -> int:
    """Move all tables, with their indexes and sequences."""
    connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{target}"'))
    tables = _tables(connection, source)
    for table in tables:
        connection.execute(text(f'ALTER TABLE "{source}"."{table}" SET SCHEMA "{target}"'))
    return len(tables)
