"""A server as operators run it: started, queried, administered, drained and killed."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeVar

import forked
import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from servers import logged
from staddle import Client
from staddle.v1 import resources_pb2 as pb
from staddle.v1 import service_pb2 as sv
from staddle.v1 import service_pb2_grpc
from staddle_server import __version__

BIN = Path(sys.executable).parent
START_S = 60
T = TypeVar("T")


class Server:
    """`staddle-server serve` on a free port."""

    def __init__(self, data: Path, *options: object) -> None:
        self.data = data
        self.out, self.log = data.parent / f"{data.name}.out", data.parent / f"{data.name}.log"
        with self.out.open("w") as out, self.log.open("w") as log:
            self.process = forked.start(
                [
                    BIN / "staddle-server",
                    "serve",
                    "--data",
                    data,
                    "--listen",
                    "127.0.0.1:0",
                    *map(str, options),
                ],
                env={name: value for name, value in os.environ.items() if not name.startswith("STADDLED_")},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while "Ctrl-C stops the server" not in self.out.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    @property
    def client_config(self) -> dict[str, str]:
        return tomllib.loads((self.data / "client.toml").read_text())

    @property
    def lines(self) -> list[dict[str, object]]:
        """Of the log so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def logged(self, words: str, **fields: object) -> list[dict[str, object]]:
        """The log lines with these words in their message and these fields, as soon as there is one."""
        return logged(self.log.read_text, words, **fields)

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`staddle-server` on the same directory."""
        words = [BIN / "staddle-server", *map(str, arguments), "--data", self.data]
        return forked.run(words, capture_output=True, text=True, timeout=60, check=False)

    @contextmanager
    def stub(self, token: str | None = None) -> Iterator["Stub"]:
        config = self.client_config
        with grpc.insecure_channel(config["server"]) as channel:
            yield Stub(channel, token or config["token"])

    def wait(self) -> int:
        return self.process.wait(60)


class Stub:
    """The service for one token."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._stub = service_pb2_grpc.StaddleServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {token}"),)

    def info(self) -> sv.GetServerInfoResponse:
        return self._stub.GetServerInfo(sv.GetServerInfoRequest(), metadata=self.metadata, timeout=60)

    def upload(self, upload_id: str) -> pb.Upload:
        request = sv.GetUploadRequest(upload_id=upload_id)
        return self._stub.GetUpload(request, metadata=self.metadata, timeout=60).upload

    def upload_of(self, request_id: str) -> pb.Upload:
        request = sv.GetUploadRequest(request_id=request_id)
        return self._stub.GetUpload(request, metadata=self.metadata, timeout=60).upload

    def begin(self, dataset: str) -> pb.Upload:
        request = sv.BeginUploadRequest(dataset=dataset, kind=pb.BACKUP_KIND_FULL)
        return self._stub.BeginUpload(request, metadata=self.metadata, timeout=60).upload

    def backups(self, dataset: str) -> list[pb.Backup]:
        request = sv.ListBackupsRequest(dataset=dataset)
        return list(self._stub.ListBackups(request, metadata=self.metadata, timeout=60).backups)

    def stream(self) -> "Stream":
        return Stream(self)


class Stream:
    """A Backup stream that is fed by hand."""

    def __init__(self, stub: Stub) -> None:
        self._parts: queue.SimpleQueue[sv.BackupRequest | None] = queue.SimpleQueue()
        requests = iter(self._parts.get, None)
        self.call = stub._stub.Backup.future(requests, metadata=stub.metadata, timeout=120)

    def send(self, *parts: sv.BackupPart) -> None:
        self._parts.put(sv.BackupRequest(parts=parts))

    def end(self) -> None:
        self._parts.put(None)


def entry(path: str, data: bytes) -> sv.BackupPart:
    return sv.BackupPart(entry=pb.Entry(path=path, data=data))


def reason(error: grpc.RpcError) -> tuple[str, float]:
    """The stable reason, and after how many seconds to try again."""
    trailing = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    return info.reason, retry.retry_delay.ToTimedelta().total_seconds()


