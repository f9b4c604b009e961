"""The catalog in PostgreSQL: how it connects, what its transactions see, what its errors mean, and how it recovers."""

import gc
import os
import subprocess
import sys
import threading
from typing import Final

import postgres_server
import pytest
from databases import DATABASES
from postgres_server import PostgresServer
from sqlalchemy import bindparam, create_engine, func, insert, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from staddle_server.base import errors
from staddle_server.base.types import TokenRole
from staddle_server.catalog import PendingRecord, open_catalog
from staddle_server.catalog.database import Query, later, locking, rows_in, together
from staddle_server.catalog.schema import datasets, tasks, tenants
from thin import wait_until

PASSWORD: Final = "hunter2%/@"
QUOTED: Final = "hunter2%25%2F%40"


@pytest.fixture
def databases():
    """The tests of this module are about PostgreSQL."""
    return DATABASES["postgresql"]


def _setting(connection, name):
    return connection.execute(text(f"SHOW {name}")).scalar()


# --- connecting


def test_of_several_hosts_the_one_that_answers_is_used(ready_url):
    place = postgres_server.shared().place
    several = ready_url.replace(f"host={place}", f"host={place}/none,{place}")
    catalog = open_catalog(several)
    assert catalog.tenants.list_all() == []
    catalog.close()


def test_a_server_that_takes_no_writes_is_not_used(ready_url):
    name = ready_url.partition("?")[0].rpartition("/")[2]
    postgres_server.shared().execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(errors.Unavailable, match="read-only"):
        open_catalog(ready_url)


def test_a_database_that_does_not_exist_is_named_with_what_the_server_says():
    with pytest.raises(
        errors.Unavailable, match=r'/absent cannot be used .*"absent" does not exist'
    ) as caught:
        open_catalog(postgres_server.shared().url("absent"))
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert caught.value.retry_after_s


def test_a_database_with_another_encoding_is_refused():
    server = postgres_server.shared()
    server.execute("CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII'")
    with pytest.raises(errors.Unavailable, match=r"encoding SQL_ASCII.*ENCODING 'UTF8'"):
        open_catalog(server.url("ascii"))


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://ann:{QUOTED}@127.0.0.1:1/base",
        f"postgresql://ann:{PASSWORD}@127.0.0.1:1/base",
        f"postgresql://ann@127.0.0.1:1/base?password={QUOTED}",
        f"postgresql://ann:{QUOTED}@127.0.0.1:1/base?nonsense={QUOTED}",
        f"postgresql://ann:{QUOTED}@[127.0.0.1/base",
    ],
)
def test_a_password_is_in_no_message(url):
    with pytest.raises((errors.Unavailable, ValueError)) as caught:
        open_catalog(url)
    said = "".join(map(str, (caught.value, caught.value.__cause__, caught.value.__context__)))
    assert "postgresql://" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in said or caught.value.__suppress_context__


def test_without_the_extra_the_error_names_it(ready_url):
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from staddle_server.base.errors import Unavailable\n"
        "from staddle_server.catalog import open_catalog\n"
        "try: open_catalog(sys.argv[1])\n"
        "except Unavailable as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, ready_url], capture_output=True, text=True, check=True
    )
    assert "pip install 'staddle[server,postgres]'" in done.stdout


def test_the_driver_is_not_loaded_for_another_database(tmp_path):
    program = "import sys; from staddle_server.catalog import open_catalog; open_catalog(sys.argv[1]); assert 'psycopg' not in sys.modules"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "catalog.db")], check=True)


# --- transactions


def test_what_writes_is_durable_at_read_committed_and_does_not_wait_for_ever(ready_url):
    name = ready_url.partition("?")[0].rpartition("/")[2]
    postgres_server.shared().execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    postgres_server.shared().execute(
        f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"
    )
    catalog = open_catalog(ready_url, busy_timeout_s=7)
    with catalog.database.write() as connection:
        assert _setting(connection, "transaction_isolation") == "read committed"
        assert _setting(connection, "transaction_read_only") == "off"
        assert _setting(connection, "synchronous_commit") == "on"
        assert _setting(connection, "lock_timeout") == "7s"
        assert _setting(connection, "statement_timeout") == "10min"
        assert _setting(connection, "idle_in_transaction_session_timeout") == "1min"
    catalog.close()


def test_a_stronger_durability_of_the_database_is_kept(ready_url):
    name = ready_url.partition("?")[0].rpartition("/")[2]
    postgres_server.shared().execute(f"ALTER DATABASE {name} SET synchronous_commit = remote_apply")
    catalog = open_catalog(ready_url)
    with catalog.database.read() as connection:
        assert _setting(connection, "synchronous_commit") == "remote_apply"
    catalog.close()


