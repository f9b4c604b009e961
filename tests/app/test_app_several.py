"""Several servers on one catalog in PostgreSQL and one store, each with a data directory of its own."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import postgres_server
import pytest
from click.testing import CliRunner
from sqlalchemy import update
from staddle_server.app import bootstrap, generation
from staddle_server.app.data_directory import DataDirectory, DataDirectoryError
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import ServerIdentity, schema
from staddle_server.cli.run import group
from staddle_server.store.blobs import Blobs
from staddle_server.store.keys import create_master_key
from staddle_server.store.wrapped import WrappedBlobs
from staddle_server.upkeep.integrity.watch import CATALOG_EVERY, Integrity

NOW_NS = 1_790_000_000_000_000_000


@pytest.fixture
def url() -> str:
    return postgres_server.new_url()


@pytest.fixture
def directories(tmp_path: Path, url: str) -> list[DataDirectory]:
    """New data directories with the same master key, catalog and store."""
    (tmp_path / "store").mkdir()
    create_master_key(str(tmp_path / "key"))
    made = []
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "store").symlink_to(tmp_path / "store")
        made.append(DataDirectory(tmp_path / name, "", url, str(tmp_path / "key")))
    return made


def initialise(directory: DataDirectory) -> str:
    with directory.claimed(), directory.catalog_place.alone():
        return bootstrap.initialise(directory, NOW_NS)


@pytest.fixture
def joined(directories: list[DataDirectory]) -> list[DataDirectory]:
    """The same, initialised."""
    for directory in directories:
        initialise(directory)
    return directories


def begin(directory: DataDirectory, blobs: Blobs | None = None) -> None:
    """Leave the mark of a start or stop."""
    with bootstrap.open_rooms(directory) as opened:
        generation.leave_mark(directory, blobs or opened.blobs, opened.catalog, NOW_NS, opened.looked)


def marks(directory: DataDirectory) -> list[str]:
    return sorted(os.listdir(directory.store / "marks"))


def current(directory: DataDirectory) -> str:
    with bootstrap.open_rooms(directory) as opened:
        known = opened.catalog.generation.get()
        assert known is not None
        assert not known.intended
        return known.current


def test_of_servers_that_start_at_once_one_creates_the_catalog_and_the_others_join_it(directories):
    with ThreadPoolExecutor(3) as threads:
        tokens = list(threads.map(initialise, directories))
    assert sorted(map(bool, tokens)) == [False, False, True]
    for directory in directories:
        assert directory.is_complete()
        with bootstrap.open_rooms(directory) as opened:
            assert [row.name for row in opened.catalog.tenants.list_all()] == ["default"]
            opened.catalog.tokens.authenticate(next(filter(None, tokens)), NOW_NS)
    assert len(os.listdir(directories[0].store / "keys")) == 1


@pytest.mark.slow
def test_a_directory_without_the_key_is_told_how_to_join(directories):
    initialise(directories[0])
    keyless = DataDirectory(directories[1].path, "", directories[1].wanted_catalog)
    with pytest.raises(
        DataDirectoryError, match="existing catalog and store gets their key with --master-key"
    ):
        keyless.is_complete()


@pytest.mark.slow
def test_a_server_with_another_master_key_is_refused_and_keeps_no_trace_of_it(directories, tmp_path):
    initialise(directories[0])
    create_master_key(str(tmp_path / "other"))
    wrong = DataDirectory(directories[1].path, "", directories[1].wanted_catalog, str(tmp_path / "other"))
    with pytest.raises(DataDirectoryError, match="is not the master key of"):
        initialise(wrong)
    assert not wrong.master_key.exists()
    assert initialise(directories[1]) == ""
    with pytest.raises(DataDirectoryError, match="another master key than that of --master-key"):
        bootstrap.check_given_key(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["env:KEY", "command:cat {}"])
def test_the_master_key_comes_from_a_variable_or_a_command(directories, tmp_path, monkeypatch, place):
    monkeypatch.setenv("KEY", (tmp_path / "key").read_text())
    initialise(directories[0])
    first = directories[1]
    second = DataDirectory(first.path, "", first.wanted_catalog, place.format(tmp_path / "key"))
    assert initialise(second) == ""
    assert second.master_key.read_text() == (tmp_path / "key").read_text()
    assert second.master_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("env:MISSING", "no variable MISSING"),
        ("env:SECRET", "is not a master key"),
        ("command:false", "exit code 1"),
        ("command:/no/such/program", "cannot be run"),
        ("command:echo secret", "is not a master key"),
    ],
)
def test_a_place_without_a_master_key_is_named_and_its_content_is_not(directories, monkeypatch, place, why):
    monkeypatch.setenv("SECRET", "secret")
    given = DataDirectory(directories[0].path, "", directories[0].wanted_catalog, place)
    with pytest.raises(Exception, match=why) as failed:
        initialise(given)
    assert "echo secret" in place or "secret" not in str(failed.value)
    assert not given.master_key.exists()


@pytest.mark.slow
def test_servers_that_start_and_stop_at_once_leave_their_marks_in_turn(joined):
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(begin, joined * 4))
    (mark,) = marks(joined[0])
    assert mark == current(joined[0])
    assert mark.startswith(f"{12:012}-")


class _Stalled(WrappedBlobs):
    """Loses the lock before it puts its mark, as a suspended server does, and another server starts."""

    other: DataDirectory

    def put(self, name: str, data: bytes) -> None:
        if name.startswith("marks/"):
            postgres_server.shared().execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            )
            begin(self.other)
        super().put(name, data)


@pytest.mark.slow
def test_the_mark_of_a_server_that_was_suspended_meanwhile_does_not_count(joined, caplog):
    first, second, third = joined
    with bootstrap.open_rooms(first) as opened:
        stalled = _Stalled(opened.blobs)
        stalled.other = second
        begin(first, stalled)
    assert "its mark counts" in caplog.text
    assert marks(first) == [current(first)]
    begin(third)
    assert marks(third) == [current(third)]


def test_a_running_server_accepts_the_marks_of_others_and_no_other_catalog(joined):
    first, second, third = joined
    begin(first)
    with bootstrap.open_rooms(first) as opened:
        integrity = Integrity(opened.kept(), 0)
        integrity.start()
        for directory in (second, third, second):
            begin(directory)
            for _ in range(CATALOG_EVERY):
                integrity.look()
        assert integrity.is_whole
        # Another catalog has a mark that this store does not have.
        with opened.catalog.database.write() as connection:
            connection.execute(update(schema.generation).values(current=f"{99:012}-{'0' * 16}"))
        for _ in range(CATALOG_EVERY):
            integrity.look()
        assert not integrity.is_whole
        with pytest.raises(Unavailable, match="another catalog was written into"):
            opened.catalog.tenants.list_all()


def test_the_command_lists_every_server_in_80_columns(joined):
    first, second, _ = joined
    with bootstrap.open_rooms(first) as opened:
        for number, name in enumerate(("one", "two", "three", "a-long-name-of-a-machine.example.org")):
            me = ServerIdentity(
                bytes([number]) * 16, "", name, f"server{number}.example.org:7443", "0.1.0", name
            )
            opened.catalog.servers.beat(me, draining=name == "two")
        silent = update(schema.servers).where(schema.servers.c.name == "three")
        with opened.catalog.database.write() as connection:
            connection.execute(silent.values(beat_ns=schema.servers.c.beat_ns - 3600 * 10**9))

    def listed(*options: str) -> list[str]:
        done = CliRunner().invoke(group, ["servers", "--data", str(second.path), *options])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()

    table = listed()
    assert table[0].split() == ["server", "endpoint", "up", "state", "version", "does"]
    assert max(map(len, table)) <= 80
    states = [json.loads(line) for line in listed("--json")]
    assert [each["state"] for each in states] == ["live", "draining", "dead", "live"]
    assert states[3]["server"] == "a-long-name-of-a-machine.example.org"
    assert "dead 1h" in table[3]


def test_rebuild_and_adopt_refuse_while_a_server_lives(joined):
    first, second, _ = joined
    with bootstrap.open_rooms(second) as opened, first.locked():
        beat = opened.catalog.servers.beat
        beat(ServerIdentity(b"1" * 16, first.identity(), "here", "here:1", "1", ""), draining=False)
        first.catalog_place.require_unserved(first.identity())
        beat(ServerIdentity(b"2" * 16, "elsewhere", "there", "there:1", "1", ""), draining=False)
        with pytest.raises(
            DataDirectoryError, match=r"1 server with other data directories.*there at there:1"
        ):
            first.catalog_place.require_unserved(first.identity())
        opened.catalog.servers.remove(b"2" * 16)
        first.catalog_place.require_unserved(first.identity())
