"""Commands: real ones, and ones that hang, flood, or leave children behind."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pytest
from staddle_server.catalog import Alarm, AlarmKey
from staddle_server.upkeep.notify.attempt import TargetError, Watchdog
from staddle_server.upkeep.notify.command import Command
from staddle_server.upkeep.notify.notice import BEGAN, Notice
from staddle_server.upkeep.notify.targets import Filter

ALARM = Alarm(AlarmKey("damage", "acme", "", "stored data"), "critical", "Damaged: 2 päcks.", "Check.", 1)
BEGUN = Notice("ab.began", BEGAN, ALARM, 1, None)
IN_TIME_S = 60.0
"""A busy machine delays an end; what is started here lasts 600 s."""


def run(script: str, *notices: Notice, timeout_s: float = 20.0) -> None:
    target = Command("t", Filter(), ["/bin/sh", "-c", script])
    with Watchdog() as watchdog, watchdog.attempt(timeout_s) as attempt:
        target.send(notices or (BEGUN,), attempt, 1)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pid: int, seconds: float) -> bool:
    until_s = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < until_s:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_command_gets_the_message_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STADDLED_SECRET", "do-not-inherit")
    run(f"cat > {tmp_path}/in; env > {tmp_path}/env; pwd > {tmp_path}/pwd; ls -l /proc/$$/fd > {tmp_path}/fd")
    assert json.loads((tmp_path / "in").read_bytes()) == BEGUN.as_object()
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "LANG", "PWD", "_", "SHLVL", "OLDPWD"}
    assert (tmp_path / "pwd").read_text() == "/\n"
    listed = [line for line in (tmp_path / "fd").read_text().splitlines() if "->" in line]
    assert len(listed) <= 4, "no file of the server"


def test_a_failure_shows_the_exit_code_and_the_end_of_the_output() -> None:
    with pytest.raises(TargetError, match=r"/bin/sh ended with exit code 3: no \[31mpager") as caught:
        run("printf 'no \\033[31mpager\\n'; exit 3")
    assert str(caught.value).isprintable()
    with pytest.raises(TargetError, match="ended with exit code 1 and no output"):
        run("exit 1")
    with pytest.raises(TargetError, match="ended with signal 9"):
        run("kill -9 $$")
    with (
        pytest.raises(TargetError, match="cannot run /nowhere/x: No such file"),
        Watchdog() as watchdog,
        watchdog.attempt(5) as attempt,
    ):
        Command("t", Filter(), ["/nowhere/x"]).send([BEGUN], attempt, 1)


@pytest.mark.parametrize("close", ["", "exec >/dev/null 2>&1; "])
def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path, close: str) -> None:
    begun_s = time.monotonic()
    with pytest.raises(TargetError, match="no complete answer within 3 s"):
        run(
            f"{close}sleep 600 & echo $! > {tmp_path}/child; trap '' TERM; echo $$ > {tmp_path}/me; wait",
            timeout_s=3,  # until then the shell has written both
        )
    assert time.monotonic() - begun_s < IN_TIME_S
    for name in ("me", "child"):
        assert gone_within(int((tmp_path / name).read_text()), IN_TIME_S)


def test_what_a_command_leaves_behind_is_killed_and_does_not_delay_it(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    run(f"sleep 600 & echo $! > {tmp_path}/child; exit 0")
    assert time.monotonic() - begun_s < IN_TIME_S
    assert gone_within(int((tmp_path / "child").read_text()), IN_TIME_S)


def test_a_flood_of_output_is_read_and_forgotten() -> None:
    run("head -c 30000000 /dev/zero; exit 0")
    with pytest.raises(TargetError) as caught:
        run("yes | head -c 30000000; exit 1")
    assert len(str(caught.value)) < 400


def test_a_command_that_does_not_read_its_input_succeeds() -> None:
    long = ALARM._replace(text="x" * 200_000)
    run("exit 0", BEGUN._replace(alarm=long))
    run("exec 0<&-; exit 0", BEGUN._replace(alarm=long))


def test_a_stop_of_the_server_ends_a_command_at_once() -> None:
    with Watchdog() as watchdog, watchdog.attempt(300) as attempt:
        stopper = threading.Timer(0.3, watchdog.cut_all)
        stopper.start()
        begun_s = time.monotonic()
        with pytest.raises(TargetError, match="the server stopped"):
            Command("t", Filter(), ["/bin/sleep", "600"]).send([BEGUN], attempt, 1)
        stopper.join()
        assert time.monotonic() - begun_s < IN_TIME_S
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
