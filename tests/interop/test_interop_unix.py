"""The clients in other languages, grpcurl and buf curl on a server's Unix socket."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from interop_clients import Foreign
from servers import ServerProcess
from staddle import Client

METHOD = "staddle.v1.StaddleService/ListDatasets"
# It comes with the development dependencies, beside the interpreter.
BUF = Path(sys.executable).with_name("buf")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that listens on a Unix socket alone, with one backup."""
    # Short: a socket's path may have 107 bytes.
    place = tmp_path_factory.mktemp("unix")
    made = ServerProcess(place / "data", flags=("--listen", f"unix:{place}/s"))
    made.start()
    (place / "source").mkdir()
    (place / "source" / "file").write_bytes(b"over a socket")
    with Client.from_config(made.config) as client:
        client.backup(place / "source", dataset="socket")
    yield made
    assert made.stop() == 0


def token_of(server: ServerProcess) -> str:
    token: str = tomllib.loads(server.config.read_text())["token"]
    return token


def test_each_language_connects_to_a_unix_socket(
    foreign: Foreign, server: ServerProcess, tmp_path: Path
) -> None:
    done = foreign.run(server.address, token_of(server), "restore", "socket", bytes(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "file").read_bytes() == b"over a socket"


def test_grpcurl_and_buf_curl_connect_to_a_unix_socket(grpcurl_program: Path, server: ServerProcess) -> None:
    header = ["-H", f"authorization: Bearer {token_of(server)}"]
    path = server.address.removeprefix("unix:")
    url = f"http://localhost/{METHOD}"
    for command in (
        [str(grpcurl_program), "-plaintext", *header, server.address, METHOD],
        [
            str(BUF),
            "curl",
            "--protocol",
            "grpc",
            "--unix-socket",
            path,
            "--reflect-header",
            "*",
            *header,
            url,
        ],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert [each["name"] for each in json.loads(done.stdout)["datasets"]] == ["socket"]
