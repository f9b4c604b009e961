"""Notifications to systemd: the test takes its role, with a real socket."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from servers import ServerProcess
from staddle_server.app import health_probe, unix_sockets
from staddle_server.app.addresses import UnixAddress
from staddle_server.app.service_manager import LOOK_EVERY_S, Manager, Pulse

UNIT = Path(__file__).parents[2] / "server" / "deploy" / "staddle-server.service"


class Systemd:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        """`address` as in NOTIFY_SOCKET."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(60)
        self.environ = {"NOTIFY_SOCKET": address}

    def heard(self) -> dict[str, str]:
        """The next message."""
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def heard_until(self, name: str) -> list[dict[str, str]]:
        """All messages up to the first that has this name."""
        found = [self.heard()]
        while name not in found[-1]:
            found.append(self.heard())
        return found

    def heard_nothing(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(60)
        return False


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    monkeypatch.chdir(tmp_path)
    made = Systemd(str(tmp_path / "notify"))
    with made.socket:
        yield made


def test_a_server_notifies_when_it_serves_reloads_is_alive_and_stops(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    place.mkdir()
    server = ServerProcess(tmp_path / "data")
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.environ["NOTIFY_SOCKET"])
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(place))
    server.start()
    try:
        assert systemd.heard() == {"STATUS": "Starting"}
        assert systemd.heard() == {"READY": "1", "STATUS": f"Serving on {server.address}"}
        assert systemd.heard() == {"WATCHDOG": "1"}
        # No other process can reach the address at which it probes itself.
        (own,) = place.iterdir()
        assert own.stat().st_mode & 0o777 == 0o700
        assert (own / "own").stat().st_mode & 0o777 == 0o600

        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        *_, reloading = systemd.heard_until("RELOADING")
        assert reloading["STATUS"] == "Reading settings and certificates again"
        assert re.fullmatch(r"\d+", reloading["MONOTONIC_USEC"])
        assert systemd.heard() == {"READY": "1", "STATUS": f"Serving on {server.address}"}
        systemd.heard_until("WATCHDOG")
    finally:
        stopped = server.stop()
    *_, stopping = systemd.heard_until("STOPPING")
    assert stopping["STATUS"] == "Draining after SIGTERM: open streams may take up to 20s"
    assert stopped == 0
    assert systemd.heard_nothing()
    assert list(place.iterdir()) == []