@contextmanager
def serving(data: Path, *options: object) -> Iterator[Server]:
    server = Server(data, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared by the tests that do not stop it."""
    with serving(tmp_path_factory.mktemp("serve") / "data") as started:
        yield started


# --- starting


def test_serve_creates_a_missing_directory_and_prints_the_line_to_paste(server: Server) -> None:
    said = server.out.read_text()
    assert f"Created {server.data}: keys, catalog, store" in said
    assert f"\n  export STADDLE_CONFIG={server.data}/client.toml\n" in said
    assert f"Listening on {server.client_config['server']} " in said
    assert not server.client_config["server"].endswith(":0")


@contextmanager
def _saying_to(stdout: int | IO[str], data: Path, log: Path) -> Iterator[None]:
    """A server that serves and stops cleanly, whatever happens to its output."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [BIN / "staddle-server", "serve", "--data", data, "--listen", "127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=errors,
        )
    try:
        deadline = time.monotonic() + START_S
        while '"message": "serving"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_server_with_unread_output_still_serves(tmp_path: Path) -> None:
    data, log = tmp_path / "d", tmp_path / "log"
    unread, written = os.pipe()
    os.close(unread)  # as behind `staddle-server serve | head -1`
    try:
        with _saying_to(written, data, log), Client.from_config(data / "client.toml") as client:
            assert client.info().tenant == "default"
    finally:
        os.close(written)
    assert "BrokenPipe" not in log.read_text()


def test_a_server_that_cannot_print_its_address_still_serves(tmp_path: Path) -> None:
    data, log = tmp_path / "d", tmp_path / "log"
    with (
        Path("/dev/full").open("w") as full,
        _saying_to(full, data, log),
        Client.from_config(data / "client.toml") as client,
    ):
        assert client.info().tenant == "default"


def test_the_client_file_gives_the_library_admin_access_to_the_default_tenant(server: Server) -> None:
    with Client.from_config(server.data / "client.toml") as client:
        info = client.info()
    assert (info.version, info.tenant, info.role) == (__version__, "default", "admin")


def test_health_finds_the_server_by_its_directory(server: Server) -> None:
    done = server.command("health", "--wait", "10s")
    serving, room = done.stdout.splitlines()
    assert (done.returncode, serving) == (0, f"{server.client_config['server']} SERVING")
    assert re.fullmatch(
        rf"{server.data}: [0-9.]+ .?i?B( and [0-9,]+ inodes)? free; backups need [0-9.]+ .?i?B( and [0-9,]+ inodes)?",
        room,
    )


