"""Compiles each SQL statement once for all catalogs of a process: one that serves has one catalog, these tests open thousands."""

from sqlalchemy import Engine
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

_compiled: dict[object, object] = {}


# A listener would do, and then every statement would look for listeners.
Engine._compiled_cache = property(lambda _self: _compiled, lambda _self, _made: None)


# A statement's key has its dialect, and each engine makes one: those of one type compile alike.
SQLiteDialect.__hash__ = lambda self: hash(type(self))
SQLiteDialect.__eq__ = lambda self, other: type(self) is type(other)
