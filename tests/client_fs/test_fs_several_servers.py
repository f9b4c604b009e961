"""Directories over several servers on one catalog and one store, of which one goes away."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from balancer import Balancer
from call_log import each_call
from cut import Line
from servers import Running
from several_servers import sharing
from staddle import Client

MIB = 1024 * 1024
Fields = Mapping[str, Any]


def methods(calls: list[Fields]) -> list[str]:
    return [each["method"] for each in calls]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[Running]]:
    with sharing(tmp_path / "service", "", 2) as made:
        yield made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root, seeded = tmp_path / "tree", random.Random(3)
    root.mkdir()
    for number in range(24):
        (root / f"f{number:02}").write_bytes(seeded.randbytes(MIB))
    return root


def same(one: Path, other: Path) -> bool:
    return {each.name: each.read_bytes() for each in one.iterdir()} == {
        each.name: each.read_bytes() for each in other.iterdir()
    }


def using(first: str, second: str, token: str) -> Client:
    """A client of both that uses the first."""
    for _ in range(64):
        client = Client(f"{first},{second}", token)
        if client.address == first:
            return client
        client.close()
    raise AssertionError("the addresses are not shuffled")


@pytest.mark.parametrize(
    "thin", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["source-side", "thin"]
)
def test_a_backup_continues_on_the_other_server_when_its_connection_is_cut(
    two: list[Running], tree: Path, tmp_path: Path, *, thin: bool
) -> None:
    """The server that was cut off lives, so the other one says that it writes the upload, at an address that the client does not have."""
    calls: list[Fields] = []
    with (
        Line(two[0].port, 8 * MIB) as line,
        using(line.address, two[1].address, two[0].token()) as client,
    ):
        with each_call(calls.append):
            client.backup(tree, dataset="d", thin=thin, retry_s=60)
        assert methods(calls).count("ResumeUpload") == 1
        assert client.address == two[1].address
        client.restore("d", tmp_path / "out")
    assert same(tree, tmp_path / "out")


def test_a_backup_continues_on_the_other_server_when_its_own_shuts_down(
    two: list[Running], tree: Path, tmp_path: Path
) -> None:
    calls: list[Fields] = []

    def take(fields: Fields) -> None:
        calls.append(fields)
        if fields["method"] == "PutChunks":
            # As the beginning of `drain`, which would wait for this call.
            two[0].service._heartbeat.drain()
            two[0].service._gate.close()

    with using(two[0].address, two[1].address, two[0].token()) as client:
        with each_call(take):
            client.backup(tree, dataset="d", retry_s=60)
        assert methods(calls).count("ResumeUpload") == 1
        assert "DRAINING" in [each.get("reason") for each in calls]
        client.restore("d", tmp_path / "out")
    assert same(tree, tmp_path / "out")


def test_a_restore_continues_on_the_other_server_behind_what_arrived(
    two: list[Running], tree: Path, tmp_path: Path
) -> None:
    with Client(two[1].address, two[0].token()) as client:
        client.backup(tree, dataset="d")
    with (
        Line(two[0].port, 8 * MIB) as line,
        using(line.address, two[1].address, two[0].token()) as client,
    ):
        report = client.restore("d", tmp_path / "out")
        assert client.address == two[1].address
    assert same(tree, tmp_path / "out")
    assert report.data_bytes == 24 * MIB


def test_an_open_file_is_read_on_from_the_other_server(two: list[Running], tree: Path) -> None:
    with Line(two[0].port) as line, using(line.address, two[1].address, two[0].token()) as client:
        client.backup(tree, dataset="d")
        with client.open("d", "f07") as file:
            head = file.read(MIB // 2)
            line.cut()
            assert head + file.read() == (tree / "f07").read_bytes()


@pytest.mark.parametrize(
    "by_upload", [pytest.param(True, marks=pytest.mark.slow), False], ids=["hashed", "dealt out"]
)
def test_a_backup_through_a_balancer_of_calls_is_never_taken_over(
    two: list[Running], tree: Path, tmp_path: Path, *, by_upload: bool
) -> None:
    balancer = Balancer([each.address for each in two], by_upload=by_upload)
    calls: list[Fields] = []
    try:
        with Client(balancer.address, two[0].token()) as client, each_call(calls.append):
            client.backup(tree, dataset="d")
            client.restore("d", tmp_path / "out")
    finally:
        balancer.stop()
    assert same(tree, tmp_path / "out")
    assert "ResumeUpload" not in methods(calls)
    assert ("WRONG_SERVER" in [each.get("reason") for each in calls]) is not by_upload
