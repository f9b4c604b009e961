"""A server without some packs, records or keys: it reports that at its start, and the alarm ends once they are back."""

import contextlib
import os
import sqlite3
import sys
import time
from pathlib import Path

import forked
import grpc
import pytest
from staddle.v1 import service_pb2 as sv
from thin import noise, wait_until

BIN = Path(sys.executable).parent
SETTLED_S = 2.5
FILES = {"a": noise(3_000_000, 1), "b": noise(700_000, 2), "text": b"few words" * 1000, "d/small": b"x"}


def run(program, *words, config=None):
    env = {name: value for name, value in os.environ.items() if not name.startswith("STADDLE")}
    if config is not None:
        env["STADDLE_CONFIG"] = str(config)
    return forked.run(
        [BIN / program, *map(str, words)], capture_output=True, text=True, env=env, timeout=120, check=False
    )


def packs(server):
    return [path for path in (server.data / "store" / "packs").rglob("*") if path.is_file()]


def health(server):
    return run("staddle-server", "health", "--data", server.data)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The source of all backups here; no test changes it."""
    root = tmp_path_factory.mktemp("settled") / "folder"
    for name, data in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    # A backup marks recently changed files, and a later one does not: their pages would differ.
    written_s = time.time()
    wait_until(lambda: time.time() > written_s + SETTLED_S)
    return root


def restored(server, target):
    done = run("staddle", "restore", "www", "--target", target, config=server.config)
    assert done.returncode == 0, done.stderr
    return {name: (target / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(
    "way", [(), pytest.param(("--thin",), marks=pytest.mark.slow)], ids=["source", "thin"]
)
def test_packs_lost_while_the_server_was_stopped_are_an_alarm_until_a_full_backup(
    server, folder, tmp_path, way
):
    backup = ("backup", folder, "--dataset", "www", *way)
    assert run("staddle", *backup, config=server.config).returncode == 0
    assert health(server).returncode == 0
    server.stop()
    for path in packs(server):
        path.unlink()
    server.start()
    (alarm,) = server.logged("damage is known")
    assert (alarm["level"], alarm["packs"]) == ("error", 1)
    assert "staddle-server check" in alarm["message"]
    assert "FULL" in alarm["message"]
    said = health(server)
    assert said.returncode == 4
    assert "damaged or missing" in said.stderr
    done = run("staddle", *backup, "--kind", "full", config=server.config)
    assert done.returncode == 0, done.stderr
    wait_until(lambda: health(server).returncode == 0)
    assert restored(server, tmp_path / "target") == FILES
    assert run("staddle-server", "check", "--read-data", "--data", server.data).returncode == 0


def test_packs_lost_while_the_server_runs_are_an_alarm_once_check_finds_it(server, folder):
    backup = ("backup", folder, "--dataset", "www")
    assert run("staddle", *backup, config=server.config).returncode == 0
    for path in packs(server):
        path.unlink()
    assert run("staddle-server", "check", "--data", server.data).returncode == 1
    wait_until(lambda: health(server).returncode == 4)
    done = run("staddle-server", "repair", "--data", server.data)
    assert done.returncode == 1
    assert "FULL backup" in done.stdout
    assert run("staddle", *backup, "--kind", "full", config=server.config).returncode == 0
    wait_until(lambda: health(server).returncode == 0)
    assert run("staddle-server", "repair", "--data", server.data).returncode == 0
    assert run("staddle-server", "check", "--data", server.data).returncode == 0


def test_a_pack_of_another_size_is_an_alarm_and_intact_packs_are_not(server, folder):
    assert run("staddle", "backup", folder, "--dataset", "www", config=server.config).returncode == 0
    server.stop()
    server.start()
    server.stop()
    assert "damage is known" not in server.log()
    (path,) = packs(server)
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size - 10)
    server.start()
    assert len(server.logged("damage is known")) == 1
    assert health(server).returncode == 4


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ("records/*/000000000003-*", "record 3 of tenant default is missing"),
        ("records/*/000000000004-*", "record 4 of tenant default is missing"),
        ("records/*/*", "records 1 to 4 of tenant default are missing"),
        ("keys/*/*", "nothing of tenant default can be read"),
    ],
    ids=["a record", "the newest record", "all records", "the keys"],
)
def test_records_and_keys_lost_while_the_server_was_stopped_are_an_alarm_until_repair(
    server, folder, lost, says
):
    for _ in range(2):
        assert run("staddle", "backup", folder, "--dataset", "www", config=server.config).returncode == 0
    server.stop()
    for path in (server.data / "store").glob(lost):
        path.unlink()
    server.start()
    (alarm,) = server.logged(says)
    assert alarm["level"] == "error"
    assert "staddle-server repair" in alarm["message"]
    assert "Other tenants are served" in alarm["message"] or "Backups and restores work" in alarm["message"]
    said = health(server)
    assert said.returncode == 4
    assert "staddle-server check" in said.stderr
    assert run("staddle-server", "repair", "--data", server.data).returncode == 0
    wait_until(lambda: health(server).returncode == 0)
    assert run("staddle", "backup", folder, "--dataset", "www", config=server.config).returncode == 0
    server.stop()
    server.start()
    assert health(server).returncode == 0, "objects that repair has given up raise no alarm"


@pytest.mark.parametrize(
    "another", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["nothing", "an empty directory"]
)
def test_a_store_lost_under_a_running_server_is_an_alarm_until_it_is_back(server, folder, another):
    store, away = server.data / "store", server.data.parent / "away"
    assert run("staddle", "backup", folder, "--dataset", "www", config=server.config).returncode == 0
    assert health(server).returncode == 0
    store.rename(away)
    if another:
        store.mkdir()
    wait_until(lambda: health(server).returncode == 4)
    (said,) = server.logged("the store is missing")
    assert said["level"] == "error"
    assert "mounted" in said["message"]
    if another:
        store.rmdir()
    away.rename(store)
    wait_until(lambda: health(server).returncode == 0)
    assert run("staddle", "backup", folder, "--dataset", "www", config=server.config).returncode == 0


@pytest.mark.parametrize("by", ["an older catalog", pytest.param("a foreign one", marks=pytest.mark.slow)])
def test_a_catalog_overwritten_in_place_is_an_alarm_and_no_longer_used(server, folder, by):
    """`cp older.db catalog.db` keeps the file that the server has open."""
    words = ("staddle", "backup", folder, "--dataset", "www")
    assert run(*words, config=server.config).returncode == 0
    server.stop()
    catalog = server.data / "catalog.db"
    older = catalog.read_bytes()
    server.start()
    assert run(*words, config=server.config).returncode == 0
    identity = catalog.stat().st_ino
    if by == "a foreign one":
        with contextlib.closing(sqlite3.connect(server.data.parent / "foreign.db")) as foreign:
            foreign.execute("CREATE TABLE photos (name TEXT)")
        older = (server.data.parent / "foreign.db").read_bytes()
    with catalog.open("r+b") as file:
        file.truncate()
        file.write(older)
    assert catalog.stat().st_ino == identity
    (said,) = server.logged("the catalog is missing or was replaced")
    assert "another catalog was written into" in said["message"]
    assert "rebuild --replace" in said["message"]
    wait_until(lambda: health(server).returncode == 4)
    with pytest.raises(grpc.RpcError, match="another catalog was written into"):
        server.stub().ListDatasets(sv.ListDatasetsRequest())
    server.stop()
    refused = run("staddle-server", "serve", "--data", server.data, "--listen", "127.0.0.1:0")
    assert refused.returncode == 1
    assert "rebuild --replace" in refused.stderr
    rebuilt = run("staddle-server", "rebuild", "--replace", "--data", server.data)
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    server.start()
    assert len(server.stub().ListBackups(sv.ListBackupsRequest(dataset="www")).backups) == 2


@pytest.mark.parametrize("ending", ["-wal", pytest.param("-shm", marks=pytest.mark.slow)])
def test_a_removed_log_of_the_catalog_is_an_alarm_like_a_removed_catalog(server, folder, ending):
    words = ("staddle", "backup", folder, "--dataset", "www")
    assert run(*words, config=server.config).returncode == 0
    log, away = server.data / f"catalog.db{ending}", server.data.parent / "away"
    if not log.exists():
        pytest.skip("this SQLite uses no write-ahead log")
    log.rename(away)
    with pytest.raises(grpc.RpcError, match=rf"catalog\.db{ending} was replaced, moved or removed"):
        server.stub().ListDatasets(sv.ListDatasetsRequest())
    wait_until(lambda: health(server).returncode == 4)
    assert server.logged("the catalog is missing")
    away.replace(log)
    wait_until(lambda: health(server).returncode == 0)
    assert run(*words, config=server.config).returncode == 0


@pytest.mark.parametrize(
    "another", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["nothing", "an older copy"]
)
def test_a_catalog_replaced_under_a_running_server_is_an_alarm_and_accepts_no_backup(server, folder, another):
    words = ("staddle", "backup", folder, "--dataset", "www")
    assert run(*words, config=server.config).returncode == 0
    catalog, away = server.data / "catalog.db", server.data.parent / "away.db"
    older = catalog.read_bytes()
    catalog.rename(away)
    if another:
        catalog.write_bytes(older)
    with pytest.raises(grpc.RpcError, match=r"catalog\.db was replaced, moved or removed"):
        server.stub().ListDatasets(sv.ListDatasetsRequest())
    wait_until(lambda: health(server).returncode == 4)
    assert server.logged("the catalog is missing")
    if another:
        assert catalog.read_bytes() == older, "nothing is written to another catalog"
    away.replace(catalog)
    wait_until(lambda: health(server).returncode == 0)
    assert run(*words, config=server.config).returncode == 0
