"""Opening: the right SQLite, the right tables, and clear words where it cannot be."""

import logging
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event
from staddle_server.base import errors
from staddle_server.catalog import SqliteChoice, choose_sqlite, open_catalog
from staddle_server.catalog.dialect import Database, installed_wheel, open_sqlite, wal_is_safe
from staddle_server.catalog.engine import bring_up_to_date
from staddle_server.catalog.migrate import migrate, newest_revision
from staddle_server.catalog.schema import REVISION, metadata

GOLDEN = Path(__file__).parent.parent / "golden" / "catalog" / "schema.sql"
VERSION = "SELECT version_num FROM alembic_version"


def _sqlite(*version):
    return SimpleNamespace(sqlite_version_info=version)


def _schema(connection):
    rows = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT IN ('alembic_version', 'sqlite_sequence') "
        "ORDER BY type DESC, name"
    )
    return "".join(" ".join(row.sql.split()) + ";\n" for row in rows)


def _parts(schema):
    """The statements, each without the order in which its constraints stand, which is not fixed."""
    ends = (" ) WITHOUT ROWID;", " );", ";")
    parts = []
    for line in schema.splitlines():
        end = next(end for end in ends if line.endswith(end))
        parts.append([end, *sorted(line.removesuffix(end).split(", "))])
    return parts


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 0), False),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 4), True),
        ((4, 0, 0), True),
    ],
)
def test_only_a_fixed_sqlite_may_have_a_write_ahead_log(version, safe):
    assert wal_is_safe(version) is safe


def test_the_interpreters_own_sqlite_is_used_if_it_is_fixed():
    own = _sqlite(3, 51, 3)
    assert choose_sqlite(own, _sqlite(3, 53, 4)) == SqliteChoice(own, wal=True)


def test_the_wheel_is_used_where_the_own_sqlite_is_not_fixed():
    wheel = _sqlite(3, 53, 4)
    assert choose_sqlite(_sqlite(3, 40, 1), wheel) == SqliteChoice(wheel, wal=True)


@pytest.mark.parametrize("wheel", [None, _sqlite(3, 50, 0)])
def test_without_a_fixed_sqlite_there_is_no_write_ahead_log_and_a_warning_says_so(wheel, caplog):
    own = _sqlite(3, 40, 1)
    with caplog.at_level(logging.WARNING):
        assert choose_sqlite(own, wheel) == SqliteChoice(own, wal=False)
    assert "3.40.1" in caplog.text
    assert "rollback journal" in caplog.text


@pytest.mark.parametrize("wal", [True, False])
def test_a_connection_is_durable_checks_references_and_waits(tmp_path, wal):
    safe = choose_sqlite(wheel=installed_wheel())
    choice = safe if wal else SqliteChoice(sqlite3, wal=False)
    if wal and not safe.wal:
        pytest.skip("no SQLite here that may have a write-ahead log")
    catalog = open_catalog(str(tmp_path / "catalog.db"), sqlite=choice)
    with catalog.database.read() as connection:

        def setting(name):
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        assert setting("journal_mode") == ("wal" if wal else "delete")
        assert setting("synchronous") == (2 if wal else 3)
        assert setting("foreign_keys") == 1
        assert setting("busy_timeout") == 30_000
    catalog.close()


def test_a_new_catalog_is_readable_by_its_owner_only(world):
    for name in os.listdir(os.path.dirname(world.path)):
        mode = os.stat(os.path.join(os.path.dirname(world.path), name)).st_mode
        assert stat.S_IMODE(mode) == 0o600


@pytest.fixture
def migrated(tmp_path: Path) -> Iterator[Database]:
    """An empty database that went through every migration."""
    path = str(tmp_path / "migrated.db")
    database = open_sqlite(path, choose_sqlite(wheel=installed_wheel()), 30.0)
    migrate(database, path)
    yield database
    database.close()


def test_the_migrations_make_the_golden_schema(migrated):
    with migrated.read() as connection:
        assert _schema(connection) == GOLDEN.read_text()


def test_a_new_catalog_has_the_tables_that_the_migrations_make(migrated, world):
    with migrated.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        expected = _parts(_schema(connection))
        version = connection.exec_driver_sql(VERSION).all()
    with world.catalog.database.read() as connection:
        assert _parts(_schema(connection)) == expected
        assert connection.exec_driver_sql(VERSION).all() == version


