"""The database fails over to a standby that lacks its newest transactions, as docs/cluster.md describes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import postgres_server
import pytest
from click.testing import CliRunner, Result
from servers import NOTHING_BY_ITSELF, ServerProcess
from staddle.v1 import resources_pb2 as pb
from staddle_server.cli.run import group
from thin import back_up, noise, restore, wait_until

pytestmark = pytest.mark.slow

ONE, TWO, THREE = {"a": noise(200_000, 1)}, {"a": noise(200_000, 2)}, {"a": noise(200_000, 3)}


def without_connections(database: str, *statements: str) -> None:
    """Runs these while nobody is connected to the database."""
    execute = postgres_server.shared().execute
    execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    execute(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{database}'")
    for statement in statements:
        execute(statement)


@pytest.fixture
def database() -> str:
    postgres_server.need()
    return postgres_server.shared().new_database()


@pytest.fixture
def server(database: str, tmp_path: Path) -> Iterator[ServerProcess]:
    flags = (*NOTHING_BY_ITSELF, "--catalog", postgres_server.shared().url(database))
    made = ServerProcess(tmp_path / "data", flags=flags)
    made.start()
    yield made
    made.stop()


def answers(server: ServerProcess) -> bool:
    try:
        restore(server.stub(), "www")
    except grpc.RpcError:
        return False
    return True


def run(server: ServerProcess, *arguments: str) -> Result:
    return CliRunner().invoke(group, [*arguments, "--data", str(server.data)])


def test_after_a_failover_that_lost_acknowledged_backups_nothing_is_collected_and_a_rebuild_brings_them_back(
    server: ServerProcess, database: str
) -> None:
    back_up(server.stub(), "www", ONE)
    standby = f"{database}_standby"
    without_connections(database, f"CREATE DATABASE {standby} TEMPLATE {database}")
    postgres_server.shared().execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    wait_until(lambda: answers(server))
    lost = back_up(server.stub(), "www", TWO)

    without_connections(
        database,
        f"ALTER DATABASE {database} RENAME TO {database}_gone",
        f"ALTER DATABASE {standby} RENAME TO {database}",
    )
    wait_until(lambda: answers(server))
    assert restore(server.stub(), "www").files == ONE
    after = back_up(server.stub(), "www", THREE)
    assert after.number == lost.number

    collected = run(server, "gc", "--grace", "0", "--yes")
    assert (collected.exit_code, "is older than its store" in collected.output) == (1, True), collected.output
    checked = run(server, "check")
    assert (checked.exit_code, "the catalog is older than the store" in checked.output) == (1, True), (
        checked.output
    )
    assert server.stop() == 0
    refused = run(server, "serve")
    assert (refused.exit_code, "is older than its store" in refused.output) == (1, True), refused.output

    rebuilt = run(server, "rebuild", "--replace")
    assert "backups   3" in rebuilt.output, rebuilt.output
    assert "1 thing could not be used" in rebuilt.output
    assert "two histories of this store were mixed" in rebuilt.output
    server.start()
    stub = server.stub()
    found = [restore(stub, "www", backup=pb.BackupSelector(backup=each.id)).files for each in (lost, after)]
    assert found == [TWO, THREE]
    checked = run(server, "check", "--read-data", "--json")
    findings = [json.loads(line) for line in checked.output.splitlines()]
    assert {(each["kind"], each["severity"]) for each in findings if "severity" in each} == {
        ("record-order", "healed")
    }
    assert checked.exit_code == 0, checked.output
    assert run(server, "gc", "--after-rebuild", "--yes").exit_code == 0
    assert restore(stub, "www").files == THREE
