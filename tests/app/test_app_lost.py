"""A data directory with a missing or replaced part: every command refuses, names the part, and changes nothing."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from staddle_server.app import bootstrap
from staddle_server.app.data_directory import DataDirectory
from staddle_server.store.open import open_blobs
from test_app_cli import run

NOW_NS = 1_700_000_000_000_000_000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A complete directory, whose catalog matches its store."""
    path = tmp_path / "data"
    assert run("init", "--data", path).returncode == 0
    return path


def state(path: Path) -> list[tuple[str, int, int, int]]:
    """Everything in the directory, so that any change shows."""
    found = []
    for each in sorted([path, *path.rglob("*")]):
        status = each.lstat()
        found.append((str(each), status.st_mode, status.st_size, status.st_mtime_ns))
    return found


# --- possible losses


def unmounted(path: Path) -> None:
    shutil.rmtree(path / "store")


def mount_point(path: Path) -> None:
    shutil.rmtree(path / "store")
    (path / "store").mkdir()


def another_file_system(path: Path) -> None:
    mount_point(path)
    (path / "store" / "lost+found").mkdir()


def somebody_elses_file_system(path: Path) -> None:
    mount_point(path)
    (path / "store" / "photo.jpg").touch()


def dangling_store(path: Path) -> None:
    shutil.rmtree(path / "store")
    (path / "store").symlink_to("/nowhere/store")


def store_is_a_file(path: Path) -> None:
    shutil.rmtree(path / "store")
    (path / "store").touch()


def format_gone(path: Path) -> None:
    (path / "store" / "format").unlink()


def key_gone(path: Path) -> None:
    (path / "master.key").unlink()


def key_and_catalog_gone(path: Path) -> None:
    key_gone(path)
    catalog_gone(path)


def key_is_a_directory(path: Path) -> None:
    (path / "master.key").unlink()
    (path / "master.key").mkdir()


def dangling_key(path: Path) -> None:
    (path / "master.key").unlink()
    (path / "master.key").symlink_to("/nowhere/master.key")


def catalog_gone(path: Path) -> None:
    for part in path.glob("catalog.db*"):
        part.unlink()


def catalog_of_no_bytes(path: Path) -> None:
    catalog_gone(path)
    (path / "catalog.db").touch()


def catalog_is_a_directory(path: Path) -> None:
    catalog_gone(path)
    (path / "catalog.db").mkdir()


def dangling_catalog(path: Path) -> None:
    catalog_gone(path)
    (path / "catalog.db").symlink_to("/nowhere/catalog.db")


def all_but_the_clients_file(path: Path) -> None:
    key_and_catalog_gone(path)
    unmounted(path)


def packs_on_a_disk_that_is_gone(path: Path) -> None:
    shutil.rmtree(path / "store" / "packs", ignore_errors=True)
    (path / "store" / "packs").symlink_to("/nowhere/packs")


def tmp_is_a_file(path: Path) -> None:
    shutil.rmtree(path / "store" / "tmp")
    (path / "store" / "tmp").touch()


LOST: list[tuple[Callable[[Path], None], str]] = [
    (unmounted, r"/store is missing: is its file system mounted\?"),
    (mount_point, r"/store is not a store .*is its file system mounted\?"),
    (another_file_system, r"/store is not a store .*is its file system mounted\?"),
    (somebody_elses_file_system, r"/store is not empty and is not a Staddle store.*found photo\.jpg"),
    (dangling_store, r"/store is a link to /nowhere/store, which is missing: is its file system mounted\?"),
    (store_is_a_file, r"/store is not a directory"),
    (format_gone, r"/store/format is missing, but the store is filled"),
    (
        packs_on_a_disk_that_is_gone,
        r"/store/packs is a link to /nowhere/packs, which is missing: is its file",
    ),
    (tmp_is_a_file, r"/store/tmp is not a directory"),
    (key_gone, r"/master\.key is missing"),
    (key_and_catalog_gone, r"/master\.key is missing"),
    (key_is_a_directory, r"/master\.key is a directory instead of a file.*containers"),
    (dangling_key, r"/master\.key is a link to /nowhere/master\.key, which is missing"),
    (catalog_gone, r"/catalog\.db is missing, but .*/store is filled: .*rebuild --data"),
    (catalog_of_no_bytes, r"/catalog\.db is empty, but .*/store is filled: .*rebuild --replace --data"),
    (catalog_is_a_directory, r"/catalog\.db is a directory instead of a file"),
    (dangling_catalog, r"/catalog\.db is a link to /nowhere/catalog\.db, which is missing"),
    (all_but_the_clients_file, r"/client\.toml shows that a server ran here, but .* are missing"),
]
COMMANDS = [
    ["init"],
    ["serve", "--listen", "127.0.0.1:0"],
    ["check"],
    ["repair"],
    ["gc"],
    ["token", "list"],
    ["tenant", "create", "t"],
]


@pytest.mark.parametrize(("lose", "says"), LOST, ids=[lose.__name__ for lose, _ in LOST])
def test_every_command_refuses_an_incomplete_directory_and_changes_nothing(
    data: Path, lose: Callable[[Path], None], says: str
) -> None:
    lose(data)
    before = state(data)
    for words in COMMANDS:
        done = run(*words, "--data", data)
        assert done.returncode == 1, (words, done)
        assert re.search(says, done.stderr), (words, done.stderr)
        assert "Made" not in done.stdout
        assert state(data) == before, words


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        *(each for each in LOST if "store" in each[0].__name__),
        (unmounted, r"/store is missing"),
        (mount_point, r"/store is not a store"),
        (format_gone, r"/store/format is missing"),
        (key_gone, r"/master\.key is missing"),
        (key_is_a_directory, r"/master\.key is a directory"),
        (catalog_is_a_directory, r"/catalog\.db is a directory"),
    ],
)
@pytest.mark.parametrize("flag", ["--replace", "--dry-run"])
def test_a_rebuild_from_an_invalid_store_is_refused_and_the_catalog_stays(
    data: Path, lose: Callable[[Path], None], says: str, flag: str
) -> None:
    lose(data)
    before = state(data)
    done = run("rebuild", flag, "--data", data)
    assert done.returncode == 1
    assert re.search(says, done.stderr), done.stderr
    assert state(data) == before


def test_a_rebuild_from_another_servers_new_store_does_not_replace_a_catalog(data: Path) -> None:
    mount_point(data)
    bootstrap.create_format(open_blobs(str(data / "store")))
    before = state(data)
    done = run("rebuild", "--replace", "--data", data)
    assert done.returncode == 1
    assert "/store is empty, so the catalog cannot be rebuilt from it" in done.stderr
    assert state(data) == before


def test_a_store_on_a_separate_file_system_may_be_mounted_before_the_first_start(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "data", tmp_path / "disk"
    path.mkdir()
    (elsewhere / "lost+found").mkdir(parents=True)
    (path / "store").symlink_to(elsewhere)
    done = run("init", "--data", path)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "format").exists()
    assert DataDirectory(path).is_complete()


def test_a_link_to_a_store_that_is_not_mounted_yet_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(tmp_path / "nowhere")
    done = run("init", "--data", tmp_path)
    assert done.returncode == 1
    assert "/store is a link to" in done.stderr
    assert os.listdir(tmp_path) == ["store"]
