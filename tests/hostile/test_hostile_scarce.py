"""Without memory, threads or files the call fails and says so, nothing acknowledged is lost, and service continues."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from servers import Running, ServerProcess
from staddle._base.threads import NO_THREAD
from staddle.v1 import service_pb2 as sv
from staddle_server.app.signals import listening_for_signals, watching_threads
from staddle_server.base.threads import Background, Threads
from thin import back_up, begin, datasets, noise, reason, restore, wait_until

HERE = Path(__file__).parent
TOP = HERE.parents[1]
LONG = bool(os.environ.get("STADDLE_TEST_LONG"))
SEED = int(os.environ.get("STADDLE_TEST_SEED", "1"))
POINTS = 3_000 if LONG else 36
SWEEP_S = 90
"""A process takes a few seconds."""
CRASHES_MAX = max(4, POINTS // 20)
"""Libraries in C that do not look what an allocation gave end the process: msgspec does."""


@pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import _testcapi"], check=False, capture_output=True).returncode
    != 0,
    reason="this Python comes without _testcapi, which makes allocations fail",
)
@pytest.mark.parametrize("points", [8, pytest.param(POINTS, marks=pytest.mark.slow)])
def test_one_failing_allocation_fails_its_own_call_only(tmp_path: Path, points: int) -> None:
    crashes, first = 0, 1
    while True:
        words = [sys.executable, HERE / "scarce_sweep.py", tmp_path, SEED, points, first]
        path = os.pathsep.join([str(HERE.parent / "support"), *sys.path])
        try:
            done = subprocess.run(
                [*map(str, words)],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "PYTHONPATH": path},
                timeout=SWEEP_S,
            )
        except subprocess.TimeoutExpired:
            done = None  # a lock of Python (of a future) that got no memory in leaving it
        if done is None or done.returncode < 0:
            # As with kill -9: the next process finds everything acknowledged.
            crashes += 1
            first = int((tmp_path / "point").read_text()) + 1
            assert crashes <= CRASHES_MAX, done.stderr[-2000:] if done else "it hangs again and again"
            continue
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        again = f"{' '.join(map(str, words))}: {found}"
        assert found["problems"] == [], again
        assert found["died"] == [], again
        assert found["left"] == [], again
        break
    outcomes = Counter((tmp_path / "outcomes").read_text().split())
    assert outcomes.total() == points - crashes
    assert outcomes["RESOURCE_EXHAUSTED"] >= outcomes.total() // 3, (
        "the allocations fail, and the status says so"
    )
    unclear = outcomes.total() - outcomes["OK"] - outcomes["RESOURCE_EXHAUSTED"]
    assert unclear <= max(2, outcomes.total() // 20), f"only where nothing is left for a status: {outcomes}"


@pytest.fixture
def scarce(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose resources can be limited."""
    server = ServerProcess(tmp_path / "data", command=(sys.executable, str(HERE / "scarce_launcher.py")))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def put(server: ServerProcess, number: signal.Signals) -> None:
    """Signal the launcher, and wait until it has acted."""
    assert server.process is not None
    limits = Path(f"/proc/{server.process.pid}/limits")
    before = limits.read_text()
    server.process.send_signal(number)
    wait_until(lambda: limits.read_text() != before)


@contextlib.contextmanager
def silent_streams(server: ServerProcess, count: int) -> Iterator[list[grpc.Future]]:
    """So many Backup streams that begin and send nothing more."""
    done = threading.Event()

    def messages(number: int):
        yield sv.BackupRequest(parts=[begin(f"silent-{number}")])
        done.wait()

    stub = server.stub()
    calls = [stub.Backup.future(messages(number)) for number in range(count)]
    try:
        yield calls
    finally:
        for call in calls:
            call.cancel()
        done.set()


