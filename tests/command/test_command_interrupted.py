"""Commands that are interrupted, find damage, or lose their server."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import CommandLine
from extent import extent
from ports import free_port
from staddle_server.store.wrapped import WrappedBlobs
from test_command_failures import WAIT_S


class Gate(WrappedBlobs):
    """Blobs that block after the first pack until released: the middle of a backup, as long as a test wants."""

    def __init__(self, blobs) -> None:
        super().__init__(blobs)
        self.reached = threading.Event()
        self.open = threading.Event()
        self._packs = 0

    def create(self):
        self._packs += 1
        if self._packs > 1:
            self.reached.set()
            self.open.wait(WAIT_S)
        return super().create()


@pytest.fixture
def gate(running) -> Iterator[Gate]:
    gates = []

    def wrap(blobs):
        gates.append(Gate(blobs))
        return gates[-1]

    running.wrap = wrap
    running.restart()
    yield gates[-1]
    gates[-1].open.set()


@pytest.mark.parametrize(
    "flags", [[], pytest.param(["--thin"], marks=pytest.mark.slow)], ids=["source", "thin"]
)
def test_an_interrupted_backup_resumes(
    unconfigured: CommandLine, running, gate: Gate, tmp_path: Path, flags
) -> None:
    unconfigured.variables = {"STADDLE_SERVER": running.address, "STADDLE_TOKEN": running.token("writer")}
    root = tmp_path / "data"
    root.mkdir()
    for number in range(20):
        (root / f"{number:02}").write_bytes(os.urandom(8 << 20))
    words = ["backup", root, "--dataset", "d", "--json", *flags]
    interrupted = unconfigured.start(*words)
    assert gate.reached.wait(WAIT_S)
    interrupted.send_signal(signal.SIGINT)
    gate.open.set()
    out, err = interrupted.communicate(timeout=WAIT_S)
    assert interrupted.returncode == 130, err
    assert out == b""
    reported = json.loads(err)
    assert (reported["reason"], reported["resumable"]) == ("INTERRUPTED", True)
    assert "run the same command again" in reported["message"]
    assert unconfigured("list", "d", "--json").summary["backup_count"] == 0

    done = unconfigured(*words).summary
    assert done["resumed"] is True
    assert done["number"] == 1
    assert done["data_bytes"] == 20 * (8 << 20)
    assert done["sent_bytes"] <= done["data_bytes"] - (48 << 20)
    assert unconfigured("cat", "d", "19").out == (root / "19").read_bytes()


class ReadGate(WrappedBlobs):
    """Blobs that block after the first two reads until released: the middle of a restore."""

    def __init__(self, blobs) -> None:
        super().__init__(blobs)
        self.armed = False
        self.reached = threading.Event()
        self.open = threading.Event()

    def read(self, name: str, offset: int, length: int) -> bytes:
        if self.armed and 24 << 20 < offset < 32 << 20:
            self.reached.set()
            self.open.wait(WAIT_S)
        return super().read(name, offset, length)


@pytest.mark.parametrize("number", extent([signal.SIGTERM], [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
def test_a_signal_ends_a_restore_cleanly_without_temporary_files(
    number: signal.Signals, unconfigured: CommandLine, running, tmp_path: Path
) -> None:
    gates: list[ReadGate] = []
    running.wrap = lambda blobs: gates.append(ReadGate(blobs)) or gates[-1]
    running.restart()
    unconfigured.variables = {"STADDLE_SERVER": running.address, "STADDLE_TOKEN": running.token("writer")}
    root, target = tmp_path / "data", tmp_path / "target"
    root.mkdir()
    (root / "large").write_bytes(os.urandom(48 << 20))
    unconfigured("backup", root, "--dataset", "d")
    gate = gates[-1]
    gate.armed = True
    before = signal.signal(
        number, signal.SIG_DFL
    )  # under nohup the tests ignore SIGHUP, and so would the command
    try:
        interrupted = unconfigured.start("restore", "d", "--target", target, "--json")
    finally:
        signal.signal(number, before)
    try:
        assert gate.reached.wait(WAIT_S)
        while not list(target.glob(".staddle-restore-*")):
            assert interrupted.poll() is None
        interrupted.send_signal(number)
        _, err = interrupted.communicate(timeout=WAIT_S)
    finally:
        gate.open.set()
    assert interrupted.returncode == 130, err
    assert b"Traceback" not in err, err
    assert json.loads(err)["reason"] == "INTERRUPTED"
    assert list(target.iterdir()) == []


def test_a_thread_that_fails_after_an_interrupt_prints_nothing(unconfigured: CommandLine) -> None:
    words = "import os, signal, threading; from staddle.command.run import _heed_interrupts as heed; heed()\n"
    words += "fail = lambda: (t := threading.Thread(target=lambda: 1 / 0), t.start(), t.join())\n"
    words += "fail()\ntry: os.kill(os.getpid(), signal.SIGTERM)\nexcept KeyboardInterrupt: fail()"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stderr.count("ZeroDivisionError") == 1


def test_sigterm_and_sighup_together_count_as_one_request(unconfigured: CommandLine) -> None:
    words = "import os, signal; from staddle.command.run import _heed_interrupts as heed; heed()\n"
    words += "try: os.kill(os.getpid(), signal.SIGTERM)\nexcept KeyboardInterrupt: os.kill(os.getpid(), signal.SIGHUP); print('in order')"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"in order\n")


def test_damage_is_named_and_the_rest_is_restored(unconfigured: CommandLine, server, tmp_path: Path) -> None:
    unconfigured.variables = {"STADDLE_CONFIG": str(server.config)}
    root = tmp_path / "data"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).write_bytes(os.urandom(4 << 20))
        unconfigured("backup", root, "--dataset", "d")
    server.stop()
    packs = sorted((server.data / "store").rglob("*"), key=lambda path: path.stat().st_mtime_ns)
    first = next(path for path in packs if path.is_file() and path.stat().st_size > 4 << 20)
    first.chmod(0o600)
    with first.open("r+b") as file:
        file.seek(2 << 20)
        file.write(b"damage" * 100)
    server.start()
    out = tmp_path / "out"
    done = unconfigured("restore", "d", "--target", out, code=3)
    assert "damaged: a: " in done.err
    assert "1 path is not restored" in done.lines[0]
    assert (out / "b").read_bytes() == (root / "b").read_bytes()
    assert not (out / "a").exists()
    records = unconfigured("restore", "d", "--target", tmp_path / "again", "--json", code=3).records
    assert (records[0]["problem"], records[0]["path"]) == ("damaged", "a")
    assert records[-1]["complete"] is False
    assert unconfigured("cat", "d", "a", "--range", "2100000:", "--json", code=1).err


def test_with_retry_every_command_waits_for_a_server_that_is_restarting(
    unconfigured: CommandLine, running, source: Path, tmp_path: Path
) -> None:
    unconfigured.variables = {"STADDLE_SERVER": running.address, "STADDLE_TOKEN": running.token("admin")}
    unconfigured("backup", source, "--dataset", "www")
    running.stop()
    target = tmp_path / "target"
    commands = [
        ["restore", "www", "--target", target],
        ["ls", "www"],
        ["list"],
        ["backup", source, "--dataset", "x"],
    ]
    with socket.create_server(("127.0.0.1", free_port())) as nobody_answers:
        address = f"127.0.0.1:{nobody_answers.getsockname()[1]}"
        waiting = [
            subprocess.Popen(
                unconfigured.words(*command, "--retry", "60s", "--server", address),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=unconfigured.environment,
            )
            for command in commands
        ]
        for _ in commands:  # each has failed once
            nobody_answers.accept()[0].close()
    running.listen = address
    running.start()
    for command, process in zip(commands, waiting, strict=True):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, (command, err)
    assert (target / "hello.txt").exists()
