"""Commands that root runs act as the owner of the data directory, so the server, which runs as that user, can read their files."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import forked
import pytest
from staddle_server.app.owner import owner_of
from staddle_server.cli.run import group

COMMAND = Path(sys.executable).parent / "staddle-server"
UID, GID = 54_321, 54_322
START_S = 60

pytestmark = pytest.mark.usefixtures("only_root")

ARGUMENTS = {
    "tenant create": ["second"],
    "tenant set": ["default", "--grace", "1d"],
    "token create": ["--role", "reader", "--name", "r"],
    "token revoke": ["local"],
    "gc": ["--grace", "0", "--yes"],
    "check": ["--read-data"],
    "drill": [],
    "rebuild": ["--replace"],
    "adopt": [],
    "clock": ["--confirm"],
    "health": [],
    "parity": ["--percent", "10"],
    "repair": [],
    "replicate": ["--status"],
    "tenant list": [],
    "token list": [],
    "uploads": [],
    "servers": [],
    "events": [],
    "notify list": [],
    "notify test": [],
    "lock": [],
}
"""What each command needs beside --data, to do something."""
EXITS = {"health": 1, "notify test": 1}
"""Where that is not 0: no server runs, and there is no target."""


def leaves(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from leaves(found, f"{path} {name}".strip())
    else:
        yield path, command


ELSEWHERE = {
    "init": "test_an_empty_directory_of_another_user_is_filled_as_that_user",
    "serve": "test_parity_collection_and_serving_leave_all_files_to_the_owner",
    "cert": "test_a_new_directory_belongs_to_the_owner_of_its_parent",
}
"""Commands that make what others work on, and the tests that say whose their files are."""
WITH_DATA = sorted(
    name
    for name, command in leaves(group)
    if any(parameter.name == "data" for parameter in command.params) and name not in {"init", "serve"}
)


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that every user can reach, which pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="staddle-owner-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def data(base: Path) -> Path:
    """A data directory of another user, with a stored backup."""
    path = base / "data"
    path.mkdir()
    os.chown(path, UID, GID)
    done = run("init", "--data", path)
    assert done.returncode == 0, done.stderr
    return path


def run(*words: object) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STADDLED_")}
    return forked.run(
        [COMMAND, *map(str, words)], env=clean, capture_output=True, text=True, timeout=120, check=False
    )


def strangers(path: Path) -> list[tuple[str, int, int]]:
    """What below `path` is not its owner's."""
    found = [(str(each), each.lstat().st_uid, each.lstat().st_gid) for each in [path, *path.rglob("*")]]
    return [each for each in found if each[1:] != (UID, GID)]


def test_an_empty_directory_of_another_user_is_filled_as_that_user(data: Path) -> None:
    assert strangers(data) == []
    assert (data / "master.key").exists()


def test_every_command_has_a_row() -> None:
    assert set(ARGUMENTS) == set(WITH_DATA)
    assert set(ARGUMENTS) | set(ELSEWHERE) == {name for name, _ in leaves(group)}
    assert {*ELSEWHERE.values()} <= set(globals())


@pytest.mark.parametrize("name", WITH_DATA)
def test_a_command_run_by_root_leaves_only_files_that_the_owner_can_read(data: Path, name: str) -> None:
    done = run(*name.split(), *ARGUMENTS[name], "--data", data)
    assert done.returncode == EXITS.get(name, 0), done.stderr
    assert strangers(data) == []


def test_parity_collection_and_serving_leave_all_files_to_the_owner(data: Path) -> None:
    source = data.parent / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(300_000))
    with (data.parent / "log").open("w") as log:
        server = forked.start(
            [COMMAND, "serve", "--data", data, "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert server.stdout is not None
        printed = iter(server.stdout.readline, "")
        assert any("Ctrl-C stops" in line for line in printed), (data.parent / "log").read_text()
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
        assert f"Gid:\t{GID}\t{GID}\t{GID}\t{GID}\n" in status
        assert f"Groups:\t{GID} \n" in status, "none of root's groups"
        staddle = COMMAND.with_name("staddle")
        environment = {**os.environ, "STADDLE_CONFIG": str(data / "client.toml")}
        done = forked.run(
            [staddle, "backup", source, "--dataset", "d"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for words in (
            ["gc", "--grace", "0", "--yes"],
            ["check", "--read-data"],
            ["repair"],
            ["parity", "--percent", "10"],
        ):
            done = run(*words, "--data", data)
            assert done.returncode == 0, done.stderr
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=START_S)
    assert list((data / "store" / "parity").rglob("*")), "the parity was made"
    assert strangers(data) == []


def test_a_new_directory_belongs_to_the_owner_of_its_parent(base: Path) -> None:
    home = base / "home"
    home.mkdir()
    os.chown(home, UID, GID)
    path = home / "a" / "b"
    assert owner_of(path) == (UID, GID)
    done = run("init", "--data", path)
    assert done.returncode == 0, done.stderr
    done = run("cert", "--dir", home / "tls")
    assert done.returncode == 0, done.stderr
    assert strangers(home) == []


def test_a_volume_of_root_with_data_of_another_user_is_handled_as_that_user(data: Path) -> None:
    os.chown(data, 0, 0)
    data.chmod(0o777)
    done = run("tenant", "create", "second", "--data", data)  # with files of its own in the store
    assert done.returncode == 0, done.stderr
    assert [path for path, *_ in strangers(data)] == [str(data)]


@pytest.mark.parametrize(
    "part", ["a linked key", "a mounted key", "a catalog put back", "a store on another disk"]
)
def test_a_part_that_belongs_to_root_does_not_make_the_data_those_of_root(data: Path, part: str) -> None:
    """Secrets of containers and copies made by root belong to root, and the server's user may read them."""
    of_root = data / "master.key"
    if part == "a linked key":
        secret = data.parent / "secret"
        of_root.rename(secret)
        of_root.symlink_to(secret)
        os.chown(secret, 0, 0)
    elif part == "a catalog put back":
        of_root = data / "catalog.db"
    elif part == "a store on another disk":
        of_root = data / "store"
    os.chown(of_root, 0, 0, follow_symlinks=False)
    before = strangers(data)
    assert owner_of(data) == (UID, GID)
    run("gc", "--grace", "0", "--yes", "--data", data)
    run("tenant", "create", "second", "--data", data)
    assert strangers(data) == before, "nothing else belongs to root now"


def test_if_root_cannot_become_the_owner_nothing_changes_and_the_error_says_what_to_do(
    data: Path,
) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv (util-linux) takes capabilities away, and is not installed")
    before = sorted((str(each), each.lstat().st_mtime_ns) for each in data.rglob("*"))
    done = subprocess.run(
        [setpriv, "--bounding-set", "-setuid,-setgid", COMMAND, "gc", "--data", data],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"belongs to uid {UID}, and root cannot act as that user here" in done.stderr
    assert "nothing was changed; run this as that user" in done.stderr
    assert sorted((str(each), each.lstat().st_mtime_ns) for each in data.rglob("*")) == before
