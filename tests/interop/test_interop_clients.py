"""Clients generated in Go, Node and Java from the protos alone: each backs up, lists and restores, also backups of others."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path

import pytest
from interop_clients import Foreign
from interop_tree import make_tree, read_times, read_tree
from staddle import Client


class Service:
    """The real server, as its client.toml names it."""

    def __init__(self, config: Path) -> None:
        read = tomllib.loads(config.read_text())
        self.address: str = read["server"]
        self.token: str = read["token"]


@pytest.fixture
def service(server) -> Service:
    return Service(server.config)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "tree"
    make_tree(root)
    return root


def lines(client: Foreign, service: Service, *arguments: str | bytes) -> list[dict]:
    """The output of a run that must succeed."""
    done = client.run(service.address, service.token, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_same(source: Path, restored: Path, time_unit_ns: int) -> None:
    want, got = read_tree(source), read_tree(restored)
    assert got.keys() == want.keys()
    assert [path for path in want if got[path] != want[path]] == []
    want_times, got_times = read_times(source), read_times(restored)
    off = {path: got_times[path] - want_times[path] for path in want}
    assert {path: each for path, each in off.items() if abs(each) >= time_unit_ns} == {}


def restored_by(client: Foreign, service: Service, dataset: str, source: Path, target: Path) -> None:
    """Restores with a client in another language, and compares."""
    (reported,) = lines(client, service, "restore", dataset, bytes(target))
    assert reported["entries"] == len(read_tree(source))
    assert reported["damaged"] == 0
    assert_same(source, target, client.time_unit_ns)


def restored_by_python(service: Service, dataset: str, source: Path, target: Path) -> None:
    with Client(service.address, service.token) as client:
        client.restore(dataset, target)
    assert_same(source, target, 1)


def test_every_client_restores_the_backups_of_every_other(
    foreign: Foreign, everyone: list[Foreign], service: Service, tree: Path, tmp_path: Path
) -> None:
    (made,) = lines(foreign, service, "backup", bytes(tree), "tree")
    assert made["entries"] == len(read_tree(tree))
    for each in everyone:
        restored_by(each, service, "tree", tree, tmp_path / each.name)
    restored_by_python(service, "tree", tree, tmp_path / "python")


def test_other_clients_restore_the_backups_of_python(
    foreign: Foreign, service: Service, tree: Path, tmp_path: Path
) -> None:
    with Client(service.address, service.token) as client:
        client.backup(tree, dataset="tree")
    restored_by(foreign, service, "tree", tree, tmp_path / "restored")


def test_a_list_names_each_backup_and_each_entry_of_the_newest(
    foreign: Foreign, service: Service, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    made = []
    for number in range(7):
        # Not UTF-8, so that a path comes back in its other field, too.
        with open(os.path.join(os.fsencode(source), b"d/\xff%d" % number), "xb") as file:
            file.write(b"%d" % number)
        made += lines(foreign, service, "backup", bytes(source), "list")
    listed = lines(foreign, service, "list", "list")
    assert listed[:7] == made[::-1]
    assert [bytes.fromhex(each["path_hex"]) for each in listed[7:]] == [
        b"d",
        *(b"d/\xff%d" % each for each in range(7)),
    ]
    assert [each["type"] for each in listed[7:]] == ["ENTRY_TYPE_DIRECTORY"] + ["ENTRY_TYPE_FILE"] * 7


def test_all_send_the_same_content_for_the_same_bytes(
    everyone: list[Foreign], service: Service, tree: Path
) -> None:
    listed = []
    for each in everyone:
        lines(each, service, "backup", bytes(tree), each.name)
        listed.append(lines(each, service, "list", each.name)[1:])
    assert listed == [listed[0]] * len(everyone)


def test_an_error_has_its_code_and_reason(
    foreign: Foreign, service: Service, tree: Path, tmp_path: Path
) -> None:
    def said(token: str, *arguments: str | bytes) -> tuple[int, str]:
        done = foreign.run(service.address, token, *arguments)
        return done.returncode, done.stderr.split(":")[1].strip()

    for command in (["list", "none"], ["restore", "none", bytes(tmp_path / "out")]):
        assert said(service.token, *command) == (1, "NOT_FOUND DATASET_NOT_FOUND")
        assert said("staddle_not_a_token", *command) == (1, "UNAUTHENTICATED UNAUTHENTICATED")
    assert said("staddle_not_a_token", "backup", bytes(tree), "tree") == (
        1,
        "UNAUTHENTICATED UNAUTHENTICATED",
    )
    assert said(service.token, "backup", bytes(tree), "d" * 256) == (1, "INVALID_ARGUMENT BAD_FIELD")
    assert not (tmp_path / "out").exists()


def test_damage_is_reported_and_the_rest_is_restored(
    foreign: Foreign, running, tree: Path, tmp_path: Path
) -> None:
    address, token = running.address, running.token("admin")
    assert foreign.run(address, token, "backup", bytes(tree), "tree").returncode == 0
    (pack, *others) = sorted(
        (running.root / "store" / "packs").rglob("*"), key=lambda each: -each.stat().st_size
    )
    assert all(each.stat().st_size < 5 << 20 for each in others)
    running.restart()
    with pack.open("r+b") as file:
        # Every file but the large ones is smaller than a segment: in the middle lie those.
        file.seek(pack.stat().st_size // 2)
        flipped = bytes(each ^ 1 for each in file.read(1))
        file.seek(-1, os.SEEK_CUR)
        file.write(flipped)

    target = tmp_path / "restored"
    done = foreign.run(running.address, token, "restore", "tree", bytes(target))
    assert done.returncode == 3, done.stderr
    assert "is damaged" in done.stderr
    want, got = read_tree(tree), read_tree(target)
    lost = want.keys() - got.keys()
    assert lost
    assert all(len(want[path].content) > 64 << 10 for path in lost)
    assert {path: want[path] for path in got} == got
