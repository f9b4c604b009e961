"""What all databases of the catalog share: transactions, errors, and a small interface to their
differences.
"""

import functools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Executable,
    Insert,
    Label,
    Select,
    Table,
    literal,
)
from sqlalchemy.exc import DBAPIError, MultipleResultsFound, NoResultFound
from sqlalchemy.exc import TimeoutError as PoolTimeout

from staddle_server.base import errors
from staddle_server.base.observer import NOTHING
from staddle_server.base.threads import is_no_memory
from staddle_server.catalog.validation import batches

BUSY_TIMEOUT_S: Final = 30.0
TURN_WAIT_S: Final = 60.0
TURN_MAX_S: Final = 120.0
"""How long one server may hold the lock of a turn: it may be suspended, or its machine gone."""


class SharedTurn(NamedTuple):
    """Work that one server at a time does: the number of its lock, and what it does, for messages."""

    lock: int
    doing: str


STARTS: Final = SharedTurn(0x5374_6164_646C_6532, "starting or stopping")
"""The number is the bytes of `Staddle2`."""
RETRY_AFTER_S: Final = 2.0
TRANSACTIONS: Final = ("read", "look_up", "write", "maintenance")
"""The names under which an observer hears of them."""
_KIND_OPTION: Final = "staddle_kind"
_INSERTED_AT_ONCE: Final = 4096
Q = TypeVar("Q", bound=Select[Any])
Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""The values of a statement: of one row, or of many."""


class Query(NamedTuple):
    """A statement that returns rows, with its values."""

    statement: Executable
    values: Rows | None = None


class ListQuery(NamedTuple):
    """A query for many values at once, in the SQL that all databases share.

    `?` stands for each single value. `{found}` stands for a table: the rows of the one that `among` belongs to in
    which that column has one of the listed values. A database finds them by the column's index, whatever it
    knows or assumes about the sizes of its tables.
    """

    sql: str
    among: Column[Any]

    def arguments(self, values: Sequence[object], *listed: object) -> list[object]:
        """Return the single values with `listed` among them, in the order of the statement."""
        before = self.sql.partition("{found}")[0].count("?")
        return [*values[:before], *listed, *values[before:]]


class DatabaseKind(ABC):
    """The specifics of one kind of database; the rest of the catalog is the same for all.

    Garbage collection beside claims is proven for SQLite, whose transactions are serializable, and for READ
    COMMITTED with row locks. A database with several isolation levels must create its engine with
    isolation_level="READ COMMITTED".
    """

    one_writer: bool = False
    """Whether the database allows one writer at a time; the writers of this process then take turns."""
    is_distant: bool = False
    """Whether a look-up waits for a network, so that some answers are worth keeping for a moment."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Return the catalog's name for messages, without secrets."""

    @abstractmethod
    def translate(self, error: BaseException) -> errors.StaddleError | None:
        """Return the caller's error for a driver error; None if it is a fault of the server."""

    @abstractmethod
    def begin(self, connection: Connection, *, writes: bool, erase: bool) -> None:
        """Complete the driver's begin of a transaction. With `erase`, deleted data must not stay readable."""

    @abstractmethod
    def lock_schema(self, connection: Connection) -> None:
        """Keep other processes from creating or changing tables until the transaction ends."""

    def later(self, connection: Connection, statement: Executable, rows: Rows | None = None) -> None:
        """Execute a statement whose outcome is not needed, no later than the next one or the commit."""
        connection.execute(statement, rows)

    def now_ns(self, own_ns: int) -> Label[int]:
        """Return the time for leases, as a column `now_ns`: this process's, unless the database has a clock."""
        return literal(own_ns, BigInteger).label("now_ns")

    def together(self, connection: Connection, queries: Sequence[Query]) -> list[Sequence[Any]]:
        """Execute queries in order, and return the rows of each."""
        return [connection.execute(*query).all() for query in queries]

    @abstractmethod
    def insert_or_ignore(self, table: Table) -> Insert:
        """Return an INSERT that skips existing rows."""

    def insert_rows(
        self, connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[Sequence[object]]
    ) -> None:
        """Insert many rows of one table; skip existing ones."""
        query = self.insert_or_ignore(columns[0].table)
        names = [column.name for column in columns]
        for some in batches(rows, _INSERTED_AT_ONCE):
            connection.execute(query, [dict(zip(names, row, strict=True)) for row in some])

    @abstractmethod
    def rows_of(
        self, connection: Connection, query: ListQuery, values: Sequence[object], among: Sequence[object]
    ) -> Sequence[Any]:
        """Return the rows of a query for 1 to BATCH listed values."""

    @abstractmethod
    def alone(self, engine: Engine, turn: SharedTurn, wait_s: float) -> AbstractContextManager[None]:
        """Hold the lock of Database.alone."""

    @abstractmethod
    def notify(self, connection: Connection, token: bytes) -> None:
        """Tell the servers that share the database, when the transaction commits, that a token is revoked."""

    @abstractmethod
    def listen(self) -> None:
        """Make sure that notices arrive, if that is possible."""

    @abstractmethod
    def heard(self) -> Sequence[bytes] | None:
        """Return the tokens that other servers revoked since the last call; None: some may be unknown."""

    @abstractmethod
    def check_place(self) -> None:
        """Raise Unavailable if the database is not the one that was opened."""

    @abstractmethod
    def empty_log(self, connection: Connection) -> None:
        """Merge the database's log into it, as far as possible without waiting."""

    @abstractmethod
    def close(self) -> None:
        """Release what `check_place` and `listen` hold."""


