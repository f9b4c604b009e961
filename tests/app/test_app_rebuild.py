"""`staddle-server rebuild` as operators type it: its refusals, its changes, and the state after a kill."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import threading
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from staddle_server.app import bootstrap
from staddle_server.app.catalog_place import FilePlace
from staddle_server.app.data_directory import DataDirectory, DataDirectoryError
from staddle_server.base.types import TokenRole
from staddle_server.cli.run import group
from staddle_server.store.records import DeletedRecord, Records
from staddle_server.tenancy.records import as_pending, finish_missing
from thin import back_up, backups, noise, restore, wait_until

NOW_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a second tenant, and a token."""
    path = tmp_path_factory.mktemp("made") / "d"
    run("init", "--data", path)
    run("tenant", "create", "acme", "--data", path)
    run("token", "create", "--role", "writer", "--name", "web1", "--data", path)
    return path


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> DataDirectory:
    """A copy of it for each test."""
    shutil.copytree(made, tmp_path / "d")
    return DataDirectory(tmp_path / "d")


def run(*arguments: object, code: int = 0) -> Result:
    settings = {name: None for name in os.environ if name.startswith("STADDLED_")}
    done = CliRunner().invoke(group, [str(argument) for argument in arguments], env=settings)
    assert done.exit_code == code, done.output
    return done


def rebuild(directory: DataDirectory, *arguments: object, code: int = 0) -> Result:
    return run("rebuild", "--data", directory.path, *arguments, code=code)


def lose_catalog(directory: DataDirectory) -> None:
    for path in directory.path.glob("catalog.db*"):
        path.unlink()


def contents(directory: DataDirectory) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory.path)): path.read_bytes()
        for path in directory.path.rglob("*")
        if path.is_file() and path.name != "server.lock"
    }


def tenants(directory: DataDirectory) -> list[str]:
    with bootstrap.open_rooms(directory) as opened:
        return [tenant.name for tenant in opened.catalog.tenants.list_all()]


def test_a_lost_catalog_is_rebuilt_and_the_local_command_has_access(directory: DataDirectory) -> None:
    old = tomllib.loads(directory.client_toml.read_text())
    lose_catalog(directory)
    assert "staddle-server rebuild --data" in run("serve", "--data", directory.path, code=1).output
    assert "staddle-server rebuild --data" in run("tenant", "list", "--data", directory.path, code=1).output
    done = rebuild(directory)
    assert re.search(r"^tenants +2$", done.output, re.MULTILINE)
    assert "Everything in the store was used." in done.output
    assert "client.toml is new already" in done.output
    assert directory.is_complete()
    assert tenants(directory) == ["acme", "default"]
    new = tomllib.loads(directory.client_toml.read_text())
    assert new["server"] == old["server"]
    with bootstrap.open_rooms(directory) as opened:
        principal = opened.catalog.tokens.authenticate(new["token"], NOW_NS)
        assert (principal.name, principal.role) == ("local", TokenRole.ADMIN)
        listed = opened.catalog.tokens.list_all(principal.tenant)
        assert [token.name for token in listed] == ["local"], "tokens are new"
    assert not list(directory.path.glob("catalog.db?*")), "nothing is left beside the catalog"


def test_an_existing_catalog_is_not_replaced_by_default(directory: DataDirectory) -> None:
    before = contents(directory)
    assert "--replace" in rebuild(directory, code=1).stderr
    assert contents(directory) == before


def test_a_replaced_catalog_is_set_aside_complete_and_never_overwritten(
    directory: DataDirectory,
) -> None:
    before = directory.catalog.read_bytes()
    Path(f"{directory.catalog}-wal").write_bytes(b"what was written last")
    said = [json.loads(rebuild(directory, "--replace", "--json").stdout)]
    aside = Path(said[0]["aside"])
    assert re.fullmatch(r"catalog\.db\.\d{8}T\d{6}\.\d{6}Z", aside.name)
    assert aside.read_bytes() == before
    assert Path(f"{aside}-wal").read_bytes() == b"what was written last"
    assert not Path(f"{directory.catalog}-wal").exists()
    second = directory.catalog.read_bytes()
    again = Path(json.loads(rebuild(directory, "--replace", "--json").stdout)["aside"])
    assert again.read_bytes() == second
    assert aside.read_bytes() == before
    assert tenants(directory) == ["acme", "default"]


