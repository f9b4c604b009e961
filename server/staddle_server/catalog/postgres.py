"""The catalog in PostgreSQL, which several servers share: connections, transactions, what its errors mean.

Every transaction that writes runs at READ COMMITTED, for which the catalog's row locks are proven
(docs/decisions/2026-11-25-collection.md).
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Final, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Executable,
    Insert,
    Integer,
    Label,
    LargeBinary,
    SmallInteger,
    String,
    Table,
    create_engine,
    event,
    literal_column,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import NullPool

from staddle_server.base import errors
from staddle_server.catalog import schema
from staddle_server.catalog.database import (
    TURN_MAX_S,
    Database,
    DatabaseKind,
    ListQuery,
    Query,
    Rows,
    SharedTurn,
    busy,
    full,
    unavailable,
)
from staddle_server.catalog.postgres_link import Link
from staddle_server.catalog.postgres_notices import CHANNEL, Listener, has_input

CONNECTIONS_MAX: Final = 16
"""Connections of one server, besides the one for notices. Transactions are short; 150 threads share them."""
STATEMENT_TIMEOUT_S: Final = 600
IDLE_TIMEOUT_S: Final = 60
"""How long a transaction may be idle: a server that is suspended must not keep its locks."""
MIGRATION_LOCK: Final = 0x5374_6164_646C_6531
"""The advisory lock for creating and changing tables: the bytes of `Staddle1`."""
VERSION_MIN: Final = 150_000
_CONNECT_DEFAULTS: Final[Mapping[str, object]] = {
    "application_name": "staddle-server",
    "connect_timeout": 10,
    "target_session_attrs": "read-write",
    # A vanished machine is detected after half a minute, not after hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_WRITES: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_READS: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_SETTINGS: Final = """SELECT set_config('lock_timeout', %s, false),
    set_config('statement_timeout', %s, false), set_config('idle_in_transaction_session_timeout', %s, false),
    set_config('client_encoding', 'UTF8', false),
    set_config('synchronous_commit', CASE old WHEN 'off' THEN 'on' ELSE old END, false)
    FROM current_setting('synchronous_commit') AS old"""
"""A commit that was acknowledged is durable, whatever the database's default is; a stronger setting stays."""
_NOW: Final = "(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"
_TURN_SETTINGS: Final = (
    "SELECT set_config('lock_timeout', %s, false), set_config('idle_session_timeout', %s, false)"
)
_ARRAYS: Final = (
    (LargeBinary, "bytea[]"),
    (Boolean, "boolean[]"),
    (SmallInteger, "smallint[]"),
    (BigInteger, "bigint[]"),
    (Integer, "integer[]"),
    (String, "text[]"),
)

for _index in chain.from_iterable(_table.indexes for _table in schema.metadata.tables.values()):
    if (_where := _index.dialect_options["sqlite"]["where"]) is not None:
        _index.dialect_kwargs["postgresql_where"] = _where

# --- what errors mean

_BUSY: Final = frozenset({"40001", "40P01", "55P03", "57014"})
"""Serialization failure, deadlock, a lock or a statement that took too long."""
_FULL: Final = frozenset({"53100"})
_GONE: Final = frozenset({"25006", "25P03", "58030", "58P01", "42501", "3D000", "3F000"})
"""A standby, an ended idle transaction, I/O errors, missing rights, a missing database or schema."""
_GONE_CLASSES: Final = ("08", "28", "53", "57", "XX")
"""Connections, authentication, resources, operator intervention, internal errors."""
_READ_ONLY: Final = "25006"