def test_a_server_without_further_threads_refuses_streams_and_serves_everything_else(
    scarce: ServerProcess,
) -> None:
    stub = scarce.stub()
    files = {"a": noise(3_000_000)}
    back_up(stub, "before", files)
    put(scarce, signal.SIGUSR1)
    back_up(stub, "small", files)  # background work of a backup runs on its own thread here
    with silent_streams(scarce, 40) as calls:
        ended: list[int] = []

        def is_quiet() -> bool:
            """Whether no more streams are being refused: each of that takes one of the few threads for a moment."""
            ended.append(sum(call.done() for call in calls))
            time.sleep(0.2)
            return ended[-1] >= 20 and ended[-8:] == [ended[-1]] * 8

        wait_until(is_quiet)
        refused = [call.exception() for call in calls if call.done()]
        assert {(error.code(), reason(error)) for error in refused} == {
            (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY")
        }
        assert "no more threads" in refused[0].details()
        assert "TasksMax" in refused[0].details()
        for _ in range(20):
            assert {"before", "small"} <= set(datasets(stub))
        put(scarce, signal.SIGRTMIN)
        back_up(stub, "after", files)
    for name in ("before", "small", "after"):
        assert restore(stub, name).files == files
    assert "died" not in scarce.log()


@pytest.fixture
def without_threads(tmp_path: Path):
    """Run a command of this project in a process without further threads."""

    def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys, resource, scarce_launcher; scarce_launcher.drop_privileges(); scarce_launcher.no_threads(); "
            f"from {module} import main; sys.exit(main())"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=environment,
        )

    return run


def test_a_server_or_command_without_a_thread_refuses_to_start_and_says_why(
    running: Running, without_threads, tmp_path: Path
) -> None:
    (tmp_path / "client.toml").write_text(f'server = "{running.address}"\ntoken = "{running.token()}"\n')
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(b"1")
    back_up(running.stub(), "www", {"a": b"1"})
    config = ("--config", str(tmp_path / "client.toml"))
    for done in (
        without_threads(
            "staddle_server.cli", "serve", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0"
        ),
        without_threads("staddle.command", "backup", str(source), "--dataset", "d", *config, "--retry", "0s"),
        without_threads("staddle.command", "restore", "www", "--target", str(tmp_path / "to"), *config),
    ):
        assert done.returncode == 1
        assert "no more threads" in done.stderr
        assert "Traceback" not in done.stderr


def test_background_work_survives_any_error(caplog: pytest.LogCaptureFixture) -> None:
    turns: list[BaseException | None] = []
    failures: list[BaseException] = [MemoryError(), RuntimeError("can't start new thread"), KeyError("x")]

    def once() -> None:
        failure = failures.pop() if failures else None
        turns.append(failure)
        if failure is not None:
            raise failure

    work = Background("watch", 0.001, once)
    work.start()
    wait_until(lambda: len(turns) > 5)
    work.stop()
    assert caplog.text.count("background work watch, which continues") == 3


def test_spare_threads_are_started_ahead_and_survive_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(10, "call", ahead=2)
    threads.start()
    busy = threading.Event()
    held = [threads.submit(busy.wait) for _ in range(3)]
    assert threads.left == 2
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError(NO_THREAD)))
        held.append(threads.submit(busy.wait))
        assert threads.is_short
        assert threads.submit(str, 1).result(60) == "1", "one was started ahead"
        with pytest.raises(SystemExit):
            threads.submit(sys.exit).result(60)
    assert threads.submit(str, 2).result(60) == "2"
    assert not threads.is_short
    busy.set()
    assert all(each.result(60) for each in held)
    threads.shutdown()


def test_a_thread_that_dies_nevertheless_stops_the_server(caplog: pytest.LogCaptureFixture) -> None:
    with listening_for_signals() as request, watching_threads(request):
        dying = threading.Thread(target=lambda: 1 // 0, name="somebody else's")
        dying.start()
        dying.join()
        assert request.wait() == "the thread somebody else's died"
    assert request.died == "somebody else's"
    assert "ZeroDivisionError" in caplog.text


def test_no_module_starts_threads_or_pools_directly() -> None:
    found = [
        f"{path.relative_to(TOP)}:{number}"
        for root in (TOP / "server", TOP / "client" / "staddle")
        for path in root.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bThreadPoolExecutor\(|\bTimer\(", line)
        or ("threading.Thread(" in line and root.name == "server")
    ]
    assert {place.rpartition(":")[0] for place in found} <= {
        "server/staddle_server/base/threads.py",
        "server/staddle_server/base/logs.py",  # below everything else, with its own loop
        "client/staddle/_base/threads.py",
    }
