"""Settings of upkeep that hold for the whole installation: the server that started last decides."""

from typing import NamedTuple

from sqlalchemy import case, select, update

from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore

_s = schema.settings.c


class SettingInForce(NamedTuple):
    """The value that holds.

    Attributes:
        value: Of every server; 0: off.
        since_ns: When it was last switched on or off.
        holder: The server that was started with it.

    """

    value: int
    since_ns: int
    holder: str


class SharedSettings:
    """The settings by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, name: str, value: int, holder: str, now_ns: int) -> SettingInForce:
        """Let this value hold from now on, and return it."""
        with self._database.write() as connection:
            first = {"name": name, "value": value, "since_ns": now_ns, "holder": holder}
            connection.execute(insert_or_ignore(connection, schema.settings), first)
            switched = (_s.value > 0) != (value > 0)
            connection.execute(
                update(schema.settings)
                .where(_s.name == name)
                .values(value=value, holder=holder, since_ns=case((switched, now_ns), else_=_s.since_ns))
            )
        return self.get(name)

    def get(self, name: str) -> SettingInForce:
        """Return the value that holds. It must have been `put`."""
        with self._database.read() as connection:
            query = select(_s.value, _s.since_ns, _s.holder).where(_s.name == name)
            return SettingInForce(*connection.execute(query).one())
