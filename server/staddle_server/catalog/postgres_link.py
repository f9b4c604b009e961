"""Connections to PostgreSQL that save round trips: what has no result is sent with the next statement."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from psycopg.abc import Params
from psycopg.rows import namedtuple_row
from psycopg.types.string import StrDumperUnknown

Row = tuple[Any, ...]


class Link(psycopg.Connection[Row]):
    """A connection in autocommit mode, for one thread at a time.

    Statements given to `later` (such as BEGIN), and those executed inside `deferring`, wait for the next
    other statement or the commit, and share its round trip. They run in order. The call that sends them
    raises their errors.
    """

    waiting: list[tuple[Any, Params | None]]
    defers: bool

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.waiting = []
        self.defers = False
        self.cursor_factory = LinkCursor
        self.adapters.register_dumper(str, _TextDumper)

    def later(self, query: Any, params: Params | None = None) -> None:
        """Execute a statement together with the next one."""
        self.waiting.append((query, params))

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """Make statements that are executed in the block wait; they have no rows and no count."""
        self.defers = True
        try:
            yield
        finally:
            self.defers = False

    def take_waiting(self) -> list[tuple[Any, Params | None]]:
        """Return what waits, to be sent now."""
        waiting, self.waiting = self.waiting, []
        return waiting

    @contextmanager
    def after_waiting(self) -> Iterator[None]:
        """Send what waits in one round trip with the statement of the block."""
        waiting = self.take_waiting()
        if not waiting:
            yield
            return
        with self.pipeline():
            for query, params in waiting:
                psycopg.Cursor(self).execute(query, params)
            yield

    def send(
        self, before: list[tuple[Any, Params | None]], queries: list[tuple[Any, Params | None]]
    ) -> list[Sequence[Any]]:
        """Execute what comes before and then the queries in one round trip; return the rows of each query."""
        cursors = [psycopg.Cursor(self, row_factory=namedtuple_row) for _ in queries]
        with self.pipeline():
            for query, params in before:
                psycopg.Cursor(self).execute(query, params)
            for cursor, (query, params) in zip(cursors, queries, strict=True):
                cursor.execute(query, params)
        return [cursor.fetchall() for cursor in cursors]

    def commit(self) -> None:
        """Commit. A transaction in which nothing was executed is not even begun."""
        if len(self.waiting) < 2 and self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self.waiting.clear()
            return
        with self.after_waiting():
            psycopg.Cursor(self).execute("COMMIT")

    def rollback(self) -> None:
        """Roll back, and drop what waits."""
        self.waiting.clear()
        super().rollback()

    def close(self) -> None:
        """Close the connection, and drop what waits."""
        self.waiting.clear()
        super().close()

    def __del__(self, _warn: Any = None, /) -> None:
        """Give no warning: a pool that was emptied while this was in use does not close it, but its end does."""


class LinkCursor(psycopg.Cursor[Row]):
    """A cursor that sends what waits on its connection together with its own statement."""

    def __init__(self, connection: Link, **named: Any) -> None:
        super().__init__(connection, **named)
        self._link = connection

    def execute(
        self,
        query: Any,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        if self._link.defers:
            self._link.later(query, params)
            return self
        with self._link.after_waiting():
            return super().execute(query, params, prepare=prepare, binary=binary)

    def executemany(self, query: Any, params_seq: Iterable[Params], *, returning: bool = False) -> None:
        if self._link.defers:
            for params in params_seq:
                self._link.later(query, params)
            return
        with self._link.after_waiting():
            super().executemany(query, params_seq, returning=returning)


class _TextDumper(StrDumperUnknown):
    """PostgreSQL's texts cannot hold NUL: it becomes U+FFFD, and look-ups find nothing."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\0", "\ufffd") if "\0" in obj else obj)
