"""A server on a Unix socket: who may connect, what it leaves behind, and what it never touches."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import sys
import tomllib
from pathlib import Path

import forked
import grpc
import pytest
from servers import ServerProcess
from staddle import Client
from staddle.v1 import service_pb2 as sv
from staddle.v1 import service_pb2_grpc
from staddle_server.app import unix_sockets
from staddle_server.app.addresses import UnixAddress

BIN = Path(sys.executable).parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory whose sockets have short names, however long pytest's own are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listening(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A program that listens there."""
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


def take(path: Path, mode: int = 0o660) -> socket.socket:
    """Binds as a server does."""
    with unix_sockets.place_for(UnixAddress(str(path)), mode):
        return listening(path)


def test_a_server_on_a_unix_socket_serves_callers_with_access_and_a_token(here: Path) -> None:
    path = here / "a socket 50%"
    server = ServerProcess(here / "data", flags=("--listen", f"unix:{path}", "--log-format", "json"))
    health = [BIN / "staddle-server", "health", "--data", server.data]
    server.start()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert tomllib.loads(server.config.read_text())["server"] == f"unix:{path}"
        assert forked.run(health, check=True, capture_output=True, text=True).stdout.startswith(
            f"unix:{path} SERVING\n"
        )
        (here / "source").mkdir()
        (here / "source" / "file").write_bytes(b"over a socket")
        with Client.from_config(server.config) as client:
            made = client.backup(here / "source", dataset="socket").backup
            client.restore("socket", here / "target")
        assert (here / "target" / "file").read_bytes() == b"over a socket"
        with grpc.insecure_channel(UnixAddress(str(path)).target) as channel:
            stub = service_pb2_grpc.StaddleServiceStub(channel)
            with pytest.raises(grpc.RpcError) as refused:
                stub.ListDatasets(sv.ListDatasetsRequest(), timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert {line["peer"] for line in server.logged("call")} == {"unix:"}

        # A killed server leaves its socket, and the next one replaces it.
        server.kill()
        assert path.is_socket()
        assert forked.run(health, capture_output=True, check=False).returncode == 1
        server.start()
        with Client.from_config(server.config) as client:
            assert client.get_backup("socket").id == made.id
    finally:
        stopped = server.stop()
    assert stopped == 0
    assert not path.exists()


def test_the_socket_has_its_mode_from_the_start(here: Path) -> None:
    path = here / "s"
    umask = os.umask(0)
    try:
        for mode in (0o600, 0o666):
            with unix_sockets.place_for(UnixAddress(str(path)), mode):
                made = listening(path)
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.stat().st_mode) == mode
            made.close()
        assert os.umask(0) == 0
    finally:
        os.umask(umask)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_socket_in_use_is_refused_and_keeps_working(here: Path, kind: int) -> None:
    path = here / "s"
    with listening(path, kind) as other:
        if kind == socket.SOCK_SEQPACKET:
            other.listen()
        before = path.stat()
        with pytest.raises(unix_sockets.ListenError, match="another program listens there already"):
            take(path)
        assert path.stat() == before
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(str(path))


def test_a_socket_of_a_busy_program_counts_as_in_use(here: Path) -> None:
    path = here / "s"
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as first:
        other.bind(str(path))
        other.listen(0)
        first.connect(str(path))
        with pytest.raises(unix_sockets.ListenError, match="another program listens there already"):
            take(path)


def test_anything_but_a_socket_is_refused_by_name_and_left_alone(here: Path) -> None:
    (here / "file").write_text("precious")
    (here / "directory").mkdir()
    os.mkfifo(here / "fifo")
    (here / "link").symlink_to("file")
    (here / "dangling").symlink_to("nowhere")
    listening(here / "real").close()
    (here / "link to a socket").symlink_to("real")
    before = {each.name: each.lstat() for each in here.iterdir()}
    for name in before.keys() - {"real"}:
        with pytest.raises(unix_sockets.ListenError, match=f"{name} is not a socket, and was left alone"):
            take(here / name)
    assert {each.name: each.lstat() for each in here.iterdir()} == before
    assert (here / "file").read_text() == "precious"


def test_a_directory_that_is_missing_or_a_file_is_named(here: Path) -> None:
    (here / "file").touch()
    for parent in ("none", "file"):
        with pytest.raises(unix_sockets.ListenError, match=f"{parent}: .*the directory must exist"):
            take(here / parent / "s")


def test_two_servers_that_start_at_once_do_not_take_each_others_socket(here: Path) -> None:
    directory = os.open(here, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(unix_sockets.ListenError, match=f"another program holds {here} locked"):
            take(here / "s")
    finally:
        os.close(directory)
    take(here / "s").close()


def test_a_server_that_stops_removes_its_own_socket_only(here: Path) -> None:
    address = UnixAddress(str(here / "s"))
    mine = take(here / "s")
    made = unix_sockets.identity(address)
    unix_sockets.remove(address, made)
    assert not (here / "s").exists()
    unix_sockets.remove(address, made)
    # Two names at once, since otherwise the second socket could reuse the first one's inode.
    with mine, take(here / "other"), take(here / "s"):
        unix_sockets.remove(address, unix_sockets.identity(UnixAddress(str(here / "other"))))
        assert (here / "s").is_socket()
