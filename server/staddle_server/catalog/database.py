"""What all databases of the catalog share: transactions, errors, and a small interface to what differs."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Column, Connection, Engine, Executable, Insert, Table, select
from sqlalchemy.exc import DBAPIError, MultipleResultsFound, NoResultFound
from sqlalchemy.exc import TimeoutError as PoolTimeout

from staddle_server.base import errors
from staddle_server.base.threads import is_no_memory
from staddle_server.catalog.validation import batches

BUSY_TIMEOUT_S: Final = 30.0
RETRY_AFTER_S: Final = 2.0
_KIND_OPTION: Final = "staddle_kind"
_WRITE_OPTION: Final = "staddle_write"
"""Of connections whose transaction writes: for those who watch the engine."""
_INSERTED_AT_ONCE: Final = 4096
Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""The values of a statement: of one row, or of many."""


class DatabaseKind(ABC):
    """What one kind of database does in its own way; everything else of the catalog is the same for all.

    Collecting garbage beside claims is proven for SQLite, whose transactions are serializable by nature, and for
    READ COMMITTED with row locks. A database with several isolation levels must make its engine with
    isolation_level="READ COMMITTED", and with no other.
    """

    one_writer: bool = False
    """Whether the database takes one writer at a time: then the writers of this process take turns."""

    @property
    @abstractmethod
    def name(self) -> str:
        """How messages name the catalog: without secrets."""

    @abstractmethod
    def translate(self, error: BaseException) -> errors.StaddleError | None:
        """The error for the caller that an error of the driver stands for; None: it is a fault of the server."""

    @abstractmethod
    def begin(self, connection: Connection, *, writes: bool, erase: bool) -> None:
        """Do what the driver has not done when a transaction begins. `erase`: nothing that it deletes stays readable."""

    @abstractmethod
    def lock_schema(self, connection: Connection) -> None:
        """Keep other processes from making or changing tables until the transaction ends."""

    def later(self, connection: Connection, statement: Executable, rows: Rows | None = None) -> None:
        """Execute a statement, at the latest before the next one or the commit, whose rows and count are not asked for."""
        connection.execute(statement, rows)

    @abstractmethod
    def insert_or_ignore(self, table: Table) -> Insert:
        """An INSERT that leaves rows alone that are there."""

    def insert_rows(
        self, connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[Sequence[object]]
    ) -> None:
        """Insert many rows of one table; leave those alone that are there."""
        query = self.insert_or_ignore(columns[0].table)
        names = [column.name for column in columns]
        for some in batches(rows, _INSERTED_AT_ONCE):
            connection.execute(query, [dict(zip(names, row, strict=True)) for row in some])

    def rows_in(
        self,
        connection: Connection,
        columns: Sequence[Column[Any]],
        equal: Mapping[Column[Any], object],
        among: Column[Any],
        values: Sequence[object],
    ) -> Sequence[Any]:
        """The rows in which the columns of `equal` have these values, and `among` has one of `values` (1 to BATCH)."""
        conditions = [column == value for column, value in equal.items()]
        return connection.execute(select(*columns).where(*conditions, among.in_(values))).all()

    @abstractmethod
    def check_place(self) -> None:
        """Raise Unavailable if the database is another one than was opened."""

    @abstractmethod
    def empty_log(self, connection: Connection) -> None:
        """Bring what is in a log beside the database into it, as far as that is possible without waiting."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what `check_place` holds."""