def test_without_a_service_manager_no_notifications_are_sent() -> None:
    for environ in ({}, {"WATCHDOG_USEC": "1000000"}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": ""}):
        manager = Manager(environ)
        assert not manager.listens
        assert manager.watchdog_s is None
        asked: list[float] = []
        pulse = Pulse(manager, lambda timeout_s, asked=asked: str(asked.append(timeout_s)))
        pulse.tick()
        manager.ready("x")
        assert asked == []


def test_an_abstract_socket_works_as_well() -> None:
    systemd = Systemd(f"@staddle-test-{os.getpid()}")
    with systemd.socket:
        Manager(systemd.environ).ready("Serving")
        assert systemd.heard() == {"READY": "1", "STATUS": "Serving"}


def test_a_manager_that_does_not_read_or_is_gone_delays_nothing(systemd: Systemd) -> None:
    manager = Manager(systemd.environ)
    for number in range(5000):
        manager.status(f"sentence {number}")
    assert systemd.heard() == {"STATUS": "sentence 0"}
    systemd.socket.close()
    manager.stopping("nobody hears")
    Path(systemd.environ["NOTIFY_SOCKET"]).unlink()
    manager.stopping("nobody hears")


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_for_the_process_that_is_named(environ: dict, watchdog_s: float | None) -> None:
    assert Manager({"NOTIFY_SOCKET": "/run/x", **environ}).watchdog_s == watchdog_s


def test_a_status_is_one_line_and_sent_once(systemd: Systemd) -> None:
    manager = Manager(systemd.environ)
    manager.status("two\nlines\nREADY=1")
    manager.status("two\nlines\nREADY=1")
    assert systemd.heard() == {"STATUS": "two lines READY=1"}
    assert systemd.heard_nothing()


# --- the watchdog


class Time:
    """A clock that the test advances."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_only_a_server_that_answers_feeds_the_watchdog(systemd: Systemd, running, tmp_path: Path) -> None:
    manager = Manager({**systemd.environ, "WATCHDOG_USEC": "1000000"})
    with (
        socket.socket(socket.AF_UNIX) as deaf,
        grpc.insecure_channel(running.address) as to_server,
        grpc.insecure_channel(UnixAddress(str(tmp_path / "deaf")).target) as to_deaf,
    ):
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        channel, time = to_server, Time()
        pulse = Pulse(manager, lambda timeout_s: health_probe.describe(channel, "here", timeout_s), time)
        pulse.tick()
        assert systemd.heard() == {"WATCHDOG": "1"}
        assert systemd.heard() == {"STATUS": "Serving on here"}
        pulse.tick()  # not yet
        assert systemd.heard_nothing()

        # The process listens, but nothing answers: systemd gets the reason, and no watchdog signal.
        channel, time.now_s = to_deaf, time.now_s + LOOK_EVERY_S
        pulse.tick()
        (said,) = systemd.heard_until("STATUS")
        assert said["STATUS"].startswith("Does not answer itself: no answer from here: ")
        assert systemd.heard_nothing()

        channel, time.now_s = to_server, time.now_s + LOOK_EVERY_S
        pulse.tick()
        assert systemd.heard() == {"WATCHDOG": "1"}


def test_a_read_only_or_damaged_server_is_alive_and_says_so(systemd: Systemd) -> None:
    manager = Manager({**systemd.environ, "WATCHDOG_USEC": "1000000"})
    statuses, time = HealthServicer(), Time()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_HealthServicer_to_server(statuses, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        statuses.set("", HealthCheckResponse.SERVING)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            pulse = Pulse(manager, lambda timeout_s: health_probe.describe(channel, "here", timeout_s), time)
            for name, words in (
                (health_probe.WRITES, "is read-only"),
                (health_probe.INTEGRITY, "damaged or missing"),
            ):
                statuses.set(name, HealthCheckResponse.NOT_SERVING)
                pulse.tick()
                assert systemd.heard() == {"WATCHDOG": "1"}
                assert words in systemd.heard()["STATUS"]
                statuses.set(name, HealthCheckResponse.SERVING)
                time.now_s += LOOK_EVERY_S
            # A server that serves no calls, and is not stopping, is restarted.
            statuses.set("", HealthCheckResponse.NOT_SERVING)
            pulse.tick()
            assert systemd.heard() == {
                "STATUS": "Does not answer itself: the server at here says NOT_SERVING"
            }
            assert systemd.heard_nothing()
        server.stop(0).wait()


def test_the_probe_address_is_in_a_writable_directory_and_removed_at_the_end(tmp_path: Path) -> None:
    for parent, below in ((str(tmp_path), tmp_path), ("", None), (str(tmp_path / "none"), None)):
        with unix_sockets.private(parent) as own:
            directory = Path(own.path).parent
            assert directory.stat().st_mode & 0o777 == 0o700
            assert below in {None, directory.parent}
        assert not directory.exists()


def test_a_missing_place_for_the_probe_address_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    with (
        pytest.raises(unix_sockets.ListenError, match="too long for a socket"),
        unix_sockets.private(str(deep)),
    ):
        pass
    assert list(deep.iterdir()) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(unix_sockets.ListenError, match="cannot be created"), unix_sockets.private(""):
        pass


# --- the unit


def unit() -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            values.setdefault(line.split("=", 1)[0], []).append(line.split("=", 1)[1])
    return values


def test_the_unit_waits_for_the_notifications_of_the_server() -> None:
    found = unit()
    assert found["Type"] == ["notify"]
    assert found["NotifyAccess"] == ["main"]
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert found["RuntimeDirectory"] == ["staddle"]
    # Memory holds the master key, and the watchdog ends a process with SIGABRT.
    assert found["LimitCORE"] == ["0"]
    assert "AF_UNIX" in found["RestrictAddressFamilies"][0].split()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on PATH")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/staddle/bin/staddle-server", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("WatchdogSec", "WatchdogSecs"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "WatchdogSecs" in done.stderr
