"""The catalog in an SQLite file: which SQLite, its settings, how a transaction begins, what its
errors mean.
"""

import errno
import functools
import importlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Insert,
    Table,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.pool import NullPool

from staddle_server.base import errors
from staddle_server.catalog.database import (
    BUSY_TIMEOUT_S,
    Database,
    DatabaseKind,
    ListQuery,
    SharedTurn,
    busy,
    damaged,
    full,
    unavailable,
)
from staddle_server.catalog.validation import BATCH

_log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 12
"""Transactions are short and take turns; 150 threads share these connections, each with its own page cache.
"""
PAGE_CACHE_KIB: Final = 1024
"""Per connection. The system caches the file's pages too."""
STATEMENTS_KEPT: Final = 32
"""Prepared statements per connection; one with a thousand values takes 100 KiB or more."""
_ERASES: Final = "staddle_erases"
"""Notes on a connection that it overwrites what it deletes."""
_COUNTS: Final = (1, 4, 16, 64, 256, BATCH)
"""Value counts with a statement in `rows_of`: one for every count would fill each connection's memory."""


class DatabaseModule(Protocol):
    """The parts of a DB-API module that decide the choice."""

    sqlite_version_info: tuple[int, int, int]


class SqliteChoice(NamedTuple):
    """Which module accesses the file, and whether it may use a write-ahead log."""

    module: Any
    wal: bool


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Return whether this SQLite is free of the bug that corrupts WAL databases with several connections.

    The bug came with 3.7.0 and is fixed in 3.51.3, 3.50.7 and 3.44.6.
    """
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)


def choose_sqlite(own: DatabaseModule = sqlite3, wheel: DatabaseModule | None = None) -> SqliteChoice:
    """Choose the interpreter's SQLite if it is fixed, else the wheel's, else the interpreter's with a
    rollback journal.
    """
    if wal_is_safe(own.sqlite_version_info):
        return SqliteChoice(own, wal=True)
    if wheel is not None and wal_is_safe(wheel.sqlite_version_info):
        return SqliteChoice(wheel, wal=True)
    _log.warning(
        "SQLite %s can corrupt a database with a write-ahead log, and no fixed version (3.51.3, 3.50.7, 3.44.6 or the "
        "package pysqlite3) is installed: the catalog uses a rollback journal, which is safe, but slower with many writers",
        ".".join(map(str, own.sqlite_version_info)),
    )
    return SqliteChoice(own, wal=False)


def installed_wheel() -> ModuleType | None:
    """Return the pysqlite3 package, if it is installed."""
    try:
        return importlib.import_module("pysqlite3")
    except ImportError:
        return None


def open_sqlite(
    path: str, choice: SqliteChoice | None = None, busy_timeout_s: float = BUSY_TIMEOUT_S
) -> Database:
    """Open the file, creating it with mode 0600 if necessary, and set the journal mode.

    Raises:
        Unavailable: The file cannot be opened, is not a database, or another process keeps it locked.
        Exhausted: The disk is full.

    """
    choice = choice or choose_sqlite(wheel=installed_wheel())
    url = URL.create("sqlite", database=path)
    # Driver-level autocommit: this package decides when and how a transaction begins (`Sqlite.begin`).
    connect_args = {
        "isolation_level": None,
        "timeout": busy_timeout_s,
        "check_same_thread": False,
        "cached_statements": STATEMENTS_KEPT,
    }
    engine = create_engine(
        url,
        module=choice.module,
        connect_args=connect_args,
        pool_size=CONNECTIONS_MAX,
        max_overflow=0,
        pool_timeout=busy_timeout_s,
        pool_use_lifo=True,
    )
    uncached = create_engine(url, module=choice.module, connect_args=connect_args, poolclass=NullPool)
    for each in (engine, uncached):
        event.listen(each, "connect", _settings_of(choice, busy_timeout_s))
    try:
        _create_private(path)
        _set_journal(path, choice, busy_timeout_s)
        kind = Sqlite(path, choice)
    except Exception as error:
        translated = _translate_os(path, error) or _translate_driver(path, choice.module, error)
        if translated is None:
            raise
        raise translated from error
    return Database(engine, kind, busy_timeout_s, uncached=uncached)


def path_of(url: str) -> str:
    """Return the file that a URL names: sqlite:///relative or sqlite:////absolute, as in SQLAlchemy.

    Raises ValueError.
    """
    parts = make_url(url)
    if not parts.database or parts.host or parts.query or parts.database == ":memory:":
        raise ValueError(f"{parts.render_as_string()!r} does not name a file: use sqlite:////absolute/path")
    return parts.database


class Sqlite(DatabaseKind):
    """One file.

    Frequent statements go straight to the driver, several times as fast as through SQLAlchemy.
    """

    one_writer = True

    def __init__(self, path: str, choice: SqliteChoice) -> None:
        self._path = path
        self._module = choice.module
        self._files = _CatalogFiles(path, choice)

    @property
    def name(self) -> str:
        return self._path

    def translate(self, error: BaseException) -> errors.StaddleError | None:
        return _translate_driver(self._path, self._module, error)

    def begin(self, connection: Connection, *, writes: bool, erase: bool) -> None:
        """Talk to the driver directly: a begin listener would make SQLAlchemy search for listeners at every
        statement.
        """
        driver: Any = connection.connection.driver_connection
        if writes:
            # Cached on the connection, since nearly all transactions want the same; an interruption here
            # erases too much, never too little.
            if erase and not connection.info.get(_ERASES, False):
                driver.execute("PRAGMA secure_delete = ON")
                connection.info[_ERASES] = True
            elif not erase and connection.info.get(_ERASES, False):
                connection.info[_ERASES] = False
                driver.execute("PRAGMA secure_delete = FAST")
        driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")

    def lock_schema(self, connection: Connection) -> None:
        """Do nothing: a writing transaction locks the schema anyway."""

    def insert_or_ignore(self, table: Table) -> Insert:
        return sqlite.insert(table).on_conflict_do_nothing()

    def insert_rows(
        self, connection: Connection, columns: Sequence[Column[Any]], rows: Iterable[Sequence[object]]
    ) -> None:
        cursor: Any = connection.connection.cursor()  # accepts any iterable
        try:
            cursor.executemany(_insert_sql(tuple(columns)), rows)
        finally:
            cursor.close()

    def rows_of(
        self, connection: Connection, query: ListQuery, values: Sequence[object], among: Sequence[object]
    ) -> Sequence[Any]:
        count = next(count for count in _COUNTS if count >= len(among))
        again = [among[-1]] * (count - len(among))  # duplicates in the list match once
        cursor = connection.connection.cursor()
        try:
            cursor.execute(_list_sql(query, count), query.arguments(values, *among, *again))
            return cursor.fetchall()
        finally:
            cursor.close()

    def alone(self, engine: Engine, turn: SharedTurn, wait_s: float) -> AbstractContextManager[None]:  # noqa: ARG002
        """Do nothing: the directory of the file is locked."""
        return nullcontext()

    def notify(self, connection: Connection, token: bytes) -> None:
        """Do nothing: every look-up sees what other processes changed."""

    def listen(self) -> None:
        """Do nothing: there are no notices."""

    def heard(self) -> Sequence[bytes] | None:
        return ()

    def check_place(self) -> None:
        self._files.check()

    def empty_log(self, connection: Connection) -> None:
        cursor = connection.connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 0")
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        self._files.close()


class _CatalogFiles:
    """The files of a database at the time it was opened: the database and, with a write-ahead log, its log
    and index.

    A process that opens the database after one was removed or replaced uses other files, without common
    locks; the processes miss each other's writes and finally destroy the database. The extra connection keeps
    SQLite from removing the files when it closes the last one.
    """

    def __init__(self, path: str, choice: SqliteChoice) -> None:
        self._path = path
        self._choice = choice
        self._lock = threading.Lock()
        self._keeper: Any = None
        self._found: tuple[tuple[str, os.stat_result], ...] = ()
        self._open()

    def _open(self) -> None:
        names = [self._path]
        if self._choice.wal:
            keeper = self._choice.module.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                keeper.execute("PRAGMA schema_version").fetchone()  # the first read creates the files
                names += [f"{self._path}-wal", f"{self._path}-shm"]
                self._found = tuple((name, os.stat(name)) for name in names)
            except BaseException:
                keeper.close()
                raise
            self._keeper = keeper
        else:
            self._found = ((self._path, os.stat(self._path)),)

    def check(self) -> None:
        """Raise Unavailable if one of the files was replaced or removed."""
        if not self._found:
            with self._lock:
                if not self._found:
                    self._open()
        for name, found in self._found:
            try:
                if os.path.samestat(os.stat(name), found):
                    continue
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError:
                continue  # the current state is unknown
            raise unavailable(
                f"the catalog's file {name} was replaced, moved or removed under the server, which neither reads nor writes the catalog "
                "until the file is back: stop the server before you put another catalog there"
            )

    def close(self) -> None:
        """Release the files. The next use of the database records them again."""
        with self._lock:
            keeper, self._keeper, self._found = self._keeper, None, ()
        if keeper is not None:
            keeper.close()


def _create_private(path: str) -> None:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _set_journal(path: str, choice: SqliteChoice, busy_timeout_s: float) -> None:
    """Set the mode once for the file, which stores it; a change needs exclusive access."""
    wanted = "wal" if choice.wal else "delete"
    deadline = time.monotonic() + busy_timeout_s
    connection = choice.module.connect(path, isolation_level=None, timeout=busy_timeout_s)
    try:
        while connection.execute("PRAGMA journal_mode").fetchone()[0] != wanted:
            try:
                connection.execute(f"PRAGMA journal_mode = {wanted}")
            except choice.module.OperationalError as error:
                # The busy timeout does not cover this statement.
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
    finally:
        connection.close()


def _settings_of(choice: SqliteChoice, busy_timeout_s: float) -> Callable[[Any, object], None]:
    # With a rollback journal, FULL does not sync the directory after deleting the journal, so a power loss
    # could undo an acknowledged commit; EXTRA does.
    synchronous = "FULL" if choice.wal else "EXTRA"

    def settings(connection: Any, _record: object) -> None:
        connection.execute(f"PRAGMA busy_timeout = {int(busy_timeout_s * 1000)}")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA cache_size = {-PAGE_CACHE_KIB}")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA secure_delete = FAST")

    return settings


@functools.lru_cache(maxsize=16)
def _insert_sql(columns: tuple[Column[Any], ...]) -> str:
    names = ", ".join(f'"{column.name}"' for column in columns)
    places = ",".join("?" * len(columns))
    return f'INSERT INTO "{columns[0].table.name}" ({names}) VALUES ({places}) ON CONFLICT DO NOTHING'  # noqa: S608 - names of our own


@functools.lru_cache(maxsize=64)
def _list_sql(query: ListQuery, count: int) -> str:
    among = query.among
    rows = f'SELECT * FROM "{among.table.name}" WHERE "{among.name}" IN ({",".join("?" * count)})'  # noqa: S608 - names of our own
    return query.sql.replace("{found}", f"({rows})")


# --- errors


def _primary_code(error: BaseException) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return code & 0xFF if isinstance(code, int) else sqlite3.SQLITE_OK


def _translate_driver(path: str, module: Any, error: BaseException) -> errors.StaddleError | None:
    if not isinstance(error, module.Error):
        return None
    code = _primary_code(error)
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}:
        return busy()
    if code == sqlite3.SQLITE_FULL:
        return full()
    if code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_IOERR and _is_full(path):
        return full()
    if code in {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return unavailable(
            f"The catalog {path} cannot be used ({error}): check its permissions, and whether its disk has failed "
            "or become read-only (dmesg)"
        )
    return None


def _is_full(path: str) -> bool:
    """Return whether the disk is full. Memory-mapped SQLite files then fail with an I/O error."""
    try:
        found = os.statvfs(path)
    except OSError:
        return False
    return found.f_bavail == 0 or (found.f_files > 0 and found.f_favail == 0)


def _translate_os(path: str, error: BaseException) -> errors.StaddleError | None:
    if not isinstance(error, OSError):
        return None
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return full()
    return unavailable(
        f"The catalog {path} cannot be opened ({error.strerror}): check its directory and its permissions"
    )
