"""Whatever stands in the store in place of an object, everything that reads it stays within one bound of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from staddle_server.base.limits import STORED_MEMORY_MAX
from staddle_server.cli.run import COMMANDS
from stored_bounds import HOSTILE, READERS

# One worker measures for both tests.
pytestmark = pytest.mark.xdist_group("stored bounds")
HERE = Path(__file__).parent
OF_COMMANDS = {
    "serve": {
        "start",
        "restore",
        "list",
        "compare",
        "range",
        "backup",
        "scrub",
        "drill",
        "packs",
        "retention",
        "replicate",
    },
    "init": set(),  # its directory is empty
    "tenant": {"start"},
    "parity": {"parity", "copies"},
    "gc": {"gc"},
    "drill": {"drill"},
    "check": {"check", "check --read"},
    "repair": {"repair"},
    "rebuild": {"rebuild"},
    "replicate": {"replicate"},
    "adopt": {"adopt"},
    # These read the catalog and no stored object.
    "health": set(),
    "servers": set(),
    "token": set(),
    "uploads": set(),
    "clock": set(),
    "events": set(),
    "notify": set(),
    "lock": {"check"},  # the records that the store lacks
    "cert": set(),
}
"""Which readers stand for each command of the server."""


@pytest.fixture(
    scope="module",
    params=[("heads", "keys"), pytest.param(tuple(HOSTILE), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """One process of its own, in which each reader reads each hostile object."""
    pytest.importorskip("pyeclib", reason="parity objects are made with it")
    place = tmp_path_factory.mktemp("bounds")
    path = os.pathsep.join([str(HERE.parent / "support"), *sys.path])
    done = subprocess.run(
        [sys.executable, HERE / "stored_bounds.py", place, *request.param],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout) | {"hostile": request.param}


def test_every_reader_of_every_hostile_object_stays_within_the_bound(measured) -> None:
    rows = measured["rows"]
    assert len(rows) == len(READERS) * (1 + sum(len(HOSTILE[kind]) for kind in measured["hostile"]))
    over = [row for row in rows if row[3] > STORED_MEMORY_MAX or row[4].startswith("FAULT")]
    assert over == [], "kind, what stands there, reader, bytes, what it said"
    whole = [row for row in rows if row[0] == "nothing"]
    assert {row[4] for row in whole} == {"read"}, "the readers do read where nothing is wrong"


def test_every_kind_of_stored_object_and_every_command_has_its_rows(measured) -> None:
    assert set(measured["kinds"]) == set(HOSTILE), "a new kind of object needs hostile ones here"
    assert set(COMMANDS) == set(OF_COMMANDS), "a new command that reads the store needs a reader here"
    assert set().union(*OF_COMMANDS.values()) == set(READERS)
