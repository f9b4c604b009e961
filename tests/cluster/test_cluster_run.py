"""`make cluster`: it succeeds, it says what failed, and it ends everything that it started, also on Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import postgres_server
import pytest
import seaweed

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = Path(__file__).with_name("cluster_run.py")
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    postgres_server.need()
    seaweed.require()
    return {**os.environ, "PYTHONPATH": str(SUPPORT), "TMPDIR": str(tmp_path)}


def start(environ: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def left_running(place: Path) -> Iterator[tuple[int, str]]:
    """All processes that have this directory for their temporary files: number and command."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={place}\0".encode() in (process / "environ").read_bytes():
                yield int(process.name), (process / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue


def test_backups_survive_the_loss_of_one_part_of_each_kind(environ: dict[str, str], tmp_path: Path) -> None:
    running = start(environ, "--size", "32")
    output, _ = running.communicate()
    assert running.returncode == 0, output
    lines = output.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert sum("kill" in line for line in lines) == 5
    assert lines[-1].startswith("Nothing was lost.")
    assert list(left_running(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_named_with_the_end_of_the_log_and_everything_ends_but_the_files(
    environ: dict[str, str], tmp_path: Path
) -> None:
    running = start(environ)
    assert running.stdout is not None
    written = ""
    while "Start three servers" not in written:
        letter = running.stdout.read(1)
        assert letter, f"it ended: {written}"
        written += letter
    for process, command in left_running(tmp_path):
        if "/postgres\0-D" in command:
            os.kill(process, signal.SIGKILL)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 1, output
    assert "FAILED: the server did not start" in output
    assert "\n  Error: " in output
    assert list(left_running(tmp_path)) == []
    (kept,) = tmp_path.iterdir()
    assert f"The logs and all files are in {kept}." in output
    assert (kept / "server-1.log").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything_and_leaves_nothing(
    how: signal.Signals, environ: dict[str, str], tmp_path: Path
) -> None:
    running = start(environ)
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("Start the store"):
            break
    assert list(left_running(tmp_path))
    os.killpg(running.pid, how) if how == signal.SIGINT else running.send_signal(how)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 130, output
    assert "Interrupted. Everything that was started has ended." in output
    assert list(left_running(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []
