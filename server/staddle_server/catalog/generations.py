"""Which server start left the newest mark in this catalog's store."""

from collections.abc import Callable
from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.exc import DBAPIError

from staddle_server.base.errors import Conflict, StaddleError
from staddle_server.catalog import schema
from staddle_server.catalog.database import Database, insert_or_ignore

_g = schema.generation.c
_ROW = 1
LOOKS_MAX: Final = 20
"""How often the newest mark is looked up again while other servers start and stop."""


class Generation(NamedTuple):
    """The mark of the last start.

    Attributes:
        current: The mark; it is in the store. Empty until the first one is.
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

    def require_same(
        self, known: Generation, succeeds: Callable[[Generation, Generation], bool]
    ) -> Generation:
        """Check that this is still the same catalog: another one may have been written into its place.
        Returns its newest mark, which other servers of the catalog may have left since.

        `succeeds(known, found)`: whether a mark was left after another, in the same store. A catalog that
        cannot be read now is reported by the next call that needs it.

        Raises:
            Unavailable: It is another one. All later reads and writes are refused.

        """
        before: Generation | None = None
        for _ in range(LOOKS_MAX):
            try:
                with self._database.read_uncached() as connection:
                    found = _last(connection)
            except StaddleError:
                return known
            except DBAPIError:
                found = None  # the table does not exist
            if found is not None and (found.current == known.current or succeeds(known, found)):
                return found
            if found is None or found == before:
                break
            before = found  # its mark may have been replaced by the next one between the two looks
        path = self._database.name
        raise self._database.give_up(
            f"another catalog was written into {path} under the running server, which damages it, so all reads and writes are "
            "refused. Stop the server, and rebuild the catalog from the store with `staddle-server rebuild --replace`"
        )

    def intend(self, mark: str) -> None:
        """State that a start is about to leave this mark."""
        with self._database.write() as connection:
            first = {"row": _ROW, "current": "", "birth_ns": None, "intended": ""}
            connection.execute(insert_or_ignore(connection, schema.generation), first)
            connection.execute(update(schema.generation).values(intended=mark))

    def confirm(self, mark: str, birth_ns: int | None) -> None:
        """State that the mark is in the store, and is the newest.

        Raises:
            Conflict: STALE_EPOCH, another start or stop intended a mark meanwhile: this one does not count.

        """
        with self._database.write() as connection:
            newest = {"current": mark, "birth_ns": birth_ns, "intended": ""}
            confirmed = connection.execute(
                update(schema.generation).where(_g.intended == mark).values(**newest)
            )
            if confirmed.rowcount != 1:
                raise Conflict(
                    "STALE_EPOCH",
                    "Another server started or stopped before this one had left its mark in the store: its mark counts",
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