def test_a_second_server_on_the_directory_is_refused_and_the_first_is_named(server: Server) -> None:
    before = server.client_config
    done = server.command("serve", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert f"a server already runs on {server.data} (process {server.process.pid})" in done.stderr
    assert server.client_config == before


def test_an_address_in_use_is_a_clear_error_and_is_not_shared(server: Server, tmp_path: Path) -> None:
    address = server.client_config["server"]
    words = [BIN / "staddle-server", "serve", "--data", tmp_path / "d", "--listen", address]
    done = forked.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert f"cannot listen on {address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_tokens_and_tenants_made_beside_a_running_server_work_immediately(server: Server) -> None:
    server.command("tenant", "create", "acme")
    made = server.command("token", "create", "--role", "reader", "--tenant", "acme", "--name", "r1", "--json")
    token = json.loads(made.stdout)["token"]
    with server.stub(token) as stub:
        info = stub.info()
        assert (info.tenant, info.principal, info.role) == ("acme", "r1", "reader")
        server.command("token", "revoke", "r1", "--tenant", "acme")
        with pytest.raises(grpc.RpcError) as error:
            stub.info()
    assert reason(error.value)[0] == "UNAUTHENTICATED"


def test_each_call_has_one_line_with_its_fields_and_no_token_is_in_the_log(server: Server) -> None:
    token = json.loads(
        server.command("token", "create", "--role", "reader", "--name", "r2", "--json").stdout
    )["token"]
    with server.stub(token) as stub:
        stub.info()
        with pytest.raises(grpc.RpcError):
            stub.backups("nothing")
    server.logged("call", principal="r2", method="ListBackups")
    (line,) = server.logged("call", principal="r2", method="GetServerInfo")
    assert line.items() >= {"tenant": "default", "outcome": "OK", "level": "info"}.items()
    assert isinstance(line["seconds"], float)
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = page[page.index("## Logs") : page.index("## Signals")]
    assert set(line) <= set(re.findall(r"`([a-z]+)`", section)), "docs/operations.md lists every field"
    printed = server.log.read_text() + server.out.read_text()
    assert token not in printed
    assert server.client_config["token"] not in printed


# --- stopping


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_an_idle_server_which_starts_again_with_the_same_token(
    tmp_path: Path, number: int
) -> None:
    with serving(tmp_path / "d") as first:
        token = first.client_config["token"]
        first.process.send_signal(number)
        assert first.wait() == 0
        assert first.lines[-1]["message"] == "stopped"
    with serving(tmp_path / "d") as again, again.stub(token) as stub:
        assert stub.info().tenant == "default"
        assert "Made" not in again.out.read_text()


def test_a_draining_server_lets_a_stream_finish_and_refuses_new_calls_with_a_retry_time(
    tmp_path: Path,
) -> None:
    with serving(tmp_path / "d", "--drain", "60s") as server, server.stub() as stub:
        stream = stub.stream()
        stream.send(
            sv.BackupPart(begin=sv.BeginUploadRequest(dataset="d", request_id="r")), entry("a", b"before")
        )
        _await(lambda: _known(stub, "r"))
        server.process.terminate()
        server.logged("draining")
        refused = _await(lambda: _refusal(stub))
        assert refused[0] == "DRAINING"
        assert refused[1] > 0
        probe = server.command("health")
        assert probe.returncode == 1
        assert "NOT_SERVING" in probe.stderr
        stream.send(entry("b", b"after"), sv.BackupPart(finish=sv.Finish(entry_count=2, data_bytes=11)))
        stream.end()
        assert stream.call.result().backup.dataset == "d"
        assert server.wait() == 0
    with serving(tmp_path / "d") as again, again.stub() as stub:
        (backup,) = stub.backups("d")
        assert backup.entry_count >= 2


def test_a_stream_that_outlasts_the_drain_time_ends_at_a_checkpoint_and_can_be_resumed(
    tmp_path: Path,
) -> None:
    with serving(tmp_path / "d", "--drain", "0s") as server, server.stub() as stub:
        stream = stub.stream()
        stream.send(
            sv.BackupPart(begin=sv.BeginUploadRequest(dataset="d", request_id="r")), entry("a", b"received")
        )
        upload_id = _await(lambda: _known(stub, "r"))
        _await(lambda: stub.upload(upload_id).state == pb.UPLOAD_STATE_OPEN)
        stub.info()
        server.process.terminate()
        with pytest.raises(grpc.RpcError):
            stream.call.result()
        stream.end()
        assert server.wait() == 0
    with serving(tmp_path / "d") as again, again.stub() as stub:
        upload = stub.upload(upload_id)
        assert upload.state == pb.UPLOAD_STATE_OPEN
        assert (upload.durable.entry_count, upload.durable.data_bytes) == (1, 8)
        assert stub.backups("d") == []


def test_a_second_signal_ends_the_server_immediately(tmp_path: Path) -> None:
    with serving(tmp_path / "d", "--drain", "1h") as server, server.stub() as stub:
        stream = stub.stream()
        stream.send(sv.BackupPart(begin=sv.BeginUploadRequest(dataset="d", request_id="r")))
        _await(lambda: _known(stub, "r"))
        server.process.terminate()
        server.logged("draining")
        server.process.terminate()
        assert server.wait() == 128 + signal.SIGTERM
        stream.end()


# --- TLS and settings


@pytest.mark.parametrize("mutual", [False, True])
def test_with_tls_the_client_file_has_all_that_the_command_on_this_machine_needs(
    tmp_path: Path, mutual: bool
) -> None:
    tls = tmp_path / "tls"
    words = [BIN / "staddle-server", "cert", "--dir", tls, "--host", "backup.example.org"]
    subprocess.run(words, check=True, capture_output=True)
    options = ["--tls-cert", tls / "server.crt", "--tls-key", tls / "server.key"]
    options += ["--tls-client-ca", tls / "ca.crt"] if mutual else []
    with serving(tmp_path / "d", "--listen", "0.0.0.0:0", *options) as server:
        assert server.client_config["server"].startswith("127.0.0.1:")
        with Client.from_config(server.data / "client.toml") as client:
            assert client.info().tenant == "default"
        probe = server.command("health", *options)
        assert (probe.returncode, probe.stderr) == (0, "")


def test_settings_in_the_data_directory_are_used_and_shown_to_clients(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    (data / "server.toml").write_text(
        'streams_max = 3\nlease = "90s"\nendpoint = "staddle.example.org:7443"\nlog_format = "text"\n'
    )
    with serving(data) as server:
        assert server.client_config["server"] == "staddle.example.org:7443"
        listening = re.search(r"Listening on (\S+)", server.out.read_text())
        assert listening is not None
        with grpc.insecure_channel(listening[1]) as channel:
            stub = Stub(channel, server.client_config["token"])
            limits = stub.info().limits
            assert (limits.streams_max, limits.upload_lease.seconds) == (3, 90)
            assert stub.begin("d").endpoint == "staddle.example.org:7443"
        assert server.lines == []


# --- waiting


def _await(condition: Callable[[], T | None]) -> T:
    """What the condition gives as soon as it gives something true."""
    deadline = time.monotonic() + 30
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def _known(stub: Stub, request_id: str) -> str | None:
    """The upload that this request began, once the server has it."""
    try:
        return stub.upload_of(request_id).id
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None


def _refusal(stub: Stub) -> tuple[str, float] | None:
    try:
        stub.info()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return reason(error)
    return None