def open_postgres(url: str, busy_timeout_s: float) -> Database:
    """Return the database that a libpq URL names. The database must exist.

    postgresql://user@host1:5432,host2:5432/name: of several hosts, the one that accepts writes is used. libpq
    supplies what the URL omits: from PGPASSFILE or ~/.pgpass, PGSERVICEFILE, and the variables PG...

    Raises:
        ValueError: The URL is malformed. The message does not repeat it.
        Unavailable: The client library is too old.

    """
    if not psycopg.Pipeline.is_supported():
        raise unavailable(
            "the client library of PostgreSQL (libpq) is older than 14: install staddle[postgres]"
        )
    given = _parameters(url)
    conninfo = make_conninfo("", **{**_CONNECT_DEFAULTS, **given})

    def connect() -> Link:
        link = Link.connect(conninfo, autocommit=True)
        try:
            _prepare(link, busy_timeout_s)
        except BaseException:
            link.close()
            raise
        return link

    kind = Postgres(_name(given), str(given.get("password") or ""), Listener(connect))
    # Links are in autocommit mode, and are probed only where that costs no round trip.
    options: dict[str, Any] = {
        "creator": connect,
        "use_native_hstore": False,
        "hide_parameters": True,
        "execution_options": {"preserve_rowcount": True},
    }
    engine = create_engine(
        "postgresql+psycopg://",
        pool_size=CONNECTIONS_MAX,
        max_overflow=0,
        pool_timeout=busy_timeout_s,
        pool_use_lifo=True,
        **options,
    )
    uncached = create_engine("postgresql+psycopg://", poolclass=NullPool, **options)
    event.listen(engine, "checkout", _check_alive)
    for each in (engine, uncached):
        event.listen(each, "handle_error", _leave_standby)
    return Database(engine, kind, busy_timeout_s, uncached=uncached)


def _parameters(url: str) -> dict[str, Any]:
    try:
        return conninfo_to_dict(url)
    except psycopg.Error:
        # libpq's message repeats parts of the URL, possibly of the password.
        raise ValueError(
            "the catalog's URL is malformed: use postgresql://user@host:5432/name, and write characters such "
            "as @ / % in a password as %40 %2F %25"
        ) from None


