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


USERS = """
import os

import pytest

os.geteuid = lambda: int(os.environ["USER_OF_TESTS"])
slow = pytest.mark.slow


@pytest.fixture
def mounted(only_root):
    pass


def test_for_all(): ...


def test_for_root(only_root): ...


@slow
def test_slow(): ...


@slow
def test_slow_for_root(mounted): ...


@slow
def test_slow_without_a_program():
    pytest.skip("no Azurite: it is not installed")


@slow
@pytest.mark.skipif(os.geteuid() != 0, reason="another kind of root")
def test_slow_and_lost(): ...
"""


def outcome(tmp_path: Path, source: str, *arguments: str, **environment: str) -> str:
    """What pytest says of these tests."""
    (tmp_path / "test_given.py").write_text(source)
    return subprocess.run(
        [*PYTEST, "-c", TESTS.parent / "pyproject.toml", "--rootdir", tmp_path, *arguments, tmp_path],
        env={"PYTHONPATH": f"{TESTS}:{TESTS / 'wire'}", "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def test_a_failed_test_shows_standard_error_and_the_log_of_its_server(tmp_path: Path) -> None:
    shown = outcome(tmp_path, FAILING)
    assert "3 failed" in shown
    for expected in ("the reason of one", "the reason of two", "the log of three"):
        assert expected in shown


def test_what_an_ordinary_user_skips_runs_in_the_part_of_root_or_fails(tmp_path: Path) -> None:
    run = (TESTS.parent / ".ci" / "run").read_text()
    assert run.count("-m 'not slow or root'") == 1
    ordinary = outcome(tmp_path, USERS, STADDLE_TEST_REQUIRE="all", USER_OF_TESTS="1000")
    assert "2 passed, 3 skipped, 1 error" in ordinary
    assert "test_slow_and_lost: no part of CI runs this slow test (another kind of root)" in ordinary
    assert "3 passed, 3 deselected" in outcome(
        tmp_path, USERS, "-m", "not slow or root", STADDLE_TEST_REQUIRE="all", USER_OF_TESTS="0"
    )
    assert "2 passed, 4 skipped" in outcome(tmp_path, USERS, USER_OF_TESTS="1000")