class Database:
    """One database with its pool. Thread-safe; a transaction belongs to the thread that began it.

    Attributes:
        observer: Hears of each transaction.

    """

    def __init__(
        self,
        engine: Engine,
        kind: DatabaseKind,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        *,
        uncached: Engine | None = None,
    ) -> None:
        """`uncached` has no pool; without it, `engine` also serves reads that bypass the cache."""
        self.engine = engine
        self._kind = kind
        self._uncached = uncached or engine
        for each in (engine, self._uncached):
            each.update_execution_options(**{_KIND_OPTION: kind})
        self._busy_timeout_s = busy_timeout_s
        self._turn = threading.Lock() if kind.one_writer else None
        self._given_up: str | None = None
        self.observer = NOTHING

    @property
    def name(self) -> str:
        """The database's name for messages."""
        return self._kind.name

    @property
    def is_distant(self) -> bool:
        """Whether a look-up waits for a network."""
        return self._kind.is_distant

    def listen(self) -> None:
        """Make sure that notices of other servers arrive, if that is possible."""
        self._kind.listen()

    def heard(self) -> Sequence[bytes] | None:
        """Return the tokens that other servers revoked since the last call; None: some may be unknown."""
        return self._kind.heard()

    def check_place(self) -> None:
        """Raise Unavailable if the database is not the one that was opened, or was given up."""
        if self._given_up is not None:
            raise unavailable(self._given_up)
        self._kind.check_place()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run one read-only transaction that sees one state of the database."""
        with self._translated("read"), self.engine.begin() as connection:
            self._kind.begin(connection, writes=False, erase=False)
            yield connection

    @contextmanager
    def look_up(self) -> Iterator[Connection]:
        """Open a connection for a single, frequent statement: less than half the time of `read`, but no
        consistent view across statements.
        """
        with self._translated("look_up"), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def read_uncached(self) -> Iterator[Connection]:
        """Read as `read` does, on a new connection: cached pages are read from the file again."""
        with self._translated("read"), self._uncached.begin() as connection:
            self._kind.begin(connection, writes=False, erase=False)
            yield connection

    def empty_log(self) -> None:
        """Merge the database's log into its file, unless others read it or the disk is full."""
        with (
            suppress(errors.StaddleError),
            self._translated("maintenance"),
            self._uncached.connect() as connection,
        ):
            self._kind.empty_log(connection)

    def give_up(self, message: str) -> errors.Unavailable:
        """Stop all reads and writes: every later call raises the returned error."""
        self._given_up = message
        return unavailable(message)

    @contextmanager
    def write(self, *, erase: bool = False) -> Iterator[Connection]:
        """Run one transaction: committed durably when the block ends without an exception, otherwise rolled
        back.

        With `erase`, replaced or deleted data does not stay readable in the database file, at the cost of
        more writes; without it, only where that is free. SQLite begins IMMEDIATE: a transaction that reads
        first and writes later would fail at once beside another writer.
        """
        with self._own_turn(), self._translated("write"), self.engine.begin() as connection:
            self._kind.begin(connection, writes=True, erase=erase)
            yield connection

    @contextmanager
    def write_once(self) -> Iterator[Connection]:
        """Open a connection for a single statement that writes: it is a transaction of its own, durable once
        it was executed.
        """
        with self._own_turn(), self._translated("write"), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def alone(self, turn: SharedTurn = STARTS, wait_s: float = TURN_WAIT_S) -> Iterator[None]:
        """Run the block while no other server that shares the database runs a block of this kind.

        The lock has a connection of its own, and ends with it: with this process, or after TURN_MAX_S. A
        catalog in a file has one server, which needs no lock.

        Raises:
            Unavailable: Another one has not finished after `wait_s`.

        """
        with ExitStack() as held:
            with self._translated("maintenance"):
                held.enter_context(self._kind.alone(self._uncached, turn, wait_s))
            yield

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        # SQLite's writers poll for their turn in no order, each holding a connection. A lock within the
        # process is fairer and leaves the connections to readers.
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=self._busy_timeout_s):
            raise busy()
        try:
            yield
        finally:
            self._turn.release()

    @contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        start_s, failed = time.monotonic(), False
        try:
            self.check_place()
            with self.observer.span(f"catalog {operation}"):
                yield
        except errors.StaddleError as error:
            failed = isinstance(error, errors.Unavailable)
            raise
        except Exception as error:
            failed = True
            if is_no_memory(error):
                self._renew_pool()
            translated = self._caller_error(error)
            if translated is None:
                raise
            raise translated from error
        finally:
            self.observer.catalog_used(operation, time.monotonic() - start_s, failed=failed)

    def _caller_error(self, error: Exception) -> errors.StaddleError | None:
        if isinstance(error, PoolTimeout):
            return busy()
        if isinstance(error, NoResultFound | MultipleResultsFound):
            return damaged(self.name, "it holds impossible rows")
        return self._kind.translate(error.orig or error if isinstance(error, DBAPIError) else error)

    def _renew_pool(self) -> None:
        """Replace the pool: it never gets back a connection whose return failed for lack of memory."""
        with suppress(Exception):
            self.engine.dispose()

    def close(self) -> None:
        """Close all idle connections; the next use opens the database again."""
        self.engine.dispose()
        self._kind.close()