class Database:
    """One database with its pool. Safe for many threads; a transaction belongs to the thread that began it."""

    def __init__(
        self,
        engine: Engine,
        kind: DatabaseKind,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        *,
        uncached: Engine | None = None,
    ) -> None:
        """`uncached` has no pool; without it, `engine` serves where no page may come from memory."""
        self.engine = engine
        self._kind = kind
        self._uncached = uncached or engine
        for each in (engine, self._uncached):
            each.update_execution_options(**{_KIND_OPTION: kind})
        self._writer = engine.execution_options(**{_WRITE_OPTION: True})
        self._busy_timeout_s = busy_timeout_s
        self._turn = threading.Lock() if kind.one_writer else None
        self._given_up: str | None = None

    @property
    def name(self) -> str:
        """How messages name it."""
        return self._kind.name

    def check_place(self) -> None:
        """Raise Unavailable if the database is another one than was opened, or was given up."""
        if self._given_up is not None:
            raise unavailable(self._given_up)
        self._kind.check_place()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that sees one state of the database and changes nothing."""
        with self._translated(), self.engine.begin() as connection:
            self._kind.begin(connection, writes=False, erase=False)
            yield connection

    @contextmanager
    def look_up(self) -> Iterator[Connection]:
        """For a single `rows_in` that is asked again and again: half the time of `read`, and no two statements see the same state."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def read_uncached(self) -> Iterator[Connection]:
        """As `read`, on a new connection: pages that others keep in memory are read from the file again."""
        with self._translated(), self._uncached.begin() as connection:
            self._kind.begin(connection, writes=False, erase=False)
            yield connection

    def empty_log(self) -> None:
        """Brings what the database has in a log into its file, unless others read it or the disk is full."""
        with suppress(errors.StaddleError), self._translated(), self._uncached.connect() as connection:
            self._kind.empty_log(connection)

    def give_up(self, message: str) -> errors.Unavailable:
        """From now on nothing is read or written: everything raises the error that this returns."""
        self._given_up = message
        return unavailable(message)

    @contextmanager
    def write(self, *, erase: bool = False) -> Iterator[Connection]:
        """One transaction that is committed, durably, when the block ends without an exception, and otherwise never was.

        With `erase` nothing that it replaces or deletes stays readable in the file of the database, for which more is written; without,
        only where that costs nothing. On SQLite it begins IMMEDIATE: one that reads first and writes later would fail at once beside another writer.
        """
        with self._own_turn(), self._translated(), self._writer.begin() as connection:
            self._kind.begin(connection, writes=True, erase=erase)
            yield connection

    @contextmanager
    def _own_turn(self) -> Iterator[None]:
        # SQLite's writers poll for their turn, without order, and each would hold a connection meanwhile: inside one
        # process a lock is fairer and leaves the connections to the readers.
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
    def _translated(self) -> Iterator[None]:
        self.check_place()
        try:
            yield
        except errors.StaddleError:
            raise
        except Exception as error:
            if is_no_memory(error):
                self._renew_pool()
            told = self._told(error)
            if told is None:
                raise
            raise told from error

    def _told(self, error: Exception) -> errors.StaddleError | None:
        if isinstance(error, PoolTimeout):
            return busy()
        if isinstance(error, NoResultFound | MultipleResultsFound):
            return damaged(self.name, "it holds rows that cannot be")
        return self._kind.translate(error.orig or error if isinstance(error, DBAPIError) else error)

    def _renew_pool(self) -> None:
        """Begins anew with connections: one whose return failed for want of memory is lost to the old pool for ever."""
        with suppress(Exception):
            self.engine.dispose()

    def close(self) -> None:
        """Closes all idle connections; the database opens again when it is used again."""
        self.engine.dispose()
        self._kind.close()


# --- statements in the form of the database behind a connection


def _kind_of(connection: Connection) -> DatabaseKind:
    kind: DatabaseKind = connection.get_execution_options()[_KIND_OPTION]
    return kind


def insert_or_ignore(connection: Connection, table: Table) -> Insert:
    """An INSERT that leaves rows alone that are there."""
    return _kind_of(connection).insert_or_ignore(table)


def lock_schema(connection: Connection) -> None:
    """Keeps other processes from making or changing tables until the transaction ends."""
    _kind_of(connection).lock_schema(connection)


def later(connection: Connection, statement: Executable, rows: Rows | None = None) -> None:
    """Executes a statement whose rows and count are not asked for: a database may send it together with the next one."""
    _kind_of(connection).later(connection, statement, rows)


def insert_rows(
    connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[Sequence[object]]
) -> None:
    """Inserts many rows of one table; leaves those alone that are there."""
    _kind_of(connection).insert_rows(connection, columns, rows)


def rows_in(
    connection: Connection,
    columns: Sequence[Column[Any]],
    equal: Mapping[Column[Any], object],
    among: Column[Any],
    values: Sequence[object],
) -> Sequence[Any]:
    """The rows of one table in which some columns have a value each, and one has a value of a list of 1 to BATCH.

    For the statements that every look-up of chunks makes: a database may have a shorter way for them.
    """
    return _kind_of(connection).rows_in(connection, columns, equal, among, values)


# --- errors


def unavailable(message: str) -> errors.Unavailable:
    """The catalog cannot be used just now, for the reason that the message gives."""
    return errors.Unavailable("STORE_UNAVAILABLE", message, retry_after_s=RETRY_AFTER_S)


def busy() -> errors.Unavailable:
    """Another transaction holds what this one waited for."""
    return unavailable("The catalog is busy: try again shortly")


def damaged(name: str, why: str) -> errors.Unavailable:
    """The catalog is no database any more, or holds what it cannot hold."""
    return unavailable(
        f"The catalog {name} is damaged ({why}): bring back a copy, or make it anew with `staddle-server rebuild --replace`, "
        "which sets this one aside"
    )


def full() -> errors.Exhausted:
    """The database has no room for what a transaction writes."""
    return errors.Exhausted(
        "STORE_FULL", "The disk of the catalog is full: nothing was changed; make room and try again"
    )