@pytest.mark.parametrize("way", ["read", "read_uncached"])
def test_what_reads_sees_one_state_and_changes_nothing(world, way):
    count = select(func.count()).select_from(tenants)
    with getattr(world.catalog.database, way)() as connection:
        before = connection.execute(count).scalar_one()
        world.principal("three", "cid")
        assert connection.execute(count).scalar_one() == before
    with pytest.raises(errors.Unavailable), getattr(world.catalog.database, way)() as connection:
        connection.execute(update(tenants).values(grace_s=0))


def test_names_are_in_the_order_of_their_bytes(world):
    names = ["B", "a", "Z", "_", "aa", "\u00e9", "\uffff", "\U00010000", "b c", "b-c"]
    for name in names:
        world.begin(dataset=name)
    listed = [each.name for each in world.catalog.datasets.list_page(world.tenant, "", 100)]
    assert listed == sorted(names, key=lambda name: name.encode())
    assert [each.name for each in world.catalog.datasets.list_page(world.tenant, "a", 2)] == ["aa", "b c"]


def test_a_text_with_nul_is_refused_or_finds_nothing(world):
    with pytest.raises(errors.BadRequest, match="request_id contains a NUL"):
        world.begin(request_id="a\0b")
    with pytest.raises(errors.NotFound):
        world.catalog.uploads.get_by_request(world.tenant, "a\0b")
    with pytest.raises(errors.NotFound):
        world.catalog.datasets.get(world.tenant, "w\0w")
    upload = world.begin().upload
    assert world.catalog.uploads.set_failure(world.tenant, upload.id, 1, "read a\0b")
    assert world.catalog.uploads.get(world.tenant, upload.id).last_failure == "read a\ufffdb"


def test_a_token_is_in_no_table(world):
    token = world.catalog.tokens.create(world.tenant, "ci", TokenRole.READER, 7)
    assert token.removeprefix("staddle_") not in repr(world.rows())


class StopError(Exception):
    """What ends a transaction in its middle."""


def _write_three_and_stop(database):
    with database.write() as connection:
        later(connection, insert(tasks), {"name": "a", "outcome": "x"})
        later(connection, insert(tasks), [{"name": each, "outcome": "x"} for each in "bc"])
        assert rows_in(connection, (tasks.c.name,), {}, tasks.c.name, ["a", "c"]) == [("a",), ("c",)]
        later(connection, insert(tasks), {"name": "d", "outcome": "x"})
        raise StopError


def test_what_is_sent_later_is_seen_by_the_next_statement_and_undone_with_its_transaction(world):
    with pytest.raises(StopError):
        _write_three_and_stop(world.catalog.database)
    assert world.rows()["tasks"] == []
    with world.catalog.database.write() as connection:
        later(connection, insert(tasks), {"name": "a", "outcome": "x"})
    assert len(world.rows()["tasks"]) == 1


def test_queries_that_are_sent_together_run_after_what_waits_and_each_has_its_rows(world):
    named = select(tasks.c.name, tasks.c.outcome).order_by(tasks.c.name)
    with world.catalog.database.write() as connection:
        later(connection, insert(tasks), [{"name": each, "outcome": each * 2} for each in "ab"])
        both, none, one = together(
            connection, Query(named), None, Query(named.where(tasks.c.name == bindparam("n")), {"n": "b"})
        )
    assert [(row.name, row.outcome) for row in both] == [("a", "aa"), ("b", "bb")]
    assert (list(none), [row.outcome for row in one]) == ([], ["bb"])


# --- errors

