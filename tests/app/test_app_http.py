"""`--http`: its place, its TLS, its end, and what a server without it does not load."""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from http_door import JSON, path_of
from ports import free_port
from servers import Running, ServerProcess
from staddle_server.api.http.metrics import Metrics
from staddle_server.api.http.server import Opening
from staddle_server.app import certificates as certs
from staddle_server.app import http_listener, tls
from staddle_server.app.addresses import Address
from staddle_server.app.settings import OperatorError
from staddle_server.app.unix_sockets import ListenError
from thin import back_up, noise, wait_until
from tls_given import NOW, files, make_certificates


def ask(port: int, token: str, context: ssl.SSLContext | None = None) -> int:
    connection = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        if context is None
        else http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)
    )
    headers = {"authorization": f"Bearer {token}", "content-type": JSON}
    try:
        connection.request("POST", path_of("ListDatasets"), b"{}", headers)
        return connection.getresponse().status
    finally:
        connection.close()


def token_of(server: ServerProcess) -> str:
    return str(tomllib.loads(server.config.read_text())["token"])


def test_a_server_serves_both_doors_and_ends_both(tmp_path: Path) -> None:
    port = free_port()
    server = ServerProcess(tmp_path / "d", flags=("--http", f"127.0.0.1:{port}"))
    server.start()
    assert ask(port, token_of(server)) == 200
    assert server.logged("serving", http=f"127.0.0.1:{port}")
    kept = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    kept.connect()  # an idle connection does not delay the end
    assert server.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        ask(port, "")
    kept.close()


def test_a_place_that_is_taken_is_named_before_anything_serves(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = ServerProcess(tmp_path / "d", flags=("--http", f"127.0.0.1:{port}"))
        with pytest.raises(AssertionError, match="did not start"):
            server.start()
        assert f"cannot listen on 127.0.0.1:{port} for HTTP: Address already in use" in server.log()
        assert "choose another address with --http" in server.log()


def test_addresses_that_do_not_exist_are_refused_by_name() -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        door = http_listener.door_at(Address(host, 1), None)
        with pytest.raises(ListenError, match=f"cannot listen on {host}:1 for HTTP"), door:
            pass


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "LIBRARIES", ("starlette", "no_such_library"))
    with pytest.raises(OperatorError, match=r"needs no_such_library, .* pip install 'staddle\[http\]'"):
        http_listener.check_libraries()


def test_a_server_without_http_loads_none_of_its_libraries() -> None:
    code = "import sys, staddle_server.cli.serve; print(*sorted({'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- TLS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certs") / "tls")


def shown(context: http_listener.HttpTls, directory: Path, client: str | None = None) -> bytes:
    """The certificate that a client sees in memory, which trusts only the authority in the directory."""
    trusting = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    if client is not None:
        pair = certs.files_of(directory, f"client-{client}")
        trusting.load_cert_chain(pair.certificate, pair.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = trusting.wrap_bio(to_client, to_server, server_hostname="backup.example.org")
    theirs = context().wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (ours, theirs):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                pass
    # With TLS 1.3 a server says after the handshake that it wants another certificate.
    return ours.getpeercert(binary_form=True) or b""


def test_new_connections_show_the_certificate_that_the_files_hold(tmp_path: Path, made: Path) -> None:
    directory = tmp_path / "tls"
    certs.make(directory, ["backup.example.org"], [], 30, NOW)
    context = http_listener.HttpTls(tls.ServerCertificates(files(directory)))
    first = shown(context, directory)
    assert context() is context()
    for name in ("server.crt", "server.key", "ca.crt"):
        (directory / name).write_bytes((made / name).read_bytes())
    assert shown(context, directory) != first
    before = context()
    (directory / "server.crt").write_text("no certificate")
    assert context() is before


def test_mutual_tls_admits_only_clients_of_the_authority(made: Path) -> None:
    context = http_listener.HttpTls(tls.ServerCertificates(files(made, mutual=True)))
    assert shown(context, made, "web1")
    with pytest.raises(ssl.SSLError):
        shown(context, made)


def test_https_is_served_with_the_certificates_of_grpc(tmp_path: Path, made: Path) -> None:
    port = free_port()
    pair = ("--tls-cert", str(made / "server.crt"), "--tls-key", str(made / "server.key"))
    server = ServerProcess(tmp_path / "d", flags=("--http", f"127.0.0.1:{port}", *pair))
    server.start()
    try:
        context = ssl.create_default_context(cafile=str(made / "ca.crt"))
        context.check_hostname = False
        assert ask(port, token_of(server), context) == 200
        secure = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
        secure.request("GET", "/login")
        assert secure.getresponse().headers.get_all("strict-transport-security") == ["max-age=2592000"]
        secure.close()
        with pytest.raises((http.client.BadStatusLine, ConnectionResetError)):
            ask(port, "")
    finally:
        server.stop()


def test_a_reader_that_leaves_over_tls_ends_its_download_and_is_no_fault(
    tmp_path: Path, made: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running = Running(tmp_path)
    back_up(running.stub(), "www", {"big": noise(32 << 20)})
    listening = socket.create_server(("127.0.0.1", 0))
    context = http_listener.HttpTls(tls.ServerCertificates(files(made)))
    running.service.start_http(Opening(listening, context, Metrics(), None))
    trusting = ssl.create_default_context(cafile=str(made / "ca.crt"))
    trusting.check_hostname = False
    request = f"GET /v1/datasets/www/backups/latest/files/big HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.token()}\r\n\r\n"
    for _ in range(3):
        with socket.create_connection(listening.getsockname(), timeout=60) as plain:
            line = trusting.wrap_socket(plain)
            line.sendall(request.encode())
            assert line.recv(12) == b"HTTP/1.1 200"
            line.close()
    wait_until(lambda: running.service._gate.streams.idle)
    running.stop()
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR] == []
