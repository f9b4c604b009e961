"""Migrate a catalog's tables to this version."""

import threading
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from staddle_server.base import errors
from staddle_server.catalog.database import Database, lock_schema

_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_migrating = threading.Lock()  # Alembic keeps the running migration in module globals


def newest_revision() -> str | None:
    """Return the revision that the migrations lead to: schema.REVISION."""
    return ScriptDirectory(str(_MIGRATIONS)).get_current_head()


def migrate(database: Database) -> None:
    """Bring the tables up to date in one transaction: of two processes, one does it and the other sees it
    done.
    """
    script = ScriptDirectory(str(_MIGRATIONS))
    with _migrating, database.write() as connection:
        lock_schema(connection)
        if _is_current(connection, script, database.name):
            return
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _is_current(connection: Connection, script: ScriptDirectory, name: str) -> bool:
    found = MigrationContext.configure(connection).get_current_revision()
    known = {revision.revision for revision in script.walk_revisions()}
    if found is not None and found not in known:
        raise errors.Unavailable(
            "STORE_UNAVAILABLE",
            f"The catalog {name} was written by a newer version of Staddle (its tables are at {found!r}): run that version, "
            "or restore the earlier catalog",
        )
    return found == script.get_current_head()
