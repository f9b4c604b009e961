"""A server whose catalog is in PostgreSQL: made, served, backed up to, restored from, rebuilt, with commands that find it."""

import json
import stat
import subprocess
from pathlib import Path

import forked
import postgres_server
import pytest
from postgres_server import PostgresServer
from servers import NOTHING_BY_ITSELF, SERVER, ServerProcess
from staddle_server.app.catalog_place import catalog_place_of
from staddle_server.app.store_place import DataDirectoryError
from staddle_server.base.errors import Unavailable
from staddle_server.catalog import has_catalog
from thin import back_up, noise, reason, restore


def _run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return forked.run([*SERVER, *arguments], capture_output=True, text=True, check=check)


@pytest.fixture
def database():
    """A server of PostgreSQL that can be killed."""
    postgres_server.need()
    server = PostgresServer(durable=True)
    yield server
    server.remove()


def test_a_server_recovers_from_the_kill_of_its_database_and_every_command_finds_the_catalog(
    database, tmp_path
):
    url = database.url(database.new_database())
    data = tmp_path / "data"
    server = ServerProcess(data, flags=(*NOTHING_BY_ITSELF, "--catalog", url))
    server.start()
    try:
        files = {"a": noise(300_000, 1), "b": b"small"}
        back_up(server.stub(), "www", files)
        database.kill()
        with pytest.raises(Exception, match="catalog") as failed:
            back_up(server.stub(), "www", files)
        assert reason(failed.value) == "STORE_UNAVAILABLE"
        database.start()
        back_up(server.stub(), "www", files | {"c": b"new"})
        assert restore(server.stub(), "www").files == files | {"c": b"new"}
        assert "default" in _run("tenant", "list", "--data", str(data)).stdout
        _run("gc", "--data", str(data))
        _run("check", "--data", str(data))
    finally:
        server.stop()
    assert not (data / "catalog.db").exists()
    assert stat.S_IMODE((data / "catalog.url").stat().st_mode) == 0o600
    again = ServerProcess(data)  # without --catalog: the directory knows it
    again.start()
    assert restore(again.stub(), "www").files == files | {"c": b"new"}
    again.stop()


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, str]:
    """A data directory whose catalog is in PostgreSQL, and the URL of that."""
    url = postgres_server.new_url()
    _run("init", "--data", str(tmp_path / "data"), "--catalog", url)
    return tmp_path / "data", url


@pytest.mark.slow
def test_another_database_for_the_same_directory_is_refused(made):
    data, _ = made
    refused = _run(
        "rebuild", "--data", str(data), "--catalog", postgres_server.new_url(), "--dry-run", check=False
    )
    assert refused.returncode == 1
    assert "has its catalog at postgresql://" in refused.stderr
    assert "remove" in refused.stderr


@pytest.mark.parametrize("command", [["init"], ["serve", "--listen", "127.0.0.1:0"]])
def test_an_existing_catalog_gets_no_new_empty_store(made, tmp_path, command):
    data, url = made
    key = ["--master-key", str(data / "master.key")]
    for more in ([], key):
        refused = _run(*command, "--data", str(tmp_path / "new"), "--catalog", url, *more, check=False)
        assert refused.returncode == 1
        assert "exists already, and its store is not in" in refused.stderr
        assert not (tmp_path / "new").exists()


def test_a_directory_with_a_catalog_file_is_not_given_a_database(tmp_path):
    _run("init", "--data", str(tmp_path / "data"))
    url = postgres_server.new_url()
    refused = _run("rebuild", "--data", str(tmp_path / "data"), "--catalog", url, "--dry-run", check=False)
    assert refused.returncode == 1
    assert "has a catalog in" in refused.stderr
    assert not has_catalog(url)
    (tmp_path / "data" / "catalog.db").unlink()  # as the page on operations says: moved elsewhere
    _run("rebuild", "--data", str(tmp_path / "data"), "--catalog", url)
    assert "default" in _run("tenant", "list", "--data", str(tmp_path / "data")).stdout


@pytest.mark.slow
def test_a_catalog_that_is_gone_is_not_replaced_by_an_empty_one(made):
    data, url = made
    server = postgres_server.shared()
    name = url.partition("?")[0].rpartition("/")[2]
    server.execute(f"DROP DATABASE {name}")
    server.execute(f"CREATE DATABASE {name}")
    refused = _run("serve", "--data", str(data), "--listen", "127.0.0.1:0", check=False)
    assert refused.returncode == 1
    assert "is missing, but" in refused.stderr
    assert "rebuild" in refused.stderr
    assert not has_catalog(url)
    _run("rebuild", "--data", str(data))
    assert "default" in _run("tenant", "list", "--data", str(data)).stdout


@pytest.mark.slow
def test_a_rebuild_replaces_the_catalog_in_one_transaction_and_sets_the_old_one_aside(made):
    data, url = made
    refused = _run("rebuild", "--data", str(data), check=False)
    assert "exists" in refused.stderr
    assert json.loads(_run("rebuild", "--data", str(data), "--dry-run", "--json").stdout)["aside"] is None
    done = json.loads(_run("rebuild", "--data", str(data), "--replace", "--json").stdout)
    assert done["aside"].startswith("the schema staddle_")
    name = url.partition("?")[0].rpartition("/")[2]
    query = "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'staddle%'"
    kept = [row[0] for row in postgres_server.shared().execute(query, name)]
    assert done["aside"] == f"the schema {kept[0]} of postgresql://{postgres_server.shared().place}/{name}"
    assert len(kept) == 1
    listed = _run("token", "list", "--data", str(data)).stdout
    assert "local" in listed


def test_a_database_that_does_not_answer_is_an_error_in_words_without_its_password(tmp_path):
    url = "postgresql://ann:hunter2@127.0.0.1:1/base"
    refused = _run("init", "--data", str(tmp_path / "data"), "--catalog", url, check=False)
    assert refused.returncode == 1
    assert "The catalog postgresql://127.0.0.1:1/base cannot be used" in refused.stderr
    assert "hunter2" not in refused.stderr
    with pytest.raises(Unavailable):
        has_catalog(url)


@pytest.mark.parametrize(
    ("content", "flaw"), [(b"", "is empty"), (b" \n", "is empty"), (b"\xff", "is not the URL")]
)
def test_an_unusable_catalog_url_is_named_and_no_other_catalog_takes_its_place(tmp_path, content, flaw):
    (tmp_path / "catalog.url").write_bytes(content)
    with pytest.raises(DataDirectoryError, match=f"catalog.url {flaw}.*restore the URL"):
        catalog_place_of(tmp_path, "")


def test_a_malformed_url_is_named_without_its_text(tmp_path):
    for url in ("mysql://ann:hunter2@host/base", "postgresql://ann:hunter2%zz@host/base"):
        refused = _run("init", "--data", str(tmp_path / "data"), "--catalog", url, check=False)
        assert refused.returncode != 0
        assert "postgresql://" in refused.stderr
        assert "hunter2" not in refused.stderr
        assert "Traceback" not in refused.stderr
