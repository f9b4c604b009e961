"""`make big` passes, and fails when it should; here with little data."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import big
from benchmarks.data import listing
from benchmarks.programs.processes import Server
from benchmarks.tables import checks

TOP = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_passes_with_little_data(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.big", "--small", "--work", str(tmp_path)],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[-1].startswith("23 passed, 0 failed")
    assert sum(line.startswith("PASS") for line in lines) == 23
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_a_failed_check_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = checks.Checks()
    server = Server(tmp_path / "data")
    with run.check("a thing that is wrong", server) as check:
        check.expect(condition=False, otherwise="it is wrong")
    with run.check("a program that fails", server) as check:
        check.run(["false"])
    with run.check("a thing that is right", server) as check:
        check.run(["true"])
    assert (run.passed, run.failed) == (1, 2)
    reported = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in reported] == ["FAIL", "FAIL", "PASS"]
    assert "it is wrong" in reported[0]


def test_too_much_memory_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = checks.Checks()
    with run.check("a program that takes 300 MiB", Server(tmp_path / "data")) as check:
        check.run([sys.executable, "-c", "import time; x = bytearray(300 << 20); time.sleep(0.2)"])
    assert run.failed == 1
    assert "the most it may have" in capsys.readouterr().out


def test_a_restored_tree_that_differs_is_a_failure(tmp_path: Path) -> None:
    state = big.State(tmp_path, big.SMALL)
    state.source.mkdir()
    (state.source / "a").write_bytes(b"1")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_bytes(b"2")
    listing.write_listing(state.source, state.listing_file("full"))
    with pytest.raises(checks.CheckError, match="not what went in"):
        state.compare(tmp_path / "out", "full")
