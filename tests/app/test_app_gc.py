"""`staddle-server gc` and `tenant set`, as operators type them beside a running server."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from staddle.v1 import service_pb2 as sv
from staddle_server.catalog import open_catalog
from staddle_server.cli.run import group
from thin import back_up, noise, restore

COMMAND = str(Path(sys.executable).with_name("staddle-server"))


def run(*words):
    """The command, without a terminal."""
    return CliRunner().invoke(group, [str(word) for word in words])


def on_a_terminal(answer, *words):
    """Run the installed command on a terminal; return what it shows, and its exit code."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [COMMAND, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"COLUMNS": "80"},
    ) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        shown = b""
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:
            pass  # the other end was closed
        os.close(ours)
        return process.wait(60), shown.decode()


def _fill(server):
    """A backup that is kept, and one that is deleted."""
    stub = server.stub()
    back_up(stub, "kept", {"k": noise(300_000, 1)})
    gone = back_up(stub, "gone", {"g": noise(300_000, 2)})
    stub.DeleteBackup(sv.DeleteBackupRequest(dataset="gone", backup=gone.id))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The place of a filled data directory, for the next test."""
    return tmp_path_factory.mktemp("made") / "d"


@pytest.fixture
def data(made, tmp_path, request):
    """A filled data directory; a server runs once, to fill the first one."""
    if not made.exists():
        server = request.getfixturevalue("server")
        _fill(server)
        server.stop()
        shutil.copytree(server.data, made)
    return shutil.copytree(made, tmp_path / "d")


def _packs(data):
    return sorted(path.name for path in (data / "store" / "packs").rglob("*") if path.is_file())


def test_gc_beside_a_server_reports_its_plan_and_its_result(server):
    _fill(server)
    data = server.data
    before = _packs(data)
    said = run("gc", "--data", data).output
    assert re.fullmatch(
        r"default: 1 deleted backup can still be undeleted; the first goes after \d{4}-\d\d-\d\d \d\d:\d\d UTC\n",
        said,
    )
    ahead = run("gc", "--data", data, "--dry-run", "--grace", "0")
    assert ahead.exit_code == 0
    assert "1 deleted backup would be purged" in ahead.output
    assert re.search(r"293\.\d KiB would be freed now", ahead.output)
    assert _packs(data) == before
    done = run("gc", "--data", data, "--grace", "0", "--yes")
    assert done.exit_code == 0
    assert "1 deleted backup purged" in done.output
    assert "1 pack without live data (293." in done.output
    assert re.search(r"293\.\d KiB freed now", done.output)
    assert len(_packs(data)) == 1
    assert restore(server.stub(), "kept").files == {"k": noise(300_000, 1)}


def test_gc_as_json_has_every_figure_and_times_as_text(data):
    done = run("gc", "--data", data, "--grace", "1h", "--yes", "--json")
    (row,) = map(json.loads, done.output.splitlines())
    assert (row["tenant"], row["dry_run"], row["backups_purged"], row["failure"]) == ("default", False, 0, "")
    assert run("tenant", "set", "default", "--grace", "0s", "--data", data).exit_code == 0
    (row,) = map(json.loads, run("gc", "--data", data, "--json").output.splitlines())
    assert (row["backups_purged"], row["packs_condemned"], row["bytes_freed"]) == (1, 1, 0)
    assert row["bytes_waiting"] > 300_000
    assert re.fullmatch(r"20\d\d-.*Z", row["free_by"])


def test_gc_with_a_shorter_grace_refuses_without_a_terminal_and_without_yes(data):
    before = _packs(data)
    refused = run("gc", "--data", data, "--grace", "0")
    assert refused.exit_code == 2
    assert "--yes" in refused.output
    assert run("gc", "--data", data, "--grace", "soon").exit_code == 2
    assert _packs(data) == before


def test_gc_with_a_shorter_grace_asks_on_a_terminal_and_lists_what_would_be_lost(data):
    before = _packs(data)
    code, shown = on_a_terminal("n\n", "gc", "--data", data, "--grace", "0")
    assert code == 1
    assert "purges 1 deleted backup, which then cannot be undeleted, and removes 1 pack" in " ".join(
        shown.split()
    )
    assert max(map(len, re.sub(r"\x1b\[K", "", shown).splitlines())) <= 80
    assert _packs(data) == before
    code, shown = on_a_terminal("y\n", "gc", "--data", data, "--grace", "0")
    assert code == 0
    assert "freed now" in shown
    assert len(_packs(data)) == 1


def test_gc_of_a_tenant_on_hold_after_a_rebuild_fails_until_the_operator_allows_it(data):
    catalog = open_catalog(str(data / "catalog.db"))
    tenant = catalog.tenants.get_by_name("default")
    catalog.tenants.set_gc_waits(tenant.id, waits=True)
    waits = run("gc", "--data", data)
    assert waits.exit_code == 1
    assert "NOT COLLECTED: collection waits for you" in waits.output
    assert run("gc", "--data", data, "--after-rebuild").exit_code == 2
    (row,) = map(json.loads, run("tenant", "list", "--data", data, "--json").output.splitlines())
    assert row["collection"] == "waits for you"
    assert run("gc", "--data", data, "--after-rebuild", "--yes").exit_code == 0
    assert not catalog.tenants.get_by_name("default").gc_waits
    catalog.close()


def test_gc_during_another_collection_names_the_collector(data):
    catalog = open_catalog(str(data / "catalog.db"))
    fence = catalog.gc_lease.acquire("the cellar", time.time_ns(), 120)
    refused = run("gc", "--data", data)
    assert refused.exit_code == 1
    assert "the cellar is collecting or repairing" in refused.output
    catalog.gc_lease.release(fence)
    assert run("gc", "--data", data).exit_code == 0
    catalog.close()


def test_a_tenants_grace_is_set_recorded_and_shown(data):
    before = len(list((data / "store" / "records").rglob("*-*")))
    done = run("tenant", "set", "default", "--grace", "30d", "--data", data)
    assert done.output == "Deleted backups of the tenant default can be undeleted for 30d.\n"
    assert len(list((data / "store" / "records").rglob("*-*"))) == before + 1
    (row,) = map(json.loads, run("tenant", "list", "--data", data, "--json").output.splitlines())
    assert (row["grace"], row["collection"]) == ("30d", "")
    assert run("tenant", "set", "nobody", "--grace", "1d", "--data", data).exit_code == 1
    assert run("tenant", "set", "default", "--grace", "40000d", "--data", data).exit_code == 2