# --- statements in the form of the database behind a connection


def locking(query: Q, *, of: Table | None = None) -> Q:
    """Return the query with a lock on the rows it finds, in `of` if it joins tables.

    Until the transaction ends, no other one changes or deletes them. Their keys stay unlocked: inserting a
    row locks the keys it refers to, and would otherwise wait here, or end in a deadlock.
    """
    return query.with_for_update(key_share=True, of=of)


def _kind_of(connection: Connection) -> DatabaseKind:
    kind: DatabaseKind = connection.get_execution_options()[_KIND_OPTION]
    return kind


def insert_or_ignore(connection: Connection, table: Table) -> Insert:
    """Return an INSERT that skips existing rows."""
    return _kind_of(connection).insert_or_ignore(table)


def now_ns(connection: Connection, own_ns: int) -> Label[int]:
    """Return the time by which processes that share the catalog compare leases, as a column `now_ns`.

    It is the database's where that has a clock: servers' clocks differ. Otherwise it is `own_ns`, the
    process's.
    """
    return _kind_of(connection).now_ns(own_ns)


def lock_schema(connection: Connection) -> None:
    """Keep other processes from making or changing tables until the transaction ends."""
    _kind_of(connection).lock_schema(connection)


def later(connection: Connection, statement: Executable, rows: Rows | None = None) -> None:
    """Execute a statement whose outcome is not needed: a database may send it with the next one."""
    _kind_of(connection).later(connection, statement, rows)


def notify(connection: Connection, token: bytes) -> None:
    """Tell the servers that share the database, when the transaction commits, that a token is revoked."""
    _kind_of(connection).notify(connection, token)


def insert_rows(
    connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[Sequence[object]]
) -> None:
    """Insert many rows of one table; skip existing ones."""
    _kind_of(connection).insert_rows(connection, columns, rows)


def together(connection: Connection, *queries: Query | None) -> list[Sequence[Any]]:
    """Execute queries in order, and return the rows of each, with columns as attributes; None has no rows.

    A database may send them in one round trip: none can use the rows of another. Otherwise it is as if they
    were sent one by one, and each sees what the ones before it waited for.
    """
    rows = iter(_kind_of(connection).together(connection, [query for query in queries if query is not None]))
    return [() if query is None else next(rows) for query in queries]


def rows_of(
    connection: Connection, query: ListQuery, values: Sequence[object], among: Sequence[object]
) -> Sequence[Any]:
    """Return the rows of a query for a list of 1 to BATCH values.

    For the statements of every chunk lookup: a database may have a faster way for them.
    """
    return _kind_of(connection).rows_of(connection, query, values, among)


def rows_in(
    connection: Connection,
    columns: Sequence[Column[Any]],
    equal: Mapping[Column[Any], object],
    among: Column[Any],
    values: Sequence[object],
) -> Sequence[Any]:
    """Return the rows of one table in which some columns have one value each, and one column a value from a
    list of 1 to BATCH.
    """
    query = _rows_in_query(tuple(columns), tuple(equal), among)
    return rows_of(connection, query, tuple(equal.values()), values)


@functools.lru_cache(maxsize=64)
def _rows_in_query(
    columns: tuple[Column[Any], ...], equal: tuple[Column[Any], ...], among: Column[Any]
) -> ListQuery:
    names = ", ".join(f'"{column.name}"' for column in columns)
    conditions = " AND ".join(f'"{column.name}" = ?' for column in equal) or "TRUE"
    return ListQuery(f"SELECT {names} FROM {{found}} AS found WHERE {conditions}", among)  # noqa: S608 - names of our own


# --- errors


def unavailable(message: str) -> errors.Unavailable:
    """Return the error for a catalog that is unusable at the moment, with the reason."""
    return errors.Unavailable("STORE_UNAVAILABLE", message, retry_after_s=RETRY_AFTER_S)


def busy() -> errors.Unavailable:
    """Return the error for a transaction that waited too long for another."""
    return unavailable("The catalog is busy: try again shortly")


def damaged(name: str, why: str) -> errors.Unavailable:
    """Return the error for a catalog that is not a database any more, or holds impossible rows."""
    return unavailable(
        f"The catalog {name} is damaged ({why}): restore a copy, or rebuild it with `staddle-server rebuild --replace`, "
        "which sets this one aside"
    )


def full() -> errors.Exhausted:
    """Return the error for a database without space for a transaction's writes."""
    return errors.Exhausted(
        "STORE_FULL", "The disk of the catalog is full: nothing was changed; free space and try again"
    )
