"""Migrations only add, so that a server of the version before can work on beside a newer one."""

from collections.abc import Callable
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect
from staddle_server.catalog import migrate
from staddle_server.catalog.engine import open_database

SCRIPTS = str(Path(migrate.__file__).with_name("migrations"))
REVISIONS = [each.revision for each in ScriptDirectory(SCRIPTS).walk_revisions()][::-1]


def upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", SCRIPTS)
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, revision)


Columns = dict[str, dict[str, tuple[str, bool, bool]]]


def columns(connection: Connection) -> Columns:
    """By table and column: its type, whether it may be empty, and whether it has a default."""
    found = inspect(connection)
    return {
        table: {
            each["name"]: (str(each["type"]), each["nullable"], each["default"] is not None)
            for each in found.get_columns(table)
        }
        for table in found.get_table_names()
        if table != "alembic_version"
    }


def unique(connection: Connection) -> dict[str, set[str]]:
    """By table the names of the indexes and constraints that refuse a row."""
    found = inspect(connection)
    return {
        table: {str(each["name"]) for each in found.get_indexes(table) if each["unique"]}
        | {str(each["column_names"]) for each in found.get_unique_constraints(table)}
        | {str(each["sqltext"]) for each in found.get_check_constraints(table)}
        for table in found.get_table_names()
        if table != "alembic_version"
    }


def harms(connection: Connection, change: Callable[[Connection], object]) -> list[str]:
    """What a change of the tables does that a server which does not know of it would stumble over."""
    before, refused = columns(connection), unique(connection)
    change(connection)
    after, refused_after = columns(connection), unique(connection)
    found = [f"the table {table} is gone" for table in before if table not in after]
    for table in before.keys() & after.keys():
        old, new = before[table], after[table]
        found += [f"{table}.{name} is gone or changed" for name in old if new.get(name) != old[name]]
        found += [
            f"{table}.{name} must be given"
            for name in new.keys() - old.keys()
            if not new[name][1] and not new[name][2]
        ]
        found += [f"{table} refuses more: {name}" for name in sorted(refused_after[table] - refused[table])]
    return found


def test_no_migration_does_more_than_add(url: str) -> None:
    database = open_database(url)
    with database.write() as connection:
        upgrade(connection, REVISIONS[0])
        for revision in REVISIONS[1:]:
            assert harms(connection, lambda known, revision=revision: upgrade(known, revision)) == [], (
                revision
            )
    database.close()


@pytest.mark.parametrize(
    ("what", "harm"),
    [
        (lambda op: op.drop_table("claims"), "the table claims is gone"),
        (lambda op: op.drop_index("backups_begin", "backups"), ""),
        (lambda op: op.add_column("tasks", sa.Column("later", sa.Text)), ""),
        (
            lambda op: op.add_column("tasks", sa.Column("later", sa.Text, nullable=False, server_default="")),
            "",
        ),
        (lambda op: op.create_table("later", sa.Column("row", sa.BigInteger, primary_key=True)), ""),
        (lambda op: op.create_index("later", "tasks", ["holder"]), ""),
        (lambda op: op.create_index("later", "tasks", ["holder"], unique=True), "tasks refuses more: later"),
        (
            lambda op: op.alter_column("tasks", "holder", new_column_name="owner"),
            "tasks.holder is gone or changed",
        ),
    ],
)
def test_what_is_not_an_addition_is_found(url: str, what: Callable[[Operations], object], harm: str) -> None:
    database = open_database(url)
    with database.write() as connection:
        upgrade(connection, "head")
        found = harms(connection, lambda known: what(Operations(MigrationContext.configure(known))))
        assert found == ([harm] if harm else [])
    database.close()