def test_leftover_logs_of_a_lost_catalog_never_reach_the_new_one(directory: DataDirectory) -> None:
    """SQLite would replay a write-ahead log into any database of that name."""
    lose_catalog(directory)
    wal = Path(f"{directory.catalog}-wal")
    wal.write_bytes(b"a log")
    aside = Path(json.loads(rebuild(directory, "--json").stdout)["aside"])
    assert Path(f"{aside}-wal").read_bytes() == b"a log"
    assert not wal.exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_dry_run_of_a_rebuild_reports_the_same_and_changes_nothing(
    directory: DataDirectory, there: bool
) -> None:
    if not there:
        lose_catalog(directory)
    before = contents(directory)
    done = rebuild(directory, "--dry-run")
    assert re.search(r"^tenants +2$", done.output, re.MULTILINE)
    assert "nothing was changed" in done.output
    assert contents(directory) == before
    said = json.loads(rebuild(directory, "--dry-run", "--json").stdout)
    assert (said["tenants"], said["problem_count"], said["aside"]) == (2, 0, None)
    assert contents(directory) == before


def test_a_rebuild_is_refused_beside_a_running_server(directory: DataDirectory) -> None:
    before = contents(directory)
    with directory.claimed():
        for flags in (["--replace"], ["--dry-run"]):
            assert f"process {os.getpid()}" in rebuild(directory, *flags, code=1).stderr
    assert contents(directory) == before


@pytest.mark.parametrize("lost", ["master.key", "store"])
def test_a_rebuild_without_key_or_store_is_refused(directory: DataDirectory, lost: str) -> None:
    (directory.path / lost).rename(directory.path.parent / "elsewhere")
    before = contents(directory)
    assert f"{lost} is missing" in rebuild(directory, "--replace", code=1).stderr
    assert contents(directory) == before


def test_with_another_master_key_the_existing_catalog_stays(directory: DataDirectory, tmp_path: Path) -> None:
    run("init", "--data", tmp_path / "other")
    directory.master_key.write_bytes((tmp_path / "other" / "master.key").read_bytes())
    before = contents(directory)
    assert "nothing can be rebuilt" in rebuild(directory, "--replace", code=1).stderr
    assert contents(directory) == before


def test_unusable_objects_are_named_and_set_the_exit_code(directory: DataDirectory) -> None:
    (directory.store / "thesis.odt").write_text("a stranger")
    with bootstrap.open_rooms(directory) as opened:
        tenant = bootstrap.tenant_named(opened, "acme")
        opened.catalog.tenants.keep_records(tenant.id, [as_pending(tenant.id, DeletedRecord(bytes(16), 5))])
        finish_missing(opened.tenants().get(tenant.id), opened.catalog)
        record = list(Records(opened.blobs, opened.keys.load(tenant.id)).list())[-1]
    (directory.store / record).write_bytes(b"?" * 200)
    done = rebuild(directory, "--replace", code=1)
    assert "2 things could not be used; everything else was:" in done.output
    assert f"\n  the record {record} is damaged" in done.output
    assert "thesis.odt: not an object of Staddle's" in done.output
    said = json.loads(rebuild(directory, "--replace", "--json", code=1).stdout)
    assert sorted(each["what"] for each in said["problems"]) == [record, "thesis.odt"]
    assert tenants(directory) == ["acme", "default"]


@pytest.mark.parametrize("empty", ["no bytes", "no rows"])
def test_an_emptied_catalog_beside_a_filled_store_is_refused(directory: DataDirectory, empty: str) -> None:
    lose_catalog(directory)
    directory.catalog.touch()
    if empty == "no rows":
        bootstrap.open_catalog(str(directory.catalog)).close()
    assert "rebuild --replace" in run("tenant", "list", "--data", directory.path, code=1).output
    with pytest.raises(DataDirectoryError, match="rebuild --replace"), bootstrap.open_rooms(directory):
        pass  # what a server begins with
    rebuild(directory, "--replace")
    assert tenants(directory) == ["acme", "default"]


