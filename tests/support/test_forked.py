"""A forked command behaves like a user's command: the tests that use it see the same process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import forked
import pytest
from servers import ServerProcess

STADDLE, SERVER = forked.BIN / "staddle", forked.BIN / "staddle-server"
WAIT_S = 60
SAME = r"^(Umask|[UG]id|Groups|NSpgid|NSsid|Sig\w+|Cap\w+|NoNewPrivs|Seccomp):[ \t]*(.*)$"


def properties(pid: int) -> dict[str, object]:
    """What the system knows of a process that does not depend on its memory."""
    here = Path(f"/proc/{pid}")
    return {
        **dict(re.findall(SAME, (here / "status").read_text(), re.MULTILINE)),
        "cwd": os.readlink(here / "cwd"),
        "limits": (here / "limits").read_text(),
    }


def descriptors(pid: int) -> set[str]:
    """What its descriptors lead to, without the numbers in the names."""
    names = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()]
    return {re.sub(r"\d+", "N", name) for name in names}


def test_a_forked_server_has_the_signals_user_session_and_descriptors_of_a_started_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forked.run([STADDLE, "--version"])  # settings from here on were not set when the fork server started
    before = os.umask(0o027)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    servers = [
        ServerProcess(tmp_path / "data-1"),
        ServerProcess(tmp_path / "data-2", command=("env", str(SERVER))),
    ]
    try:
        for server in servers:
            server.start()
            assert server.stub()
        forked_pid, true_pid = (server.process.pid for server in servers)
        assert properties(forked_pid) == properties(true_pid)
        assert descriptors(forked_pid) == descriptors(true_pid)
        status = [server.stop() for server in servers]
        assert status == [0, 0]
        modes = [(server.data / "catalog.db").stat().st_mode for server in servers]
        assert modes[0] == modes[1]
    finally:
        os.umask(before)
        for server in servers:
            server.kill()


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([STADDLE, "list", "--json"], {"env": {"HOME": "/nonexistent"}}),
        (
            [STADDLE, "backup", ".", "--files-from", "-", "--dataset", "d"],
            {"input": b"a\0\xff", "cwd": "/tmp"},
        ),
        ([os.fsencode(STADDLE), b"\xff"], {}),
        ([SERVER, "check"], {"env": {"STADDLED_DATA": "/nonexistent"}}),
        ([SERVER, "no-such-command"], {}),
    ],
)
def test_a_forked_command_writes_and_returns_the_same_as_a_started_one(words, options) -> None:
    true = subprocess.run(words, capture_output=True, check=False, timeout=WAIT_S, **options)
    given = {"given": options["input"]} if "input" in options else {}
    rest = {name: value for name, value in options.items() if name != "input"}
    done = forked.run(words, capture_output=True, timeout=WAIT_S, **given, **rest)
    assert (done.returncode, done.stdout, done.stderr) == (true.returncode, true.stdout, true.stderr)
    assert done.stdout + done.stderr


def test_a_forked_command_ends_by_the_signal_that_ends_it_and_is_waited_for(server: ServerProcess) -> None:
    process = server.process
    assert isinstance(process, forked.Forked)
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(WAIT_S) == -signal.SIGKILL == process.poll()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_command_with_a_variable_read_at_the_start_is_started_and_not_forked() -> None:
    with forked.start(
        [STADDLE, "--version"], stdout=subprocess.PIPE, env={**os.environ, "PYTHONUTF8": "1"}
    ) as true:
        assert not isinstance(true, forked.Forked)
    with pytest.raises(ValueError, match="not a command of this project"):
        forked.run(["/bin/true"])
