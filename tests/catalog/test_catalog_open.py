"""Opening: the right tables in any database, and a clear error where opening fails."""

import subprocess
import sys

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event, inspect, select
from staddle_server.base import errors
from staddle_server.base.places import UnknownSchemeError
from staddle_server.catalog import open_catalog
from staddle_server.catalog.engine import bring_up_to_date, open_database
from staddle_server.catalog.migrate import migrate, newest_revision
from staddle_server.catalog.schema import REVISION, metadata, tenants

VERSION = "SELECT version_num FROM alembic_version"


def tables(connection):
    """The tables with their columns and indexes."""
    found = inspect(connection)
    return {
        name: (
            [(each["name"], str(each["type"]), each["nullable"]) for each in found.get_columns(name)],
            [(each["name"], each["column_names"], each["unique"]) for each in found.get_indexes(name)],
        )
        for name in found.get_table_names()
    }


def test_a_new_catalog_has_the_tables_of_the_migrations(migrated, world):
    for database in (migrated, world.catalog.database):
        with database.read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
            assert connection.exec_driver_sql(VERSION).all() == [(REVISION,)]


def test_a_migrated_catalog_opens_unchanged(url):
    database = open_database(url)
    migrate(database)
    with database.read() as connection:
        before = tables(connection)
    open_catalog(url).close()
    with database.read() as connection:
        assert tables(connection) == before
    database.close()


@pytest.mark.parametrize("place", ["mysql://user:secret@host/base", "postgresql+psycopg://host/base"])
def test_an_unknown_database_is_named_with_those_that_this_version_knows(place):
    with pytest.raises(UnknownSchemeError, match=r"^cannot open a catalog at \S+://: .*sqlite://") as caught:
        open_catalog(place)
    assert caught.value.scheme == place.partition("://")[0]
    assert "secret" not in str(caught.value)


def test_the_newest_migration_is_the_one_that_the_code_expects():
    assert newest_revision() == REVISION


def test_a_catalog_is_created_and_opened_without_importing_the_migrations(url):
    program = (
        "import sys; from staddle_server.catalog import open_catalog; c = open_catalog(sys.argv[1]); "
        "assert c.tenants.list_all() == []; assert 'alembic' not in sys.modules"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, url], check=True)


def test_opening_again_changes_nothing_and_finds_everything(world):
    with world.catalog.database.read() as connection:
        before = tables(connection)
    again = open_catalog(world.url)
    with again.database.read() as connection:
        assert tables(connection) == before
    assert [tenant.name for tenant in again.tenants.list_all()] == ["one", "two"]
    again.close()


def test_several_processes_may_make_the_same_catalog_at_once(url):
    program = (
        "import sys; from staddle_server.catalog import open_catalog; c = open_catalog(sys.argv[1]); "
        "c.tenants.create(bytes.fromhex(sys.argv[2]), 't' + sys.argv[2][:2], 1, record=b'made'); c.close()"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, url, f"{n:02x}" * 16]) for n in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    catalog = open_catalog(url)
    assert len(catalog.tenants.list_all()) == 3
    catalog.close()


def test_a_catalog_newer_than_the_code_is_refused_with_the_reason(world):
    with world.catalog.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'r9999'")
    with pytest.raises(errors.Unavailable, match=r"newer version of Staddle.*r9999"):
        open_catalog(world.url)


@pytest.mark.parametrize("way", [bring_up_to_date, migrate], ids=["made new", "migrated"])
def test_either_all_tables_are_created_or_none(way, url):
    database = open_database(url)
    broken = []

    def fail(_connection, _cursor, statement, *_):
        if "TABLE packs" in statement:
            broken.append(statement)
            raise RuntimeError("power cut")

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(RuntimeError, match="power cut"):
            way(database)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    assert broken
    with database.read() as connection:
        assert tables(connection) == {}
    database.close()
    open_catalog(url).close()


def test_a_lock_held_too_long_is_unavailable_with_a_retry_time(world):
    impatient = open_catalog(world.url, busy_timeout_s=0.05)
    with world.catalog.database.write() as connection:
        connection.execute(select(tenants).with_for_update())
        with pytest.raises(errors.Unavailable) as caught:
            impatient.tenants.set_gc_waits(world.tenant, waits=True)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert caught.value.retry_after_s
    impatient.close()