def test_a_catalog_of_migrated_tables_is_opened_as_it_is(migrated, tmp_path):
    with migrated.read() as connection:
        before = _schema(connection)
    open_catalog(str(tmp_path / "migrated.db")).close()
    with migrated.read() as connection:
        assert _schema(connection) == before


def test_the_newest_migration_is_the_one_that_the_code_wants():
    assert newest_revision() == REVISION


def test_a_catalog_is_made_and_opened_without_what_brings_an_older_one_up_to_date(tmp_path):
    program = (
        "import sys; from staddle_server.catalog import open_catalog; c = open_catalog(sys.argv[1]); "
        "assert c.tenants.list_all() == []; assert 'alembic' not in sys.modules"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "catalog.db")], check=True)


def test_opening_again_changes_nothing_and_finds_everything(world):
    with world.catalog.database.read() as connection:
        before = _schema(connection)
    again = open_catalog(world.path)
    with again.database.read() as connection:
        assert _schema(connection) == before
    assert [tenant.name for tenant in again.tenants.list_all()] == ["one", "two"]
    again.close()


def test_several_processes_may_make_the_same_catalog_at_once(tmp_path):
    path = str(tmp_path / "catalog.db")
    program = (
        "import sys; from staddle_server.catalog import open_catalog; c = open_catalog(sys.argv[1]); "
        "c.tenants.create(bytes.fromhex(sys.argv[2]), 't' + sys.argv[2][:2], 1, record=b'made'); c.close()"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, path, f"{n:02x}" * 16]) for n in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    catalog = open_catalog(path)
    assert len(catalog.tenants.list_all()) == 3
    catalog.close()


def test_a_catalog_that_is_newer_than_the_code_is_refused_in_words(world):
    with world.catalog.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'r9999'")
    with pytest.raises(errors.Unavailable, match=r"newer version of Staddle.*r9999"):
        open_catalog(world.path)


@pytest.mark.parametrize("way", [bring_up_to_date, migrate], ids=["made new", "migrated"])
def test_tables_are_made_whole_or_not_at_all(way, tmp_path):
    path = str(tmp_path / "catalog.db")
    database = open_sqlite(path, choose_sqlite(wheel=installed_wheel()), 30.0)
    broken = []

    def fail(_connection, _cursor, statement, *_):
        if "TABLE packs" in statement:
            broken.append(statement)
            raise RuntimeError("power cut")

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(RuntimeError, match="power cut"):
            way(database, path)
    finally:
        database.close()
        event.remove(Engine, "before_cursor_execute", fail)
    assert broken
    plain = sqlite3.connect(path)
    assert plain.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    plain.close()
    open_catalog(path).close()


def test_a_file_that_is_no_database_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "catalog.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(errors.Unavailable, match=r"damaged.*rebuild") as caught:
        open_catalog(str(path))
    assert str(path) in caught.value.message


def test_damage_inside_the_file_is_an_error_and_never_an_answer(world):
    world.catalog.close()
    with open(world.path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(errors.Unavailable, match="damaged"):
        open_catalog(world.path).tenants.list_all()


def test_a_catalog_without_its_directory_is_unavailable(tmp_path):
    with pytest.raises(errors.Unavailable, match="cannot be opened"):
        open_catalog(str(tmp_path / "nowhere" / "catalog.db"))


def test_a_full_disk_is_said_so_and_changes_nothing(world):
    with world.catalog.database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    with world.catalog.database.engine.connect() as connection:
        # One connection of the pool, the one that the next transaction takes, may not grow the file.
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def fill():
        for n in range(5000):
            world.catalog.tenants.create(world.id(), f"t{n}", 1, record=b"made", wrapped_keys=b"k" * 3000)

    with pytest.raises(errors.Exhausted) as caught:
        fill()
    assert caught.value.reason == "STORE_FULL"


def test_a_lock_that_another_holds_for_too_long_is_unavailable_with_a_time_to_retry(world):
    impatient = open_catalog(world.path, busy_timeout_s=0.05)
    with world.catalog.database.write(), pytest.raises(errors.Unavailable) as caught:
        impatient.tenants.set_gc_waits(world.tenant, waits=True)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert caught.value.retry_after_s
    impatient.close()
