"""Which start of a server left the newest mark in the store that goes with this catalog."""

from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import DBAPIError

from staddle_server.base.errors import StaddleError
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database

_g = schema.generation.c
_ROW = 1


class Generation(NamedTuple):
    """The mark of the last start.

    Attributes:
        current: The mark; it is in the store.
        birth_ns: When its file was made, which a copy cannot have; None: the file system does not tell.
        intended: A mark that a start was about to leave, and may have; "": none.

    """

    current: str
    birth_ns: int | None
    intended: str


class Generations:
    """The one row about the mark."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self) -> Generation | None:
        """What is known; None for a catalog that is new, or was rebuilt: it goes with the store whatever its marks."""
        with self._database.read() as connection:
            return _last(connection)

    def require_unchanged(self, known: Generation) -> None:
        """Looks into the file whether it has the mark of this server: another catalog may have been written into it.

        A file that cannot be read now is left to whatever needs it.

        Raises:
            Unavailable: it was. From now on nothing of the database is read or written.

        """
        try:
            with self._database.read_uncached() as connection:
                found = _last(connection)
        except StaddleError:
            return
        except DBAPIError:
            found = None  # it has no such table
        if found is None or found.current != known.current:
            path = self._database.engine.url.database
            raise self._database.give_up(
                f"another catalog was written into {path} under the running server, which damages it, and nothing of it is read or "
                "written any more. Stop the server, and make the catalog anew from the store with `staddle-server rebuild --replace`"
            )

    def intend(self, mark: str) -> None:
        """A start is about to leave that mark."""
        with self._database.write() as connection:
            connection.execute(update(schema.generation).values(intended=mark))

    def confirm(self, mark: str, birth_ns: int | None) -> None:
        """The mark is in the store, and is the newest."""
        with self._database.write() as connection:
            connection.execute(delete(schema.generation))
            connection.execute(
                insert(schema.generation),
                {"row": _ROW, "current": mark, "birth_ns": birth_ns, "intended": ""},
            )
        # In the file itself, it shows whether another catalog is written into that.
        self._database.empty_log()

    def forget_birth(self) -> None:
        """What has the mark's name counts as the mark, also if it is a copy."""
        with self._database.write() as connection:
            connection.execute(update(schema.generation).values(birth_ns=None))

    def forget(self) -> None:
        """The catalog goes with the store as it is."""
        with self._database.write() as connection:
            connection.execute(delete(schema.generation))


def _last(connection: Connection) -> Generation | None:
    row = connection.execute(select(_g.current, _g.birth_ns, _g.intended)).one_or_none()
    return None if row is None else Generation(*row)