def _name(given: Mapping[str, Any]) -> str:
    hosts = str(given.get("host") or given.get("hostaddr") or "").split(",")
    ports = str(given.get("port") or "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    places = ",".join(f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=False))
    return f"postgresql://{places}/{given.get('dbname') or ''}"


def _prepare(link: Link, busy_timeout_s: float) -> None:
    version = link.info.server_version
    if version < VERSION_MIN:
        raise unavailable(
            f"the catalog's PostgreSQL has version {version // 10_000}: use {VERSION_MIN // 10_000} or newer"
        )
    if (encoding := link.info.parameter_status("server_encoding")) != "UTF8":
        raise unavailable(
            f"the catalog's database has the encoding {encoding}: create one with CREATE DATABASE ... "
            "ENCODING 'UTF8' TEMPLATE template0"
        )
    link.execute(
        _SETTINGS, [str(int(1000 * s)) for s in (busy_timeout_s, STATEMENT_TIMEOUT_S, IDLE_TIMEOUT_S)]
    )


def _check_alive(link: Any, _record: object, _proxy: object) -> None:
    """Probe a pooled connection on which something arrived while it was idle: most likely its end.

    This costs no round trip. A connection that breaks later fails its transaction, which callers retry.
    """
    if not link.closed and not has_input(link):
        return
    try:
        link.execute("SELECT 1")
    except psycopg.Error as error:
        raise DisconnectionError from error


def _leave_standby(context: ExceptionContext) -> None:
    """Close the connections to a server that became a standby: new ones find the one that accepts writes."""
    if getattr(context.original_exception, "sqlstate", None) == _READ_ONLY:
        context.is_disconnect = True


class Postgres(DatabaseKind):
    """One database. Hot statements bypass SQLAlchemy, with arrays for lists of values."""

    is_distant = True

    def __init__(self, name: str, password: str, listener: Listener) -> None:
        self._name = name
        self._password = password
        self._listener = listener

    @property
    def name(self) -> str:
        return self._name

    def translate(self, error: BaseException) -> errors.StaddleError | None:
        if not isinstance(error, psycopg.Error):
            return None
        code = error.sqlstate or ""
        if code in _BUSY:
            return busy()
        if code in _FULL:
            return full()
        lost = not code and isinstance(error, psycopg.OperationalError)
        if lost or code in _GONE or code.startswith(_GONE_CLASSES):
            return unavailable(f"The catalog {self._name} cannot be used ({self._said(error)})")
        return None

    def _said(self, error: psycopg.Error) -> str:
        said = " ".join(str(error).split())
        return said.replace(self._password, "***") if self._password else said

    def begin(self, connection: Connection, *, writes: bool, erase: bool) -> None:  # noqa: ARG002
        """Begin in the round trip of the first statement. VACUUM erases what no transaction sees any more."""
        _link(connection).later(_WRITES if writes else _READS)

    def lock_schema(self, connection: Connection) -> None:
        _link(connection).later("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))

    def later(self, connection: Connection, statement: Executable, rows: Rows | None = None) -> None:
        if isinstance(statement, Insert):
            statement = statement.inline()  # without RETURNING
        with _link(connection).deferring():
            connection.execute(statement, rows)

    def together(self, connection: Connection, queries: Sequence[Query]) -> list[Sequence[Any]]:
        """Execute queries in one round trip: SQLAlchemy compiles them, and the link sends them."""
        link = _link(connection)
        before = link.take_waiting()
        for query in queries:
            self.later(connection, *query)
        try:
            return link.send(before, link.take_waiting())
        except psycopg.Error as error:
            if error.sqlstate == _READ_ONLY:  # see _leave_standby
                connection.invalidate(error)
            raise

    def now_ns(self, own_ns: int) -> Label[int]:  # noqa: ARG002
        return literal_column(_NOW, BigInteger).label("now_ns")

    def insert_or_ignore(self, table: Table) -> Insert:
        return postgresql.insert(table).on_conflict_do_nothing()

    def insert_rows(
        self, connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[Sequence[object]]
    ) -> None:
        """Insert all rows with one statement, which is sent together with the next one."""
        values = [list(column) for column in zip(*rows, strict=True)]
        if values:
            _link(connection).later(_insert_sql(tuple(columns)), values)

    def rows_of(
        self, connection: Connection, query: ListQuery, values: Sequence[object], among: Sequence[object]
    ) -> Sequence[Any]:
        with _link(connection).cursor() as cursor:
            listed = list(dict.fromkeys(among))  # each value joins the rows it finds
            return cursor.execute(_list_sql(query), query.arguments(values, listed), binary=True).fetchall()

    @contextmanager
    def alone(self, engine: Engine, turn: SharedTurn, wait_s: float) -> Iterator[None]:
        with engine.connect() as connection:
            link = _link(connection)
            link.execute(_TURN_SETTINGS, [str(int(1000 * s)) for s in (wait_s, TURN_MAX_S)])
            try:
                link.execute("SELECT pg_advisory_lock(%s)", (turn.lock,))
            except psycopg.errors.LockNotAvailable:
                raise unavailable(
                    f"another server that uses the catalog {self._name} has been {turn.doing} for {wait_s:.0f} s: "
                    "try again, and look for one that is suspended, or cannot reach its store"
                ) from None
            try:
                yield
            finally:
                connection.invalidate()  # ends the lock; the connection may have ended meanwhile

    def notify(self, connection: Connection, token: bytes) -> None:
        _link(connection).later("SELECT pg_notify(%s, %s)", (CHANNEL, token.hex()))

    def listen(self) -> None:
        self._listener.listen()

    def heard(self) -> Sequence[bytes] | None:
        return self._listener.heard()

    def check_place(self) -> None:
        """Do nothing: its own server looks after its files."""

    def empty_log(self, connection: Connection) -> None:
        """Do nothing: its own server looks after its log."""

    def close(self) -> None:
        self._listener.close()


def _link(connection: Connection) -> Link:
    return cast("Link", connection.connection.driver_connection)


def _array(column: Column[Any]) -> str:
    return next(name for kind, name in _ARRAYS if isinstance(column.type, kind))


@functools.lru_cache(maxsize=16)
def _insert_sql(columns: tuple[Column[Any], ...]) -> str:
    names = ", ".join(f'"{column.name}"' for column in columns)
    arrays = ", ".join(f"%b::{_array(column)}" for column in columns)
    table = columns[0].table.name
    return f'INSERT INTO "{table}" ({names}) SELECT * FROM unnest({arrays}) ON CONFLICT DO NOTHING'  # noqa: S608


@functools.lru_cache(maxsize=64)
def _list_sql(query: ListQuery) -> str:
    """Return the statement. OFFSET 0 keeps the planner from turning the look-ups into a join: one without
    statistics, or with old ones, would read the whole table for it.
    """
    among = query.among
    rows = f'SELECT * FROM "{among.table.name}" WHERE "{among.name}" = listed.value OFFSET 0'  # noqa: S608
    lateral = f"unnest(%b::{_array(among)}) AS listed(value) CROSS JOIN LATERAL ({rows}) AS each"
    return query.sql.replace("?", "%b").replace("{found}", f"(SELECT each.* FROM {lateral})")  # noqa: S608