def test_a_catalog_that_is_older_than_its_store_is_refused_and_changes_nothing(
    directory: DataDirectory, tmp_path: Path
) -> None:
    shutil.copy(directory.catalog, tmp_path / "catalog.db")
    with bootstrap.open_rooms(directory) as opened:
        bootstrap.set_grace(opened, bootstrap.tenant_named(opened, "acme"), 3600, NOW_NS)
    lose_catalog(directory)
    shutil.copy(tmp_path / "catalog.db", directory.catalog)
    before = contents(directory)
    for words in (("serve", "--listen", "127.0.0.1:0"), ("tenant", "list"), ("repair",), ("gc",)):
        said = run(*words, "--data", directory.path, code=1).output
        assert "is older than its store: it does not know 1 of the newest decisions" in said
        assert "rebuild --replace" in said
    found = run("check", "--json", "--data", directory.path, code=1).stdout.splitlines()
    assert [json.loads(each)["kind"] for each in found] == ["older-catalog", "summary"]
    said = run("check", "--data", directory.path, code=1).stdout
    assert (
        "\nNext: restore the newest copy of the catalog, or run `staddle-server rebuild --replace`." in said
    )
    assert "repair" not in said  # which is refused
    after = contents(directory)
    assert {name: after[name] for name in before if name != "catalog.db"} == {
        name: before[name] for name in before if name != "catalog.db"
    }
    rebuild(directory, "--replace")
    assert tenants(directory) == ["acme", "default"]


def test_a_damaged_catalog_names_the_rebuild(directory: DataDirectory) -> None:
    directory.catalog.write_bytes(b"this is no database, whatever else" * 300)
    for path in directory.path.glob("catalog.db-*"):
        path.unlink()
    said = run("tenant", "list", "--data", directory.path, code=1).output
    assert "is damaged" in said
    assert "staddle-server rebuild --replace" in said
    rebuild(directory, "--replace")
    assert tenants(directory) == ["acme", "default"]


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """End a rebuild before the n-th step that changes names; count these steps otherwise."""
    steps = [-1, 0]

    def before(real):
        def step(*arguments, **named):
            if steps[0] == steps[1]:
                raise Killed
            steps[1] += 1
            return real(*arguments, **named)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", before(os.link))
        patch.setattr(Path, "unlink", before(Path.unlink))
        patch.setattr(Path, "rename", before(Path.rename))
        # What a killed process leaves is not cleaned up.
        drop = FilePlace.drop_new
        patch.setattr(FilePlace, "drop_new", lambda self: None if steps[0] >= 0 else drop(self))
        yield steps


@pytest.mark.parametrize("step", range(6))
def test_a_rebuild_killed_while_it_changes_names_loses_nothing_and_can_be_repeated(
    directory: DataDirectory, kill_at: list[int], step: int
) -> None:
    wal = Path(f"{directory.catalog}-wal")
    old, log = directory.catalog.read_bytes(), b"what was written last"
    wal.write_bytes(log)
    kill_at[:] = [step, 0]
    killed = False
    try:
        bootstrap.rebuild(directory, NOW_NS, lambda *_: None, dry_run=False)
    except Killed:
        killed = True
    assert killed is (step < 5), "the steps are: two links, two removals, one rename"
    aside = Path(f"{directory.catalog}.20231114T221320.000000Z")
    in_place = directory.catalog.exists() and directory.catalog.read_bytes() == old
    if in_place:
        assert wal.read_bytes() == log
    else:
        assert (aside.read_bytes(), Path(f"{aside}-wal").read_bytes()) == (old, log)
    if not directory.catalog.exists():
        with pytest.raises(DataDirectoryError, match="rebuild"):
            directory.require()
    kill_at[:] = [-1, 0]
    rebuild(directory, "--replace")
    assert tenants(directory) == ["acme", "default"]
    kept = [path.read_bytes() for path in directory.path.glob("catalog.db.*Z")]
    assert old in kept


def test_after_a_kill_and_a_rebuild_every_acknowledged_backup_restores(server) -> None:
    """kill -9 in the middle of backups, and then the catalog is lost as well."""
    acknowledged: dict[str, dict[str, dict[str, bytes]]] = {}
    stopped = threading.Event()

    def work(client: int) -> None:
        rng, stub, dataset = random.Random(client), server.stub(), f"set-{client}"
        mine = acknowledged.setdefault(dataset, {})
        with suppress(grpc.RpcError):
            while not stopped.is_set():
                files = {f"f{i}": noise(rng.randrange(1, 200_000), rng.randrange(10**6)) for i in range(5)}
                mine[back_up(stub, dataset, files).id] = files

    threads = [threading.Thread(target=work, args=(client,)) for client in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(map(len, acknowledged.values())) >= 12)
    server.kill()
    stopped.set()
    for thread in threads:
        thread.join()
    directory = DataDirectory(server.data)
    lose_catalog(directory)
    rebuild(directory)
    server.start()
    stub = server.stub()
    for dataset, expected in acknowledged.items():
        found = backups(stub, dataset)
        assert {backup.id for backup in found} >= expected.keys()
        for backup in found:
            restored = restore(stub, dataset, backup={"backup": backup.id})
            assert restored.damages == []
            assert restored.files == expected.get(backup.id, restored.files)
