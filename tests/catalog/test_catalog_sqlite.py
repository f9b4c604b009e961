"""The catalog in an SQLite file: the library's version, its settings, its file, and how each can fail."""

import itertools
import logging
import os
import sqlite3
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
from staddle_server.base import errors
from staddle_server.base.types import TokenRole
from staddle_server.catalog import chunks, open_catalog, sqlite
from staddle_server.catalog.database import DatabaseKind, rows_in
from staddle_server.catalog.schema import tasks
from staddle_server.catalog.sqlite import (
    Sqlite,
    SqliteChoice,
    choose_sqlite,
    installed_wheel,
    open_sqlite,
    path_of,
    wal_is_safe,
)
from staddle_server.catalog.validation import BATCH

GOLDEN = Path(__file__).parent.parent / "golden" / "catalog" / "schema.sql"


@pytest.fixture
def new_url(tmp_path):
    """The tests of this module use an SQLite file, whose URL is its path."""
    names = (str(tmp_path / f"catalog-{number}.db") for number in itertools.count())
    return lambda: next(names)


@pytest.fixture
def ready_url(new_url):
    return new_url()


def _sqlite(*version):
    return SimpleNamespace(sqlite_version_info=version)


def _schema(connection):
    rows = connection.exec_driver_sql(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT IN ('alembic_version', 'sqlite_sequence') "
        "ORDER BY type DESC, name"
    )
    return "".join(" ".join(row.sql.split()) + ";\n" for row in rows)


def _parts(schema):
    """The statements, each without the order of its constraints, which varies."""
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


def test_the_sqlite_of_the_interpreter_is_used_if_it_is_fixed():
    own = _sqlite(3, 51, 3)
    assert choose_sqlite(own, _sqlite(3, 53, 4)) == SqliteChoice(own, wal=True)


def test_the_wheel_is_used_where_the_sqlite_of_the_interpreter_is_not_fixed():
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
def test_a_connection_is_durable_checks_references_and_waits(url, wal):
    safe = choose_sqlite(wheel=installed_wheel())
    choice = safe if wal else SqliteChoice(sqlite3, wal=False)
    if wal and not safe.wal:
        pytest.skip("no SQLite here that may have a write-ahead log")
    database = open_sqlite(url, choice)
    with database.read() as connection:

        def setting(name):
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

        assert setting("journal_mode") == ("wal" if wal else "delete")
        assert setting("synchronous") == (2 if wal else 3)
        assert setting("foreign_keys") == 1
        assert setting("busy_timeout") == 30_000
    database.close()


def test_a_new_catalog_is_readable_by_its_owner_only(world):
    for name in os.listdir(os.path.dirname(world.url)):
        mode = os.stat(os.path.join(os.path.dirname(world.url), name)).st_mode
        assert stat.S_IMODE(mode) == 0o600


def test_the_migrations_make_the_golden_schema(migrated):
    with migrated.read() as connection:
        assert _schema(connection) == GOLDEN.read_text()


def test_a_file_that_is_not_a_database_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "catalog.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(errors.Unavailable, match=r"damaged.*rebuild") as caught:
        open_catalog(str(path))
    assert str(path) in caught.value.message


def test_damage_inside_the_file_is_an_error_and_never_an_answer(world):
    world.catalog.close()
    with open(world.url, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(errors.Unavailable, match="damaged"):
        open_catalog(world.url).tenants.list_all()


def test_a_catalog_without_its_directory_is_unavailable(tmp_path):
    with pytest.raises(errors.Unavailable, match="cannot be opened"):
        open_catalog(str(tmp_path / "nowhere" / "catalog.db"))


def test_a_full_disk_is_reported_and_changes_nothing(world):
    with world.catalog.database.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    with world.catalog.database.engine.connect() as connection:
        # The pooled connection that the next transaction takes cannot grow the file.
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    def fill():
        for n in range(5000):
            world.catalog.tenants.create(world.id(), f"t{n}", 1, record=b"made", wrapped_keys=b"k" * 3000)

    with pytest.raises(errors.Exhausted) as caught:
        fill()
    assert caught.value.reason == "STORE_FULL"


def test_a_new_file_has_exactly_the_tables_of_the_migrations(migrated, world):
    with migrated.read() as connection, world.catalog.database.read() as new:
        assert _parts(_schema(new)) == _parts(_schema(connection))


def test_the_file_never_contains_a_token(world):
    token = world.catalog.tokens.create(world.tenant, "ci", TokenRole.READER, 7)
    world.catalog.close()
    assert token.removeprefix("staddle_").encode() not in Path(world.url).read_bytes()


# --- its place


def test_a_url_names_the_file_by_a_relative_or_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for url in ("sqlite:///named.db", f"sqlite:///{tmp_path}/named.db"):
        open_catalog(url).close()
        assert [name for name in os.listdir(tmp_path) if name.endswith(".db")] == ["named.db"]


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite://host/a.db", "sqlite:////a.db?mode=ro"]
)
def test_a_url_without_a_file_is_refused(url):
    with pytest.raises(ValueError, match="sqlite:////absolute/path"):
        path_of(url)


# --- statements that go straight to the driver


def test_lists_of_every_length_are_found_with_a_handful_of_statements(world, monkeypatch):
    statements = set()
    make = sqlite._list_sql

    def noted(*arguments):
        statements.add(make(*arguments))
        return make(*arguments)

    monkeypatch.setattr(sqlite, "_list_sql", noted)
    for length in [*range(1, 70), 255, 256, 257, BATCH - 1, BATCH, BATCH + 1, BATCH + 30]:
        world.catalog.chunks.find(world.tenant, world.digests(length))
    of_chunks = {statement for statement in statements if 'FROM "chunks"' in statement}
    assert 3 <= len(of_chunks) <= 6


@pytest.mark.parametrize("query", [chunks._FOUND, chunks._CLAIMED])
def test_chunks_are_found_by_indexes(world, query):
    statement = sqlite._list_sql(query, BATCH)
    with world.catalog.database.read() as connection:
        values = (1,) * statement.count("?")
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    steps = [row.detail for row in rows]
    assert any("USING INDEX chunks_id (id_head=?)" in step for step in steps)
    assert not any(step.startswith("SCAN") for step in steps), steps


class WithoutShortcuts(Sqlite):
    """Uses the generic statements only, without SQLite's shortcut."""

    insert_rows = DatabaseKind.insert_rows


def test_the_generic_statements_give_the_same_results(world):
    choice = choose_sqlite(wheel=installed_wheel())
    kinds = [Sqlite(world.url, choice), WithoutShortcuts(world.url, choice)]
    columns = (tasks.c.name, tasks.c.outcome)
    names = [f"task {number}" for number in range(9)]
    asked = ({tasks.c.outcome: "later"}, tasks.c.name, [*names[3:], "none"])
    found = []
    with world.catalog.database.write() as connection:
        kinds[0].insert_rows(connection, columns, [(name, "first") for name in names[:5]])
        for some, kind in zip((names[:7], names), kinds, strict=True):
            kind.insert_rows(connection, columns, [(name, "later") for name in some])
            found.append(sorted(rows_in(connection, columns, *asked)))
    assert found == [[(name, "later") for name in names[5:7]], [(name, "later") for name in names[5:]]]
    for kind in kinds:
        kind.close()
