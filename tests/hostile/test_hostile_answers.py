"""Whatever a server answers, the client ends with an error that names the answer and the server, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_acts import ACTS
from hostile_answers import HOSTILE
from hostile_server import METHODS, MIB

HERE = Path(__file__).parent
MEMORY_MAX = 160 * MIB
"""Beyond what the client and this server in the same process take without. One message is 4 MiB, and is several times in there."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory):
    """What came of each row, in one process."""
    place = tmp_path_factory.mktemp("answers")
    (place / "outside").mkdir()
    done = subprocess.run(
        [sys.executable, HERE / "hostile_answers.py", place],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_hostile_answer_is_an_error_of_the_library_that_names_the_server(tried) -> None:
    wrong = [
        row
        for row in tried["rows"]
        if row["error"].startswith(("FAULT", "NO ERROR"))
        or (row["error"].startswith("ProtocolError") and tried["address"] not in row["error"])
    ]
    assert wrong == []
    assert [row for row in tried["honest"] if not row["error"].startswith("NO ERROR")] == []


def test_no_hostile_answer_exceeds_the_memory_bound_or_writes_outside_the_target(tried) -> None:
    assert [row for row in tried["rows"] if row["bytes"] > MEMORY_MAX] == []
    assert tried["left"] == ["outside", "source", "target"]


def test_every_call_of_the_service_has_its_rows(tried) -> None:
    assert set(METHODS) == set(HOSTILE) == set(ACTS), (
        "a new call needs hostile answers, and an act that makes it"
    )
    assert all(HOSTILE.values())
    assert {row["method"] for row in tried["rows"]} == set(METHODS)
