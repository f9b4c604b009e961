"""Which server start left the newest mark in this catalog's store."""

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
        birth_ns: When its file was created, which a copy never shares; None if the file system does not say.
        intended: A mark that a start was about to leave, and may have left; "" for none.

    """

    current: str
    birth_ns: int | None
    intended: str


class Generations:
    """The single row about the mark."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self) -> Generation | None:
        """Return the row; None for a new or rebuilt catalog, which matches the store whatever its marks."""
        with self._database.look_up() as connection:
            return _last(connection)

    def require_unchanged(self, known: Generation) -> None:
        """Check that the file still has this server's mark: another catalog may have been written into it.

        A file that cannot be read now is reported by the next call that needs it.

        Raises:
            Unavailable: Another catalog was. All later reads and writes are refused.

        """
        try:
            with self._database.read_uncached() as connection:
                found = _last(connection)
        except StaddleError:
            return
        except DBAPIError:
            found = None  # the table does not exist
        if found is None or found.current != known.current:
            path = self._database.name
            raise self._database.give_up(
                f"another catalog was written into {path} under the running server, which damages it, so all reads and writes are "
                "refused. Stop the server, and rebuild the catalog from the store with `staddle-server rebuild --replace`"
            )

    def intend(self, mark: str) -> None:
        """State that a start is about to leave this mark."""
        with self._database.write() as connection:
            connection.execute(update(schema.generation).values(intended=mark))

    def confirm(self, mark: str, birth_ns: int | None) -> None:
        """State that the mark is in the store, and is the newest."""
        with self._database.write() as connection:
            connection.execute(delete(schema.generation))
            connection.execute(
                insert(schema.generation),
                {"row": _ROW, "current": mark, "birth_ns": birth_ns, "intended": ""},
            )
        # In the file itself, the mark shows whether another catalog is written into it.
        self._database.empty_log()

    def forget_birth(self) -> None:
        """Accept any object with the mark's name as the mark, even a copy."""
        with self._database.write() as connection:
            connection.execute(update(schema.generation).values(birth_ns=None))

    def forget(self) -> None:
        """Accept the store as it is."""
        with self._database.write() as connection:
            connection.execute(delete(schema.generation))


def _last(connection: Connection) -> Generation | None:
    row = connection.execute(select(_g.current, _g.birth_ns, _g.intended)).one_or_none()
    return None if row is None else Generation(*row)
