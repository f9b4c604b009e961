"""A test that fails on a command shows the command's output, however the test checked its exit code."""

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "--tb=short"]
FAILING = """
import subprocess

import pytest
from servers import ServerProcess

COMMAND = ["sh", "-c", "seq -s' ' 90 >&2; echo the reason of {} >&2; exit 3"]


def ends(name, **options):
    return subprocess.run([*COMMAND[:2], COMMAND[2].format(name)], capture_output=True, text=True, **options)


def test_a_code_that_is_compared():
    done = ends("one")
    assert done.returncode == 0


def test_a_code_that_is_checked():
    ends("two", check=True)


@pytest.fixture
def served(tmp_path):
    (tmp_path / "data.log").write_text("the log of three")
    return ServerProcess(tmp_path / "data")


def test_beside_a_server(served):
    raise RuntimeError
"""


def test_a_failed_test_shows_standard_error_and_the_log_of_its_server(tmp_path: Path) -> None:
    (tmp_path / "test_failing.py").write_text(FAILING)
    done = subprocess.run(
        [*PYTEST, "-c", TESTS.parent / "pyproject.toml", "--rootdir", tmp_path, tmp_path],
        env={"PYTHONPATH": f"{TESTS}:{TESTS / 'wire'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 failed" in done.stdout
    for expected in ("the reason of one", "the reason of two", "the log of three"):
        assert expected in done.stdout
