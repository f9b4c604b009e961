"""A server with unread standard error: calls, health and shutdown do not wait for the reader."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import forked
import pytest
from extent import extent
from servers import heeding_hangups
from staddle import Client
from staddle_server.base import logs

COMMAND = str(Path(sys.executable).with_name("staddle-server"))
PIPE_BYTES = 4096
"""The smallest pipe that the system makes."""


class Unread:
    """A server process with a small pipe as standard error, which is full before it starts."""

    def __init__(self, data: Path, *, stdout_too: bool = False) -> None:
        self.data = data
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(writer, False)
        while True:
            try:
                os.write(writer, b"x" * PIPE_BYTES)
            except BlockingIOError:
                break
        os.set_blocking(writer, True)
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [COMMAND, "serve", "--data", str(data), "--listen", "127.0.0.1:0", "--drain", "0s"],
            stdout=writer if stdout_too else subprocess.PIPE,
            stderr=writer,
            text=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("STADDLE")},
        )
        os.close(writer)

    def address(self) -> str:
        """Where it listens, as it says on standard output."""
        out: IO[str] | None = self.process.stdout
        assert out is not None
        for line in out:
            if found := re.match(r"Listening on (\S+:\d+)", line):
                return found[1]
        raise AssertionError("the server ended")

    def client(self) -> Client:
        return Client(self.address(), token=tomllib.loads((self.data / "client.toml").read_text())["token"])


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[Unread]:
    made = Unread(tmp_path / "data")
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.reader)
    assert made.process.stdout is not None
    made.process.stdout.close()


def test_hundreds_of_calls_health_and_sigterm_work_with_a_full_pipe_as_standard_error(unread: Unread) -> None:
    with unread.client() as client:
        for _ in range(extent(350, 600)):
            assert list(client.datasets()) == []
    probe = forked.run([COMMAND, "health", "--data", str(unread.data)], check=False, timeout=60)
    assert probe.returncode == 0
    unread.process.send_signal(signal.SIGTERM)
    assert unread.process.wait(60) == 0


def test_a_server_starts_and_ends_when_standard_output_is_the_same_full_pipe(tmp_path: Path) -> None:
    unread = Unread(tmp_path / "data", stdout_too=True)
    probe = [COMMAND, "health", "--data", str(unread.data), "--wait", "60s"]
    try:
        while unread.process.poll() is None and not (unread.data / "client.toml").exists():
            os.sched_yield()
        assert forked.run(probe, check=False, timeout=90).returncode == 0
        unread.process.send_signal(signal.SIGTERM)
        assert unread.process.wait(60) == 0
    finally:
        unread.process.kill()
        unread.process.wait()
        os.close(unread.reader)


def test_lines_that_do_not_fit_are_dropped_and_counted_and_the_rest_stay_in_order() -> None:
    reader, writer = os.pipe()
    handler = logs.BackgroundHandler(writer)
    handler.setFormatter(logs.TextFormatter())
    sent = 2 * logs.QUEUE_BYTES_MAX // 1000
    for number in range(sent):
        handler.emit(record(f"{number:06} " + "x" * 1000))
    numbers = []
    with os.fdopen(reader) as lines:
        while "were dropped" not in (line := lines.readline()):
            numbers.append(int(line.split()[1]))
    handler.close()
    os.close(writer)
    assert numbers == sorted(numbers)
    assert int(line.split()[2]) == sent - len(numbers) > 0


def test_a_closed_log_blocks_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter flushes and closes every handler at its end, even one that is closed already."""
    monkeypatch.setattr(logs, "FLUSH_S", 3600.0)
    reader, writer = os.pipe()
    handler = logs.BackgroundHandler(writer)
    handler.emit(record("last words"))
    for _ in range(2):
        handler.flush()
        handler.close()
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert "last words" in lines.read()


def record(words: str) -> logging.LogRecord:
    return logging.LogRecord("test", logging.INFO, "", 0, words, None, None)


@pytest.mark.parametrize("closed", extent(["<&- >&- 2>&-"], [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]))
def test_a_server_serves_with_any_standard_streams_closed(tmp_path: Path, closed: str) -> None:
    data = tmp_path / "data"
    env = {name: value for name, value in os.environ.items() if not name.startswith("STADDLE")}
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$0" "$@" {closed}', COMMAND, "serve", "--data", data, "--listen", "127.0.0.1:0"],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        probe = [COMMAND, "health", "--data", data, "--wait", "60s"]
        deadline_s = time.monotonic() + 60
        while not (data / "client.toml").exists() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        done = forked.run(probe, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for number in (0, 1, 2):
            name = os.readlink(f"/proc/{process.pid}/fd/{number}")
            assert not name.startswith(str(data)), "printed text would end up in a file of the server"
    finally:
        process.terminate()
    assert process.wait(60) == 0


def test_a_hangup_before_the_modules_are_loaded_does_not_end_the_server() -> None:
    program = (
        "import importlib, os, signal, sys\n"
        "from staddle_server import cli\n"
        "def load(name):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    sys.exit(f'alive at {name}')\n"
        "importlib.import_module = load\n"
        "sys.argv = ['staddle-server', 'serve']\n"
        "cli.main()\n"
    )
    with heeding_hangups():
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (1, "alive at staddle_server.cli.run")


def test_a_hangup_while_the_server_starts_does_not_end_it(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("STADDLE")}
    words = [COMMAND, "serve", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0"]
    with heeding_hangups():
        process = subprocess.Popen(
            words, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    caught = 1 << (signal.SIGHUP - 1)
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        mask = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if mask is not None and int(mask[1], 16) & caught:
            break
    process.send_signal(signal.SIGHUP)
    out: IO[str] | None = process.stdout
    assert out is not None
    with out:
        assert any("Listening on" in line for line in out)
        process.terminate()
        assert process.wait(60) == 0