REFUSES = """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN RAISE EXCEPTION ''no'' USING ERRCODE = ''{code}''; END'"""


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("53100", errors.Exhausted, "STORE_FULL"),
        ("40001", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("40P01", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("55P03", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("57014", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("57P01", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("57P03", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("53300", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("58030", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("42501", errors.Unavailable, "STORE_UNAVAILABLE"),
        ("XX001", errors.Unavailable, "STORE_UNAVAILABLE"),
    ],
)
def test_an_error_of_the_database_is_one_that_callers_know(world, code, kind, reason):
    before = world.rows()
    with world.catalog.database.write() as connection:
        connection.execute(text(REFUSES.format(code=code)))
        connection.execute(text("CREATE TRIGGER t BEFORE UPDATE ON tenants EXECUTE FUNCTION refuse()"))
    with pytest.raises(kind) as caught:
        world.catalog.tenants.set_gc_waits(world.tenant, waits=True)
    assert type(caught.value) is kind
    assert caught.value.reason == reason
    assert world.rows() == before


def test_a_locked_row_cannot_be_changed_and_rows_that_refer_to_it_can_be_inserted(world):
    url = world.url + "&options=-c%20lock_timeout%3D100"
    this = tenants.c.id == world.tenant
    other = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    with world.catalog.database.write() as connection, other.begin() as beside:
        row = connection.execute(locking(select(tenants.c.row).where(this))).scalar_one()
        beside.execute(
            insert(datasets).values(tenant=row, name="db", created_ns=1, host="", root="", last_number=0)
        )
        with pytest.raises(OperationalError, match="lock timeout"), beside.begin_nested():
            beside.execute(locking(select(tenants.c.row).where(this)))


def test_of_two_that_wait_for_each_other_one_is_told_to_try_again(world):
    for name in "ab":
        world.begin(dataset=name)
    barrier, failed = threading.Barrier(2), []

    def lock(names):
        try:
            with world.catalog.database.write() as connection:
                for turn, name in enumerate(names):
                    connection.execute(
                        select(datasets.c.row).where(datasets.c.name == name).with_for_update()
                    )
                    if turn == 0:
                        barrier.wait()
        except errors.Unavailable as error:
            failed.append(error)

    threads = [threading.Thread(target=lock, args=(names,)) for names in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [error.retry_after_s is not None for error in failed] == [True]


# --- the database ends


@pytest.fixture
def server():
    """A server that can be killed."""
    postgres_server.need()
    server = PostgresServer(durable=True)
    yield server
    server.remove()


def test_what_was_acknowledged_survives_the_kill_of_the_database_and_the_catalog_recovers(server):
    catalog = open_catalog(server.url(server.new_database()))
    names = {catalog.tenants.create(bytes([n]) * 16, f"t{n}", n, record=b"made").name for n in range(5)}
    for end in (server.kill, server.stop):
        end()
        with pytest.raises(errors.Unavailable) as caught:
            catalog.tenants.list_all()
        assert caught.value.retry_after_s
        server.start()
        assert {each.name for each in catalog.tenants.list_all()} == names
    catalog.close()


def _break_in_the_middle(database):
    with database.write() as connection:
        connection.execute(update(tenants).values(grace_s=1))
        pid = connection.execute(select(func.pg_backend_pid())).scalar_one()
        postgres_server.shared().execute(f"SELECT pg_terminate_backend({pid}, 10000)")
        connection.execute(select(tenants.c.row))


def test_a_connection_that_breaks_in_a_transaction_fails_it_and_the_next_one_works(world):
    with pytest.raises(errors.Unavailable):
        _break_in_the_middle(world.catalog.database)
    assert 1 not in {each.grace_s for each in world.catalog.tenants.list_all()}


# --- decisions of several servers


def _decide(catalog, tenant, now_ns, number):
    for _ in range(10):
        with catalog.tenants.deciding(tenant, now_ns) as at_ns:
            record = PendingRecord(os.urandom(16), tenant, b"%d %d" % (at_ns, number))
            catalog.tenants.keep_records(tenant, [record])


def test_times_of_decisions_follow_their_order_on_several_servers_too(world):
    catalogs = [open_catalog(world.url) for _ in range(3)]
    threads = [
        threading.Thread(target=_decide, args=(catalog, world.tenant, world.now + n, n))
        for n, catalog in enumerate(catalogs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = [each.body for each in catalogs[0].backups.pending_records(world.tenant) if b" " in each.body]
    times = [int(body.split()[0]) for body in records]
    assert len(times) == 30
    assert times == sorted(times)
    assert len({body.split()[1] for body in records}) == 3
    for catalog in catalogs:
        catalog.close()


def test_a_decision_waits_for_that_of_another_server_and_then_says_so(world, monkeypatch):
    monkeypatch.setattr("staddle_server.catalog.tenants.DECISION_WAIT_S", 0.1)
    other = open_catalog(world.url)
    with other.tenants.deciding(world.tenant, 1):
        refused = pytest.raises(errors.Unavailable, match="has been deciding for this tenant")
        with refused, world.catalog.tenants.deciding(world.tenant, 2):
            pass
        with world.catalog.tenants.deciding(world.eve.tenant, 2):
            pass  # another tenant's
    with world.catalog.tenants.deciding(world.tenant, 2):
        pass
    other.close()


def test_a_connection_that_is_in_use_when_the_catalog_is_closed_ends_with_its_last_use(world, recwarn):
    with world.catalog.database.read() as connection:
        number = connection.execute(text("SELECT pg_backend_pid()")).scalar()
        world.catalog.close()
    del connection
    gc.collect()
    assert [str(each.message) for each in recwarn] == []

    def has_ended() -> bool:
        # In a transaction of its own: the view is read once in each.
        ended = text("SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = :number")
        with world.catalog.database.read() as connection:
            return bool(connection.execute(ended, {"number": number}).scalar())

    wait_until(has_ended)
