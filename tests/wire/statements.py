"""Compiles each SQL statement once for all catalogs of a process: one that serves has one catalog, these tests open thousands."""

from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

_compiled: dict[object, object] = {}


@event.listens_for(Engine, "engine_connect")
def _share_compiled(connection: Connection) -> None:
    connection.engine._compiled_cache = _compiled


# A statement's key has its dialect, and each engine makes one: those of one type compile alike.
SQLiteDialect.__hash__ = lambda self: hash(type(self))
SQLiteDialect.__eq__ = lambda self, other: type(self) is type(other)
