"""The memory of a server that gets hostile tars and slow readers of archives, measured in a process of its own."""

from __future__ import annotations

import gzip
import http.client
import socket
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import tars
import zstandard
from ports import free_port
from servers import NOTHING_BY_ITSELF, ServerProcess
from tars import END, header, member, pax, record, sparse
from thin import noise, wait_until

MIB = 1 << 20
GROWTH_MAX = 96 * MIB


class Server(NamedTuple):
    process: ServerProcess
    port: int
    token: str

    def status(self, name: str) -> int:
        assert self.process.process is not None
        text = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(text.partition(f"{name}:")[2].split()[0]) * 1024

    def forget_peak(self) -> int:
        """The memory now, from which peaks are measured."""
        assert self.process.process is not None
        Path(f"/proc/{self.process.process.pid}/clear_refs").write_text("5")
        return self.status("VmRSS")

    def put(self, pieces: Iterable[bytes], query: str = "", dataset: str = "www") -> tuple[int, bytes]:
        """Send a body; a server that answers before its end ends the sending."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.putrequest("PUT", f"/v1/datasets/{dataset}/backups{query}")
        connection.putheader("Authorization", f"Bearer {self.token}")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        try:
            for piece in pieces:
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            response = connection.getresponse()
            return response.status, response.read()
        except (ConnectionResetError, http.client.BadStatusLine):
            return 0, b""  # the refusal was lost, because the server did not read the rest
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = free_port()
    process = ServerProcess(
        tmp_path_factory.mktemp("server") / "d", flags=(*NOTHING_BY_ITSELF, "--http", f"127.0.0.1:{port}")
    )
    process.start()
    made = Server(process, port, str(tomllib.loads(process.config.read_text())["token"]))
    files = [member(b"f%02d" % number, noise(2 * MIB, number)) for number in range(24)]
    assert made.put([*files, END])[0] == 201
    yield made
    assert process.stop() == 0


def repeated(piece: bytes, times: int, end: bytes = END) -> Iterator[bytes]:
    for _ in range(times):
        yield piece
    yield end


MOST_RECORDS = member(b"x", record(b"SCHILY.xattr.user.a", b"v") * 60_000, b"x")
MANY_PIECES = sparse(40_000_000, [(at * 1_000, 1) for at in range(32_000)], b"x" * 32_000)
LINKS = b"".join(header(b"l%06d" % number, kind=b"1", linkname=b"f") for number in range(15_000))


@pytest.mark.parametrize(
    ("pieces", "query", "statuses"),
    [
        (lambda: [header(b"x", 1 << 30, b"x"), *[bytes(MIB)] * 100], "", {400, 0}),
        (lambda: [header(b"f", 1 << 32), *[bytes(MIB)] * 150], "", {400}),
        (lambda: repeated(pax([(b"comment", b"x" * MIB)]) + member(b"f"), 60), "", {201}),
        (lambda: repeated(MOST_RECORDS + member(b"f"), 5), "", {201}),
        (lambda: repeated(MANY_PIECES, 5), "", {201}),
        (lambda: [member(b"f", b"1"), LINKS, END], "", {201}),
        (lambda: repeated(b"".join(member(b"%05d" % n) for n in range(1_000)), 12), "", {201}),
        (
            lambda: [gzip.compress(header(b"f", 192 * MIB) + bytes(192 * MIB) + END, 1)],
            "?format=tar.gz",
            {201},
        ),
        (
            lambda: [zstandard.compress(header(b"f", 192 * MIB) + bytes(192 * MIB) + END)],
            "?format=tar.zst",
            {201},
        ),
    ],
    ids=["pax of a GiB", "size that lies", "pax", "records", "pieces", "links", "members", "gzip", "zstd"],
)
def test_no_tar_takes_more_than_a_bounded_memory(
    server: Server, pieces, query: str, statuses: set[int]
) -> None:
    sent = list(pieces())
    before = server.forget_peak()
    status, body = server.put(sent, query, "hostile")
    assert status in statuses, body
    assert server.status("VmHWM") - before < GROWTH_MAX
    assert server.put([tars.tar_of({"a": b"1"})], dataset="well")[0] == 201


def test_readers_that_do_not_read_take_no_memory(server: Server) -> None:
    before = server.forget_peak()
    lines = []
    for form in ("tar", "tar.zst", "zip", "tar"):
        line = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        path = f"/v1/datasets/www/backups/latest/archive?format={form}"
        line.sendall(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n\r\n".encode()
        )
        assert line.recv(12) == b"HTTP/1.1 200"
        lines.append(line)
    used = server.status("VmRSS")

    def is_steady() -> bool:
        nonlocal used
        last, used = used, server.status("VmRSS")
        return last == used

    wait_until(is_steady)
    assert server.status("VmHWM") - before < GROWTH_MAX
    for line in lines:
        line.close()
    assert server.put([tars.tar_of({"a": b"1"})], dataset="well")[0] == 201
